"""Cases of proofs whose blocks, objects, states or index are wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import torch
from documents import Edit, bad_proof, put
from drafts import INTERVAL, Draft, columns, raw_object
from suite import ZERO, Suite

from proof_of_learning import canonical
from proof_of_learning.proof.codecs.raw import decode_tensors, encode_tensors
from proof_of_learning.state.state import State


def cases(suite: Suite) -> None:
    def bad(name: str, edit: Edit, rule: str, says: str, reason: str, base: str = "raw", status: int = 1) -> None:
        bad_proof(suite, name, edit, rule, says, reason, base=base, status=status)

    def block(base_columns: Callable[[], Any], **changes: Any) -> Edit:
        def edit(made: Draft) -> None:
            tensors: dict[str, torch.Tensor] = {**tensors_of(base_columns())}
            for name, value in changes.items():
                key = name.replace("__", "/")
                tensors.pop(key, None)
                if value is not None:
                    tensors[key] = value
            made.put_block(0, b"".join(bytes(piece) for piece in encode_tensors(tensors)))

        return edit

    def derived() -> Any:
        return columns(INTERVAL, 0)

    def recorded() -> Any:
        return columns(INTERVAL, 0, recorded=True)

    indices = torch.arange(8)
    bad("block-no-loss", block(derived, loss=None), "block.columns", "missing", "A block without losses.", status=2)
    bad(
        "block-extra",
        block(derived, note=torch.zeros(2)),
        "block.columns",
        "type that no column has",
        "A column that no block has.",
        status=2,
    )
    bad(
        "block-more-rows",
        block(derived, loss=torch.zeros(3, dtype=torch.float64)),
        "block.columns",
        "wrong shape",
        "More losses than steps.",
        status=2,
    )
    bad(
        "block-infinite",
        block(derived, loss=torch.tensor([1.0, float("inf")], dtype=torch.float64)),
        "block.finite",
        "not finite",
        "A loss that is not finite.",
    )
    bad(
        "block-groups",
        block(derived, rates=torch.full((2, 2), 0.5, dtype=torch.float64)),
        "block.columns",
        "another number of parameter groups",
        "Two parameter groups in one block, and one in the others.",
    )
    bad(
        "block-indices",
        block(derived, indices=indices, lengths=torch.tensor([4, 4])),
        "block.mode",
        "does not fit derived",
        "Recorded indices where randomness is derived.",
    )
    bad(
        "block-no-indices",
        block(recorded, indices=None, lengths=None),
        "block.mode",
        "does not fit recorded",
        "No indices where they are recorded.",
        "recorded",
    )
    bad(
        "block-lengths",
        block(recorded, lengths=torch.tensor([4, 5])),
        "block.columns",
        "disagree",
        "Lengths that do not add up.",
        "recorded",
        2,
    )
    bad(
        "block-negative",
        block(recorded, lengths=torch.tensor([9, -1])),
        "block.columns",
        "disagree",
        "A negative length.",
        "recorded",
        2,
    )
    bad(
        "block-row",
        block(recorded, rng__torch__row=torch.tensor([0, 1])),
        "block.columns",
        "out of range",
        "A generator's row that is not there.",
        "recorded",
        2,
    )
    bad(
        "block-metadata",
        lambda m: m.put_block(0, b"".join(map(bytes, encode_tensors(tensors_of(derived()), {"a": "b"})))),
        "block.columns",
        "metadata",
        "A block with metadata.",
        status=2,
    )
    bad(
        "block-other",
        lambda m: m.blocks.__setitem__(0, columns(2, 0).encode()[:-1] + b"\x40"),
        "block.digest",
        "not the one in the log",
        "A block was changed, and its digest was not.",
    )

    def object_bytes(position: int, change: Callable[[bytes], bytes]) -> Edit:
        return lambda made: made.put_object(position, change(raw_object(made.states[position])))

    def other_state(made: Draft) -> None:
        made.put_object(1, raw_object(made.states[2]))

    bad(
        "object-state",
        other_state,
        "state.digest",
        "holds another state",
        "The object for one state holds another, under its own right name.",
    )
    bad(
        "object-padding",
        object_bytes(
            1,
            lambda raw: (
                struct.pack("<Q", struct.unpack_from("<Q", raw)[0] + 8)
                + raw[8 : 8 + struct.unpack_from("<Q", raw)[0]]
                + b" " * 8
                + raw[8 + struct.unpack_from("<Q", raw)[0] :]
            ),
        ),
        "layout",
        "not laid out",
        "An object's text is padded further than needed.",
        status=2,
    )
    bad(
        "object-trailing",
        object_bytes(1, lambda raw: raw + b"\0"),
        "layout",
        "not laid out",
        "A byte behind an object's last tensor.",
        status=2,
    )
    bad(
        "object-name",
        lambda m: m.objects.__setitem__(m.index[1]["object"], m.objects[m.index[1]["object"]][:-1] + b"\x7f"),
        "object",
        "bytes its name says",
        "An object was changed, and its name was not.",
    )

    def boolean(made: Draft) -> None:
        raw = bytearray(raw_object(made.states[0]))
        made.put_object(
            0, bytes(raw[:-3] + b"\x02" + raw[-2:]) if raw[-3:] == b"\x01\x00\x01" else _boolean(bytes(raw))
        )

    bad("object-boolean", boolean, "layout", "no booleans", "A boolean that is neither 0 nor 1.", "types", 2)

    def tree(change: Callable[[Any], None]) -> Edit:
        def edit(made: Draft) -> None:
            state = made.states[-1]
            text = canonical.encode(state.tree)
            value = canonical.decode(text, dict[str, Any], "")
            change(value)
            _restate(made, State(value, state.tensors))

        return edit

    bad(
        "tree-order",
        tree(lambda value: value["d"].reverse()),
        "tree",
        "unordered",
        "The parts of a state are not in order.",
        status=2,
    )
    bad(
        "tree-twice",
        tree(lambda value: value["d"].append(value["d"][-1])),
        "tree",
        "unordered",
        "A part stands in a state twice.",
        status=2,
    )
    bad(
        "tree-integer",
        tree(lambda value: put(value, "d", [*value["d"][:2], ["s:progress", {"d": [["s:step", {"i": "05"}]]}]])),
        "tree",
        "malformed",
        "An integer has a leading zero.",
        status=2,
    )
    bad(
        "tree-float",
        tree(lambda value: put(value, "d", [*value["d"][:2], ["s:progress", {"d": [["s:step", {"f": "0x5p+0"}]]}]])),
        "tree",
        "malformed",
        "A float is not spelled as it has to be.",
        status=2,
    )
    bad(
        "tree-tag",
        tree(lambda value: put(value, "d", [*value["d"][:2], ["s:progress", {"x": []}]])),
        "tree",
        "malformed",
        "A node with a tag that nobody knows.",
        status=2,
    )

    def nameless(made: Draft) -> None:
        state = made.states[-1]
        _restate(made, State(state.tree, {**state.tensors, "model/parameters/extra": torch.zeros(1)}))

    bad(
        "tree-nameless",
        nameless,
        "tree",
        "does not name its tensors",
        "A tensor that the tree does not name.",
        status=2,
    )

    def partless(made: Draft) -> None:
        _restate(made, made.states[-1].part("model", "progress"))

    bad("state-parts", partless, "state.parts", "other parts than", "A state without a part that the header names.")
    # What `final_weights` says against the last state is for the verifier's check of the end, and in a reader of its own.
    bad(
        "index-state",
        lambda m: m.index[1].update(state=ZERO),
        "index.state",
        "does not belong here",
        "The index stores a state that is not in the log.",
    )
    bad(
        "index-twice",
        lambda m: m.index.append(dict(m.index[0])),
        "index.state",
        "does not belong here",
        "The index stores a state twice.",
    )
    bad(
        "index-codec",
        lambda m: m.index[1].update(codec="float16"),
        "index.codec",
        "another codec",
        "A state is stored with another codec that is not exact.",
        status=2,
    )
    bad(
        "index-base-raw",
        lambda m: m.index[1].update(base=m.index[0]["state"]),
        "index.base",
        "one segment before",
        "A raw object that is said to be a difference.",
        status=2,
    )
    bad(
        "index-base",
        lambda m: m.index[3].update(base=m.index[1]["state"]),
        "index.base",
        "one segment before",
        "A difference from a state that is not the one before.",
        "lossless",
        2,
    )
    bad(
        "index-base-later",
        lambda m: m.index.insert(0, m.index.pop(1)),
        "index.base",
        "not stored before it",
        "A difference that is stored before its base.",
        "lossless",
        2,
    )


def tensors_of(given: Any) -> dict[str, torch.Tensor]:
    return decode_tensors(bytearray(given.encode()))[0]


def _boolean(raw: bytes) -> bytes:
    """The same object with a 2 in the place of the first boolean."""
    size = struct.unpack_from("<Q", raw)[0]
    text = canonical.decode(raw[8 : 8 + size].rstrip(b" "), dict[str, Any], "")
    (at,) = [entry["data_offsets"][0] for name, entry in text.items() if entry.get("dtype") == "BOOL"]
    return raw[: 8 + size + at] + b"\x02" + raw[8 + size + at + 1 :]


def _restate(made: Draft, state: State) -> None:
    """Another last state, with the digests that name it."""
    digest = state.digest()
    made.segments[-1].update(arrived=digest, state=digest)
    made.index[-1]["state"] = digest
    made.put_object(-1, raw_object(state))
