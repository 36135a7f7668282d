"""Proofs by hand: documents that can be edited, and everything that hangs on them made right again.

Nothing is trained, so nothing depends on a machine: the states are small numbers whose distances are exact. What is made here fits the
format and is not true; the conformance suite is about the first alone.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from proof_of_learning import canonical
from proof_of_learning.data.commit import encode_sample, leaf, merkle_root
from proof_of_learning.numeric import randomness
from proof_of_learning.proof import format
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.codecs.raw import encode_tensors
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.state import State, encode_tree

Files = dict[str, bytes]
INTERVAL = 2
ENVIRONMENT: dict[str, Any] = {
    "torch": "2.13.0+cpu",
    "python": "3.11.7",
    "numpy": "2.4.6",
    "machine": "x86_64",
    "vendor": "GenuineIntel",
    "isa": ["avx2", "fma"],
    "capability": "AVX2",
    "threads": 1,
    "interop_threads": 1,
    "variables": {"ATEN_CPU_CAPABILITY": "avx2"},
    "flags": {
        "deterministic": True,
        "cudnn_deterministic": True,
        "cudnn_benchmark": False,
        "cudnn_tf32": False,
        "matmul_precision": "highest",
        "mkldnn": True,
        "flush_denormal": False,
    },
    "device": {"type": "cpu", "name": None, "capability": None, "cuda": None, "cudnn": None},
}
DESCRIPTION: dict[str, Any] = {
    "model": {
        "modules": [["", "torch.nn.modules.linear.Linear", "in_features=3, out_features=2, bias=True"]],
        "parameters": [["weight", "float32", [2, 3], True], ["bias", "float32", [2], True]],
        "buffers": [],
    },
    "optimizers": {
        "optimizer": {"class": "torch.optim.sgd.SGD", "groups": [{"options": {"d": []}, "params": ["weight", "bias"]}]}
    },
    "schedulers": {},
    "parts": {},
    "step": {
        "accumulate": 1,
        "batch_size": 4,
        "augment": False,
        "collate": False,
        "custom": False,
        "drop_last": False,
        "shuffle": True,
        "clip_norm": None,
        "schedule": "step",
    },
}
SOURCES = {"loss": canonical.sha256(b"loss"), "module:task": canonical.sha256(b"the task's module")}
SAMPLES = [torch.tensor([float(n), float(-n), 0.5]) for n in range(13)]


def task_digest(description: Any) -> str:
    return canonical.sha256(b"pol/v1/task\0", canonical.encode(description))


def environment_digest(environment: Any) -> str:
    return canonical.sha256(b"pol/v1/environment\0", canonical.encode(environment))


def data(salts: Sequence[bytes] = ()) -> dict[str, Any]:
    """The commitment to the 13 samples."""
    hashed = [leaf(encode_sample(s), salts[i] if salts else b"") for i, s in enumerate(SAMPLES)]
    return {"root": "sha256:" + merkle_root(hashed).hex(), "samples": len(SAMPLES), "salted": bool(salts)}


# ---- states ---------------------------------------------------------------------------------------------------------


def state(step: int, **more: Any) -> State:
    """The state after so many steps: two weights with momenta, all of them small dyadic numbers. ``more``: further parts."""
    moved = float(step)
    parts: dict[str, Any] = {
        "model": {
            "parameters": {
                "weight": torch.tensor([[1.5, -2.0, 0.25], [0.0, 3.0, -1.0]]) + moved,
                "bias": torch.tensor([0.5, -0.5]) + 2 * moved,
            },
            "buffers": {},
            "frozen": [],
            "extra": {},
        },
        "optimizer": {
            "groups": [{"lr": 0.5, "momentum": 0.5, "params": [0, 1]}],
            "state": {
                0: {"momentum_buffer": torch.full((2, 3), moved)},
                1: {"momentum_buffer": torch.full((2,), -moved)},
            },
        },
        "progress": {"step": step},
        **more,
    }
    return of(parts)


def of(parts: dict[str, Any]) -> State:
    tensors: dict[str, torch.Tensor] = {}
    items = [[f"s:{name}", encode_tree(parts[name], name, tensors)] for name in sorted(parts)]
    return State({"d": items}, tensors)


def raw_object(held: State) -> bytes:
    """A state as the codec ``raw`` stores it."""
    metadata = {"pol": canonical.encode_plain(held.tree).decode()}
    return b"".join(bytes(piece) for piece in encode_tensors(held.tensors, metadata))


def packed_object(held: State, base: State | None = None) -> bytes:
    """A state of float32 tensors as the codec ``lossless`` stores it, whole or as a difference; nothing in it is compressed."""
    entries: dict[str, Any] = {}
    items: list[bytes] = []
    for name in sorted(held.tensors):
        tensor = held.tensors[name]
        ordered = _ordered(tensor)
        if base is not None:
            ordered = ordered - _ordered(base.tensors[name])
            ordered = (ordered << 1) ^ (ordered >> 31)
        entries[name] = {
            "dtype": "float32",
            "how": "plain" if base is None else "difference",
            "items": 4,
            "shape": list(tensor.shape),
        }
        items.append(ordered.astype("<i4").tobytes())
    whole = b"".join(items)
    planes = [whole[byte::4] for byte in range(4)]
    return b"".join(map(frame, [canonical.encode({"tensors": entries, "tree": held.tree}), *planes]))


def _ordered(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.int32]]:
    bits: np.ndarray[Any, np.dtype[np.int32]] = tensor.numpy().reshape(-1).view("<i4")
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int32)


def frame(content: bytes) -> bytes:
    """A zstd frame of one raw block that states its size: the same bytes whatever version of zstd is there."""
    size = len(content)
    head = struct.pack("<I", 0xFD2FB528) + b"\xa0" + struct.pack("<I", size)  # single segment, four bytes of size
    block = struct.pack("<I", size << 3 | 1)[:3] + content
    made = head + block
    return struct.pack("<I", len(made)) + made


# ---- proofs ---------------------------------------------------------------------------------------------------------


@dataclass
class Draft:
    """A proof's documents. Links (``prev``), root and sizes are filled in by :meth:`files`, over whatever the documents say.

    spell: by the name of a document (``header.json``, ``log.jsonl:2`` …) what becomes of its bytes before they are hashed.
    """

    header: dict[str, Any]
    log: list[dict[str, Any]]
    blocks: list[bytes]
    index: list[dict[str, Any]]
    objects: dict[str, bytes]
    states: list[State]
    version: int = 2
    seal: dict[str, Any] = field(default_factory=dict)
    attestations: Files = field(default_factory=dict)
    spell: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)

    def copy(self) -> Draft:
        return copy.deepcopy(self)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["kind"] == kind]

    @property
    def segments(self) -> list[dict[str, Any]]:
        return self.of_kind("segment")

    def put_block(self, number: int, raw: bytes) -> None:
        """Another block, with the digest and size that it then has in the log."""
        self.blocks[number] = raw
        self.segments[number]["block"] = {"digest": canonical.sha256(raw), "bytes": len(raw)}

    def put_object(self, position: int, raw: bytes) -> None:
        """Another object for the state at a position, under the name that it then has in the index."""
        line = self.index[position]
        self.objects.pop(line["object"], None)
        line |= {"object": canonical.sha256(raw), "bytes": len(raw)}
        self.objects[line["object"]] = raw

    def drop(self, *positions: int) -> None:
        """States that are not stored any more."""
        for position in positions:
            self.objects.pop(self.index[position]["object"], None)
        self.index = [line for position, line in enumerate(self.index) if position not in positions]

    def files(self) -> Files:
        """The proof, consistent in all digests."""
        header = self._spelled("header.json", self.header)
        top = format.header_digest(header, self.version)
        log, head = self._chained("log.jsonl", self.log, top)
        index, last = self._chained("index.jsonl", self.index, format.index_start(top, self.version))
        seal = {
            "schema": format.seal_schema(self.version),
            "root": format.root(top, head, self.version),
            "segments": len(self.segments),
            "index": last,
            **self.seal,
        }
        made = {
            "header.json": header,
            "log.jsonl": log,
            "blocks.bin": b"".join(self.blocks),
            "index.jsonl": index,
            "seal.json": self._spelled("seal.json", seal),
        }
        made |= {f"objects/{name[7:9]}/{name[7:]}": raw for name, raw in self.objects.items()}
        return made | {f"attestations/{name}": raw for name, raw in self.attestations.items()}

    @property
    def root(self) -> str:
        files = self.files()
        lines = files["log.jsonl"].split(b"\n")
        top = format.header_digest(files["header.json"], self.version)
        return format.root(top, format.line_digest(lines[-2], self.version), self.version)

    def _chained(self, name: str, lines: list[dict[str, Any]], head: str) -> tuple[bytes, str]:
        out = []
        for number, line in enumerate(lines):
            raw = self._spelled(f"{name}:{number}", {"prev": head, **line})
            head = format.line_digest(raw, self.version)
            out.append(raw + b"\n")
        return b"".join(out), head

    def _spelled(self, name: str, value: Any) -> bytes:
        return self.spell.get(name, bytes)(canonical.encode(value))


def columns(steps: int, at: int, *, recorded: bool = False, script: bool = False, metric: bool = False) -> Columns:
    """The rows of the ``steps`` steps from ``at`` on."""
    numbers = range(at, at + steps)
    indices = [np.arange(4, dtype=np.int64) + n for n in numbers]
    states = [randomness.RngSnapshot({"torch": np.full(16, n // 2, dtype=np.uint8)}) for n in numbers]
    loop = [np.array([1, 0, -1, 0, n, 4], dtype=np.int64) for n in numbers]
    from proof_of_learning.proof.blocks import Metric

    return Columns(
        loss=np.array([2.0 / (n + 1) for n in numbers]),
        rates=np.full((steps, 1), 0.5),
        indices=indices if recorded or script else None,
        rng=states if recorded or script else None,
        metrics={"plateau": Metric(np.array([0.5]), np.array([0], dtype=np.int64))} if metric else {},
        loop=loop if script else None,
    )


def draft(
    steps: int = 5,
    *,
    planned: int | None = 5,
    recorded: bool = False,
    script: bool = False,
    metric: bool = False,
    codec: str = "raw",
    version: int = 2,
    arrived: bool = False,
    make: Callable[[int], State] = state,
    parts: dict[str, str] | None = None,
    commitment: dict[str, Any] | None = None,
) -> Draft:
    """An intact proof of so many steps. ``arrived``: training goes on from another state than it arrived at."""
    in_loop = codec in ("float16", "quantised", "compact")
    bounds = [*range(0, steps, INTERVAL), steps]
    held = [make(step) for step in bounds]
    header: dict[str, Any] = {
        "format": f"pol/proof/v{version}",
        "task": {
            "digest": task_digest(DESCRIPTION),
            "name": "conformance",
            "description": DESCRIPTION,
            "sources": SOURCES,
        },
        "data": commitment or data(),
        "training": {"planned": planned, "interval": INTERVAL, "steps_per_epoch": 4},
        "randomness": {
            "mode": "recorded" if recorded or script else "derived",
            "key": randomness.key_from_seed(7).hex(),
            "seed": "7",
            "claim": None,
            "anchor": None,
        },
        "initialization": {"kind": "recorded" if recorded or script else "derived", "proof": None},
        "codec": {"name": codec, "version": 1, "in_loop": in_loop, "options": {}},
        "claim": None,
        "program": {
            "kind": "script" if script else "task",
            "reference": "train.py" if script else "task.py:task",
            "arguments": ["--epochs", "2"] if script else [],
            "settings": {} if script else {"steps": 5, "rate": 0.5, "name": None},
            "sealed": None,
        },
        "inputs": [],
        "parts": {"model": "module", "optimizer": "optimizer", "progress": "progress", **(parts or {})},
        "ranks": 1,
        "arithmetic": "native",
    }
    digest = environment_digest(ENVIRONMENT)
    log: list[dict[str, Any]] = [
        {"kind": "start", "state": held[0].digest()},
        {"kind": "environment", "digest": digest, "environment": copy.deepcopy(ENVIRONMENT)},
    ]
    blocks = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        blocks.append(
            columns(stop - start, start, recorded=recorded, script=script, metric=metric and number == 0).encode()
        )
        gone = displacement(held[number], held[number + 1])
        rounded = arrived and in_loop and stop % INTERVAL == 0 and stop != planned
        log.append(
            {
                "kind": "segment",
                "index": number,
                "start": start,
                "stop": stop,
                "arrived": canonical.sha256(f"as training left it after {stop}".encode())
                if rounded
                else held[number + 1].digest(),
                "state": held[number + 1].digest(),
                "displacement": {"state": gone.state, "weights": gone.weights},
                "environment": digest,
                "block": {"digest": canonical.sha256(blocks[-1]), "bytes": len(blocks[-1])},
                "evaluation": {"accuracy": 0.5} if number == 0 else None,
            }
        )
    log.append(
        {
            "kind": "end",
            "steps": steps,
            "ended": "completed" if planned in (None, steps) else "stopped",
            "final_weights": held[-1].part("model").digest(),
            "evaluation": None,
        }
    )
    made = Draft(header, log, blocks, [], {}, held, version)
    for position, one in enumerate(held):
        base = held[position - 1] if codec != "raw" and position and not in_loop else None
        raw = raw_object(one) if codec == "raw" else packed_object(one, base)
        name = canonical.sha256(raw)
        made.objects[name] = raw
        made.index.append(
            {
                "kind": "state",
                "state": one.digest(),
                "object": name,
                "bytes": len(raw),
                "codec": "lossless" if in_loop else codec,
                "base": None if base is None else base.digest(),
            }
        )
    if version == 1:
        _downgrade(made)
    return made


def _downgrade(made: Draft) -> None:
    """What version 1 has, in its words."""
    header = made.header
    for name in ("program", "inputs", "parts", "ranks", "arithmetic"):
        del header[name]
    del header["randomness"]["anchor"]
    header["training"]["steps"] = header["training"].pop("planned")
    for name in ("steps", "ended"):
        del made.log[-1][name]


def sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
