"""From what was found to a name: what differs, where, the likely cause, and the change to make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from proof_of_learning.canonical import brief
from proof_of_learning.rehearsal.holdings import Change
from proof_of_learning.rehearsal.hops import Evidence

MAX_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """Something that a replay would trip over.

    what: what was seen. where: the place in the run or in the task. cause: why, as far as can be told. cure: what to change.
    """

    what: str
    where: str
    cause: str
    cure: str

    def line(self) -> str:
        """All of it in one line."""
        where = f" ({self.where})" if self.where else ""
        cause = f"; likely cause: {self.cause}" if self.cause else ""
        return (
            f"{self.what}{where}{cause}. {self.cure[:1].upper()}{self.cure[1:]}"
            if self.cure
            else f"{self.what}{where}{cause}"
        )

    def fields(self) -> dict[str, str]:
        return asdict(self)


GENERATOR_CURE = (
    "draw from PyTorch's, NumPy's or Python's ordinary generators, which are seeded for each step (in `augment`: from the generator "
    "that is handed in), or register its state as a buffer"
)
HOLDING_CURES = {
    "model": "register it as a buffer of its module (self.register_buffer; numbers as tensors), which is recorded, or let each step "
    "begin anew",
    "optimizer": "keep it in the optimizer's own `state`, or give the wrapper a state_dict() and a load_state_dict() that hold it, as "
    "a part of the task's `parts`",
    "scheduler": "give it back in the scheduler's state_dict(), or compute it from the step",
    "task": "let the task's `parts` return it (an object with state_dict() and load_state_dict(), or a module), so that it is "
    "recorded, or compute it from the step",
}


@dataclass(frozen=True)
class Cures:
    """What helps, by who holds what is not recorded. ``unseen``: cause and cure where nothing was found that holds it."""

    generator: str
    holdings: Mapping[str, str]
    unseen: tuple[str, str]


UNSTABLE = (
    "two replays of it in one process differ from each other: something draws from a source without a seed (default_rng(), secrets, a "
    "clock), or an operation is not deterministic",
    "seed it from PyTorch's, NumPy's or Python's ordinary generators, which are seeded for each step; for an operation, "
    "torch.use_deterministic_algorithms(True) names it",
)
UNSEEN = (
    "something that training changes lies where it cannot be seen: in a file, in an extension module, in another process",
    "keep everything that the next step depends on in the model's buffers, an optimizer's state, or a part with state_dict() that the "
    "task's `parts` returns",
)
TASK = Cures(GENERATOR_CURE, HOLDING_CURES, UNSEEN)
SCRIPT_CURE = (
    "hand it to pol.Run as a part, pol.Run(NAME=NAME, …), an object with state_dict() and load_state_dict() that hold it, or compute "
    "it from what is recorded"
)
SCRIPT = Cures(
    "draw from PyTorch's, NumPy's or Python's ordinary generators, which are recorded for each step, or hand it to pol.Run as a part, "
    "in an object whose state_dict() and load_state_dict() hold its state",
    {
        **HOLDING_CURES,
        "optimizer": "keep it in the optimizer's own `state`, or give the wrapper a state_dict() and a load_state_dict() that hold it",
        "task": SCRIPT_CURE,
    },
    (
        UNSEEN[0],
        "keep everything that the next step depends on in the model's buffers, an optimizer's state, or a part of pol.Run with "
        "state_dict() and load_state_dict()",
    ),
)
LOOP_FORWARD = (
    "the loop does something else than the task's own step: another loss, another mode, batches that it changes"
)
LOOP_UPDATE = (
    "the loop does something else than the task's own step: clipping, accumulation, rates, or updates in another order"
)
LOOP_CURE = "let the task's loss, clip_norm, accumulate, optimizer and scheduler say what the loop does"
SORT_CURE = "sort what comes from a set or a dict of hashes (sorted(set(…))) wherever its order decides anything"


HASHED = (
    "two fresh processes differ: it depends on the order of a set or of hashes, or on numbers that were drawn without a seed when the "
    "task was loaded",
    f"{SORT_CURE}, and draw nothing outside the task's factories",
)


def explain(
    evidence: Evidence,
    changes: Sequence[Change],
    rewritten: int | None = None,
    module: str | None = None,
    *,
    apart: bool = True,
    loop: bool = False,
    cures: Cures = TASK,
) -> list[Finding]:
    """Name a difference: what may have caused it, the likeliest first.

    changes: what the task's objects hold beside the recorded state and what has changed while training (see :mod:`holdings`).
    rewritten: a sample of the live data set that is not what it was when training began.
    module: the first one whose outputs differ, where that was found out.
    apart: whether replays ran in another process, each in a child of its own. Elsewhere what functions hold passes from one to the
        next, so that two may differ although nothing is drawn.
    loop: whether a loop of the user's own was recorded, which the task only describes.
    cures: what helps.
    """
    found = evidence.difference
    what = f"a replay of steps {found.start} to {found.stop} from their recorded state alone arrives elsewhere"
    if found.refused:
        what = f"the state before step {found.start} cannot be replayed from: {found.refused}"
    where = _where(evidence, module)
    named: list[tuple[str, str]] = []
    if rewritten is not None:
        named.append(in_place(rewritten))
    if evidence.data_differ:
        named.append(data_by_process())
    if evidence.unstable and (apart or not changes):
        named.append(UNSTABLE)
    generators = [change.place for change in changes if change.kind == "generator"]
    if generators:
        named.append((f"{_listed(generators)} is a private generator, which no state holds", cures.generator))
    for kind in ("model", "optimizer", "scheduler", "task"):
        held = [change for change in changes if change.kind != "generator" and _owner(change) == kind]
        if held:
            named.append((f"{_changed(held)} changed while training, and no state holds it", cures.holdings[kind]))
    if not named and evidence.hashed:
        named.append(HASHED)
    if not named:
        named.append((LOOP_FORWARD if found.forward else LOOP_UPDATE, LOOP_CURE) if loop else cures.unseen)
    return [Finding(what, where, *pair) for pair in named]


def in_place(sample: int) -> tuple[str, str]:
    """Cause and cure of data that training changes."""
    return (
        f"the data set is changed in place while training (sample {sample} is not what it was)",
        "write into a copy (`augment` on sample.clone(), a loss without operations that end in an underscore on its batch)",
    )


def data_by_process() -> tuple[str, str]:
    """Cause and cure of data that depend on the process that loads them."""
    return (
        "another process finds other data: a vocabulary or a list of classes from a set() (its order follows the hash seed), files in "
        "the order of a folder, a split without a seed",
        "sort what comes from a set or a folder (sorted(…)), and seed what draws in the task's `data`",
    )


def _where(evidence: Evidence, module: str | None) -> str:
    found = evidence.difference
    if found.refused:
        return ""
    if module:
        place = f"first in the output of {module} at step {found.step}"
    elif found.forward:
        place = f"first in the loss of step {found.step}"
    else:
        place = f"first after the update of step {found.step}, whose loss agrees"
    if not found.tensors:
        return place
    return f"{place}; {len(found.tensors)} of {found.everything} tensors differ: {_listed([brief(n) for n in found.tensors])}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _changed(changes: Sequence[Change]) -> str:
    return _listed([f"{change.place} ({change.how})" if change.how else change.place for change in changes])


def _owner(change: Change) -> str:
    """What the changed thing is part of: the model, an optimizer, a scheduler, or something else of the task's."""
    kinds = (("of the model", "model"), ("part 'optimizer", "optimizer"), ("part 'scheduler", "scheduler"))
    return next((kind for words, kind in kinds if words in change.place), "task")
