"""What makes a script's recording reliable: its rehearsal names what a replay would not find, before anything is sealed."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from proof_of_learning.rehearsal import frames
from proof_of_learning.run.facts import facts
from proof_of_learning.run.loaders import Counted
from proof_of_learning.run.mode import Given
from support_scripts import record, script, verdict

# Stops when the loss of an epoch has not come down by much: by what `WHO` keeps.
PATIENCE = "WHO.bad += epoch > 0\n    if WHO.bad == 2: break"
KEEPER = """
class Patience:
    bad = 0
    def state_dict(self): return {"bad": self.bad}
    def load_state_dict(self, values): self.bad = values["bad"]

patience = Patience()
run = pol.Run(model=model, optimizer=optimizer, PARTS)
"""


def stopping(folder: Path, parts: str) -> Path:
    """A script that would train for eight epochs, and stops after three."""
    path = script(folder, epochs=8, epoch=PATIENCE.replace("WHO", "patience"))
    keeper = KEEPER.replace("PARTS", parts)
    path.write_text(path.read_text().replace("run = pol.Run(model=model, optimizer=optimizer)", keeper))
    return path


def test_what_the_next_step_reads_and_no_state_holds_is_named(tmp_path: Path) -> None:
    counts = "steps += 1; optimizer.param_groups[0]['lr'] = 0.1 / steps"
    path = script(tmp_path, epochs=1000, begin=counts, end="run.close(); print('trained')")  # far more than are taken
    done = record(path, tmp_path / "run.pol", rehearse=True)
    assert done.returncode == 2 and "trained" not in done.stdout
    assert "arrives elsewhere" in done.stderr and "Training stops after" in done.stderr
    assert "variable 'steps' (0 → " in done.stderr and "pol.Run(steps=steps, …)" in done.stderr
    assert not (tmp_path / "run.pol" / "seal.json").exists()


def test_a_loop_that_saves_files_is_rehearsed(tmp_path: Path) -> None:
    saves = "torch.save(model.state_dict(), 'last.pt'); open('log.csv', 'a').write(f'{epoch}\\n')"
    path = script(tmp_path, step=saves)
    done = record(path, tmp_path / "run.pol", rehearse=True)
    assert done.returncode == 0 and "could not be carried out" not in done.stderr, done.stderr


def test_a_run_that_a_part_ends_early_is_sealed_and_valid(tmp_path: Path) -> None:
    path = stopping(tmp_path, "patience=patience")
    done = record(path, tmp_path / "run.pol", interval=7, rehearse=True)
    assert done.returncode == 0, done.stderr
    assert "60 steps" in done.stdout
    found = verdict(tmp_path / "run.pol", path)
    assert found.verdict == "valid", found.reason


def test_a_run_that_a_variable_ends_early_is_not_sealed(tmp_path: Path) -> None:
    done = record(stopping(tmp_path, ""), tmp_path / "run.pol", interval=7, rehearse=True)
    assert done.returncode == 2
    assert "goes on after 60 steps there, and ended here" in done.stderr
    assert "attribute 'bad' of variable 'patience'" in done.stderr
    assert not (tmp_path / "run.pol" / "seal.json").exists()


def test_variables_that_are_written_before_they_are_read_do_not_count() -> None:
    found = []

    def batches() -> object:
        for number in range(2):
            found.append([frames.live(f.f_code, f.f_lasti) for f in frames.callers() if f.f_code.co_name == "loop"])
            yield number

    def loop() -> tuple[float, list[int]]:
        best, previous, notes, loss, batch = 9.0, 0, [], 0, 0
        for epoch in range(2):
            for batch in batches():  # type: ignore[attr-defined]
                loss = batch + previous
                previous = loss
                notes.append(loss)
            if loss < best:
                best = loss + epoch
        return best, [batch]

    loop()
    assert {"best", "previous", "epoch"} <= found[0][0]
    assert not {"loss", "batch", "notes"} & found[0][0]


def test_a_look_at_variables_keeps_nothing_alive() -> None:
    class Held:
        pass

    def look() -> dict[str, object]:
        return next(frames.values(f, ["held"]) for f in frames.callers() if f.f_code.co_name == "loop")

    def loop() -> bool:
        held = Held()
        reference = weakref.ref(held)
        assert look() == {"held": held}
        del held
        return reference() is None

    assert loop()


@pytest.mark.parametrize(
    ("data", "labelled"),
    [
        (torch.arange(9), True),
        (np.zeros(9), False),
        ({"x": torch.zeros(9, 2), "y": torch.arange(9)}, True),
        ([torch.zeros(9, 2), torch.zeros(9)], False),
    ],
    ids=["tokens", "numbers", "classes", "targets"],
)
def test_whether_a_loop_without_a_loader_has_labels_follows_from_its_data(data: object, labelled: bool) -> None:
    model = torch.nn.Linear(2, 2)
    assert facts(Given(data=data, parts={"model": model}), Counted(range(3))).labelled() is labelled
