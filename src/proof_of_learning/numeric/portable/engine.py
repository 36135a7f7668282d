"""Which engine computes portable arithmetic in this process: the plain one, or a native one, with the same bits.

There are two native ones: C++ for the CPU, Triton for a CUDA device. Either is tried with the self-test before it counts, in a process
of its own, once for each build, and refused if one bit differs.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib.resources import files

import torch

from proof_of_learning.errors import NumericEnvironmentError
from proof_of_learning.numeric.portable.native import build, calls
from proof_of_learning.numeric.portable.table import CUDA, NATIVE, use

log = logging.getLogger(__name__)

VARIABLE = "POL_PORTABLE_ENGINE"
PLAIN_ENGINE, NATIVE_ENGINE, AUTO = "plain", "native", "auto"


@dataclass(frozen=True)
class Engine:
    """The engine that runs: ``plain`` or ``native``, and why it is that one."""

    name: str
    reason: str


_UNTRIED = "untried"  # of the process that tries a library
_PATIENCE = 600.0  # seconds for it
_lock = threading.Lock()
_chosen: Engine | None = None
_chosen_for_cuda: Engine | None = None
_ENTRIES_FOR_CUDA = ("operations", "convolutions", "lists")  # modules of cuda/ which fill the table


def prepare() -> Engine:
    """Choose the engine of this process, at the first call: as the variable says, natively where that can be had.

    A library is built where there is a compiler, tried once with the self-test, and refused if one bit of it differs.
    NumericEnvironmentError where the variable demands an engine that cannot be had.
    """
    global _chosen
    if _chosen is None:
        with _lock:
            _chosen = _chosen or _choose()
    return _chosen


def prepare_for_cuda() -> Engine:
    """The same for CUDA devices, once this process uses one: natively where there is Triton, which PyTorch for CUDA brings."""
    global _chosen_for_cuda
    prepare()
    if _chosen_for_cuda is None:
        with _lock:
            _chosen_for_cuda = _chosen_for_cuda or _choose_for_cuda()
    return _chosen_for_cuda


def _wanted() -> str:
    wanted = os.environ.get(VARIABLE) or AUTO
    if wanted not in (PLAIN_ENGINE, NATIVE_ENGINE, AUTO, _UNTRIED):
        raise NumericEnvironmentError(f"{VARIABLE}={wanted[:32]}: expected {PLAIN_ENGINE}, {NATIVE_ENGINE} or {AUTO}")
    return wanted


def _choose() -> Engine:
    wanted = _wanted()
    if wanted == PLAIN_ENGINE:
        return Engine(PLAIN_ENGINE, f"{VARIABLE} says so")
    try:
        library = build.find(build.compiler())
        if wanted != _UNTRIED:
            _require_published(library)
        calls.load(library.path)
    except (build.UnavailableError, OSError) as error:
        if wanted == NATIVE_ENGINE:
            raise NumericEnvironmentError(f"{VARIABLE}={NATIVE_ENGINE}: {error}") from None
        log.info("portable arithmetic runs on the plain engine: %s", error)
        return Engine(PLAIN_ENGINE, str(error))
    from proof_of_learning.numeric.portable.native import elementwise, operations  # noqa: F401 (which fill the table)

    use(NATIVE)
    return Engine(NATIVE_ENGINE, "its self-test gave the published bits")


def _require_published(library: build.Library) -> None:
    """UnavailableError where the self-test on this library gives, or gave, other bits than were published."""
    differing = library.differing
    if differing is None:
        differing = _trial()
        build.remember(library, differing)
    if differing:
        named = ", ".join(differing[:5])
        log.warning(
            "the native engine of portable arithmetic is not used: %s gave other bits than were published (%s)",
            library.path,
            named,
        )
        raise build.UnavailableError(f"{library.path} gave other bits than were published ({named})")


def _choose_for_cuda() -> Engine:
    wanted = _wanted()
    if wanted == PLAIN_ENGINE:
        return Engine(PLAIN_ENGINE, f"{VARIABLE} says so")
    try:
        if importlib.util.find_spec("triton") is None:
            raise build.UnavailableError("there is no triton, which PyTorch for CUDA brings")
        if wanted != _UNTRIED:
            _require_same_on_cuda()
        modules = [importlib.import_module(f"{__package__}.cuda.{name}") for name in _ENTRIES_FOR_CUDA]
        try:
            modules[0].try_one()
        except Exception as error:  # Triton's own, or the compiler's
            raise build.UnavailableError(
                f"Triton runs no kernel here ({type(error).__name__}: {error})"[:300]
            ) from None
    except (build.UnavailableError, ImportError, OSError) as error:
        if wanted == NATIVE_ENGINE:
            raise NumericEnvironmentError(f"{VARIABLE}={NATIVE_ENGINE}: on CUDA, {error}") from None
        log.info("portable arithmetic runs on the plain engine on CUDA: %s", error)
        return Engine(PLAIN_ENGINE, str(error))
    use(CUDA)
    return Engine(NATIVE_ENGINE, "its self-test gave the plain engine's bits")


def _require_same_on_cuda() -> None:
    """UnavailableError where the self-test on the kernels gives, or gave, other bits than on the plain engine."""
    name = _kernels()
    differing = build.recall(name)
    if differing is None:
        log.warning(
            "trying the kernels of portable arithmetic for CUDA, once on this machine and release: about a minute"
        )
        differing = _trial("cuda")
        build.keep(name, differing)
    if differing:
        named = ", ".join(differing[:5])
        log.warning(
            "the kernels of portable arithmetic for CUDA are not used: they gave other bits than the plain engine (%s)",
            named,
        )
        raise build.UnavailableError(f"the kernels gave other bits than the plain engine ({named})")


def _kernels() -> str:
    """A name for what could change a kernel: sources, Triton, PyTorch's release, the kind of device."""
    hashed, here = hashlib.sha256(), files(__package__)
    sources = [*here.iterdir(), *here.joinpath("cuda").iterdir()]
    parts = [source.read_bytes() for source in sorted(sources, key=lambda s: s.name) if source.name.endswith(".py")]
    triton = importlib.import_module("triton").__version__
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    for part in (
        *parts,
        triton.encode(),
        torch.__version__.encode(),
        f"{device.name} {device.major}.{device.minor}".encode(),
    ):
        hashed.update(len(part).to_bytes(8, "little") + part)
    return f"cuda-{hashed.hexdigest()[:32]}"


def _trial(*arguments: str) -> list[str]:
    """What differs, found in a process of its own: a library that was built wrong may do anything."""
    command = [sys.executable, "-m", "proof_of_learning.numeric.portable.selftest", *arguments]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, VARIABLE: _UNTRIED},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise build.UnavailableError(f"the self-test could not be run ({error})") from None
    if done.returncode:
        return [f"the self-test ended with status {done.returncode}"]
    return [str(case) for case in json.loads(done.stdout)]
