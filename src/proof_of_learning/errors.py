"""One error class per cause.

Every message says what was expected, what was found and what to do. ``exit_status`` is what the
command line ends with (README, "Exit status").
"""

from __future__ import annotations


class PolError(Exception):
    """Base of everything this package raises on purpose."""

    exit_status = 2


class UsageError(PolError):
    """The call itself cannot be carried out: an option, a path or a combination is wrong."""


class TaskError(PolError):
    """The task could not be loaded, or its own code raised, hung or returned something unusable."""


class TrainingError(PolError):
    """Training reached a state of which no valid proof can exist (not finite, say)."""


class DataError(PolError):
    """The data set cannot be read, is not deterministic, or is not the one that was named."""


class BusyError(PolError):
    """Another process is recording into the same directory."""


class RecordingError(PolError):
    """The proof could not be written or resumed (disk full, directory of another run)."""


class FormatError(PolError):
    """The input is not a proof that can be read: missing, truncated, oversized or malformed."""


class UnreadableError(FormatError):
    """A file of the input cannot be read just now (no memory, a failing disk), which says nothing about what it holds."""


class MissingStateError(PolError):
    """A state that is needed is not in the proof (dropped, or never handed out), which says nothing about what it held."""


class IntegrityError(PolError):
    """The proof reads, but contradicts itself: a digest, a link of the chain or the root does not fit."""

    exit_status = 1


class AuthorityError(PolError):
    """A timestamp authority does not answer, or not as it has to."""


class DivergedError(PolError):
    """Training, repeated from an earlier state, arrives at another state than the one whose digest was recorded."""

    exit_status = 1


class NumericEnvironmentError(PolError):
    """The numeric environment that was asked for cannot be set up in this process."""


class WorkerError(PolError):
    """The replay worker died, hung, or answered something that is not in its protocol."""


class StrayedError(WorkerError):
    """In a replay, a script's loop takes another way than was recorded."""


class AttackError(PolError):
    """An attack cannot be mounted on this target (missing states, other architecture)."""


class StoreWarning(RuntimeWarning):
    """What is recorded cannot be copied to its store just now; recording goes on."""


class EvaluationWarning(RuntimeWarning):
    """The task's evaluation failed after training began; the recording goes on without a claim of what the model achieves."""


class RecordingWarning(RuntimeWarning):
    """Whoever records should know: a loop does what trains or seals nothing, or a verifier will have to approve a start."""


class RehearsalWarning(RuntimeWarning):
    """A stretch could not be replayed beside the training for reasons that say nothing of it; the recording goes on."""
