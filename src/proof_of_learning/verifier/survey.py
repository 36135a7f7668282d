"""One pass over all states and blocks of a proof: digests checked, displacements recomputed, nothing replayed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError, IntegrityError, PolError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.held import Weights, alike
from proof_of_learning.replay.measure import Distance, estimate_d_ref
from proof_of_learning.replay.process import OnWork, idle
from proof_of_learning.replay.protocol import Described
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.state.layout import Layout
from proof_of_learning.state.state import State, decode_tree
from proof_of_learning.verifier.abreast import abreast
from proof_of_learning.verifier.dynamics import (
    identity,
    idle_segments,
    idle_share,
    idle_tensors,
    miscounted,
    rates_by_part,
    scaler_consistent,
)
from proof_of_learning.verifier.dynamics import moved as changed
from proof_of_learning.verifier.function import Function, Prober, look
from proof_of_learning.verifier.progress import Measure, weight_measures
from proof_of_learning.verifier.readings import Reader
from proof_of_learning.verifier.rest import Resting, unruled
from proof_of_learning.verifier.sampling import Sampler, Trained, families
from proof_of_learning.verifier.scalars import Scalars

Array = npt.NDArray[np.float64]
LOSS_POINTS = 1000
JUMPS = 2  # of the loss, whose neighbours are replayed
# A claimed displacement is a sum in floating point, whose last digits depend on the machine's order of adding.
CLAIM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Survey:
    """Per segment: ``displacement`` of the full state, of the ``weights``, ``inertia`` at its start, ``progress`` made (fall of the
    squared distance to the final weights, for the plots), whether it is ``trivial`` (every rate 0), the share of the trained
    parameters that decay and momentum alone moved (``idle``), and how far it is from its optimizer's ``identity``; per step
    boundary (one more): ``distance`` of the weights from the start, and the ``settings`` that the state holds beside trained values.
    ``missing`` counts states whose bytes the proof no longer holds; then what needs them is not a number (None).
    ``measures``: the kinds of progress that draws are weighted by; ``restless``: why it is not known where states come to rest whose
    optimizer follows no rule that is known here, so that nothing is guaranteed over weights; ``function``: what was seen of the
    states' functions, or None with the reason in ``blind``. ``irregular``: segments whose rates, counters or scaler cannot follow from
    their start, with the reason; ``relaid``: segments that end in other tensors than they start from, by name, type or shape.
    ``scalars``: the history of the numbers that no distance measures. ``unreplayed``: what the proof says happened beside its steps,
    in whichever segment, so that nothing of it follows from a replay. ``twins``: generators that draw the same in two of several
    processes, with the first state (by position) in which they do; ``stuck``: the same of those that draw no random numbers.
    """

    displacement: Array
    weights: Array
    inertia: Array
    progress: Array
    trivial: npt.NDArray[np.bool_]
    idle: Array
    identity: Array
    distance: Array
    settings: list[bytes | None]
    loss: list[tuple[int, float]]
    jumps: list[int]
    irregular: dict[int, str]
    relaid: list[int]
    measures: list[Measure]
    restless: str
    function: Function | None
    blind: str
    missing: int
    parameters: int
    bytes: int
    final_model: str | None
    d_ref: Distance | None
    scalars: Scalars = field(default_factory=Scalars)
    unreplayed: str = ""
    twins: dict[str, int] = field(default_factory=dict)
    stuck: dict[str, int] = field(default_factory=dict)

    def progress_share(self) -> list[float]:
        """The share of the squared distance from start to end that is covered at each segment's end."""
        total = float(np.nansum(self.progress))
        return [] if not total else (np.cumsum(np.nan_to_num(self.progress)) / total).tolist()


@dataclass(frozen=True)
class Looking:
    """What is needed to look beyond single states: who evaluates them, the task's description, and the seed of all that is drawn.

    ``other``: makes the initial state under a key that nobody could know; several, by number.
    """

    replayer: Replayer
    described: Described
    seed: int
    other: Callable[[int], State | None] = lambda number: None


