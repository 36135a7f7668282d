"""Statements and signatures beside a proof: what they show, and that no attack makes them show more."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proof_of_learning import (
    Proof,
    TaskReference,
    Verdict,
    check,
    sign,
    verify,
)
from proof_of_learning.attestation import gathering, signatures, statements, timestamps
from proof_of_learning.attestation.signatures import PublicKey
from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.proof.format import ATTESTATIONS
from support_attestation import World, gathered, judged, named, only, put, resigned
from support_authority import openssl


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    """A copy of the proof, to be changed."""
    return Path(shutil.copytree(world.proof, tmp_path / "run.pol"))


# ---- what they show -------------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_a_signed_and_stamped_proof_is_registered_and_says_who_and_when(world: World, tiny: TaskReference) -> None:
    roots = [world.first.roots, world.second.roots]
    verdict = verify(world.proof, tiny, trusted_keys=[world.trusted], trusted_tsa=roots)
    assert (verdict.verdict, verdict.assurance) == ("valid", "registered"), verdict.reason
    (signer,) = verdict.signers
    assert (signer.key, signer.owner, signer.trusted) == (world.key.public.digest, True, True)
    assert signer.signed == ["claim", "seal"]
    assert sorted(moment.what for moment in verdict.timeline) == ["claim", "claim", "seal", "seal"]
    assert all(moment.trusted and moment.earliest < moment.latest for moment in verdict.timeline)
    again = Verdict.from_json(verdict.to_json())
    assert (again.signers, again.timeline, again.claim) == (verdict.signers, verdict.timeline, verdict.claim)


def test_without_a_trusted_authority_it_is_as_before(world: World) -> None:
    verdict = judged(world.proof)
    assert verdict.assurance == "seed-derived"
    assert {moment.trusted for moment in verdict.timeline} == {False}


def test_of_two_authorities_the_last_one_has_to_be_trusted(world: World) -> None:
    """The key follows from its token; what it stamped may be anybody's."""
    assert gathered(world.proof, world.second).registered
    found = gathered(world.proof, world.first)
    assert not found.registered and "the last timestamp" in found.unregistered


