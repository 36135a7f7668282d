"""Keys that were revoked count for what was stamped before; a recovery key puts another in their place."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

import support_authority as authorities
from proof_of_learning import Proof, Stamping, TaskReference, Verdict, prove, recover, register, sign, timestamp
from proof_of_learning.attestation import gathering, signatures, statements, timestamps
from proof_of_learning.attestation.signatures import PrivateKey
from proof_of_learning.cli.main import app
from proof_of_learning.errors import FormatError, UsageError
from support_attestation import World, gathered, judged, named, only, put

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Owned:
    """A proof whose claim names a recovery key; not signed itself."""

    proof: Path
    spare: PrivateKey
    new: Path


@pytest.fixture(scope="module")
def owned(world: World, tiny: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Owned:
    folder = tmp_path_factory.mktemp("owned")
    for name in ("spare", "new"):
        signatures.generate(folder / f"{name}.pem")
    claim, run = folder / "claim.json", folder / "run.pol"
    register(tiny, claim, interval=12, owners=[world.trusted], recovery=folder / "spare.pub.pem")
    sign(claim, world.key)
    with authorities.serving(world.first.reply) as url:
        timestamp(claim, [url])
        prove(tiny, run, registration=claim, stamping=Stamping(2, url))
    return Owned(run, signatures.load_private(folder / "spare.pem"), folder / "new.pem")


@pytest.fixture
def run(owned: Owned, tmp_path: Path) -> Path:
    return Path(shutil.copytree(owned.proof, tmp_path / "run.pol"))


@pytest.fixture
def sealed(world: World, tmp_path: Path) -> Path:
    """A copy of the proof that its owner signed and two authorities stamped, just now."""
    return Path(shutil.copytree(world.proof, tmp_path / "sealed.pol"))


def revoking(folder: Path, key: str, since: datetime | None) -> Path:
    path = folder / f"revoked-{key[7:15]}.toml"
    path.write_text(f'[[revoked]]\nkey = "{key}"\n' + ("" if since is None else f"since = {since.isoformat()}\n"))
    return path


def seen(run: Path, world: World, **more: Any) -> Verdict:
    return judged(run, trusted_keys=[world.trusted], trusted_tsa=[world.first.roots, world.second.roots], **more)


def holds(verdict: Verdict) -> bool:
    """Whether the trusted key counts."""
    assert (verdict.check("attestation").status == "pass") == (verdict.verdict != "invalid")
    return verdict.verdict != "invalid"


def test_the_heads_of_a_registered_run_begin_at_the_token_on_its_claim(owned: Owned, world: World) -> None:
    first = min(
        (json.loads(path.read_bytes())["predicate"] for path in named(owned.proof, "head-*.json")),
        key=lambda head: int(head["steps"]),
    )
    token = only(owned.proof, "claim-*.tsr").read_bytes()
    assert first["previous"] == f"sha256:{hashlib.sha256(token).hexdigest()}"
    verdict = judged(owned.proof, trusted_tsa=[world.first.roots])
    assert (verdict.assurance, [s.stop for s in verdict.stretches]) == ("registered", [24])


# ---- revoked keys ---------------------------------------------------------------------------------------------------


def test_a_revoked_key_counts_for_what_was_stamped_before(sealed: Path, world: World, tmp_path: Path) -> None:
    key = world.key.public.digest
    assert holds(seen(sealed, world))
    for since, counts in ((NOW + HOUR, True), (NOW - HOUR, False), (None, False), (NOW, False)):
        verdict = seen(sealed, world, revoked=[revoking(tmp_path, key, since)])
        assert holds(verdict) == counts, since
        assert counts or any("was revoked" in line for line in verdict.check("attestation").evidence["ignored"])
    # The claim's signature, too.
    verdict = judged(sealed, trusted_tsa=[world.second.roots], revoked=[revoking(tmp_path, key, NOW - HOUR)])
    assert verdict.assurance == "seed-derived" and not verdict.signers
    said = [moment.shows for moment in verdict.timeline if moment.what == "claim" and moment.trusted]
    assert said and all(
        "Not all of its signatures count" in text and "signed by its owners" not in text for text in said
    )
    # Which is said, and not that they are not there.
    assert "2 signatures do not count: their keys were revoked" in verdict.check("attestation").summary
    verdict = seen(sealed, world, revoked=[revoking(tmp_path, key, NOW - HOUR)])
    assert "should have signed the proof, and nobody did; seal" in verdict.check("attestation").summary
    assert "which was revoked, and no authority" in verdict.check("attestation").summary
    verdict = judged(sealed, trusted_tsa=[world.second.roots], revoked=[revoking(tmp_path, key, NOW + HOUR)])
    assert verdict.assurance == "registered"
    said = [moment.shows for moment in verdict.timeline if moment.what == "claim" and moment.trusted]
    assert said and all("signed by its owners" in text for text in said)
    # Of two lists the earlier moment.
    both = [revoking(tmp_path, key, NOW - HOUR), tmp_path / "later.toml"]
    both[1].write_text(both[0].read_text().replace((NOW - HOUR).isoformat(), (NOW + HOUR).isoformat()))
    assert not holds(seen(sealed, world, revoked=both))


def test_a_policy_revokes_keys_as_a_list_does(sealed: Path, world: World, tmp_path: Path) -> None:
    key, rules = world.key.public.digest, tmp_path / "policy.toml"
    for since, counts in ((NOW + HOUR, True), (NOW - HOUR, False), (None, False)):
        table = revoking(tmp_path, key, since).read_text().replace("[[revoked]]", "[[trust.revoked]]")
        rules.write_text(f'{table}reason = "stolen"\n')
        assert holds(seen(sealed, world, policy=rules)) == counts, since
        # Of a policy and a list the earlier moment.
        for other in (NOW + HOUR, NOW - HOUR):
            both = seen(sealed, world, policy=rules, revoked=[revoking(tmp_path, key, other)])
            assert holds(both) == (counts and other > NOW)
    rules.write_text(f'[trust]\nrevoked = [{{ key = "{key}" }}]\n')
    told = CliRunner().invoke(app, ["policy", "--check", str(rules)])
    assert (told.exit_code, "1 rule: trust.revoked" in told.output) == (0, True)
    command = ["verify", str(sealed), "--trusted-key", str(world.trusted), "--policy", str(rules)]
    assert CliRunner().invoke(app, command).exit_code == 1


def test_what_dates_a_revoked_key_is_a_stamp_that_the_verifier_believes(
    sealed: Path, world: World, tmp_path: Path
) -> None:
    revoked = [revoking(tmp_path, world.key.public.digest, NOW + HOUR)]
    assert not holds(judged(sealed, trusted_keys=[world.trusted], revoked=revoked))
    stranger = authorities.make(tmp_path / "stranger")
    assert not holds(judged(sealed, trusted_keys=[world.trusted], trusted_tsa=[stranger.roots], revoked=revoked))


def test_a_stolen_key_cannot_date_what_it_signs_back(sealed: Path, world: World, tmp_path: Path) -> None:
    """The thief signs the same seal anew, and has that stamped; the old stamp is on other bytes, or on the bare statement."""
    revoked = [revoking(tmp_path, world.key.public.digest, NOW + HOUR)]
    payload = signatures.open_envelope(only(sealed, "seal-*.dsse.json").read_bytes(), "").payload
    only(sealed, "seal-*.dsse.json").unlink()
    again = put(sealed, "seal-.dsse.json", signatures.seal(payload, [world.key]))
    put(sealed, "seal-.tsr", world.first.crafted(again.read_bytes(), NOW + 2 * HOUR))
    assert not holds(seen(sealed, world, revoked=revoked))
    bare = put(sealed, "seal-.json", statements.seal(gathering.sealed(Proof.open(sealed)), []))
    put(sealed, "seal-.tsr", world.first.crafted(bare.read_bytes(), NOW))
    assert not holds(seen(sealed, world, revoked=revoked))


def test_a_revoked_authority_dates_what_another_stamped_before(sealed: Path, world: World, tmp_path: Path) -> None:
    first, second = (next(t.key for t in tokens(sealed) if name in t.authority) for name in ("First", "Second"))

    def counting(key: str, since: datetime | None) -> set[str]:
        verdict = seen(sealed, world, revoked=[revoking(tmp_path, key, since)])
        return {moment.authority for moment in verdict.timeline if moment.trusted and moment.what == "seal"}

    both = {"CN=First TSA", "CN=Second TSA"}
    assert counting(first, NOW + HOUR) == both  # the second one's tokens contain the first one's
    assert counting(first, NOW - HOUR) == counting(first, None) == {"CN=Second TSA"}
    assert counting(second, NOW + HOUR) == {"CN=First TSA"}  # nothing is on the second one's
    lists = [
        revoking(tmp_path, first, NOW + HOUR),
        revoking(tmp_path, second, None),
    ]  # nor does one vouch for the other
    assert not any(m.trusted for m in seen(sealed, world, revoked=lists).timeline)


def tokens(run: Path) -> list[timestamps.Token]:
    return [timestamps.parse(path.read_bytes(), path.name) for path in named(run, "*.tsr")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected tables"), ("x = 1", "expected tables"), ("[[revoked]]\n", "has to have `key`"), ("[[revoked", "not TOML"),
        ('[[revoked]]\nkey = "abc"\n', "64 hex digits"), ("[[revoked]]\nkey = 1\n", "64 hex digits"),
        (f'[[revoked]]\nkey = "sha256:{"0" * 64}"\nsince = 2026-05-01\n', "a moment with its offset"),
        (f'[[revoked]]\nkey = "sha256:{"0" * 64}"\nsince = 2026-05-01T00:00:00\n', "a moment with its offset"),
        (f'[[revoked]]\nkey = "sha256:{"0" * 64}"\nuntil = 1\n', "may have `since`"), ("revoked = 3", "expected tables"),
        (f"# {'x' * (1 << 20)}", "no list of keys has"), ("x = " + "9" * 5000, "not TOML"), ("x = 0x1" + "0" * 16, "64 bits"),
        *((before + "a." * 100_000 + after, "dots in a line") for before, after in (("", "a = 1"), ("[", "a]"), ("x = {", "a = 1}"))),
    ],
    ids=range(16),
)  # fmt: skip
def test_a_list_that_cannot_be_read_is_refused_in_a_line(text: str, says: str, sealed: Path, tmp_path: Path) -> None:
    path = tmp_path / "revoked.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        judged(sealed, revoked=[path])
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="No such file"):
        judged(sealed, revoked=[tmp_path / "none"])


# ---- recovery -------------------------------------------------------------------------------------------------------


def test_the_recovery_key_puts_another_in_an_owners_place(
    run: Path, owned: Owned, world: World, tmp_path: Path
) -> None:
    gone = [revoking(tmp_path, world.key.public.digest, NOW + HOUR)]
    sign(run, owned.new)
    assert not holds(seen(run, world))  # so far a stranger's
    recover(run, owned.spare, world.trusted, owned.new.with_name("new.pub.pem"))
    verdict = seen(run, world, revoked=gone)
    assert holds(verdict) and verdict.assurance == "registered"
    new = signatures.load_private(owned.new).public.digest
    (signer,) = (s for s in verdict.signers if s.key == new)
    assert signer.owner and signer.replaces == [world.key.public.digest]
    # Without the owners' signature on the claim nobody has said whose the recovery key is.
    assert not holds(seen(run, world, revoked=[revoking(tmp_path, world.key.public.digest, NOW - HOUR)]))
    # A recovery key that was stolen: by its own list, and for what was stamped before.
    stolen = [revoking(tmp_path, owned.spare.public.digest, datetime.now(UTC) + HOUR)]
    assert not holds(seen(run, world, revoked=stolen))
    with authorities.serving(world.second.reply) as url:
        timestamp(run, [url])
    assert holds(seen(run, world, revoked=stolen))
    assert not holds(seen(run, world, revoked=[revoking(tmp_path, owned.spare.public.digest, NOW - HOUR)]))


def test_a_successor_is_no_second_owner(run: Path, owned: Owned, world: World) -> None:
    recover(run, owned.spare, world.trusted, owned.new.with_name("new.pub.pem"))
    sign(run, owned.new)
    sign(run, world.key)
    keys = [world.trusted, world.folder / "stranger.pub.pem"]
    assert not holds(judged(run, trusted_keys=keys, threshold=2))
    # Another one after that, and none of them counts twice.
    signatures.generate(run.parent / "third.pem")
    recover(run, owned.spare, owned.new.with_name("new.pub.pem"), run.parent / "third.pub.pem")
    sign(run, run.parent / "third.pem")
    assert not holds(judged(run, trusted_keys=keys, threshold=2))
    for path in named(run, "seal-*"):
        path.unlink()
    sign(run, run.parent / "third.pem")
    assert holds(judged(run, trusted_keys=[world.trusted]))
    assert not holds(judged(run, trusted_keys=[world.folder / "stranger.pub.pem"]))


def test_a_claim_cannot_give_away_a_key_that_did_not_sign_it(world: World, tiny: TaskReference, tmp_path: Path) -> None:
    """A claim of the stranger's, which names the key that verifiers trust as one more owner, for their recovery key to replace it."""
    for name in ("spare", "new"):
        signatures.generate(tmp_path / f"{name}.pem")
    claim, run, stranger = tmp_path / "claim.json", tmp_path / "run.pol", world.folder / "stranger.pub.pem"
    new = tmp_path / "new.pub.pem"
    register(
        tiny, claim, interval=24, owners=[world.trusted, stranger], threshold=1, recovery=tmp_path / "spare.pub.pem"
    )
    sign(claim, world.stranger)
    prove(tiny, run, registration=claim)
    sign(run, tmp_path / "new.pem")
    recover(run, tmp_path / "spare.pem", world.trusted, new)
    assert not holds(judged(run, trusted_keys=[world.trusted]))
    # Nor by way of the stranger, whom it may replace.
    recover(run, tmp_path / "spare.pem", stranger, world.trusted)
    assert not holds(judged(run, trusted_keys=[world.trusted]))
    assert holds(judged(run, trusted_keys=[stranger]))


