"""The document of a sealed program (in a task's description, ``program``): what is in it, how it is read (docs/spec/program.md)."""

from __future__ import annotations

import base64
import binascii
import math
import re
from typing import Any

import msgspec
import torch
from torch import Tensor

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError
from proof_of_learning.proof.format import program_digest
from proof_of_learning.state.state import DTYPES, tensor_bytes

SCHEMA = "pol/program/v1"
FILE = "the sealed program"

# A value: parameter, buffer, constant or input by number, or what an operation before it gave; of one that gives several, which.
REFERENCE = re.compile(r"([pbci])(0|[1-9][0-9]{0,6})|%(0|[1-9][0-9]{0,6})(?:\.(0|[1-9][0-9]?))?")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Held(_Part, frozen=True, array_like=True):
    """A parameter or buffer of the model. ``trained``: a parameter takes a gradient; ``other``: further names of the same tensor."""

    name: str
    dtype: str
    shape: list[int]
    trained: bool
    other: list[str]


class Constant(_Part, frozen=True):
    """Numbers that the program carries: little-endian bytes in base64."""

    dtype: str
    shape: list[int]
    data: str


class Operation(_Part, frozen=True, array_like=True):
    """One call: an overload's name (``linear.default``), arguments by position and by name (:func:`argument`)."""

    name: str
    args: list[Any]
    kwargs: dict[str, Any]


class Graph(_Part, frozen=True):
    """Operations in the order in which they run. ``inputs``: dtype and shape of each tensor of a batch; ``outputs``: values by name.

    modules: which values the model's modules put out, in the order of their calls.
    """

    inputs: list[tuple[str, list[int]]]
    operations: list[Operation]
    outputs: dict[str, str]
    modules: list[tuple[str, list[str]]] = []


class Group(_Part, frozen=True):
    """Parameters (by name) with settings of their own."""

    params: list[str]
    options: dict[str, Any]


class Update(_Part, frozen=True):
    """An optimizer by whitelisted name."""

    name: str
    groups: list[Group]


class Schedule(_Part, frozen=True):
    """A scheduler by whitelisted name and arguments; or ``recorded``: the rates of each step (of each epoch), by group."""

    name: str
    options: dict[str, Any]
    rates: list[list[Any]] = []


class Program(_Part, frozen=True):
    """A task as data. ``initial`` has an output for each parameter and buffer; ``steps`` one graph for each size of a batch.

    settings: the fields of the task that are numbers and switches.
    """

    schema: str
    name: str
    parameters: list[Held]
    buffers: list[Held]
    constants: list[Constant]
    initial: Graph
    steps: list[Graph]
    optimizer: Update
    schedule: Schedule | None
    settings: dict[str, Any]

    def encoded(self) -> bytes:
        return canonical.encode(self)

    def digest(self) -> str:
        return program_digest(self.encoded())


def constant_of(tensor: Tensor) -> Constant:
    """The constant that holds a tensor's values."""
    flat = tensor.detach().cpu().contiguous()
    raw = base64.b64encode(bytes(tensor_bytes(flat))).decode()
    return Constant(str(flat.dtype).removeprefix("torch."), list(flat.shape), raw)


def tensor_of(constant: Constant) -> Tensor:
    """The inverse. Raises FormatError."""
    try:
        raw = bytearray(base64.b64decode(constant.data, validate=True))
    except (binascii.Error, ValueError):
        raise FormatError(f"{FILE}: a constant is not base64") from None
    dtype = DTYPES[constant.dtype]
    if len(raw) != math.prod(constant.shape) * dtype.itemsize or base64.b64encode(raw).decode() != constant.data:
        raise FormatError(f"{FILE}: a constant does not have the bytes that its shape says")
    if not raw:
        return torch.empty(constant.shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype).reshape(constant.shape)


# ---- arguments ---------------------------------------------------------------------------------------


def argument(value: Any) -> Any:
    """A plain value as it stands among an operation's arguments: ``{"i": "3"}``, ``{"f": "0x1p-1"}``, ``{"d": "float32"}`` (a type),
    ``{"s": "mean"}``, lists, truth values and null as they are; a text is a reference. TypeError for anything else."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return {"i": str(value)}
    if isinstance(value, float):
        return {"f": value.hex()}
    if isinstance(value, torch.dtype):
        return {"d": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"m": str(value).removeprefix("torch.")}
    if isinstance(value, str):
        return {"s": value}
    if isinstance(value, (list, tuple)):
        return [argument(item) for item in value]
    raise TypeError(type(value).__name__)


MEMORY = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")


def plain(node: Any) -> Any:
    """The inverse of :func:`argument` for what is no reference. FormatError for what it does not write."""
    if node is None or isinstance(node, bool):
        return node
    if isinstance(node, list):
        return [plain(item) for item in node]
    if isinstance(node, dict) and len(node) == 1:
        ((tag, body),) = node.items()
        if isinstance(body, str) and len(body) <= 64:
            if tag == "i" and _INTEGER.fullmatch(body) and -(2**63) <= int(body) < 2**63:
                return int(body)
            if tag == "f":
                try:
                    if float.fromhex(body).hex() == body:
                        return float.fromhex(body)
                except (ValueError, OverflowError):
                    pass
            if tag == "d" and body in DTYPES:
                return DTYPES[body]
            if tag == "m" and body in MEMORY:
                return getattr(torch, body)
            if tag == "s" and body.isprintable():
                return body
    raise FormatError(f"{FILE}: an argument is malformed: {canonical.brief(node)}")
