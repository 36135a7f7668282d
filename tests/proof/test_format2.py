"""What version 2 of the format has beyond version 1: runs that stop early, events, metrics, programs, and room for more."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from test_spec import minireader

import proof_of_learning as pol
import support_proofs
import tasks
from proof_of_learning import canonical, registration
from proof_of_learning.attestation import signatures
from proof_of_learning.errors import FormatError, IntegrityError, RecordingError, UsageError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.proof import format, parse
from proof_of_learning.proof.blocks import Columns, Metric
from proof_of_learning.proof.format import Group, Header, Input, Reload, Training
from proof_of_learning.proof.pack import unpack
from proof_of_learning.proof.reader import Proof
from proof_of_learning.proof.writer import ProofWriter
from proof_of_learning.recording.header import _told, make_header, without_folders
from proof_of_learning.recording.recorder import Recorder
from proof_of_learning.training.steps import Session, derived_feed
from support_forging import reindex, relog

STEPS, INTERVAL = 24, 5


@contextlib.contextmanager
def recording(
    path: Path, stop: int, planned: int | None = STEPS, codec: str = "raw", **options: Any
) -> Iterator[Recorder]:
    """The tiny task, recorded up to ``stop``; what happens then is the caller's."""
    task = tasks.task()
    with randomness.preserved(), environments.recording("cpu") as environment:
        data = task.data()
        session = Session(task, randomness.key_from_seed(task.seed))
        header = make_header(task, session, data, interval=INTERVAL, codec=codec)
        header = msgspec.structs.replace(header, training=msgspec.structs.replace(header.training, planned=planned))
        with Recorder(path, header, session.parts, environment, **options) as recorder:
            feed, order = derived_feed(task, data, session.key, "cpu")
            for result in session.run(stop, feed, order):
                recorder.step(result.loss, result.rates)
            yield recorder


def stopped(path: Path, stop: int, **options: Any) -> Proof:
    with recording(path, stop, **options) as recorder:
        recorder.close(early=True)
    return Proof.open(path)


# ---- runs that stop early --------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 13, 15, 24])
@pytest.mark.parametrize("codec", ["raw", "quantised"])
def test_a_run_that_stops_early_is_sealed_as_one(stop: int, codec: str, tmp_path: Path) -> None:
    proof = stopped(tmp_path / "run.pol", stop, codec=codec)
    assert (proof.steps, proof.end.steps, proof.header.training.planned) == (stop, stop, STEPS)
    assert proof.end.ended == ("completed" if stop == STEPS else "stopped")
    assert [s.stop for s in proof.segments] == [*range(INTERVAL, stop, INTERVAL), stop]
    # A codec in the loop rounds the end of a run that stops at a checkpoint, as it did that of every segment before.
    rounded = codec == "quantised" and stop == 15
    assert (proof.segments[-1].arrived != proof.segments[-1].state) == rounded
    assert pol.check(proof.path).status == "pass"
    if codec == "raw":
        assert minireader.check(proof.path) == proof.root
    verdict = pol.verify(proof.path, tasks.task(), everything=True, accept_stopped=True)
    assert verdict.check("trajectory").status == "pass", verdict.check("trajectory").summary
    assert verdict.check("order").status == "pass"


def test_a_shorter_run_is_inconclusive_unless_that_is_accepted(tmp_path: Path) -> None:
    path = stopped(tmp_path / "run.pol", 13).path
    plain = pol.verify(path, tasks.task(), everything=True)
    assert plain.verdict == "inconclusive"
    assert plain.check("order").status == "inconclusive"
    assert "13 of the 24 steps" in plain.check("order").summary and "--accept-stopped" in plain.check("order").summary
    rules = tmp_path / "rules.toml"
    rules.write_text("[training]\nstopped_early = true\n")
    granted = pol.verify(path, tasks.task(), everything=True, policy=rules)
    assert granted.check("order").status == "pass" and "13 of the 24 steps" in granted.check("order").summary


