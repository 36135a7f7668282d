"""Hostile proofs: what happens to the verifier's workers is an answer, and how much work they make is not the prover's choice."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

import proof_of_learning as pol
import tasks
from proof_of_learning import Proof, TaskReference, canonical
from proof_of_learning.attacks import forge_proof
from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof.format import CodecClaim
from proof_of_learning.replay import early, pool, process, replayer
from proof_of_learning.state.state import State, encode_tree
from support_forging import relog, rewrite

BAD = Path(__file__).parents[1] / "support_bad_tasks.py"
LAST = "model/parameters/last.weight"


def with_part(name: str, value: Any, where: int) -> Callable[[list[State]], list[State]]:
    """The part ``name`` of one state exchanged."""

    def edit(states: list[State]) -> list[State]:
        node = encode_tree(value, name, {})
        tree = {"d": [[key, node if key == f"s:{name}" else old] for key, old in states[where].tree["d"]]}
        kept = {tensor: t for tensor, t in states[where].tensors.items() if not tensor.startswith(f"{name}/")}
        states[where] = State(tree, kept)
        return states

    return edit


def test_tensors_in_the_place_of_positions_are_refused(tiny_proof: Path, tmp_path: Path) -> None:
    """Whoever asks whether a position is among them compares it with each, and a comparison with two numbers is no answer."""

    def edit(states: list[State]) -> list[State]:
        tensors: dict[str, Tensor] = {}
        groups = {"groups": [{"lr": 0.1, "params": [torch.zeros(2)]}], "state": {}}
        node = encode_tree(groups, "optimizer", tensors)
        tree = {"d": [[key, node if key == "s:optimizer" else old] for key, old in states[0].tree["d"]]}
        kept = {name: t for name, t in states[0].tensors.items() if not name.startswith("optimizer/")}
        states[0] = State(tree, {**kept, **tensors})
        return states

    forged = rewrite(tiny_proof, tmp_path / "run.pol", states=edit)
    with pytest.raises(FormatError, match="position"):
        pol.verify(forged, tasks.task())


# ---- what a worker cannot carry out ---------------------------------------------------------------------

RATE_OF_TEXT = {"groups": [{"lr": "fast", "params": list(range(6))}], "state": {}}


@pytest.mark.parametrize("apart", [False, True], ids=["in this process", "in a process of its own"])
def test_an_error_that_nobody_thought_of_is_no_way_out_of_a_verdict(
    apart: bool, tiny: TaskReference, tiny_proof: Path, tmp_path: Path
) -> None:
    """Every second state can be restored and not be trained from; the forgery beside it is found out all the same."""
    forged = rewrite(tiny_proof, tmp_path / "run.pol", states=with_part("optimizer", RATE_OF_TEXT, 2))
    verdict = pol.verify(forged, tiny if apart else tasks.task(), everything=True, keep_going=True)
    assert verdict.verdict == "invalid"
    assert [s.status for s in verdict.segments] == ["pass", "fail", "inconclusive", "pass", "pass"]
    assert "ValueError: could not convert string to float: 'fast'" in verdict.segments[2].note


def test_a_step_that_is_a_float_is_an_answer(tiny_proof: Path, tmp_path: Path) -> None:
    """In every state but the first: equal to the step that is expected, and yet no address of a random choice."""

    def floats(states: list[State]) -> list[State]:
        for position in range(1, len(states)):
            states = with_part("progress", {"step": float(min(5 * position, 24))}, position)(states)
        return states

    forged = rewrite(tiny_proof, tmp_path / "run.pol", states=floats)
    verdict = pol.verify(forged, tasks.task(), everything=True, keep_going=True)
    assert verdict.verdict == "invalid"
    assert all(s.status == "fail" for s in verdict.segments)
    assert "as an integer, at which step it stands" in verdict.segments[1].note


def test_a_model_that_stands_at_no_step_cannot_be_evaluated(tiny_proof: Path, tmp_path: Path) -> None:
    forged = rewrite(tiny_proof, tmp_path / "run.pol", states=with_part("progress", {"step": 2**64}, -1))
    verdict = pol.verify(forged, tasks.task(), keep_going=True)
    assert verdict.verdict == "invalid"
    assert verdict.check("performance").status == "fail"


def test_a_replay_that_ends_in_no_numbers_is_rejected_where_a_codec_rounds(tmp_path: Path) -> None:
    task = tasks.task()
    source = Proof.open(pol.prove(task, tmp_path / "run.pol", interval=5, codec="quantised").path)
    states = [source.state(digest) for digest in source.state_digests()]
    huge = torch.full_like(states[2].tensors[LAST], 3e38)
    states[2] = State(states[2].tree, {**states[2].tensors, LAST: huge})
    forge_proof(
        tmp_path / "forged.pol", task, states, None, interval=5, codec=CodecClaim("quantised", 1, in_loop=True),
        arrived=[segment.arrived for segment in source.segments],
        hyperparameters={"loss": [loss for columns in source.all_columns() for loss in columns.loss.tolist()]},
    )  # fmt: skip
    verdict = pol.verify(tmp_path / "forged.pol", task, everything=True, keep_going=True)
    assert verdict.verdict == "invalid"
    assert [s.status for s in verdict.segments] == ["pass", "fail", "fail", "pass", "pass"]


def test_a_worker_that_dies_is_started_again(tiny_proof: Path) -> None:
    task = TaskReference(f"{BAD}:task", {"schedule": "7:die 17:die"})
    verdict = pol.verify(tiny_proof, task, everything=True)
    assert verdict.verdict == "inconclusive"
    assert [s.status for s in verdict.segments] == ["pass", "inconclusive", "pass", "inconclusive", "pass"]
    assert "ended unexpectedly (status 7" in verdict.segments[1].note


def test_a_worker_that_dies_again_and_again_is_given_up(tiny_proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_DEATHS", 1)  # of those that look at states, and of those that take steps
    verdict = pol.verify(tiny_proof, TaskReference(f"{BAD}:task", {"schedule": "7:die"}), everything=True)
    assert [s.status for s in verdict.segments] == ["pass", *["inconclusive"] * 4]
    assert "not started again" in verdict.segments[2].note


# ---- environments -----------------------------------------------------------------------------------------


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """An honest proof of 12 segments, each said to be trained under another version of Python, every second with a flag set."""
    path = Path(pol.prove(tasks.task(), tmp_path / "run.pol", interval=2).path)

    def edit(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        told = next(line for line in lines if line["kind"] == "environment")
        edited = []
        for line in lines:
            if line["kind"] == "segment":
                environment = {**told["environment"], "python": f"3.99.{line['index']}"}
                environment["flags"] = {**environment["flags"], "cudnn_benchmark": line["index"] % 2 == 1}
                digest = canonical.sha256(b"pol/v1/environment\0", canonical.encode(environment))
                edited.append({**told, "environment": environment, "digest": digest})
                line = {**line, "environment": digest}
            if line["kind"] != "environment":
                edited.append(line)
        return edited

    return relog(path, edit)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Counts the workers: how many were started, and how many were there at a time."""
    count = {"started": 0, "there": 0, "most": 0}

    class Counted(process.LocalWorker):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            count["started"] += 1
            count["there"] += 1
            count["most"] = max(count["most"], count["there"])

        def close(self) -> None:
            super().close()
            count["there"] -= 1

    monkeypatch.setattr(pool, "LocalWorker", Counted)
    return count


