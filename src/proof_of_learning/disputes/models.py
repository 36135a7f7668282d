"""The two sides of a comparison: the disputed model as a file has it, and a model as a proof's state has it, tensor by tensor."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from proof_of_learning.errors import UsageError
from proof_of_learning.state.names import is_weight, short_name
from proof_of_learning.state.state import State
from proof_of_learning.verifier.checks.endpoint import weight_files

SAMPLE = 1 << 16  # numbers that are looked for
# What containers put before every name of a model (DataParallel, torch.compile, Lightning, a Hugging Face head).
_PREFIXES = ("module.", "_orig_mod.", "model.", "base_model.", "transformer.")


@dataclass(frozen=True)
class Model:
    """A model's tensors by the names of its module. ``files``: SHA-256 of the files that they were read from, by name."""

    tensors: Mapping[str, Tensor]
    files: Mapping[str, str]

    @property
    def parameters(self) -> int:
        """Elements of its floating-point tensors."""
        return sum(t.numel() for t in self.tensors.values() if t.is_floating_point())


@dataclass(frozen=True)
class Pairs:
    """Tensors of one shape that stand for each other, by the first model's names; and the share of its weights that found one."""

    tensors: Mapping[str, tuple[Tensor, Tensor]]
    share: float

    @property
    def sides(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The first model's tensors and the second's, both by the first one's names."""
        return {n: a for n, (a, _) in self.tensors.items()}, {n: b for n, (_, b) in self.tensors.items()}

    def swapped(self) -> Pairs:
        """The same from the other side."""
        return Pairs({name: (b, a) for name, (a, b) in self.tensors.items()}, self.share)


def load(path: str | os.PathLike[str]) -> Model:
    """The model in a safetensors file, or in a folder in Hugging Face's form. Raises UsageError; nothing is ever unpickled."""
    found: dict[str, Tensor] = {}
    files = weight_files(Path(path))
    try:
        with ExitStack() as opened:
            for file in files:
                stored = opened.enter_context(safe_open(file, framework="pt"))
                found |= {name: _real(stored.get_tensor(name)) for name in stored.keys()}  # noqa: SIM118 (it is no dict)
        digests = {file.name: _digest(file) for file in files}
    except (OSError, SafetensorError, _UncountedError) as error:
        raise UsageError(
            f"the model {path} cannot be read as safetensors ({str(error)[:200]}); "
            "save it with safetensors.torch.save_file(model.state_dict(), …)"
        ) from None
    if not any(tensor.is_floating_point() for tensor in found.values()):
        raise UsageError(f"the model {path} holds no tensor of floating-point numbers, so there is nothing to compare")
    return Model(found, digests)


class _UncountedError(Exception):
    """A tensor whose elements PyTorch cannot compute with."""


def _real(tensor: Tensor) -> Tensor:
    """A tensor of which numbers can be made: of a complex one its real part. Raises _UncountedError."""
    try:
        (tensor.real if tensor.is_complex() else tensor).flatten()[:1].double()
    except (NotImplementedError, RuntimeError):
        raise _UncountedError(f"{str(tensor.dtype).removeprefix('torch.')} is no type to compute with") from None
    return tensor.real.contiguous() if tensor.is_complex() else tensor


def of_state(state: State) -> dict[str, Tensor]:
    """The parameters of a state's model by the module's own names."""
    return {short_name(name): tensor for name, tensor in state.tensors.items() if is_weight(name)}


def pair(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Pairs:
    """Which tensor of ``second`` stands for each of ``first``: by name, by name without what containers add, by a shape of its own."""
    mine = {name: t for name, t in first.items() if t.is_floating_point()}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    left = {name: t for name, t in second.items() if t.numel()}
    for short in (lambda name: name, _bare):
        theirs = {short(name): name for name in left}
        for name, tensor in mine.items():
            other = theirs.get(short(name))
            if name not in found and other is not None and other in left and left[other].shape == tensor.shape:
                found[name] = (tensor, left.pop(other))
    rivals, alike = (_by_shape(side) for side in ({n: t for n, t in mine.items() if n not in found}, left))
    for shape, names in rivals.items():
        if len(names) == len(alike.get(shape, ())) == 1:
            found[names[0]] = (mine[names[0]], left[alike[shape][0]])
    elements = sum(t.numel() for t in mine.values())
    paired = sum(a.numel() for a, _ in found.values())
    return Pairs(found, paired / elements if elements else 0.0)


def _by_shape(tensors: Mapping[str, Tensor]) -> dict[torch.Size, list[str]]:
    found: dict[torch.Size, list[str]] = {}
    for name, tensor in tensors.items():
        found.setdefault(tensor.shape, []).append(name)
    return found


def shared_values(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The share of a sample of the numbers of ``first`` that ``second`` holds, to the bit and in whatever shape."""
    mine, theirs = (
        torch.cat([t.flatten().double() for t in side.values() if t.is_floating_point()] or [torch.zeros(0)])
        for side in (first, second)
    )
    if len(mine) > SAMPLE:
        mine = mine[torch.randint(len(mine), (SAMPLE,), generator=torch.Generator().manual_seed(0))]
    mine = mine[mine != mine.round()]  # zeros and ones are in any model
    return float(torch.isin(mine, theirs).double().mean()) if len(mine) else 0.0


def _bare(name: str) -> str:
    """A name without what containers add before it."""
    while True:
        prefix = next((item for item in _PREFIXES if name.startswith(item)), None)
        if prefix is None:
            return name
        name = name.removeprefix(prefix)


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
