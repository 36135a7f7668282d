"""Cases of timestamp tokens."""

from __future__ import annotations

from typing import Any

from signed import FIRST, OTHER
from suite import Suite
from tokens import (
    CODE_SIGNING,
    TIME_STAMPING,
    Authority,
    at,
    authority,
    token,
)

from proof_of_learning.attestation import timestamps


def cases(suite: Suite) -> None:
    data = b"what is stamped\n"

    def good(name: str, raw: bytes, reason: str, roots: str = "first-tsa.pem", file: bytes = data) -> None:
        suite.passes(f"token-{name}", "timestamp", {"file": file, "token.tsr": raw}, "token", reason, roots=[roots])

    def bad(
        name: str,
        raw: bytes,
        rule: str,
        says: str,
        reason: str,
        status: int = 2,
        base: str = "p256",
        file: bytes = data,
        **given: Any,
    ) -> None:
        suite.fails(
            f"token-{name}",
            f"token-{base}",
            {"file": file, "token.tsr": raw},
            rule,
            says,
            reason,
            status=status,
            **given,
        )

    def by(name: str, **made: Any) -> tuple[Authority, dict[str, Any]]:
        own = authority(f"Odd {name}", **made)
        suite.given[f"{name}-tsa.pem"] = own.roots()
        return own, {"roots": [f"{name}-tsa.pem"]}

    true = token(FIRST, data, at(2022))
    good("p256", true, "A token of an authority with a P-256 key.")
    good("rsa", token(OTHER, data, at(2022)), "A token of an authority with an RSA key.", "second-tsa.pem")
    good("sha512", token(FIRST, data, at(2022), digest="sha512"), "Signed with SHA-512.")
    good(
        "ess-1", token(FIRST, data, at(2022), ess="sha1"), "The certificate is named by the older attribute (RFC 2634)."
    )
    good("no-accuracy", token(FIRST, data, at(2022), accuracy=False), "The token says nothing of its accuracy.")
    good("twin", token(FIRST, data, at(2022), twin=True), "The other form of the same ECDSA signature.")
    good("on-token", token(OTHER, true, at(2022, 1)), "A token on another token.", "second-tsa.pem", true)
    held: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("expired-since", {"until": at(2023)}, "The certificate has expired since: it dated what it dated."),
        ("intermediate", {"between": True}, "Between the root and the authority there is another certificate."),
    )
    for name, made, reason in held:
        own, _ = by(name, **made)
        good(name, token(own, data, at(2022)), reason, f"{name}-tsa.pem")
    vouches = "vouches"
    bad(
        "other-file", true, "token.imprint", "another file", "The token is over another file.", 1, file=b"other bytes\n"
    )
    bad(
        "untrusted",
        true,
        "token.chain",
        vouches,
        "An authority that the verifier did not name.",
        1,
        roots=["second-tsa.pem"],
    )
    bad(
        "leaf-named",
        true,
        "token.chain",
        "is a root",
        "The verifier named the authority's own certificate, which is no root.",
        1,
        roots=["first-tsa-leaf.pem"],
    )
    certificates: tuple[tuple[str, dict[str, Any], str, str, str, int], ...] = (
        ("expired", {"until": at(2021)}, "token.chain", vouches, "The certificate had expired at the token's time.", 1),
        (
            "not-yet",
            {"since": at(2023)},
            "token.chain",
            vouches,
            "The certificate did not hold yet at the token's time.",
            1,
        ),
        (
            "issued-by-another",
            {"issued_by": "nobody"},
            "token.chain",
            vouches,
            "The certificate is not signed by whom it names.",
            1,
        ),
        (
            "not-an-issuer",
            {"between": True, "is_authority": False},
            "token.chain",
            vouches,
            "The certificate between may not issue others.",
            1,
        ),
        ("usage-none", {"usage": ()}, "token.usage", "not for timestamps", "The certificate is not for timestamps.", 2),
        (
            "usage-code",
            {"usage": (CODE_SIGNING,)},
            "token.usage",
            "not for timestamps alone",
            "The certificate is for code.",
            2,
        ),
        (
            "usage-both",
            {"usage": (TIME_STAMPING, CODE_SIGNING)},
            "token.usage",
            "not for timestamps alone",
            "The certificate is for timestamps and more.",
            2,
        ),
        (
            "usage-not-critical",
            {"critical": False},
            "token.usage",
            "critical",
            "The restriction to timestamps is not critical.",
            2,
        ),
    )
    for name, made, rule, says, reason, status in certificates:
        own, given = by(name, **made)
        bad(
            name,
            token(own, data, at(2022)),
            rule,
            says,
            reason,
            status,
            "intermediate" if "between" in made else "p256",
            **given,
        )
    responses: tuple[tuple[str, dict[str, Any], str, str, str], ...] = (
        (
            "no-ess",
            {"ess": None},
            "token.ess",
            "signing-certificate",
            "The token does not say which certificate it is signed with.",
        ),
        (
            "ess-other",
            {"ess_of": OTHER.leaf},
            "token.ess",
            "another certificate",
            "The token names another certificate than the one in it.",
        ),
        (
            "no-certificate",
            {"certificates": False},
            "token.certificate",
            "not in it",
            "The authority's certificate is not in the token.",
        ),
        ("rejected", {"status": 2}, "token.status", "refused", "The authority refused."),
        ("modified", {"status": 1}, "token.status", "refused", "Granted with modifications, which is not granted."),
        ("two-signers", {"signers": 2}, "token.form", "of one authority", "Two signers."),
        ("content", {"kind": "1.2.840.113549.1.7.1"}, "token.form", "about a time", "What is signed is no time."),
        (
            "attribute",
            {"attribute_kind": "1.2.840.113549.1.7.1"},
            "token.form",
            "not a time",
            "By the signed attributes, what is signed is no time.",
        ),
        (
            "digest",
            {"signed_info": b"another time"},
            "token.signature",
            "not the one that was signed",
            "The signature is over another time.",
        ),
        (
            "imprint-sha512",
            {"imprint": "sha512"},
            "token.imprint",
            "SHA-256",
            "What is stamped is not named by SHA-256.",
        ),
        ("attribute-twice", {"doubled": True}, "token.form", "twice", "A signed attribute stands there twice."),
    )
    for name, options, rule, says, reason in responses:
        bad(name, token(FIRST, data, at(2022), **options), rule, says, reason)
    moved = true.replace(b"20220101000000Z", b"20210101000000Z")
    bad("moved", moved, "token.signature", "not the one that was signed", "The time was changed.")
    bad(
        "signature",
        true[:-1] + bytes([true[-1] ^ 1]),
        "token.signature",
        "does not fit",
        "One bit of the signature was changed.",
    )
    bad("trailing", true + b"\0", "token.der", "behind its end", "A byte behind the token.")
    bad("cut", true[:-1], "token.der", "cut short", "The token is a byte too short.")
    (head,) = [at_ for at_ in range(2, 40) if true[at_ : at_ + 2] == b"\x30\x03"]
    stretched = true[:head] + b"\x30\x81\x03" + true[head + 2 :]
    size = int.from_bytes(true[2:4], "big") + 1
    bad(
        "length",
        true[:2] + size.to_bytes(2, "big") + stretched[4:],
        "token.der",
        "DER does not write",
        "A length in more bytes than it needs.",
    )
    assert timestamps.parse(true, "").anchor == timestamps.parse(token(FIRST, data, at(2022), twin=True), "").anchor
