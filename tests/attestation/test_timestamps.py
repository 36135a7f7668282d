"""Timestamps and registered claims: what they date, and that no attack makes them date more; the commands for all of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import support_authority as authorities
from proof_of_learning import (
    Proof,
    TaskReference,
    prove,
    register,
    registration,
    sign,
    signing,
    timestamp,
)
from proof_of_learning.attestation import gathering, timestamps
from proof_of_learning.attestation.signatures import PublicKey
from proof_of_learning.errors import FormatError, PolError, UsageError
from proof_of_learning.proof.format import ATTESTATIONS, Header
from support_attestation import World, gathered, judged, named, only, put, stamped_name
from support_authority import Authority, openssl


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    """A copy of the proof, to be changed."""
    return Path(shutil.copytree(world.proof, tmp_path / "run.pol"))


# ---- times ----------------------------------------------------------------------------------------------------------

THEN = datetime(2022, 5, 5, tzinfo=UTC)


def good(raw: bytes, authority: Authority) -> str:
    """Why a token counts for nothing; empty where it counts."""
    try:
        return timestamps.trusted(timestamps.parse(raw, "it"), timestamps.load_authorities([authority.roots]))
    except FormatError as error:
        return str(error)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({}, ""),
        ({"until": datetime(2022, 1, 1, tzinfo=UTC)}, "vouches"),
        ({"since": datetime(2023, 1, 1, tzinfo=UTC)}, "vouches"),
        ({"until": datetime(2023, 1, 1, tzinfo=UTC)}, ""),  # has expired since: it dated what it dated
        ({"critical": False}, "critical extended key usage"),
        ({"usage": ()}, "not for timestamps"),
        ({"usage": (authorities.ExtendedKeyUsageOID.CODE_SIGNING,)}, "not for timestamps alone"),
        (
            {"usage": (authorities.TIME_STAMPING, authorities.ExtendedKeyUsageOID.CODE_SIGNING)},
            "not for timestamps alone",
        ),
    ],
)
def test_certificates_count_for_timestamps_and_at_their_time(made: dict[str, Any], reason: str, tmp_path: Path) -> None:
    authority = authorities.make(tmp_path / "authority", **made)
    found = good(authority.crafted(b"data", THEN), authority)
    assert reason in found and bool(reason) == bool(found), found


def test_what_is_remembered_of_an_authority_ends_with_its_certificate(tmp_path: Path) -> None:
    """Tokens that are alike are judged once, and not across the moments at which a certificate begins or ceases to hold (for OpenSSL,
    the last one of which is too late).
    """
    since, until, second = datetime(2022, 1, 1, tzinfo=UTC), datetime(2022, 2, 1, tzinfo=UTC), timedelta(seconds=1)
    authority = authorities.make(tmp_path / "authority", since=since, until=until)
    times = [THEN.replace(month=1), until + second, since - second, until, since, THEN, THEN.replace(month=1, day=6)]
    tokens = [timestamps.parse(authority.crafted(b"data", time), "it") for time in times]
    named_, alone = timestamps.load_authorities([authority.roots]), list[str]()
    together = [timestamps.trusted(token, named_) for token in tokens]
    for token in tokens:
        timestamps._vouching.cache_clear()
        alone.append(timestamps.trusted(token, named_))
    assert together == alone and [not why for why in together] == [True, False, False, False, True, False, True]
    # And not for a token whose bytes differ anywhere else, if only in a field that nobody signed.
    assert len({token.like for token in tokens if len(token.raw) == len(tokens[0].raw)}) == 1
    raw = tokens[0].raw
    algorithm = bytes.fromhex("06082a8648ce3d040302")  # ecdsa-with-SHA256, in the certificate and beside the signature
    at = raw.rindex(algorithm)
    changed = raw[:at] + algorithm[:-1] + b"\x03" + raw[at + len(algorithm) :]
    with suppress(FormatError):
        assert timestamps.parse(changed, "it").like != tokens[0].like


@pytest.mark.parametrize(
    ("options", "hash_", "reason"),
    [
        (("-nosmimecap",), "sha256", "signing-certificate attribute"),
        (("-noattr",), "sha256", "no timestamp token"),
        (("-cades", "-nocerts"), "sha256", "certificate is not in it"),
        (("-cades",), "sha512", "SHA-256"),
    ],
)
def test_tokens_have_what_they_need(options: tuple[str, ...], hash_: str, reason: str, world: World) -> None:
    assert reason in good(world.first.crafted(b"data", THEN, *options, hash_=hash_), world.first)


@pytest.mark.parametrize("moment", [datetime(1969, 12, 31, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)])
def test_a_time_is_one_that_a_clock_may_have(moment: datetime, world: World) -> None:
    """To one at the end of all times nothing can be added, and `pol inspect` ended in an error."""
    with pytest.raises(FormatError, match="none that a clock may have"):
        timestamps.parse(world.first.crafted(b"data", moment), "it")


def test_an_authority_that_the_verifier_did_not_name_dates_nothing(world: World) -> None:
    token = world.first.crafted(b"data", THEN)
    assert good(token, world.first) == ""
    assert "vouches" in good(token, world.second)
    leaf = timestamps.load_authorities([world.first.folder / "tsa.pem"])
    assert "root" in timestamps.trusted(timestamps.parse(token, "it"), leaf)


def test_a_token_is_its_own_certificates_and_no_others(world: World, tmp_path: Path) -> None:
    """The same key under another certificate: the signing-certificate attribute says which one signed."""
    other = authorities.make(tmp_path / "other", "First", until=datetime(2030, 1, 1, tzinfo=UTC))
    token, mine = world.first.crafted(b"data", THEN), (world.first.folder / "tsa.pem").read_bytes()
    der = [subprocess.run(["openssl", "x509", "-outform", "DER"], input=pem, capture_output=True, check=True).stdout
           for pem in (mine, (other.folder / "tsa.pem").read_bytes())]  # fmt: skip
    if len(der[0]) == len(der[1]):  # else the swap is no token at all
        assert good(token.replace(der[0], der[1]), world.first)


def test_flipped_bits_never_move_a_time_or_the_key_that_follows(world: World) -> None:
    raw = named(world.proof, "claim-*.tsr")[0].read_bytes()
    true = timestamps.parse(raw, "it")
    roots = timestamps.load_authorities([world.first.roots, world.second.roots])
    for place in range(len(raw)):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << place % 8
        try:
            found = timestamps.parse(bytes(flipped), "it")
        except FormatError:
            continue
        if not timestamps.trusted(found, roots):
            assert (found.stamped, found.latest, found.anchor) == (true.stamped, true.latest, true.anchor)


def test_the_other_form_of_an_ecdsa_signature_gives_the_same_anchor(world: World) -> None:
    """Whoever has (r, s) has (r, n − s): both verify, and the key must not be choosable by that."""
    raw = named(world.proof, "claim-*.tsr")[0].read_bytes()
    true = timestamps.parse(raw, "it")
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

    order = ec.SECP256R1().group_order
    for at in range(len(raw) - 72, len(raw) - 66):
        if raw[at] != 0x30:
            continue
        r, s = decode_dss_signature(raw[at:])
        other = encode_dss_signature(r, order - s)
        if len(other) == len(raw) - at:
            twin = timestamps.parse(raw[:at] + other, "it")
            assert twin.raw != true.raw and twin.anchor == true.anchor
            return
    pytest.skip("the other form has another length this time")


def test_a_token_for_other_bytes_counts_for_nothing(world: World, run: Path) -> None:
    for file in named(run, "seal-*.tsr"):
        file.unlink()
    put(run, "seal-.tsr", world.first.crafted(b"other bytes", THEN))
    put(run, "seal-.tsr", world.first.crafted(only(run, "claim-*.dsse.json").read_bytes(), THEN))  # of another kind
    found = gathered(run, world.first)
    assert not [stamp for stamp in found.stamps if stamp.kind == "seal"] and len(found.ignored) == 2


def test_a_time_before_the_claim_counts_for_nothing(world: World, run: Path) -> None:
    """An authority with a false clock dates the finished proof before the timestamp that its key follows from."""
    put(run, "seal-.tsr", world.second.crafted(only(run, "seal-*.dsse.json").read_bytes(), THEN))
    found = gathered(run, world.first, world.second)
    (early,) = (stamp for stamp in found.stamps if stamp.latest.year == 2022)
    assert found.registered and "before the claim was stamped" in early.refused


def test_times_are_intervals(world: World) -> None:
    token = timestamps.parse(world.first.crafted(b"data", THEN), "it")
    assert (token.earliest, token.latest) == (THEN - timedelta(seconds=1), THEN + timedelta(seconds=1))


# ---- claims ---------------------------------------------------------------------------------------------------------


def test_the_key_follows_from_the_timestamp(world: World) -> None:
    header = Proof.open(world.proof).header
    claim = registration.claim_of(header)
    assert header.randomness.anchor == registration.anchor_of(registration.load(world.claim))
    assert header.randomness.key == claim.key(header.randomness.anchor).hex() != claim.key().hex()
    other = msgspec.structs.replace(header.randomness, anchor="sha256:" + "0" * 64)
    moved_ = msgspec.structs.replace(header, randomness=other)
    assert registration.violations(moved_, {}) == ["the key is not the hash of the claim and its timestamp"]


def test_a_claim_that_is_stamped_after_training_registers_nothing(
    world: World, tiny: TaskReference, tmp_path: Path
) -> None:
    """The best of many claims, trained first: its key is the claim's hash, and no timestamp changes that any more."""
    claim, run = tmp_path / "claim.json", tmp_path / "run.pol"
    register(tiny, claim, interval=5, owners=[world.trusted])
    sign(claim, world.key)
    prove(tiny, run, registration=claim)
    with authorities.serving(world.first.reply) as url, pytest.raises(UsageError, match="used by a run already"):
        timestamp(claim, [url])
    envelope = only(run, "claim-*.dsse.json").read_bytes()
    put(run, "claim-.tsr", world.first.crafted(envelope, THEN))  # as early as one likes
    found = gathered(run, world.first)
    assert not found.registered and "does not follow from a timestamp" in found.unregistered
    assert judged(run, trusted_tsa=[world.first.roots]).assurance == "seed-derived"