def test_an_early_end_has_to_be_asked_for(tmp_path: Path) -> None:
    with recording(tmp_path / "run.pol", 13) as recorder, pytest.raises(RecordingError, match=r"13 of 24 .*early=True"):
        recorder.close()
    assert not (tmp_path / "run.pol" / "seal.json").exists()


def test_no_step_makes_no_proof(tmp_path: Path) -> None:
    with recording(tmp_path / "run.pol", 0) as recorder, pytest.raises(RecordingError, match="at least one step"):
        recorder.close(early=True)


def test_a_run_of_unknown_length_is_as_long_as_it_becomes(tmp_path: Path) -> None:
    with recording(tmp_path / "run.pol", 13, planned=None) as recorder:
        assert not recorder.finished
        recorder.close()
    proof = Proof.open(tmp_path / "run.pol")
    assert (proof.steps, proof.end.ended, proof.header.training.planned) == (13, "completed", None)
    assert minireader.check(proof.path) == proof.root
    assert pol.verify(proof.path, tasks.task(), everything=True).check("order").status == "inconclusive"
    with recording(tmp_path / "whole.pol", STEPS, planned=None) as recorder:
        recorder.close()
    assert pol.verify(tmp_path / "whole.pol", tasks.task(), everything=True).check("order").status == "pass"


def test_another_plan_than_the_tasks_is_invalid(tmp_path: Path) -> None:
    for planned, stop in ((STEPS - 1, STEPS - 1), (STEPS + 1, STEPS), (STEPS + 1, STEPS + 1), (None, STEPS + 1)):
        path = stopped(tmp_path / f"{planned}-{stop}.pol", stop, planned=planned).path
        order = pol.verify(path, tasks.task(), accept_stopped=True, keep_going=True).check("order")
        assert order.status == "fail", (planned, stop, order.summary)


@pytest.mark.parametrize("every", [2, 100])
def test_a_thinned_recording_keeps_the_end_that_nobody_knew(every: int, tmp_path: Path) -> None:
    for stop in (13, 15):
        proof = stopped(tmp_path / f"{stop}.pol", stop, keep_every=every)
        held = [proof.has_state(digest) for digest in proof.state_digests()]
        assert held[0] and held[-1] and held == [n % every == 0 or n == 3 for n in range(4)]
        assert pol.check(proof.path).status == "pass"


def test_a_run_killed_while_it_stopped_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    whole = stopped(tmp_path / "whole.pol", STEPS)
    path = tmp_path / "run.pol"
    with recording(path, 13) as recorder:
        recorder._checkpoint(None)  # the short segment is written, the seal is not
    assert (path / "log.jsonl").read_bytes().count(b'"kind":"segment"') == 3
    with recording(path, 0) as recorder:
        assert recorder.steps_done == 10
    with recording(path, STEPS) as recorder:
        assert recorder.close() == whole.root


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: lines[-1].update(steps=STEPS),
        lambda lines: lines[-1].update(ended="completed"),
        lambda lines: lines[-1].update(ended="gave up"),
        lambda lines: lines[-2].update(stop=lines[-2]["stop"] + 5),
        lambda lines: lines[-2].update(stop=lines[-2]["start"]),
        lambda lines: lines[2].update(stop=3),
        lambda lines: lines.pop(-2),
    ],
    ids=["another number", "another end", "an unknown end", "longer", "empty", "a short one amid", "one less"],
)
def test_a_length_that_contradicts_the_log_is_refused(edit: Callable[[list[Any]], Any], tmp_path: Path) -> None:
    path = stopped(tmp_path / "run.pol", 13).path

    def edited(lines: list[Any]) -> None:
        edit(lines)

    relog(path, edited)
    with pytest.raises((FormatError, IntegrityError)):
        Proof.open(path)


def test_more_steps_than_planned_are_refused(tmp_path: Path) -> None:
    path = stopped(tmp_path / "run.pol", STEPS, planned=None).path
    header = msgspec.json.decode((path / "header.json").read_bytes())
    header["training"]["planned"] = 20
    (path / "header.json").write_bytes(canonical.encode(header))
    relog(path, lambda lines: None)
    with pytest.raises(IntegrityError, match="expected segment 4"):
        Proof.open(path)


