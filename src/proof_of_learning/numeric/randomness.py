"""Counter-based randomness: every random choice is addressed, none is drawn from a running stream.

A choice is named by ``(key, purpose, step, slot)``; its 64-bit seed is a hash of that name, so that any
step can be repeated alone and nothing is left for a prover to choose once the key is fixed. Test vectors
are in ``docs/spec/format.md`` and ``tests/vectors.json``.

Observed runs (whose loop draws from ordinary generators) have their generators' states recorded
instead: :class:`RngSnapshot`.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from proof_of_learning.errors import FormatError

KEY_BYTES = 32
_DERIVE = b"pol/v1/derive\0"
_SEED_KEY = b"pol/v1/seed-key\0"

# Purposes in use; the strings are part of the format.
INITIALIZATION = "initialization"
ORDER = "order"
STEP = "step"
AUGMENTATION = "augmentation"
EVALUATION = "evaluation"
EPOCH = "epoch"  # of a script's loop
WALK = "walk"  # behind one of a script's
SEED = "seed"  # that a script sets
OWN = "generator"  # that a script made

# As they are before the seeds that a script sets are mapped (`run.seeds`).
_seed_numpy, _seed_python = np.random.seed, random.seed


def key_from_seed(seed: int) -> bytes:
    """The 32-byte key of a run without a registered claim: SHA-256 of a domain tag and the seed (0 <= seed < 2^64)."""
    return hashlib.sha256(_SEED_KEY + struct.pack("<Q", seed)).digest()


def derive(key: bytes, purpose: str, step: int = 0, slot: int = 0) -> int:
    """The 64-bit seed at address (key, purpose, step, slot).

    SHA-256 over ``"pol/v1/derive\\0" || key || len(purpose) || purpose || step || slot`` (one byte, then
    little-endian 64-bit integers); the first eight bytes, little-endian.
    """
    name = purpose.encode()
    message = b"".join((_DERIVE, key, bytes((len(name),)), name, struct.pack("<QQ", step, slot)))
    return int.from_bytes(hashlib.sha256(message).digest()[:8], "little")


def raw_words(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """``count`` 64-bit words of Philox4x64-10 (Salmon et al., SC 2011) keyed by ``(seed, 0)``, blocks 1, 2, … in order."""
    return np.random.Philox(key=seed, counter=0).random_raw(count)


def permutation(seed: int, n: int) -> npt.NDArray[np.int64]:
    """A permutation of ``range(n)``: the stable argsort of ``n`` Philox words, the same on every platform."""
    words, bits = raw_words(seed, n), np.uint64(n.bit_length())
    # To sort takes a fifth of the time of an argsort. So each word gives its lowest bits for its place; where the others order the
    # words already, these have no say.
    mixed = np.sort((words >> bits << bits) | np.arange(n, dtype=np.uint64))
    high = mixed >> bits
    if bool((high[1:] == high[:-1]).any()):
        return np.argsort(words, kind="stable").astype(np.int64, copy=False)
    return (mixed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


def uniforms(seed: int, count: int) -> npt.NDArray[np.float64]:
    """``count`` doubles in [0, 1) with 53 random bits each."""
    return (raw_words(seed, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_everything(seed: int) -> None:
    """Seed the generators that model code draws from: torch (CPU and CUDA in use), ``random``, ``numpy.random``.

    Writes to the generators directly: ``torch.manual_seed`` costs fifty times more.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if _cuda_in_use():
        for generator in torch.cuda.default_generators:
            generator.manual_seed(seed)
    _seed_python(seed)
    _seed_numpy(seed & 0xFFFFFFFF)


def _cuda_in_use() -> bool:
    import torch

    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class RngSnapshot:
    """States of the process's generators as byte strings: ``torch``, ``python``, ``numpy`` and ``cuda:N``."""

    states: dict[str, npt.NDArray[np.uint8]]

    @classmethod
    def take(cls) -> RngSnapshot:
        import torch

        states = {"torch": torch.get_rng_state().numpy().copy()}
        if _cuda_in_use():
            for device, state in enumerate(torch.cuda.get_rng_state_all()):
                states[f"cuda:{device}"] = state.numpy().copy()
        states["python"] = _python_bytes()
        states["numpy"] = _numpy_bytes()
        return cls(states)

    def restore(self) -> None:
        """Put the generators into the recorded states.

        Raises FormatError where a state has the wrong size or is one no generator can be in.
        """
        try:
            for name, state in self.states.items():
                if name == "torch":
                    _restore_torch(state)
                elif name.startswith("cuda:") and name[5:].isdecimal():
                    _restore_cuda(state, int(name[5:]))
                elif name == "python":
                    _restore_python(state.tobytes())
                elif name == "numpy":
                    _restore_numpy(state.tobytes())
                else:
                    raise ValueError(f"unknown generator {name!r}")
        except Exception as error:  # each library refuses in its own way
            raise FormatError(f"a recorded generator state cannot be restored: {error}") from error


