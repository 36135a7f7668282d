"""Draws from public randomness: which round counts, that nobody can choose it, and what is no round."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import support_authority as authorities
from proof_of_learning import TaskReference, prove, timestamp, verify
from proof_of_learning.attestation import beacon
from proof_of_learning.attestation.attested import SKEW
from proof_of_learning.errors import UsageError
from proof_of_learning.report import words
from proof_of_learning.verifier import guarantee
from proof_of_learning.verifier.options import Options
from proof_of_learning.verifier.verdict import Nonce
from support_attestation import World, gathered, named
from support_cli import one_line, pol

DEPTH = sys.getrecursionlimit()
from py_ecc.bls.hash_to_curve import hash_to_G1  # noqa: E402
from py_ecc.bls.point_compression import compress_G1, compress_G2  # noqa: E402
from py_ecc.optimized_bls12_381 import G2, Z1, multiply  # noqa: E402

sys.setrecursionlimit(DEPTH)  # which py_ecc raises when it is imported

SECRET, GENESIS, PERIOD = 20_231_107, 1_600_000_000, 3
# What the network quicknet published.
PUBLISHED = {
    1000: "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39",
    32285085: "81dbce51d584d90d618547f4b50391d53ace6f6b9aeb8fb67e1879427af9d0310ac0ec6f519271d9a313ee84b378d416",
}


def signature(number: int, secret: int = SECRET) -> str:
    message = hashlib.sha256(number.to_bytes(8, "big")).digest()
    point = multiply(hash_to_G1(message, b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_", hashlib.sha256), secret)
    return f"{compress_G1(point):096x}"


def written(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def info(key: str) -> dict[str, Any]:
    """What a network with a public key tells of itself, with the hash that drand gives it."""
    group, numbers = "ab" * 32, PERIOD.to_bytes(4, "big") + GENESIS.to_bytes(8, "big")
    identity = hashlib.sha256(numbers + bytes.fromhex(key + group) + b"test").hexdigest()
    given = {"public_key": key, "period": PERIOD, "genesis_time": GENESIS, "groupHash": group, "hash": identity}
    return {**given, "schemeID": "bls-unchained-g1-rfc9380", "metadata": {"beaconID": "test"}}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of our own, as its ``/info`` tells it."""
    key = "".join(f"{half:096x}" for half in compress_G2(multiply(G2, SECRET)))
    return written(tmp_path_factory.mktemp("network") / "info.json", info(key))


@pytest.fixture
def round_file(tmp_path: Path) -> Callable[[int], Path]:
    return lambda number: written(tmp_path / f"{number}.json", {"round": number, "signature": signature(number)})


def first_after(world: World, run: Path) -> int:
    """The number of the first round more than five minutes after the seal's first stamp, found by counting."""
    stamps = [s.latest for s in gathered(run, world.first, world.second).stamps if s.kind == "seal"]
    moment = (min(stamps) + SKEW).timestamp()
    near = max(1, math.floor((moment - GENESIS) / PERIOD) - 3)
    return next(n for n in range(near, near + 10) if GENESIS + (n - 1) * PERIOD > moment)


# ---- a round ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", PUBLISHED)
def test_what_the_network_published_holds(number: int, tmp_path: Path) -> None:
    found = beacon.load_beacon(written(tmp_path / "r.json", {"round": number, "signature": PUBLISHED[number]}))
    assert found.moment == datetime.fromtimestamp(1692803367 + 3 * (number - 1), UTC)
    assert len(bytes.fromhex(found.nonce)) == 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"round": 1001}, "not that of round 1001"),
        ({"signature": PUBLISHED[32285085]}, "not that of round 1000"),
        ({"signature": f"{compress_G1(Z1):096x}"}, "not that of round 1000"),  # the point at infinity
        ({"signature": "8" + "0" * 94 + "4"}, "not that of round 1000"),  # on the curve, and outside of the subgroup
        ({"signature": "ff" * 48}, "not that of round 1000"),
        ({"signature": PUBLISHED[1000][:-2]}, "48 bytes"),
        ({"signature": "zz" * 48}, "48 bytes"),
        ({"signature": 12}, "Expected `str`"),
        ({"round": 0}, "no round 0"),
        ({"round": 1 << 60}, "no round"),
        ({"round": "1000"}, "Expected `int`"),
    ],
)
def test_what_is_no_round_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    made = written(tmp_path / "r.json", {"round": 1000, "signature": PUBLISHED[1000], **change})
    with pytest.raises(UsageError, match=words):
        beacon.load_beacon(made)


