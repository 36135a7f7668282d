"""Where weights go without gradients: by decay and momentum alone.

Without gradients SGD's buffer shrinks by μ a step, so of the weights' way ahead there remains c·b with
c_s = μ (lr_s + c_{s+1}), and 0 after the run's last step: w - c·b is where the run would end. The same sum for Adam has
m̂/(√v̂ + eps), which shrinks by ρ = β1/√β2 a step (by β1 under amsgrad). The rates are the recorded ones, so a schedule moves no such
position, and only a gradient does, at the step at which it arrives, and not when its momentum is spent.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from proof_of_learning.verifier.dynamics.course import Array, Course, Flags, Rule, half_unit

Rows = npt.NDArray[np.int64]
# The share of a coordinate's movement (of its momentum) below which a gradient is taken for none. Honest gradients fall below it
# by chance, in about one of a thousand coordinates.
NEGLIGIBLE = 1e-3
# A tensor with less than this share of its best living share is idle.
LIVING = 0.1


def coasting(course: Course) -> Array:
    """[T+1, m] where the weights come to rest, less what decay alone has moved: differences are what gradients brought about.

    From one checkpoint to the next it moves by (rest of the state that was reached) - (rest of the state that decay and momentum
    alone reach); a skipped update moves nothing. For an unknown optimizer, the weights. What is not finite stays so to the end.
    """
    positions = np.array(course.weights, dtype=np.float64)
    if course.rule is None or len(positions) < 2:
        return positions
    ahead = _ahead(course)
    first = np.zeros(1, dtype=np.int64)
    with np.errstate(all="ignore"):
        positions[0] = _rest(course, first, _state(course, first), ahead)[0]
        for segments in course.blocks(np.arange(len(positions) - 1)):
            brought, _ = _brought(course, segments, ahead)
            positions[segments + 1] = brought
        return np.cumsum(positions, axis=0)


def still(course: Course) -> Array:
    """[T, m] the weights at each next checkpoint had every gradient of the segment been zero. NaN for an unknown optimizer."""
    count = len(course.weights) - 1
    reached = np.full((count, course.weights.shape[1]), np.nan)
    if course.rule is not None:
        with np.errstate(all="ignore"):
            for segments in course.blocks(np.arange(count)):
                reached[segments] = _glide(course, segments)["weights"]
    return reached


def idle_segments(course: Course) -> Array:
    """[T] the share of coordinates that decay and momentum alone moved, or nothing, among those that some gradient of the run reached.

    A coordinate counts as idle if its weight is where no gradient would have left it, within rounding and :data:`NEGLIGIBLE` of its
    movement, and so is its momentum, or what the gradient added to it will never amount to a rounding error of the weight.
    Coordinates that no gradient reached in the whole run (pixels that are always 0) are left out. NaN: where no coordinate of the
    tensor was ever reached, where every rate of the segment is 0, and for unknown optimizers.

    Rows of an embedding are honestly idle wherever their token is absent; :func:`idle_tensors` judges a tensor by its own best.
    """
    count = len(course.weights) - 1
    share = np.full(count, np.nan)
    if course.rule is None or not count:
        return share
    ahead = _ahead(course)
    idle = np.zeros((count, course.weights.shape[1]), dtype=bool)
    with np.errstate(all="ignore"):
        for segments in course.blocks(np.arange(count)):
            idle[segments] = _idle(course, segments, ahead)
    reached = ~idle.all(axis=0)
    if reached.any():
        share[:] = idle[:, reached].mean(axis=1)
    share[~_moving(course)] = np.nan
    return share


def idle_by_rest(course: Course, rows: Rows, glided: Array, reached: Array) -> Array:
    """:func:`idle_segments` of some segments, for an optimizer without a rule here; NaN for the others and for a still tensor.

    rows: the segments, from the checkpoint of the same number to the next.
    reached: [rows, m] where the next checkpoint comes to rest by the optimizer's own steps without gradients.
    glided: [rows, m] where the segment's start does, after as many steps more as the segment has.

    A tensor that moves in the run, but in none of these segments by a gradient, is idle in all of them.
    """
    share = np.full(len(course.weights) - 1, np.nan)
    before, after = (course.weights[at].astype(np.float64) for at in (rows, rows + 1))
    if (course.weights == course.weights[0]).all():
        return share
    with np.errstate(all="ignore"):
        unit = half_unit(np.maximum(np.abs(before), np.abs(after)), course.roundoff, course.smallest)
        rounding = 2.0 * (1 + course.lengths[rows])[:, None] * unit + course.smallest
        idle = np.abs(reached - glided) <= rounding + NEGLIGIBLE * np.abs(after - before)
    idle |= course.unchanged(rows)
    living = ~idle.all(axis=0)
    share[rows] = idle[:, living].mean(axis=1) if living.any() else 1.0
    share[~_moving(course)] = np.nan
    return share


def _moving(course: Course) -> Flags:
    """[T] whether any rate of the segment is not 0."""
    moving: Flags = np.add.reduceat(np.append(course.rates != 0, False), course.bounds[:-1]) > 0
    return moving


def moved(course: Course) -> Flags:
    """[T] whether anything of the tensor or of its state changed at all (a gradient of zero and an optimizer that waited may not)."""
    count = len(course.weights) - 1
    changed = np.zeros(count, dtype=bool)
    for segments in course.blocks(np.arange(count)):
        changed[segments] = ~course.unchanged(segments).all(axis=1)
    return changed


def idle_tensors(idle: Mapping[str, Array], parts: Mapping[str, str], moved: Mapping[str, Flags]) -> dict[str, Array]:
    """Which tensors are idle in which segments, by name: [T] of 1 (idle), 0, or NaN (not judged).

    idle: by tensor, what :func:`idle_segments` gives.
    parts: the optimizer that trains it. One that moves none of its tensors in a segment waits for its turn (GANs), and is not
        judged there, unless nothing at all moves.
    moved: by tensor, what :func:`moved` gives.

    A tensor is idle where fewer of its coordinates are reached than a tenth of those in its best segment: so absent tokens
    and sparse activations are measured by what the tensor does when it is trained, and a layer that was shut off is not. A bias
    before a normalisation has no true gradient, and is idle by chance.
    """
    trained = [name for name, shares in idle.items() if not np.isnan(shares).all()]
    if not trained:
        return {}
    turn = {
        part: np.any([moved[name] for name in trained if parts[name] == part], axis=0) for part in set(parts.values())
    }
    nothing = ~np.any(list(turn.values()), axis=0)
    found = {}
    for name in trained:
        living = 1.0 - idle[name]
        best = np.nanmax(living)
        judged = np.where((living < LIVING * best) | (best == 0.0), 1.0, 0.0)
        judged[np.isnan(living) | ~turn[parts[name]]] = np.nan
        judged[nothing] = 1.0
        found[name] = judged
    return found


def idle_share(tensors: Mapping[str, Array], sizes: Mapping[str, int]) -> Array:
    """[T] the share of trained parameters that lie in idle tensors (:func:`idle_tensors`), weighed by the tensors' ``sizes``."""
    names = list(tensors)
    table = np.stack([tensors[name] for name in names]) if names else np.zeros((0, 0))
    weights = np.array([sizes[name] for name in names], dtype=np.float64)[:, None] * ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        share: Array = (np.nan_to_num(table) * weights).sum(axis=0) / weights.sum(axis=0)
    return share


