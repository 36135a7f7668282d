"""What to do with a verdict: the next steps for whoever has to decide, by verdict and by reason.

Every sentence is fixed: nothing of the proof's gets into it. What is between backquotes is typed, or written in a policy.
"""

from __future__ import annotations

from proof_of_learning.report import words
from proof_of_learning.verifier.verdict import CheckResult, Verdict

MAX_STEPS = 6

AGAIN = (
    "Verify once more, with a nonce drawn anew and best on another machine. A forged proof fails again, in other segments; a "
    "fault of one machine does not come along."
)
REPEAT = (
    "Keep the proof, this report and the JSON verdict (`--json`). With the nonce above anyone can repeat this very challenge: "
    "`--nonce`, and `--accept-nonce`."
)
KEEP_ROUND = (
    "Keep the proof, its timestamps, this report, the JSON verdict (`--json`) and the file with the round. With them anyone can "
    "repeat this very challenge: `--beacon`."
)
KEEP_OPENING = (
    "Keep the opening, your challenges (and the docket), this report and the JSON verdict (`--json`). Whoever has them can verify the "
    "opening again; that the nonce was drawn, they know by your copy of the challenge alone."
)
OWN_CHALLENGE = (
    "Verify again with your own copy of the second challenge (`--challenge`): by it alone you know that what was "
    "opened was drawn."
)

OTHER_ROUND = (
    "Fetch the round that the sentence of the check names, which may not be out yet, from whom you like, and verify again with it "
    "(`--beacon`). For a verdict of your own leave `--beacon` out: then the nonce is drawn here."
)
NO_ROUND = (
    "A round counts once an authority that you name stamped the sealed proof: its owner runs `pol sign` and `pol timestamp`, and you "
    "verify with `--trusted-tsa`. For a verdict of your own leave `--beacon` out: then the nonce is drawn here."
)

_FAILED = {
    "structure": "The bytes at hand are not the ones that were sealed, or no proof that could have been recorded. Copy the proof "
    "again and compare its root with the one that the prover made known; if it fails again, it was damaged or altered.",
    "registration": "Make sure that you handed in the claim under which this run was registered (`--registration`). If it is, "
    "the run is not the one that was registered.",
    "attestation": "Make sure that you hold the right public key (`--trusted-key`). If you do, ask the prover to sign the proof "
    "(`pol sign`) and to send it again: as it is, nobody whom you trust stands for it.",
    "task": "Make sure that you named the task that was agreed: the same version of the file, the same settings (`--set`). The "
    "evidence shows where the two differ. If yours is the right one, the proof is about another training.",
    "data": "Make sure that you hold the data set that was agreed, in the right folder (`--data`). If you do, the model was "
    "trained on something else.",
    "policy": "The proof breaks a rule of your policy. That does not make it false: decide whether you need the rule, and ask "
    "the prover for a training that keeps it.",
    "endpoint": "The proof leads to another model than the one it was handed in for. Make sure that `--model` names the right "
    "file; otherwise it says nothing about the model in question.",
    "performance": "The model does not achieve what the proof says. Ask the prover on which data, and in which environment, "
    "theirs was measured.",
}  # fmt: skip
_REJECT = (
    "Do not accept the model as one that was trained this way: what is recorded is not what the task gives. Ask the prover to "
    "explain; where they made an honest mistake (another version of a library, files that changed under way), a proof recorded "
    "anew clears it up."
)

_OPEN = {
    "initialization": "The sentence of this check names what is missing: `--approve-fixed` for tables that belong to the task, "
    "`--initial-law` for weights drawn from a law of the task's own, `--chain` for a start from another model, with its proof.",
    "order": "Ask the prover how the batches were drawn. Only if unequal sampling is what the task means, accept it: "
    "`--accept-order`.",
    "hyperparameters": "The task sets rates or settings in code of its own, which only replays show. Read that code, then have "
    "every segment replayed: `--all`.",
    "drift": "The direction of the replay errors could not be judged here. Verify on a machine like the recorded one, where "
    "replays give the recorded bits.",
    "endpoint": "The final state is missing from the proof. Ask for the complete proof, or have the state made again: "
    "`pol regenerate`.",
    "performance": "The performance that the proof claims could not be measured here; the sentence of this check says why. "
    "Verify in the recorded environment, with a task that has an evaluation.",
}  # fmt: skip
_RULES = {
    "drawn_nonce": "Verify again without `--nonce`, so that it is drawn when the proof can no longer change. Only if you repeat an "
    "earlier verdict, accept it: `--accept-nonce`.",
    "every_guarantee": "One of the promises above could not be made. Where states are missing, ask for the complete proof or have "
    "them made again (`pol regenerate`); where the task shows no outputs, its step should call its networks as modules. If "
    "uniform draws are enough for you, say so: `--accept-uniform`.",
}  # fmt: skip


OTHERWISE = (
    "Verify again with what the proof was recorded with, which the sentence of the check names: settings (`--set NAME=VALUE`), the "
    "script's arguments (behind `--`; none: the recorded ones), or its files. If yours are the right ones, the proof is about another "
    "training."
)


def next_steps(verdict: Verdict) -> list[str]:
    """What whoever reads the verdict should do next, the most important first."""
    if verdict.verdict == "valid":
        steps = _after_valid(verdict)
    elif verdict.verdict == "invalid":
        steps = _after_invalid(verdict)
    else:
        steps = _after_inconclusive(verdict)
    return list(dict.fromkeys(steps))[:MAX_STEPS]


