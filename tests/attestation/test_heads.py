"""Log heads: stamped while training without holding it up, and of a chain of them nothing false passes."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import support_authority as authorities
import support_scripts
from conftest import nursery
from proof_of_learning import Proof, Stamping, TaskReference, Verdict, prove
from proof_of_learning.attestation import gaps, gathering, heads, statements, timestamps
from proof_of_learning.cli.main import app
from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.proof.format import ATTESTATIONS
from proof_of_learning.proof.writer import ProofWriter
from proof_of_learning.recording import stamper
from proof_of_learning.report.html import render_html
from support_attestation import World, chained, gathered, judged, named, only, put
from support_authority import Authority, openssl

DAY = datetime(2026, 5, 4, 12, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture
def run(tiny_proof: Path, tmp_path: Path) -> Path:
    """A copy of a proof of 24 steps in segments of 5, without any attestation."""
    return Path(shutil.copytree(tiny_proof, tmp_path / "run.pol"))


@pytest.fixture
def headed(run: Path, world: World) -> Path:
    """The same with four heads, an hour apart, of two authorities in turn."""
    chained(run, [(5 * n, (world.first, world.second)[n % 2], DAY + n * HOUR) for n in range(1, 5)])
    return run


def seen(run: Path, world: World) -> Verdict:
    return judged(run, trusted_tsa=[world.first.roots, world.second.roots])


def refused(run: Path, world: World) -> str:
    """What is said of a proof that is invalid for its attestations, before a state is read."""
    for path in (run / "objects").rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))
    verdict = seen(run, world)
    assert (verdict.verdict, verdict.exit_status) == ("invalid", 1)
    assert verdict.check("attestation").status == "fail"
    return verdict.check("attestation").summary


def order(run: Path) -> list[dict[str, Any]]:
    """The predicates of the heads, by their steps."""
    found = [json.loads(path.read_bytes())["predicate"] for path in named(run, "head-*.json")]
    return sorted(found, key=lambda head: int(head["steps"]))


# ---- while training -------------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_heads_are_stamped_while_training_and_contain_one_another(
    world: World, tiny: TaskReference, tiny_proof: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run.pol"
    with authorities.serving(world.first.reply) as one, authorities.serving(world.second.reply) as two:
        made = prove(
            tiny, run, interval=5, stamping=Stamping(1, [one, two], [world.first.roots, world.second.roots]),
            progress=patient(run),
        )  # fmt: skip
    assert made.root == Proof.open(tiny_proof).root  # nothing of it is under the root
    assert (
        made.stamped is not None and made.stamped.steps == 24 and not made.stamped.gaps
    )  # the last one is on the final state
    chain = order(run)
    assert made.stamped.heads == len(chain) == len(named(run, "head-*.tsr"))
    tokens = {f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}": path for path in named(run, "head-*.tsr")}
    assert "previous" not in chain[0] and chain[-1]["steps"] == 24
    assert len({head["previous"] for head in chain[1:]} & set(tokens)) == len(chain) - 1
    by = [gathering.timestamps.parse(raw.read_bytes(), raw.name).authority for raw in tokens.values()]
    assert sorted(map(by.count, set(by))) == [2, 3]  # in turn
    bundle = tmp_path / "roots.pem"
    bundle.write_bytes(world.first.roots.read_bytes() + world.second.roots.read_bytes())
    by_stamped = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in named(run, "head-*.json")}
    for token in tokens.values():
        stamped = by_stamped[gathering.timestamps.parse(token.read_bytes(), token.name).stamped]
        openssl("ts", "-verify", "-CAfile", bundle, "-in", token, "-data", stamped)
    verdict = seen(run, world)
    assert verdict.verdict != "invalid" and [moment.what for moment in verdict.timeline] == ["head"] * len(chain)
    assert [(s.start, s.stop, s.stamps) for s in verdict.stretches] == [
        (0, 24, len(chain))
    ]  # within seconds: they count as one


def test_a_run_under_a_stamped_claim_links_its_heads_to_it(world: World, tmp_path: Path) -> None:
    run = Path(shutil.copytree(world.proof, tmp_path / "run.pol"))
    tokens = [gathering.timestamps.parse(p.read_bytes(), p.name) for p in named(run, "claim-*.tsr")]
    (last,) = (t for t in tokens if hashlib.sha256(t.raw).hexdigest() not in {other.stamped for other in tokens})
    chained(run, [(5, world.first, last.latest + HOUR)], last.raw)
    assert not gathered(run, world.first, world.second).false
    seal = named(run, "seal-*.tsr")[0].read_bytes()
    chained(run, [(10, world.first, last.latest + HOUR)], seal)  # a later token than the head could have contained
    assert "neither on an earlier head" in refused(run, world)


def gone_silent(answer: Callable[[bytes], bytes | None], times: int) -> Callable[[bytes], bytes | None]:
    """An authority that hangs up so many times first."""
    left = [times]

    def reply(request: bytes) -> bytes | None:
        left[0] -= 1
        return None if left[0] >= 0 else answer(request)

    return reply


def test_a_dead_authority_stops_nothing_and_leaves_a_gap(
    world: World, tiny: TaskReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run.pol"
    with authorities.serving(lambda request: None) as url:
        made = prove(tiny, run, interval=5, stamping=Stamping(2, f"{url}?key=hidden"))
    assert made.stamped is not None and (made.stamped.heads, made.stamped.steps) == (0, 0)
    (gap,) = gaps.read(only(run, "gaps-*.json").read_bytes(), "gaps")
    assert (
        (gap.after, gap.until) == (0, None)
        and "cannot be reached" in gap.why
        and made.stamped.gaps == (gaps.line(gap),)
    )
    assert not any(b"hidden" in path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert seen(run, world).check("attestation").evidence["gaps"] == [gaps.line(gap)]

    monkeypatch.setattr(stamper, "FIRST_PAUSE", 0.0)
    with authorities.serving(gone_silent(world.first.reply, 1)) as url:
        made = prove(tiny, tmp_path / "again.pol", interval=5, stamping=Stamping(1, url))
    assert made.stamped is not None and made.stamped.steps == 24
    (gap,) = gaps.read(only(tmp_path / "again.pol", "gaps-*.json").read_bytes(), "gaps")
    assert gap.after == 0 and gap.until in (5, 10, 15, 20, 24)


def test_a_lying_authority_leaves_a_gap(world: World, tiny: TaskReference, tmp_path: Path) -> None:
    old = world.first.reply(gathering.timestamps.request(b"something else")[0])
    with authorities.serving(lambda request: old) as one, authorities.serving(world.second.reply) as two:
        lied = prove(tiny, tmp_path / "run.pol", interval=5, stamping=Stamping(5, one)).stamped
        other = prove(tiny, tmp_path / "other.pol", interval=5, stamping=Stamping(5, [two], world.first.roots)).stamped
    for made, why in ((lied, "something else than it was asked"), (other, "vouches")):
        assert made is not None and made.heads == 0 and why in made.gaps[0]
    assert not named(tmp_path / "run.pol", "head-*")


@pytest.mark.parametrize("answers", [True, False])
def test_a_hanging_authority_holds_up_no_step_and_writes_nothing_afterwards(
    answers: bool, world: World, tiny: TaskReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamper, "PATIENCE", 0.1)
    run, asked, answer, after = tmp_path / "run.pol", threading.Event(), threading.Event(), list[int]()

    def hang(request: bytes) -> bytes | None:
        asked.set()
        answer.wait()
        return world.first.reply(request) if answers else None

    def watch(doing: str, done: int, total: int) -> None:
        if doing == "training" and done > 5:
            assert asked.wait(
                30
            )  # from here on the authority is being asked, and has not answered when the last step is taken
            after.append(done)

    with authorities.serving(hang) as url:
        made = prove(tiny, run, interval=5, stamping=Stamping(1, url), progress=watch)
        before = {path.name for path in (run / ATTESTATIONS).iterdir()}
        answer.set()
        for thread in threading.enumerate():
            if thread.name == "pol-stamper":
                thread.join()
    assert (
        after[-1] == 24
        and made.stamped is not None
        and made.stamped.heads == 0
        and "no answer within the 0.1 seconds" in made.stamped.gaps[0]
    )
    assert {path.name for path in (run / ATTESTATIONS).iterdir()} == before and not named(run, "head-*")


def test_an_interrupted_recording_is_not_written_to_afterwards(tiny: TaskReference, tmp_path: Path) -> None:
    run, asked, answer = tmp_path / "run.pol", threading.Event(), threading.Event()

    def hang(request: bytes) -> None:
        asked.set()
        answer.wait()

    def interrupt(doing: str, done: int, total: int) -> None:
        if doing == "training" and done > 5 and asked.wait(30):
            raise KeyboardInterrupt

    with authorities.serving(hang) as url:
        with pytest.raises(KeyboardInterrupt):
            prove(tiny, run, interval=5, stamping=Stamping(1, url), progress=interrupt)
        answer.set()
        for thread in threading.enumerate():
            if thread.name == "pol-stamper":
                thread.join()
    assert not named(run, "*")


def patient(run: Path) -> Callable[[str, int, int], None]:
    """A training that waits for each head to be stamped, as long ones need not."""

    def wait(doing: str, done: int, total: int) -> None:
        while doing == "training" and len(named(run, "head-*.tsr")) < done // 5:
            threading.Event().wait(0.01)

    return wait


def interrupted(tiny: TaskReference, run: Path, url: str) -> None:
    """A recording that is stopped after 12 of its steps, once two heads were stamped."""

    def interrupt(doing: str, done: int, total: int) -> None:
        patient(run)(doing, done, total)
        if doing == "training" and done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prove(tiny, run, interval=5, stamping=Stamping(1, url), progress=interrupt)


def test_an_interrupted_run_goes_on_with_its_chain(
    world: World, tiny: TaskReference, tiny_proof: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run.pol"
    seal = ProofWriter.seal

    def sealing(writer: ProofWriter, *given: Any, **more: Any) -> str:
        assert strange not in order(writer.path)  # who is killed now has a proof that is not false
        return seal(writer, *given, **more)

    monkeypatch.setattr(ProofWriter, "seal", sealing)
    with authorities.serving(world.first.reply) as url:
        interrupted(tiny, run, url)
        kept = order(run)
        assert [head["steps"] for head in kept] == [5, 10]
        # A head of steps that came out otherwise than they did the second time, as they may where order and noise are not derived.
        strange = {**kept[1], "head": f"sha256:{'0' * 64}", "steps": 20}
        raw = json.dumps(
            {**json.loads(named(run, "head-*.json")[0].read_bytes()), "predicate": strange},
            sort_keys=True,
            separators=(",", ":"),
        )
        put(run, "head-.json", raw.encode())
        put(run, "head-.tsr", world.first.crafted(raw.encode(), datetime.now(UTC)))
        unstamped = Path(shutil.copytree(run, tmp_path / "unstamped.pol"))
        made = prove(tiny, run, interval=5, stamping=Stamping(1, url))
    assert made.root == Proof.open(tiny_proof).root
    chain = order(run)
    assert chain[:2] == kept and chain[-1]["steps"] == 24 and strange not in chain
    assert [head["steps"] for head in chain if "previous" not in head] == [5]
    assert made.stamped is not None and made.stamped.heads == len(chain) == len(named(run, "head-*.tsr"))
    assert "1 stamped heads were removed" in made.stamped.gaps[-1]
    assert seen(run, world).verdict != "invalid"
    prove(tiny, unstamped, interval=5)  # who goes on without stamping has them in the way as well
    assert order(unstamped) == kept and seen(unstamped, world).verdict != "invalid"


def test_two_clocks_that_differ_by_too_much_do_not_spoil_a_run(
    world: World, tiny: TaskReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is near enough to the recorder's own, and a verifier believes both authorities."""
    ahead = {"http://first/": (world.first, 4 * MINUTE), "http://second/": (world.second, -4 * MINUTE)}

    def stamp(raw: bytes, url: str, *_: Any) -> timestamps.Token:
        authority, off = ahead[url]
        return timestamps.parse(authority.crafted(raw, datetime.now(UTC) + off), url)

    monkeypatch.setattr(stamper.authority, "stamp", stamp)
    run = tmp_path / "run.pol"
    patience = patient(run)
    made = prove(tiny, run, interval=5, stamping=Stamping(1, list(ahead)), progress=patience)
    assert seen(run, world).verdict != "invalid"
    assert made.stamped is not None and made.stamped.steps == 24  # by the other one
    by = {timestamps.parse(path.read_bytes(), path.name).authority for path in named(run, "head-*.tsr")}
    assert by == {"CN=First TSA"}