def test_nobody_else_recovers(run: Path, owned: Owned, world: World, sealed: Path) -> None:
    new = signatures.load_private(owned.new).public
    claim = Proof.open(run).header.randomness.claim
    assert claim is not None
    sign(run, owned.new)
    owner, spare = world.key.public.digest, owned.spare
    for payload, signers in (
        (statements.recovery(claim, owner, new, [world.stranger.public]), [world.stranger]),
        (statements.recovery(claim, owner, new, [world.key.public]), [world.key]),  # an owner's key alone is no recovery key
        (statements.recovery(claim, owner, new, [spare.public]), [world.stranger]),  # no good signature
        (statements.recovery(claim, owner, new, [spare.public, world.stranger.public]), [spare]),
        (statements.recovery("sha256:" + "0" * 64, owner, new, [spare.public]), [spare]),  # of another claim
        (statements.recovery(claim, new.digest, new, [spare.public]), [spare]),  # in its own place
        (statements.recovery(claim, world.stranger.public.digest, new, [spare.public]), [spare]),  # of somebody who is no owner
    ):  # fmt: skip
        put(run, "recovery-.dsse.json", signatures.seal(payload, signers))
    assert not holds(seen(run, world))
    assert not holds(judged(run, trusted_keys=[world.folder / "stranger.pub.pem"]))
    # A statement of another kind is none, nor one that nobody signed.
    payload = statements.recovery(claim, owner, new, [spare.public])
    bare = put(run, "recovery-.json", payload)
    assert not holds(seen(run, world))
    bare.unlink()
    wrong = put(run, "seal-.dsse.json", signatures.seal(payload, [spare]))
    with pytest.raises(FormatError, match="kind 'recovery'"):
        seen(run, world)
    wrong.unlink()
    # In a proof whose claim names no recovery key it is about another claim.
    with pytest.raises(UsageError, match="names no recovery key"):
        recover(sealed, spare, world.trusted, owned.new.with_name("new.pub.pem"))
    for key, successor, says in (
        (world.key, owned.new.with_name("new.pub.pem"), "another recovery key"),
        (spare, world.trusted, "a new key"),
    ):
        with pytest.raises(UsageError, match=says):
            recover(run, key, world.trusted, successor)
    # In the place of nobody's key it would count for nothing, and say that it did.
    with pytest.raises(UsageError, match="no owner's key by the claim"):
        recover(run, spare, world.folder / "stranger.pub.pem", owned.new.with_name("new.pub.pem"))


