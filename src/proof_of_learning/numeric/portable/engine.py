"""Which engine computes portable arithmetic in this process: the plain one, or the native one, with the same bits."""

from __future__ import annotations

import logging
import os
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


_lock = threading.RLock()
_chosen: Engine | None = None
_choosing = False


def prepare() -> Engine:
    """Choose the engine of this process, at the first call: as the variable says, natively where that can be had.

    A library is built where there is a compiler, tried once with the self-test, and refused if one bit of it differs.
    NumericEnvironmentError where the variable demands an engine that cannot be had.
    """
    global _chosen, _choosing
    if _chosen is not None:
        return _chosen
    with _lock:
        if _chosen is not None or _choosing:  # the self-test below computes too
            return _chosen or Engine(NATIVE_ENGINE, "being tried")
        wanted = os.environ.get(VARIABLE) or AUTO
        if wanted not in (PLAIN_ENGINE, NATIVE_ENGINE, AUTO):
            raise NumericEnvironmentError(
                f"{VARIABLE}={wanted[:32]}: expected {PLAIN_ENGINE}, {NATIVE_ENGINE} or {AUTO}"
            )
        if wanted == PLAIN_ENGINE:
            _chosen = Engine(PLAIN_ENGINE, f"{VARIABLE} says so")
            return _chosen
        _choosing = True
        try:
            _take(build.find(build.compiler()))
            _chosen = Engine(NATIVE_ENGINE, "it gave the published bits")
        except (build.UnavailableError, OSError) as error:
            IN_USE.clear()
            if wanted == NATIVE_ENGINE:
                raise NumericEnvironmentError(f"{VARIABLE}={NATIVE_ENGINE}: {error}") from None
            log.info("portable arithmetic runs on the plain engine: %s", error)
            _chosen = Engine(PLAIN_ENGINE, str(error))
        finally:
            _choosing = False
        return _chosen


def _take(library: build.Library) -> None:
    """Use a library's kernels. UnavailableError where its self-test gives, or gave, other bits."""
    from proof_of_learning.numeric.portable import selftest
    from proof_of_learning.numeric.portable.native import elementwise, operations  # noqa: F401 (which fill the table)

    differing = library.differing
    if differing is None or not differing:
        calls.load(library.path)
        IN_USE.update(NATIVE)
    if differing is None:
        differing = selftest.differing()
        build.remember(library, differing)
    if differing:
        IN_USE.clear()
        log.warning(
            "the native engine of portable arithmetic is not used: it gave other bits than were published in %d cases (%s)",
            len(differing), ", ".join(differing[:5]),
        )  # fmt: skip
        raise build.UnavailableError(f"{library.path} gave other bits than were published: {', '.join(differing[:5])}")