def test_what_cannot_be_stamped_is_said_before_training(world: World, tiny: TaskReference, tmp_path: Path) -> None:
    run = tmp_path / "run.pol"
    for given, steps, says in (
        ((2, []), 24, "--tsa"),
        ((0, "http://localhost/"), 24, "1 or more"),
        ((1, "ftp://localhost/"), 24, "expected the address"),
        ((1, "http://localhost/", tmp_path / "none.pem"), 24, "none.pem"),
        ((1, "http://localhost/"), 1250, "at most 100 stamped heads"),
    ):
        with pytest.raises(UsageError, match=says):
            prove(TaskReference(tiny.target, {"steps": steps}), run, interval=5, stamping=Stamping(*given))
        assert not (run / "log.jsonl").exists()


# ---- what a chain shows ---------------------------------------------------------------------------------------------


def spans(run: Path, *trusted: Authority) -> list[tuple[int, int, float | None]]:
    """The stretches, each with the hours after noon by which it was there."""
    found = gathered(run, *trusted).stretches
    return [(s.start, s.stop, None if s.latest is None else round((s.latest - DAY) / HOUR, 2)) for s in found]


def test_each_stretch_has_the_date_of_the_next_stamp(headed: Path, world: World) -> None:
    assert spans(headed, world.first, world.second) == [(0, 5, 1), (5, 10, 2), (10, 15, 3), (15, 20, 4), (20, 24, None)]
    # What an authority that nobody trusts stamped has the date of the next one.
    assert spans(headed, world.first) == [(0, 10, 2), (10, 20, 4), (20, 24, None)]
    assert spans(headed) == []
    stretches = seen(headed, world).stretches
    assert [(s.start, s.stop, s.segments) for s in stretches] == [
        (0, 5, 1),
        (5, 10, 1),
        (10, 15, 1),
        (15, 20, 1),
        (20, 24, 1),
    ]
    assert stretches[0].latest == "2026-05-04T13:00:01Z" and stretches[-1].latest is None