def _idle(course: Course, segments: Rows, ahead: Array) -> Flags:
    brought, free = _brought(course, segments, ahead)
    before, after = (course.weights[rows].astype(np.float64) for rows in (segments, segments + 1))
    unit = half_unit(np.maximum(np.abs(before), np.abs(after)), course.roundoff, course.smallest)
    rounding = 2.0 * (1 + course.lengths[segments])[:, None] * unit + course.smallest
    stayed = np.abs(after - free["weights"]) <= rounding + NEGLIGIBLE * np.abs(after - before)
    moment = course.first_moment
    if moment is not None:
        left = np.abs(course.held(moment, segments + 1) - free["moment"])
        faint = left <= NEGLIGIBLE * np.abs(free["moment"]) + course.smallest
        stayed &= faint | (np.abs(brought) <= rounding)
    return stayed | course.unchanged(segments)


def _brought(course: Course, segments: Rows, ahead: Array) -> tuple[Array, dict[str, Array]]:
    """[segments, m] how far the gradients of each segment moved the resting point, and the state without them."""
    free = _glide(course, segments)
    ends = segments + 1
    brought = _rest(course, ends, _state(course, ends), ahead) - _rest(course, ends, free, ahead)
    return np.where(course.unchanged(segments), 0.0, brought), free


