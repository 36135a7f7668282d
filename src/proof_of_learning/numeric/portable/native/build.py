"""Builds the kernels with the machine's own C++ compiler, and keeps them in the user's cache.

What is loaded runs with the user's rights, so that the cache counts only where nobody else can write to it. A library is built into a
file of its own and renamed, one process at a time, and is known by everything that could change it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "POL_PORTABLE_CACHE"  # an environment variable: where libraries are kept, in the place of the user's cache
COMPILERS = ("g++", "clang++")
HEADERS = ("common.h",)
SOURCES = ("products.cpp", "functions.cpp", "normalisation.cpp", "sums.cpp")
# Products and sums are never fused but where both are exact; neither of the last two changes what is computed.
COMPILE = (
    "-c", "-O3", "-std=c++17", "-fPIC", "-pthread", "-fopenmp-simd", "-march=native", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math",
)  # fmt: skip
LINK = ("-shared", "-pthread")
PATIENCE = 180.0  # seconds for the compiler
MAX_LIBRARY, MAX_RECORD = 1 << 24, 1 << 16


class UnavailableError(Exception):
    """Why there is no library here, for people to read."""


@dataclass(frozen=True)
class Library:
    """A library of the kernels, and what its self-test said: the cases that differ, or None where it was not run yet."""

    path: Path
    digest: str
    differing: list[str] | None


def folder() -> Path:
    given = os.environ.get(FOLDER)
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "proof-of-learning" / "portable"


def compiler() -> str:
    """The path of a C++ compiler. UnavailableError where there is none."""
    for name in COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise UnavailableError(f"there is no C++ compiler ({' or '.join(COMPILERS)}) on the PATH")


def sources() -> dict[str, bytes]:
    kernels = files(__package__).joinpath("kernels")
    return {name: kernels.joinpath(name).read_bytes() for name in (*HEADERS, *SOURCES)}


def callers() -> list[bytes]:
    """What hands the kernels their arguments, which a self-test covers as well."""
    here = files(__package__)
    return [here.joinpath(name).read_bytes() for name in ("calls.py", "elementwise.py", "operations.py")]


def find(program: str) -> Library:
    """The library that is in the cache, or a new one. UnavailableError where there can be none."""
    place, name = folder(), _key(program)
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    _require_own(place)
    found = _kept(place, name)
    if found is not None:
        return found
    if not os.access(place, os.W_OK):
        raise UnavailableError(f"nothing was built yet, and {place} cannot be written to")
    with _alone(place / f"{name}.lock"):
        return _kept(place, name) or _built(place, name, program)


def remember(library: Library, differing: list[str]) -> None:
    """Keep what the self-test said of a library beside it; where that cannot be written it is run again."""
    with suppress(OSError):
        _write(_record(library.path), json.dumps({"library": library.digest, "differing": differing}).encode())


def recall(name: str) -> list[str] | None:
    """What the self-test of kernels that are built elsewhere gave; None where it was not kept, or could be somebody else's."""
    place = folder()
    try:
        _require_own(place)
        held = _trusted(place / f"{name}.json", MAX_RECORD)
        return None if held is None else [str(case) for case in json.loads(held)["differing"]]
    except (UnavailableError, ValueError, KeyError, TypeError):
        return None


def keep(name: str, differing: list[str]) -> None:
    """Keep what :func:`recall` gives; where that cannot be written the self-test is run again."""
    place = folder()
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(place / f"{name}.json", json.dumps({"differing": differing}).encode())


# ---- the cache ------------------------------------------------------------------------------------------


def _key(program: str) -> str:
    """From all that could change the library: sources, compiler, flags, PyTorch's release, the processor's features."""
    import torch  # not before: a verifier starts its workers, whose sandbox shows the cache, and then imports it

    hashed = hashlib.sha256()
    flags = " ".join((*COMPILE, *LINK))
    for part in (*sources().values(), *callers(), program.encode(), _version(program), flags.encode(), torch.__version__.encode(),
                 platform.machine().encode(), _processor()):  # fmt: skip
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()[:32]