def test_the_round_of_another_network_is_refused(round_file: Callable[[int], Path], network: Path) -> None:
    given = round_file(1000)
    assert beacon.load_beacon(given, network).round == 1000
    with pytest.raises(UsageError, match="not that of round 1000 by the network 52db9ba7"):
        beacon.load_beacon(given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schemeID": "pedersen-bls-chained"}, "scheme 'pedersen-bls-chained' is not known"),
        ({"public_key": "aa"}, "96 bytes"),
        ({"period": 0}, "no round"),
        ({"genesis_time": -1}, "no round"),
        ({"groupHash": "aa"}, "groupHash is not 32 bytes"),
        # Rounds that are out already would pass for those to come, and a network of one's own for a known one.
        ({"genesis_time": GENESIS + 86_400}, "not the network that it is called"),
        ({"period": PERIOD + 1}, "not the network that it is called"),
        ({"hash": beacon.QUICKNET.hash}, "not the network that it is called"),
        ({"metadata": {}}, "not the network that it is called"),
    ],
)
def test_what_is_no_network_is_refused(
    change: dict[str, Any], words: str, network: Path, round_file: Callable[[int], Path], tmp_path: Path
) -> None:
    other = written(tmp_path / "info.json", {**json.loads(network.read_text()), **change})
    with pytest.raises(UsageError, match=words):
        beacon.load_beacon(round_file(7), other)


def test_a_key_under_which_anything_would_hold_is_none(round_file: Callable[[int], Path], tmp_path: Path) -> None:
    other = written(tmp_path / "info.json", info("c0" + "00" * 95))
    with pytest.raises(UsageError, match="not that of round"):
        beacon.load_beacon(round_file(7), other)


def test_the_hash_of_quicknet_is_that_of_what_is_pinned() -> None:
    assert beacon.QUICKNET.identity().hex() == beacon.QUICKNET.hash


def test_a_nested_file_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nested deeper"):
        beacon.load_beacon(written(tmp_path / "r.json", '{"x":' + "[" * 16_000))


