"""Cases of opened samples: salted leaves and multiproofs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from drafts import SAMPLES
from suite import ZERO, Suite

from proof_of_learning.data.commit import commit, leaves
from proof_of_learning.data.opened import Samples, witnesses
from proof_of_learning.data.salts import Secret
from proof_of_learning.proof.codecs.raw import encode_tensors

SALTS = Secret(b"test secret".ljust(32, b"\0"), bytes(16)).salts(len(SAMPLES))
HASHED = leaves(SAMPLES, salts=SALTS)
Tensors = dict[str, torch.Tensor]


def opened(indices: Sequence[int], count: int = len(SAMPLES), *, salted: bool = True) -> Tensors:
    """The samples at ``indices`` of the first ``count``."""
    salts = SALTS[:count] if salted else []
    data = SAMPLES[:count]
    shown = sorted({*indices, *witnesses(count)})
    return Samples.of(data, leaves(data, salts=salts or None), shown, salts).tensors()


def stored(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    return b"".join(bytes(piece) for piece in encode_tensors(tensors, metadata))


def commitment(count: int = len(SAMPLES), *, salted: bool = True) -> dict[str, Any]:
    made = commit(SAMPLES[:count], salts=SALTS[:count] if salted else None)
    return {"root": made.root, "samples": made.samples, "salted": made.salted}


def _swapped(nodes: torch.Tensor) -> torch.Tensor:
    return torch.cat([nodes[1:2], nodes[:1], nodes[2:]])


# What becomes of samples that are opened: by name, the edit, the rule, what our reader says, the reason, the status.
SAMPLE_EDITS: dict[str, tuple[Callable[[Tensors], object], str, str, str, int]] = {
    "content": (
        lambda t: t.update(content=_bit(t["content"])),
        "merkle",
        "not those under",
        "A sample was changed.",
        1,
    ),
    "salt": (lambda t: t.update(salts=_bit(t["salts"])), "merkle", "not those under", "A leaf with another salt.", 1),
    "node": (
        lambda t: t.update(nodes=_bit(t["nodes"])),
        "merkle",
        "not those under",
        "A node of the path was changed.",
        1,
    ),
    "cut": (
        lambda t: t.update(nodes=t["nodes"][:-1].clone()),
        "merkle.count",
        "cut short",
        "The path is a node too short.",
        1,
    ),
    "more": (
        lambda t: t.update(nodes=torch.cat([t["nodes"], t["nodes"][:1]])),
        "merkle.count",
        "more than is needed",
        "The path is a node too long.",
        1,
    ),
    "reordered": (
        lambda t: t.update(nodes=_swapped(t["nodes"])),
        "merkle",
        "not those under",
        "Two nodes of the path are swapped.",
        1,
    ),
    "place": (
        lambda t: t.update(indices=_last(t["indices"], 6, -3)),
        "merkle",
        "not those under",
        "A sample is said to lie in its neighbour's place.",
        1,
    ),
    "salts-swapped": (
        lambda t: t.update(salts=_swapped(t["salts"])),
        "merkle",
        "not those under",
        "Two salts are swapped.",
        1,
    ),
    "beyond": (
        lambda t: t.update(indices=_last(t["indices"], len(SAMPLES))),
        "merkle.count",
        "none of the data set",
        "A sample beyond the data set's end.",
        1,
    ),
    "order": (
        lambda t: t.update(indices=t["indices"].flip(0)),
        "samples.order",
        "not in order",
        "The samples are not in order.",
        2,
    ),
    "twice": (
        lambda t: t.update(indices=_last(t["indices"], int(t["indices"][-2]))),
        "samples.order",
        "not in order",
        "A sample is opened twice.",
        2,
    ),
    "lengths": (
        lambda t: t.update(lengths=_last(t["lengths"], int(t["lengths"][-1]) + 1)),
        "samples.columns",
        "not those of what is there",
        "Lengths that do not add up.",
        2,
    ),
    "no-salts": (
        lambda t: t.pop("salts"),
        "samples.columns",
        "other columns",
        "The salts of salted leaves are missing.",
        2,
    ),
    "salt-width": (
        lambda t: t.update(salts=t["salts"][:, :16].clone()),
        "samples.columns",
        "not of 32 bytes",
        "Salts of 16 bytes.",
        2,
    ),
    "type": (
        lambda t: t.update(indices=t["indices"].to(torch.int32)),
        "samples.columns",
        "other columns",
        "The indices are of another type.",
        2,
    ),
    "column": (
        lambda t: t.update(labels=torch.zeros(1)),
        "samples.columns",
        "other columns",
        "A column that opened samples do not have.",
        2,
    ),
}


def _bit(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.clone()
    flat.view(-1)[-1] ^= 1
    return flat


def _last(tensor: torch.Tensor, value: int, place: int = -1) -> torch.Tensor:
    found = tensor.clone()
    found[place] = value
    return found


def cases(suite: Suite) -> None:
    def good(name: str, tensors: Tensors, data: dict[str, Any], reason: str) -> None:
        suite.passes(f"samples-{name}", "samples", {"samples.bin": stored(tensors)}, "merkle", reason, data=data)

    def bad(name: str, base: str, raw: bytes, rule: str, says: str, reason: str, status: int, **given: Any) -> None:
        suite.fails(
            f"samples-{name}", f"samples-{base}", {"samples.bin": raw}, rule, says, reason, status=status, **given
        )

    good("salted", opened([1, 2, 7]), commitment(), "Three of thirteen salted samples with one multiproof.")
    good("plain", opened([1, 2, 7], salted=False), commitment(salted=False), "Without salts.")
    good(
        "last",
        opened([12]),
        commitment(),
        "The last sample, which has no partner on three levels: an audit path of RFC 6962.",
    )
    good("all", opened(range(13)), commitment(), "All samples, so that no node is needed.")
    good("one", opened([0], 1), commitment(1), "A data set of one sample.")
    good("five", opened([3, 4], 5), commitment(5), "Five samples.")
    for name, (change, rule, says, reason, status) in SAMPLE_EDITS.items():
        tensors = opened([1, 2, 7])
        change(tensors)
        bad(name, "salted", stored(tensors), rule, says, reason, status)
    raw = stored(opened([1, 2, 7]))
    bad("trailing", "salted", raw + b"\0", "layout", "not laid out", "A byte behind the last column.", 2)
    bad(
        "metadata",
        "salted",
        stored(opened([1, 2, 7]), {"a": "b"}),
        "samples.columns",
        "metadata",
        "The file carries metadata.",
        2,
    )
    bad("root", "salted", raw, "merkle", "not those under", "Another root.", 1, data={**commitment(), "root": ZERO})
    bad(
        "count",
        "all",
        stored(opened(range(13))),
        "merkle.count",
        "cut short",
        "Another number of samples under the same root.",
        1,
        data={**commitment(), "samples": 14},
    )
    bad(
        "count-less",
        "last",
        stored(opened([12])),
        "merkle.count",
        "none of the data set",
        "Fewer samples under the same root.",
        1,
        data={**commitment(), "samples": 12},
    )
    bad(
        "unsalted",
        "plain",
        stored(opened([1, 2, 7])),
        "samples.columns",
        "other columns",
        "Salts where leaves have none.",
        2,
    )
    # A node passed off as a leaf: the prefixes 0x00 and 0x01 tell them apart.
    pair = hashlib.sha256(b"\x01" + HASHED[0] + HASHED[1]).digest()
    inner: Tensors = {
        "indices": torch.tensor([0]),
        "lengths": torch.tensor([64]),
        "content": torch.frombuffer(bytearray(HASHED[0] + HASHED[1]), dtype=torch.uint8),
        "salts": torch.zeros((1, 32), dtype=torch.uint8),
        "nodes": opened([0])["nodes"][1:].clone(),
    }
    assert pair
    bad(
        "node-as-leaf",
        "one",
        stored(inner),
        "merkle.count",
        "more than is needed",
        "An inner node is passed off as a leaf.",
        1,
        data={**commitment(), "samples": 7},
    )
