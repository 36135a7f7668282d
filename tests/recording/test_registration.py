"""Registration: a claim fixes the run before it begins, and anything it does not fix is refused."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
import pytest

from proof_of_learning import Proof, TaskReference, canonical, prove, register, registration, verify
from proof_of_learning.errors import FormatError, UsageError


@pytest.fixture(scope="module")
def registered(tiny: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A claim, and the finished proof made under it. Read only."""
    folder = tmp_path_factory.mktemp("registered")
    register(tiny, folder / "claim.json", interval=5)
    prove(tiny, folder / "run.pol", registration=folder / "claim.json")
    return folder / "claim.json", folder / "run.pol"


@pytest.mark.quick
def test_a_proof_made_under_a_claim_is_valid_and_names_it(tiny: TaskReference, registered: tuple[Path, Path]) -> None:
    claim, run = registered
    verdict = verify(run, tiny, registration=claim)
    assert verdict.verdict == "valid", verdict.reason
    assert verdict.assurance == "seed-derived"  # nobody shows when the claim was made
    assert verdict.check("registration").evidence["claim"] == registration.load(claim).claim.digest()


def test_all_randomness_follows_from_the_hash_of_the_claim(
    tiny: TaskReference, registered: tuple[Path, Path], tiny_proof: Path
) -> None:
    claim, run = registered
    header = Proof.open(run).header
    assert header.randomness.key == registration.load(claim).claim.digest()[7:]
    assert header.randomness.seed is None
    assert Proof.open(run).initial_state != Proof.open(tiny_proof).initial_state


def test_the_claim_shows_which_runs_it_was_used_for(tiny: TaskReference, registered: tuple[Path, Path]) -> None:
    claim, run = registered
    kept = registration.load(claim)
    assert [used.root for used in kept.runs] == [Proof.open(run).root]
    assert not kept.unfinished


def test_a_run_that_was_started_and_not_finished_shows(tiny: TaskReference, tmp_path: Path) -> None:
    register(tiny, tmp_path / "claim.json", interval=5)

    def interrupt(doing: str, done: int, total: int) -> None:
        if doing == "training" and done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prove(tiny, tmp_path / "run.pol", registration=tmp_path / "claim.json", progress=interrupt)
    assert len(registration.load(tmp_path / "claim.json").unfinished) == 1
    with pytest.raises(UsageError, match="already used by a run that was not finished"):
        prove(tiny, tmp_path / "other.pol", registration=tmp_path / "claim.json")
    assert not (tmp_path / "other.pol").exists()
    prove(tiny, tmp_path / "run.pol", registration=tmp_path / "claim.json")  # resumes
    assert not registration.load(tmp_path / "claim.json").unfinished


def test_a_used_claim_is_refused(tiny: TaskReference, registered: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already used by a run that is finished"):
        prove(tiny, tmp_path / "again.pol", registration=registered[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval": 4}, "fixes interval as 5, not 4"),
        ({"threads": 2}, "environment's threads"),
        ({"seed": 5}, "leave --seed out"),
    ],
)
def test_what_the_claim_did_not_fix_is_refused(
    tiny: TaskReference, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    register(tiny, tmp_path / "claim.json", interval=5, threads=1)
    with pytest.raises(UsageError, match=message):
        prove(tiny, tmp_path / "run.pol", registration=tmp_path / "claim.json", **({"threads": 1} | change))  # type: ignore[arg-type]


def test_other_settings_than_the_claim_fixes_are_named(tiny: TaskReference, tmp_path: Path) -> None:
    register(tiny, tmp_path / "claim.json")
    with pytest.raises(UsageError, match=r"fixes the settings \(--set\) as none, not 'steps=12'"):
        prove(TaskReference(tiny.target, {"steps": 12}), tmp_path / "run.pol", registration=tmp_path / "claim.json")
    assert not (tmp_path / "run.pol").exists()


def test_a_claim_of_another_task_is_refused(tiny: TaskReference, digits: TaskReference, tmp_path: Path) -> None:
    register(digits, tmp_path / "claim.json")
    with pytest.raises(UsageError, match="the claim fixes name as digits, not"):
        prove(tiny, tmp_path / "run.pol", registration=tmp_path / "claim.json")


def test_another_claim_or_none_is_no_basis_for_a_proof(
    tiny: TaskReference, registered: tuple[Path, Path], tiny_proof: Path, tmp_path: Path
) -> None:
    register(tiny, tmp_path / "claim.json", interval=5)
    other = verify(registered[1], tiny, registration=tmp_path / "claim.json")
    assert (other.verdict, other.check("registration").status) == ("invalid", "fail")
    none = verify(tiny_proof, tiny, registration=tmp_path / "claim.json")
    assert (none.verdict, none.check("registration").status) == ("invalid", "fail")


def test_an_edited_claim_is_refused(tiny: TaskReference, registered: tuple[Path, Path], tmp_path: Path) -> None:
    kept = registration.load(registered[0])
    assert kept.claim.steps is not None
    claim = msgspec.structs.replace(kept.claim, steps=kept.claim.steps + 1)
    edited = tmp_path / "claim.json"
    edited.write_bytes(msgspec.structs.replace(kept, claim=claim).encoded())
    assert verify(registered[1], tiny, registration=edited).check("registration").status == "fail"
    edited.write_bytes(kept.encoded().replace(b'"steps":24', b'"steps": 24'))
    with pytest.raises(FormatError, match="canonical"):
        verify(registered[1], tiny, registration=edited)


def test_a_claim_from_the_future_is_refused(registered: tuple[Path, Path], tmp_path: Path) -> None:
    kept = registration.load(registered[0])
    ahead = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    (tmp_path / "claim.json").write_bytes(msgspec.structs.replace(kept, created=ahead).encoded())
    with pytest.raises(UsageError, match="from the future"):
        registration.load(tmp_path / "claim.json")


def test_malformed_claims_are_refused(registered: tuple[Path, Path], tmp_path: Path) -> None:
    raw = registered[0].read_bytes()
    for broken in (b"", b"{}", raw[:-3], raw.replace(b"pol/claim/v2", b"pol/claim/v9"), b"[" * 100_000):
        (tmp_path / "claim.json").write_bytes(broken)
        with pytest.raises(FormatError):
            registration.load(tmp_path / "claim.json")


def test_a_claim_is_never_overwritten(tiny: TaskReference, registered: tuple[Path, Path]) -> None:
    before = registered[0].read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        register(tiny, registered[0])
    assert registered[0].read_bytes() == before


def test_a_header_whose_claim_was_swapped_is_invalid(
    tiny: TaskReference, registered: tuple[Path, Path], tmp_path: Path
) -> None:
    """The claim inside a proof counts only if the key is its hash."""
    header = Proof.open(registered[1]).header
    claim = msgspec.structs.replace(registration.claim_of(header), nonce="0" * 64)
    forged = msgspec.structs.replace(header, claim=msgspec.to_builtins(claim))
    found = registration.violations(forged, Proof.open(registered[1]).environments)
    assert found[:2] == ["the claim's digest is not the one that the key names", "the key is not the hash of the claim"]
    assert canonical.encode(claim) != canonical.encode(registration.claim_of(header))
