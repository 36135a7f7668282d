"""What an attacker who gambles on the draw knows in advance: which segments the public verifier would replay, for any nonce.

Nothing is replayed here, so that thousands of nonces can be tried on one forgery.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from proof_of_learning.canonical import sha256
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.protocol import Describe
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.task import Task, TaskReference
from proof_of_learning.verifier import guarantee
from proof_of_learning.verifier.options import Draw
from proof_of_learning.verifier.plan import challenge, make_nonce
from proof_of_learning.verifier.progress import importance
from proof_of_learning.verifier.survey import Looking, Survey, survey

DRAWN = ("uniform", "progress", "trivial")  # the reasons that depend on the nonce


@dataclass(frozen=True)
class Odds:
    """How a forgery fares against the draw.

    forged: number of segments that do not replay. conspicuous: those among them that are replayed whatever the nonce.
    segment_share, progress_share: what part of the non-trivial segments, and of what draws are weighted by, they are.
    miss: share of the tried nonces by which no forged segment is replayed. bound: the most that the verifier's draws allow
    (0 where a forged segment is conspicuous).
    """

    forged: int
    conspicuous: tuple[int, ...]
    segment_share: float
    progress_share: float
    nonces: int
    miss: float
    bound: float


def fixed_nonces(count: int) -> list[str]:
    """``count`` different nonces of 32 bytes, always the same ones."""
    return [sha256(f"nonce {number}".encode())[7:] for number in range(count)]


def surveyed(proof: Proof, task: Task | TaskReference, seed: int = 0) -> Survey:
    """What a verifier sees of ``proof`` before it draws, by the samples and coordinates that ``seed`` chooses."""
    with Replayer(proof, task) as replayer:
        described = replayer.ask(Describe())
        return survey(proof, Looking(replayer, described, seed))


def missed(proof: Proof, forged: Iterable[int], nonces: Iterable[str], *, found: Survey) -> list[bool]:
    """For each nonce (hex), whether a verifier at its defaults would replay none of the segments in ``forged``.

    ``found``: what the verifier sees of ``proof`` (:func:`surveyed`), the same for all nonces.
    """
    wanted = set(forged)
    return [
        wanted.isdisjoint(
            challenge(
                proof.steps, proof.header.training.interval, proof.root, found, make_nonce(nonce), Draw()
            ).segments
        )
        for nonce in nonces
    ]


def odds(proof: Proof, forged: Sequence[int], nonces: Sequence[str], *, found: Survey) -> Odds:
    """Measure ``missed`` over ``nonces`` (at least one), beside what the draws guarantee. ``found``: as for :func:`missed`."""
    picked = challenge(proof.steps, proof.header.training.interval, proof.root, found, make_nonce(nonces[0]), Draw())
    conspicuous = tuple(i for i in forged if any(why not in DRAWN for why in picked.segments.get(i, ())))
    weight = importance(found.measures, len(proof.segments))
    real, hidden = np.flatnonzero(~found.trivial), [i for i in forged if not found.trivial[i]]
    share = float(weight[list(forged)].sum() / weight.sum()) if weight.any() else 0.0
    draws = picked.guarantee
    bound = min(
        guarantee.uniform_miss(len(real), len(hidden), draws.uniform_draws or 0),
        guarantee.progress_miss(weight, share, draws.progress_draws or 0) if weight.any() else 1.0,
    )
    lucky = missed(proof, forged, nonces, found=found)
    return Odds(
        forged=len(forged),
        conspicuous=conspicuous,
        segment_share=len(hidden) / len(real) if len(real) else 0.0,
        progress_share=share,
        nonces=len(lucky),
        miss=sum(lucky) / len(lucky),
        bound=0.0 if conspicuous else bound,
    )
