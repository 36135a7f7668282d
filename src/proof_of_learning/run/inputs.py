"""Files that a script reads before its first step (a configuration, tokens, pretrained weights): its inputs, by digest.

Seen is what Python opens. Libraries that open files by themselves are not seen; neither are programs and what came with Python.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proof_of_learning.errors import UsageError
from proof_of_learning.limits import MAX_NAME
from proof_of_learning.proof.format import Input
from proof_of_learning.run.mode import ACTIVE, Given
from proof_of_learning.state.modules import tensors_in

MOST = 1000  # files; a script that reads more before its first step reads its data, which are committed to
PIECE = 1 << 20
_PROGRAMS = (".py", ".pyc", ".so", ".pth")
_WRITING = os.O_WRONLY | os.O_RDWR


class Reads:
    """The files that are opened from :meth:`watch` to :meth:`stop`."""

    def __init__(self) -> None:
        self._read: dict[str, None] = {}
        self._written: set[str] = set()
        self._open = False

    def watch(self) -> None:
        """A hook of the interpreter cannot be taken away again; once stopped it does nothing."""
        self._open = True
        sys.addaudithook(self._seen)

    def stop(self) -> None:
        self._open = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is opened now is none of the script's."""
        before, self._open = self._open, False
        try:
            yield
        finally:
            self._open = before

    def _seen(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._open or event != "open":
            return
        path, mode, flags = arguments
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        whole = os.path.abspath(os.fsdecode(path))
        writing = bool(set("wax+") & set(mode)) if isinstance(mode, str) else bool(flags & _WRITING)
        if writing:
            self._written.add(whole)
        elif whole not in self._written:
            self._read[whole] = None

    def inputs(self, *named: str | os.PathLike[str]) -> list[Input]:
        """What was read, and the files that the script ``named``, in the order that a header has."""
        found = {path for path in self._read if _counts(path)} | {os.path.abspath(path) for path in named}
        made = {_input(path) for path in sorted(found)[:MOST]}
        return sorted(made, key=lambda item: (item.name, item.digest))


def of_script(given: Given) -> list[Input]:
    """The inputs of the script that runs."""
    reads, named = ACTIVE.reads or Reads(), pretrained_file(given.pretrained)
    return reads.inputs(*([named] if named else []))


def _counts(path: str) -> bool:
    installed = (
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        str(Path(__file__).parents[1]),
        "/proc",
        "/sys",
        "/dev",
        "/etc",
    )
    inside = any(path.startswith(os.path.join(folder, "")) for folder in installed)
    return not inside and not path.endswith(_PROGRAMS) and os.path.isfile(path)


def _input(path: str) -> Input:
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise UsageError(f"{os.path.basename(path)} was read, and cannot be any more: {error.strerror}") from error
    return Input(_name(path), f"sha256:{digest.hexdigest()}", size)


def _name(path: str) -> str:
    return os.fsencode(os.path.basename(path)).decode(errors="replace")[:MAX_NAME]


def pretrained_file(given: Any) -> str | None:
    """The file that a script names as ``pretrained``. UsageError where there is none."""
    if given is None:
        return None
    path = os.fsdecode(given)
    if not os.path.isfile(path):
        raise UsageError(f"pol.Run(pretrained=…) names {os.path.basename(path) or path!r}, and there is no such file")
    return path


class Weights:
    """The tensors in a file of weights, to compare with."""

    def __init__(self, path: str) -> None:
        self._by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for tensor in tensors_in(_loaded(path)):
            self._by_shape.setdefault(tuple(tensor.shape), []).append(tensor)

    def hold(self, tensor: Tensor) -> bool:
        """Whether the file has a tensor of the same values."""
        return any(torch.equal(own.to(tensor.dtype), tensor) for own in self._by_shape.get(tuple(tensor.shape), ()))


def _loaded(path: str) -> Any:
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each library refuses in its own way
        raise UsageError(
            f"{os.path.basename(path)} holds no weights that can be read without running code ({type(error).__name__}); save a "
            "state_dict() by torch.save, or safetensors"
        ) from error
