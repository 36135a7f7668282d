"""Canonical JSON: two encoders that agree, and a decoder that reads nothing but what they write."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError
from proof_of_learning.proof.format import Block, Displacement, Line, Segment

INTEGERS = st.integers(-(2**53) + 1, 2**53 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SMALL = st.floats(
    -(2.0**53) + 1, 2.0**53 - 1
)  # beyond, a whole number is too large for a reader that does not know the type
TEXT = st.text(st.characters(codec="utf-8"))
ASCII = st.text(st.characters(codec="ascii"))


def trees(leaves: st.SearchStrategy[Any], text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=15
    )


class Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: int
    name: str
    value: float


def document(**changed: str) -> bytes:
    fields = {"count": "2", "name": '"x"', "value": "0.5", **changed}
    return "{{{}}}".format(",".join(f'"{key}":{text}' for key, text in fields.items())).encode()


@given(trees(st.none() | st.booleans() | INTEGERS | TEXT, TEXT) | trees(st.booleans() | INTEGERS | ASCII, ASCII))
@example({"\U00010000": 1, "\uffff": 2})  # UTF-16 order, which is not that of UTF-8
@example({"\x7f": '\x00\x1f"\\/\b\f\n\r\t', "a": "<&>", "é": "\u2028"})
def test_the_fast_encoder_writes_what_the_canonical_one_writes(value: Any) -> None:
    assert canonical.encode_plain(value) == canonical.encode(value)


@given(trees(st.none() | st.booleans() | INTEGERS | FLOATS | TEXT, TEXT))
@example({"\U00010000": 1, "\uffff": [{"\U00010000": -0.0, "\ue000": 1e-7}, ()]})
@example([{}, [], 2**53 - 1, 1e21])
def test_canonical_is_what_rfc_8785_says(value: Any) -> None:
    assert canonical.encode(value) == rfc8785.dumps(msgspec.to_builtins(value))


def test_only_numbers_take_the_slow_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree of nodes that took it whole made a small proof cost seconds."""
    numbers: list[Any] = []

    def slow(value: Any) -> bytes:
        numbers.append(value)
        return repr(value).encode()

    monkeypatch.setattr(rfc8785, "dumps", slow)
    value: Any = {"\U00010000": [{"l": []}] * 10, "\uffff": "\x01", "x": [0.5]}
    raw = canonical.encode(value)
    assert canonical.decode(raw, Any, "it") == value
    assert set(map(type, numbers)) == {float}


@given(trees(st.none() | st.booleans() | INTEGERS | SMALL | TEXT, TEXT))
def test_what_was_encoded_decodes_to_the_same_value(value: Any) -> None:
    raw = canonical.encode(value)
    assert json.loads(raw) == value
    assert canonical.decode(raw, Any, "it") == value


@given(FLOATS)
@example(1e21)
@example(1e-7)
@example(123456789012345680000.0)
@example(-0.0)
def test_floats_have_one_spelling(value: float) -> None:
    raw = canonical.encode(Reading(2, "x", value))
    assert canonical.decode(raw, Reading, "it").value == value
    spellings = (
        repr(value),
        f"{value:.17e}",
        f"{value:.17g}",
        f"{value:.1f}",
        f"{value:E}",
        f"{value:+}",
        f"{value:g}",
    )
    for text in (text for text in spellings if float(text) == value):
        other = document(value=text)
        if other != raw:
            with pytest.raises(FormatError):
                canonical.decode(other, Reading, "it")


@given(trees(st.booleans() | INTEGERS | SMALL | TEXT, TEXT), st.data())
def test_a_changed_byte_is_another_value_or_refused(value: Any, data: st.DataObject) -> None:
    raw = bytearray(canonical.encode(value))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    try:
        other = canonical.decode(bytes(raw), Any, "it")
    except FormatError:
        return
    assert canonical.encode(other) == bytes(raw) != canonical.encode(value)


def test_the_document_that_the_next_tests_change_is_accepted() -> None:
    assert canonical.decode(document(), Reading, "header.json") == Reading(2, "x", 0.5)


@pytest.mark.parametrize(
    "raw",
    [
        document()[:-1] + b',"value":0.5}',
        document()[:-1] + b',"value":0.25}',
        document()[:-1] + b',"other":1}',
        document().replace(b":", b": "),
        b" " + document(),
        document() + b"\n",
        document() + b"{}",
        b"\xef\xbb\xbf" + document(),
        document()[:-1],
        b'{"name":"x","count":2,"value":0.5}',
        b'{"count":2,"name":"x"}',
        b"[2]",
        b"null",
        b"",
        *(
            document(name=text)
            for text in ('"\\u0078"', '"\\/"', '"\\u002f"', "1", "null", '"\\ud800"', '"\n"', '["x"]')
        ),
        document().replace(b"x", b"\xff"),
        *(
            document(value=text)
            for text in ("1.0", "-0", "-0.0", "1e2", "5e-1", "0.50", ".5", "1E400", "NaN", "Infinity")
        ),
        document(value='"1"'),
        *(document(count=text) for text in ("2.0", "1.5", "02", "+2", "2e0", "true", "null", "0x2")),
        document(count=str(2**53)),
        document(count=str(-(2**53))),
        document(count=str(10**30)),
    ],
)
def test_anything_else_is_refused_with_the_documents_name(raw: bytes) -> None:
    with pytest.raises(FormatError, match="header"):
        canonical.decode(raw, Reading, "header.json")


