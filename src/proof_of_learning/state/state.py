"""The training state: named parts, captured and restored the same way, with one digest.

A state is a tree of containers and tagged scalars whose leaves are tensors, flattened to
``{name: tensor}`` with names such as ``model/parameters/conv.weight`` or
``optimizer/state/0/momentum_buffer``. The digest covers names, dtypes, shapes and values; not the
container in which a codec stores them.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError, TaskError
from proof_of_learning.state.landing import landing
from proof_of_learning.state.layout import Flat, Layout
from proof_of_learning.state.names import KNOWN, escaped, family_of, joined
from proof_of_learning.state.parts import SETTINGS, adapter_of, captured, restored

Node = Any  # canonical JSON; see encode_tree

_LARGE = 1 << 22  # bytes; below it, handing over costs more than hashing
_HASHERS = 8
_LAYOUTS = 8  # that are remembered
_TENSOR = b"pol/v1/tensor\0"
_STATE = b"pol/v1/state\0"

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128"),
    )
    if hasattr(torch, name)
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class State:
    """A captured state. ``tensors`` are contiguous, on the CPU, and shared with nobody, unless the state is ``live``.

    ``flat``: the blocks that they lie in end to end, where they do. ``under_way``: what :meth:`wait` waits for.
    """

    tree: Node
    tensors: dict[str, Tensor]
    _digests: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    live: bool = False
    _views: dict[str, memoryview] = field(default_factory=dict, repr=False, compare=False)
    flat: Flat | None = field(default=None, repr=False, compare=False)
    under_way: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def wait(self) -> None:
        """Until the tensors are complete: what is captured beside the steps of a GPU is copied while they go on."""
        if self.under_way is not None:
            self.under_way()

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        """The same tensors in memory of their own; views are of nobody else's."""
        return State(copy.deepcopy(self.tree, memo), copy.deepcopy(self.tensors, memo), dict(self._digests), self.live)

    def digest(self) -> str:
        """SHA-256 over the canonical JSON of tree, dtypes, shapes and one SHA-256 per tensor."""
        if "" not in self._digests:
            self._digests[""] = canonical.sha256(_STATE, canonical.encode_plain(self.manifest()))
        return self._digests[""]

    def manifest(self) -> Node:
        """What the digest is taken over: ``{"tree": …, "tensors": {name: [dtype, shape, sha256]}}``."""
        self._hash_large()
        if self.flat is not None:
            self._hash_small()
            known = _known(self.flat.layout).items()
            return {"tree": self.tree, "tensors": {n: [*told, self._digests[n]] for n, (_, told) in known}}
        described = {
            name: [DTYPE_NAMES[t.dtype], list(t.shape), self.tensor_digest(name)] for name, t in self.tensors.items()
        }
        return {"tree": self.tree, "tensors": described}

    def _hash_small(self) -> None:
        """Hash what was not hashed yet, with what all states of this layout have in common made once."""
        assert self.flat is not None
        for name, (begun, _) in _known(self.flat.layout).items():
            if name not in self._digests:
                hasher = begun.copy()
                hasher.update(self.bytes_of(name))
                self._digests[name] = hasher.hexdigest()

    def _hash_large(self) -> None:
        """Hash the large tensors side by side: SHA-256 leaves Python's lock for them."""
        large = [name for name, t in self.tensors.items() if t.nbytes >= _LARGE and name not in self._digests]
        if len(large) > 1:
            large.sort(key=lambda name: -self.tensors[name].nbytes)
            with ThreadPoolExecutor(min(len(large), os.cpu_count() or 1, _HASHERS)) as pool:
                list(pool.map(self.tensor_digest, large))

    def tensor_digest(self, name: str) -> str:
        """Hex SHA-256 of one tensor: domain tag, dtype, shape and little-endian bytes."""
        if name not in self._digests:
            tensor = self.tensors[name]
            hasher = hashlib.sha256(_described(tensor.dtype, tensor.shape))
            hasher.update(self.bytes_of(name))
            self._digests[name] = hasher.hexdigest()
        return self._digests[name]

    def bytes_of(self, name: str) -> memoryview:
        """The raw little-endian bytes of one tensor, without a copy; made once, for hashing and for writing."""
        if name not in self._views:
            self._views[name] = tensor_bytes(self.tensors[name])
        return self._views[name]

    def part(self, *names: str) -> State:
        """The sub-state under the given parts (``("model",)`` are the weights and buffers)."""
        tree = {"d": [item for item in self.tree["d"] if item[0] in {f"s:{name}" for name in names}]}
        prefixes = tuple(f"{escaped(name)}/" for name in names)
        kept = {name: t for name, t in self.tensors.items() if name.startswith(prefixes)}
        return State(tree, kept, {n: d for n, d in self._digests.items() if n in kept}, self.live)

    def parts(self) -> list[str]:
        """The names of its parts, in their order."""
        return [key[2:] for key, _ in self.tree["d"]]

    def settled(self, spare: State | None = None) -> State:
        """This state with tensors of its own, in the memory of ``spare`` where they fit; ``spare`` is used up."""
        if not self.live:
            return self
        own: dict[str, Tensor] = {}
        rooms, tensors = list[Tensor](), list[Tensor]()  # copied all at once
        for name, tensor in self.tensors.items():
            room = None if spare is None else spare.tensors.get(name)
            if room is not None and room.shape == tensor.shape and room.dtype == tensor.dtype:
                own[name] = room
                rooms.append(room)
                tensors.append(tensor)
            else:
                own[name] = tensor.clone()
        if rooms:
            torch._foreach_copy_(rooms, tensors)
        return State(self.tree, own, self._digests)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