def _after_valid(verdict: Verdict) -> list[str]:
    steps = [
        "Compare the digests of task and data, above, with those that were agreed. The verdict is about these and no others."
    ]
    if words.sealed(verdict):
        steps.append(
            "Read the program in the proof (`pol inspect DIR --program`), or have it read: its loss could pull toward a model from "
            "elsewhere, and no replay tells. Nothing else of the prover's was run."
        )
    elif not verdict.conditions.sources_pinned:
        steps.append(
            "Read the task's program, or have it read: its loss could pull toward a model from elsewhere, and no replay tells. "
            "Once it was read, a policy can name its sources (`accept.sources`)."
        )
    if verdict.assurance == "observed":
        steps.append(
            "The prover chose the randomness. Where much depends on it, ask for a proof whose randomness follows from a "
            "registered claim (`pol register`)."
        )
    elif verdict.assurance == "seed-derived":
        steps.append(
            "Nothing shows that the training began after its claim was made known. Where two people claim one model, ask both for "
            "claims that they signed and had stamped before training (`pol register --key --tsa`), and for timestamps on their proofs."
        )
    if verdict.exactness == "calibrated":
        steps.append(
            "Where much depends on it, verify on a machine like the recorded one, where replays give the same bits."
        )
    if verdict.nonce.origin == "self-chosen" and verdict.nonce.round is None:
        steps.append(OWN_CHALLENGE if _opened(verdict) else _RULES["drawn_nonce"])
    return [*steps, _keep(verdict)]


def _opened(verdict: Verdict) -> bool:
    """Whether it is on an opening, whose draw stands in a challenge."""
    return any(check.name == "opening" for check in verdict.checks)


def _keep(verdict: Verdict) -> str:
    if verdict.nonce.round is not None:
        return KEEP_ROUND
    return KEEP_OPENING if _opened(verdict) else REPEAT


def _after_invalid(verdict: Verdict) -> list[str]:
    failed = [check.name for check in verdict.checks if check.status == "fail"]
    steps = [_FAILED.get(name, _REJECT) for name in failed]
    if any(name not in _FAILED for name in failed):
        steps.append(AGAIN)
    return [*steps, _keep(verdict)] if verdict.nonce.value and verdict.segments else steps


def _after_inconclusive(verdict: Verdict) -> list[str]:
    steps = ["Do not take this for a yes or for a no: verify again with what was missing."]
    if verdict.conditions.task is None:
        return [*steps, "Name the task: `pol verify PROOF --task FILE.py:FUNCTION`. Without it nothing was replayed."]
    for check in verdict.checks:
        if check.mandatory and check.status != "pass":
            steps += _missing(check, verdict)
    return steps


def _missing(check: CheckResult, verdict: Verdict) -> list[str]:
    if check.mistaken:
        return [OTHERWISE]
    if check.name == "policy":
        broken = check.evidence.get("broken")
        names = [name for name in broken if isinstance(name, str)] if isinstance(broken, list) else []
        other = "Your policy asks for more than this verification gave. Draw more segments: `--random`, or `--all`."
        rules = {**_RULES, "drawn_nonce": _other_draw(verdict)}
        return [rules.get(name, other) for name in names]
    if check.name == "data":
        return _data(check)
    if check.name == "trajectory":
        return [_replayed(verdict)]
    if check.name == "learning":
        return [_learned(check, verdict)]
    return [_OPEN[check.name]] if check.name in _OPEN else []


def _other_draw(verdict: Verdict) -> str:
    """What to do about a nonce that counts as handed in."""
    if _opened(verdict):
        return OWN_CHALLENGE
    if verdict.nonce.round is None:
        return _RULES["drawn_nonce"]
    return OTHER_ROUND if _dated(verdict) else NO_ROUND


def _dated(verdict: Verdict) -> bool:
    return any(moment.what == "seal" and moment.trusted for moment in verdict.timeline)


def _data(check: CheckResult) -> list[str]:
    """Nothing where the data were not looked at: what kept them from it has advice of its own."""
    if check.status == "skipped":
        return []
    if "opened" in check.evidence:
        return [
            "Name the data root that you expect (from a contract, a claim or an earlier audit): `--data-root`. The root in the "
            "opening is the owner's choice."
        ]
    return ["Challenge the owner of the data, who opens what you draw and holds the salts: `pol challenge`."]


def _replayed(verdict: Verdict) -> str:
    if verdict.unreproduced and verdict.exactness == "exact":
        return (
            "Verify on a machine like the recorded one (“What was not reproduced” names the differences), or allow differences "
            "within measured noise: `--allow-calibrated`. That gives an answer mostly where checkpoints are few steps apart."
        )
    return (
        "Some segments could not be judged; the table of segments says why of each. Where time or memory ran out, verify again "
        "with more (`--timeout`); where noise is too large, on a machine like the recorded one."
    )


def _learned(check: CheckResult, verdict: Verdict) -> str:
    if check.status == "skipped":
        return (
            "Nobody could see what the networks compute. The task's step should call its networks as modules (`model(x)`); if "
            "it cannot, and uniform draws are enough for you, say so: `--accept-uniform`."
        )
    return (
        "Ask the prover what this training was for: it looks as if little of it was needed. A start from another model is "
        "proven by that model's own proof (`--chain`); long idle stretches that are meant can be allowed by a policy "
        "(`training.max_idle_share`); networks that never come to rest show it in a longer run, or one whose rate falls."
    )
