"""The report's fixed sentences: what each word of a verdict means to someone who has not read the protocol."""

from __future__ import annotations

import math
from typing import NamedTuple

from proof_of_learning.attestation.beacon import QUICKNET
from proof_of_learning.report.text import ARITHMETIC as ARITHMETIC
from proof_of_learning.report.text import likely, number, percent, plural
from proof_of_learning.verifier.verdict import Decision, Moment, Nonce, Status, Verdict

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


def public(nonce: Nonce) -> str:
    """What it means that the nonce is a round of public randomness."""
    given = nonce.round
    assert given is not None
    network = "quicknet" if given.chain == QUICKNET.hash else f"{given.chain}, which the verifier named"
    which = f"round {given.round:,} of the public randomness of the network {network}, out at {given.moment}"
    if nonce.origin == "beacon":
        return (
            f"It follows from {which}: the first after the root had been stamped, which nobody could know before, "
            "nor choose. Whoever has the proof and that round draws the same segments."
        )
    return f"It follows from {which}, which counts as handed in: {nonce.why}."


_WHY = {
    "first": "first",
    "last": "last",
    "top-q": "largest displacement",
    "inertia": "largest inertia",
    "predecessor": "predecessor",
    "uniform": "random, uniform",
    "progress": "random, by contribution",
    "trivial": "random, rate 0",
    "identity": "not the optimizer's own equation",
    "counter": "counter or scaler that does not fit",
    "layout": "other tensors than before",
    "loss": "beside a jump of the loss",
    "missing": "beside a missing state",
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
     "The first and the last. Random ones, drawn uniformly or in proportion to what they contributed to the final model: only these "
     "count for the promises. And those that stick out: the largest displacement (they moved the state furthest) or inertia (the "
     "optimizer's memory alone would move it furthest) with the ones before them; those whose ends do not satisfy the optimizer's "
     "own equation, or whose counters do not fit their steps; those beside a jump of the loss or a missing state."),
    ("What the model computes",
     "Weights can be moved without any effect, and a model can be exchanged by a small change in the right place. So the verifier "
     "also looks at the answers that the recorded states give, on a few samples that nobody could know while training."),
    ("Errors",
     "l2 is the distance between the replayed and the recorded state. The relative error divides it by the segment's own "
     "displacement: 0 is the same state, 1 means the replay says nothing about the record."),
    ("Signatures and timestamps",
     "A signature says who stands for the proof; the key's digest is its name, and whose key it is, the verifier has to know from "
     "elsewhere. A timestamp says that something existed by then, never since when. A valid proof is not ownership: whoever trains "
     "honestly, earlier or later, can have one; and who signed nothing before is not a thief for that."),
    ("What no replay can show",
     "That the model was not trained honestly a second time, later, by someone else: only registered claims and time-stamped "
     "states speak to that. Nor that the task itself is sensible, or the data lawfully obtained."),
]  # fmt: skip


def why(reason: str) -> str:
    """A challenge's reason in words; one that is not known here is shown as it is."""
    return _WHY.get(reason, reason)


WEIGHTED = "in proportion to what they contributed"


class Promise(NamedTuple):
    """What random draws promise of one kind of share: ``share`` is the largest that may be forged unseen, None for no promise.

    ``brief`` names the kind, ``text`` says it in full.
    """

    about: str
    share: float | None
    brief: str
    text: str


def guarantees(verdict: Verdict) -> list[Promise]:
    """What the random draws promise, one by one and in plain words; empty where no segment was drawn at random."""
    given = verdict.guarantee
    missed, progress_missed = given.miss_probability, given.progress_miss_probability
    uniform, weighted = given.uniform_draws, given.progress_draws
    shares = (given.forged_fraction, given.function_fraction, given.progress_fraction)
    if not (uniform or weighted) and all(share is None for share in shares):
        return []
    function_missed = given.function_miss_probability
    kinds = [
        ("The segments", given.forged_fraction, missed, uniform, "of the segments", "of the segments"),
        ("What the model computes", given.function_fraction, function_missed, weighted, "of the progress of what the model computes",
         "of the progress from what the first model computes to what the final one does"),
        ("Its weights", given.progress_fraction, progress_missed, weighted, "of the progress of its weights",
         "of the progress from the first weights to the final ones (the mean over groups of tensors)"),
    ]  # fmt: skip
    if given.group_fraction is not None:
        kinds.append(
            ("One group of tensors", given.group_fraction, progress_missed, weighted, "of the progress of a single group of tensors",
             "of the progress that one group of tensors made alone")
        )  # fmt: skip
    if given.excursion_fraction is not None:
        kinds.append(
            ("A way out and back", given.excursion_fraction, progress_missed, weighted, "of an excursion away and back",
             "of an excursion, in which the model went away from its course and came back,")
        )  # fmt: skip
    return [_promise(*kind) for kind in kinds]


