"""What tests of proofs in a store share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from support_proofs import contents


def spools(folder: Path) -> list[Path]:
    return list((folder / "cache" / "proof-of-learning" / "recordings").glob("*/proof"))


def copied(address: str, folder: Path) -> dict[str, bytes]:
    """What the store holds at ``address``, file by file."""
    system, root = fsspec.core.url_to_fs(address)
    system.invalidate_cache()
    return {name.removeprefix(root).lstrip("/"): system.cat_file(name) for name in sorted(system.find(root))}


def upload(folder: Path, address: str) -> None:
    system, root = fsspec.core.url_to_fs(address)
    for name, raw in contents(folder).items():
        system.pipe_file(f"{root}/{name}", raw)


class Stop(Exception):  # noqa: N818
    pass


def stopping(after: int) -> Callable[[str, int, int], None]:
    def stop(doing: str, done: int, total: int) -> None:
        if doing == "training" and done >= after:
            raise Stop

    return stop


def watch(monkeypatch: pytest.MonkeyPatch, method: str, before: Callable[..., object]) -> None:
    """Call ``before`` with the path whenever the store is asked to do that."""
    plain = getattr(MemoryFileSystem, method)

    def watched(self: MemoryFileSystem, path: str, *more: Any, **options: Any) -> Any:
        before(path, **options)
        return plain(self, path, *more, **options)

    monkeypatch.setattr(MemoryFileSystem, method, watched)
