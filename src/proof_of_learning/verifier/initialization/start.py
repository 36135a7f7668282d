"""The initial state under a key that nobody could know: what is asked for, and what its tensors tell of the task."""

from __future__ import annotations

import fnmatch

from proof_of_learning import canonical
from proof_of_learning.replay.protocol import TensorOrigin
from proof_of_learning.replay.requests import Initialize
from proof_of_learning.state.names import is_weight
from proof_of_learning.verifier.verdict import Nonce


def second_start(nonce: Nonce, number: int = 0) -> Initialize:
    """The initial state under a second key, which must be one that the task could not expect: it follows from the nonce.

    number: of several such keys.
    """
    more = (number.to_bytes(4, "little"),) if number else ()
    return Initialize(canonical.sha256(b"pol/v1/second-key\0", bytes.fromhex(nonce.value), *more)[7:])


def suspicious(tensors: list[TensorOrigin], approved: tuple[str, ...]) -> tuple[list[TensorOrigin], list[TensorOrigin]]:
    """Trainable tensors that the key does not (fully) decide, and floating-point tables that are the same under every key.

    Integer and boolean tensors that do not change with the key (masks, index tables) carry no weights.
    """
    open_ = [
        t
        for t in tensors
        if t.origin in ("fixed", "partly-fixed", "rearranged")
        and t.floating
        and not any(fnmatch.fnmatch(t.name, p) for p in approved)
    ]
    return [t for t in open_ if t.trainable], [t for t in open_ if not t.trainable]


def trained_share(tensors: list[TensorOrigin]) -> float:
    """The share of the model's parameters that training may change."""
    elements = sum(t.elements for t in tensors if is_weight(t.name))
    return sum(t.elements for t in tensors if t.trainable) / elements if elements else 0.0