def test_an_unsigned_or_otherwise_signed_proof_is_invalid_before_anything_is_read(
    world: World, run: Path, tiny_proof: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("a state was read")

    monkeypatch.setattr(Proof, "state", never)
    unsigned = judged(tiny_proof, trusted_keys=[world.trusted])
    assert (unsigned.verdict, unsigned.check("attestation").status, unsigned.exit_status) == ("invalid", "fail", 1)
    other = judged(run, trusted_keys=[world.folder / "stranger.pub.pem"])
    assert (other.verdict, "only the key" in other.reason) == ("invalid", True)


def test_keys_are_counted_not_signatures(world: World, run: Path) -> None:
    both = [world.trusted, world.folder / "stranger.pub.pem"]
    envelope = json.loads(only(run, "seal-*.dsse.json").read_bytes())
    message = signatures.pae(base64.b64decode(envelope["payload"]))
    envelope["signatures"] += [{"sig": base64.b64encode(world.key.sign(message)).decode()} for _ in range(4)]
    put(run, "seal-.dsse.json", json.dumps(envelope).encode())
    assert judged(run, trusted_keys=both, threshold=2).check("attestation").status == "fail"
    sign(run, world.stranger)
    assert judged(run, trusted_keys=both, threshold=2).check("attestation").status == "pass"
    witness = next(item for item in judged(run, trusted_keys=[world.trusted]).signers if not item.owner)
    assert (witness.trusted, witness.signed) == (False, ["seal"])


def test_a_policy_can_ask_for_keys(world: World, run: Path, tmp_path: Path) -> None:
    rules = tmp_path / "policy.toml"
    for key, status in ((world.key, "pass"), (world.stranger, "fail")):
        rules.write_text(f'[trust]\nkeys = ["{key.public.digest}"]\n')
        assert judged(run, policy=rules).check("attestation").status == status
    rules.write_text(f'[trust]\nkeys = ["{world.key.public.digest}"]\nthreshold = 2\n')
    with pytest.raises(UsageError, match="threshold"):
        judged(run, policy=rules)


def test_signing_twice_changes_nothing(world: World, run: Path) -> None:
    before = sorted(os.listdir(run / ATTESTATIONS))
    sign(run, world.key)
    assert sorted(os.listdir(run / ATTESTATIONS)) == before


def test_the_root_is_the_same_with_and_without(world: World, run: Path) -> None:
    shutil.rmtree(run / ATTESTATIONS)
    assert Proof.open(run).root == Proof.open(world.proof).root
    assert check(run).status == check(world.proof).status == "pass"


# ---- other tools ----------------------------------------------------------------------------------------------------


def test_openssl_verifies_signature_subjects_and_timestamps(world: World, tmp_path: Path) -> None:
    """What docs/guide/trust.md tells an arbiter to do, without any code of ours."""
    for kind in ("claim", "seal"):
        envelope = only(world.proof, f"{kind}-*.dsse.json")
        value = json.loads(envelope.read_bytes())
        payload = base64.b64decode(value["payload"])
        (tmp_path / "pae").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload)
        (tmp_path / "sig").write_bytes(base64.b64decode(value["signatures"][0]["sig"]))
        key = ["-verify", world.trusted, "-signature", tmp_path / "sig", tmp_path / "pae"]
        assert b"Verified OK" in openssl("dgst", "-sha256", *key).stdout
        stamped, authority = envelope, world.first
        for authority in (world.first, world.second):
            digest = stamped.read_bytes()
            token = next(
                path for path in named(world.proof, f"{kind}-*.tsr")
                if timestamps.parse(path.read_bytes(), "").stamped == gathering.File("", "", "", digest).stamped_as
            )  # fmt: skip
            at = int(timestamps.parse(token.read_bytes(), "").latest.timestamp())
            given = ["-attime", at, "-CAfile", authority.roots, "-in", token, "-data", stamped]
            assert b"Verification: OK" in openssl("ts", "-verify", *given).stdout
            stamped = token
    statement = json.loads(payload)
    for subject in statement["subject"]:
        shown = subprocess.run(["sha256sum", world.proof / subject["name"]], capture_output=True, check=True).stdout
        assert shown.split()[0].decode() == subject["digest"]["sha256"]
    assert Proof.open(world.proof).root[7:] not in str(statement["subject"])


def test_statements_are_canonical_in_toto(world: World) -> None:
    raw = json.loads(only(world.proof, "seal-*.dsse.json").read_bytes())
    payload = base64.b64decode(raw["payload"])
    assert (
        payload == json.dumps(json.loads(payload), separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    )
    value = json.loads(payload)
    assert value["_type"] == "https://in-toto.io/Statement/v1"
    assert value["predicateType"] == statements.TYPES["seal"]
    assert len(set(statements.TYPES.values())) == len(statements.TYPES) == 7


# ---- attacks on statements ------------------------------------------------------------------------------------------


def test_a_seal_of_another_proof_counts_for_nothing(world: World, tiny_proof: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_proof, tmp_path / "other.pol"))
    shutil.copytree(world.proof / ATTESTATIONS, other / ATTESTATIONS)
    found = gathered(other, world.first, world.second)
    assert not found.signed and not found.stamps and not found.registered
    verdict = judged(other, trusted_keys=[world.trusted])
    assert verdict.verdict == "invalid" and "another root" in verdict.reason
    assert judged(other).verdict == "inconclusive"  # nor does it do harm


