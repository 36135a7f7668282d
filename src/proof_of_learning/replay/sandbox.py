"""The sandbox for the task's code: a replay worker without network, and with no files but those it needs (bubblewrap).

A task is the prover's program, and a verifier runs it. Inside the sandbox it sees the system's libraries, the Python
installation, its own folder, the proof and the data, all of them read-only, an empty ``/tmp``, and none of the verifier's
variables. It is confined, not judged: what it computes is the replay's business.
"""

from __future__ import annotations

import functools
import glob
import importlib.machinery
import json
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import proof_of_learning
from proof_of_learning.errors import UsageError
from proof_of_learning.numeric.portable.native import build
from proof_of_learning.task import TaskReference, is_script

MODES = ("auto", "require", "off")
CONFINED = "the task's code ran in a sandbox (bubblewrap), without network and with no files but those it needs"
FREE = "the task's code could read files and use the network"
IN_PROCESS = f"the task was handed over as an object and ran in the verifier's own process: {FREE}"

_PATIENCE = 20.0
# Every capability is dropped, also for root, and /proc is read-only: through /proc/sys a root without capabilities could
# still name a program for the host to run.
_NAMESPACES = ("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "pol")
_FILESYSTEMS = ("--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--tmpfs", "/tmp")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
_SETTINGS = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime")
_PROCESSORS = "/sys/devices/system"  # libraries look up cores and caches here, and may choose their code by them
_PAGES = "/sys/kernel/mm/transparent_hugepage"  # where the C library looks whether there are large pages
_GPUS = ("/dev/nvidia*", "/dev/dxg")
# Folders that hold far more than a task: one that lies directly in them gets its Python files alone.
_WIDE = ("/", "/etc", "/home", "/root", "/run", "/srv", "/tmp", "/var", "/var/tmp")

_VARIABLES = frozenset((
    "GLIBC_TUNABLES", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "PATH", "POL_DATA", "POL_PORTABLE_ENGINE", "PYTHONHASHSEED",
    "PYTHONPATH", "TZ",
))  # fmt: skip
_PREFIXES = (
    "ATEN_", "CUBLAS_", "CUDA_", "CUDNN_", "DNNL_", "GOMP_", "KMP_", "LC_", "MKL_", "NPY_", "NVIDIA_", "OMP_", "ONEDNN_",
)  # fmt: skip

_SIGNS = ("FileNotFoundError", "ModuleNotFoundError", "PermissionError", "Read-only file system", "ConnectionRefusedError",
          "Network is unreachable", "gaierror", "URLError")  # fmt: skip


@dataclass(frozen=True)
class Sandbox:
    """What one worker may see. ``folders`` are shown without their hidden entries (``.git``, ``.env``), ``read`` whole.

    program: bubblewrap's path. scratch: the one folder it may write, or None.
    """

    program: str
    read: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()
    scratch: Path | None = None

    def serving(self, task: TaskReference, *files: Path | None, scratch: Path | None = None) -> Sandbox:
        """The same sandbox with what this task needs, with ``files`` (a proof's directory, say) and a folder to write."""
        values = [value for value in task.settings.values() if isinstance(value, str)]
        # Only what the verifier typed: arguments that a proof names must not open files.
        values += [piece for argument in task.arguments or () for piece in (argument, argument.partition("=")[2])]
        named = [Path(value) for value in (*values, os.environ.get("POL_DATA", "")) if _names_path(value)]
        wanted = (*named, *(file for file in files if file is not None))
        return replace(
            self, read=(*self.read, *wanted), folders=(*self.folders, *_home_of(task.target)), scratch=scratch
        )

    def command(self, command: Iterable[str], *, gpu: bool = False) -> list[str]:
        """``command`` inside the sandbox, in the working directory of this process (which it need not see into)."""
        arguments = [self.program, *_NAMESPACES, *_FILESYSTEMS]
        for name in _SYSTEM:
            if os.path.islink(name):
                arguments += ["--symlink", os.readlink(name), name]
        for path, kind in _layers(self._mounts(gpu)):
            shown = {
                "read": ["--ro-bind", path, path],
                "empty": ["--tmpfs", path],
                "nothing": ["--ro-bind", "/dev/null", path],
            }
            arguments += shown[kind]
        if gpu:
            for device in sorted({found for pattern in _GPUS for found in glob.glob(pattern)}):
                arguments += ["--dev-bind", device, device]
        if self.scratch is not None:
            arguments += ["--bind", str(self.scratch.resolve()), str(self.scratch.resolve())]
        here = _working_directory()
        return [*arguments, "--dir", here, "--remount-ro", "/", "--chdir", here, "--", *command]

    def variables(self, given: Mapping[str, str]) -> dict[str, str]:
        """Of the variables ``given``, those that Python, PyTorch and the task's data need; none that could hold a secret."""
        kept = {name: value for name, value in given.items() if name in _VARIABLES or name.startswith(_PREFIXES)}
        home = {"HOME": "/tmp", "USER": "task", build.FOLDER: str(build.folder())}
        return kept | home | ({"PYTHONUSERBASE": site.getuserbase()} if site.ENABLE_USER_SITE else {})

    def _mounts(self, gpu: bool) -> dict[str, _Kind]:
        mounts: dict[str, _Kind] = {}
        for folder in self.folders:
            for path in _spellings(folder):
                mounts |= _shown(path)
        system = [name for name in _SYSTEM if not os.path.islink(name)]
        libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
        places = [
            *system,
            *_SETTINGS,
            *(("/sys",) if gpu else (_PROCESSORS, _PAGES)),
            *filter(None, libraries),
            *_configured_libraries(),
        ]
        # What was built of portable arithmetic's kernels, which a task can neither build nor change.
        for place in (*map(Path, places), *_python(), build.folder(), *self.read):
            mounts |= {path: "read" for path in _spellings(place) if os.path.exists(path)}
        return mounts


_Kind = Literal["read", "empty", "nothing"]


@dataclass(frozen=True)
class Isolation:
    """How the task's code is kept apart, and the sentence that says so."""

    sandbox: Sandbox | None
    note: str

    @property
    def warnings(self) -> list[str]:
        return [] if self.sandbox is not None else [self.note]


def isolation(mode: str, allow_read: Iterable[str | os.PathLike[str]] = (), *, in_process: bool = False) -> Isolation:
    """The sandbox for ``mode``: ``auto`` (where it can be had), ``require`` (UsageError where it cannot) or ``off``."""
    if mode not in MODES:
        raise UsageError(f"--sandbox {mode}: expected auto, require or off")
    extra = tuple(Path(path) for path in allow_read)
    for path in extra:
        if not path.exists():
            raise UsageError(f"--allow-read {path}: there is no such file or folder")
        if path.resolve() == Path("/"):
            raise UsageError("--allow-read /: that is everything; name the folders that the task needs")
    if mode == "off":
        return Isolation(None, f"the sandbox was switched off: {FREE}")
    program, obstacle = (None, "") if in_process else find()
    if program is not None:
        return Isolation(Sandbox(program, read=extra), CONFINED)
    if mode == "require":
        why = "a task that is an object runs in this process; name it by reference" if in_process else obstacle
        raise UsageError(f"--sandbox require: the task's code cannot be confined here: {why}")
    return Isolation(None, IN_PROCESS if in_process else f"{obstacle}: {FREE}")


def find() -> tuple[str | None, str]:
    """bubblewrap's path, or None and why it cannot be had."""
    program = shutil.which("bwrap")
    if program is None:
        return None, "bubblewrap is not installed"
    refusal = _refusal(program)
    return (program, "") if refusal is None else (None, f"bubblewrap is not permitted to work here ({refusal})")


def hint(message: str) -> str:
    """A failure of a confined task, with what the sandbox may have to do with it."""
    if not any(sign in message for sign in _SIGNS):
        return message
    return f"{message}; in the sandbox it sees neither network nor other files (--allow-read DIR shows it more)"


@functools.cache
def _refusal(program: str) -> str | None:
    """Why ``program`` does not work here, by trying it once; None if it does."""
    command = [program, *_NAMESPACES, "--ro-bind", "/", "/", *_FILESYSTEMS, "--", "true"]
    try:
        tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return " ".join(str(error).split())[:200]
    lines = tried.stderr.decode(errors="replace").strip().splitlines() or [f"status {tried.returncode}"]
    return None if tried.returncode == 0 else lines[-1][:200]


# ---- what is shown ----------------------------------------------------------------------------------


def _layers(mounts: Mapping[str, _Kind]) -> list[tuple[str, _Kind]]:
    """Outer folders before inner ones, less what an outer one shows anyway."""
    kept: dict[str, _Kind] = {}
    for path in sorted(mounts, key=lambda path: (path.count("/"), path)):
        around = next((kept[str(parent)] for parent in Path(path).parents if str(parent) in kept), None)
        if mounts[path] != around:
            kept[path] = mounts[path]
    return list(kept.items())


def _spellings(path: Path) -> list[str]:
    """The path as it was named, and with its symbolic links followed: programs may use either."""
    return list(dict.fromkeys((os.path.abspath(path), os.path.realpath(path))))


def _shown(folder: str) -> dict[str, _Kind]:
    """A folder of code, its hidden entries hidden; of one that holds all kinds of things, the Python files."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.is_symlink()]
    except OSError:
        return {}
    if _too_wide(folder):
        return {e.path: "read" for e in entries if e.is_file() and e.name.endswith(".py") and e.name[0] != "."}
    hidden: dict[str, _Kind] = {e.path: "empty" if e.is_dir() else "nothing" for e in entries if e.name[0] == "."}
    return {folder: "read", **hidden}


def _too_wide(folder: str) -> bool:
    home = Path(os.path.expanduser("~"))
    return folder in _WIDE or Path(folder) in (home, *home.parents)


def _names_path(value: str) -> bool:
    """A setting that is a path: the verifier typed it, so the task may read it."""
    return os.path.exists(value) and not _too_wide(os.path.realpath(value))


def _home_of(target: str) -> list[Path]:
    """The folders that a task is loaded from: that of its file, or of the module or package."""
    place = target if is_script(target) else target.rpartition(":")[0]
    if place.endswith(".py"):
        return [Path(place).absolute().parent, Path(place).resolve().parent]
    name = place.partition(".")[0]
    path = [_working_directory(), *_search_path()]
    spec = importlib.machinery.PathFinder.find_spec(name, path) if name.isidentifier() else None
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(location) for location in spec.submodule_search_locations]
    return [Path(spec.origin).parent] if spec.origin is not None and spec.has_location else []


def _python() -> list[Path]:
    """The Python installation, the virtual environment, this package, and what site packages refer to."""
    links: list[Path] = []
    link = sys.executable
    while os.path.islink(link) and len(links) < 10:
        links.append(Path(link))
        link = os.path.join(os.path.dirname(link), os.readlink(link))
    package = Path(proof_of_learning.__file__).parent
    prefixes = [Path(place) for place in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)]
    found = [place for place in map(Path, _search_path()) if not _too_wide(str(place))]
    return [*prefixes, package, *found, *links, Path(link)]


def _search_path() -> list[str]:
    return _search_path_of(sys.executable, os.environ.get("PYTHONPATH"))


@functools.cache
def _search_path_of(executable: str, added: str | None) -> list[str]:
    """Where a fresh Python looks for modules; ours has grown by the folders of scripts and tasks."""
    asked = subprocess.run(
        [executable, "-c", "import json, sys; print(json.dumps(sys.path[1:]))"],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False,
    )  # fmt: skip
    lines = asked.stdout.decode().splitlines()
    return [str(entry) for entry in json.loads(lines[-1])] if asked.returncode == 0 and lines else []


@functools.cache
def _configured_libraries() -> list[str]:
    """Folders of libraries that the system's loader knows beyond its own."""
    found: list[str] = []
    for name in ("/etc/ld.so.conf", *sorted(glob.glob("/etc/ld.so.conf.d/*.conf"))):
        try:
            lines = Path(name).read_text(errors="replace").splitlines()
        except OSError:
            continue
        found += [line.strip() for line in lines if line.strip().startswith("/") and os.path.isdir(line.strip())]
    return found


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"
