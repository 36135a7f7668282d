"""What a replayed script writes goes to a scratch folder, and is read from there: a replay changes no file of the verifier's.

Python's own ways to files are led there (``open``, ``torch.save``, folders, renaming). Libraries that write by themselves meet the
sandbox, in which there is nothing to write to.
"""

from __future__ import annotations

import builtins
import functools
import io
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch

_WRITING = set("wax+")


class Shadow:
    """``folder``: where written files lie, under their whole paths; made with the first of them."""

    def __init__(self) -> None:
        self._folder: str | None = None
        # Asked now: to find it, Python writes a trial file under a lock, which what is installed here must not meet.
        self._temporary = tempfile.gettempdir() + os.sep

    def written(self, path: Any) -> Any:
        """Where ``path`` is to be written. What lies in the temporary folder stays there."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return path
        whole = os.path.abspath(os.fsdecode(path))
        if whole.startswith(("/dev/", "/proc/", self._folder or "/dev/")):
            return path
        if whole.startswith(self._temporary) and os.access(os.path.dirname(whole), os.W_OK):
            return path
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="written-")
        place = self._folder + whole
        _makedirs(os.path.dirname(place), exist_ok=True)
        return place

    def read(self, path: Any) -> Any:
        """``path``, or where it was written."""
        if self._folder is None or not isinstance(path, (str, bytes, os.PathLike)):
            return path
        place = self._folder + os.path.abspath(os.fsdecode(path))
        return place if _exists(place) else path


_makedirs, _exists = os.makedirs, os.path.exists


def install() -> None:
    """From here on, in this process and its children."""
    shadow = Shadow()
    plain_open: Any = builtins.open

    @functools.wraps(plain_open)
    def opened(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if not _WRITING & set(mode):
            return plain_open(shadow.read(file), mode, *more, **options)
        place = shadow.written(file)
        before = shadow.read(file) if place is not file else file
        if ("a" in mode or "r" in mode) and place is not file and not _exists(place) and _exists(before):
            with plain_open(before, "rb") as old, plain_open(place, "wb") as new:
                new.write(old.read())
        return plain_open(place, mode, *more, **options)

    builtins.open = io.open = opened
    save, load = torch.save, torch.load
    torch.save = lambda obj, f, *more, **options: save(obj, shadow.written(f), *more, **options)
    torch.load = lambda f, *more, **options: load(shadow.read(f), *more, **options)
    for name in ("mkdir", "makedirs"):
        setattr(os, name, _on_written(getattr(os, name), shadow))
    for name in ("remove", "unlink", "rmdir"):
        setattr(os, name, _on_written(getattr(os, name), shadow))
    for name in ("replace", "rename"):
        setattr(os, name, _moving(getattr(os, name), shadow))
    for name in ("exists", "isfile", "isdir", "getsize"):
        setattr(os.path, name, _on_read(getattr(os.path, name), shadow))


def _on_written(function: Callable[..., Any], shadow: Shadow) -> Callable[..., Any]:
    return functools.wraps(function)(lambda path, *more, **options: function(shadow.written(path), *more, **options))


def _on_read(function: Callable[..., Any], shadow: Shadow) -> Callable[..., Any]:
    return functools.wraps(function)(lambda path: function(shadow.read(path)))


def _moving(function: Callable[..., Any], shadow: Shadow) -> Callable[..., Any]:
    return functools.wraps(function)(lambda a, b, **options: function(shadow.written(a), shadow.written(b), **options))