ALTERED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another root beside the true files": lambda value: value["predicate"].update(root="sha256:" + "0" * 64),
    "another file beside the true root": lambda value: value["subject"][1]["digest"].update(sha256="0" * 64),
    "one subject more": lambda value: value["subject"].append({"name": "model", "digest": {"sha256": "0" * 64}}),
    "one subject less": lambda value: value["subject"].pop(),
    "another claim": lambda value: value["predicate"].update(claim="sha256:" + "0" * 64),
    "no anchor": lambda value: value["predicate"].update(anchor=None),
    "other weights": lambda value: value["predicate"].update(finalWeights="sha256:" + "0" * 64),
    "more steps": lambda value: value["predicate"].update(steps=10**6),
    "a field more": lambda value: value["predicate"].update(certified=True),
    "another name": lambda value: value["predicate"]["task"].update(name="better"),
    "a signer's digest that is not its key's": lambda value: value["predicate"]["signers"][0].update(
        digest="sha256:" + "0" * 64
    ),
}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED)
def test_a_signed_statement_that_says_something_else_counts_for_nothing(
    change: Callable[[dict[str, Any]], Any], world: World, run: Path
) -> None:
    resigned(run, world.key, change)
    assert judged(run, trusted_keys=[world.trusted]).check("attestation").status == "fail"
    assert not [stamp for stamp in gathered(run, world.first).stamps if stamp.kind == "seal"]


def test_a_statement_of_one_kind_is_none_of_another(world: World, run: Path) -> None:
    """By its file's name, and by its type: the claim's signature is no seal's."""
    raw = only(run, "claim-*.dsse.json").read_bytes()
    put(run, "seal-.dsse.json", raw)
    with pytest.raises(FormatError, match="holds a statement of the kind 'claim'"):
        judged(run)
    claim = base64.b64decode(json.loads(raw)["payload"])
    as_seal = claim.replace(statements.TYPES["claim"].encode(), statements.TYPES["seal"].encode())
    envelope = json.loads(raw) | {"payload": base64.b64encode(as_seal).decode()}
    for file in named(run, "seal-*"):
        file.unlink()
    put(run, "seal-.dsse.json", json.dumps(envelope).encode())
    assert judged(run, trusted_keys=[world.trusted]).check("attestation").status == "fail"


@pytest.mark.parametrize("kind", ["head", "verdict", "opening"])
def test_types_of_statements_are_exact(kind: Any, world: World, run: Path) -> None:
    resigned(run, world.key, lambda value: value.update(predicateType=statements.TYPES[kind]))
    with pytest.raises(FormatError, match="of the kind"):
        judged(run)


@pytest.mark.parametrize(
    "named_", ["urn:proof-of-learning:training:seal:v2", "https://slsa.dev/provenance/v1", 7, None]
)
def test_predicates_that_nobody_knows_are_refused_in_a_line(named_: Any, world: World, run: Path) -> None:
    resigned(run, world.key, lambda value: value.update(predicateType=named_))
    with pytest.raises(FormatError, match="which this version does not know") as caught:
        judged(run)
    assert caught.value.exit_status == 2 and "\n" not in str(caught.value)


def test_a_stripped_or_replaced_signature_is_no_signature(world: World, run: Path) -> None:
    true = only(run, "seal-*.dsse.json")
    value = json.loads(true.read_bytes())
    message = signatures.pae(base64.b64decode(value["payload"]))
    forged = base64.b64encode(world.stranger.sign(message)).decode()
    true.unlink()
    for signature in (
        [],
        [{"keyid": world.key.public.digest, "sig": forged}],
        [{"sig": "AAAA"}],
        [{"keyid": "x"}],
        [None, 7],
    ):
        for file in named(run, "seal-*"):
            file.unlink()
        put(run, "seal-.dsse.json", json.dumps(value | {"signatures": signature}).encode())
        assert judged(run, trusted_keys=[world.trusted]).check("attestation").status == "fail"


def test_what_is_signed_is_not_the_payload_alone(world: World, run: Path) -> None:
    """A signature over the payload without its type (PAE) could be of anything."""
    true = only(run, "seal-*.dsse.json")
    payload = base64.b64decode(json.loads(true.read_bytes())["payload"])
    true.unlink()
    put(run, "seal-.dsse.json", signatures.encoded(payload, [("", world.key.sign(payload))]))
    assert judged(run, trusted_keys=[world.trusted]).check("attestation").status == "fail"


