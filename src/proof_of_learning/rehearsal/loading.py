"""What a fresh process builds before any step: the task's description and its initial state, held against the run's."""

from __future__ import annotations

from typing import Any

from proof_of_learning import canonical
from proof_of_learning.errors import WorkerError
from proof_of_learning.proof.format import Header
from proof_of_learning.rehearsal.causes import SORT_CURE, Finding
from proof_of_learning.rehearsal.hops import Player, other_key
from proof_of_learning.replay import protocol
from proof_of_learning.state.state import State
from proof_of_learning.task import compare

ALIKE = "weights start alike whatever the run's key is, so that a verifier takes them for pretrained"


def check_described(player: Player, header: Header) -> Finding | None:
    """Whether a fresh process builds the task that is trained."""
    described, _ = player.ask(protocol.Describe())
    if not isinstance(described, protocol.Described):
        raise WorkerError("the replay worker answered something else than it was asked")
    training = header.training
    if described.digest != header.task.digest:
        theirs: Any = canonical.decode(described.description, dict[str, Any], "the task's description")
        lines = compare(theirs, header.task.description)
        where = (lines or [""])[0].replace("the task has", "there it has").replace("the proof has", "here it has")
        cause = "the task depends on the order of a set or of hashes, on a global that was changed, or on a variable"
        return Finding(
            "the task is another in a fresh process", where, cause, f"{SORT_CURE}; hand settings to the task's function"
        )
    if (described.steps, described.steps_per_epoch) != (training.at_most, training.steps_per_epoch):
        return Finding(
            "the task has another length in a fresh process",
            f"there {described.steps:,} steps, {described.steps_per_epoch:,} an epoch; here {training.at_most:,}, "
            f"{training.steps_per_epoch:,} an epoch",
            "the number of samples differs, or the task was changed after it was loaded",
            "let the function that the reference names return the task as it is trained",
        )
    return None


def check_start(player: Player, initial: State, script: bool = False) -> tuple[Finding | None, Finding | None]:
    """Whether the initial state follows from the run's key in a fresh process; and what of it follows from no key. ``script``: it is a
    script's, whose own seeds are mapped.
    """
    started, states = player.ask(protocol.Start(other_key()))
    if not isinstance(started, protocol.Started) or len(states) != 2:
        raise WorkerError("the replay worker answered something else than it was asked")
    if states[0].digest() == initial.digest():
        return None, _keyless(started, script)
    theirs = states[0]
    differ = [
        name
        for name in initial.tensors
        if name not in theirs.tensors or theirs.tensor_digest(name) != initial.tensor_digest(name)
    ]
    found = Finding(
        "the initial state is another in a fresh process",
        f"{len(differ)} of {len(initial.tensors)} tensors: {', '.join(differ[:3])}",
        "the script draws from what no key reaches (the clock, os.urandom), or in the order of a set"
        if script
        else "a factory of the task draws from a generator of its own without a seed, or in the order of a set, or keeps what it drew "
        "before",
        f"draw from PyTorch's, NumPy's or Python's ordinary generators, which are seeded from the run's key; {SORT_CURE}",
    )
    return found, None


def _keyless(started: protocol.Started, script: bool) -> Finding | None:
    """Weights that are the same under every key, which a verifier takes for pretrained."""
    names = [
        t.name
        for t in started.tensors
        if t.origin in ("fixed", "partly-fixed", "rearranged") and t.floating and t.trainable
    ]
    if not names:
        return None
    if script:
        return Finding(
            ALIKE, _some(names, len(started.tensors)),
            "a start without randomness (an identity), weights that are loaded, or draws that no key reaches (a PCG64(5) of its own)",
            "name the file of loaded weights, pol.Run(pretrained=…); where the start is meant so, have the verifier approve it "
            f"(--approve-fixed '{names[0]}')",
        )  # fmt: skip
    return Finding(
        ALIKE,
        _some(names, len(started.tensors)),
        "a seed that the `model` factory sets (torch.manual_seed), a start without randomness (an identity, the `original` of an "
        "orthogonal parametrization), or weights that it loads",
        "leave the seed out, for the run's key seeds the factory; where the start is meant so, have the verifier approve it "
        f"(--approve-fixed '{names[0]}'); loaded weights need a proof of their own (--start-from)",
    )


def _some(names: list[str], everything: int) -> str:
    return f"{len(names)} of {everything} tensors: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
