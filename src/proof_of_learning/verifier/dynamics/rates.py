"""Which recorded learning rates belong to which optimizer."""

from __future__ import annotations

from collections.abc import Mapping

from proof_of_learning.verifier.dynamics.course import Array


def rates_by_part(rates: Array, optimizers: Mapping[str, int]) -> dict[str, Array] | None:
    """The columns of ``rates`` [steps, groups of all optimizers], by the optimizer's part: {part: [steps, its groups]}.

    optimizers: the parts with their numbers of groups, in the task's own order, in which the columns stand; neither states nor
        headers keep it, for both sort names. None where they are as many as no task's.
    """
    if sum(optimizers.values()) != rates.shape[1]:
        return None
    found, start = {}, 0
    for part, groups in optimizers.items():
        found[part] = rates[:, start : start + groups]
        start += groups
    return found