@functools.lru_cache(_LAYOUTS)
def _known(layout: Layout) -> dict[str, tuple[Any, tuple[str, list[int]]]]:
    """By name, the hash of what a tensor's digest begins with, and what a manifest says of it."""
    described = {name: (layout.places[name].dtype, shape) for name, shape in layout.shapes.items()}
    return {
        name: (hashlib.sha256(_described(dtype, shape)), (DTYPE_NAMES[dtype], list(shape)))
        for name, (dtype, shape) in described.items()
    }


@functools.lru_cache(KNOWN)
def _described(dtype: torch.dtype, shape: torch.Size) -> bytes:
    """What a tensor's digest begins with."""
    return _TENSOR + f"{DTYPE_NAMES[dtype]}{list(shape)}\0".encode()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The raw little-endian bytes of a contiguous CPU tensor, without a copy."""
    size = tensor.nbytes
    if not size:
        return memoryview(b"")
    if not tensor.is_contiguous():  # a single element is, whatever its stride
        tensor = tensor.detach().contiguous()
    # Not `numpy()`, after which PyTorch lets nobody resize the storage: these may be the tensors that are trained.
    return np.asarray(_Bytes(tensor, size)).data


class _Bytes:
    """The bytes of a contiguous CPU tensor, which lives as long as an array over them does."""

    def __init__(self, tensor: Tensor, size: int) -> None:
        self._tensor = tensor
        self.__array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


# ---- trees ------------------------------------------------------------------------------------------


def encode_tree(value: Any, path: str, tensors: dict[str, Tensor]) -> Node:
    """Flatten nested containers: tensors go to ``tensors`` under their path, the rest to canonical JSON.

    Tags: ``{"t": path}`` tensor, ``{"i": "42"}`` integer, ``{"f": "0x1.8p+1"}`` float (also ``inf``,
    ``nan``), ``{"l": [...]}`` list, ``{"u": [...]}`` tuple, ``{"d": [[key, node], …]}`` dict with keys
    ``s:name`` or ``i:42`` in sorted order, ``{"c": [...]}`` the same for a Counter. Strings, booleans and null
    stand for themselves.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Tensor):
        if path in tensors:
            raise TaskError(
                f"the state has two tensors at {path!r}; do not use a number and its text as keys of one dict"
            )
        tensors[path] = _flat(value, path)
        return {"t": path}
    if isinstance(value, (int, np.integer)):
        return {"i": str(int(value))}
    if isinstance(value, (float, np.floating)):
        return {"f": float(value).hex()}
    if isinstance(value, (list, tuple)):
        nodes = [encode_tree(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {"u" if isinstance(value, tuple) else "l": nodes}
    if isinstance(value, Mapping):
        keyed = sorted((_key(key, path), key) for key in value)
        items = [[tag, encode_tree(value[key], f"{path}/{escaped(tag[2:])}", tensors)] for tag, key in keyed]
        return {"c" if isinstance(value, Counter) else "d": items}
    raise TaskError(
        f"the state at {path!r} holds a {type(value).__name__}, which cannot be recorded; "
        "keep tensors, numbers, strings and containers of them in state_dict()"
    )


def decode_tree(node: Node, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`encode_tree`; raises FormatError for anything it does not write."""
    if node is None or isinstance(node, (bool, str)):
        return node
    if not isinstance(node, dict) or len(node) != 1:
        raise FormatError("a state's tree holds an unknown node")
    ((tag, body),) = node.items()
    try:
        if tag == "t":
            return tensors[body]
        if tag == "i":
            return int(body)
        if tag == "f":
            return float.fromhex(body)
        if tag in ("l", "u"):
            items = [decode_tree(item, tensors) for item in body]
            return tuple(items) if tag == "u" else items
        if tag in ("d", "c"):
            decoded = {_unkey(key): decode_tree(item, tensors) for key, item in _pairs(body)}
            return Counter(decoded) if tag == "c" else decoded
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"a state's tree is malformed: {error!r}") from error
    raise FormatError(f"a state's tree holds the unknown tag {tag!r}")


def tree_tensors(node: Node, path: Iterable[str] = ()) -> list[str]:
    """The tensor names that a tree, or what stands in it at ``path``, refers to; FormatError for what :func:`encode_tree` does not
    write."""
    found: list[str] = []
    _walk(node, list(path), found)
    return found


def check_tree(tree: Node, tensors: Iterable[str]) -> None:
    """Whether a tree is one of a state with these tensors. Raises FormatError for what :func:`capture` does not write."""
    if set(tree) != {"d"} or sorted(tree_tensors(tree)) != sorted(tensors):
        raise FormatError("a state's tree does not name its tensors")
    if not sound(tree):
        raise FormatError("a parameter group of a state has a tensor where a parameter's position is expected")


def sound(tree: Node) -> bool:
    """Whether no parameter group has a tensor where a parameter's position is expected."""
    return not any(
        isinstance(item, dict) and "t" in item
        for key, part in tree["d"]
        if family_of(key[2:]) == "optimizer"
        for item in _positions(part)
    )


def _positions(part: Node) -> Iterator[Node]:
    """What the groups of an optimizer name as their parameters. (Whoever looks for a position among tensors compares with these.)"""
    for group in _below(_below(part, "d", "s:groups"), "l"):
        yield from _below(_below(group, "d", "s:params"), "l")


def _below(node: Node, tag: str, key: str | None = None) -> Any:
    """What is under a tag, and there under a key; nothing where there is none."""
    body = node.get(tag, []) if isinstance(node, dict) else []
    return body if key is None else next((value for name, value in body if name == key), None)


def _walk(node: Node, parts: list[str], found: list[str]) -> None:
    """``parts`` of the path are joined where a name stands, and not at every node: they may be as long as the tree has nodes."""
    if node is None or isinstance(node, (bool, str)):
        return
    tag: str = ""
    body: Any = None
    if isinstance(node, dict) and len(node) == 1:
        ((tag, body),) = node.items()
    try:
        if tag == "t" and parts and len(body) == sum(map(len, parts)) + len(parts) - 1 and body == "/".join(parts):
            found.append(body)
        elif tag in ("l", "u") and isinstance(body, list):
            for position, below in enumerate(body):
                parts.append(str(position))
                _walk(below, parts, found)
                parts.pop()
        elif tag in ("d", "c"):
            pairs = _pairs(body)
            keys = [key for key, _ in pairs]
            if keys != sorted(set(keys)) or not all(map(is_key, keys)):
                raise FormatError(f"a state's tree has unordered or malformed keys at {_place(parts)}")
            for key, below in pairs:
                parts.append(escaped(key[2:]))
                _walk(below, parts, found)
                parts.pop()
        elif not ((tag == "i" and str(int(body)) == body) or (tag == "f" and float.fromhex(body).hex() == body)):
            raise FormatError(f"a state's tree is malformed at {_place(parts)}")
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"a state's tree is malformed at {_place(parts)}: {canonical.brief(error)}") from error


def _place(parts: list[str]) -> str:
    return repr(canonical.brief("/".join(parts))) if parts else "its root"


def _pairs(body: Any) -> list[Any]:
    """The pairs of a mapping. Asked of each, for an object with two entries would unpack into its keys."""
    if not isinstance(body, list):
        raise ValueError("a mapping is not a list of pairs")
    for pair in body:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("a mapping is not a list of pairs")
    return body


def _key(key: Any, path: str) -> str:
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise TaskError(f"the state at {path!r} has a key of type {type(key).__name__}; use str or int")
    return f"s:{key}" if isinstance(key, str) else f"i:{key}"


def is_key(key: str) -> bool:
    """Whether a mapping's key is written as :func:`encode_tree` does."""
    return key.startswith("s:") or (key.startswith("i:") and str(int(key[2:])) == key[2:])


def _unkey(key: str) -> str | int:
    return int(key[2:]) if key.startswith("i:") else key[2:]


def _flat(tensor: Tensor, path: str) -> Tensor:
    if tensor.layout != torch.strided or tensor.dtype not in DTYPE_NAMES or tensor.dtype == torch.complex128:
        raise TaskError(f"the tensor at {path!r} is {tensor.layout} {tensor.dtype}, which cannot be recorded")
    tensor = tensor.detach()
    if tensor.device.type == "cuda" or (tensor.device.type == "cpu" and tensor.is_contiguous()):
        return tensor
    return tensor.cpu().contiguous()


def settings(state: State) -> bytes:
    """Canonical JSON of what a state holds beside trained values: parameter groups, schedulers, which parameters are frozen.

    In a standard loop it follows from the task and the step alone. ``{"tree": …, "tensors": {name: sha256}}``.
    """
    kept = []
    for key, node in state.tree["d"]:
        family = family_of(key[2:])
        entries = SETTINGS.get(family, ())
        if entries is not None:
            body = node.get("d", []) if isinstance(node, dict) else []
            node = {"d": [item for item in body if item[0][2:] in entries]}
        if family in SETTINGS:
            kept.append([key, node])
    tree = {"d": kept}
    tensors = {name: state.tensor_digest(name) for name in tree_tensors(tree)}
    return canonical.encode_plain({"tree": tree, "tensors": tensors})


def decode_settings(raw: bytes) -> Any:
    """What :func:`settings` wrote, as plain values; a tensor is the digest of its own."""
    content = canonical.decode(raw, dict[str, Any], "a state's settings")
    return decode_tree(content["tree"], content["tensors"])


def added_rates(raw: bytes) -> list[float]:
    """From what :func:`settings` wrote: the learning rates of groups that training added; infinite what is no number."""
    found: list[float] = []
    for part, values in decode_settings(raw).items():
        if family_of(part) == "optimizer" and isinstance(values, dict) and values.get("added"):
            groups, added = values.get("groups"), values["added"]
            sound = isinstance(groups, list) and isinstance(added, list)
            held: list[Any] = groups[-len(added) :] if sound else [None]  # type: ignore[index]
            for group in held:
                rate = group.get("lr") if isinstance(group, dict) else None
                found.append(float(rate) if isinstance(rate, (int, float)) and abs(rate) < 2**53 else float("inf"))
    return found


# ---- parts ------------------------------------------------------------------------------------------


def capture(parts: Mapping[str, Any], *, live: bool = False, behind: bool = False) -> State:
    """Capture named parts: modules (with non-persistent buffers), optimizers, and whatever has ``state_dict()``.

    ``live``: do not copy; the tensors are those of the parts, and good until the next step changes them. ``behind``: do not wait for
    what comes from a GPU: steps may go on at once, and :meth:`State.wait` is to be called before the tensors are read.
    """
    tensors: dict[str, Tensor] = {}
    items = [[f"s:{name}", encode_tree(captured(parts, name), escaped(name), tensors)] for name in sorted(parts)]
    wait = landing(tensors)
    state = State({"d": items}, tensors, live=wait is None, under_way=wait)
    if not behind:
        state.wait()
    return state if live else state.settled()


def restore(parts: Mapping[str, Any], state: State) -> None:
    """Put ``state`` into live parts, bit for bit. Raises FormatError where names, shapes or dtypes do not fit."""
    try:
        values = decode_tree(state.tree, state.tensors)
        if not isinstance(values, dict) or set(values) != set(parts):
            raise FormatError(f"the state has the parts {_names(values)}; the task has {_names(parts)}")
        for name in parts:
            restored(parts, name, values[name])
    except (FormatError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a part may answer to a state that it never wrote with anything
        raise FormatError(f"the state does not fit the task: {canonical.brief(repr(error))}") from error


def overlay(module: nn.Module, base: State) -> list[str]:
    """Copy the weights and buffers of ``base`` (a state with the part ``model``) into ``module`` wherever name, shape and dtype agree.

    Returns the names in the state of what was copied; the rest of the module stays as it was built.
    """
    copied = []
    live = {"parameters": module.named_parameters(), "buffers": module.named_buffers()}
    for group, tensors in live.items():
        for short, tensor in tensors:
            name = joined("model", group, short)
            source = base.tensors.get(name)
            if source is not None and source.shape == tensor.shape and source.dtype == tensor.dtype:
                with torch.no_grad():
                    tensor.copy_(source)
                copied.append(name)
    return copied


def _names(value: Any) -> str:
    return ", ".join(sorted(map(str, value))) if isinstance(value, Mapping) else repr(value)


def live_settings(parts: Mapping[str, Any]) -> bytes:
    """:func:`settings` of live parts, without a look at what a module holds."""
    tensors: dict[str, Tensor] = {}
    items = []
    for name, part in sorted(parts.items()):
        if family_of(name) in SETTINGS:
            told = adapter_of(part).told
            values = captured(parts, name) if told is None else told(part)
            items.append([f"s:{name}", encode_tree(values, escaped(name), tensors)])
    state = State({"d": items}, tensors, under_way=landing(tensors))
    state.wait()
    return settings(state)