def test_keys_for_which_anybody_can_sign_are_no_successors(run: Path, owned: Owned, world: World) -> None:
    point = bytes([1]) + bytes(31)  # of order 1: the identity
    weak = ed25519.Ed25519PublicKey.from_public_bytes(point).public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    claim = Proof.open(run).header.randomness.claim
    assert claim is not None
    true = statements.recovery(claim, world.key.public.digest, owned.spare.public, [owned.spare.public])
    for place in ("successor", "signers"):
        value = json.loads(true)
        told = {"digest": signatures.canonical.sha256(weak), "publicKey": base64.b64encode(weak).decode()}
        value["predicate"][place] = told if place == "successor" else [told]
        raw = signatures.seal(signatures.canonical.encode(value), [owned.spare])
        path = put(run, "recovery-.dsse.json", raw)
        if place == "signers":
            with pytest.raises(FormatError, match="small order"):
                seen(run, world)
        else:
            assert not gathered(run, world.first).replaced
        path.unlink()


def test_the_commands_recover_and_revoke(run: Path, owned: Owned, world: World, tmp_path: Path) -> None:
    spare, new = owned.new.with_name("spare.pem"), owned.new.with_name("new.pub.pem")
    invoke = CliRunner().invoke
    made = invoke(
        app, ["recover", str(run), "--key", str(spare), "--owner", str(world.trusted), "--successor", str(new)]
    )
    assert made.exit_code == 0, made.output
    sign(run, owned.new)
    gone = revoking(tmp_path, world.key.public.digest, NOW + HOUR)
    arguments = [
        "verify",
        str(run),
        "--trusted-key",
        str(world.trusted),
        "--trusted-tsa",
        str(world.first.roots),
        "--json",
        "-",
    ]
    found = invoke(app, [*arguments, "--revoked", str(gone)])
    assert found.exit_code == 3, found.output  # no task was named
    gone.write_text("x")
    found = invoke(app, [*arguments, "--revoked", str(gone)])
    assert found.exit_code == 2 and "not TOML" in found.output
