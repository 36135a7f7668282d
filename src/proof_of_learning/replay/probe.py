"""What a task's networks put out on some samples: one step of the task's own, watched, and its result thrown away.

It needs nothing of the task but the step that it is trained by, whatever networks that step runs and in which order.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from proof_of_learning.data.commit import Dataset
from proof_of_learning.errors import TaskError
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.replay.coast import at_places, coast, of_session
from proof_of_learning.replay.protocol import Coasting, Glimpse, Head, Probe, Probed, Rest
from proof_of_learning.state.modules import tensors_in
from proof_of_learning.state.parts import optimizers
from proof_of_learning.state.state import State, restore
from proof_of_learning.task import task_code
from proof_of_learning.training.batches import Feed
from proof_of_learning.training.steps import Session

ROWS, COLUMNS = 64, 128  # of an output that are looked at
HEADS = 4  # outputs of a step: the last ones
CALLS = 64  # of a network, whose outputs are shown: the last ones
TRIES = 2  # times that an update is taken again which does more than others
NO_OUTPUT = (
    "the task's step shows no output of its networks: it should call its modules (`model(x)`, not a method of theirs)"
)


def probe(
    session: Session, data: Dataset, request: Probe, states: Sequence[State], pulse: Callable[[int, int], None]
) -> Probed:
    """Raises TaskError where the task's step cannot be taken on the samples, or shows no output."""
    key = randomness.key_from_seed(request.seed)
    indices = np.frombuffer(request.samples, dtype="<i8").copy()
    feed = Feed(session.task, data, key, session.device)
    standard = session.task.step is None and not request.gradients and request.coasting is None

    usual = Usual()

    def glimpse(state: State, gradients: bool) -> Glimpse:
        if not len(indices):
            return Glimpse([], 0.0)
        batches = feed.batches(0, indices)
        randomness.seed_everything(randomness.derive(key, randomness.STEP))
        return _glimpse(session, state, batches, request.seed, gradients, usual)

    def rested(state: State, coasting: Coasting, steps: int) -> Rest:
        session.restore(state)
        randomness.seed_everything(randomness.derive(key, randomness.STEP))
        try:
            coast(of_session(session, session.task.steps_per_epoch(len(data))), steps, coasting.until)
        except TaskError as error:
            return Rest(why=str(error))
        return Rest(at_places(session.model, coasting), glimpse(session.capture(), False).heads)

    glimpses = []
    for done, state in enumerate(states):
        pulse(done, len(states))
        # Of a standard loop the states may come without what its loss is not handed.
        restore({name: part for name, part in session.parts.items() if not standard or name in state.parts()}, state)
        seen = glimpse(state, request.gradients)
        if request.coasting is not None:
            seen = msgspec.structs.replace(seen, rest=rested(state, request.coasting, request.coasting.steps[done]))
        glimpses.append(seen)
    return Probed(glimpses)


def _steps(session: Session, state: State, batches: list[Any], seen: Seen, usual: Usual) -> float:
    """The loss of steps from one state over all batches: a step of the task's own looks at as many as it trains with."""
    each = session.task.accumulate if session.task.step is not None else len(batches)
    losses = []
    for start in range(0, len(batches), each):
        generators = RngSnapshot.take()
        for tries in range(TRIES + 1):
            if start or tries:
                session.restore(state)
                generators.restore()
            loss = float(session.take(session.progress.step, batches[start : start + each], False).loss)
            if not usual.passed_by(seen, tries):
                break
            seen.drop()
        losses.append(loss)
        seen.keep()
    return sum(losses) / len(losses)


