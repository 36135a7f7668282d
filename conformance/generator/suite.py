"""What a case is, and how cases are kept: a manifest, and a folder of files for each.

A case that fails is one edit away from one that passes, its base: its folder has the files that differ, and the manifest names those
that are gone.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proof_of_learning import canonical

SCHEMA, FORMAT = "pol/conformance/v1", "pol/proof/v2"
LINK = b"\0link:"  # a file of these bytes and a target is written as a symbolic link
ZERO = "sha256:" + "0" * 64
Files = dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """One case. ``given``: what the verifier brings, as files of ``given/`` or values; ``rule``: what it exercises.

    base: of a case that fails, the case that passes and differs from it in one edit. says: part of what the reference reader says.
    status: what a command ends with.
    """

    id: str
    kind: str
    files: Files
    reason: str
    rule: str
    given: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    says: str = ""
    status: int = 0

    def entry(self, base: Case | None) -> dict[str, Any]:
        gone = [] if base is None else sorted(set(base.files) - set(self.files))
        return {
            "id": self.id, "kind": self.kind, "path": f"cases/{self.id}", "removed": gone, "expect": "fail" if self.status else "pass",
            "status": self.status, "rule": self.rule, "reason": self.reason, "base": self.base, "says": self.says, "given": self.given,
        }  # fmt: skip


@dataclass
class Suite:
    """Cases in their order, and the files that verifiers bring."""

    cases: dict[str, Case] = field(default_factory=dict)
    given: Files = field(default_factory=dict)

    def passes(self, id_: str, kind: str, files: Files, rule: str, reason: str, **given: Any) -> None:
        self._add(Case(id_, kind, files, reason, rule, given))

    def fails(
        self, id_: str, base: str, files: Files, rule: str, says: str, reason: str, *, status: int = 1, **given: Any
    ) -> None:
        """status: 1 where it contradicts itself or is about something else, 2 where it is malformed."""
        before = self.cases[base]
        assert not before.status and (files != before.files or given), id_
        self._add(Case(id_, before.kind, files, reason, rule, {**before.given, **given}, base, says, status))

    def _add(self, case: Case) -> None:
        assert case.id not in self.cases, case.id
        self.cases[case.id] = case

    def manifest(self) -> bytes:
        """As JSON, a case on each line."""
        entries = [case.entry(self.cases.get(case.base or "")) for case in self.cases.values()]
        lines = ",\n".join(canonical.encode(entry).decode() for entry in entries)
        return f'{{"format":"{FORMAT}","schema":"{SCHEMA}","cases":[\n{lines}\n]}}\n'.encode()

    def tree(self) -> Files:
        """Every file by its path in the suite's folder."""
        made = {"manifest.json": self.manifest(), **{f"given/{name}": raw for name, raw in self.given.items()}}
        for case in self.cases.values():
            before = {} if case.base is None else self.cases[case.base].files
            made |= {f"cases/{case.id}/{name}": raw for name, raw in case.files.items() if before.get(name) != raw}
        return made

    def write(self, home: Path) -> None:
        shutil.rmtree(home, ignore_errors=True)
        write(self.tree(), home)


def write(files: Files, home: Path) -> None:
    for name, raw in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if raw.startswith(LINK):
            path.symlink_to(raw.removeprefix(LINK).decode())
        else:
            path.write_bytes(raw)


def read(home: Path) -> Files:
    """What :meth:`Suite.tree` wrote, as it lies on disk."""
    found: Files = {}
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        if path.is_symlink():
            found[name] = LINK + os.readlink(path).encode()
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def entries(home: Path) -> list[dict[str, Any]]:
    """The cases of a manifest."""
    value = json.loads((home / "manifest.json").read_bytes())
    assert value["schema"] == SCHEMA
    found: list[dict[str, Any]] = value["cases"]
    return found


def assembled(home: Path, entry: dict[str, Any]) -> Files:
    """All files of a case: those of its base, less what is gone, and its own."""
    base = {} if entry["base"] is None else read(home / "cases" / entry["base"])
    return {name: raw for name, raw in base.items() if name not in entry["removed"]} | read(home / entry["path"])