def survey(
    proof: Proof,
    looking: Looking | None = None,
    on_segment: OnWork = idle,
    on_look: OnWork = idle,
    *,
    processes: int = 1,
) -> Survey:
    """Check every state and block and measure the trajectory. Raises FormatError or IntegrityError at the first fault.

    processes: how many read states at once; what they find does not depend on it.
    on_segment, on_look: told how many states were read, and of how many the outputs were looked at, of how many.

    In one thread each: sums come out alike everywhere.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _survey(proof, looking, on_segment, on_look, processes)
    finally:
        torch.set_num_threads(threads)


def _survey(proof: Proof, looking: Looking | None, on_segment: OnWork, on_look: OnWork, processes: int) -> Survey:
    count = len(proof.segments)
    moved, moved_weights, progress = (np.full(count, np.nan) for _ in range(3))
    inert, distance = np.full(count, np.nan), np.full(count + 1, np.nan)
    steps = _columns(proof)
    by_part = None if looking is None else rates_by_part(steps.rates, looking.described.optimizers)
    peaks = _peaks(steps.rates, by_part)
    rules = {} if looking is None else families(looking.described)
    bounds = np.array([0, *(segment.stop for segment in proof.segments)], dtype=np.int64)
    digests = proof.state_digests()
    missing = sum(not proof.has_state(digest) for digest in digests)
    final = proof.state(digests[-1]) if proof.has_state(digests[-1]) else None
    final_model = None if final is None else final.part("model").digest()
    target = None if final is None else Weights.of(final)
    parameters = 0 if target is None else sum(t.numel() for t in target.tensors.values())
    prober, blind = (
        None,
        "no task was named" if looking is None else "the first or the last state is missing from the proof",
    )
    sampler = None if looking is None or missing else Sampler(count + 1, looking.seed)
    strange = [] if sampler is None or looking is None else unruled(looking.described.members, rules, by_part)
    resting = Resting(sampler, strange, bounds) if sampler is not None and strange else None
    first = proof.state(digests[0]) if proof.has_state(digests[0]) else None
    if looking is not None and final is not None and first is not None:
        prober, blind = look(proof, looking.replayer, looking.described, looking.seed, first, final, resting, on_look)
    del final  # of the final state only the weights are needed from here on
    origin = Weights.of(first) if first is not None else None
    if first is not None and sampler is not None:
        sampler.begin(first)
    reader = Reader(proof, digests, origin, target, peaks, sampler, frozenset() if prober is None else prober.wanted)
    readings = itertools.chain([reader.measured(0, first, None)], abreast(reader, first, processes))
    del first
    to_go = math.nan
    held: list[bytes | None] = []
    scalers: list[Any] = []
    relaid: list[int] = []
    layout: Layout | None = None
    scalars = Scalars()
    twins: dict[str, int] = {}
    stuck: dict[str, int] = {}
    for read in readings:
        position, state = read.position, read.state
        for name in read.twins:
            twins.setdefault(name, position)
        for name in read.stuck:
            stuck.setdefault(name, position)
        held.append(read.settings)
        scalers.append(None if state is None else _scaler(state))
        scalars.add(position, state, _steps(proof, position))
        if state is not None and read.layout is not None:
            if position and (layout is None or not read.layout.alike(layout)):
                relaid.append(position - 1)
            layout = read.layout
            distance[position], inert[position : position + 1] = read.distance, read.inertia
            left = read.left**2
            if read.moved is not None:
                claim, found = proof.segments[position - 1].displacement, read.moved
                if not (_close(claim.state, found.state) and _close(claim.weights, found.weights)):
                    raise IntegrityError(
                        f"segment {position - 1} claims a displacement of {claim.state:.6g} (weights {claim.weights:.6g}); "
                        f"its states are {found.state:.6g} ({found.weights:.6g}) apart"
                    )
                moved[position - 1], moved_weights[position - 1] = found.state, found.weights
                progress[position - 1] = to_go - left
            to_go = left
            if sampler is not None and read.picked is not None:
                sampler.put(position, read.layout, read.picked, state)
            if prober is not None:
                prober, blind = _looked(prober, position, state)
        on_segment(position, count)
    stored = sum(item.bytes for item in proof.index.values())
    d_ref = None if origin is None or target is None else _d_ref(origin.tensors, target.tensors)
    trained = (
        {} if sampler is None or looking is None else sampler.trained(looking.described.members, rules, by_part, bounds)
    )
    function = None
    if prober is not None and looking is not None:
        try:
            function = prober.finish(looking.other)
        except PolError as error:
            blind = str(error)
    measures = weight_measures(trained, sampler.memory() if sampler is not None else ())
    if function is not None and not missing:
        measures += function.measures(count)
    restless = ""
    if resting is not None:
        measures += resting.measures(trained, count)
        restless = resting.why or ("" if function is not None else blind)
    odd = [] if sampler is None else sampler.odd(by_part, bounds)
    exact = not proof.header.codec.in_loop  # what a codec makes of a state follows no optimizer's equation
    off = _identity(trained, count) if exact else np.full(count, np.nan)
    irregular = _irregular(proof, trained, scalers, odd)
    return Survey(
        displacement=moved, weights=moved_weights, inertia=inert, progress=progress, trivial=steps.trivial,
        idle=_idle(trained, resting, count), identity=off, distance=distance, settings=held, loss=steps.loss, jumps=steps.jumps,
        irregular=irregular, relaid=relaid, measures=measures, restless=restless, function=function,
        blind="" if function is not None else blind, missing=missing, parameters=parameters, bytes=stored,
        final_model=final_model, d_ref=d_ref, scalars=scalars, unreplayed=steps.unreplayed,
        twins=twins, stuck=stuck,
    )  # fmt: skip


def _d_ref(origin: dict[str, Tensor], target: dict[str, Tensor]) -> Distance | None:
    return estimate_d_ref(origin, target) if origin and alike(origin, target) else None


def _looked(prober: Prober, position: int, state: State) -> tuple[Prober | None, str]:
    try:
        prober.add(position, state)
    except PolError as error:
        return None, str(error)
    return prober, ""


def _idle(trained: dict[str, Trained], resting: Resting | None, count: int) -> Array:
    """[N] the share of the trained parameters that decay and momentum alone moved; not a number where that cannot be said.

    Where an optimizer follows no rule that is known here, of the segments that were looked at alone.
    """
    idle = {name: idle_segments(item.course) for name, item in trained.items() if item.course.rule is not None}
    if resting is not None:
        looked = resting.idle(trained)
        there = np.zeros(count, dtype=bool) if not looked else np.any([~np.isnan(v) for v in looked.values()], axis=0)
        idle = {name: np.where(there, shares, np.nan) for name, shares in idle.items()} | looked
    judged = idle_tensors(
        idle,
        {name: trained[name].part for name in idle},
        {name: changed(trained[name].course) for name in idle},
    )
    return idle_share(judged, {name: trained[name].elements for name in judged}) if judged else np.full(count, np.nan)


def _identity(trained: dict[str, Trained], count: int) -> Array:
    """[N] the largest deviation from the optimizers' own equations, in units of rounding; not a number where nothing can be said."""
    worst = np.full(count, np.nan)
    for item in trained.values():
        worst = np.fmax(worst, identity(item.course))
    return worst


