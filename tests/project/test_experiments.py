"""The experiments: a new attack shows up in the matrix by itself, and what was computed before an interruption is kept."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import proof_of_learning as pol
from proof_of_learning.attacks import ATTACKS, Attack, forge_proof, parameter
from proof_of_learning.attacks.base import Mounted
from proof_of_learning.attacks.victim import Victim, graft
from proof_of_learning.numeric import environment as environments
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.state import State

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE.parent / "experiments"))
import attack_matrix  # noqa: E402
import cells  # noqa: E402
import pages  # noqa: E402
import paper_measures  # noqa: E402
import private_replay  # noqa: E402


@dataclass(init=False, frozen=True)
class Toy(Attack):
    name = "toy"
    summary = "stands still, and jumps to the target's weights in the last segment"
    source = "a test"
    knowledge = "the target's final state"

    rates: str = parameter("schedule", "the learning rates that are claimed", choices=("none", "schedule"))

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed, count = victim.own_seed(None), len(victim.proof.segments)
        session = victim.own_session(seed)

        def states() -> Iterator[State]:
            yield from [session.capture()] * count
            for _ in session.idle(victim.steps, victim.steps_per_epoch):
                pass
            graft(session, victim.final)
            yield session.capture()

        forge_proof(
            path, victim.task, states(), None, seed=seed, interval=victim.interval, steps=victim.steps,
            data=victim.proof.header.data, environment=victim.environment,
            hyperparameters={} if self.rates == "schedule" else {"rates": 0.0},
        )  # fmt: skip
        return Mounted(0, range(count))


def matrix(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "matrix.json"
    options = [
        "--quick",
        "--task",
        f"{HERE / 'tasks.py'}:task",
        "--interval",
        "4",
        "--output",
        str(tmp_path),
        *arguments,
    ]
    attack_matrix.main([*options, "--json", str(out)])
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The matrix with a toy attack in the registry, and nothing else done for it."""
    folder = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "toy", Toy)
        return folder, matrix(folder, "--attacks", "toy")


def test_a_new_attack_shows_up_in_the_matrix_by_itself(found: tuple[Path, dict[str, Any]]) -> None:
    rows = [row for row in found[1]["rows"] if row["attack"] == "toy"]
    assert {(row["mode"], row["comparison"], row["variant"]) for row in rows} == {
        ("derived", "exact", "rates=schedule"), ("observed", "exact", "rates=schedule"),
        ("derived", "exact", "rates=none"), ("observed", "exact", "rates=none"),
        ("derived", "calibrated", "rates=schedule"),
    }  # fmt: skip
    for row in rows:
        assert row["verdict"] == "invalid"
        assert ("hyperparameters" in row["failed"]) == (row["variant"] == "rates=none")
        assert row["attacker_cost"] == 0.0
        assert row["odds"]["nonces"] >= 200
        assert row["odds"]["miss"] == 0.0
    page = (found[0] / "attack-matrix.md").read_text()
    assert page.count("| toy (rates=none) | invalid | hyperparameters |") == 2
    assert (found[0] / "attack-matrix.png").stat().st_size > 1000


def test_the_matrix_has_the_honest_proof_beside_the_attacks(found: tuple[Path, dict[str, Any]]) -> None:
    rows = [row for row in found[1]["rows"] if row["attack"] == "honest"]
    assert {(row["mode"], row["comparison"]) for row in rows} == {
        ("derived", "exact"), ("observed", "exact"), ("derived", "calibrated")
    }  # fmt: skip
    assert all(row["verdict"] == "valid" and not row["failed"] for row in rows)
    results = {result["name"]: result for result in found[1]["results"]}
    assert (results["honest proofs rejected"]["value"], results["attacks accepted, derived, exact"]["value"]) == (0, 0)
    assert results["attacks judged, derived, exact"]["value"] == 2


def test_a_check_counts_as_alone_only_where_no_other_rejects(found: tuple[Path, dict[str, Any]]) -> None:
    checks = found[1]["checks"]
    assert "toy (rates=none)" in checks["hyperparameters"]["rejected"]
    assert "toy (rates=none)" in checks["trajectory"]["rejected"]
    assert checks["hyperparameters"]["alone"] == []