def _glimpse(session: Session, state: State, batches: list[Any], seed: int, gradients: bool, usual: Usual) -> Glimpse:
    # A standard loop's loss is looked at as it is: it makes no calls but those it is made from.
    with watched(session.parts, gradients, amid=session.task.step is not None) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch on schedulers that are ahead of the optimizer
        if session.task.step is None and not gradients:
            assert session.task.loss is not None
            # With gradients at hand, for a loss may ask for some of its own.
            with torch.enable_grad(), task_code("evaluating its loss on the verifier's samples"):
                losses = [session.task.loss(session.model, batch).detach() for batch in batches]
                loss = float(torch.stack([value.reshape(()) for value in losses]).double().mean())
        else:
            loss = _steps(session, state, batches, seen, usual)
    labelled = any(integers(batch) for batch in batches)
    heads = [head(name, outputs, labelled, seed) for name, outputs in list(seen.outputs.items())[-HEADS:]]
    if not heads:
        raise TaskError(NO_OUTPUT)
    return Glimpse(heads, loss if math.isfinite(loss) else math.inf, seen.living(), seen.loose(), seen.waiting())


class _Call:
    """One call of a network. ``graded``: whether a loss could be differentiated through it; ``taught``: whether one is."""

    def __init__(self, name: str, outputs: list[Tensor], graded: bool) -> None:
        self.name, self.graded, self.taught, self.forgotten = name, graded, False, False
        self._outputs = [output.detach() for output in outputs]
        self._through: set[int] = set()

    def reached(self, place: int | None, gradient: Tensor | None) -> None:
        """A gradient came back to an output; None: to one that is a single number, a loss of the network's own."""
        if gradient is not None:  # of several outputs of one operation the others are told, too
            self.taught = True
            if place is not None:
                self._through.add(place)

    def forget(self) -> None:
        self.forgotten, self._outputs = True, []

    @property
    def shown(self) -> Tensor:
        return self._outputs[min(self._through, default=0)]


