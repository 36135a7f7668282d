"""Which recorded learning rates belong to which optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from proof_of_learning.verifier.dynamics.course import Array


def rates_by_part(rates: Array, bounds: npt.NDArray[np.int64], held: Mapping[str, Array]) -> dict[str, Array] | None:
    """The columns of ``rates`` [steps, groups of all optimizers], by the optimizer's part: {part: [steps, its groups]}.

    The columns stand in the task's order of optimizers, which neither states nor headers keep: both sort names. But each state
    holds the rate that its next step uses: ``held`` gives it for each part, [T+1, its groups], NaN for states that are not at hand.
    Optimizers that never differ in their rates may be exchanged, which changes nothing. None where no order fits.
    """
    steps, width = rates.shape
    starts = bounds[:-1][bounds[:-1] < steps]
    used = rates[starts]

    def fits(name: str, column: int) -> bool:
        own = held[name][: len(starts)]
        there = used[:, column : column + own.shape[1]]
        return there.shape == own.shape and bool(((own == there) | np.isnan(own)).all())

    def arrange(column: int, left: tuple[str, ...]) -> list[tuple[str, int]] | None:
        if not left:
            return [] if column == width else None
        tried = set[bytes]()  # optimizers with equal rates are tried once, lest many of them take forever
        for name in left:
            mark = np.nan_to_num(held[name], nan=-1.0).tobytes()
            if mark not in tried and fits(name, column):
                rest = arrange(column + held[name].shape[1], tuple(other for other in left if other != name))
                if rest is not None:
                    return [(name, column), *rest]
            tried.add(mark)
        return None

    order = arrange(0, tuple(sorted(held)))
    if order is None:
        return None
    return {name: rates[:, column : column + held[name].shape[1]] for name, column in order}