def test_an_attack_that_cannot_be_used_is_listed_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Picky(Toy):
        name = "picky"

        def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
            raise pol.errors.AttackError("this attack needs a larger moon")

    monkeypatch.setitem(ATTACKS, "picky", Picky)
    made = matrix(tmp_path, "--attacks", "picky")
    assert {row["attack"] for row in made["rows"]} == {"honest"}
    page = (tmp_path / "attack-matrix.md").read_text()
    assert "- picky (rates=none) on tasks: this attack needs a larger moon" in page


def test_every_registered_attack_is_measured_in_every_choice_or_declared_variant() -> None:
    for attack in ATTACKS.values():
        for settings in attack_matrix.variants(attack):
            attack(**settings)
    assert attack_matrix.variants(Toy) == [{"rates": "schedule"}, {"rates": "none"}]  # the default first

    class Declared(Toy):
        variants = ({"rates": "none"},)

    assert attack_matrix.variants(Declared) == [{"rates": "none"}]


# ---- the paper's figures -------------------------------------------------------------------------------


def test_a_run_from_the_recorded_ones_seed_ends_in_its_weights_and_one_from_another_does_not(
    tiny: pol.TaskReference, tiny_proof: Path
) -> None:
    task, end = pol.load_task(tiny), paper_measures.final_weights(pol.Proof.open(tiny_proof))
    with environments.recording("cpu"):
        same, found = paper_measures.tracked_run(task, task.seed, end, "cpu", lambda done, total: None)
        _, other = paper_measures.tracked_run(task, task.seed + 1, end, "cpu", lambda done, total: None)
    assert torch.equal(same, end)
    assert found["distances"][-1] == 0.0 < found["distances"][0]
    assert len(found["updates"]) == task.steps == len(found["distances"]) - 1
    assert other["distances"][-1] > max(other["updates"])


def test_an_inverted_step_leads_back_to_its_end(tiny: pol.TaskReference) -> None:
    """On a smooth network; and the error that is told is the replay's own."""
    steps = paper_measures.Steps(pol.load_task(tiny), 3, "cpu")
    end = paper_measures.flat(steps.parameters)
    start, error = paper_measures.inverted_step(steps, end, 0.05, 20)
    assert steps.evaluations <= 20
    steps.draw.manual_seed(3)  # the same batch again
    with torch.no_grad():
        steps.model.calls.zero_()  # type: ignore[operator]
    arrived = start - 0.05 * steps.gradient(start, steps.batch())
    length = float((start - end).norm())
    assert length > 0.001
    assert float((arrived - end).norm()) <= 1e-2 * length
    assert float(error.norm()) <= 1e-2 * length


# ---- cells ------------------------------------------------------------------------------------------


def test_what_was_computed_before_an_interruption_is_not_computed_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def cell(name: str, fails: type[BaseException] | None = None) -> Any:
        def work() -> dict[str, Any]:
            asked.append(name)
            if fails is not None:
                raise fails
            return {"name": name}

        return work

    part, label = tmp_path / "out.json.part", {"quick": True}
    with pytest.raises(KeyboardInterrupt):
        cells.compute({"a": cell("a"), "b": cell("b"), "c": cell("c", KeyboardInterrupt)}, part, label)
    with part.open("a") as file:
        file.write('{"cell": "c", "qui')  # the line that was being written
    todo = {name: cell(name) for name in "abcd"}
    assert cells.compute(todo, part, label) == {name: {"name": name} for name in "abcd"}
    assert asked == ["a", "b", "c", "c", "d"]
    cells.compute(todo, part, {"quick": False})  # other options, other values
    assert asked[5:] == list("abcd")


def test_a_cell_that_failed_is_tried_again(tmp_path: Path) -> None:
    outcomes: Iterator[cells.Cell] = iter([{"error": "no memory"}, {"value": 1}])
    part = tmp_path / "part"
    assert cells.compute({"a": lambda: next(outcomes)}, part, {})["a"] == {"error": "no memory"}
    assert cells.compute({"a": lambda: next(outcomes)}, part, {})["a"] == {"value": 1}


