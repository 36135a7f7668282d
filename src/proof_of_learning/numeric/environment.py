"""The numeric environment: everything outside the task that decides which bits a step gives.

PyTorch reads some of it once, when it starts (CPU capability, oneDNN and MKL code paths), so an
environment is reproduced by starting a process with the right variables and then setting threads and
flags: :func:`process_variables` before, :func:`apply` inside. The first half of this module does not
import torch, so that a command can pin its own process before torch loads.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError, NumericEnvironmentError
from proof_of_learning.limits import MAX_THREADS
from proof_of_learning.numeric.denormals import flushes_denormals

# Variables that change results and are read when a library starts, each with the values it may take.
# A proof may name these and no others: its environment must not become a way to set LD_PRELOAD.
VARIABLES: dict[str, re.Pattern[str]] = {
    "ATEN_CPU_CAPABILITY": re.compile(r"default|avx2|avx512|vsx|zvector|sve256"),
    "ONEDNN_MAX_CPU_ISA": re.compile(r"[A-Z0-9_]{1,32}"),
    "MKL_CBWR": re.compile(r"[A-Z0-9_,]{1,32}"),
    "MKL_ENABLE_INSTRUCTIONS": re.compile(r"[A-Z0-9_]{1,32}"),
    "CUBLAS_WORKSPACE_CONFIG": re.compile(r":\d{1,6}:\d{1,4}(:\d{1,6}:\d{1,4})?"),
    "NPY_DISABLE_CPU_FEATURES": re.compile(r"[A-Za-z0-9_, ]{1,512}"),
    "NPY_ENABLE_CPU_FEATURES": re.compile(r"[A-Za-z0-9_, ]{1,512}"),
}
NUMPY_VARIABLES = ("NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES")  # which only code of a task's own can feel
PORTABLE: dict[str, str] = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
CUDA_VARIABLES: dict[str, str] = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
PORTABLE_THREADS = 1
_NO_GPU: dict[str, str] = {"CUDA_VISIBLE_DEVICES": ""}

_ISA = ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
        "asimd", "sve", "sve2", "bf16")  # fmt: skip


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the tensors live: ``cpu``, or ``cuda`` with the GPU's name, its capability and library versions."""

    type: str
    name: str | None = None
    capability: str | None = None
    cuda: str | None = None
    cudnn: str | None = None


class Flags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Switches that are set inside a running process."""

    deterministic: bool = True
    cudnn_deterministic: bool = True
    cudnn_benchmark: bool = False
    cudnn_tf32: bool = False
    matmul_precision: str = "highest"
    mkldnn: bool = True
    flush_denormal: bool = False


class Environment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A numeric environment as recorded in a proof.

    ``threads`` and ``interop_threads`` are PyTorch's settings (the setting counts, not the cores);
    ``isa`` lists the processor's vector extensions, by which MKL and oneDNN choose their code.
    """

    torch: str
    python: str
    numpy: str
    machine: str
    vendor: str
    isa: list[str]
    capability: str
    threads: int
    interop_threads: int
    variables: dict[str, str]
    flags: Flags
    device: Device

    def digest(self) -> str:
        return canonical.sha256(b"pol/v1/environment\0", canonical.encode(self))


def validate(environment: Environment) -> None:
    """Raise FormatError where a recorded environment asks for something no honest recorder writes."""
    for name, value in environment.variables.items():
        if name not in VARIABLES or not VARIABLES[name].fullmatch(value):
            raise FormatError(f"the recorded environment sets {name!r} to {value[:64]!r}, which is not allowed")
    for threads in (environment.threads, environment.interop_threads):
        if not 1 <= threads <= MAX_THREADS:
            raise FormatError(f"the recorded environment has {threads} threads; expected 1 to {MAX_THREADS}")
    if environment.device.type not in ("cpu", "cuda"):
        raise FormatError(f"the recorded device {environment.device.type[:32]!r} is unknown; expected cpu or cuda")
    if environment.flags.matmul_precision not in ("highest", "high", "medium"):
        raise FormatError("the recorded matmul precision is unknown")