def _state(course: Course, rows: Rows) -> dict[str, Array]:
    """Weights, first moment, second moment (the largest under amsgrad) and mean gradient at the given checkpoints, [rows, m]."""
    assert course.rule is not None
    moment = course.first_moment
    second = {"adam": "exp_avg_sq", "adamw": "exp_avg_sq", "rmsprop": "square_avg", "adagrad": "sum"}
    square = course.held(second.get(course.rule.family, ""), rows)
    return {
        "weights": course.weights[rows].astype(np.float64),
        "moment": np.zeros_like(square) if moment is None else course.held(moment, rows),
        "square": square,
        "largest": course.held("max_exp_avg_sq", rows),
        "mean": course.held("grad_avg", rows),
        "count": course.counter(rows),
    }


def _rest(course: Course, rows: Rows, state: dict[str, Array], ahead: Array) -> Array:
    """[rows, m] where the state comes to rest, decay aside; ``rows`` are the checkpoints at which it stands."""
    rule, far = course.rule, ahead[rows, None]
    assert rule is not None
    if rule.family in ("adam", "adamw"):
        square = np.where(rule.amsgrad[rows, None], np.maximum(state["largest"], state["square"]), state["square"])
        correction = 1.0 - rule.beta2[rows, None] ** np.maximum(state["count"], 1.0)
        spread = np.sqrt(square / correction) + rule.eps[rows, None]
        return state["weights"] - np.where(state["moment"] == 0, 0.0, far * state["moment"] / spread)
    return state["weights"] - far * state["moment"]


def _ahead(course: Course) -> Array:
    """[T+1] how far a unit of momentum (Adam: of m̂/√v̂ with v̂ of the checkpoint) still carries the weights."""
    rule, bounds, rates = course.rule, course.bounds.tolist(), course.rates.tolist()
    assert rule is not None
    ahead = np.zeros(len(bounds))
    if course.first_moment is None:
        return ahead
    adaptive = rule.family in ("adam", "adamw")
    counts = course.counter(np.arange(len(bounds)))[:, 0].tolist()
    left = 0.0
    with np.errstate(all="ignore"):
        for row in range(len(bounds) - 2, -1, -1):
            beta1, beta2 = float(rule.beta1[row]), float(rule.beta2[row])
            shrink = float(rule.momentum[row])
            if adaptive:
                shrink = beta1
                if not rule.amsgrad[row] and beta2 > 0:
                    # Where v shrinks as fast as m or faster, eps ends the movement some time; a bound keeps the sum sane.
                    shrink = min(beta1 / beta2**0.5, (1.0 + beta1) / 2.0)
            weight = shrink if rule.nesterov[row] and not adaptive else 1.0
            for step in range(bounds[row + 1] - 1, bounds[row] - 1, -1):
                if adaptive:
                    number = max(1.0, min(counts[row] + step - bounds[row] + 1.0, 1e15))
                    weight = _bias(beta2, number) ** 0.5 / (_bias(beta1, number) or np.nan)
                left = shrink * (rates[step] * weight + left)
            number = max(1.0, min(counts[row], 1e15))
            ahead[row] = left / (_bias(beta2, number) ** 0.5 or np.nan) if adaptive else left
    return ahead