def test_a_stranger_who_puts_himself_beside_the_owner_is_a_witness(world: World, run: Path) -> None:
    """Naming the owner's key among the signers takes the owner's signature."""
    facts = gathering.sealed(Proof.open(run))
    for file in named(run, "seal-*"):
        file.unlink()
    payload = statements.seal(facts, [world.key.public, world.stranger.public])
    put(run, "seal-.dsse.json", signatures.encoded(payload, [("", world.stranger.sign(signatures.pae(payload)))]))
    assert gathered(run).signers() == [world.stranger.public.digest]


def test_envelopes_are_read_leniently(world: World, run: Path) -> None:
    true = only(run, "seal-*.dsse.json")
    value = json.loads(true.read_bytes())
    true.unlink()
    (one,) = value["signatures"]
    url_safe = one["sig"].replace("+", "-").replace("/", "_")
    value["signatures"] = [
        {"sig": url_safe, "extra": [1]},
        {"keyid": "somebody else", "sig": one["sig"]},
        {"sig": "//////"},
    ]
    put(run, "seal-.dsse.json", json.dumps({**value, "unknown": {"a": 1}}, indent=3).encode())
    assert judged(run, trusted_keys=[world.trusted]).check("attestation").status == "pass"


def test_signatures_that_have_to_be_tried_are_counted(world: World, run: Path) -> None:
    """Each key of each envelope is tried with each signature: a few megabytes would take minutes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PublicKey, "verifies", lambda *_: False)
        keys = [ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(64)]
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        signers = [signatures.decode_public(key.public_bytes(*form), "a key") for key in keys]
        payload = statements.seal(gathering.sealed(Proof.open(run)), signers)
        for number in range(15):
            made = [("", bytes([number, place, 1])) for place in range(16)]
            put(run, "seal-.dsse.json", signatures.encoded(payload, made))
        gathering.gather(Proof.open(run), None)
        put(run, "seal-.dsse.json", signatures.encoded(payload, [("", bytes([place])) for place in range(16)]))
        with pytest.raises(FormatError, match="more keys and signatures than are tried"):
            judged(run)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"payloadType":"text/plain","payload":"","signatures":[]}',
     b'{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[]}',
     b'{"payloadType":"application/vnd.in-toto+json","payload":"!","signatures":[]}',
     b'{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":' + b"[" + b"{}," * 16 + b"{}]}"],
)  # fmt: skip
def test_what_is_no_envelope_is_refused_in_a_line(raw: bytes, run: Path) -> None:
    put(run, "seal-.dsse.json", raw)
    with pytest.raises(FormatError) as caught:
        judged(run)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# ---- files beside the root ------------------------------------------------------------------------------------------


def test_only_files_that_are_what_their_names_say_lie_beside_a_root(run: Path) -> None:
    place = run / ATTESTATIONS
    for name, raw in (
        ("note.txt", b"x"),
        ("seal-0123456789abcdef.tsr", b"x"),
        ("verdict-0123456789abcdef.json", b"{}"),
        (".tmp-x", b""),
    ):
        (place / name).write_bytes(raw)
        with pytest.raises(FormatError):
            Proof.open(run)
        (place / name).unlink()
    (place / "seal-0123456789abcdef.tsr").symlink_to(place / named(run, "*.tsr")[0].name)
    with pytest.raises(FormatError):
        Proof.open(run)


def test_sizes_and_numbers_are_bounded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from proof_of_learning import limits

    huge = run / ATTESTATIONS / "seal-0123456789abcdef.dsse.json"
    with open(huge, "wb") as stream:
        stream.truncate(1 << 30)  # sparse
    with pytest.raises(FormatError, match="at most"):
        Proof.open(run)
    huge.unlink()
    monkeypatch.setattr(limits, "MAX_ATTESTATIONS", 3)
    with pytest.raises(FormatError, match="more than 3 files"):
        Proof.open(run)


def test_taking_evidence_away_never_improves_a_verdict(world: World, run: Path) -> None:
    """Each file in turn, and all of them; with a stranger's false statement beside."""
    rank = {"observed": 0, "seed-derived": 1, "registered": 2}
    asked: dict[str, Any] = {"trusted_tsa": [world.second.roots], "trusted_keys": [world.trusted]}

    def worth(place: Path) -> tuple[int, int]:
        verdict = judged(place, **asked)
        return verdict.verdict != "invalid", rank[verdict.assurance]

    facts = replace(gathering.sealed(Proof.open(run)), root="sha256:" + "0" * 64)
    put(run, "seal-.dsse.json", signatures.seal(statements.seal(facts, [world.stranger.public]), [world.stranger]))
    whole = worth(run)
    assert whole == (True, 2)
    for file in named(run, "*"):
        raw = file.read_bytes()
        file.unlink()
        less = worth(run)
        assert all(a <= b for a, b in zip(less, whole, strict=True)), file.name
        file.write_bytes(raw)
    shutil.rmtree(run / ATTESTATIONS)
    assert worth(run) <= whole


