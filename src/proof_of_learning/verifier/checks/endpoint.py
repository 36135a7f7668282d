"""Endpoint: the trajectory ends in the model that the proof is about."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from proof_of_learning import canonical
from proof_of_learning.canonical import brief
from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.limits import MAX_OBJECT_HEADER
from proof_of_learning.proof.format import HEADER_FILE
from proof_of_learning.proof.reader import Proof
from proof_of_learning.state.names import is_weight, short_name
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult

_MAX_SHARDS = 10_000


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
    """Where a safetensors file, or the files of a folder, differ from the proof's final model; every parameter must be there, and
    nothing else must differ.

    A state has one name for tied weights, a file may have another, or all of them: a name that the model does not have is another name
    of the tensor that it equals bit for bit, and stands for it.
    """
    state = proof.state(proof.segments[-1].state).part("model")
    final = {short_name(name): (name, t) for name, t in state.tensors.items()}
    needed = {short for short, (name, _) in final.items() if is_weight(name)}
    found: list[str] = []
    try:
        with ExitStack() as opened:
            given: dict[str, Any] = {}
            for file in weight_files(path):
                stored = opened.enter_context(safe_open(file, framework="pt"))
                twice = given.keys() & set(stored.keys())
                found += [f"{name} stands in two files" for name in sorted(twice)]
                given |= dict.fromkeys(stored.keys(), stored)
            names = set(given)
            values = _by_value(final) if names - set(final) else {}
            for name in sorted(names - set(final)):
                equal = values.get(_value(given[name].get_tensor(name)), set())
                needed -= equal
                found += [] if equal else [f"{name} is not a tensor of the model"]
            found += [f"{name} is missing from the file" for name in sorted(needed - names)]
            for name in sorted(names & set(final)):
                tensor = given[name].get_tensor(name)
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


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model: ``path`` itself, or those of a folder in Hugging Face's form, by its index.

    Raises UsageError; nothing is ever unpickled.
    """
    if not path.is_dir():
        return [path]
    one, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if not index.exists():
        if one.exists():
            return [one]
        if (path / HEADER_FILE).exists():
            raise UsageError(
                f"{path} is a proof, and a model is wanted: `pol export {path} -o model.safetensors` writes its"
            )
        pickled = next((item.name for item in sorted(path.glob("*.bin"))), None)
        why = f"{pickled} is pickled, and no pickle is read" if pickled else "nor model.safetensors.index.json"
        raise UsageError(
            f"the folder {path} holds no model.safetensors ({why}); save the model with safe_serialization=True"
        )
    try:
        with open(index, "rb") as stream:
            found: _Index = canonical.lenient(stream.read(MAX_OBJECT_HEADER), _Index, "it")
    except (OSError, FormatError) as error:
        raise UsageError(f"{index} cannot be read ({brief(error)})") from None
    shards = set(found.weight_map.values())
    for shard in sorted(shards):
        if os.path.basename(shard) != shard or not (path / shard).is_file():
            raise UsageError(f"{index} names {brief(shard)}, which is no file in that folder")
    if not shards or len(shards) > _MAX_SHARDS:
        raise UsageError(f"{index} names no files, or more than {_MAX_SHARDS:,}")
    return [path / shard for shard in sorted(shards)]


class _Index(msgspec.Struct):
    """Of a model in several files: which tensor is in which."""

    weight_map: dict[str, str]


def _by_value(final: Mapping[str, tuple[str, Tensor]]) -> dict[tuple[Any, ...], set[str]]:
    """The names of the final tensors by what they hold, bit for bit."""
    found: dict[tuple[Any, ...], set[str]] = {}
    for name, (_, tensor) in final.items():
        found.setdefault(_value(tensor), set()).add(name)
    return found


def _value(tensor: Tensor) -> tuple[Any, ...]:
    raw: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return tensor.dtype, tensor.shape, hashlib.sha256(raw).digest()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one type and shape are the same bytes."""
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))