def process_variables(environment: Environment) -> dict[str, str]:
    """The variables of a process that is to reproduce ``environment``: ours, less every other that counts.

    NumPy does not start where it is told to do without what it was built for, so it is told only of what this NumPy can choose.
    Where nothing was computed on a GPU none is seen: a script that asks whether there is one gets the same answer, and PyTorch, whose
    backward pass keeps a thread for each of them, leaves a process that can be forked.
    """
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    recorded = dict(environment.variables)
    for name in NUMPY_VARIABLES:
        if name in recorded:
            recorded[name] = _chooseable(recorded[name])
    return {
        **kept,
        **{name: value for name, value in recorded.items() if value},
        **(_NO_GPU if environment.device.type == "cpu" else {}),
        "OMP_NUM_THREADS": str(environment.threads),
        "MKL_NUM_THREADS": str(environment.threads),
    }


def _chooseable(features: str) -> str:
    """Of a list of CPU features those that this NumPy chooses at run time."""
    try:
        from numpy._core._multiarray_umath import __cpu_dispatch__  # type: ignore[import-not-found]
    except ImportError:  # a NumPy that does not say; it may still be of the same version, and the difference is named
        return ""
    wanted = re.split(r"[, ]+", features)
    known = {str(name).upper() for name in __cpu_dispatch__}
    return (
        features
        if known.issuperset(name.upper() for name in wanted if name)
        else " ".join(name for name in wanted if name.upper() in known)
    )


def pin_process(*, portable: bool, device: str, threads: int | None) -> None:
    """Set this process's variables for recording, before torch is imported.

    Raises NumericEnvironmentError if torch has been imported already and the variables differ.
    """
    wanted = {**(PORTABLE if portable else {}), **(CUDA_VARIABLES if device.startswith("cuda") else {})}
    missing = {name: value for name, value in wanted.items() if os.environ.get(name) != value}
    if missing and "torch" in sys.modules and set(missing) - set(CUDA_VARIABLES):
        settings = " ".join(f"{name}={value}" for name, value in sorted(missing.items()))
        raise NumericEnvironmentError(
            f"a portable recording needs variables that PyTorch reads when it starts; run Python with {settings}, "
            "or use `pol prove --portable`"
        )
    os.environ.update(missing)
    count = PORTABLE_THREADS if portable and threads is None else threads
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)


# ---- inside a process that has torch ------------------------------------------------------------------


def current(device: str = "cpu") -> Environment:
    """The fingerprint of this process."""
    import numpy
    import torch

    vendor, isa = _processor()
    return Environment(
        torch=str(torch.__version__),
        python=platform.python_version(),
        numpy=numpy.__version__,
        machine=platform.machine(),
        vendor=vendor,
        isa=isa,
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        interop_threads=torch.get_num_interop_threads(),
        variables=_variables(),
        flags=_current_flags(),
        device=_device(device),
    )


def _variables() -> dict[str, str]:
    """The variables of this process that count; lists of NumPy's in one spelling, as NumPy forgives many."""
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    for name in NUMPY_VARIABLES:
        found[name] = " ".join(re.findall(r"\w+", found.get(name, ""), re.ASCII))[:512].strip()
    return {name: value for name, value in found.items() if value}


def _current_flags() -> Flags:
    import torch

    return Flags(
        deterministic=torch.are_deterministic_algorithms_enabled(),
        cudnn_deterministic=torch.backends.cudnn.deterministic,
        cudnn_benchmark=torch.backends.cudnn.benchmark,
        cudnn_tf32=torch.backends.cudnn.allow_tf32,
        matmul_precision=torch.get_float32_matmul_precision(),
        mkldnn=bool(torch.backends.mkldnn.enabled),
        flush_denormal=flushes_denormals(),
    )


def _device(device: str) -> Device:
    import torch

    if device == "cpu":
        return Device("cpu")
    index = torch.device(device).index or 0
    major, minor = torch.cuda.get_device_capability(index)
    return Device(
        "cuda",
        name=torch.cuda.get_device_name(index),
        capability=f"{major}.{minor}",
        cuda=str(torch.version.cuda),
        cudnn=str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    )


def _processor() -> tuple[str, list[str]]:
    vendor, flags = platform.processor() or "unknown", set[str]()
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in ("vendor_id", "CPU implementer"):
                    vendor = value.strip()
                elif name.strip() in ("flags", "Features"):
                    flags = set(value.split())
                    break
    except OSError:
        pass
    return vendor, [name for name in _ISA if name in flags]


@contextmanager
def restored() -> Iterator[None]:
    """Put this process's flags and threads back at the end."""
    import torch

    memory: Any = torch.utils.deterministic  # a module whose attributes are properties, unknown to its stubs
    flags, threads = _current_flags(), torch.get_num_threads()
    fill = memory.fill_uninitialized_memory
    try:
        yield
    finally:
        set_flags(flags)
        memory.fill_uninitialized_memory = fill
        torch.set_num_threads(threads)