def test_attestations_travel_with_the_proof(world: World, run: Path, tmp_path: Path, store: None) -> None:
    from proof_of_learning import pack, thin, unpack
    from proof_of_learning.proof import remote

    kept = Proof.open(run).attestations
    assert len(kept) == 6
    pack(run, tmp_path / "run.tar")
    assert Proof.open(unpack(tmp_path / "run.tar", tmp_path / "unpacked.pol")).attestations == kept
    pack(tmp_path / "unpacked.pol", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "run.tar").read_bytes()
    thin(run, 2)
    assert Proof.open(run).attestations == kept
    system, root = remote._open("memory://bucket/run.pol")
    for path in sorted(run.rglob("*")):
        if path.is_file():
            system.pipe_file(f"{root}/{path.relative_to(run)}", path.read_bytes())
    verdict = judged("memory://bucket/run.pol", trusted_tsa=[world.second.roots])
    assert verdict.assurance == "registered"
    system.pipe_file(f"{root}/{ATTESTATIONS}/other", b"x")
    with pytest.raises(FormatError, match="which no proof does"):
        judged("memory://bucket/run.pol")


# ---- keys -----------------------------------------------------------------------------------------------------------


def pem(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    raw: bytes = key.public_bytes(serialization.Encoding.PEM, form)
    return raw


# The identity, the points of order 2 and 4, those of order 8, and other spellings of the same.
SMALL = [
    "01" + "00" * 31, "00" * 32, "00" * 31 + "80", "ec" + "ff" * 30 + "7f", "01" + "00" * 30 + "80",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "ed" + "ff" * 30 + "7f", "ee" + "ff" * 30 + "7f", "ee" + "ff" * 30 + "ff",
]  # fmt: skip


@pytest.mark.parametrize("point", SMALL)
def test_keys_for_which_anybody_can_sign_are_refused(point: str, tmp_path: Path, world: World, run: Path) -> None:
    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(point))
    (tmp_path / "small.pem").write_bytes(pem(key))
    with pytest.raises(UsageError, match="small order"):
        judged(run, trusted_keys=[tmp_path / "small.pem"])
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    resigned(
        run, world.key, lambda value: value["predicate"]["signers"][0].update(publicKey=base64.b64encode(der).decode())
    )
    with pytest.raises(FormatError, match="small order"):
        judged(run)


