"""Codecs: how a state becomes an object's bytes. One small interface, a decoder for each version forever."""

from __future__ import annotations

from proof_of_learning.errors import FormatError
from proof_of_learning.proof.codecs.base import Codec, Encoded
from proof_of_learning.proof.codecs.float16 import Float16Codec
from proof_of_learning.proof.codecs.lossless import LosslessCodec
from proof_of_learning.proof.codecs.quantised import QuantisedCodec
from proof_of_learning.proof.codecs.raw import RawCodec

_CODECS: dict[tuple[str, int], Codec] = {
    (codec.name, codec.version): codec for codec in (RawCodec(), LosslessCodec(), Float16Codec(), QuantisedCodec())
}
NAMES = tuple(sorted({name for name, _ in _CODECS}))
DEFAULT = "raw"

__all__ = ["DEFAULT", "NAMES", "Codec", "Encoded", "get_codec"]


def get_codec(name: str, version: int = 1) -> Codec:
    """The codec of that name and version; FormatError if this release has none."""
    try:
        return _CODECS[name, version]
    except KeyError:
        known = ", ".join(f"{n} version {v}" for n, v in sorted(_CODECS))
        raise FormatError(f"codec {name[:64]!r} version {version} is unknown; this release reads {known}") from None
