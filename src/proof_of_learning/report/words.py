"""The report's fixed sentences: what each word of a verdict means to someone who has not read the protocol."""

from __future__ import annotations

import math

from proof_of_learning.report.text import percent, plural
from proof_of_learning.verifier.verdict import Decision, Status, Verdict

DECISION: dict[Decision, str] = {
    "valid": "The training that this proof records could be reproduced wherever it was challenged.",
    "invalid": "The proof is not what it claims to be.",
    "inconclusive": "Nothing shows that the proof is false, but it was not possible to check all that a valid verdict needs.",
}
SYMBOL: dict[Decision, str] = {"valid": "✓", "invalid": "✕", "inconclusive": "?"}
STATUS: dict[Status, str] = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive", "skipped": "Skipped"}

ASSURANCE = {
    "registered": "All randomness follows from a claim that carries a trusted timestamp: nothing was left for the prover to choose.",
    "seed-derived": "All randomness follows from one key, but nothing shows when it was fixed: several could have been tried.",
    "observed": "The randomness was written down by the prover, who could have chosen it.",
}
RANDOMNESS = {
    "derived": "Initial weights, order and augmentation follow from a key, so that a verifier recomputes them.",
    "recorded": "Initial weights, order and augmentation are what the prover wrote down.",
}
EXACTNESS = {
    "exact": "A replay has to give the recorded state, bit for bit.",
    "calibrated": "A replay may differ by no more than the noise that the verifier measured on its own machine allows.",
}
SELF_CHOSEN = (
    "The nonce that picked the challenged segments was handed in, not drawn by the verifier after it had the proof. A prover "
    "who knew it could have sealed the proof again and again until the challenges fell on honest segments, so the promises "
    "about random draws count for less."
)
DRAWN = (
    "The verifier drew it after it had the proof's root, so the prover could not know which segments would be replayed."
)

_WHY = {
    "first": "first",
    "last": "last",
    "top-q": "largest displacement",
    "inertia": "largest inertia",
    "predecessor": "predecessor",
    "uniform": "random, uniform",
    "progress": "random, by progress",
    "trivial": "random, rate 0",
    "all": "all",
}

GLOSSARY = [
    ("Valid, invalid, inconclusive",
     "Valid: every mandatory check passed. Invalid: a check failed, so the proof is not what it claims. Inconclusive: no check "
     "failed, but at least one that is needed could not be carried out; a second verification with what was missing can decide."),
    ("What the verdict rests on",
     "The verdict is about one task (model, optimizer, schedule, loss) and one data set, both named by the verifier. "
     "Make sure that they are the ones you mean: a proof about another task says nothing about yours."),
    ("Segments and challenges",
     "Training is recorded as checkpoints; the steps between two of them are a segment. The verifier picks segments, loads the "
     "state at their start, repeats the training steps and compares the result with the recorded state at their end."),
    ("Why a segment was challenged",
     "The first and the last; those with the largest displacement (they moved the state furthest) or the largest inertia (the "
     "optimizer's memory alone would move it furthest); the predecessor of each; and random ones, drawn uniformly or in "
     "proportion to the progress towards the final weights that they made."),
    ("Errors",
     "l2 is the distance between the replayed and the recorded state. The relative error divides it by the segment's own "
     "displacement: 0 is the same state, 1 means the replay says nothing about the record."),
    ("What no replay can show",
     "That the model was not trained honestly a second time, later, by someone else: only registered claims and time-stamped "
     "states speak to that. Nor that the task itself is sensible, or the data lawfully obtained."),
]  # fmt: skip


def why(reason: str) -> str:
    """A challenge's reason in words; one that is not known here is shown as it is."""
    return _WHY.get(reason, reason)


WEIGHTED = "in proportion to what they contributed"


def guarantees(verdict: Verdict) -> list[str]:
    """What the random draws promise, in plain words: by number of segments, in function and in weights."""
    given = verdict.guarantee
    if (
        given.forged_fraction is None
        and given.progress_fraction is None
        and not (given.uniform_draws or given.progress_draws)
    ):
        return ["No promise: no segment was drawn at random."]
    found = [
        _guarantee(
            given.forged_fraction, given.miss_probability, given.uniform_draws,
            "of the non-trivial segments", "uniformly",
        ),
        _guarantee(
            given.function_fraction, given.function_miss_probability, given.progress_draws,
            "of the progress towards what the final model computes", WEIGHTED,
        ),
        _guarantee(
            given.progress_fraction, given.progress_miss_probability, given.progress_draws,
            "of the progress towards the final weights", WEIGHTED,
        ),
    ]  # fmt: skip
    if given.group_fraction is not None:
        found.append(
            _guarantee(
                given.group_fraction,
                given.progress_miss_probability,
                given.progress_draws,
                "of a single group of tensors' way, or of an excursion away and back",
                WEIGHTED,
            )
        )
    return found


def _guarantee(fraction: float | None, missed: float, draws: int, of_what: str, how: str) -> str:
    if fraction is None or not math.isfinite(fraction) or fraction >= 1.0:
        found = f"{plural(draws, 'segment')} drawn {how}: too few" if draws else f"no segment was drawn {how}"
        return f"No promise about a forged share {of_what} ({found})."
    if fraction <= 0.0:
        return f"No share {of_what} could be forged unseen: every segment was challenged."
    return (
        f"Had more than {percent(fraction)} {of_what} been forged, the {plural(draws, 'segment')} drawn {how} would have hit a "
        f"forged one with a probability of at least {percent(1 - missed)}."
    )


def cost(verdict: Verdict) -> str:
    """The cost of verification as a share of training: ``4,250 of 50,000 steps (8.5 %)``."""
    spent = verdict.cost
    if not spent.steps_replayed:
        return "no step replayed"
    return f"{spent.steps_replayed:,} of {plural(spent.steps_total, 'step')} replayed ({percent(spent.share)})"


def sources(verdict: Verdict) -> str:
    """What is known of the task's sources: their digest, and whether a policy named it."""
    named = verdict.conditions
    if named.task is None:
        return condition(None)
    if named.sources is None:
        return "not available in full: the verdict rests on the task's description alone"
    if named.sources_pinned:
        return f"{named.sources}, as the policy says"
    return f"{named.sources}, pinned by no policy: the task's program is what the verifier happened to hold"


def condition(digest: str | None) -> str:
    """A digest that the verifier named, or that none was."""
    return digest or "none named"
