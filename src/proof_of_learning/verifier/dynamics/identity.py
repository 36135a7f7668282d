"""The equation that an optimizer's state obeys from one step to the next, whatever the gradient was.

The gradient is not at hand, but the state tells it: from two momenta follows the gradient between them, from this the second moment
and the weights. What is left is rounding, whose bound is computed beside each quantity: ``u`` is the unit roundoff of the weights'
dtype, and every operation of any of PyTorch's implementations (for-loop, foreach, fused) adds at most one ``u`` of its result.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from proof_of_learning.verifier.dynamics.course import Array, Course, Flags, Rule, half_unit

Rows = npt.NDArray[np.int64]
IDENTITY_LIMIT = 2.0
"""A deviation above it breaks the identity.

Honest steps are bound by 1. Seen: at most 1.000 in 345,600 steps of tensors, and none above (SGD with momentum, dampening, Nesterov,
decay; Adam, AdamW, amsgrad; RMSprop, centered, with momentum; Adagrad; foreach and fused; MLP, CNN with BatchNorm, Transformer; CPU,
float32). In bfloat16, float16 and float64 as much, but for fused SGD in bfloat16 (128) and fused Adam in float16 (13), which add up in
a wider format than they keep. The rest is room for other hardware; GPUs and ``capturable`` are untried.
"""


def identity(course: Course) -> Array:
    """[T] how far each segment of one step is from its optimizer's equation: the largest deviation over coordinates, in units of the
    rounding that the step itself may have made (for the weights about half a unit in their last place).

    Honest steps stay below :data:`IDENTITY_LIMIT`. 0 for an update that was skipped (nothing changed). Infinite where values are not
    finite, an entry vanishes, or the counter of updates does not grow by one. NaN where nothing can be said: segments of several
    steps, unknown optimizers, SGD without momentum (its gradient leaves no trace).

    It bounds a jump of the weights by what the state shows: SGD's by the momentum, which then shows in :func:`coasting`; Adam's to
    lr·(1-β1)/√(1-β2) and what the moments carry, RMSprop's to lr/√(1-α) and Adagrad's to lr.
    """
    result = np.full(len(course.weights) - 1, np.nan)
    rule = course.rule
    if rule is None:
        return result
    short = np.flatnonzero(course.lengths == 1)
    if rule.family == "sgd":
        short = short[rule.momentum[short] != 0]
    check = {"sgd": _sgd, "adam": _adam, "adamw": _adam, "rmsprop": _rmsprop, "adagrad": _adagrad}[rule.family]
    with np.errstate(all="ignore"):
        for rows in course.blocks(short):
            worst = check(course, rule, rows).max(axis=1, initial=0.0)
            worst[np.isnan(worst) | _broken(course, rule, rows)] = np.inf
            worst[course.unchanged(rows).all(axis=1)] = 0.0
            worst[~np.isfinite(course.weights[rows + 1].astype(np.float64)).all(axis=1)] = np.inf
            result[rows] = worst
    return result


def miscounted(course: Course) -> Flags:
    """[T] segments in which the counter of updates does not grow by their steps (skipped ones may be missing), or vanishes."""
    if "step" not in course.entries:
        return np.zeros(len(course.weights) - 1, dtype=bool)
    counter = course.entries["step"].astype(np.float64)
    there = ~np.isnan(counter)
    grown = np.diff(np.where(there, counter, 0.0))
    fits: Flags = (grown >= 0) & (grown <= course.lengths) & (grown == np.floor(grown)) & (there[1:] | ~there[:-1])
    return ~fits


def _broken(course: Course, rule: Rule, rows: Rows) -> Flags:
    """[rows] where an entry vanishes or is not there after a step, or the counter does not grow by one."""
    needed = {
        "sgd": ["momentum_buffer"],
        "adam": ["step", "exp_avg", "exp_avg_sq"],
        "adamw": ["step", "exp_avg", "exp_avg_sq"],
        "rmsprop": ["step", "square_avg"],
        "adagrad": ["step", "sum"],
    }[rule.family]
    broken = np.zeros(len(rows), dtype=bool)
    for name in {*needed, *course.entries}:
        gone = course.absent(name, rows + 1)
        broken |= gone if name in needed else gone & ~course.absent(name, rows)
    if "step" in needed:
        broken |= (course.counter(rows + 1) != course.counter(rows) + 1.0)[:, 0]
    return broken


def _ends(course: Course, rows: Rows) -> tuple[Array, Array, Array, Array]:
    """Weights before and after, [rows, m], the rate, [rows, 1], and half a unit of the weights after."""
    before, after = (course.weights[at].astype(np.float64) for at in (rows, rows + 1))
    return before, after, course.rates[course.bounds[rows]][:, None], half_unit(after, course.roundoff, course.smallest)


def _sgd(course: Course, rule: Rule, rows: Rows) -> Array:
    u, tiny = course.roundoff, course.smallest
    before, after, rate, unit = _ends(course, rows)
    old, new = course.held("momentum_buffer", rows), course.held("momentum_buffer", rows + 1)
    momentum = rule.momentum[rows, None]
    carried = np.abs(momentum * old)
    # Nesterov's update is g + μ b', and g = b' - μ b.
    nesterov = rule.nesterov[rows, None]
    update = np.where(nesterov, new * (1.0 + momentum) - momentum * old, new)
    slack = np.where(nesterov, u * (2 * carried + np.abs(new) * (1 + 2 * momentum) + np.abs(update)), 0.0)
    bound = unit + np.abs(rate) * (slack + 2 * u * np.abs(update) + tiny) + tiny
    return np.abs(after - (before - rate * update)) / bound


def _adam(course: Course, rule: Rule, rows: Rows) -> Array:
    u, tiny = course.roundoff, course.smallest
    before, after, rate, unit = _ends(course, rows)
    beta1, beta2, coarse = rule.beta1[rows, None], rule.beta2[rows, None], rule.coarse[rows, None]
    mean = course.held("exp_avg", rows + 1)
    gradient, slack = _from_mean(course.held("exp_avg", rows), mean, beta1, coarse, u, tiny)
    old, square = course.held("exp_avg_sq", rows), course.held("exp_avg_sq", rows + 1)
    worst = _second_moment(old, square, gradient, slack, beta2, 1.0 - beta2, coarse, u, tiny)

    largest = course.held("max_exp_avg_sq", rows + 1)
    amsgrad = rule.amsgrad[rows, None]
    wrong = amsgrad & (largest != np.maximum(course.held("max_exp_avg_sq", rows), square))
    count = course.counter(rows + 1)
    bias1, bias2 = 1.0 - beta1**count, 1.0 - beta2**count
    spread = np.sqrt(np.where(amsgrad, largest, square) / bias2) + rule.eps[rows, None]
    update = rate / bias1 * mean / spread
    kept = before * (1.0 - rate * rule.decay[rows, None]) if rule.family == "adamw" else before
    relative = u * (8.0 + np.where(coarse, 4.0 / bias1 + 4.0 / bias2, 0.0))
    bound = unit + relative * np.abs(update) + tiny
    if rule.family == "adamw":
        bound = bound + 2 * u * np.abs(before)
    return np.where(wrong, np.inf, np.maximum(worst, np.abs(after - (kept - update)) / bound))


def _rmsprop(course: Course, rule: Rule, rows: Rows) -> Array:
    u, tiny = course.roundoff, course.smallest
    before, after, rate, unit = _ends(course, rows)
    alpha, momentum, coarse = rule.beta2[rows, None], rule.momentum[rows, None], rule.coarse[rows, None]
    centered = rule.centered[rows, None]
    old, square = course.held("square_avg", rows), course.held("square_avg", rows + 1)
    centre = np.where(centered, course.held("grad_avg", rows + 1), 0.0)
    spread, wide = _root(square - centre**2, np.where(centered, 2 * u * (np.abs(square) + centre**2), 0.0) + tiny)
    spread, wide = spread + rule.eps[rows, None], wide + 2 * u * (spread + rule.eps[rows, None])

    # The update divided out of the momentum if there is one, else out of the weights: |g| = |update|·(√v' + eps).
    buffer, carried = course.held("momentum_buffer", rows + 1), momentum * course.held("momentum_buffer", rows)
    moved = (before - after) / rate
    update = np.where(momentum > 0, buffer - carried, moved)
    loose = np.where(
        momentum > 0, u * (2 * np.abs(carried) + np.abs(buffer)), unit / np.abs(rate) + 4 * u * np.abs(moved)
    )
    gradient, slack = _times(update, loose + tiny, spread, wide, u)
    by_mean, by_mean_slack = _from_mean(
        course.held("grad_avg", rows), course.held("grad_avg", rows + 1), alpha, coarse, u, tiny
    )
    apart = np.where(centered, np.abs(gradient - by_mean) / (slack + by_mean_slack), 0.0)
    gradient, slack = np.where(centered, by_mean, gradient), np.where(centered, by_mean_slack, slack)
    worst = np.maximum(apart, _second_moment(old, square, gradient, slack, alpha, 1.0 - alpha, coarse, u, tiny))

    bound = unit + np.abs(rate) * (2 * u * np.abs(buffer) + tiny) + tiny
    by_momentum = np.abs(after - (before - rate * buffer)) / bound
    standing = np.abs(after - before) / (unit + tiny)  # at a rate of 0 without momentum the gradient leaves no trace
    return np.where(momentum > 0, np.maximum(worst, by_momentum), np.where(rate == 0, standing, worst))


def _adagrad(course: Course, rule: Rule, rows: Rows) -> Array:
    u, tiny = course.roundoff, course.smallest
    before, after, rate, unit = _ends(course, rows)
    rate = rate / (1.0 + (course.counter(rows + 1) - 1.0) * rule.lr_decay[rows, None])
    old, square = course.held("sum", rows), course.held("sum", rows + 1)
    spread = np.sqrt(square) + rule.eps[rows, None]
    moved = (before - after) / rate
    gradient, slack = _times(moved, unit / np.abs(rate) + 4 * u * np.abs(moved) + tiny, spread, 3 * u * spread, u)
    one = np.ones_like(rate)
    worst = _second_moment(old, square, gradient, slack, one, one, one == 0, u, tiny)
    return np.where(rate == 0, np.abs(after - before) / (unit + tiny), worst)


def _from_mean(old: Array, new: Array, beta: Array, coarse: Flags, u: float, tiny: float) -> tuple[Array, Array]:
    """The gradient between two running means (by lerp, or as β m + (1-β) g), and how far rounding may put it off."""
    weight = 1.0 - beta
    added = (new - old) / weight
    steps = np.where(weight < 0.5, 4.0 * weight, 4.0) + np.where(coarse, 1.0, 0.0)
    lost = u * (np.abs(new) + 2 * np.abs(beta * old) + steps * np.abs(added)) + tiny
    return old + added, lost / weight


def _second_moment(
    old: Array,
    new: Array,
    gradient: Array,
    slack: Array,
    kept: Array,
    weight: Array,
    coarse: Flags,
    u: float,
    tiny: float,
) -> Array:
    """The deviation from v' = kept·v + weight·g²."""
    added = weight * gradient**2
    lost = weight * slack * (2 * np.abs(gradient) + slack) + u * (2 * np.abs(kept * old) + 4 * added + np.abs(new))
    lost = lost + np.where(coarse, u * gradient**2, 0.0) + 4 * tiny
    return np.abs(new - (kept * old + added)) / lost


def _root(square: Array, off: Array) -> tuple[Array, Array]:
    low, high = np.sqrt(np.maximum(square - off, 0.0)), np.sqrt(np.maximum(square + off, 0.0))
    return (low + high) / 2, (high - low) / 2


def _times(a: Array, off_a: Array, b: Array, off_b: Array, u: float) -> tuple[Array, Array]:
    """A product and how far it may be off."""
    return a * b, np.abs(a) * off_b + np.abs(b) * off_a + off_a * off_b + 4 * u * np.abs(a * b)