# ---- events and metrics ------------------------------------------------------------------------------------


def happened(path: Path, *events: tuple[int, Reload | Group], metrics: dict[str, Metric] | None = None) -> Path:
    """The tiny proof written anew, with events in its second segment."""
    source = Proof.open(stopped(path.with_suffix(".source"), STEPS).path)
    states = [source.state(digest) for digest in source.state_digests()]
    with ProofWriter.create(path, source.header) as writer:
        writer.start(states[0])
        for segment, columns, state in zip(source.segments, source.all_columns(), states[1:], strict=True):
            if segment.index == 1:
                for step, event in events:
                    writer.event(step, event)
                columns = Columns(columns.loss, columns.rates, metrics=metrics or {})
            writer.segment(
                arrived=segment.arrived, state=state, displacement=segment.displacement, columns=columns,
                environment=source.environments[segment.environment],
            )  # fmt: skip
        writer.seal()
    return path


DIGEST = "sha256:" + "7" * 64
RELOAD = Reload(["model", "optimizer"], DIGEST, step=3)


def test_events_are_written_read_and_checked(tmp_path: Path) -> None:
    given: list[tuple[int, Reload | Group]] = [
        (6, RELOAD),
        (6, Group("optimizer", 1, 2)),
        (9, Reload(["model"], DIGEST, input=DIGEST)),
    ]
    proof = Proof.open(happened(tmp_path / "run.pol", *given))
    assert [(event.step, event.event) for event in proof.events] == given
    assert proof.events_in(1) == proof.events and proof.events_in(0) == proof.events_in(2) == []
    assert pol.check(proof.path).status == "pass"
    assert minireader.check(proof.path) == proof.root


def test_what_is_not_replayed_yet_is_not_judged(tmp_path: Path) -> None:
    verdict = pol.verify(happened(tmp_path / "run.pol", (6, RELOAD)), tasks.task(), everything=True)
    assert verdict.verdict == "inconclusive"
    assert [s.index for s in verdict.segments if s.status == "inconclusive"] == [1]
    assert "reload during step 6" in verdict.check("trajectory").summary


@pytest.mark.parametrize("step", [0, 4, 10, 24])
def test_an_event_belongs_to_the_next_segment(step: int, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="does not belong"):
        happened(tmp_path / "run.pol", (step, RELOAD))


def test_events_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="does not belong"):
        happened(tmp_path / "run.pol", (7, RELOAD), (6, RELOAD))


EVENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "before its segment": lambda line: line.update(step=4),
    "after its segment": lambda line: line.update(step=10),
    "a name nobody knows": lambda line: line["event"].update(name="rewrite"),
    "no name": lambda line: line["event"].pop("name"),
    "parts that no state has": lambda line: line["event"].update(parts=["model", "other"]),
    "no parts": lambda line: line["event"].update(parts=[]),
    "parts out of order": lambda line: line["event"].update(parts=["optimizer", "model"]),
    "parts twice": lambda line: line["event"].update(parts=["model", "model"]),
    "from nowhere": lambda line: line["event"].update(step=None),
    "from two places": lambda line: line["event"].update(input=DIGEST),
    "from later": lambda line: line["event"].update(step=8),
    "from before the first": lambda line: line["event"].update(step=-1),
    "no digest": lambda line: line["event"].update(state="x"),
    "a field more": lambda line: line["event"].update(note="x"),
    "very long": lambda line: line["event"].update(parts=["model" + "x" * 20_000]),
    "a group of no optimizer": lambda line: line.update(event={"name": "group", "part": "model", "group": 1, "parameters": 1}),
    "group 0": lambda line: line.update(event={"name": "group", "part": "optimizer", "group": 0, "parameters": 1}),
    "a group of nothing": lambda line: line.update(event={"name": "group", "part": "optimizer", "group": 1, "parameters": 0}),
}  # fmt: skip


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return happened(tmp_path_factory.mktemp("events") / "run.pol", (7, RELOAD))


