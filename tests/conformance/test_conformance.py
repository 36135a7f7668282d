"""The conformance suite is what the generator makes, and our reader says of every case what the manifest says."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm

import support_conformance
from support_authority import openssl
from support_conformance import HOME, assembled, entries, suite

CASES = entries(HOME)
KINDS = sorted({case["kind"] for case in CASES})
BY_ID = {case["id"]: case for case in CASES}


@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
def test_our_reader_says_what_the_manifest_says(kind: str, tmp_path: Path) -> None:
    """Each case that fails fails for its own reason."""
    wrong = []
    for case in (case for case in CASES if case["kind"] == kind):
        status, says = support_conformance.judged(HOME, case, tmp_path / case["id"])
        shutil.rmtree(tmp_path / case["id"], ignore_errors=True)
        if status != case["status"] or case["says"] not in says or "\n" in says:
            wrong.append(f"{case['id']}: {status}, {says!r}; expected {case['status']}, {case['says']!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.quick
def test_there_are_enough_cases_of_every_kind_and_they_are_small() -> None:
    expected = Counter(case["expect"] for case in CASES)
    assert min(expected["pass"], expected["fail"]) >= 25
    assert {case["kind"] for case in CASES if case["expect"] == "pass"} == {*KINDS}
    assert {case["kind"] for case in CASES if case["expect"] == "fail"} == {*KINDS}
    assert len(BY_ID) == len(CASES)
    assert sum(map(len, suite.read(HOME).values())) < 3_000_000


def test_every_failing_case_differs_from_one_that_passes_in_files_or_in_what_is_given() -> None:
    for case in CASES:
        assert case["reason"].endswith(".") and case["rule"]
        assert (case["status"] == 0) == (case["expect"] == "pass") == (case["base"] is None)
        if case["base"] is None:
            assert case["says"] == "" and not case["removed"]
            continue
        base = BY_ID[case["base"]]
        assert (base["expect"], base["kind"]) == ("pass", case["kind"]) and case["says"]
        assert assembled(HOME, case) != assembled(HOME, base) or case["given"] != base["given"], case["id"]


def test_nothing_lies_in_the_suite_that_the_manifest_does_not_name() -> None:
    named = {case["id"] for case in CASES}
    given: set[Any] = set()
    for case in CASES:
        given |= {*case["given"].get("keys", ()), *case["given"].get("roots", ()), case["given"].get("challenge")}
    assert {path.name for path in (HOME / "cases").iterdir()} <= named
    assert {path.name for path in (HOME / "given").iterdir()} == given - {None}


def test_the_suite_is_what_its_generator_makes() -> None:
    try:
        made = support_conformance.generated()
    except UnsupportedAlgorithm:
        pytest.skip("this OpenSSL makes no deterministic ECDSA signatures (3.2 does)")
    there = suite.read(HOME)
    assert sorted(made.keys() ^ there.keys()) == []
    assert [name for name in made if made[name] != there[name]] == []


def test_openssl_says_the_same_of_tokens(tmp_path: Path) -> None:
    """Of those that pass; of the others openssl takes some that we do not (granted with modifications, other hashes)."""
    for case in (case for case in CASES if case["kind"] == "timestamp" and case["expect"] == "pass"):
        folder = HOME / case["path"]
        roots = HOME / "given" / case["given"]["roots"][0]
        given = [
            "-attime",
            1641081600,
            "-CAfile",
            roots,
            "-in",
            folder / "token.tsr",
            "-data",
            folder / "file",
        ]  # 2022-01-02
        assert b"Verification: OK" in openssl("ts", "-verify", *given).stdout, case["id"]