def test_bunched_stamps_count_as_one(run: Path, world: World) -> None:
    one, two = world.first, world.second
    chained(
        run,
        [
            (5, one, DAY),
            (10, two, DAY + 4 * MINUTE),
            (15, one, DAY + 8 * MINUTE),
            (20, one, DAY + 8 * MINUTE + timedelta(seconds=1)),
        ],
    )
    # Of one authority a second counts beyond its accuracy; of two, what their clocks may differ by.
    assert [span[:2] for span in spans(run, one, two)] == [(0, 5), (5, 20), (20, 24)]


def test_a_late_stamp_dates_nothing_that_an_earlier_one_does_not(run: Path, world: World) -> None:
    chained(run, [(20, world.first, DAY + HOUR)])
    chained(run, [(5, world.first, DAY + 9 * HOUR)])  # stamped afterwards: its steps are in the one above
    assert spans(run, world.first) == [(0, 20, 1), (20, 24, None)]


def test_taking_true_heads_away_never_improves_a_verdict(headed: Path, world: World) -> None:
    def worth(place: Path) -> tuple[bool, int]:
        verdict = seen(place, world)
        return verdict.verdict != "invalid", sum(s.latest is not None for s in verdict.stretches)

    whole = worth(headed)
    assert whole == (True, 4)
    for file in named(headed, "*"):
        raw = file.read_bytes()
        file.unlink()
        assert all(a <= b for a, b in zip(worth(headed), whole, strict=True)), file.name
        file.write_bytes(raw)