# The last state of Python's and of NumPy's generator that was converted, and its bytes: most steps draw from neither. What shows that
# a state is another is in one tuple with the bytes, so that threads see what belongs together.
_last_python: tuple[object, npt.NDArray[np.uint8]] | None = None
_last_numpy: tuple[bytes, npt.NDArray[np.uint8]] | None = None
_MARK = 32  # words of a Mersenne twister that, with its position, tell one state from another
_TWISTER = 4 * 625  # bytes of NumPy's: 624 words and the position


def _python_bytes() -> npt.NDArray[np.uint8]:
    global _last_python
    version, words, gauss = random.getstate()
    mark, last = (words[-1], words[:_MARK], gauss), _last_python
    if last is not None and last[0] == mark:
        return last[1]
    packed = struct.pack("<B?d", version, gauss is not None, gauss or 0.0)
    made = _bytes(packed + np.asarray(words, dtype="<u4").tobytes())
    _last_python = (mark, made)
    return made


def _numpy_bytes() -> npt.NDArray[np.uint8]:
    """NumPy copies word by word, so its generator is looked at in memory first. A normal number that it keeps for later is not seen
    there; it comes and goes with draws, so where the last state kept none, and the words are the same, neither does this one.
    """
    global _last_numpy
    twister, last = _twister(), _last_numpy
    if last is not None and twister == last[0]:
        return last[1]
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    words = np.asarray(keys, dtype="<u4").tobytes()
    made = _bytes(struct.pack("<I?d", int(position), bool(has_gauss), float(cached)) + words)
    here = twister == np.asarray(keys, dtype=np.uint32).tobytes() + struct.pack("=i", int(position))
    _last_numpy = (twister, made) if here and twister is not None and not has_gauss else None
    return made


def _twister() -> bytes | None:
    """The memory of the twister that NumPy's functions draw from; None where it is another generator."""
    generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
    return ctypes.string_at(generator.ctypes.state_address, _TWISTER) if type(generator) is np.random.MT19937 else None


def _bytes(raw: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(raw, dtype=np.uint8).copy()


def _restore_torch(state: npt.NDArray[np.uint8]) -> None:
    import torch

    # PyTorch checks the twister's two counters (words left, next word) each, but not that they fit each other: a state
    # that claims more words left than lie behind the next one would be read beyond its end.
    left, following = struct.unpack_from("<8xi4xQ", state.tobytes())
    if left + following > 625:
        raise ValueError("the state of PyTorch's generator has a position that does not fit its words left")
    torch.set_rng_state(torch.from_numpy(state.copy()))


def _restore_cuda(state: npt.NDArray[np.uint8], device: int) -> None:
    import torch

    # Otherwise the environment's difference says why a replay arrives elsewhere. All devices of a machine are recorded, also
    # those that took no part; fewer are enough to replay.
    if torch.cuda.is_available() and device < torch.cuda.device_count():
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state(torch.from_numpy(state.copy()), device)


def _restore_python(raw: bytes) -> None:
    head = struct.calcsize("<B?d")
    version, has_gauss, gauss = struct.unpack("<B?d", raw[:head])
    words = np.frombuffer(raw[head:], dtype="<u4")
    if words.size != 625 or words[-1] > 624:
        raise ValueError("the state of Python's generator has the wrong size or position")
    random.setstate((version, tuple(int(word) for word in words), gauss if has_gauss else None))


def _restore_numpy(raw: bytes) -> None:
    head = struct.calcsize("<I?d")
    position, has_gauss, cached = struct.unpack("<I?d", raw[:head])
    words = np.frombuffer(raw[head:], dtype="<u4").astype(np.uint32)
    if words.size != 624 or position > 624:
        raise ValueError("the state of NumPy's generator has the wrong size or position")
    np.random.set_state(("MT19937", words, position, int(has_gauss), cached))


@contextmanager
def preserved() -> Iterator[None]:
    """Leave the process's own generators as they were found."""
    before = RngSnapshot.take()
    try:
        yield
    finally:
        before.restore()
