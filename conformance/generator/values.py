"""Cases of canonical JSON, and of keys."""

from __future__ import annotations

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from suite import Suite
from tokens import (
    ec_key,
    ed_key,
    encoded,
    rsa_key,
)


def cases(suite: Suite) -> None:
    _canonical(suite)
    _keys(suite)


def _canonical(suite: Suite) -> None:
    def good(name: str, raw: bytes, reason: str) -> None:
        suite.passes(f"json-{name}", "canonical", {"value.json": raw}, "json.canonical", reason)

    def bad(name: str, base: str, raw: bytes, says: str, reason: str, rule: str = "json.canonical") -> None:
        suite.fails(f"json-{name}", f"json-{base}", {"value.json": raw}, rule, says, reason, status=2)

    good(
        "object",
        b'{"a":1,"b":[true,null,"x"],"c":{}}',
        "Keys in order, no white space, every value in its one spelling.",
    )
    good("numbers", b"[0,-1,0.1,1e+21,1e-7,1e+300,5e-324,9007199254740991]", "Numbers as ECMAScript spells them.")
    strings = '["é","\\u001f","\\b\\t\\n\\f\\r","\\"\\\\/","\U0001f600"]'.encode()
    good(
        "strings",
        '["é","\\u001f","\\b\\t\\n\\f\\r","\\"\\\\/","\U0001f600"]'.encode(),
        "Only quotes, backslashes and control characters are escaped.",
    )
    good(
        "utf16-order",
        '{"\U0001f600":1,"\ufb33":2}'.encode(),
        "Keys are ordered by UTF-16 code units, not by code points.",
    )
    good("depth-64", b"[" * 64 + b"]" * 64, "Nested as deep as allowed.")
    form = "not in canonical form"
    bad(
        "duplicate-key",
        "object",
        b'{"a":1,"a":1,"b":[true,null,"x"],"c":{}}',
        form,
        "A key stands twice, with equal values.",
    )
    bad("space", "object", b'{"a":1,"b":[true, null,"x"],"c":{}}', form, "There is white space between values.")
    bad("order", "object", b'{"b":[true,null,"x"],"a":1,"c":{}}', form, "Keys are not in order.")
    bad("trailing-newline", "object", b'{"a":1,"b":[true,null,"x"],"c":{}}\n', form, "A newline follows the value.")
    bad("trailing-bytes", "object", b'{"a":1,"b":[true,null,"x"],"c":{}}x', "not valid", "A byte follows the value.")
    bad("float-spelling", "object", b'{"a":1.0,"b":[true,null,"x"],"c":{}}', form, "1 is spelled as 1.0.")
    bad(
        "exponent", "numbers", b"[0,-1,0.1,1e21,1e-7,1e+300,5e-324,9007199254740991]", form, "1e+21 is spelled as 1e21."
    )
    bad("minus-zero", "numbers", b"[-0,-1,0.1,1e+21,1e-7,1e+300,5e-324,9007199254740991]", form, "0 is spelled as -0.")
    bad(
        "large-integer",
        "numbers",
        b"[0,-1,0.1,1e+21,1e-7,1e+300,5e-324,9007199254740993]",
        "safe integer",
        "An integer of 2^53 or more, which not every reader can tell from its neighbour.",
    )
    bad(
        "not-finite",
        "numbers",
        b"[0,-1,0.1,1e+999,1e-7,1e+300,5e-324,9007199254740991]",
        "out of range",
        "A number that is not finite.",
    )
    bad(
        "escape",
        "strings",
        '["\\u00e9","\\u001f","\\b\\t\\n\\f\\r","\\"\\\\/","\U0001f600"]'.encode(),
        form,
        "A letter is escaped that need not be.",
    )
    bad(
        "solidus",
        "strings",
        '["é","\\u001f","\\b\\t\\n\\f\\r","\\"\\\\\\/","\U0001f600"]'.encode(),
        form,
        "A solidus is escaped.",
    )
    bad(
        "hex-case",
        "strings",
        '["é","\\u001F","\\b\\t\\n\\f\\r","\\"\\\\/","\U0001f600"]'.encode(),
        form,
        "An escape is in upper case.",
    )
    bad("not-utf8", "strings", strings.replace("é".encode(), b"\xe9"), "not valid", "The bytes are not UTF-8.")
    bad(
        "lone-surrogate",
        "strings",
        strings.replace("é".encode(), b"\\ud83d"),
        "surrogate",
        "Half a character, which UTF-8 cannot write.",
    )
    bad(
        "byte-order-mark",
        "object",
        b'\xef\xbb\xbf{"a":1,"b":[true,null,"x"],"c":{}}',
        "not valid",
        "A byte order mark stands before the value.",
    )
    bad(
        "codepoint-order",
        "utf16-order",
        '{"\ufb33":2,"\U0001f600":1}'.encode(),
        form,
        "Keys are ordered by code points.",
    )
    bad("depth-65", "depth-64", b"[" * 65 + b"]" * 65, "deeper than 64", "Nested deeper than allowed.", "json.depth")


_ED25519 = bytes.fromhex("302a300506032b6570032100")


def _keys(suite: Suite) -> None:
    p256, ed = encoded(ec_key("owner")), encoded(ed_key("owner"))
    suite.passes("key-p256", "key", {"key.der": p256}, "key.kind", "A P-256 key.")
    suite.passes("key-ed25519", "key", {"key.der": ed}, "key.kind", "An Ed25519 key.")

    def bad(name: str, base: str, raw: bytes, rule: str, says: str, reason: str) -> None:
        suite.fails(f"key-{name}", f"key-{base}", {"key.der": raw}, rule, says, reason, status=2)

    small = {
        "identity": "01" + "00" * 31,
        "order-4": "00" * 32,
        "order-2": "ec" + "ff" * 30 + "7f",
        "order-8": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "order-8-negative": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "not-reduced": "ee" + "ff" * 30 + "7f",
    }
    for name, place in small.items():
        bad(
            f"small-{name}",
            "ed25519",
            _ED25519 + bytes.fromhex(place),
            "key.order",
            "small order",
            "An Ed25519 key of small order (or another spelling of one), for which anybody can make signatures.",
        )
    bad(
        "p384",
        "p256",
        encoded(ec_key("owner", ec.SECP384R1())),
        "key.kind",
        "of another kind",
        "A key on another curve.",
    )
    bad("rsa", "p256", encoded(rsa_key("owner")), "key.kind", "of another kind", "An RSA key.")
    bad("trailing", "p256", p256 + b"\0", "key.form", "cannot be read", "A byte behind the key.")
    point = (
        ec_key("owner")
        .public_key()
        .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    )
    compressed = p256[:1] + bytes([p256[1] - 32]) + p256[2:24] + bytes([p256[24] - 32]) + b"\0" + point
    bad(
        "compressed",
        "p256",
        compressed,
        "key.form",
        "one form",
        "The point is compressed: the same key under another digest.",
    )
    bad(
        "off-curve",
        "p256",
        p256[:-1] + bytes([p256[-1] ^ 1]),
        "key.form",
        "cannot be read",
        "The point is not on the curve.",
    )