# ---- attacks --------------------------------------------------------------------------------------------------------


def changed(path: Path, **predicate: Any) -> bytes:
    value = json.loads(path.read_bytes())
    value["predicate"] |= predicate
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "change", [{"steps": 4}, {"head": f"sha256:{'1' * 64}"}, {"previous": "x"}, {"more": 1}], ids=str
)
def test_a_head_that_is_no_beginning_of_the_log_makes_the_proof_invalid(
    change: dict[str, Any], headed: Path, world: World
) -> None:
    """Of another log under the same header: a run that was trained twice, say, of which the better one is shown."""
    put(headed, "head-.json", changed(named(headed, "head-*.json")[0], **change))
    assert "this log has no such beginning" in refused(headed, world)


def test_a_head_of_another_run_counts_for_nothing(
    headed: Path, digits_proof: Path, world: World, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(digits_proof, tmp_path / "other.pol"))
    ((statement, token),) = chained(other, [(5, world.first, DAY)])
    put(headed, "head-.json", statement.read_bytes())
    put(headed, "head-.tsr", token.read_bytes())
    verdict = seen(headed, world)
    assert verdict.verdict != "invalid" and len(verdict.timeline) == 4
    assert any("another log" in line for line in verdict.check("attestation").evidence["ignored"])
    # Nor can a chain be begun by it.
    chained(headed, [(15, world.first, DAY + 9 * HOUR)], token.read_bytes())
    assert "heads were reordered" in refused(headed, world)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_head_cannot_be_taken_out_of_the_middle(number: int, headed: Path, world: World) -> None:
    stamped = {gathering.timestamps.parse(p.read_bytes(), p.name).stamped: p for p in named(headed, "head-*.tsr")}
    steps = {json.loads(p.read_bytes())["predicate"]["steps"]: p for p in named(headed, "head-*.json")}
    statement = steps[5 * (number + 1)]
    stamped[hashlib.sha256(statement.read_bytes()).hexdigest()].unlink()
    assert "the chain of heads is broken" in refused(headed, world)
    statement.unlink()
    assert "the chain of heads is broken" in refused(headed, world)


