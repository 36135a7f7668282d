"""Keys that a verifier no longer believes, and since when: of owners, of recovery, of timestamp authorities.

The list is the verifier's; nothing in a proof revokes a key, or keeps one from being revoked. What was stamped before stays good.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from proof_of_learning import keeping
from proof_of_learning.attestation.attested import SKEW
from proof_of_learning.errors import UsageError
from proof_of_learning.limits import MAX_POLICY

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Revoked:
    """By the digest of a key (SHA-256 of its SubjectPublicKeyInfo) the moment from which it counts for nothing; None: it never did."""

    since: Mapping[str, datetime.datetime | None] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self.since

    def counts(self, key: str, by: Iterable[datetime.datetime]) -> bool:
        """Whether what ``key`` signed counts, where it was there ``by`` one of these moments (the latest that each may mean)."""
        if key not in self.since:
            return True
        since = self.since[key]
        return since is not None and any(moment + SKEW < since for moment in by)

    def joined(self, other: Revoked) -> Revoked:
        """Both lists; of two moments for one key the earlier one."""
        found = dict(self.since)
        for key, since in other.since.items():
            before = found.get(key, since)
            found[key] = None if since is None or before is None else min(since, before)
        return Revoked(found)


def load_revoked(paths: Iterable[str | os.PathLike[str]]) -> Revoked:
    """The keys in TOML files: tables ``[[revoked]]`` with ``key``, ``since`` (a moment with its offset; left out: always) and, for
    people, ``reason``. Raises UsageError.
    """
    found = Revoked()
    for path in paths:
        what = f"--revoked {path}"
        raw = keeping.read(path, what, MAX_POLICY)
        if len(raw) > MAX_POLICY:
            raise UsageError(f"{what}: it has more than {MAX_POLICY:,} bytes, which no list of keys has")
        value = keeping.toml(raw, what)
        if set(value) != {"revoked"} or not isinstance(value["revoked"], list):
            raise UsageError(f"{what}: expected tables [[revoked]], and nothing else")
        found = found.joined(revoked(value["revoked"], what))
    return found


def revoked(tables: Iterable[Any], what: str) -> Revoked:
    """The keys in tables that were read. Raises UsageError; ``what``: where they stand."""
    found = Revoked()
    for number, table in enumerate(tables, 1):
        if not isinstance(table, dict) or not {"key"} <= set(table) <= {"key", "since", "reason"}:
            raise UsageError(
                f"{what}: table {number} of [[revoked]] has to have `key`, and may have `since` and `reason`"
            )
        key, since = table["key"], table.get("since")
        if not isinstance(key, str) or not _DIGEST.fullmatch(key):
            raise UsageError(f"{what}: table {number} of [[revoked]]: `key` is a digest, sha256: and 64 hex digits")
        if since is not None and (not isinstance(since, datetime.datetime) or since.tzinfo is None):
            raise UsageError(
                f"{what}: table {number} of [[revoked]]: `since` is a moment with its offset, 2026-05-31T12:00:00Z, without quotes"
            )
        found = found.joined(Revoked({key: since}))
    return found
