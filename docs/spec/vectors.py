"""The test vectors in ``format.md``, as the code gives them: ``python docs/spec/vectors.py`` prints them.

Every line is ``name = value``. Byte strings are hex, JSON is canonical. Nothing here depends on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from proof_of_learning import canonical
from proof_of_learning.data.commit import commit, encode_sample, merkle_root
from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Device, Environment, Flags
from proof_of_learning.proof import format
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.codecs.raw import RawCodec
from proof_of_learning.registration import Claim
from proof_of_learning.state.state import State, encode_tree
from proof_of_learning.task import Description

SEED = 0x0123456789ABCDEF


def vectors() -> Iterator[tuple[str, str]]:
    """Names and values, in the order of the specification."""
    yield "json.numbers", text([0, -0.0, 1.0, -2.5, 0.1, 1e-6, 1e-7, 1e20, 1e21, 5e-324, 2**53 - 1])
    yield "json.strings", text({"\U0001f600": 1, "\ufb33": 2, "a": 'é "\\/\b\n\x1f'})
    yield from _randomness()
    yield from _data()
    yield from _states()
    yield from _documents()


def _randomness() -> Iterator[tuple[str, str]]:
    key = randomness.key_from_seed(0)
    yield "key.seed-0", key.hex()
    yield "key.seed-max", randomness.key_from_seed(2**64 - 1).hex()
    for purpose, step, slot in (("initialization", 0, 0), ("order", 1, 0), ("step", 2, 0), ("augmentation", 3, 17)):
        yield f"derive.{purpose}.{step}.{slot}", f"{randomness.derive(key, purpose, step, slot):016x}"
    yield "philox.words", " ".join(f"{word:016x}" for word in randomness.raw_words(SEED, 6).tolist())
    yield "philox.permutation", text(randomness.permutation(SEED, 10).tolist())
    yield "philox.uniforms", " ".join(value.hex() for value in randomness.uniforms(SEED, 2).tolist())


def _data() -> Iterator[tuple[str, str]]:
    samples: list[tuple[str, Any]] = [
        ("tensor", torch.tensor([[1.0, 2.0]], dtype=torch.float32)), ("number", np.int16(-2)), ("list", [True, None]),
        ("dict", {"b": 1, "a": -12}), ("float", 0.1), ("string", "é"), ("bytes", b"\x00\xff"),
    ]  # fmt: skip
    for name, sample in samples:
        yield f"sample.{name}", encode_sample(sample).hex()
    yield "data.root-1", commit([b"a"]).root
    yield "data.root-1-salted", commit([b"a"], salts=[b"salt"]).root
    yield "data.root-3", commit([b"a", b"b", b"c"]).root
    yield "data.root-5", commit([b"a", b"b", b"c", b"d", b"e"]).root
    yield "merkle.of-zeros-and-ones", merkle_root([bytes(32), b"\xff" * 32]).hex()


def example_state() -> State:
    """A small state with one of everything."""
    value = {
        "model": {"parameters": {"w": torch.tensor([[1.5, -2.0]]), "a/b~c": torch.tensor(3, dtype=torch.bfloat16)}},
        "optimizer": {
            "groups": [{"lr": 0.1, "betas": (0.9, float("inf")), "params": [0, 1]}],
            "state": {10: {"step": torch.tensor(2.0)}, 2: {"mask": torch.tensor([True, False]), "none": None}},
        },
        "progress": {"step": 7},
    }
    tensors: dict[str, torch.Tensor] = {}
    items = [[f"s:{name}", encode_tree(part, name, tensors)] for name, part in value.items()]
    return State({"d": items}, tensors)


def _states() -> Iterator[tuple[str, str]]:
    floats = (0.1, -0.0, 1.0, 5e-324, float("-inf"), float("nan"))
    yield "tree.floats", text([encode_tree(value, "", {}) for value in floats])
    state = example_state()
    yield "state.tree", text(state.tree)
    for name in sorted(state.tensors):
        yield f"state.tensor {name}", state.tensor_digest(name)
    yield "state.digest", state.digest()
    yield "state.model", state.part("model").digest()
    yield "state.object", b"".join(bytes(piece) for piece in RawCodec().encode(state, None).chunks()).hex()
    columns = Columns(np.array([2.5, 1.25]), np.array([[0.1], [0.05]]), [np.array([4, 0]), np.array([3])])
    yield "block.bytes", columns.encode().hex()


def _documents() -> Iterator[tuple[str, str]]:
    environment = Environment(
        torch="2.13.0", python="3.11.7", numpy="2.4.6", machine="x86_64", vendor="GenuineIntel", isa=["avx2", "fma"],
        capability="AVX2", threads=2, interop_threads=1, variables={"MKL_CBWR": "AVX2"}, flags=Flags(), device=Device("cpu"),
    )  # fmt: skip
    yield "environment.json", canonical.encode(environment).decode()
    yield "environment.digest", environment.digest()
    description: dict[str, Any] = {"step": {"batch_size": 32}}
    task = format.TaskClaim(Description(description, {}).digest(), "example", description, {"model": "unavailable"})
    header = format.Header(
        format=format.FORMAT, task=task, data=DataCommitment(commit([b"a", b"b", b"c"]).root, 3),
        training=format.Training(2, 2, 1), randomness=format.Randomness("derived", randomness.key_from_seed(0).hex(), "0"),
        initialization=format.Initialization("derived"), codec=format.CodecClaim("raw", 1),
        program=format.Program(reference="example.py:task", settings={"rate": 0.1}),
        parts={"model": "module", "optimizer": "optimizer", "progress": "progress"},
    )  # fmt: skip
    claim = Claim(
        format=format.FORMAT, task=task.digest, name="example", data=header.data, steps=2, interval=2, steps_per_epoch=1,
        codec=header.codec, environment=environment, nonce="00" * 32, arithmetic=header.arithmetic, settings=header.program.settings,
    )  # fmt: skip
    yield "claim.json", canonical.encode(claim).decode()
    yield "claim.digest", claim.digest()
    yield "task.digest", task.digest
    yield "header.json", header.encoded().decode()
    yield "header.digest", header.digest()
    state = example_state()
    start = canonical.encode(format.Start(prev=header.digest(), state=state.digest()))
    yield "log.start", start.decode()
    yield "log.digest", format.line_digest(start)
    reload = format.Reload(["model"], state.part("model").digest(), step=0)
    yield "log.event", canonical.encode(format.Event(format.line_digest(start), 1, reload)).decode()
    weights = state.part("model").digest()
    end = canonical.encode(format.End(format.line_digest(start), 2, "completed", weights, {"accuracy": 0.5}))
    yield "log.end", end.decode()
    yield "root", format.root(header.digest(), format.line_digest(end))
    yield "index.first-link", format.index_start(header.digest())


def text(value: Any) -> str:
    return canonical.encode(value).decode()


if __name__ == "__main__":
    for name, value in vectors():
        print(f"{name} = {value}")
