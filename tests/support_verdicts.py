"""Verdicts as they come out of real verifications, for tests of what people are shown."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from proof_of_learning.replay.measure import Distance
from proof_of_learning.verifier.verdict import (
    CheckResult,
    Conditions,
    Cost,
    Guarantee,
    Nonce,
    ProofSummary,
    SegmentResult,
    Status,
    Thresholds,
    Trajectory,
    Verdict,
    decide,
)

INTERVAL = 50
HOSTILE = (
    "</style></title></script><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"
    "\"'><b>bold</b> {{ 7*7 }} [bold red]rich[/] \x1b[31mred\x1b[0m \u202e gnp.exe \ud800"
)


def digest(seed: int) -> str:
    return "sha256:" + np.random.default_rng(seed).bytes(32).hex()


def distance(scale: float) -> Distance:
    return Distance(l1=40 * scale, l2=scale, linf=scale / 9, cos=min(1.0, scale * scale / 2))


def trajectory(count: int, jump: int | None = None) -> Trajectory:
    """A plausible run of ``count`` segments; ``jump``: where one segment does most of the work."""
    rng = np.random.default_rng(7)
    time = np.arange(1, count + 1) / count
    weights = 0.6 * np.exp(-2.2 * time) * rng.lognormal(0, 0.18, count) + 0.02
    progress = np.exp(-2.6 * time) * rng.lognormal(0, 0.5, count)
    if jump is not None:
        weights[jump], progress[jump] = 6.0, progress.sum() * 3
    progress -= 0.05 * progress.mean() * rng.random(count)
    steps = np.arange(0, count * INTERVAL, max(1, count * INTERVAL // 2000))
    loss = 0.12 + 2.2 * np.exp(-5.5 * steps / (count * INTERVAL)) * rng.lognormal(0, 0.16, len(steps))
    apart = np.exp(-4.0 * np.linspace(0, 1, 65)) - np.exp(-4.0)
    return Trajectory(
        function=[(round(place * count / 64) * INTERVAL, 0.8 * float(d / apart[0])) for place, d in enumerate(apart)],
        displacement=(1.35 * weights + 0.01 * rng.random(count)).tolist(),
        weights=weights.tolist(),
        distance=(7.5 * np.sqrt(np.cumsum(np.abs(progress)) / np.abs(progress).sum())).tolist(),
        progress=np.cumsum(progress / progress.sum()).tolist(),
        loss=list(zip(steps.tolist(), loss.tolist(), strict=True)),
    )


def segment(
    index: int, run: Trajectory, why: list[str], relative: float = 0.0, status: Status = "pass"
) -> SegmentResult:
    moved = run.displacement[index]
    return SegmentResult(
        index=index,
        start=index * INTERVAL,
        stop=(index + 1) * INTERVAL,
        why=why,
        status=status,
        exact=relative == 0.0,
        error=distance(relative * moved),
        relative=distance(relative),
        displacement=distance(moved),
    )


def challenges(run: Trajectory, count: int) -> dict[int, list[str]]:
    rng = np.random.default_rng(11)
    total = len(run.displacement)
    why: dict[int, list[str]] = {0: ["first"], total - 1: ["last"]}
    for index in np.argsort(run.displacement)[::-1][: count // 5].tolist():
        why.setdefault(index, []).append("top-q")
        if index:
            why.setdefault(index - 1, []).append("predecessor")
    for reason, share in (("uniform", 3), ("progress", 4), ("inertia", 7)):
        for index in rng.choice(total, count // share, replace=False).tolist():
            why.setdefault(index, []).append(reason)
    return dict(sorted(why.items()))


def checks(**changes: CheckResult) -> list[CheckResult]:
    passed = [
        CheckResult(
            name="structure",
            status="pass",
            summary="1,000 log entries chain to the root; every file is accounted for.",
            evidence={"files": 5, "entries": 1000, "bytes read": 184_331_204, "unexpected files": []},
            meaning="The bytes at hand are the ones that were sealed under this root.",
            limits="Anyone can seal anything: a sound structure says nothing about training.",
        ),
        CheckResult(
            name="signature",
            status="skipped",
            summary="the proof carries no signature",
            mandatory=False,
            meaning="Would show who sealed the proof, and when at the latest.",
            limits="A signature does not show that training took place.",
        ),
        CheckResult(
            name="task",
            status="pass",
            summary="task and data are those the verifier named; 100 % of the parameters were trained.",
            evidence={
                "task digest": digest(1),
                "data root": digest(2),
                "trained parameters": 1.0,
                "pretrained": None,
                "optimizer": {"class": "torch.optim.adamw.AdamW", "groups": [{"lr": 0.001, "betas": [0.9, 0.999]}]},
            },
            meaning="The proof is about the program and the data that the verifier means.",
            limits="The task is the prover's program. Whether it is sensible is for people to judge.",
        ),
        CheckResult(
            name="initialization",
            status="pass",
            summary="the initial state was recomputed from the key and is the recorded one, bit for bit",
            evidence={"tensors": 14, "key": digest(3)[7:], "recomputed": True},
            meaning="Training started from fresh random weights.",
            limits="Without a timestamp the claim, and so the key, could have been tried several times.",
        ),
        CheckResult(
            name="learning",
            status="pass",
            summary="the function moved by 0.8 (0 to 1), 95 % of it within the first 32,000 steps; gradients reached the network in "
            "98% of 64 states",
            evidence={
                "idle_segments": 0.002,
                "first_to_final": 0.8,
                "final_unrest": 0.01,
                "known_at_start": -0.01,
                "known_under_a_fresh_key": 0.012,
                "idle_states": 0.015625,
                "states_looked_at": 64,
                "settled_step": 640,
                "outputs": ["model"],
                "compared": "distributions",
                "evaluated_states": 65,
            },
            meaning="The first function is not the final one.",
            limits="It looks at outputs on a few samples.",
        ),
        CheckResult(
            name="trajectory",
            status="pass",
            summary="all challenged segments were replayed and gave the recorded bits",
            evidence={
                "replayed": 171,
                "exact": 171,
                "environment": {"torch": "2.13.0", "threads": 1, "deterministic": True},
            },
            meaning="The recorded states follow from each other by the task's own training steps.",
            limits="Segments that were not challenged are covered by the promises on random draws only.",
        ),
        CheckResult(
            name="endpoint",
            status="pass",
            summary="the last state's weights are the final weights",
            evidence={"final weights": digest(5)},
            meaning="The proof leads to the model it claims.",
            limits="",
        ),
    ]
    return [changes.get(check.name, check) for check in passed]


def verdict_of(run: Trajectory, segments: list[SegmentResult], results: list[CheckResult], **changes: Any) -> Verdict:
    total = len(run.displacement)
    values: dict[str, Any] = {
        "verdict": decide(results),
        "assurance": "seed-derived",
        "randomness": "derived",
        "exactness": "exact",
        "conditions": Conditions(task=digest(1), data=digest(2)),
        "proof": ProofSummary(
            root=digest(4), steps=total * INTERVAL, segments=total, interval=INTERVAL, final_weights=digest(5),
            task="examples/digits.py:task", parameters=1_938, bytes=184_331_204,
        ),
        "checks": results,
        "segments": segments,
        "guarantee": Guarantee(
            forged_fraction=0.0777, progress_fraction=0.1015, function_fraction=0.0993, group_fraction=0.298,
            excursion_fraction=0.297, uniform_draws=57, progress_draws=43,
        ),
        "nonce": Nonce(value=digest(6)[7:], origin="drawn"),
        "cost": Cost(
            steps_replayed=len(segments) * INTERVAL, steps_total=total * INTERVAL, share=len(segments) / total, seconds=203.4,
            phases={"structure": 1.2, "task and data": 3.4, "replay": 196.1, "report": 2.7},
        ),
        "trajectory": run,
    }  # fmt: skip
    return Verdict(**{**values, **changes})


def valid(count: int = 1000, challenged: int = 200) -> Verdict:
    run = trajectory(count)
    segments = [segment(index, run, why) for index, why in challenges(run, challenged).items()]
    return verdict_of(run, segments, checks())


def invalid() -> Verdict:
    """A spoof: honest-looking training with one jump to the stolen weights, judged with calibrated tolerances."""
    run = trajectory(400, jump=371)
    rng = np.random.default_rng(3)
    segments = []
    for index, why in challenges(run, 80).items():
        forged = index in (370, 371) or (index > 371 and index % 3 == 0)
        error = 0.97 if index == 371 else float(rng.lognormal(-1.2, 0.5)) if forged else float(rng.lognormal(-9, 0.6))
        segments.append(segment(index, run, why, error, "fail" if forged else "pass"))
    failed = CheckResult(
        name="trajectory",
        status="fail",
        summary=f"{sum(s.status == 'fail' for s in segments)} of {len(segments)} replayed segments do not lead to the recorded "
        "state; the worst is segment 371 (steps 18,550 to 18,600), whose replay ends 97 % of its displacement away (limit 1 %)",
        evidence={
            "failed": [370, 371, 372, 375],
            "worst": {"segment": 371, "relative error": distance(0.97), "limit": 0.01},
            "unequal": {"optimizer/state/0/step": {"recorded": 18600, "replayed": 18599}},
        },
        meaning="The recorded states follow from each other by the task's own training steps.",
        limits="A failure does not say who forged what, nor how; a wrong environment shows as many small errors instead.",
    )
    skipped = CheckResult(name="endpoint", status="skipped", summary="not carried out after a failure")
    thresholds = Thresholds(delta=0.01, rho=0.01, d_ref=distance(14.2))
    results = checks(trajectory=failed, endpoint=skipped)
    return verdict_of(
        run,
        segments,
        results,
        exactness="calibrated",
        thresholds=thresholds,
        nonce=Nonce(value="00" * 32, origin="self-chosen"),
    )


def inconclusive() -> Verdict:
    run = trajectory(20)
    segments = [
        segment(index, run, ["uniform"], 10.0 ** (-6 + index / 8), "pass" if index % 5 else "inconclusive")
        for index in range(0, 20, 2)
    ]
    segments.append(
        SegmentResult(
            index=19, start=950, stop=1000, why=["last"], status="skipped", note="the worker ran out of memory"
        )
    )
    result = CheckResult(
        name="trajectory",
        status="inconclusive",
        summary="the recorded environment (CUDA 12.4, H100) is not available here, and calibrated comparison was not allowed",
        evidence={"recorded": {"device": "cuda:0", "capability": "9.0"}, "here": {"device": "cpu"}},
    )
    return verdict_of(
        run, segments, checks(trajectory=result), guarantee=Guarantee(), assurance="observed", randomness="recorded",
        unreproduced=["device: recorded cuda:0 (H100), here cpu", "threads: recorded 8, here 2"],
    )  # fmt: skip


def bare() -> Verdict:
    """A verification that ended before there was anything to measure."""
    results = [CheckResult(name="structure", status="fail", summary="header.json ends early: 100 of 2,412 bytes")]
    return Verdict(
        verdict="invalid", assurance="observed", randomness="recorded", exactness="exact", conditions=Conditions(),
        proof=ProofSummary(root="", steps=0, segments=0, interval=0, final_weights=""), checks=results, segments=[],
        guarantee=Guarantee(), nonce=Nonce(value="", origin="drawn"),
        cost=Cost(steps_replayed=0, steps_total=0, share=0.0, seconds=0.01),
    )  # fmt: skip


def poisoned(value: Any, poison: str = HOSTILE) -> Any:
    """The verdict with ``poison`` appended wherever a string is free: the names, messages and evidence of a proof."""
    fixed = {"verdict", "assurance", "randomness", "exactness", "status", "origin", "schema"}
    if isinstance(value, str):
        return value + poison
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value)
        return type(value)(**{name: v if name in fixed else poisoned(v, poison) for name, v in fields.items()})
    if isinstance(value, dict):
        return {poisoned(key, poison): poisoned(v, poison) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(poisoned(item, poison) for item in value)
    return value
