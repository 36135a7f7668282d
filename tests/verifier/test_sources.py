"""What a task is made of: two programs with one description are told apart, and what is unavailable matches nothing."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import proof_of_learning as pol
import tasks
from proof_of_learning import Proof, TaskReference, Verdict, sources
from proof_of_learning.cli.main import app
from proof_of_learning.prover import describe
from proof_of_learning.report.html import render_html
from proof_of_learning.report.words import sources as told
from proof_of_learning.verifier.policy import Accept, Policy
from support_proofs import smallest

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from proof_of_learning import Task
{imports}

def data():
    return TensorDataset(torch.arange(8.0).reshape(4, 2) / 8, torch.arange(4.0)[:, None])

def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)

def task(pull: float = 0.0):
    return Task(name="small", model=lambda: nn.Linear(2, 1), data=data, optimizer=optimizer, loss={loss}, batch_size=2, steps=4)
"""
HELPER = """
from torch.nn import functional as F
from . import deeper
def loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])
"""


@pytest.fixture(autouse=True)
def own_modules() -> Iterator[None]:
    """Each test has helpers of its own under the same names."""
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("pol_task_", "lib_under_test", "lazy_under_test")):
            del sys.modules[name]
    sys.path[:] = path


def write(folder: Path, *, helper: str = HELPER, deeper: str = "scale = 1.0\n", lazy: str = "x = 1\n") -> TaskReference:
    """A task whose loss lies in a local package, which imports a module, and which imports another when it is called."""
    (folder / "lib_under_test").mkdir(parents=True)
    (folder / "lib_under_test" / "__init__.py").write_text("")
    (folder / "lib_under_test" / "losses.py").write_text(helper)
    (folder / "lib_under_test" / "deeper.py").write_text(deeper)
    (folder / "lazy_under_test.py").write_text(lazy)
    imports = "from lib_under_test import losses\ndef late():\n    import lazy_under_test"
    (folder / "small.py").write_text(TASK.format(imports=imports, loss="losses.loss"))
    return TaskReference(f"{folder}/small.py:task")


def content(reference: TaskReference) -> dict[str, str]:
    found = describe(reference).sources
    for name in [n for n in sys.modules if n.startswith(("lib_under_test", "lazy_under_test", "pol_task_"))]:
        del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(reference.target).parent)]
    return found


def test_every_local_module_is_covered_and_nothing_installed(tmp_path: Path) -> None:
    found = content(write(tmp_path))
    modules = {name.removeprefix("module:") for name in found if name.startswith("module:")}
    packages = {"lib_under_test", "lib_under_test.losses", "lib_under_test.deeper"}
    assert modules == {"task", "lazy_under_test", *packages}
    assert sources.UNAVAILABLE not in found.values()


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"helper": HELPER + "# a remark\n"}, ["module:lib_under_test.losses"]),
        ({"helper": HELPER.replace("return ", "return 2 * ")}, ["loss", "module:lib_under_test.losses"]),
        ({"deeper": "scale = 2.0\n"}, ["module:lib_under_test.deeper"]),
        ({"lazy": "x = 2\n"}, ["module:lazy_under_test"]),
    ],
)
def test_a_change_anywhere_changes_the_sources_and_not_the_task(
    changed: dict[str, str], names: list[str], tmp_path: Path
) -> None:
    one = content(write(tmp_path / "a"))
    other = content(write(tmp_path / "b", **changed))
    assert one == content(TaskReference(f"{tmp_path}/a/small.py:task"))
    assert sources.changed(one, other) == names
    assert sources.digest("sha256:00", one) != sources.digest("sha256:00", other)
    assert sources.digest("sha256:00", one) != sources.digest("sha256:01", one)


def pulling(folder: Path) -> TaskReference:
    """The same description; but the loss pulls towards weights that it has from elsewhere."""
    folder.mkdir()
    loss = "lambda m, b: (m(b[0]) - b[1]).square().mean() + pull * (m.weight - 3.0).square().sum()"
    (folder / "small.py").write_text(TASK.format(imports="", loss=loss))
    return TaskReference(f"{folder}/small.py:task", {"pull": 0.0})


