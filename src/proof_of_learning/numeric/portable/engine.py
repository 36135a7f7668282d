"""Which engine computes portable arithmetic in this process: the plain one, or the native one, with the same bits."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import dataclass

from proof_of_learning.errors import NumericEnvironmentError
from proof_of_learning.numeric.portable.native import build, calls
from proof_of_learning.numeric.portable.table import IN_USE, NATIVE

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


def _choose() -> Engine:
    wanted = os.environ.get(VARIABLE) or AUTO
    if wanted not in (PLAIN_ENGINE, NATIVE_ENGINE, AUTO, _UNTRIED):
        raise NumericEnvironmentError(f"{VARIABLE}={wanted[:32]}: expected {PLAIN_ENGINE}, {NATIVE_ENGINE} or {AUTO}")
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

    IN_USE.update(NATIVE)
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


def _trial() -> list[str]:
    """What differs, found in a process of its own: a library that was built wrong may do anything."""
    command = [sys.executable, "-m", "proof_of_learning.numeric.portable.selftest"]
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