@contextmanager
def recording(device: str, threads: int | None = None) -> Iterator[Environment]:
    """Set the deterministic switches for a managed training, yield the fingerprint, and put things back."""
    import torch

    require(device)
    with restored():
        if threads is not None:
            torch.set_num_threads(threads)
        now = _current_flags()
        set_flags(Flags(flush_denormal=now.flush_denormal, mkldnn=now.mkldnn))
        yield current(device)


def require(device: str) -> None:
    """NumericEnvironmentError where this PyTorch has no such device."""
    import torch

    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", device):
        raise NumericEnvironmentError(f"device {device!r} is not known here; `cpu` or `cuda`")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise NumericEnvironmentError(f"device {device!r} was asked for, but this PyTorch sees no CUDA device")


def set_flags(flags: Flags) -> None:
    import torch

    memory: Any = torch.utils.deterministic
    # Not `use_deterministic_algorithms`: it does the same and imports the compiler, which takes seconds.
    torch.set_deterministic_debug_mode("error" if flags.deterministic else "default")
    # Filling fresh memory guards against reading it, at a cost on every allocation; it changes no correct result.
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = flags.cudnn_deterministic
    torch.backends.cudnn.benchmark = flags.cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = flags.cudnn_tf32
    torch.set_float32_matmul_precision(flags.matmul_precision)
    torch.backends.mkldnn.enabled = flags.mkldnn  # type: ignore[assignment]
    torch.set_flush_denormal(flags.flush_denormal)


def apply(environment: Environment, *, lasting: bool) -> None:
    """Bring this process as near to ``environment`` as a started process can come.

    lasting: whether what cannot be put back may be set too, in a process that is there for this environment alone.
    """
    import torch

    torch.set_num_threads(environment.threads)
    if lasting and torch.get_num_interop_threads() != environment.interop_threads:
        with suppress(RuntimeError):  # fixed by earlier work in this process; shows in `differences`
            torch.set_num_interop_threads(environment.interop_threads)
    set_flags(environment.flags)


def another(here: Environment) -> Environment:
    """An environment that this machine has too and whose rounding differs: another thread setting and older code paths.

    Two replays in ``here`` and in this one show how far honest replays stray.
    """
    older = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
    pins = PORTABLE if "512" in here.capability else older
    flags = here.flags
    if here.device.type == "cuda":
        flags = msgspec.structs.replace(flags, deterministic=False, cudnn_deterministic=False, cudnn_benchmark=True)
    return msgspec.structs.replace(
        here, threads=2 if here.threads == 1 else 1, variables={**here.variables, **pins}, flags=flags
    )


def differences(
    recorded: Environment, here: Environment, *, own_numpy: bool = False, portable: bool = False
) -> list[str]:
    """What of ``recorded`` this process does not reproduce, one plain sentence part each; empty if all of it.

    own_numpy: whether the task may compute with NumPy in its steps (an augmentation, say); NumPy's version and CPU features then
    count. A standard loop computes no step with it, nor with Python.
    portable: whether the task computes in portable arithmetic; then what is left is the release of PyTorch, which says of which
    operations a backward pass consists.
    """
    found: list[str] = []
    for name in Environment.__struct_fields__:
        was, now = getattr(recorded, name), getattr(here, name)
        if portable and name not in ("torch", "numpy", "variables"):
            continue
        if portable and name == "torch":
            was, now = was.partition("+")[0], now.partition("+")[0]
        if portable and name == "variables":
            was, now = ({key: v for key, v in given.items() if key in NUMPY_VARIABLES} for given in (was, now))
        if was == now or name == "python" or (name == "numpy" and not own_numpy):
            continue
        if isinstance(was, msgspec.Struct) and isinstance(now, msgspec.Struct):
            was, now = msgspec.structs.asdict(was), msgspec.structs.asdict(now)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            for key in sorted(set(was) | set(now)):
                if was.get(key) != now.get(key) and (own_numpy or key not in NUMPY_VARIABLES):
                    found.append(f"{name}.{key}: recorded {_show(was.get(key))}, here {_show(now.get(key))}")
        else:
            found.append(f"{name}: recorded {_show(was)}, here {_show(now)}")
    return found


def _show(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "unset" if value is None else str(value)