def _bias(beta: float, number: float) -> float:
    return max(0.0, 1.0 - beta**number) if 0.0 <= beta < 1.0 else 1.0


def _glide(course: Course, segments: Rows) -> dict[str, Array]:
    """The state at each segment's end after steps with gradients of zero, at the recorded rates."""
    rule = course.rule
    assert rule is not None
    state = _state(course, segments)
    moment = course.first_moment
    fresh = np.ones((len(segments), 1), dtype=bool) if moment is None else course.absent(moment, segments)[:, None]
    lengths = course.lengths[segments]
    for step in range(int(lengths.max(initial=0))):
        rate = course.rates[np.minimum(course.bounds[segments] + step, len(course.rates) - 1)][:, None]
        after = _step(rule, segments, state, rate, fresh if step == 0 else np.zeros_like(fresh))
        ended = (step >= lengths)[:, None]
        state = {name: np.where(ended, state[name], value) for name, value in after.items()} if ended.any() else after
    return state


def _step(rule: Rule, rows: Rows, state: dict[str, Array], rate: Array, fresh: Flags) -> dict[str, Array]:
    """One update with a gradient of zero; ``fresh`` where there is no buffer yet."""
    momentum, dampening, decay, beta1, beta2, eps = (
        values[rows, None] for values in (rule.momentum, rule.dampening, rule.decay, rule.beta1, rule.beta2, rule.eps)
    )
    count = state["count"] + 1.0
    after = {**state, "count": count}
    if rule.family == "sgd":
        pull = decay * state["weights"]
        buffer = np.where(fresh, pull, momentum * state["moment"] + (1.0 - dampening) * pull)
        after["moment"] = np.where(momentum == 0, state["moment"], buffer)
        update = np.where(rule.nesterov[rows, None], pull + momentum * buffer, buffer)
        after["weights"] = state["weights"] - rate * np.where(momentum == 0, pull, update)
        return after
    decoupled = rule.family == "adamw"
    pull = np.zeros_like(decay) if decoupled else decay * state["weights"]
    if rule.family == "adagrad":
        after["square"] = state["square"] + pull**2
        slowed = rate / (1.0 + (count - 1.0) * rule.lr_decay[rows, None])
        after["weights"] = state["weights"] - slowed * _quotient(pull, np.sqrt(after["square"]) + eps)
        return after
    after["square"] = beta2 * state["square"] + (1.0 - beta2) * pull**2
    if rule.family == "rmsprop":
        after["mean"] = beta2 * state["mean"] + (1.0 - beta2) * pull
        centre = np.where(rule.centered[rows, None], after["mean"], 0.0)
        update = _quotient(pull, np.sqrt(np.maximum(after["square"] - centre**2, 0.0)) + eps)
        after["moment"] = np.where(momentum > 0, momentum * state["moment"] + update, state["moment"])
        after["weights"] = state["weights"] - rate * np.where(momentum > 0, after["moment"], update)
        return after
    after["moment"] = beta1 * state["moment"] + (1.0 - beta1) * pull
    after["largest"] = np.maximum(state["largest"], after["square"])
    square = np.where(rule.amsgrad[rows, None], after["largest"], after["square"])
    spread = np.sqrt(square / (1.0 - beta2**count)) + eps
    kept = state["weights"] * (1.0 - rate * decay) if decoupled else state["weights"]
    after["weights"] = kept - rate / (1.0 - beta1**count) * _quotient(after["moment"], spread)
    return after


def _quotient(above: Array, below: Array) -> Array:
    """A quotient that is 0 where nothing is divided, whatever by."""
    return np.where(above == 0, 0.0, above / below)