def _irregular(proof: Proof, trained: dict[str, Trained], scalers: list[Any], odd: list[int]) -> dict[int, str]:
    found = dict.fromkeys(odd, "the recorded learning rate is not the one that the segment's start holds")
    for item in trained.values():
        if item.course.rule is not None:
            for index in np.flatnonzero(miscounted(item.course)).tolist():
                found.setdefault(index, "the optimizer's counter does not grow by the segment's steps")
            for index in np.flatnonzero(~item.course.rule.sound[1:]).tolist():
                found.setdefault(index, "the optimizer's settings at its end are no numbers")
    for segment in proof.segments:
        before, after = scalers[segment.index], scalers[segment.index + 1]
        if isinstance(before, dict) and isinstance(after, dict):
            why = scaler_consistent(before, after, segment.stop - segment.start)
            if why is not None:
                found[segment.index] = why
    return found


def _scaler(state: State) -> Any:
    """What a gradient scaler holds; None where there is none."""
    for key, node in state.tree["d"]:
        if key == "s:scaler":
            try:
                return decode_tree(node, state.tensors)
            except FormatError:
                return None
    return None


def _peaks(rates: Array, by_part: dict[str, Array] | None) -> dict[str, list[float]] | list[float]:
    """The largest rate of each group, by the optimizer's part where the task says which is whose."""
    tables = {"": rates} if by_part is None else by_part
    peaks = {part: np.abs(table).max(axis=0).tolist() if table.size else [] for part, table in tables.items()}
    return peaks[""] if by_part is None else peaks


def _steps(proof: Proof, position: int) -> int:
    """The steps of the segment that ends at a position; 0 for the first state."""
    return proof.segments[position - 1].stop - proof.segments[position - 1].start if position else 0


@dataclass(frozen=True)
class _Steps:
    """What the blocks say: rates [steps, groups], which segments are trivial, a sampled loss curve, where the loss jumps most, and
    what happened beside the steps.
    """

    rates: Array
    trivial: npt.NDArray[np.bool_]
    loss: list[tuple[int, float]]
    jumps: list[int]
    unreplayed: str


def _columns(proof: Proof) -> _Steps:
    """Every block, once."""
    trivial = np.zeros(len(proof.segments), dtype=bool)
    every = max(1, proof.steps // LOSS_POINTS)
    loss: list[tuple[int, float]] = []
    rates: list[Array] = []
    means: list[float] = []
    told = [f"a {line.event.__struct_config__.tag} during step {line.step:,}" for line in proof.events[:1]]
    for segment, columns in zip(proof.segments, proof.all_columns(), strict=True):
        what = f"the block of segment {segment.index}"
        if not (np.isfinite(columns.loss).all() and np.isfinite(columns.rates).all()):
            raise IntegrityError(f"{what} holds losses or learning rates that are not finite")
        if rates and columns.rates.shape[1] != rates[0].shape[1]:
            raise IntegrityError(f"{what} has another number of parameter groups than the blocks before")
        if columns.metrics and not told:
            name = canonical.brief(next(iter(columns.metrics)))
            told = [f"the metric {name!r} during steps {segment.start:,} to {segment.stop:,}"]
        trivial[segment.index] = bool((columns.rates == 0).all())
        rates.append(columns.rates)
        means.append(float(np.median(columns.loss)))
        loss += [
            (step, float(columns.loss[step - segment.start]))
            for step in range(segment.start, segment.stop)
            if step % every == 0
        ]
    # The loss before and after a jump: whichever of the two segments it is, both are neighbours.
    rises = np.abs(np.diff(means)) if len(means) > 1 else np.zeros(0)
    jumps = sorted({i for jump in np.argsort(-rises, kind="stable")[:JUMPS].tolist() for i in (jump, jump + 1)})
    table = np.concatenate(rates) if rates else np.zeros((0, 0))
    return _Steps(table, trivial, loss, jumps, "".join(told))


def _close(claimed: float, found: float) -> bool:
    return math.isfinite(found) and abs(claimed - found) <= CLAIM_TOLERANCE * max(abs(found), 1e-12)