def test_heads_cannot_be_reordered(run: Path, world: World) -> None:
    ((_, last),) = chained(run, [(20, world.first, DAY)])
    chained(run, [(10, world.first, DAY + HOUR)], last.read_bytes())
    assert "heads were reordered" in refused(run, world)


def test_a_time_before_what_is_contained_makes_the_proof_invalid(run: Path, world: World) -> None:
    chained(run, [(5, world.first, DAY), (10, world.second, DAY - 6 * MINUTE)])
    assert judged(run, trusted_tsa=[world.first.roots]).verdict != "invalid"  # who is not believed contradicts nobody
    assert "says a time before that of" in refused(run, world)


def test_clocks_may_differ_a_little(run: Path, world: World) -> None:
    chained(run, [(5, world.first, DAY), (10, world.second, DAY - 4 * MINUTE)])
    assert seen(run, world).verdict != "invalid"


def test_a_contradiction_is_found_over_what_lies_between(run: Path, world: World, tmp_path: Path) -> None:
    nobody = authorities.make(tmp_path / "nobody")
    chained(run, [(5, world.first, DAY), (10, nobody, DAY), (15, world.second, DAY - HOUR)])
    assert "says a time before that of" in refused(run, world)


def test_a_head_is_no_seal(headed: Path, world: World) -> None:
    put(headed, "seal-.tsr", named(headed, "head-*.tsr")[0].read_bytes())
    verdict = seen(headed, world)
    assert {moment.what for moment in verdict.timeline} == {"head"}
    put(headed, "seal-.json", named(headed, "head-*.json")[0].read_bytes())
    with pytest.raises(FormatError, match="kind 'head'"):
        seen(headed, world)


