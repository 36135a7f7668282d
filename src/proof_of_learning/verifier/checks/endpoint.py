"""Endpoint: the trajectory ends in the model that the proof is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from proof_of_learning.errors import UsageError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.training.names import is_weight, short_name
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult


class EndpointCheck:
    name = "endpoint"
    meaning = "The last recorded state holds the final weights that the proof names, and those of the model file where one was given."
    limits = "Without --model it ties the proof to its own final weights, not to a model found elsewhere."

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return []

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        proof, claimed = evidence.proof, evidence.proof.end.final_weights
        if evidence.survey.final_model is None:
            return result(self, "inconclusive", "the final state is not in the proof")
        if evidence.survey.final_model != claimed:
            return result(
                self, "fail", "the final weights that the proof names are not those of its last state",
                named=claimed, found=evidence.survey.final_model,
            )  # fmt: skip
        if evidence.options.claims.model is None:
            return result(
                self, "pass", f"the last state holds the final weights {claimed[:19]}…", final_weights=claimed
            )
        differences = compare_model(proof, evidence.options.claims.model)
        if differences:
            return result(
                self, "fail", f"the given model is not the proof's: {differences[0]}", differences=differences[:100]
            )
        return result(
            self, "pass", "the last state holds the weights of the given model, bit for bit", final_weights=claimed
        )


def compare_model(proof: Proof, path: Path) -> list[str]:
    """Where a safetensors file differs from the proof's final model; every parameter must be in it, and nothing else must differ.

    A state has one name for tied weights, a file may have another, or all of them: a name that the model does not have is another name
    of the tensor that it equals bit for bit, and stands for it.
    """
    state = proof.state(proof.segments[-1].state).part("model")
    final = {short_name(name): (name, t) for name, t in state.tensors.items()}
    needed = {short for short, (name, _) in final.items() if is_weight(name)}
    found: list[str] = []
    try:
        with safe_open(path, framework="pt") as given:
            names = set(given.keys())
            for name in sorted(names - set(final)):
                equal = _equal_to(given.get_tensor(name), final)
                needed -= equal
                found += [] if equal else [f"{name} is not a tensor of the model"]
            found += [f"{name} is missing from the file" for name in sorted(needed - names)]
            for name in sorted(names & set(final)):
                tensor = given.get_tensor(name)
                if tensor.dtype != final[name][1].dtype or tensor.shape != final[name][1].shape:
                    found.append(f"{name} has another type or shape")
                elif not same_bits(tensor, final[name][1]):
                    found.append(f"{name} has other values")
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"the model file {path} cannot be read as safetensors ({str(error)[:200]}); "
            "save it with safetensors.torch.save_file(model.state_dict(), …)"
        ) from None
    return found


def _equal_to(tensor: Tensor, final: Mapping[str, tuple[str, Tensor]]) -> set[str]:
    """The names of the final tensors that a tensor equals bit for bit."""
    alike = {n: t for n, (_, t) in final.items() if t.dtype == tensor.dtype and t.shape == tensor.shape}
    return {name for name, other in alike.items() if same_bits(tensor, other)}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one type and shape are the same bytes."""
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))