@pytest.mark.parametrize("raw", [b"1e300", b"-0", b"-0.0", b"1.0", b"0.1e1", b"1E2"])
def test_a_number_alone_has_one_spelling_too(raw: bytes) -> None:
    with pytest.raises(FormatError):
        canonical.decode(raw, float, "it")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'["]]]]]]]]",'], ids=["lists", "maps", "closers in strings"])
@pytest.mark.parametrize("depth", [canonical.MAX_DEPTH + 1, 100_000])
def test_deep_nesting_is_refused(opening: bytes, depth: int) -> None:
    closing = b"}" if opening.startswith(b"{") else b"]"
    with pytest.raises(FormatError, match="deep"):
        canonical.decode(opening * depth + b"0" + closing * depth, Any, "it")
    with pytest.raises(FormatError):
        canonical.decode(opening * depth, Any, "it")


@pytest.mark.quick
def test_brackets_inside_strings_are_not_nesting() -> None:
    value: Any = {"repr": "Uniform[0, 1)" * 100, 'a"b\\': ["\\", '"[[[', "\\\\" + "{" * 200]}
    for other in (value, ["\\", "[" * 200], {"\\": "{" * 200}, ['\\"', "[" * 200], ['"', "[" * 200]):
        assert canonical.decode(canonical.encode(other), Any, "it") == other


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**53, object(), {1: float("nan")}, {1: 2}, "\ud800", {"\ud800": 1, "": 2}]
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        canonical.encode(value)


def test_digest_is_that_of_the_concatenation() -> None:
    # FIPS 180-2, appendix B.1
    assert canonical.sha256(b"a", bytearray(b"b"), memoryview(b"c")) == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize("value", ["x" * 10_000, "two\nlines", "\x1b[2J", "\u202e"])
def test_what_a_message_quotes_is_one_line_and_short(value: str) -> None:
    """A hostile document must not fill or repaint the terminal."""

    class Document(msgspec.Struct):
        mode: Literal["derived", "recorded"]

    with pytest.raises(FormatError) as caught:
        canonical.decode(canonical.encode({"mode": value}), Document, "a document")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def by_the_book(raw: bytes, type_: Any) -> Any:
    """What decodes to a value whose canonical form it is, by the reference encoder alone; None for anything else."""
    try:
        value = msgspec.json.decode(raw, type=type_, strict=True)
        return value if rfc8785.dumps(msgspec.to_builtins(value)) == raw else None
    except (msgspec.DecodeError, rfc8785.CanonicalizationError, UnicodeDecodeError, RecursionError):
        return None


def decoded(raw: bytes, type_: Any) -> Any:
    try:
        return canonical.decode(raw, type_, "it")
    except FormatError:
        return None


SPELLED = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(1e-9, 1e23).map(lambda value: f"{value:.17g}"),
    st.integers(-(2**70), 2**70).map(str),
    st.integers(-(2**60), 2**60).map(lambda value: f"{value}.0"),
    st.from_regex(r"-?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(["0", "-0", "0.0", "-0.0", "1e0", "1.0", "10.0", "0.10", "1e-7", "1e21", "9007199254740991",
                     "9007199254740992", "1000000000000000", "1000000000000000.0", "1e15", "1e16", "true", "null", '"1.0"']),
)  # fmt: skip


@given(st.lists(SPELLED, min_size=1, max_size=4), st.text('ab.0,:[]{}-1e"\\\n', max_size=12), st.booleans())
def test_every_spelling_is_accepted_or_refused_as_by_the_reference(numbers: list[str], text: str, inside: bool) -> None:
    """Also where a string holds what looks like a number."""
    quoted = json.dumps(text if not inside else f'{text}","a":1.0,2e5,-0,1234567890123456')
    listed = f"[{quoted},{','.join(numbers)}]".encode()
    keyed = f'{{"a":{numbers[0]},{json.dumps("b" + text)}:{quoted}}}'.encode()
    for raw in (listed, keyed):
        assert decoded(raw, Any) == by_the_book(raw, Any)
    for number in numbers:
        raw = document(value=number)
        assert decoded(raw, Reading) == by_the_book(raw, Reading)


@given(st.data())
def test_a_changed_line_of_a_log_is_accepted_or_refused_as_by_the_reference(data: st.DataObject) -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    number = data.draw(st.floats(0, 1e9) | st.integers(0, 1000).map(float))
    line = Segment(digest, 3, 30, 40, digest, digest, Displacement(number, number / 2), digest, Block(digest, 160))
    raw = bytearray(canonical.encode(line))
    assert decoded(bytes(raw), Line) == by_the_book(bytes(raw), Line) == line
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 1))] = data.draw(
            st.sampled_from([b".0", b"0", b"-", b"e", b" ", b'"', b",", b"1"])
        )
    assert decoded(bytes(raw), Line) == by_the_book(bytes(raw), Line)