def test_a_claim_is_worth_nothing_without_its_owners_signature(
    world: World, tiny: TaskReference, tmp_path: Path
) -> None:
    claim, run = tmp_path / "claim.json", tmp_path / "run.pol"
    made = register(tiny, claim, interval=5, owners=[world.trusted])
    with pytest.raises(UsageError, match="does not name the key"):
        sign(claim, world.stranger)
    with authorities.serving(world.first.reply) as url, pytest.raises(UsageError, match="0 of the 1 owners"):
        timestamp(claim, [url])
    # A forger stamps it all the same, trains from that, and signs with a key of his own.
    (unsigned,) = (file for file in gathering.files_of(made.attestations()) if file.form == "dsse.json")
    token = world.first.crafted(unsigned.raw, THEN)
    registration.rewrite(claim, made.keeping({unsigned.name: unsigned.raw, **stamped_name(token)}))
    prove(tiny, run, registration=claim)
    sign(run, world.stranger)
    found = gathered(run, world.first)
    assert Proof.open(run).header.randomness.anchor and not found.registered
    assert judged(run, trusted_tsa=[world.first.roots]).assurance == "seed-derived"


def test_two_of_two_owners_have_to_sign(world: World, tiny: TaskReference, tmp_path: Path) -> None:
    claim = tmp_path / "claim.json"
    register(tiny, claim, interval=5, owners=[world.trusted, world.stranger.public])
    assert registration.load(claim).claim.threshold == 2
    sign(claim, world.key)
    sign(claim, world.key)  # counts once
    with authorities.serving(world.first.reply) as url:
        with pytest.raises(UsageError, match="1 of the 2 owners"):
            timestamp(claim, [url])
        sign(claim, world.stranger)
        timestamp(claim, [url])
    with pytest.raises(UsageError, match="stamped or used already"):
        sign(claim, world.key)