def test_only_environments_that_are_needed_get_a_worker(crowded: Path, workers: dict[str, Any]) -> None:
    verdict = pol.verify(crowded, tasks.task(), top_q=0, random=0)
    assert (verdict.verdict, verdict.unreproduced) == ("valid", [])
    assert len(verdict.segments) == 2
    assert workers == {"started": 2, "there": 0, "most": 2}


def test_few_workers_are_there_at_a_time(crowded: Path, workers: dict[str, Any]) -> None:
    before = torch.backends.cudnn.benchmark, torch.get_num_threads()
    verdict = pol.verify(crowded, tasks.task(), everything=True)
    assert verdict.verdict == "valid", verdict.reason
    assert workers["most"] == pool.AT_ONCE < 12 <= workers["started"] < 30
    assert workers["there"] == 0
    assert (torch.backends.cudnn.benchmark, torch.get_num_threads()) == before


def test_workers_of_one_environment_are_asked_one_after_the_other(tmp_path: Path, workers: dict[str, Any]) -> None:
    """Five environments in turn: each is started to be looked at, and once more for its segments."""
    path = Path(pol.prove(tasks.task(), tmp_path / "run.pol", interval=1).path)

    def edit(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        told = next(line for line in lines if line["kind"] == "environment")
        made = [{**told["environment"], "python": f"3.99.{number}"} for number in range(5)]
        digests = [canonical.sha256(b"pol/v1/environment\0", canonical.encode(item)) for item in made]
        for line in lines:
            if line["kind"] == "segment":
                line["environment"] = digests[line["index"] % 5]
        pairs = zip(made, digests, strict=True)
        return [lines[0], *({**told, "environment": e, "digest": d} for e, d in pairs), *lines[2:]]

    verdict = pol.verify(relog(path, edit), tasks.task(), everything=True)
    assert verdict.verdict == "valid", verdict.reason
    assert len(verdict.segments) == 24
    assert workers["started"] < 15


def test_what_is_claimed_in_very_many_environments_is_not_judged(
    crowded: Path, workers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replayer, "MAX_ENVIRONMENTS", 4)
    verdict = pol.verify(crowded, tasks.task(), everything=True)
    assert verdict.verdict == "inconclusive"
    assert [s.status for s in verdict.segments] == [*["pass"] * 4, *["inconclusive"] * 8]
    assert verdict.unreproduced == ["environments: recorded 12, at most 4 are tried"]
    assert "12 numeric environments" in verdict.segments[4].note


def test_an_environment_that_was_not_tried_is_known_to_be_another(tiny_proof: Path, tmp_path: Path) -> None:
    """As far as that can be said: rates may then differ in the last digits that another library gives."""
    path = rewrite(tiny_proof, tmp_path / "run.pol")

    def edit(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        told = next(line for line in lines if line["kind"] == "environment")
        other = {**told["environment"], "torch": "9.9.9", "threads": 3}
        digest = canonical.sha256(b"pol/v1/environment\0", canonical.encode(other))
        segment = [line for line in lines if line["kind"] == "segment"][2]
        segment["environment"] = digest
        return [*lines[:2], {**told, "environment": other, "digest": digest}, *lines[2:]]

    verdict = pol.verify(relog(path, edit), tasks.task(), top_q=0, random=0)
    assert verdict.verdict == "valid", verdict.reason
    assert [line.split(",")[0] for line in verdict.unreproduced] == ["torch: recorded 9.9.9"]


def test_no_more_threads_are_started_than_a_machine_may_have(tiny_proof: Path, tmp_path: Path) -> None:
    def many(here: Environment) -> Environment:
        return msgspec.structs.replace(here, threads=early.MAX_THREADS + 1, interop_threads=4096)

    verdict = pol.verify(rewrite(tiny_proof, tmp_path / "run.pol", environment=many), tasks.task())
    assert verdict.verdict == "valid", verdict.reason
    assert f"threads: recorded {early.MAX_THREADS + 1}, here 1" in verdict.unreproduced


# ---- what a verdict says ----------------------------------------------------------------------------------


def elsewhere(here: Environment) -> Environment:
    return msgspec.structs.replace(here, torch="9.9.9")


def last_scaled(states: list[State], factors: list[float]) -> list[State]:
    return [
        State(state.tree, {**state.tensors, LAST: state.tensors[LAST] * factor})
        for state, factor in zip(states, factors, strict=True)
    ]


def test_the_verdict_states_the_largest_limit_of_all_lengths(tiny_proof: Path, tmp_path: Path) -> None:
    """The last segment is shorter, and alone has no noise."""

    def loss(model: Any, batch: list[Tensor]) -> Tensor:
        value = tasks.loss(model, batch)
        return value * (1 + 2e-3 * (torch.get_num_threads() - 1)) if model.calls[0] <= 20 else value

    path = rewrite(
        tiny_proof, tmp_path / "run.pol", environment=elsewhere,
        states=lambda states: last_scaled(states, [1 + i * 2.0**-22 for i in range(6)]),
    )  # fmt: skip
    verdict = pol.verify(path, replace(tasks.task(), loss=loss), everything=True, allow_calibrated=True)
    limits = [entry["rho"] for entry in verdict.check("trajectory").evidence["tolerances"].values()]
    assert len(limits) == 2
    assert verdict.thresholds.rho == max(limits) > 2 * min(limits)


def test_the_verdict_states_the_limit_of_a_segment_with_limits_of_its_own(
    tiny_proof: Path, tmp_path: Path, workers: dict[str, Any]
) -> None:
    """Two replays agree, and so does their repetition; those of the closer look, which an error near the limit asks for, do not."""
    seen: Counter[tuple[int, bytes]] = Counter()

    def loss(model: Any, batch: list[Tensor]) -> Tensor:
        value = tasks.loss(model, batch)
        step = (int(model.calls[0]), batch[0].numpy().tobytes())  # where states are only looked at, other samples are
        seen[step] += 1
        return value * (1 + 2e-3 * (seen[step] > 3))

    proof = Proof.open(tiny_proof)
    error = 6e-4 * proof.segments[1].displacement.state
    factor = 1 + error / float(proof.state(proof.segments[1].state).tensors[LAST].norm())
    path = rewrite(
        tiny_proof, tmp_path / "run.pol", environment=elsewhere,
        states=lambda states: last_scaled(states, [1, 1, factor, 1, 1, 1]),
    )  # fmt: skip
    task = replace(tasks.task(), loss=loss)
    verdict = pol.verify(path, task, everything=True, allow_calibrated=True, reproduce=False)
    assert workers["started"] == 2  # what the second sets in this process is not what the process has by itself
    found = verdict.check("trajectory").evidence
    own, common = ([entry["rho"] for entry in found[name].values()] for name in ("own_limits", "tolerances"))
    assert verdict.thresholds.rho == max(own) > 2 * max(common)


# ---- bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cuda:-1", "cuda:", "cuda:x", "cuda:1.0", "cuda:" + "9" * 5000])
def test_a_generator_of_no_device_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="generator state"):
        RngSnapshot({name: np.zeros(16, np.uint8)}).restore()


def test_a_generator_of_a_device_that_is_not_here_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a machine's are recorded, and another machine has fewer."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    RngSnapshot({"cuda:99": np.zeros(16, np.uint8)}).restore()


def test_looking_how_deep_a_document_is_takes_little_memory() -> None:
    raw = b"[" * (canonical.MAX_DEPTH + 1) + b'"ab",' * (1 << 20)
    tracemalloc.start()
    with pytest.raises(FormatError, match="deep"):
        canonical.decode(raw, list[Any], "it")
    assert tracemalloc.get_traced_memory()[1] < len(raw)
    tracemalloc.stop()


@pytest.mark.parametrize("at", range(-6, 3))
def test_depth_is_the_same_wherever_a_long_document_is_looked_at_in_pieces(at: int) -> None:
    """Brackets in strings and after escapes are none, also at the place where one piece ends and the next begins."""
    for text in ('"[[[', '\\"' + "[" * 70, "\\" * 3 + '"[', "]" * 70):
        room = canonical._PIECE + at
        value = ["x" * (room - 3), text, "[" * 70, [[text]]]
        assert canonical.decode(canonical.encode(value), list[Any], "it") == value
        deep: Any = text
        for _ in range(canonical.MAX_DEPTH):
            deep = [deep]
        with pytest.raises(FormatError, match="deep"):
            canonical.decode(canonical.encode(["x" * room, text, deep]), list[Any], "it")
