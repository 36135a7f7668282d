"""A sealed proof is verified where the task cannot be imported, and by the task, and says what it rests on."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import proof_of_learning as pol
import support_sealed
from proof_of_learning import Proof, TaskReference, sealed_program
from proof_of_learning.data.commit import Dataset, commit
from proof_of_learning.errors import DataError, FormatError, IntegrityError, PolError, TaskError, UsageError
from proof_of_learning.program.folder import export, samples
from proof_of_learning.proof import parse
from proof_of_learning.report.advice import next_steps
from support_cli import one_line
from support_cli import pol as command

HERE = Path(__file__).parents[1]
REFERENCE = f"{HERE / 'support_sealed.py'}:task"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    export(support_sealed.images(), folder / "images")
    export(support_sealed.texts(), folder / "texts")
    return {"images": folder / "images", "texts": folder / "texts"}


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proof") / "cnn"
    pol.prove(TaskReference(REFERENCE, {"name": "cnn"}), folder, interval=1, seal_program=True)
    return folder


@pytest.mark.quick
def test_a_sealed_proof_is_valid_without_the_task(proof: Path, data: dict[str, Path]) -> None:
    verdict = pol.verify(proof, sealed_program(data["images"]))
    assert verdict.verdict == "valid", verdict.reason
    task = next(check for check in verdict.checks if check.name == "task")
    assert "no code of the prover's was run" in task.summary and "pol inspect --program" in task.summary
    assert Proof.open(proof).header.program.sealed == task.evidence["program"]
    told = " ".join(next_steps(verdict))
    assert "pol inspect DIR --program" in told and "Read the task's program" not in told


@pytest.mark.real_workers
def test_it_is_valid_where_importing_the_task_is_impossible(
    tmp_path: Path, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task's file is gone, and a hook in every process refuses its name."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(HERE / "support_sealed.py", home / "gone.py")
    recorded = pol.prove(TaskReference(f"{home}/gone.py:task"), tmp_path / "proof", interval=1, seal_program=True)
    (home / "gone.py").unlink()
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('gone', 'support_sealed') or name.startswith('pol_task_'):\n"
        "            raise SystemExit('imported ' + name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hooks))
    monkeypatch.setitem(sys.modules, "gone", None)
    verdict = pol.verify(recorded.path, sealed_program(data["images"]), sandbox="off")
    assert verdict.verdict == "valid", verdict.reason
    assert pol.verify(recorded.path).verdict == "inconclusive"


def test_the_task_that_was_sealed_verifies_it_too_and_another_does_not(proof: Path) -> None:
    assert pol.verify(proof, TaskReference(REFERENCE, {"name": "cnn"})).verdict == "valid"
    other = pol.verify(proof, support_sealed.task("mlp"))
    assert other.verdict == "invalid" and "another task" in other.reason


def test_recording_in_portable_arithmetic(tmp_path: Path) -> None:
    made = command(
        "export-data", REFERENCE, "-o", tmp_path / "data", "--arithmetic", "portable"
    )  # whose data are drawn
    assert made.exit_code == 0, made.output
    pol.prove(support_sealed.task("mlp"), tmp_path / "p", interval=2, seal_program=True, arithmetic="portable")
    verdict = pol.verify(tmp_path / "p", sealed_program(tmp_path / "data"))
    assert verdict.verdict == "valid", verdict.reason


def test_other_samples_are_told(proof: Path, tmp_path: Path, data: dict[str, Path]) -> None:
    shutil.copytree(data["images"], tmp_path / "other")
    labels = np.load(tmp_path / "other/1.npy")
    labels[0] = (labels[0] + 1) % 10
    np.save(tmp_path / "other/1.npy", labels)
    verdict = pol.verify(proof, sealed_program(tmp_path / "other"))
    assert verdict.verdict == "invalid" and "samples" in verdict.reason


def test_a_program_that_was_changed_is_no_proof(proof: Path, tmp_path: Path, data: dict[str, Path]) -> None:
    header = Proof.open(proof).header
    raw = header.encoded().replace(b'"cross_entropy_loss.default"', b'"binary_cross_entropy.default"', 1)
    with pytest.raises((FormatError, IntegrityError), match="digest"):
        parse.parse_header(raw)


def test_a_task_that_pulls_toward_numbers_it_carries_needs_approval(tmp_path: Path, data: dict[str, Path]) -> None:
    aim = torch.randn(32, 64)

    def pulled(model: torch.nn.Module, batch: object) -> torch.Tensor:
        return support_sealed.classify(model, batch) + (model.get_parameter("1.weight") - aim).square().mean()

    task = dataclasses.replace(support_sealed.task("mlp"), loss=pulled)
    pol.prove(task, tmp_path / "p", interval=1, seal_program=True)
    verdict = pol.verify(tmp_path / "p", sealed_program(data["images"]))
    assert verdict.verdict == "inconclusive" and "pull toward" in verdict.reason
    granted = pol.verify(tmp_path / "p", sealed_program(data["images"]), approve_fixed=["constants"])
    assert granted.verdict == "valid", granted.reason
    shown = command("inspect", tmp_path / "p", "--program").stdout
    assert "float32 [32, 64]: 2,048 numbers" in shown and "a loss may pull toward them" in shown


def test_a_task_that_picks_its_numbers_out_of_a_few_needs_approval(tmp_path: Path, data: dict[str, Path]) -> None:
    """2,048 weights of 12 bits, which are no constants: two lists say which of 64 values comes next."""
    codes = torch.randint(0, 64, (2, 2048)).tolist()

    def pulled(model: torch.nn.Module, batch: object) -> torch.Tensor:
        levels = torch.arange(64.0).unbind()
        high, low = (torch.stack([levels[code] for code in row]).reshape(32, 64) for row in codes)
        aim = (high * 64 + low) / 512 - 4
        return support_sealed.classify(model, batch) + (model.get_parameter("1.weight") - aim).square().mean()

    task = dataclasses.replace(support_sealed.task("mlp"), loss=pulled)
    pol.prove(task, tmp_path / "p", interval=1, seal_program=True)
    verdict = pol.verify(tmp_path / "p", sealed_program(data["images"]))
    assert verdict.verdict == "inconclusive" and "pull toward" in verdict.reason


def test_a_task_whose_rates_are_weights_needs_approval(tmp_path: Path, data: dict[str, Path]) -> None:
    """A loss that follows a counter gives each step's rate to the next weight. Constant rates would teach it nothing."""
    aim = torch.randn(2048).tolist()

    class Counting(torch.nn.Module):
        count: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net, self.found = support_sealed.mlp(), torch.nn.Parameter(torch.zeros(2048))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            here = torch.arange(2048) == self.count
            self.count.add_(1)
            out: torch.Tensor = self.net(x) + (self.found * here).sum()
            return out

    def loss(model: torch.nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        out = model(batch[0])
        return out.sum() / out.numel()

    task = dataclasses.replace(
        support_sealed.task("mlp"), model=Counting, loss=loss, steps=700,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1.0),
        scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: aim[step]),
    )  # fmt: skip
    proof = pol.prove(task, tmp_path / "p", interval=100, seal_program=True).path
    opened = Proof.open(proof)
    found = opened.state(opened.segments[-1].state).tensors["model/parameters/found"]
    assert torch.allclose(found[:700], -torch.tensor(aim[:700]))
    verdict = pol.verify(proof, sealed_program(data["images"]))
    assert verdict.verdict == "inconclusive" and "turn into weights" in verdict.reason, verdict.reason
    approved = pol.verify(proof, sealed_program(data["images"]), approve_fixed=["rates"])
    assert "turn into weights" not in approved.reason