def _version(program: str) -> bytes:
    try:
        return subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(f"{program} does not run ({error})") from None


def _processor() -> bytes:
    """The features that ``-march=native`` goes by."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_bytes().splitlines():
            if line.partition(b":")[0].strip() in (b"flags", b"Features"):
                return line
    return platform.processor().encode()


def _require_own(place: Path) -> None:
    """UnavailableError where somebody else could put a library into ``place``, or another folder in its place."""
    mine = {os.getuid(), 0}
    try:
        real = place.resolve(strict=True)
        for around in (real, *real.parents):
            found = around.stat()
            others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            # In a folder like /tmp others may write, but not move what is ours.
            if around == real and found.st_uid != os.getuid():
                raise UnavailableError(f"{around} belongs to somebody else")
            if others and (around == real or not found.st_mode & stat.S_ISVTX):
                raise UnavailableError(f"others may write to {around}, so that what lies there is not trusted")
            if found.st_uid not in mine and around != real and found.st_mode & stat.S_IWUSR and not _of_nobody(found):
                raise UnavailableError(f"{around} belongs to somebody else")
    except OSError as error:
        raise UnavailableError(f"the cache cannot be used ({error})") from None


def _of_nobody(found: os.stat_result) -> bool:
    """In a sandbox, what is not the user's seems to be nobody's."""
    return found.st_uid == 65534


def _trusted(path: Path, most: int) -> bytes | None:
    """What a file of the cache holds, if it is the user's own and nobody else may write to it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if (
            not stat.S_ISREG(found.st_mode)
            or found.st_uid != os.getuid()
            or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ):
            return None
        return file.read(most) if found.st_size <= most else None


def _record(library: Path) -> Path:
    return library.with_suffix(".json")


def _kept(place: Path, name: str) -> Library | None:
    """The library of that name, if it is the one that was built; its self-test, if that was kept."""
    path = place / f"{name}.so"
    held, record = _trusted(path, MAX_LIBRARY), _trusted(_record(path), MAX_RECORD)
    if held is None or record is None:
        return None
    digest = hashlib.sha256(held).hexdigest()
    try:
        told = json.loads(record)
        if told["library"] != digest:
            return None
        differing = told["differing"]
        return Library(path, digest, None if differing is None else [str(case) for case in differing])
    except (ValueError, KeyError, TypeError):
        return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UnavailableError(f"the cache cannot be used ({error})") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _built(place: Path, name: str, program: str) -> Library:
    log.info("building the native engine of portable arithmetic with %s; it is kept in %s", program, place)
    try:
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            for file, content in sources().items():
                Path(scratch, file).write_bytes(content)
            made = Path(scratch, "library.so")
            objects = [f"{Path(name).stem}.o" for name in SOURCES]
            _run(
                [[program, *COMPILE, name, "-o", made_of] for name, made_of in zip(SOURCES, objects, strict=True)],
                scratch,
            )
            _run([[program, *LINK, *objects, "-o", str(made)]], scratch)
            made.chmod(0o500)
            path, digest = place / f"{name}.so", hashlib.sha256(made.read_bytes()).hexdigest()
            os.replace(made, path)
            _write(_record(path), json.dumps({"library": digest, "differing": None}).encode())
            return Library(path, digest, None)
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(f"the kernels could not be built ({error})") from None


def _run(commands: list[list[str]], folder: str) -> None:
    """Run compilers side by side. UnavailableError with what one of them says."""
    running = [
        subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for command in commands
    ]
    try:
        for command, process in zip(commands, running, strict=True):
            said = process.communicate(timeout=PATIENCE)[1].decode(errors="replace").strip().splitlines()
            if process.returncode:
                error = next(
                    (line for line in said if "error" in line), said[-1] if said else f"status {process.returncode}"
                )
                raise UnavailableError(f"{command[0]} could not build the kernels ({error[:300]})")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
