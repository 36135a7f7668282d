"""Codecs: how a state becomes an object's bytes. One small interface, a decoder for each version forever."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from proof_of_learning.errors import FormatError
from proof_of_learning.proof.codecs.raw import RawCodec
from proof_of_learning.training.state import State


class Codec(Protocol):
    """Turns states into bytes and back.

    ``encode`` may use ``base``, the checkpoint before (``None`` for a keyframe); ``decode`` is given the bytes and a way to
    get the base's state. ``exact``: whether decoding gives the encoded state bit for bit; a codec that does not is used in
    the loop (training continues from what it decodes).
    """

    name: str
    version: int
    exact: bool

    def encode(self, state: State, base: State | None) -> Iterable[bytes | memoryview]: ...
    def decode(self, raw: bytearray, base: Callable[[], State]) -> State: ...


_CODECS: dict[tuple[str, int], Codec] = {(codec.name, codec.version): codec for codec in (RawCodec(),)}
DEFAULT = "raw"


def get_codec(name: str, version: int = 1) -> Codec:
    """The codec of that name and version; FormatError if this release has none."""
    try:
        return _CODECS[name, version]
    except KeyError:
        known = ", ".join(f"{n} version {v}" for n, v in sorted(_CODECS))
        raise FormatError(f"codec {name[:64]!r} version {version} is unknown; this release reads {known}") from None
