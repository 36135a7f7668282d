"""Running something in a child that shares this process's memory as it is now, and leaves it as it was.

A forked child has one thread. The thread pool of GNU OpenMP, on which PyTorch computes, would have lost its members there and
wait for them for ever; so the pool is taken down first (OpenMP 5.0, section 3.2.44), and each child builds its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable

_PAUSE_HARD = 2  # omp_pause_hard
_PR_SET_PDEATHSIG = 1


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def possible(threads: int) -> bool:
    """Whether children can compute here with so many threads."""
    return sys.platform == "linux" and (threads == 1 or _openmp() is not None)


def run(work: Callable[[], object]) -> None:
    """Run ``work`` in a child and wait for its end; ends this process as the child ended, where that was not in good order."""
    if child():
        _work(work)


def child() -> bool:
    """True in a child, which must end by ``os._exit``; False here, once it has ended (where not in good order, we end alike)."""
    settle()
    parent = os.getpid()
    made = os.fork()
    if made == 0:
        if not die_with(parent):
            os._exit(1)
        return True
    _, status = os.waitpid(made, 0)
    if status != 0:
        _end_like(status)
    return False


def settle() -> None:
    """Make this process one that can be forked."""
    for runtime in _settled():
        runtime.omp_pause_resource_all(_PAUSE_HARD)


def die_with(parent: int) -> bool:
    """End this process when its parent ends; False if that has happened. No child outlives who would be asked to end it."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def _work(work: Callable[[], object]) -> None:
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def _end_like(status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code if code > 0 else 1)


@functools.cache
def _settled() -> list[ctypes.CDLL]:
    """Once everything is loaded: the OpenMP runtimes, and no collection in a child that would touch, and so copy, every page."""
    gc.freeze()
    return _openmp() or []


def _openmp() -> list[ctypes.CDLL] | None:
    """The OpenMP runtimes that are loaded now (a library may bring its own); None where one of them cannot take its threads down."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            loaded = {line.split(maxsplit=5)[-1].strip() for line in maps if "omp" in line}
    except OSError:
        return None
    paths = sorted(path for path in loaded if os.path.basename(path).startswith(("libgomp", "libiomp", "libomp")))
    with contextlib.suppress(OSError):
        runtimes = [ctypes.CDLL(path) for path in paths]
        if all(hasattr(runtime, "omp_pause_resource_all") for runtime in runtimes):
            return runtimes
    return None
