"""Forgeries of a script's proof: the verifier has the honest script, the forger one of their own, the code and the rules."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from conftest import nursery
from proof_of_learning.run.parts import Place
from proof_of_learning.state.state import State, capture, live_settings
from proof_of_learning.verifier.changes import unusual
from proof_of_learning.verifier.scalars import Scalars
from support_scripts import record, script, variables, verdict

Changes = tuple[tuple[str, str], ...]

ACCUMULATE: Changes = (
    ("optimizer.step()", "if number % 4 == 3: optimizer.step()"),
    ("optimizer.zero_grad()", "if number % 4 == 3: optimizer.zero_grad()"),
)
TWO_LOADERS: Changes = (
    ("steps = 0", "second = DataLoader(data, batch_size=32)"),
    ("for number, (a, b) in enumerate(run.batches(loader))", "for (a, b), _ in zip(run.batches(loader), run.batches(second))"),
)  # fmt: skip
ALWAYS = "run._clock._seen.updated = True"

# Of each forgery: what the honest script is like, what the forger's does besides, the interval, and what the verdict says.
TABLE: dict[str, tuple[Changes, Changes, int, str]] = {
    "epochs left out amid a segment": (
        (),
        (("run.epochs(4)", "(e for e in run.epochs(4) if e in (0, 3))"),),
        3,
        "takes another way",
    ),
    "micro-batches as steps, most of which do nothing": (
        ACCUMULATE,
        (("loss.backward()", f"optimizer.zero_grad(); {ALWAYS}; loss.backward(); {ALWAYS}"),),
        1,
        "takes another way",
    ),
    "several updates as one step": (
        (),
        (("optimizer.zero_grad()", "optimizer.zero_grad(); run._clock._seen.updated = number % 5 == 4"),),
        1,
        "takes another way",
    ),
    "another loader that ends early": (
        TWO_LOADERS,
        (("second = DataLoader(data,", "second = DataLoader(torch.utils.data.Subset(data, range(64)),"),),
        3,
        "takes another way",
    ),
    "evaluation mode from the start": ((), (("steps = 0", "model.eval()"),), 2, "has moved already"),
    "a number of a batch beyond its walk": (
        (),
        (
            ("import sys", "import sys, dataclasses"),
            (
                "loss.backward()",
                "loss.backward(); recorded = run._clock._events; "
                "recorded[0] = dataclasses.replace(recorded[0], position=2**62 if (epoch, number) == (1, 5) else number)",
            ),
        ),
        1,
        "batch 4611686018427387904 of a walk",
    ),
}


def changed(path: Path, changes: Changes) -> Path:
    """A script with texts replaced."""
    text = path.read_text()
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    path.write_text(text)
    return path


@pytest.mark.parametrize("what", TABLE)
def test_a_forgery_by_a_script_of_ones_own_is_not_valid(what: str, tmp_path: Path) -> None:
    honest, forged, interval, says = TABLE[what]
    epochs = 4 if "epochs" in what else 2
    path = changed(script(tmp_path, epochs=epochs), honest)
    (tmp_path / "other").mkdir()
    other = changed(script(tmp_path / "other", epochs=epochs), (*honest, *forged))
    done = record(other, tmp_path / "run.pol", interval=interval)
    assert done.returncode == 0, done.stderr
    found = verdict(tmp_path / "run.pol", path, accept_order=True)
    assert found.verdict != "valid"
    assert any(says in check.summary for check in found.checks), found.reason


def test_a_start_that_the_set_up_gives_needs_no_law_and_another_one_is_tested(tmp_path: Path) -> None:
    odd = ("optimizer = torch", "model[0].weight.data.uniform_(0, 0.5).pow_(3)\noptimizer = torch")
    path = changed(script(tmp_path), (odd,))
    assert record(path, tmp_path / "run.pol").returncode == 0
    found = verdict(tmp_path / "run.pol", path)
    assert found.verdict == "valid", found.reason
    (tmp_path / "other").mkdir()
    forged = changed(script(tmp_path / "other"), (odd, ("torch.manual_seed(1)", "torch.manual_seed(2)")))
    assert record(forged, tmp_path / "other.pol").returncode == 0
    found = verdict(tmp_path / "other.pol", path)
    assert found.verdict == "inconclusive" and "fit no law" in found.reason


def settings(rate: float, momentum: float) -> bytes:
    return live_settings({"optimizer": torch.optim.SGD([torch.zeros(1)], lr=rate, momentum=momentum)})


def test_a_setting_that_changes_once_is_found_among_erratic_ones() -> None:
    draw = random.Random(0)
    rows = [settings(10 ** draw.uniform(-6, 0), 0.9 if index < 400 else 0.91) for index in range(1001)]
    assert 399 in unusual(rows, 28)


class Given:
    """A part whose state is what it is given."""

    def __init__(self, **values: object) -> None:
        self.values = values

    def state_dict(self) -> dict[str, object]:
        return self.values

    def load_state_dict(self, values: dict[str, object]) -> None:
        self.values = values


@pytest.mark.parametrize("what", ["modules in evaluation mode", "a further name"])
def test_what_comes_once_into_a_state_is_replayed(what: str) -> None:
    network = torch.nn.Dropout()
    network.training = what != "modules in evaluation mode"
    more = {"skip": True} if network.training else {}
    before: State = capture({"progress": Place({"model": torch.nn.Dropout()}), "mine": Given(n=1)})
    after = capture({"progress": Place({"model": network}), "mine": Given(n=1, **more)})
    scalars = Scalars()
    for position in range(1001):
        scalars.add(position, before if position < 400 else after, 1)
    assert list(scalars.rare(28)) == [399]


def test_arguments_are_shown_without_control_characters(tmp_path: Path) -> None:
    path = script(tmp_path)
    hostile = "\x1b[2Jvalid\r\u202e"
    done = record(path, tmp_path / "run.pol", hostile)
    assert done.returncode == 0, done.stderr
    for command in (("inspect", tmp_path / "run.pol"), ("verify", tmp_path / "run.pol", "--task", path)):
        shown = nursery.run(command, variables(), tmp_path)
        told = (shown.stdout + shown.stderr).decode()
        assert "valid" in told and not set("\x1b\r\u202e") & set(told)
