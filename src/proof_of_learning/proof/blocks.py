"""Per-step columns of one segment: losses, learning rates, what was not derived (indices, generator states), and metrics that a
scheduler was given."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from proof_of_learning.canonical import brief
from proof_of_learning.errors import FormatError
from proof_of_learning.proof.codecs.raw import decode_tensors, encode_tensors
from proof_of_learning.training.randomness import RngSnapshot

_METRIC, _STEP = "metric/", "/step"
_DTYPES = (torch.float64, torch.int64, torch.uint8)  # of columns


@dataclass(frozen=True)
class Metric:
    """The values that were given during some of a segment's steps: ``values`` float64 [m], ``steps`` int64 [m], counted from the
    segment's start and in order."""

    values: npt.NDArray[np.float64]
    steps: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """One row per step: ``loss`` float64 [k], ``rates`` float64 [k, groups]; ``indices`` and ``rng`` only where recorded.

    ``metrics`` by name, where there are any.
    ``loop``: what happened in a script's step, as integers (:mod:`run.events`).
    """

    loss: npt.NDArray[np.float64]
    rates: npt.NDArray[np.float64]
    indices: list[npt.NDArray[np.int64]] | None = None
    rng: list[RngSnapshot] | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    loop: list[npt.NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.loss)

    def encode(self) -> bytes:
        """A safetensors file; generator states are stored once for each distinct value (they rarely change between steps)."""
        arrays: dict[str, npt.NDArray[np.generic]] = {"loss": self.loss, "rates": self.rates}
        if self.indices is not None:
            arrays["indices"] = np.concatenate([np.empty(0, np.int64), *self.indices])
            arrays["lengths"] = np.array([len(row) for row in self.indices], np.int64)
        if self.loop is not None:
            arrays["loop"] = np.concatenate([np.empty(0, np.int64), *self.loop])
            arrays["loop/lengths"] = np.array([len(row) for row in self.loop], np.int64)
        if self.rng is not None:
            for name in self.rng[0].states if self.rng else ():
                rows, distinct = [], dict[bytes, int]()
                for snapshot in self.rng:
                    rows.append(distinct.setdefault(snapshot.states[name].tobytes(), len(distinct)))
                arrays[f"rng/{name}"] = np.stack([np.frombuffer(raw, np.uint8) for raw in distinct])
                arrays[f"rng/{name}/row"] = np.array(rows, np.int64)
        for name, metric in self.metrics.items():
            arrays[f"{_METRIC}{name}"], arrays[f"{_METRIC}{name}{_STEP}"] = metric.values, metric.steps
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return b"".join(bytes(piece) for piece in encode_tensors(tensors))

    @classmethod
    def decode(cls, raw: bytearray, steps: int, what: str) -> Columns:
        """Parse a block of ``steps`` rows; FormatError naming ``what`` for anything else."""
        tensors, metadata = decode_tensors(raw)

        def need(condition: bool, message: str) -> None:
            if not condition:
                raise FormatError(f"{what}: {message}")

        odd = next((name for name, tensor in tensors.items() if tensor.dtype not in _DTYPES), None)
        need(odd is None, f"the column {brief(odd)!r} has a type that no column has")  # NumPy does not know all of them
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}

        def column(name: str, dtype: type, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
            array = arrays.pop(name, None)
            need(array is not None, f"the column {brief(name)!r} is missing")
            assert array is not None
            fits = len(array.shape) == len(shape) and all(w in (-1, h) for w, h in zip(shape, array.shape, strict=True))
            need(fits and array.dtype == dtype, f"the column {brief(name)!r} has the wrong shape or type")
            return array

        need(not metadata, "it carries metadata")
        loss = column("loss", np.float64, (steps,))
        rates = column("rates", np.float64, (steps, -1))
        rng = None

        def ragged(name: str, lengths: str) -> list[npt.NDArray[np.int64]] | None:
            if lengths not in arrays:
                return None
            sizes = column(lengths, np.int64, (steps,)).tolist()
            flat = column(name, np.int64, (-1,))
            # The sum is taken in Python integers: int64 would wrap around for hostile lengths.
            need(min(sizes, default=0) >= 0 and sum(sizes) == len(flat), f"{lengths} and {name} disagree")
            return np.split(flat, np.cumsum(sizes)[:-1]) if steps else []

        indices, loop = ragged("indices", "lengths"), ragged("loop", "loop/lengths")
        names = [name[4:-4] for name in list(arrays) if name.startswith("rng/") and name.endswith("/row")]
        if names:
            states: list[dict[str, npt.NDArray[np.uint8]]] = [{} for _ in range(steps)]
            for name in names:
                rows = column(f"rng/{name}/row", np.int64, (steps,))
                table = column(f"rng/{name}", np.uint8, (-1, -1))
                need(
                    all(0 <= row < len(table) for row in rows.tolist()),
                    f"the rows of generator {brief(name)!r} are out of range",
                )
                for step, row in enumerate(rows.tolist()):
                    states[step][name] = table[row]
            rng = [RngSnapshot(state) for state in states]
        metrics = dict[str, Metric]()
        for name in [n[len(_METRIC) : -len(_STEP)] for n in arrays if n.startswith(_METRIC) and n.endswith(_STEP)]:
            places = column(f"{_METRIC}{name}{_STEP}", np.int64, (-1,))
            values = column(f"{_METRIC}{name}", np.float64, (len(places),))
            numbers = places.tolist()
            need(
                len(numbers) > 0 and numbers == sorted(numbers) and numbers[0] >= 0 and numbers[-1] < steps,
                f"the steps of the metric {brief(name)!r} are out of range or out of order",
            )
            metrics[name] = Metric(values, places)  # type: ignore[arg-type]
        need(not arrays, f"it has unexpected columns: {brief(', '.join(sorted(arrays)))}")
        return cls(loss, rates, indices, rng, metrics, loop)  # type: ignore[arg-type]