def whole(verdict: Verdict) -> str:
    """What is promised where nothing was left to the draw, for every segment was replayed; "" where some were not."""
    count = verdict.proof.segments
    if not count or sum(segment.status == "pass" for segment in verdict.segments) < count:
        return ""
    text = f"Nothing was sampled: all {plural(count, 'segment')} were replayed"
    if (own := verdict.cost.own_share) is not None and own < 1:
        return f"{text}, {percent(own)} of them on this machine and the others by workers that nobody vouches for."
    return f"{text}, and no forged one could have been missed by chance."


def unjudged(verdict: Verdict) -> str:
    """The condition that promises stand under where challenged segments could not be judged; "" where all were."""
    open_ = sum(segment.status in ("inconclusive", "skipped") for segment in verdict.segments)
    if not open_:
        return ""
    return f"All of this only if the challenged segments that could not be judged ({open_:,}) are honest."


def _promise(about: str, share: float | None, missed: float, draws: int, brief: str, what: str) -> Promise:
    how = "uniformly" if about == "The segments" else WEIGHTED
    if share is None or not math.isfinite(share) or share >= 1.0:
        found = f"{plural(draws, 'segment')} drawn {how}: too few" if draws else f"no segment was drawn {how}"
        if draws and share is None:
            found = "it could not be measured"
        return Promise(about, None, brief, f"No promise about a forged share {what.rstrip(',')} ({found}).")
    if share <= 0.0:
        return Promise(about, 0.0, brief, f"No share {what} could be forged unseen: every segment was challenged.")
    text = (
        f"Had more than {percent(share)} {what} been forged, a forged segment would have been among the {draws:,} drawn {how}, "
        f"with a probability of at least {likely(missed)}."
    )
    return Promise(about, share, brief, text)


class Fact(NamedTuple):
    """A number with its name, and what it means."""

    name: str
    value: str
    meaning: str


def learned(verdict: Verdict) -> list[Fact]:
    """What the training taught, as far as the verifier looked at it; empty where it did not."""
    evidence = next((check.evidence for check in verdict.checks if check.name == "learning"), {})
    seen = {
        key: float(value) for key, value in evidence.items() if type(value) in (int, float) and math.isfinite(value)
    }
    found: list[Fact] = []
    if "first_to_final" in seen:
        found.append(_moved(seen, evidence.get("compared") == "values"))
    if "settled_step" in seen and verdict.proof.steps:
        step, steps = seen["settled_step"], verdict.proof.steps
        found.append(Fact(
            "95 % of the way", f"step {step:,.0f}",
            f"By then 95 % of the way to what the final model computes was covered, after {percent(step / steps)} of the "
            f"{plural(steps, 'step')}.",
        ))  # fmt: skip
    if "idle_states" in seen:
        looked = int(seen.get("states_looked_at", 0))
        found.append(Fact(
            "Idle states", percent(seen["idle_states"]),
            f"Of {plural(looked, 'state')} drawn at random, those in which some layer passed no gradient, so that nothing was learned "
            "before it.",
        ))  # fmt: skip
    if "idle_segments" in seen:
        found.append(Fact(
            "Idle segments", percent(seen["idle_segments"]),
            "Segments in which a large part of the weights was moved by decay and momentum alone, and by no gradient.",
        ))  # fmt: skip
    if "known_under_a_fresh_key" in seen:
        found.append(Fact(
            "Known without training", percent(max(0.0, seen["known_under_a_fresh_key"])),
            "How much of what the final model computes a start with fresh random numbers gets right beyond chance. An honest task "
            "brings along nothing of it.",
        ))  # fmt: skip
    return found


def learned_briefly(verdict: Verdict) -> list[str]:
    """:func:`learned` on a line, for the terminal."""
    facts = {fact.name: fact.value for fact in learned(verdict)}
    shown = [f"{name.lower()}: {facts[name]}" for name in facts if name != "Known without training"]
    return [", ".join(shown)] if shown else []


def _moved(seen: dict[str, float], values: bool) -> Fact:
    moved, unrest = seen["first_to_final"], seen.get("final_unrest", 0.0)
    if not values:
        return Fact(
            "First to final", number(moved),
            "How different the answers of the first and of the final model are, on samples that the verifier drew: 0 the same, "
            "1 as different as they can be.",
        )  # fmt: skip
    if unrest > 0 and moved <= 1000 * unrest:
        ratio = moved / unrest
        times = f"{ratio:.1f} times" if ratio < 10 else f"{ratio:,.0f} times"
    else:
        times = "over 1,000 times"
    return Fact(
        "First to final", times if moved else "the same",
        "How much farther the first model's outputs are from the final ones than the outputs shortly before the end are, on samples "
        "that the verifier drew.",
    )  # fmt: skip


def cost(verdict: Verdict) -> str:
    """The cost of verification as a share of training: ``4,250 of 50,000 steps (8.5 %)``."""
    spent = verdict.cost
    if not spent.steps_replayed:
        return "no step replayed"
    return f"{spent.steps_replayed:,} of {plural(spent.steps_total, 'step')} replayed ({percent(spent.share)})"