def test_what_is_no_list_of_gaps_is_refused(run: Path) -> None:
    gap = gaps.Gap(after=0, since="2026-01-01T00:00:00Z", tries=1, why="x")
    for like, raw in (
        ("gaps-.json", b"{}"),
        ("gaps-.json", gaps.encode([gap]).replace(b"gaps/v1", b"gaps/v9")),
        ("gaps-.tsr", gaps.encode([gap])),
        ("gaps-.json", gaps.encode([gap]).replace(b'"tries":1', b'"tries":-1')),
        ("gaps-.json", gaps.encode([gap]).replace(b'"x"', b'"' + b"x" * 1000 + b'"')),
    ):
        path = put(run, like, raw)
        with pytest.raises(FormatError):
            judged(run)
        path.unlink()


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_stamps_and_says_so(world: World, tiny: TaskReference, tmp_path: Path) -> None:
    run = tmp_path / "run.pol"
    with authorities.serving(world.first.reply) as url:
        made = CliRunner().invoke(
            app,
            [
                "prove",
                tiny.target,
                "-o",
                str(run),
                "-k",
                "5",
                "--stamp-every",
                "5",
                "--tsa",
                url,
                "--trusted-tsa",
                str(world.first.roots),
            ],
        )
    assert made.exit_code == 0, made.output
    assert "stamped 1 head of the log while training, up to step 24" in " ".join(made.output.split())
    assert (
        heads.of_log(run)[order(run)[0]["head"]] == 24
        and statements.TYPES["head"].encode() in only(run, "head-*.json").read_bytes()
    )


def test_a_script_is_stamped_while_it_trains(world: World, tmp_path: Path) -> None:
    path, run = support_scripts.script(tmp_path, epochs=1), tmp_path / "run.pol"
    with authorities.serving(world.first.reply) as url:
        made = nursery.run(
            ("prove", path, "-o", run, "-k", 4, "--stamp-every", 2, "--tsa", url), support_scripts.variables(), tmp_path
        )
    assert made.returncode == 0, made.stderr.decode()
    chain = order(run)
    assert chain[-1]["steps"] == 20 and f"stamped {len(chain)} head" in made.stdout.decode()
    assert [s.stop for s in seen(run, world).stretches] == [20]


@pytest.mark.parametrize("alone", [True, False])
def test_a_script_says_itself_that_it_is_stamped(alone: bool, world: World, tmp_path: Path) -> None:
    """By plain Python, or by a command that says nothing of it. Who replays the script asks nobody, and needs no certificates."""
    path, run = support_scripts.script(tmp_path, epochs=1), tmp_path / "run.pol"
    roots, asked = Path(shutil.copy(world.first.roots, tmp_path / "roots.pem")), list[bytes]()

    def reply(request: bytes) -> bytes:
        asked.append(request)
        return world.first.reply(request)

    with authorities.serving(reply) as url:
        given = f"out={str(run)!r}, interval=4, stamping=pol.Stamping(2, {url!r}, {str(roots)!r}), "
        path.write_text(path.read_text().replace("pol.Run(", f"pol.Run({given}"))
        made = support_scripts.run(path) if alone else support_scripts.record(path, run)
        assert made.returncode == 0, made.stderr
        said, chain, count = made.stderr + made.stdout, order(run), len(asked)
        assert chain[-1]["steps"] == 20 and f"stamped {len(chain)} head" in said and len(chain) == count
        roots.unlink()
        assert support_scripts.verdict(run, path, trusted_tsa=[world.first.roots]).check("trajectory").status == "pass"
    assert len(asked) == count


