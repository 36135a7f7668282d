"""Replays that are begun before they are asked for: which segments are drawn uniformly is known before a state has been read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.requests import AnyCheckAnswer, AnyCheckRequest, Replay

SMALL = 1 << 24  # bytes that such states may take on disk: two or three more of them are held


def fitting(proof: Proof, indices: Iterable[int]) -> list[Replay]:
    """Of some segments those that are small, have both their states, and the run's first environment, in their order."""
    digests, first = proof.state_digests(), proof.segments[0].environment

    def fits(index: int) -> bool:
        ends = [proof.index.get(digest) for digest in digests[index : index + 2]]
        small = all(stored is not None and stored.bytes <= SMALL for stored in ends)
        return small and proof.segments[index].environment == first

    return [Replay(index) for index in sorted(set(indices)) if fits(index)]


class Ahead:
    """Replays one after another in a thread of their own, each to be taken once.

    It computes in as many threads as where this is made: sums depend on it.
    """

    def __init__(self, replay: Callable[[Replay], AnyCheckAnswer], requests: Iterable[Replay]) -> None:
        self._thread = ThreadPoolExecutor(1, "ahead", torch.set_num_threads, (torch.get_num_threads(),))
        self._begun: dict[Replay, Future[AnyCheckAnswer]] = {
            request: self._thread.submit(replay, request) for request in requests
        }

    def take(self, request: AnyCheckRequest) -> AnyCheckAnswer | None:
        """The answer, waited for where it is under way; None where it was not begun. Raises what the replay raised."""
        future = self._begun.pop(request, None) if isinstance(request, Replay) else None
        return None if future is None or future.cancel() else future.result()

    def close(self) -> None:
        """Begin no more; what is under way ends with the worker."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        self._thread.shutdown()
