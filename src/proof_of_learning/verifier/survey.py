"""One pass over all states and blocks of a proof: digests checked, displacements recomputed, nothing replayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.errors import IntegrityError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.measure import Distance, displacement, estimate_d_ref, weight_distance, weights
from proof_of_learning.training.state import State, settings
from proof_of_learning.verifier.inertia import inertia
from proof_of_learning.verifier.scalars import Scalars

Array = npt.NDArray[np.float64]
LOSS_POINTS = 1000
# A claimed displacement is a sum in floating point, whose last digits depend on the machine's order of adding.
CLAIM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Survey:
    """Per segment: ``displacement`` of the full state, of the ``weights``, ``inertia`` at its start, ``progress`` made (fall of the
    squared distance to the final weights), whether it is ``trivial`` (every rate 0), its ``mean_loss``; per step boundary
    (one more): ``distance`` of the weights from the start, and the ``settings`` that the state holds beside trained values.
    ``scalars``: the history of the numbers that no distance measures. ``missing`` counts states whose bytes the proof no longer
    holds; then what needs them is not a number (None).
    """

    displacement: Array
    weights: Array
    inertia: Array
    progress: Array
    trivial: npt.NDArray[np.bool_]
    distance: Array
    settings: list[bytes | None]
    loss: list[tuple[int, float]]
    missing: int
    parameters: int
    bytes: int
    final_model: str | None
    d_ref: Distance | None
    scalars: Scalars = field(default_factory=Scalars)

    def progress_share(self) -> list[float]:
        """The share of the squared distance from start to end that is covered at each segment's end."""
        total = float(np.nansum(self.progress))
        return [] if not total else (np.cumsum(np.nan_to_num(self.progress)) / total).tolist()


def survey(proof: Proof, on_segment: Callable[[int, int], None] = lambda done, total: None) -> Survey:
    """Check every state and block and measure the trajectory. Raises FormatError or IntegrityError at the first fault.

    In one thread: the replay worker starts meanwhile and needs the other cores, and sums come out alike everywhere.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _survey(proof, on_segment)
    finally:
        torch.set_num_threads(threads)


def _survey(proof: Proof, on_segment: Callable[[int, int], None]) -> Survey:
    count = len(proof.segments)
    moved, moved_weights, progress = (np.full(count, np.nan) for _ in range(3))
    inert, distance = np.full(count, np.nan), np.full(count + 1, np.nan)
    peaks, trivial, loss = _columns(proof)
    digests = proof.state_digests()
    missing = sum(not proof.has_state(digest) for digest in digests)
    final = proof.state(digests[-1]) if proof.has_state(digests[-1]) else None
    final_model = None if final is None else final.part("model").digest()
    target = None if final is None else _copied(weights(final))
    parameters = 0 if target is None else sum(t.numel() for t in target.values())
    del final  # of the final state only the weights are needed from here on
    origin = before = None
    to_go = math.nan
    held: list[bytes | None] = []
    scalars = Scalars()
    for position, digest in enumerate(digests):
        state: State | None = proof.state(digest) if proof.has_state(digest) else None
        held.append(None if state is None else settings(state))
        scalars.add(position, state, _steps(proof, position))
        if state is not None:
            here = weights(state)
            origin = _copied(here) if position == 0 else origin
            distance[position] = weight_distance(origin, here) if origin and _alike(origin, here) else math.nan
            left = weight_distance(here, target) ** 2 if target and _alike(here, target) else math.nan
            if position < count:
                inert[position] = inertia(state, peaks)
            if position > 0 and before is not None:
                claim = proof.segments[position - 1].displacement
                found = displacement(before, state)
                if not (_close(claim.state, found.state) and _close(claim.weights, found.weights)):
                    raise IntegrityError(
                        f"segment {position - 1} claims a displacement of {claim.state:.6g} (weights {claim.weights:.6g}); "
                        f"its states are {found.state:.6g} ({found.weights:.6g}) apart"
                    )
                moved[position - 1], moved_weights[position - 1] = found.state, found.weights
                progress[position - 1] = to_go - left
            to_go = left
        before = state
        on_segment(position, count)
    stored = sum(item.bytes for item in proof.index.values())
    d_ref = estimate_d_ref(origin, target) if origin and target and _alike(origin, target) else None
    return Survey(
        moved, moved_weights, inert, progress, trivial, distance, held, loss, missing, parameters, stored, final_model, d_ref, scalars
    )  # fmt: skip


def _steps(proof: Proof, position: int) -> int:
    """The steps of the segment that ends at a position; 0 for the first state."""
    return proof.segments[position - 1].stop - proof.segments[position - 1].start if position else 0


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values in one block of memory: what was read from a file shares the memory of all that was read with it."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    block, start, copies = torch.empty(size + 16 * len(tensors), dtype=torch.uint8), 0, dict[str, Tensor]()
    for name, tensor in tensors.items():
        room = block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        copies[name] = room.copy_(tensor)
        start += -(-tensor.nbytes // 16) * 16
    return copies


def _columns(proof: Proof) -> tuple[list[float], npt.NDArray[np.bool_], list[tuple[int, float]]]:
    """Every block, once: the largest rate of each group, which segments are trivial, and a sampled loss curve."""
    peaks: Array | None = None
    trivial = np.zeros(len(proof.segments), dtype=bool)
    every = max(1, proof.header.training.steps // LOSS_POINTS)
    loss: list[tuple[int, float]] = []
    for segment, columns in zip(proof.segments, proof.all_columns(), strict=True):
        what = f"the block of segment {segment.index}"
        if not (np.isfinite(columns.loss).all() and np.isfinite(columns.rates).all()):
            raise IntegrityError(f"{what} holds losses or learning rates that are not finite")
        if peaks is not None and columns.rates.shape[1] != len(peaks):
            raise IntegrityError(f"{what} has another number of parameter groups than the blocks before")
        trivial[segment.index] = bool((columns.rates == 0).all())
        top = np.abs(columns.rates).max(axis=0)
        peaks = top if peaks is None else np.maximum(peaks, top)
        loss += [
            (step, float(columns.loss[step - segment.start]))
            for step in range(segment.start, segment.stop)
            if step % every == 0
        ]
    return [] if peaks is None else peaks.tolist(), trivial, loss


def _alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(a[n].shape == b[n].shape and a[n].dtype == b[n].dtype for n in a)


def _close(claimed: float, found: float) -> bool:
    return math.isfinite(found) and abs(claimed - found) <= CLAIM_TOLERANCE * max(abs(found), 1e-12)