def test_no_more_owners_sign_than_are_read(
    world: World, tiny: TaskReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (registration, signing):
        monkeypatch.setattr(module, "MAX_SIGNATURES", 1)
    claim = tmp_path / "claim.json"
    owners: list[str | os.PathLike[str] | PublicKey] = [world.trusted, world.stranger.public]
    with pytest.raises(UsageError, match="at most 1 sign, and 2 of 2"):
        register(tiny, claim, interval=5, owners=owners)
    register(tiny, claim, interval=5, owners=owners, threshold=1)
    sign(claim, world.key)
    with pytest.raises(UsageError, match="has 1 signatures already"):
        sign(claim, world.stranger)
    sign(claim, world.key)


def test_a_claim_whose_statement_is_about_another_claim_is_refused(
    world: World, tiny: TaskReference, tmp_path: Path
) -> None:
    claim = tmp_path / "claim.json"
    made = register(tiny, claim, interval=5, owners=[world.trusted])
    registration.rewrite(claim, made.keeping(registration.load(world.claim).attestations()))
    with pytest.raises(UsageError, match="stamped or used"):
        sign(claim, world.key)
    seals = {n: raw for n, raw in registration.load(world.claim).attestations().items() if n.endswith("json")}
    registration.rewrite(claim, made.keeping(seals))
    with pytest.raises(FormatError, match="another claim"):
        sign(claim, world.key)


def test_the_claim_fixes_the_sources(world: World) -> None:
    claim = registration.load(world.claim).claim
    assert claim.sources is not None and "sources" in claim.fixed()
    header = Proof.open(world.proof).header
    edited = msgspec.structs.replace(header.task, sources={**header.task.sources, "loss": "sha256:" + "0" * 64})
    changed: Header = msgspec.structs.replace(header, task=edited)
    environments = Proof.open(world.proof).environments
    assert registration.violations(header, environments) == []
    assert "sources" in registration.violations(changed, environments)[0]


def test_the_key_cannot_be_chosen_by_an_authority_of_the_provers_own(
    world: World, tiny: TaskReference, tmp_path: Path
) -> None:
    """Whoever makes the last token makes as many as they like, each with a key of its own, and trains under the most convenient."""
    claim, run = tmp_path / "claim.json", tmp_path / "run.pol"
    register(tiny, claim, interval=5, owners=[world.trusted])
    sign(claim, world.key)
    own = authorities.make(tmp_path / "own", "Own")
    with authorities.serving(world.first.reply) as url:
        timestamp(claim, [url])
    stamped = registration.load(claim)
    kept = stamped.attestations()
    (below,) = (raw for name, raw in kept.items() if name.endswith(".tsr"))
    tries = [stamped.keeping({**kept, **stamped_name(own.crafted(below, THEN))}) for _ in range(2)]
    keys = {made.claim.key(registration.anchor_of(made)) for made in tries}
    assert len(keys) == len(tries)  # for nothing
    registration.rewrite(claim, tries[0])
    prove(tiny, run, registration=claim)
    found = gathered(run, world.first)
    assert not found.registered and "last" in found.unregistered, found.unregistered
    assert judged(run, trusted_tsa=[world.first.roots]).assurance == "seed-derived"
    assert gathered(run, own).registered  # who trusts them, trusts them


def test_an_interrupted_run_goes_on_under_its_stamped_claim(world: World, tiny: TaskReference, tmp_path: Path) -> None:
    claim, run = tmp_path / "claim.json", tmp_path / "run.pol"
    register(tiny, claim, interval=5, owners=[world.trusted])
    sign(claim, world.key)
    with authorities.serving(world.first.reply) as url:
        timestamp(claim, [url])

    def interrupt(doing: str, done: int, total: int) -> None:
        if doing == "training" and done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prove(tiny, run, registration=claim, progress=interrupt)
    prove(tiny, run, registration=claim)
    assert gathered(run, world.first).registered


# ---- authorities ----------------------------------------------------------------------------------------------------


def refusal(run: Path, answer: Callable[[bytes], bytes | None], **more: Any) -> str:
    with authorities.serving(answer, status=more.pop("status", 200)) as url, pytest.raises(PolError) as caught:
        timestamp(run, [url], **more)
    assert caught.value.exit_status == 2 and "\n" not in str(caught.value)
    return str(caught.value)


def test_an_authority_that_lies_is_found_out(world: World, run: Path) -> None:
    before = sorted(os.listdir(run / ATTESTATIONS))
    old = world.first.reply(timestamps.request(b"other bytes")[0])
    assert "no timestamp token" in refusal(run, lambda query: b"<html>")
    assert "no timestamp token" in refusal(run, lambda query: b"")
    assert "more than" in refusal(run, lambda query: bytes(1 << 20))
    assert "something else than it was asked" in refusal(run, lambda query: old)
    assert "status 2" in refusal(run, lambda query: bytes.fromhex("30053003020102"))
    assert "HTTP status 500" in refusal(run, lambda query: b"", status=500)
    assert "cannot be reached" in refusal(run, lambda query: None)
    second = timestamps.load_authorities([world.second.roots])
    assert "vouches" in refusal(run, world.first.reply, authorities=second)
    assert sorted(os.listdir(run / ATTESTATIONS)) == before


def test_a_clock_that_is_wrong_is_named(world: World, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proof_of_learning.attestation.authority.SKEW", -timedelta(days=1))
    assert "which of the clocks is wrong" in refusal(run, world.first.reply)


def test_an_authority_that_is_slow_or_dead_is_given_up(world: World, run: Path) -> None:
    import threading

    released = threading.Event()

    def slow(query: bytes) -> bytes | None:
        released.wait(20)
        return None

    with authorities.serving(slow) as url:
        try:
            with pytest.raises(PolError, match=r"within 0\.3 seconds"):
                timestamp(run, [url], timeout=0.3)
        finally:
            released.set()
    with pytest.raises(PolError, match="cannot be reached"):
        timestamp(run, [url])
    for wrong in (
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://",
        "http://me:secret@example.org/",
        "http://a b/",
    ):
        with pytest.raises(UsageError, match="expected the address") as caught:
            timestamp(run, [wrong])
        assert "secret" not in str(caught.value)


def test_an_authority_that_drips_its_answer_is_given_up(run: Path) -> None:
    """Each byte of a header in time, and never all of it."""
    import socket
    import threading

    over = threading.Event()

    def drip(listening: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = listening.accept()
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.0 200 OK\r\nX: ")
            while not over.wait(0.05):
                connection.sendall(b"a")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        dripping = threading.Thread(target=drip, args=(listening,), daemon=True)
        dripping.start()
        fallback = threading.Timer(20, over.set)  # so that this ends where it does not hold
        fallback.start()
        try:
            with pytest.raises(PolError, match=r"within 0\.5 seconds"):
                timestamp(run, [f"http://127.0.0.1:{listening.getsockname()[1]}/"], timeout=0.5)
            assert not over.is_set()
        finally:
            over.set()
            fallback.cancel()
            dripping.join()


def test_what_the_first_authority_stamped_is_kept_when_the_second_is_dead(world: World, run: Path) -> None:
    for file in named(run, "seal-*.tsr"):
        file.unlink()
    with authorities.serving(world.first.reply) as url, pytest.raises(PolError, match="cannot be reached"):
        timestamp(run, [url, "http://127.0.0.1:1/"])
    assert len(named(run, "seal-*.tsr")) == 1


def test_an_unsigned_proof_is_stamped_by_a_statement_alone(world: World, tiny_proof: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_proof, tmp_path / "plain.pol"))
    with authorities.serving(world.first.reply) as url:
        ((token, stamped),) = timestamp(run, [url])
    assert stamped == only(run, "seal-*.json") and token == only(run, "seal-*.tsr")
    found = gathered(run, world.first)
    assert found.signers() == [] and [stamp.refused for stamp in found.stamps] == [""]


# ---- verdicts -------------------------------------------------------------------------------------------------------


def test_a_verdict_is_signed_whole(world: World, tmp_path: Path) -> None:
    from proof_of_learning.signing import verdict_signers

    place = tmp_path / "verdict.json"
    place.write_bytes(judged(world.proof).to_json())
    envelope = sign(place, world.stranger)
    assert verdict_signers(place.read_bytes(), envelope.read_bytes()) == [world.stranger.public.digest]
    for old, new in ((b"inconclusive", b"valid"), (b'"seconds": 0', b'"seconds": 1'), (b"seed-derived", b"registered")):
        altered = place.read_bytes().replace(old, new, 1)
        assert altered != place.read_bytes()
        assert verdict_signers(altered, envelope.read_bytes()) == []
    with pytest.raises(UsageError, match="exists"):
        sign(place, world.key)
    with pytest.raises(UsageError, match="nothing that can be signed"):
        sign(world.trusted, world.key)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_commands_sign_stamp_and_verify(
    world: World, tiny_proof: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support_cli import one_line, pol

    run, key = Path(shutil.copytree(tiny_proof, tmp_path / "run.pol")), tmp_path / "key.pem"
    monkeypatch.setenv("PASSPHRASE", "s3same")
    assert pol("keygen", "-o", key, "--passphrase-env", "PASSPHRASE").exit_code == 0
    assert "overwritten" in one_line(pol("keygen", "-o", key), 2)
    assert "passphrase" in one_line(pol("sign", run, "--key", key), 2)  # no terminal to ask on
    monkeypatch.setenv("WRONG", "simsalabim")
    said = one_line(pol("sign", run, "--key", key, "--passphrase-env", "WRONG"), 2)
    assert "simsalabim" not in said
    signed = pol("sign", run, "--key", key, "--passphrase-env", "PASSPHRASE")
    assert signed.exit_code == 0 and "s3same" not in signed.output
    with authorities.serving(world.first.reply) as url:
        stamped = pol("timestamp", run, "--tsa", url, "--trusted-tsa", world.first.roots)
    assert stamped.exit_code == 0
    line = next(line for line in stamped.stdout.splitlines() if "openssl ts -verify" in line)
    told = line.replace("ROOTS.pem", str(world.first.roots)).split()
    assert b"Verification: OK" in openssl(*told[1:]).stdout  # the printed command, as it is
    given = ("--trusted-key", key.with_name("key.pub.pem"), "--trusted-tsa", world.first.roots)
    verified = pol("verify", run, *given, "--json", "-")
    assert verified.exit_code == 3 and json.loads(verified.stdout)["timeline"][0]["trusted"] is True
    refused = pol("verify", run, "--trusted-key", world.trusted)
    assert refused.exit_code == 1 and "trusted key" in refused.stdout
    one_line(pol("verify", run, "--trusted-key", tmp_path / "none.pem"), 2)
    one_line(pol("verify", run, "--trusted-tsa", key), 2)
    one_line(pol("verify", run, *given, "--threshold", 2), 2)
    one_line(pol("timestamp", run), 2)
    one_line(pol("timestamp", run, "--tsa", "http://127.0.0.1:1/"), 2)


def test_a_claim_is_registered_signed_and_stamped_by_one_command(
    world: World, tiny: TaskReference, tmp_path: Path
) -> None:
    from support_cli import one_line, pol

    claim, key = tmp_path / "claim.json", world.folder / "key.pem"
    assert "name the key" in one_line(pol("register", tiny.target, "-o", claim, "--tsa", "http://127.0.0.1:1/"), 2)
    with authorities.serving(world.first.reply) as url:
        made = pol("register", tiny.target, "-o", claim, "-k", 5, "--key", key, "--tsa", url)
    assert made.exit_code == 0, made.output
    assert registration.anchor_of(registration.load(claim)) is not None


def test_the_report_says_who_and_by_when(world: World) -> None:
    from proof_of_learning.report.html import render_html

    options = {"trusted_keys": [world.trusted], "trusted_tsa": [world.second.roots]}
    page = render_html(judged(world.proof, **options))
    assert world.key.public.digest in page and "CN=Second TSA" in page
    assert "training began later" in page and "A timestamp that counts for nothing (CN=First TSA)" in page


def test_nothing_of_it_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, proof_of_learning.cli.main, proof_of_learning as pol; pol.verify; "
        "print([m for m in ('cryptography', 'rfc3161_client') if m in sys.modules])"
    )
    import sys

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"