def test_results_are_written_in_the_schema_and_end_the_run(tmp_path: Path) -> None:
    out = str(tmp_path / "out.json")
    cells.compute({"a": dict}, cells.part_of(out), {})
    assert cells.part_of(out).exists()
    cells.write(
        out, [cells.Result("x", 1.0, "s", "lower", None)], size=cells.Size("quick"), seed=3, rows=[float("inf")]
    )
    document = json.loads(Path(out).read_text())
    assert document["schema"] == "pol/benchmark/v1"
    assert document["results"] == [
        {"name": "x", "value": 1.0, "unit": "s", "better": "lower", "target": None, "spread": None}
    ]
    assert (document["seed"], document["quick"], document["rows"]) == (3, True, [None])
    assert {"machine", "versions"} <= set(document)
    assert not cells.part_of(out).exists()


def test_a_page_that_is_written_again_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.md"
    cells.write_page(page, "# One\n")
    assert page.read_text() == "# One\n"
    page.write_text(f"{page.read_text()}\n{cells.BY_HAND}\n\nWhat it taught.\n")
    cells.write_page(page, "# Two\n")
    assert page.read_text() == f"# Two\n\n{cells.BY_HAND}\n\nWhat it taught.\n"


# ---- private replay ---------------------------------------------------------------------------------


def test_a_private_step_is_the_plain_one_and_opens_one_bit_that_a_cheat_can_turn() -> None:
    """Nowhere near a limit: the error is of 1e-4, the tolerance of 1e-2, the false record at 5e-2."""
    found = private_replay.measure("tiny CNN", 20, seed=3, batch=4, data=None)
    assert 0 < found["distance"] < 5e-3
    assert (found["true"], found["false"], found["cheated"]) == (1, 0, 1)
    assert found["sent"] > 8 * found["parameters"] and found["rounds"] > 50


# ---- pages that are written again -------------------------------------------------------------------


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_committed_page_is_what_the_command_writes_from_the_committed_results(name: str, tmp_path: Path) -> None:
    committed = pages.EVIDENCE / f"{name}.md"
    shutil.copy(committed, tmp_path)  # what was written by hand stays
    pages.main([name, "--output", str(tmp_path), "--no-pictures"])
    assert (tmp_path / f"{name}.md").read_text() == committed.read_text()
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.md"]


def test_lists_of_segments_are_kept_as_ranges_and_read_in_both_forms(tmp_path: Path) -> None:
    for numbers, told in (([], []), ([5], [5]), ([1, 2], [1, 2]), ([3, 4, 5, 6, 9, 12, 13], [[3, 6], 9, 12, 13])):
        assert cells.ranges(numbers) == told
        assert cells.indices(told) == cells.indices(numbers) == numbers
    row = {"attack": "toy", "forged": [0, 1, 2, 7], "odds": {"miss": 0.5, "conspicuous": [3, 4, 5]}}
    short = attack_matrix.shortened(row)
    assert short == {**row, "forged": [[0, 2], 7], "odds": {"miss": 0.5, "conspicuous": [[3, 5]]}}
    assert attack_matrix.shortened(short) == short and attack_matrix.shortened({"attack": "honest"}) == {
        "attack": "honest"
    }
    whole = json.loads((pages.EVIDENCE / "data" / "attack-matrix.json").read_text())
    whole["rows"] = [{**r, "forged": cells.indices(r["forged"])} for r in whole["rows"]]
    (tmp_path / "attack-matrix.json").write_text(json.dumps(whole))
    pages.main(["attack-matrix", "--data", str(tmp_path), "--output", str(tmp_path), "--no-pictures"])
    text = (tmp_path / "attack-matrix.md").read_text()
    assert text == (pages.EVIDENCE / "attack-matrix.md").read_text().partition(cells.BY_HAND)[0].rstrip("\n") + "\n"