def test_a_check_leaves_the_depth_of_recursion_alone(tmp_path: Path) -> None:
    """py_ecc raises it, and a nested document would then end the process."""
    made = written(tmp_path / "r.json", {"round": 1000, "signature": PUBLISHED[1000]})
    code = (
        "import sys; before = sys.getrecursionlimit()\n"
        "from proof_of_learning.attestation.beacon import load_beacon\n"
        f"load_beacon({str(made)!r}); assert sys.getrecursionlimit() == before"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_file_without_end_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more than 16,384 bytes"):
        beacon.load_beacon(written(tmp_path / "r.json", '{"round": 1, "signature": "' + "a" * 20_000))


# ---- a verdict from it ------------------------------------------------------------------------------------------------


def test_the_first_round_after_the_stamp_counts_as_drawn_and_no_other_does(
    world: World, network: Path, round_file: Callable[[int], Path], tiny: TaskReference
) -> None:
    due = first_after(world, world.proof)
    options: dict[str, Any] = {"beacon_chain": network, "trusted_tsa": [world.first.roots, world.second.roots]}
    verdict = verify(world.proof, tiny, beacon=round_file(due), registration=world.claim, **options)
    assert verdict.nonce.origin == "beacon" and verdict.nonce.round is not None and verdict.nonce.round.round == due
    assert verdict.verdict == "valid", verdict.reason
    assert verdict.guarantee.miss_probability == verdict.guarantee.function_miss_probability == 1e-9
    told = words.public(verdict.nonce)
    assert "nobody could know before" in told and f"{verdict.nonce.round.chain}, which the verifier named" in told
    again = verify(world.proof, tiny, beacon=round_file(due), registration=world.claim, **options)
    assert again.nonce == verdict.nonce and [s.index for s in again.segments] == [s.index for s in verdict.segments]

    # Refused before the task is so much as loaded.
    nowhere = TaskReference("/nowhere/task.py:task", {})
    for other in (due - 1, due + 1):
        with pytest.raises(UsageError, match=f"the round that counts is {due}.*--accept-nonce"):
            verify(world.proof, nowhere, beacon=round_file(other), **options)
    chosen = verify(world.proof, None, beacon=round_file(due + 1), accept_nonce=True, **options)
    assert chosen.nonce.origin == "self-chosen" and f"the round that counts is {due}" in chosen.nonce.why


def test_without_a_stamp_on_the_seal_no_round_counts(
    world: World, network: Path, round_file: Callable[[int], Path], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"beacon": round_file(first_after(world, world.proof)), "beacon_chain": network}
    believed = [world.first.roots, world.second.roots]
    with pytest.raises(UsageError, match="no timestamp on the seal"):  # of an authority that somebody named
        verify(world.proof, **given)
    bare = Path(shutil.copytree(world.proof, tmp_path / "bare.pol"))
    for stamp in named(bare, "seal-*.tsr"):
        stamp.unlink()
    with pytest.raises(UsageError, match="no timestamp on the seal"):
        verify(bare, trusted_tsa=believed, **given)
    verdict = verify(bare, trusted_tsa=believed, accept_nonce=True, **given)
    assert verdict.nonce.origin == "self-chosen" and "no timestamp on the seal" in verdict.nonce.why


def test_a_round_counts_for_the_links_behind_a_proof_that_was_stamped(
    world: World, network: Path, round_file: Callable[[int], Path], tiny: TaskReference, tmp_path: Path
) -> None:
    base, run = tmp_path / "base.pol", tmp_path / "run.pol"
    prove(tiny, base, interval=12, rehearse=False)
    prove(tiny, run, interval=12, seed=1, start_from=base, rehearse=False)
    with authorities.serving(world.first.reply) as url:
        timestamp(run, [url])
    options: dict[str, Any] = {"beacon_chain": network, "trusted_tsa": [world.first.roots], "chain": [(base, tiny)]}
    verdict = verify(run, tiny, beacon=round_file(first_after(world, run)), **options)
    assert verdict.verdict == "valid", verdict.reason
    handed = Nonce(verdict.nonce.value, "self-chosen", verdict.nonce.round)
    assert Options().for_link(handed).draw.drawn is None  # a round that does not count for the proof counts for no link


def test_more_is_drawn_than_for_one_verifier() -> None:
    drawn = guarantee.uniform_draws_needed(1000, miss=guarantee.MISSED_IN_PUBLIC)
    assert drawn > 4 * guarantee.uniform_draws_needed(1000) > 150
    assert guarantee.uniform_miss(1000, guarantee.forgeable_segments(1000, drawn, 1e-9) + 1, drawn) <= 1e-9


def test_the_command_says_what_it_needs(tmp_path: Path, tiny_proof: Path, network: Path) -> None:
    made = written(tmp_path / "r.json", {"round": 1000, "signature": PUBLISHED[1000]})
    for arguments, told in (
        (["--beacon", tmp_path / "none.json"], "there is no such file; fetch the round"),
        (["--beacon", made, "--nonce", "ab"], "leave out one"),
        (["--beacon-chain", network], "name the round, too"),
        (["--beacon", network], "missing required field `round`"),
    ):
        assert told in one_line(pol("verify", tiny_proof, *arguments), 2)
    assert "no timestamp on the seal" in one_line(pol("verify", tiny_proof, "--beacon", made), 2)
