"""Numbers and foreign strings as text that is safe to show and easy to read.

A proof is hostile: besides markup, which the renderers escape, its strings may carry terminal escape
sequences, direction overrides or lone surrogates. :func:`visible` shows those instead of obeying them.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import msgspec

MAX_TEXT = 2000
MAX_DEPTH = 8
MAX_ITEMS = 40
MAX_ROWS = 400
_STACKED = 3
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

MISSING = "–"
# What steps are computed in, for whoever checks them; here, since what only looks into a proof loads no verifier.
ARITHMETIC = {
    "portable": "A replay gives the same bits on any machine that passes `pol selftest`: you can check the proof exactly on yours.",
    "native": "A replay gives the same bits in an environment like the recorded one, and often not on a processor of another make.",
}


def visible(text: str, limit: int = MAX_TEXT) -> str:
    """The text with control, direction and other invisible characters spelled out, cut at ``limit`` characters."""
    shown, stacked = [], 0
    for character in text[:limit]:
        category = unicodedata.category(character)
        # A pile of combining marks would be drawn over the lines above it.
        stacked = stacked + 1 if category in ("Mn", "Me") else 0
        if stacked > _STACKED or (category[0] == "C" and character not in "\n\t") or category in ("Zl", "Zp"):
            shown.append(f"\\u{{{ord(character):x}}}")
        else:
            shown.append(character)
    left = len(text) - limit
    return "".join(shown) + (f" … ({left:,} more characters)" if left > 0 else "")


def line(text: str, limit: int = MAX_TEXT) -> str:
    """:func:`visible` on one line: a line of its own could pass for one of ours."""
    return visible(text, limit).strip().replace("\n", "\\n").replace("\t", " ")


def number(value: float | None) -> str:
    """Three significant digits; integers in full with separators."""
    if value is None:
        return MISSING
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**15 else "a very large number"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0.0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × {power_of_ten(int(exponent))}"


def power_of_ten(exponent: int) -> str:
    """``10⁻³`` without markup."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def percent(share: float | None) -> str:
    """A share as a percentage, with as many digits as it takes not to round it to nothing."""
    if share is None:
        return MISSING
    if not math.isfinite(share):
        return number(share)
    value = 100 * share
    if value == 0 or abs(value) >= 10:
        return f"{value:.1f}".removesuffix(".0") + " %"
    return f"{value:.2g} %" if abs(value) >= 0.001 else "<0.001 %"


def likely(missed: float) -> str:
    """The probability of hitting what is missed with ``missed``, with as many nines as it takes not to call it certain."""
    nines = 0 if missed <= 0 else max(0, math.ceil(-math.log10(missed)) - 2)
    return f"{100 * (1 - missed):.{nines}f} %"


def seconds(value: float | None) -> str:
    """``<0.1 s``, ``0.8 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if value is None or not math.isfinite(value):
        return number(value)
    if 0 < value < 0.05:
        return "<0.1 s"
    if value < 59.5:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes in decimal units."""
    value, units = float(count), ("bytes", "kB", "MB", "GB", "TB")
    for unit in units:
        if abs(value) < 1000 or unit == units[-1]:
            return f"{value:,.3g} {unit}" if unit != "bytes" else f"{count:,} bytes"
        value /= 1000
    raise AssertionError("unreachable")


def plural(count: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters, cut between words."""
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    return (head.rsplit(" ", 1)[0] if " " in head[limit // 2 :] else head).rstrip(" ,;:") + "…"


def sentence(text: str) -> str:
    """With a capital letter and a full stop, for text that stands alone."""
    text = text.strip()
    return text and text[:1].upper() + text[1:] + ("" if text[-1] in ".!?…" else ".")


class Row(NamedTuple):
    """One line of evidence: how deep it is nested, its key, its value (empty for a heading)."""

    depth: int
    key: str
    value: str


def evidence_rows(evidence: Mapping[str, Any]) -> list[Row]:
    """Nested evidence as indented lines, bounded in depth, in the items of each level and overall."""
    rows: list[Row] = []
    for row in _rows(evidence, 0):
        if len(rows) == MAX_ROWS:
            rows.append(Row(0, "…", "more in the JSON verdict"))
            break
        rows.append(row)
    return rows


def _rows(container: Any, depth: int) -> Iterator[Row]:
    mapping = isinstance(container, Mapping)
    pairs = container.items() if mapping else enumerate(container)
    for position, (key, value) in enumerate(pairs):
        if position == MAX_ITEMS:
            yield Row(depth, "…", f"{len(container) - MAX_ITEMS:,} more")
            return
        name = visible(_scalar(key), 200) if mapping else f"[{key}]"
        if isinstance(value, msgspec.Struct):
            value = msgspec.structs.asdict(value)
        inline = _inline(value)
        if inline is not None:
            yield Row(depth, name, inline)
        elif depth + 1 >= MAX_DEPTH:
            yield Row(depth, name, "… (nested deeper; see the JSON verdict)")
        else:
            yield Row(depth, name, "")
            yield from _rows(value, depth + 1)


def _inline(value: Any) -> str | None:
    """The value on one line, or None if it needs lines of its own."""
    if not _nested(value):
        return visible(_scalar(value))
    if not value:
        return "none"
    if isinstance(value, Mapping) or any(_nested(item) for item in value):
        return None
    items = list(value)
    text = ", ".join(visible(_scalar(item), 200) for item in items[:MAX_ITEMS])
    return text + (f", … ({len(items) - MAX_ITEMS:,} more)" if len(items) > MAX_ITEMS else "")


def _nested(value: Any) -> bool:
    if isinstance(value, (str, bytes, bytearray)):
        return False
    return isinstance(value, (Mapping, Sequence, Set, msgspec.Struct))


def _scalar(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value[:64]).hex() + ("…" if len(value) > 64 else "")
    return str(value)