def test_a_task_that_pulls_towards_stolen_weights_is_told_apart(tmp_path: Path) -> None:
    reference = pulling(tmp_path / "task")
    weapon = TaskReference(reference.target, {"pull": 5.0})
    honest, stolen = describe(reference), describe(weapon)
    assert honest.digest() == stolen.digest()
    assert honest.sources_digest() != stolen.sources_digest()
    assert sources.changed(honest.sources, stolen.sources) == ["values"]

    plain, pulled = tmp_path / "honest.pol", tmp_path / "stolen.pol"
    pol.prove(reference, plain, interval=2)
    pol.prove(weapon, pulled, interval=2)
    pins = honest.sources_digest()
    assert pins is not None

    def judged(path: Path, task: TaskReference, **accept: tuple[str, ...]) -> Verdict:
        rules = Policy(name="mine.toml", accept=Accept(**accept))
        return pol.verify(path, task, policy=rules, everything=True, sandbox="off")

    one, other = judged(plain, reference, sources=(pins,)), judged(pulled, weapon, sources=(pins,))
    assert one.verdict == "valid", one.reason
    assert (one.conditions.sources, one.conditions.sources_pinned) == (pins, True)
    assert other.verdict == "invalid" and other.reason.startswith("policy: mine.toml: accept.sources: expected " + pins)
    assert one.conditions.task == other.conditions.task
    assert other.conditions.sources == stolen.sources_digest() and not other.conditions.sources_pinned

    blind = judged(pulled, weapon, tasks=(honest.digest(),))  # the description alone does not tell
    assert blind.verdict == "valid"
    assert "the task's sources were not pinned (accept.sources)" in blind.check("policy").summary
    assert not blind.conditions.sources_pinned and "pinned by no policy" in told(blind)[1]
    assert "pinned by no policy" in render_html(blind) and pins in render_html(one)
    both = judged(plain, reference, tasks=(honest.digest(),), sources=(pins,))
    assert both.verdict == "valid" and "not pinned" not in both.check("policy").summary
    # The proof was made by another program than the one that is replayed here, and says so.
    mixed = judged(pulled, reference, tasks=(honest.digest(),))
    assert "the sources of values differ or are unavailable" in mixed.check("task").summary


def test_what_is_unavailable_matches_nothing(tmp_path: Path) -> None:
    scope: dict[str, Any] = {}
    exec("loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()", scope)
    task = replace(smallest(), loss=scope["loss"])
    described = describe(task)
    assert described.sources["loss"] == sources.UNAVAILABLE
    assert described.sources_digest() is None
    assert sources.changed(described.sources, described.sources) == ["loss"]
    pol.prove(task, tmp_path / "run.pol", interval=2)
    forged = sources.digest(described.digest(), {**described.sources, "loss": "sha256:" + "0" * 64})
    assert forged is not None
    verdict = pol.verify(tmp_path / "run.pol", task, policy=Policy(accept=Accept(sources=(forged,))))
    assert verdict.check("policy").status == "inconclusive"
    assert "not available in full" in verdict.check("policy").summary
    assert verdict.conditions.sources is None and "not available in full" in told(verdict)[1]
    assert "loss differ or are unavailable" in verdict.check("task").summary


def test_a_partial_and_an_object_have_the_source_of_what_they_call() -> None:
    class Loss:
        def __call__(self, model: nn.Module, batch: Any) -> Any:
            return F.mse_loss(model(batch[0]), batch[1])

    assert sources.of_function(functools.partial(tasks.loss)) == sources.of_function(tasks.loss)
    assert sources.of_function(Loss()) == sources.of_function(Loss)
    assert sources.of_function(len) == sources.UNAVAILABLE
    one, other = (sources.of_values({"loss": functools.partial(tasks.loss, pull=p)}) for p in (0.0, 1.0))  # type: ignore[call-arg]
    assert one != other


def test_a_proof_without_modules_is_compared_by_its_functions_alone() -> None:
    own = {"loss": "sha256:aa", "module:task": "sha256:bb", "values": "sha256:cc"}
    assert sources.changed({"loss": "sha256:aa"}, own) == []
    assert sources.changed({"loss": "sha256:ab"}, own) == ["loss"]
    assert sources.digest("sha256:00", {"loss": "sha256:aa"}) is None


def test_the_commands_show_task_and_sources(tiny: TaskReference, tiny_proof: Path, tmp_path: Path) -> None:
    runner, described = CliRunner(), describe(tiny)
    made_of = described.sources_digest()
    assert made_of is not None
    inspected = runner.invoke(app, ["inspect", str(tiny_proof), "--json", "-"])
    assert json.loads(inspected.stdout)["task"]["sources_digest"] == made_of
    assert made_of in runner.invoke(app, ["inspect", str(tiny_proof)]).stdout.replace("\n", "").replace(" ", "")
    registered = runner.invoke(app, ["register", tiny.target, "-o", f"{tmp_path}/claim.json"])
    assert f"task {described.digest()}\nsources {made_of}\n" in registered.stdout
    verified = runner.invoke(
        app, ["verify", str(tiny_proof), "--task", tiny.target, "--sandbox", "off", "--random", "0"]
    )
    assert made_of in verified.stdout.replace("\n", "").replace(" ", "")


def test_the_sources_are_the_same_in_another_process(tiny: TaskReference, tiny_proof: Path) -> None:
    claimed = Proof.open(tiny_proof).header.task.sources
    verdict = pol.verify(tiny_proof, tiny, random=0, top_q=0)
    assert verdict.conditions.sources == sources.digest(describe(tiny).digest(), claimed)
    assert verdict.check("task").evidence["sources_changed"] == []