@pytest.mark.parametrize(
    ("strict", "says"), [("", "Training stops after 0 steps"), ("strict=False, ", "goes on without")]
)
def test_an_address_that_is_none_ends_the_recording(strict: str, says: str, tmp_path: Path) -> None:
    path, run = support_scripts.script(tmp_path, epochs=1, end="run.close(); print('trained')"), tmp_path / "run.pol"
    stamping = f"pol.Run({strict}stamping=pol.Stamping(2, 'ftp://localhost/'), "
    path.write_text(path.read_text().replace("pol.Run(", stamping))
    made = support_scripts.record(path, run)
    assert made.returncode == 2 and "expected the address" in made.stderr and says in made.stderr
    assert ("trained" in made.stdout) == bool(strict)


@pytest.mark.parametrize(
    ("options", "says"), [(("--stamp-every", "2"), "--tsa"), (("--tsa", "http://localhost/"), "--stamp-every N")]
)
def test_the_command_asks_for_the_other_option(
    options: tuple[str, ...], says: str, tiny: TaskReference, tmp_path: Path
) -> None:
    found = CliRunner().invoke(app, ["prove", tiny.target, "-o", str(tmp_path / "run.pol"), *options])
    assert found.exit_code == 2 and says in " ".join(found.output.split())


def test_inspect_and_the_report_say_by_when_the_run_had_come_how_far(
    headed: Path, world: World, tmp_path: Path
) -> None:
    put(
        headed,
        "gaps-.json",
        gaps.encode([gaps.Gap(after=20, since="2026-05-04T17:00:00Z", tries=2, why="it was <down>")]),
    )
    shown = CliRunner().invoke(app, ["inspect", str(headed), "--json", "-"])
    stamped = json.loads(shown.output)["stamped"]
    assert (stamped["heads"], stamped["false"]) == (4, [])
    assert [(s["stop"], s["by"]) for s in stamped["stretches"]][:2] == [
        (5, "2026-05-04T13:00:01Z"),
        (10, "2026-05-04T14:00:01Z"),
    ]
    said = " ".join(CliRunner().invoke(app, ["inspect", str(headed)]).output.split())
    assert (
        "4 heads of the log, by the timestamps' own word" in said
        and "after step 20, from" in said
        and "it was <down>" in said
    )
    verdict = seen(headed, world)
    assert Verdict.from_json(verdict.to_json()).stretches == verdict.stretches
    page = render_html(verdict)
    assert (
        "Steps 1 to 5" in page
        and "taken by 2026-05-04 13:00:01 UTC" in page
        and "nothing of it was replayed" in page.lower()
    )
    assert (
        "Where nobody stamped" in page
        and "Not stamped after step 20, from 2026-05-04T17:00:00Z: it was &lt;down&gt;" in page
    )
    only(headed, "gaps-*.json").unlink()
    assert "Where nobody stamped" not in render_html(seen(headed, world))


def test_draws_guarantee_something_of_each_stretch(headed: Path, tiny: TaskReference, world: World) -> None:
    verdict = judged(headed, task=tiny, everything=True, trusted_tsa=[world.first.roots])
    assert verdict.verdict == "valid", verdict.reason
    assert [(s.stop, s.segments, s.drawn, s.forged_fraction) for s in verdict.stretches] == [
        (10, 2, 2, 0.0),
        (20, 2, 2, 0.0),
        (24, 1, 1, 0.0),
    ]
    few = judged(headed, task=tiny, random=2, top_q=0, trusted_tsa=[world.first.roots], accept_uniform=True)
    assert sum(s.drawn for s in few.stretches) == 1
    assert {s.forged_fraction for s in few.stretches if not s.drawn} == {1.0}
