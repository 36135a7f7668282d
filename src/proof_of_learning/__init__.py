"""Proof-of-Learning for PyTorch: prove that a model was trained the way its owner says, and check it cheaply.

>>> import proof_of_learning as pol
>>> recording = pol.prove("examples/digits.py:task", "run.pol")
>>> verdict = pol.verify("run.pol", "examples/digits.py:task")
>>> verdict.verdict
'valid'

Names are imported on first use, so that the command line can pin the numeric environment before torch loads.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from proof_of_learning._version import __version__

if TYPE_CHECKING:
    from proof_of_learning import attacks, errors
    from proof_of_learning.calibration import calibrate
    from proof_of_learning.disputes.dispute import dispute
    from proof_of_learning.disputes.table import Dispute
    from proof_of_learning.errors import PolError
    from proof_of_learning.exporting import export
    from proof_of_learning.proof.pack import pack, unpack
    from proof_of_learning.proof.reader import Proof
    from proof_of_learning.prover import Recording, prove, register
    from proof_of_learning.recording.recorder import Indexed, Recorder
    from proof_of_learning.recording.stamping import Stamping
    from proof_of_learning.run.clock import Run
    from proof_of_learning.signing import recover, sign, timestamp
    from proof_of_learning.state.state import State
    from proof_of_learning.task import Task, TaskReference, load_task, sealed_program
    from proof_of_learning.thinning import regenerate, thin
    from proof_of_learning.training.context import StepContext
    from proof_of_learning.verifier.verdict import CheckResult, Verdict
    from proof_of_learning.verifier.verify import check, verify

logging.getLogger(__name__).addHandler(
    logging.NullHandler()
)  # who uses the library decides what becomes of its messages

_HOMES = {
    "CheckResult": "verifier.verdict",
    "Dispute": "disputes.table",
    "Indexed": "recording.recorder",
    "PolError": "errors",
    "Proof": "proof.reader",
    "Recorder": "recording.recorder",
    "Run": "run.clock",
    "Recording": "prover",
    "Stamping": "recording.stamping",
    "State": "state.state",
    "StepContext": "training.context",
    "Task": "task",
    "TaskReference": "task",
    "Verdict": "verifier.verdict",
    "calibrate": "calibration",
    "check": "verifier.verify",
    "dispute": "disputes.dispute",
    "export": "exporting",
    "load_task": "task",
    "pack": "proof.pack",
    "prove": "prover",
    "recover": "signing",
    "regenerate": "thinning",
    "register": "prover",
    "sealed_program": "task",
    "sign": "signing",
    "standby": "replay.standby",
    "thin": "thinning",
    "timestamp": "signing",
    "unpack": "proof.pack",
    "verify": "verifier.verify",
}
_MODULES = {"attacks", "errors", "report"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*_HOMES, *_MODULES, "__version__"})


__all__ = [
    "CheckResult", "Dispute", "Indexed", "PolError", "Proof", "Recorder", "Recording", "Run", "Stamping", "State", "StepContext",
    "Task", "TaskReference", "Verdict", "__version__", "attacks", "calibrate", "check", "dispute", "errors", "export", "load_task",
    "pack", "prove", "recover", "regenerate", "register", "sealed_program", "sign", "standby", "thin", "timestamp", "unpack", "verify",
]  # fmt: skip
