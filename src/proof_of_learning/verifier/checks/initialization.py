"""Initialization: training began from the random state that the key gives, and that state is really random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proof_of_learning.replay.measure import measured
from proof_of_learning.replay.protocol import Describe, Described, TensorOrigin
from proof_of_learning.replay.requests import Initialized
from proof_of_learning.state.names import part_of, short_name
from proof_of_learning.state.state import State
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.initialization.parts import independent, is_standard, modules
from proof_of_learning.verifier.initialization.start import second_start, suspicious, trained_share
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
        return [[second_start(evidence.challenge.nonce)]]

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        answer = answers.get(second_start(evidence.challenge.nonce), Initialized)
        kind = evidence.proof.header.initialization.kind
        linked = sum(t.origin == "linked" for t in answer.tensors)
        pretrained, tables = suspicious(answer.tensors, evidence.options.claims.approve_fixed)
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
        if shuffled := [t.name for t in pretrained if t.origin == "rearranged"]:
            names = f"{', '.join(shuffled[:3])}{', …' if len(shuffled) > 3 else ''}"
            return result(
                self, "fail",
                f"{len(shuffled)} of the {len(answer.tensors)} initial tensors hold the same values under every key, in another order "
                f"or rescaled, so they are pretrained ({names}); they would need a proof of their own",
                **details,
            )  # fmt: skip
        if pretrained:
            names = ", ".join(t.name for t in pretrained[:3])
            return result(
                self, "fail",
                f"{len(pretrained)} of the {len(answer.tensors)} initial tensors do not depend on the key, so they are "
                f"pretrained ({names}{', …' if len(pretrained) > 3 else ''}); they would need a proof of their own, or, where the "
                f"task means them so (an identity, a seed in its factory), to be approved with --approve-fixed '{pretrained[0].name}'",
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
            found = self._recorded(evidence, answer, details)
            if not linked:
                return found
            file = answers.get(Describe(), Described).pretrained
            told = (
                f"{linked} of {len(answer.tensors)} tensors are those of {file}, which the script names as pretrained"
            )
            more = {**found.evidence, "pretrained": file, "linked": linked}
            return result(self, found.status, f"{told}; the others: {found.summary}", **more)
        how = "up to rounding" if rounded else "bit for bit"
        if linked:
            file = answers.get(Describe(), Described).pretrained
            how += (
                f"; {linked} of {len(answer.tensors)} tensors are those of {file}, which the script names as pretrained"
            )
            details |= {"pretrained": file, "linked": linked}
        return result(
            self,
            "pass",
            f"derived from the key and recomputed {how}; {share:.0%} of the parameters are trained",
            **details,
        )

    def _recorded(self, evidence: Evidence, answer: Initialized, details: dict[str, Any]) -> CheckResult:
        """A recorded start: the optimizer is fresh, and every tensor looks like a draw from the public pool, or from a law that
        the verifier named."""
        # Not at the top of the file: it brings scipy.stats, which takes a second to load.
        from proof_of_learning.verifier.initialization.judge import judge_initialization
        from proof_of_learning.verifier.initialization.named import named_laws

        if not evidence.proof.has_state(evidence.proof.initial_state):
            return result(self, "inconclusive", "the initial state is not in the proof", **details)
        initial = evidence.proof.state(evidence.proof.initial_state)
        if moved := _moved(answer, initial):
            return result(
                self, "fail",
                f"the run does not start with a fresh optimizer: its recorded state has moved already ({moved})", **details,
            )  # fmt: skip
        if answer.state == evidence.proof.initial_state:
            return result(
                self, "pass",
                f"recorded, and bit for bit what the set-up gives here; {details['trained_share']:.0%} of the parameters are trained",
                **details,
            )  # fmt: skip
        laws = evidence.options.claims.laws
        near = ROUNDING if evidence.unreproduced(0) else 0.0
        tested = judge_initialization(_to_test(answer, initial, near), laws=named_laws(laws))
        details |= {"alpha": tested.alpha, "p_value": tested.p_value, "tested_share": tested.judged_share}
        details |= {"named_laws": list(laws)} if laws else {}
        if not tested.accepted:
            details["rejected"] = [f"{t.name}: p = {t.p_value:.3g} ({t.test})" for t in tested.rejected][:100]
        if tested.dependent:
            worst = min(tested.dependent, key=lambda t: t.independence)
            return result(
                self, "fail",
                f"{len(tested.dependent)} initial tensors are no independent draws from any law; {worst.name}: "
                f"p = {worst.independence:.2g}, and from a law of the pool p = {worst.p_value:.2g} ({worst.test})",
                dependent=[f"{t.name}: p = {t.independence:.3g}" for t in tested.dependent][:100], **details,
            )  # fmt: skip
        if tested.rejected:
            worst = min(tested.rejected, key=lambda t: (-t.elements, t.name))
            short = short_name(worst.name)
            values = initial.tensors[worst.name]
            return result(
                self, "inconclusive",
                f"{len(tested.rejected)} initial tensors fit no law of the public pool, although nothing speaks against independent "
                f"draws; {worst.name}: {_summary(values)}, p = {worst.p_value:.2g} ({worst.test}). If you know the law, name it: "
                f"--initial-law '{short}=normal:STD' (or uniform:WIDTH, siren:OMEGA, …; laws under [initialization] in a policy)",
                **details,
            )  # fmt: skip
        return result(
            self, "pass",
            f"recorded, and every tensor could be a draw from the public pool{' or the laws that you named' if laws else ''} "
            f"(smallest corrected p = {tested.p_value:.2g}); weights arranged to look random are not excluded",
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


def _moved(answer: Initialized, recorded: State) -> str:
    """What of a recorded start's other parts is not as in a fresh session, and cannot be tested as weights; nothing if all is well.

    Tensors of further parts (an average keeps copies of weights that were drawn) are tested as weights are.
    """
    if answer.rest_fresh:
        return ""
    drawn = modules(recorded)
    unequal = [] if answer.comparison is None else answer.comparison.unequal
    stale = [name for name in unequal if part_of(name) not in drawn]
    stale += [name for name, error in answer.relative.items() if is_standard(name) and error != 0.0]
    return stale[0] if stale else ""


def _to_test(answer: Initialized, recorded: State, near: float) -> dict[str, Tensor]:
    """The tensors of a recorded start that have to look drawn: the model's, and of further parts what does not follow from these.

    Left out is what the task gives alike under every key, and is recorded up to ``near`` of its norm: it has been approved.
    """
    same = ("fixed", "constant", "linked")
    fixed = {t.name for t in answer.tensors if t.origin in same and answer.relative.get(t.name, 0.0) <= near}
    wanted = {n: t for n, t in recorded.tensors.items() if measured(t) and n not in fixed and not is_standard(n)}
    wanted |= {n: t for part in modules(recorded) for n, t in recorded.part(part).tensors.items() if measured(t)}
    model = {name: tensor for name, tensor in wanted.items() if name.startswith("model/")}
    others = {name: tensor for name, tensor in wanted.items() if name not in model and name not in fixed}
    return {n: t for n, t in model.items() if n not in fixed} | independent(others, recorded.part("model").tensors)


def _summary(tensor: Tensor) -> str:
    values = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()
    deviation = float(values.std(correction=0))
    return f"{tensor.numel():,} values from {float(values.min()):.3g} to {float(values.max()):.3g}, standard deviation {deviation:.3g}"


def _rounded_alike(answer: Initialized) -> bool:
    """Whether the recorded initial state is the derived one but for rounding (initializations differ in last bits between
    CPU capabilities, and orthogonal ones between thread counts)."""
    equal = answer.comparison is not None and not answer.comparison.unequal
    return equal and all(error <= ROUNDING for error in answer.relative.values())


def _line(tensor: TensorOrigin) -> str:
    correlation = f", correlation {tensor.correlation:.3f}" if tensor.origin == "partly-fixed" else ""
    return f"{tensor.name} ({tensor.elements:,} elements, {tensor.origin}{correlation})"