# ---- commands ----------------------------------------------------------------------------------------


def test_the_commands(proof: Path, data: dict[str, Path], tmp_path: Path) -> None:
    verified = command("verify", proof, "--sealed", "--data", data["images"])
    assert verified.exit_code == 0, verified.output
    shown = command("inspect", proof, "--program")
    assert "batch_norm.default(%0, p2, p3, b0, b1" in shown.stdout
    done = command("export-data", REFERENCE, "-o", tmp_path / "out")
    assert done.exit_code == 0 and commit(support_sealed.images()).root in done.stdout


def test_what_cannot_be_asked_for(
    proof: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POL_DATA", raising=False)
    assert "--data" in one_line(command("verify", proof, "--sealed"), 2)
    assert "name the one or the other" in one_line(
        command("verify", proof, "--sealed", "--data", data["images"], "--task", REFERENCE), 2
    )
    script = tmp_path / "script.py"
    script.write_text("")
    assert "--seal-program" in one_line(command("prove", script, "-o", tmp_path / "s", "--seal-program"), 2)
    task = dataclasses.replace(support_sealed.task(), augment=lambda sample, generator: sample)
    with pytest.raises(TaskError, match="augmentation"):
        pol.prove(task, tmp_path / "a", seal_program=True)
    assert not (tmp_path / "a").exists() or not any((tmp_path / "a").iterdir())
    pol.prove(support_sealed.task(), tmp_path / "plain", interval=4)
    with pytest.raises(UsageError, match="no sealed program"):
        pol.verify(tmp_path / "plain", sealed_program(data["images"]))


# ---- folders of arrays -------------------------------------------------------------------------------


class Mixed(Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> object:
        return {"x": torch.full((3,), float(index)), "y": (index, index / 2, index > 2)}


@pytest.mark.parametrize("made", [support_sealed.images, support_sealed.texts, Mixed])
def test_arrays_have_the_root_of_the_samples(made: object, tmp_path: Path) -> None:
    assert callable(made)
    own = made()
    export(own, tmp_path / "out")
    assert commit(samples(tmp_path / "out")) == commit(own)


def test_samples_of_several_shapes_are_refused(tmp_path: Path) -> None:
    class Ragged(Mixed):
        def __getitem__(self, index: int) -> object:
            return torch.zeros(index + 1)

    with pytest.raises(DataError, match="sample 1"):
        export(Ragged(), tmp_path / "out")
    with pytest.raises(DataError, match="bfloat16"):
        export(TensorDataset(torch.zeros(3, dtype=torch.bfloat16)), tmp_path / "out")


def test_hostile_folders_are_refused(tmp_path: Path) -> None:
    export(support_sealed.images(), tmp_path / "honest")
    pickled = np.array([{}, []], dtype=object)

    def attempt(name: str, change: object) -> str:
        shutil.copytree(tmp_path / "honest", tmp_path / name)
        assert callable(change)
        change(tmp_path / name)
        with pytest.raises(PolError) as caught:
            samples(tmp_path / name)
        return str(caught.value)

    assert "no array" in attempt("pickle", lambda f: np.save(f / "0.npy", pickled, allow_pickle=True))
    assert "no array" in attempt("short", lambda f: (f / "0.npy").write_bytes((f / "0.npy").read_bytes()[:500]))
    assert "each of the" in attempt("few", lambda f: np.save(f / "1.npy", np.zeros(3)))
    assert "missing" in attempt("gone", lambda f: (f / "0.npy").unlink())
    assert "canonical" in attempt(
        "index", lambda f: (f / "data.json").write_text('{ "schema":"x","samples":1,"sample":"int"}')
    )

    def link(folder: Path) -> None:
        (folder / "0.npy").unlink()
        (folder / "0.npy").symlink_to("/etc/hostname")

    assert "regular" in attempt("link", link)
