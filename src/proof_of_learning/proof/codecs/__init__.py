"""Codecs: how a state becomes an object's bytes. One small interface, a decoder for each version forever.

Which codecs there are is said here, so that a proof's log can be read without torch; their modules are imported when a state is.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from proof_of_learning.errors import FormatError

if TYPE_CHECKING:
    from proof_of_learning.proof.codecs.base import Codec

RAW = "raw"  # whole states, whose bytes are the tensors' own
_CODECS: dict[tuple[str, int], tuple[str, bool]] = {  # by name and version: the class, and whether it is exact
    (RAW, 1): ("raw.RawCodec", True),
    ("lossless", 1): ("lossless.LosslessCodec", True),
    ("float16", 1): ("float16.Float16Codec", False),
    ("quantised", 1): ("quantised.QuantisedCodec", False),
    ("compact", 1): ("compact.CompactCodec", False),
}
_WHOLE = {"float16": "lossless", "quantised": "lossless"}  # by codec: the one for whole states, where it is another
NAMES = tuple(sorted({name for name, _ in _CODECS}))
DEFAULT = RAW
# By codec: a whole state after so many objects. A difference is small beside a whole state only if it is a coarse one.
KEYFRAMES = {"lossless": 8, "float16": 8, "quantised": 64, "compact": 64}

__all__ = ["DEFAULT", "KEYFRAMES", "NAMES", "RAW", "for_whole", "get_codec", "is_exact"]


def _known(name: str, version: int) -> tuple[str, bool]:
    try:
        return _CODECS[name, version]
    except KeyError:
        known = ", ".join(f"{n} version {v}" for n, v in sorted(_CODECS))
        raise FormatError(f"codec {name[:64]!r} version {version} is unknown; this release reads {known}") from None


def is_exact(name: str, version: int = 1) -> bool:
    """Whether a codec gives back the states it was given; FormatError if this release has none of that name and version."""
    return _known(name, version)[1]


def get_codec(name: str, version: int = 1) -> Codec:
    """The codec of that name and version; FormatError if this release has none."""
    return _made(_known(name, version)[0])


def for_whole(name: str, version: int = 1) -> Codec:
    """The codec for whole states, to the bit, beside that of that name and version."""
    return get_codec(_WHOLE[name]) if name in _WHOLE else get_codec(name, version)


@functools.cache
def _made(place: str) -> Codec:
    module, _, kind = place.partition(".")
    made: Codec = getattr(importlib.import_module(f"{__name__}.{module}"), kind)()
    return made
