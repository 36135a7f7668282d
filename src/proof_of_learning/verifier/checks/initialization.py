"""Initialization: training began from the random state that the key gives, and that state is really random."""

from __future__ import annotations

import fnmatch
from typing import Any

from proof_of_learning import canonical
from proof_of_learning.replay.measure import measured
from proof_of_learning.replay.protocol import Initialize, Initialized, TensorOrigin
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult

ROUNDING = 1e-4  # of a tensor's norm: far below one step of training, far above the rounding of a derived draw


class InitializationCheck:
    name = "initialization"
    meaning = (
        "The first state is the one that the key gives, and every tensor in it is constant or really depends on the key: "
        "two runs under different keys share nothing."
    )
    limits = "A key can be chosen among many by trying; only a registered claim fixes it before training."

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return [[self._request(evidence)]]

    def _request(self, evidence: Evidence) -> Initialize:
        # The second key must be one that the task could not expect: it follows from the verifier's nonce.
        nonce = bytes.fromhex(evidence.challenge.nonce.value)
        return Initialize(canonical.sha256(b"pol/v1/second-key\0", nonce)[7:])

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        answer = answers.get(self._request(evidence), Initialized)
        kind = evidence.proof.header.initialization.kind
        linked = sum(t.origin == "linked" for t in answer.tensors)
        pretrained, tables = suspicious(answer.tensors, evidence.options.approve_fixed)
        share = trained_share(answer.tensors)
        details: dict[str, Any] = {
            "trained_share": share, "fixed": [_line(t) for t in (*pretrained, *tables)][:100],
            "constant": sum(t.origin == "constant" for t in answer.tensors),
            "drawn": sum(t.origin == "drawn" for t in answer.tensors),
        }  # fmt: skip
        if kind == "linked" and (unfit := self._chain(evidence)) is not None:
            return unfit
        differs = kind in ("derived", "linked") and answer.state != evidence.proof.initial_state
        differences = evidence.unreproduced(0)
        rounded = differs and evidence.calibrates(0) and _rounded_alike(answer)
        if differs and not differences:
            return result(
                self, "fail",
                f"training did not start from the state that the key {'and the linked proof give' if linked else 'gives'}",
                derived=answer.state, recorded=evidence.proof.initial_state, **details,
            )  # fmt: skip
        if differs and not rounded:
            return result(
                self, "inconclusive",
                "the derived initial state has other bits here, where the recorded environment is not reproduced",
                unreproduced=differences, **details,
            )  # fmt: skip
        if pretrained:
            names = ", ".join(t.name for t in pretrained[:3])
            return result(
                self, "fail",
                f"{len(pretrained)} of the {len(answer.tensors)} initial tensors do not depend on the key, so they are "
                f"pretrained ({names}{', …' if len(pretrained) > 3 else ''}); they would need a proof of their own",
                **details,
            )  # fmt: skip
        if tables:
            return result(
                self, "inconclusive",
                f"{len(tables)} buffers or frozen tensors are the same under every key ({tables[0].name}); if they are tables "
                f"that belong to the task, approve them with --approve-fixed '{tables[0].name}'",
                **details,
            )  # fmt: skip
        if kind == "linked":
            assert evidence.chain is not None
            return result(
                self,
                "pass",
                f"{linked} of {len(answer.tensors)} tensors are the final ones of {evidence.chain.links[0].root[:19]}…, "
                "which is valid; the others follow from the key",
                linked=linked,
                chain=[link.root for link in evidence.chain.links],
                probability_product=evidence.chain.product,
                **details,
            )
        if kind == "recorded":
            return self._recorded(evidence, answer, details)
        how = "up to rounding" if rounded else "bit for bit"
        return result(
            self,
            "pass",
            f"derived from the key and recomputed {how}; {share:.0%} of the parameters are trained",
            **details,
        )

    def _recorded(self, evidence: Evidence, answer: Initialized, details: dict[str, Any]) -> CheckResult:
        """A recorded start: the optimizer is fresh, and every tensor looks like a draw from the public pool."""
        # Not at the top of the file: it brings scipy.stats, which takes a second to load.
        from proof_of_learning.verifier.initialization.judge import judge_initialization

        if not answer.rest_fresh:
            return result(
                self,
                "fail",
                "the run does not start with a fresh optimizer: its recorded state has moved already",
                **details,
            )
        if not evidence.proof.has_state(evidence.proof.initial_state):
            return result(self, "inconclusive", "the initial state is not in the proof", **details)
        initial = evidence.proof.state(evidence.proof.initial_state).part("model")
        tested = judge_initialization({n: t for n, t in initial.tensors.items() if measured(t)})
        details |= {"alpha": tested.alpha, "p_value": tested.p_value, "tested_share": tested.judged_share}
        if not tested.accepted:
            worst = min(tested.rejected, key=lambda t: t.p_value)
            return result(
                self, "fail",
                f"{len(tested.rejected)} initial tensors look like no random initialization of the pool; {worst.name}: "
                f"p = {worst.p_value:.2g} ({worst.test})",
                rejected=[f"{t.name}: p = {t.p_value:.3g} ({t.test})" for t in tested.rejected][:100], **details,
            )  # fmt: skip
        return result(
            self, "pass",
            f"recorded, and every tensor could be a draw from the public pool (smallest corrected p = {tested.p_value:.2g}); "
            "weights arranged to look random are not excluded",
            **details,
        )  # fmt: skip

    def _chain(self, evidence: Evidence) -> CheckResult | None:
        """What stands against a linked start, if anything."""
        links = evidence.chain.links if evidence.chain else []
        for status, verdicts in (("fail", ("invalid",)), ("inconclusive", ("inconclusive",))):
            for link in links:
                if link.verdict in verdicts:
                    return result(
                        self,
                        status,  # type: ignore[arg-type]
                        f"training started from the proof {link.root[:19]}…, which is {link.verdict}: {link.reason}",
                        link=link.root,
                    )
        return None


def _rounded_alike(answer: Initialized) -> bool:
    """Whether the recorded initial state is the derived one but for rounding (initializations differ in last bits between
    CPU capabilities, and orthogonal ones between thread counts)."""
    equal = answer.comparison is not None and not answer.comparison.unequal
    return equal and all(error <= ROUNDING for error in answer.relative.values())


def trained_share(tensors: list[TensorOrigin]) -> float:
    """The share of the model's parameters that training may change."""
    elements = sum(t.elements for t in tensors if t.name.startswith("model/parameters/"))
    return sum(t.elements for t in tensors if t.trainable) / elements if elements else 0.0


def suspicious(tensors: list[TensorOrigin], approved: tuple[str, ...]) -> tuple[list[TensorOrigin], list[TensorOrigin]]:
    """Trainable tensors that the key does not (fully) decide, and floating-point tables that are the same under every key.

    Integer and boolean tensors that do not change with the key (masks, index tables) carry no weights.
    """
    open_ = [
        t
        for t in tensors
        if t.origin in ("fixed", "partly-fixed")
        and t.floating
        and not any(fnmatch.fnmatch(t.name, p) for p in approved)
    ]
    return [t for t in open_ if t.trainable], [t for t in open_ if not t.trainable]


def _line(tensor: TensorOrigin) -> str:
    correlation = f", correlation {tensor.correlation:.3f}" if tensor.origin == "partly-fixed" else ""
    return f"{tensor.name} ({tensor.elements:,} elements, {tensor.origin}{correlation})"
