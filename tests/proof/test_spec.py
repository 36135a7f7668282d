"""The specification of the format suffices: a reader written from it alone agrees with ours, and its test vectors hold."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import proof_of_learning as pol
from proof_of_learning.numeric import randomness
from proof_of_learning.proof.reader import Proof

SPEC = Path(__file__).parents[2] / "docs" / "spec"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SPEC / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


minireader, vectors = load("minireader"), load("vectors")


@pytest.fixture(scope="module")
def observed_proof(tiny: pol.TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign loop's proof: indices and generator states are recorded."""
    path = tmp_path_factory.mktemp("observed") / "tiny.pol"
    task = pol.load_task(tiny)
    assert task.loss is not None
    model = task.model()
    optimizer = task.optimizer(model)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if task.scheduler is not None:
        parts["scheduler"] = task.scheduler(optimizer)
    with pol.Recorder.observe(path, task, parts, interval=5) as recorder:
        loader: DataLoader[Any] = DataLoader(pol.Indexed(task.data()), batch_size=task.batch_size, shuffle=True)  # type: ignore[arg-type]
        while recorder.steps_done < (recorder.header.training.planned or 0) - 1:
            for batch in recorder.watch(loader):
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if "scheduler" in parts:
                    parts["scheduler"].step()
                recorder.loss(loss)
        recorder.close()
    return path


@pytest.mark.quick
@pytest.mark.parametrize("name", ["digits_proof", "tiny_proof", "observed_proof"])
def test_a_reader_written_from_the_specification_agrees(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    assert minireader.check(path) == Proof.open(path).root
    assert pol.check(path).status == "pass"


def one_of_each_file(proof: Path) -> list[Path]:
    objects = sorted((proof / "objects").glob("*/*"))
    return [*(proof / name for name in sorted(minireader.FILES - {"objects"})), objects[0], objects[-1]]


def flipped(raw: bytearray) -> None:
    raw[len(raw) // 2] ^= 1


def shortened(raw: bytearray) -> None:
    del raw[-1:]


def lengthened(raw: bytearray) -> None:
    raw += b"\n"


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("damage", [flipped, shortened, lengthened], ids=lambda f: f.__name__)
def test_both_readers_refuse_the_same_damage(
    tiny_proof: Path, tmp_path: Path, number: int, damage: Callable[[bytearray], None]
) -> None:
    copy = tmp_path / "copy.pol"
    shutil.copytree(tiny_proof, copy)
    file = one_of_each_file(copy)[number]
    raw = bytearray(file.read_bytes())
    damage(raw)
    file.write_bytes(raw)
    with pytest.raises((ValueError, KeyError, TypeError)):
        minireader.check(copy)
    with contextlib.suppress(pol.PolError):
        assert pol.check(copy).status == "fail"


def test_both_readers_refuse_what_they_do_not_know(tiny_proof: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pol"
    shutil.copytree(tiny_proof, copy)
    (copy / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="unexpected"):
        minireader.check(copy)
    with pytest.raises(pol.PolError, match="unexpected"):
        pol.check(copy)


def specification() -> str:
    return (SPEC / "format.md").read_text()


def test_the_vectors_in_the_specification_are_what_the_code_gives() -> None:
    found = re.search(r"<!-- vectors -->\n```\n(.*?)```\n", specification(), re.DOTALL)
    assert found is not None
    assert found.group(1).splitlines() == [f"{name} = {value}" for name, value in vectors.vectors()]


def test_the_generator_in_the_specification_gives_the_words_of_the_code() -> None:
    found = re.search(r"```python\n(def philox.*?)```\n", specification(), re.DOTALL)
    assert found is not None
    scope: dict[str, Any] = {}
    exec(found.group(1), scope)
    for seed in (0, 1, vectors.SEED, 2**64 - 1):
        assert scope["philox"](seed, 11) == randomness.raw_words(seed, 11).tolist()
    words = scope["philox"](vectors.SEED, 50)
    assert sorted(range(50), key=words.__getitem__) == randomness.permutation(vectors.SEED, 50).tolist()


@pytest.mark.parametrize(
    "value", [0.1, -2.5e-7, 1e21, 123456789012345680000.0, 5e-324, 1.7976931348623157e308, 1e-6, 42.0]
)
def test_the_mini_reader_spells_numbers_canonically(value: float) -> None:
    from proof_of_learning import canonical

    assert minireader.canonical([value, -value]) == canonical.encode([value, -value])


def test_the_state_digest_of_a_replayed_state_needs_nothing_but_the_specification(tiny_proof: Path) -> None:
    proof = Proof.open(tiny_proof)
    state = proof.state(proof.segments[-1].state)
    content = {
        name: [str(t.dtype).removeprefix("torch."), list(t.shape), t.reshape(-1).view(torch.uint8).numpy().tobytes()]
        for name, t in state.tensors.items()
    }
    assert minireader.state_digest(state.tree, content) == proof.segments[-1].state