def test_ed25519_keys_are_read(tmp_path: Path, world: World, run: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "ed.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "ed.pub.pem").write_bytes(pem(key.public_key()))
    sign(run, tmp_path / "ed.pem")
    assert judged(run, trusted_keys=[tmp_path / "ed.pub.pem"]).check("attestation").status == "pass"


def keys_of_the_wrong_kind() -> Iterator[Any]:
    yield ec.generate_private_key(ec.SECP384R1())
    yield ec.generate_private_key(ec.SECP256K1())
    yield rsa.generate_private_key(65537, 2048)


def test_keys_of_another_kind_are_refused_in_a_line(tmp_path: Path, run: Path) -> None:
    for number, key in enumerate(keys_of_the_wrong_kind()):
        private, public = tmp_path / f"{number}.pem", tmp_path / f"{number}.pub.pem"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        public.write_bytes(pem(key.public_key()))
        with pytest.raises(UsageError, match="another kind than P-256 or Ed25519"):
            sign(run, private)
        with pytest.raises(UsageError, match="another kind than P-256 or Ed25519"):
            judged(run, trusted_keys=[public])


@pytest.mark.parametrize(
    "raw", [b"", b"-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----\n", b"\x00" * 100, b"x" * (1 << 17)]
)
def test_what_is_no_key_is_refused_in_a_line(raw: bytes, tmp_path: Path, run: Path) -> None:
    (tmp_path / "key").write_bytes(raw)
    for act in (lambda: sign(run, tmp_path / "key"), lambda: judged(run, trusted_keys=[tmp_path / "key"])):
        with pytest.raises(UsageError) as caught:
            act()
        assert "\n" not in str(caught.value)


def test_a_private_key_is_no_trusted_key(world: World) -> None:
    with pytest.raises(UsageError, match="holds a private key"):
        judged(world.proof, trusted_keys=[world.folder / "key.pem"])


def test_a_locked_key_opens_with_its_passphrase_alone(tmp_path: Path, run: Path) -> None:
    made = signatures.generate(tmp_path / "key.pem", b"correct horse")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert openssl("pkey", "-in", tmp_path / "key.pem", "-passin", "pass:correct horse", "-noout").returncode == 0
    for wrong in (None, b"battery staple", b""):
        with pytest.raises(UsageError) as caught:
            sign(run, tmp_path / "key.pem", wrong)
        assert "battery" not in str(caught.value)
    sign(run, tmp_path / "key.pem", b"correct horse")
    assert made.digest in gathered(run).signers()
    with pytest.raises(UsageError, match="never overwritten"):
        signatures.generate(tmp_path / "key.pem")


def test_no_secret_reaches_the_proof(world: World) -> None:
    secret = signatures.load_private(world.folder / "key.pem")._key.private_numbers().private_value  # type: ignore[union-attr]
    raw = secret.to_bytes(32, "big")
    written = (
        b"".join(path.read_bytes() for path in world.proof.rglob("*") if path.is_file()) + world.claim.read_bytes()
    )
    for form in (raw, raw.hex().encode(), base64.b64encode(raw)):
        assert form not in written
    assert repr(world.key).count(str(secret)) == 0


def test_a_public_key_has_one_form(world: World) -> None:
    """Counted by digest, so no key may have two: a compressed point is another encoding of the same."""
    key: Any = serialization.load_der_public_key(world.key.public.encoded)
    point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    spki = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    with pytest.raises(FormatError, match="one form"):
        signatures.decode_public(spki, "it")
    assert signatures.decode_public(world.key.public.encoded, "it") == PublicKey(world.key.public.encoded)


def test_nesting_is_bounded_however_deep_python_may_recurse(run: Path) -> None:
    """Programs and packages raise the limit, until what reads nested input runs out of stack, and the process ends."""
    deep = b"[" * 200_000
    envelope = put(run, "seal-.dsse.json", deep)
    claim, header = run.parent / "claim.json", run.parent / "header.pol"
    claim.write_bytes(deep)
    shutil.copytree(run, header)
    (header / "header.json").write_bytes(deep)
    code = (
        "import sys; sys.setrecursionlimit(1_000_000)\n"
        "from proof_of_learning import Proof, registration, verify\n"
        "from proof_of_learning.attestation import signatures\n"
        "from proof_of_learning.errors import FormatError\n"
        f"for read in (lambda: verify({str(run)!r}), lambda: registration.load({str(claim)!r}), lambda: Proof.open({str(header)!r}),\n"
        f"             lambda: signatures.open_envelope(open({str(envelope)!r}, 'rb').read(), 'it')):\n"
        "    try:\n"
        "        read()\n"
        "    except FormatError as error:\n"
        "        assert 'nested deeper' in str(error), error\n"
        "    else:\n"
        "        raise SystemExit('read')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, (ended.returncode, ended.stderr)