class Seen:
    """What the watched modules showed.

    ``amid``: the step may call its networks for other ends than to learn from what they say (it evaluates now and then). Of
    each update the calls before its last optimizer step count then, and of a network that is called with gradients, these alone
    (whether a loss uses them may depend on the state). Of those within an optimizer's step, which takes a closure as often as it
    likes, at weights of its own, the first. So what a state shows is the same function of the same samples, whatever the loop looks at
    besides.
    """

    def __init__(self, amid: bool) -> None:
        self.outputs: dict[str, list[Tensor]] = {}
        self._amid = amid
        self._calls: list[_Call] = []  # of the update under way
        self._before: int | None = None  # how many of them came before an optimizer stepped
        self._loose: dict[str, deque[_Call]] = {}  # since then, without a gradient
        self._reached: dict[tuple[str, int], Tensor] = {}
        self._kept: dict[tuple[str, int], Tensor] = {}  # as it was when the update began,
        self._spare: dict[tuple[str, int], Tensor] = {}  # of updates that are not looked at
        self._taught: dict[tuple[str, int], Tensor] = {}  # and when an optimizer stepped
        self._expected: dict[str, list[str]] = {}  # layers, and the optimizers that hold a parameter of theirs
        self._drove: set[str] = set()  # optimizers that stepped
        self._within: set[str] | None = None  # networks that were called in the optimizer's step under way

    def output(self, name: str, value: Any) -> None:
        tensors = [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]
        found = [tensor for tensor in tensors if tensor.ndim > 0]
        if not found:
            return
        call = _Call(name, found, any(tensor.requires_grad for tensor in tensors))
        if not self._amid:
            self._add(call)
            return
        if self._within is not None:
            if name in self._within:
                return
            self._within.add(name)
        self._calls.append(call)
        if not call.graded:  # of a long evaluation only the last are held
            loose = self._loose.setdefault(name, deque())
            loose.append(call)
            if len(loose) > CALLS:
                loose.popleft().forget()
        for tensor in tensors:
            if tensor.requires_grad:
                place = next((number for number, other in enumerate(found) if other is tensor), None)
                tensor.register_hook(partial(call.reached, place))  # type: ignore[no-untyped-call]

    def _add(self, call: _Call) -> None:
        kept = self.outputs.pop(call.name, [])  # the last call counts for the order
        self.outputs[call.name] = [*kept, call.shown][-CALLS:]

    def steps(self) -> None:
        """An optimizer begins its step."""
        self._within = set()

    def stepped(self, optimizer: str) -> None:
        self._before, self._loose, self._taught = len(self._calls), {}, dict(self._reached)
        self._within = None
        self._drove.add(optimizer)

    @property
    def _learned_from(self) -> list[_Call]:
        return self._calls[: self._before]

    @property
    def besides(self) -> bool:
        """Whether the update calls networks, before it steps, through which no loss is differentiated."""
        return not all(call.taught for call in self._learned_from)

    @property
    def calls(self) -> int:
        """Of networks, before the update steps."""
        return len(self._learned_from)

    def keep(self) -> None:
        """The update is over, and is looked at."""
        graded = {call.name for call in self._learned_from if call.graded}
        for call in self._learned_from:
            if (call.graded or call.name not in graded) and not call.forgotten:
                self._add(call)
        self._kept = self._reach_of
        self._next()

    def drop(self) -> None:
        """The update is over, and is not looked at, but for gradients at what no other one reaches."""
        self._spare |= self._reach_of
        self._next()

    @property
    def _reach_of(self) -> dict[tuple[str, int], Tensor]:
        return dict(self._reached) if self._before is None else self._taught

    def _next(self) -> None:
        self._calls, self._before, self._loose, self._reached = [], None, {}, dict(self._kept)
        self._within = None

    def told(self) -> dict[str, Any]:
        """What was seen so far, for another process to go on from."""
        return {
            "outputs": [[name, outputs] for name, outputs in self.outputs.items()],
            "kept": [[name, place, reached] for (name, place), reached in self._kept.items()],
            "spare": [[name, place, reached] for (name, place), reached in self._spare.items()],
            "expected": [[name, held] for name, held in self._expected.items()],
            "drove": sorted(self._drove),
        }

    def go_on(self, told: Mapping[str, Any]) -> None:
        """The inverse of :meth:`told`."""
        self.outputs = {name: list(outputs) for name, outputs in told["outputs"]}
        self._kept, self._spare = (
            {(name, place): reached for name, place, reached in told[which]} for which in ("kept", "spare")
        )
        self._expected, self._drove = dict(told["expected"]), set(told["drove"])
        self._reached = dict(self._kept)

    def follow(self, name: str, value: Any, held: list[str]) -> None:
        """Look at the gradient that comes back to an output, or to any of several (of an LSTM, often the last state alone is used)."""
        for place, tensor in enumerate(tensors_in(value)):
            if tensor.requires_grad and tensor.ndim > 1:
                self._expected[name] = held
                tensor.register_hook(partial(self._reach, (name, place)))  # type: ignore[no-untyped-call]

    def _reach(self, name: tuple[str, int], gradient: Tensor | None) -> None:
        if gradient is None:
            return
        alive = (gradient != 0).cpu().numpy()  # NumPy asks "any" twice as fast
        reached = torch.from_numpy((alive if alive.ndim == 4 else alive.reshape(-1, alive.shape[-1])).any(axis=0))
        before = self._reached.get(name)
        fits = before is not None and before.shape == reached.shape
        self._reached[name] = (before | reached) if fits and before is not None else reached

    def living(self) -> dict[str, float]:
        """By module, the share of its units that a gradient came back to: of its outputs, the one with the most."""
        shares = dict.fromkeys(sorted(self._expected), 0.0)
        for (name, _), reached in (self._spare | self._reached).items():
            shares[name] = max(shares[name], float(reached.double().mean()))
        return shares

    def loose(self) -> list[str]:
        """The modules that no optimizer holds a parameter of."""
        return sorted(name for name, held in self._expected.items() if not held)

    def waiting(self) -> list[str]:
        """The modules whose optimizers took no step, while another one did."""
        driven = sorted(name for name, held in self._expected.items() if held and not self._drove & set(held))
        return driven if self._drove else []