@pytest.mark.parametrize("edit", EVENTS.values(), ids=EVENTS)
def test_malformed_events_are_refused(edit: Callable[[dict[str, Any]], Any], eventful: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.pol"
    shutil.copytree(eventful, path)

    def edited(lines: list[Any]) -> None:
        edit(next(line for line in lines if line["kind"] == "event"))

    relog(path, edited)
    with pytest.raises((FormatError, IntegrityError)):
        Proof.open(path)


def test_an_event_after_the_last_step_is_refused(eventful: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.pol"
    shutil.copytree(eventful, path)
    relog(path, lambda lines: lines.insert(-1, {**next(x for x in lines if x["kind"] == "event"), "step": STEPS}))
    with pytest.raises(IntegrityError, match="does not belong"):
        Proof.open(path)


def test_an_event_of_a_step_that_a_short_segment_does_not_have_is_refused(eventful: Path, tmp_path: Path) -> None:
    event = next(msgspec.json.decode(x) for x in (eventful / "log.jsonl").read_bytes().splitlines() if b"reload" in x)
    for step, fits in ((12, True), (13, False)):
        path = stopped(tmp_path / f"{step}.pol", 13).path
        relog(path, lambda lines, step=step: lines.insert(-2, {**event, "step": step}))  # type: ignore[misc]
        if fits:
            assert [found.step for found in Proof.open(path).events] == [step]
        else:
            with pytest.raises(IntegrityError, match="not taken"):
                Proof.open(path)


@pytest.mark.parametrize("what", ["event", "metric"])
def test_what_is_not_replayed_yet_is_never_valid_whichever_segments_are_drawn(what: str, tmp_path: Path) -> None:
    """Else false events would be vouched for wherever the nonce does not fall on them."""
    path = tmp_path / "run.pol"
    if what == "event":
        happened(path, (6, RELOAD))
    else:
        happened(path, metrics={"validation/loss": Metric(np.array([0.5]), np.array([3]))})
    verdict = pol.verify(path, tasks.task(), random=0, top_q=0, accept_uniform=True)
    assert all(segment.status == "pass" for segment in verdict.segments)
    assert 1 not in [segment.index for segment in verdict.segments] or what == "metric"
    assert verdict.verdict == "inconclusive"
    assert ("reload during step 6" if what == "event" else "'validation/loss'") in verdict.check("trajectory").summary


def test_metrics_are_columns(tmp_path: Path) -> None:
    metric = Metric(np.array([0.5, np.inf, -0.0]), np.array([0, 3, 3]))
    proof = Proof.open(happened(tmp_path / "run.pol", metrics={"validation/loss": metric}))
    found = proof.columns(1).metrics["validation/loss"]
    assert found.values.tobytes() == metric.values.tobytes() and found.steps.tolist() == [0, 3, 3]
    assert not proof.columns(0).metrics and pol.check(proof.path).status == "pass"


@pytest.mark.parametrize("steps", [[-1], [5], [3, 2], []])
def test_metrics_of_other_steps_are_refused(steps: list[int], tmp_path: Path) -> None:
    metric = Metric(np.zeros(len(steps)), np.array(steps, np.int64))
    raw = Columns(np.zeros(5), np.zeros((5, 1)), metrics={"loss": metric}).encode()
    with pytest.raises(FormatError, match="metric"):
        Columns.decode(bytearray(raw), 5, "the block")


def test_a_metric_without_its_steps_is_refused() -> None:
    raw = Columns(np.zeros(2), np.zeros((2, 1)), metrics={"a": Metric(np.zeros(1), np.zeros(1, np.int64))}).encode()
    raw = raw.replace(b'"metric/a"', b'"metrik/a"')
    with pytest.raises(FormatError):
        Columns.decode(bytearray(raw), 2, "the block")


# ---- header ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def header() -> Header:
    task = tasks.task()
    with randomness.preserved():
        return make_header(task, Session(task, randomness.key_from_seed(0)), task.data(), interval=INTERVAL)


HEADERS: dict[str, dict[str, Any]] = {
    "several processes": {"ranks": 2},
    "no process": {"ranks": 0},
    "another arithmetic": {"arithmetic": "portable/v9"},
    "a script whose start is recorded, and its order derived": {
        "program__kind": "script",
        "initialization__kind": "recorded",
    },
    "a program of a kind nobody knows": {"program__kind": "binary"},
    "a sealed program": {"program__sealed": DIGEST},
    "a reference with folders": {"program__reference": "/home/me/task.py:task"},
    "a very long reference": {"program__reference": "x" * 201},
    "too many arguments": {"program__arguments": ["x"] * 1001},
    "a very long argument": {"program__arguments": ["x" * 5000]},
    "a very long setting": {"program__settings": {"x": "x" * 5000}},
    "a nested setting": {"program__settings": {"x": [1]}},
    "an anchor": {"randomness__anchor": DIGEST},
    "an input with folders": {"inputs": [Input("a/b", DIGEST, 1)]},
    "an input without size": {"inputs": [Input("a", DIGEST, -1)]},
    "an input without digest": {"inputs": [Input("a", "x", 1)]},
    "inputs out of order": {"inputs": [Input("b", DIGEST, 1), Input("a", DIGEST, 1)]},
    "no parts": {"parts": {}},
    "no model": {"parts": {"progress": "progress"}},
    "a model that is none": {"parts": {"model": "optimizer", "progress": "progress"}},
    "no progress": {"parts": {"model": "module"}},
    "a part of a kind nobody knows": {"parts": {"model": "module", "progress": "progress", "x": "sculpture"}},
    "another process's part": {"parts": {"model": "module", "model@1": "module", "progress": "progress"}},
    "a part without a name": {"parts": {"": "stateful", "model": "module", "progress": "progress"}},
    "no plan, but 0": {"training__planned": 0},
    "a field of version 1": {"training__steps": 24},
}


@pytest.mark.parametrize("changed", HEADERS.values(), ids=HEADERS)
def test_headers_that_say_what_nobody_can_read_are_refused(changed: dict[str, Any], header: Header) -> None:
    plain = msgspec.to_builtins(header)
    assert parse.parse_header(canonical.encode(plain)) == header
    for name, value in changed.items():
        *outer, last = name.split("__")
        (plain[outer[0]] if outer else plain)[last] = msgspec.to_builtins(value)
    with pytest.raises(FormatError):
        parse.parse_header(canonical.encode(plain))


def test_inputs_have_a_place(header: Header) -> None:
    inputs = [Input("weights.safetensors", DIGEST, 0), Input("weights.safetensors", "sha256:" + "8" * 64, 5)]
    given = msgspec.structs.replace(header, inputs=inputs, training=Training(None, 5, 6))
    assert parse.parse_header(given.encoded()) == given


def test_a_header_says_what_its_states_consist_of(tmp_path: Path) -> None:
    proof = stopped(tmp_path / "run.pol", 5)
    assert proof.header.parts == {"model": "module", "optimizer": "optimizer", "progress": "progress"}
    told = {**proof.header.parts, "ema": "module"}
    (tmp_path / "run.pol" / "header.json").write_bytes(msgspec.structs.replace(proof.header, parts=told).encoded())
    relog(tmp_path / "run.pol", lambda lines: None)
    reindex(tmp_path / "run.pol", lambda lines: None)
    assert pol.check(tmp_path / "run.pol").status == "fail"


def test_no_folder_lies_under_the_root(tmp_path: Path) -> None:
    headers = []
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        shutil.copy(tasks.__file__, folder / "copied.py")
        reference = pol.TaskReference(f"{folder}/copied.py:task", {"optimizer": "adam"})
        pol.prove(reference, folder / "run.pol", interval=12)
        headers.append(Proof.open(folder / "run.pol"))
    assert headers[0].root == headers[1].root
    program = headers[0].header.program
    assert program.reference == "copied.py:task" and program.settings == {"optimizer": "adam"}
    assert str(tmp_path).encode() not in (tmp_path / "here" / "run.pol" / "header.json").read_bytes()


def test_folders_are_left_out_of_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "set").mkdir()
    assert without_folders(f"--data={tmp_path}/digits/") == "--data=…/digits"
    assert without_folders("sub/set") == "…/set"
    assert without_folders("1/2") == "1/2"
    assert without_folders("s3://bucket/run") == "s3://bucket/run"
    assert without_folders("--lr 0.1") == "--lr 0.1"


# ---- version 1 -----------------------------------------------------------------------------------------------


def test_a_claim_of_version_1_is_read_and_not_recorded_under(tmp_path: Path) -> None:
    old = Path(__file__).parents[1] / "golden" / "v1" / "claim.json"
    shutil.copy(old, tmp_path / "claim.json")
    claim = registration.load(tmp_path / "claim.json").claim
    assert claim.format == "pol/proof/v1"
    with pytest.raises(UsageError, match="register anew"):
        pol.prove(f"{old.parents[1]}/task.py:task", tmp_path / "run.pol", registration=tmp_path / "claim.json")


def test_claims_name_owners_by_digest(tmp_path: Path) -> None:
    key, sourceless = signatures.generate(tmp_path / "key.pem"), eval("lambda model, batch: model(batch[0]).sum()")
    made = pol.register(f"{tasks.__file__}:task", tmp_path / "claim.json", owners=[tmp_path / "key.pub.pem"])
    assert made.claim.owners == [key.digest] and made.claim.threshold == 1
    assert registration.load(tmp_path / "claim.json") == made
    with pytest.raises(UsageError, match="sources are not available in full"):
        pol.register(replace(support_proofs.smallest(), loss=sourceless), tmp_path / "other.json", owners=[key])
    with pytest.raises(UsageError, match="2 of 1 cannot have to"):
        pol.register(f"{tasks.__file__}:task", tmp_path / "other.json", owners=[key], threshold=2)
    changes: list[dict[str, Any]] = [
        {"threshold": 2}, {"threshold": 0}, {"owners": []}, {"owners": made.claim.owners * 2, "threshold": 2}, {"owners": ["x"]},
        {"recovery": "x"}, {"recovery": made.claim.owners[0]}, {"recovery": DIGEST, "owners": [], "threshold": 0}, {"sources": "x"},
    ]  # fmt: skip
    for changed in changes:
        claim = msgspec.structs.replace(made.claim, **changed)
        (tmp_path / "bad.json").write_bytes(msgspec.structs.replace(made, claim=claim).encoded())
        with pytest.raises(FormatError):
            registration.load(tmp_path / "bad.json")


def test_what_is_of_another_version_does_not_mix(tmp_path: Path) -> None:
    path = stopped(tmp_path / "run.pol", 5).path
    seal = msgspec.json.decode((path / "seal.json").read_bytes())
    (path / "seal.json").write_bytes(canonical.encode({**seal, "schema": "pol/seal/v1"}))
    with pytest.raises(FormatError, match="seal/v2"):
        Proof.open(path)
    assert format.root(DIGEST, DIGEST, 1) != format.root(DIGEST, DIGEST)
    old = Proof.open(unpack(Path(__file__).parents[1] / "golden" / "v1" / "raw.tar", tmp_path / "old.pol"))
    with pytest.raises(RecordingError, match="is written in"):
        ProofWriter(tmp_path / "new.pol", old.header)


@pytest.mark.parametrize("value", [1e20, -(2.0**53), 2**60, float("inf"), 0.5, 1e21])
def test_a_setting_of_any_size_is_read_again(value: float) -> None:
    """From 2^53 on a number without a point is an integer to some readers and a float to others."""
    told = _told(value)
    assert canonical.decode(canonical.encode({"x": told}), dict[str, Any], "it") == {"x": told}