def own_share(verdict: Verdict) -> str:
    """What the verifier's own machine replayed where others helped, and what that is worth alone; "" where none did."""
    spent = verdict.cost
    if spent.own_share is None or spent.colluding_miss is None:
        return ""
    return (
        f"{percent(spent.own_share)} of the challenged segments were replayed on this machine. The others were told no end, and who "
        "did not compute is found; but workers that hold the proof and collude with its maker pass what was not replayed here: then a "
        f"forgery that the draws hit is missed with a probability of up to {percent(spent.colluding_miss)}"
    )


def sources(verdict: Verdict) -> tuple[str, str]:
    """The digest of the task's sources ("" where there is none), and what is to be said of it."""
    named = verdict.conditions
    if named.task is None:
        return "", condition(None)
    if sealed(verdict):
        return "", "none: what was replayed is the program in the proof, and nothing else of the prover's was run"
    if named.sources is None:
        return "", "not available in full: the verdict rests on the task's description alone"
    if named.sources_pinned:
        return named.sources, "as the policy says"
    return named.sources, "pinned by no policy: the task's program is what the verifier happened to hold"


def sealed(verdict: Verdict) -> bool:
    """Whether the steps were replayed as the program in the proof (``verify --sealed``)."""
    return any(check.name == "task" and check.evidence.get("program") for check in verdict.checks)


def program(verdict: Verdict) -> str:
    """What the prover says was run, with arguments and settings; empty where it does not say."""
    proof = verdict.proof
    settings = [f"{name}={value}" for name, value in proof.settings.items()]
    together = [f"(in {proof.ranks} processes)"] if proof.ranks > 1 else []
    return " ".join([*([proof.program] if proof.program else []), *proof.arguments, *settings, *together])


def signers(verdict: Verdict) -> list[tuple[str, str]]:
    """Each key that signed, and what it is to the proof."""
    told = []
    for signer in verdict.signers:
        roles = [
            *(["a key that the verifier trusts"] if signer.trusted else []),
            *(["an owner by the claim"] if signer.owner and not signer.replaces else []),
            *([f"in the place of {signer.replaces[0][:19]}…, by the claim's recovery key"] if signer.replaces else []),
        ]
        signed = " and ".join("the proof" if kind == "seal" else f"the {kind}" for kind in sorted(signer.signed))
        told.append((signer.key, f"signed {signed}; {' and '.join(roles) or 'a witness: no owner, no --trusted-key'}"))
    return told


_MOMENTS = {"claim": "Claim", "head": "Training under way", "seal": "Finished proof", "recovery": "Key replaced"}
_SHOWN_HEADS = 3  # that count for nothing


def moments(verdict: Verdict) -> list[tuple[str, str, Moment]]:
    """The time line: what was stamped, by when it was there, and the rest. Log heads that count are in :func:`stretches`."""
    odd = [moment for moment in verdict.timeline if moment.what == "head" and not moment.trusted]
    told = [moment for moment in verdict.timeline if moment.what != "head"]
    return [
        (_MOMENTS.get(moment.what, moment.what), f"by {_utc(moment.latest)}", moment)
        for moment in (*told, *odd[:_SHOWN_HEADS])
    ]


def stretches(verdict: Verdict) -> list[tuple[str, str, str]]:
    """Of a run whose log heads were stamped: which steps, by when they had been taken, and what is guaranteed of them alone."""
    told = []
    for stretch in verdict.stretches:
        when = "not stamped" if stretch.latest is None else f"taken by {_utc(stretch.latest)}"
        part = f"{stretch.drawn:,} of its {stretch.segments:,} segments were drawn uniformly"
        if not stretch.segments:
            note = "none of its segments does work"
        elif stretch.forged_fraction is None:
            note = "nothing of it was replayed"
        elif stretch.forged_fraction == 0:
            note = f"{part}: none could be forged unseen"
        elif stretch.forged_fraction < 1:
            note = f"{part}: a forgery of more than {percent(stretch.forged_fraction)} of them would be hit with 99 %"
        else:
            note = f"{part}: of this stretch by itself nothing is guaranteed"
        told.append((f"Steps {stretch.start + 1:,} to {stretch.stop:,}", when, note))
    return told


def _utc(moment: str) -> str:
    return moment.replace("T", " ").replace("Z", " UTC")


UNDATED = "No timestamp of an authority that the verifier named (`--trusted-tsa`) is on this proof: nothing shows when it was there."


def data(verdict: Verdict) -> str:
    """The digest of the data that the verifier named, or why there is none."""
    if verdict.conditions.data is not None:
        return verdict.conditions.data
    found = next((check.evidence for check in verdict.checks if check.name == "data"), {})
    if found.get("salted"):
        return "not compared: the root is salted, so that only its owner can show what is under it (`pol challenge`, `pol open`)"
    if "opened" in found:
        return "not named: the root in the opening is the owner's word (`--data-root` names the one that you expect)"
    return condition(None)


def arithmetic(kind: str | None) -> str:
    """What steps are computed in, and what that means for whoever checks them; "" where it is not known."""
    told = ARITHMETIC.get(kind or "")
    return f"{kind} arithmetic: {told[0].lower()}{told[1:]}" if told else ""


def condition(digest: str | None) -> str:
    """A digest that the verifier named, or that none was."""
    return digest or "none named"