class Usual:
    """How often an update calls its networks that does nothing besides, as far as was seen."""

    def __init__(self) -> None:
        self.calls: int | None = None

    def passed_by(self, seen: Seen, tries: int) -> bool:
        """Whether an update is to be taken again: its step called networks for something else, too, before an optimizer stepped.

        What is evaluated now and then, by a count of the step's own, moves the generators that what it learns from draws from.
        ``tries``: how often it was taken again already.
        """
        first = self.calls is None and seen.besides  # nobody knows yet whether it always does so
        more = self.calls is not None and seen.calls > self.calls
        self.calls = seen.calls if self.calls is None else min(self.calls, seen.calls)
        return (first or more) and tries < TRIES


@contextmanager
def watched(parts: Mapping[str, Any], gradients: bool, amid: bool) -> Iterator[Seen]:
    """Watch the modules among the parts: outputs of those that no other calls, gradients at those with parameters of their own."""
    names = {
        id(module): f"{part}.{path}" if path else part
        for part, root in parts.items()
        if isinstance(root, nn.Module)
        for path, module in root.named_modules()
    }
    own = {id(optimizer): (name, optimizer) for name, optimizer in optimizers(parts).items()}
    seen, depth, held = Seen(amid), [0], dict[int, set[str]]()

    def before(module: nn.Module, given: Any) -> None:
        if gradients and depth[0] == 0:
            held.clear()
            for part, optimizer in own.values():
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        held.setdefault(id(parameter), set()).add(part)
        depth[0] += id(module) in names

    def after(module: nn.Module, given: Any, output: Any) -> None:
        name = names.get(id(module))
        if name is None:
            return
        depth[0] -= 1
        if depth[0] == 0:
            seen.output(name, output)
        trained = [p for p in module.parameters(recurse=False) if p.requires_grad] if gradients else []
        if trained:
            seen.follow(name, output, sorted(set().union(*(held.get(id(p), ()) for p in trained))))

    handles = [
        hooks.register_module_forward_pre_hook(before),
        hooks.register_module_forward_hook(after, always_call=True),
        register_optimizer_step_pre_hook(lambda steps, *_: seen.steps() if id(steps) in own else None),
        # Behind it, for a step may take a closure that calls the networks.
        register_optimizer_step_post_hook(
            lambda stepped, *_: seen.stepped(own[id(stepped)][0]) if id(stepped) in own else None
        ),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def head(name: str, outputs: list[Tensor], labelled: bool, seed: int) -> Head:
    """One output, of all calls one below the other, cut down to what follows from the seed."""
    tables = [output.double().reshape(-1, output.shape[-1] if output.ndim > 1 else 1).cpu() for output in outputs]
    table = torch.cat([part for part in tables if part.shape[1] == tables[-1].shape[1]])
    key = randomness.key_from_seed(seed)
    if len(table) > ROWS:
        rows = np.sort(randomness.permutation(randomness.derive(key, "rows"), len(table))[:ROWS])
        table = table[torch.from_numpy(rows)]
    scores = labelled and outputs[-1].ndim in (2, 3) and table.shape[1] > 1
    if scores:
        table = table.softmax(dim=1)
    if table.shape[1] > COLUMNS:
        columns = randomness.permutation(randomness.derive(key, "columns"), table.shape[1])
        if scores:  # classes are thrown together, so that what is left is a distribution
            buckets = torch.from_numpy(columns % COLUMNS)
            table = torch.zeros(len(table), COLUMNS, dtype=torch.float64).index_add_(1, buckets, table)
        else:
            table = table[:, torch.from_numpy(np.sort(columns[:COLUMNS]))]
    values = table.numpy().astype("<f4")
    return Head(name, len(table), values.tobytes(), scores)


def integers(batch: Any) -> bool:
    """Whether a batch holds labels or tokens."""
    return any(not tensor.is_floating_point() and tensor.dtype != torch.bool for tensor in tensors_in(batch))
