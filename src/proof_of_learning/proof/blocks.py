"""Per-step columns of one segment: losses, learning rates, what was not derived (indices, generator states), and metrics that a
scheduler was given."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from proof_of_learning.canonical import brief
from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof.codecs.raw import decode_tensors, encode_tensors

_METRIC, _STEP = "metric/", "/step"
_DTYPES = (torch.float64, torch.int64, torch.uint8)  # of columns


@dataclass(frozen=True)
class Metric:
    """The values that were given during some of a segment's steps: ``values`` float64 [m], ``steps`` int64 [m], counted from the
    segment's start and in order."""

    values: npt.NDArray[np.float64]
    steps: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """What one process drew in each step: ``indices`` and ``rng`` where recorded; ``loop``: what happened in a script's step, as
    integers (:mod:`run.events`).
    """

    indices: list[npt.NDArray[np.int64]] | None = None
    rng: list[RngSnapshot] | None = None
    loop: list[npt.NDArray[np.int64]] | None = None

    def arrays(self, prefix: str = "") -> dict[str, npt.NDArray[np.generic]]:
        """As they lie in a block; generator states once for each distinct value (they rarely change between steps)."""
        found: dict[str, npt.NDArray[np.generic]] = {}
        if self.indices is not None:
            found[f"{prefix}indices"] = np.concatenate([np.empty(0, np.int64), *self.indices])
            found[f"{prefix}lengths"] = np.array([len(row) for row in self.indices], np.int64)
        if self.loop is not None:
            found[f"{prefix}loop"] = np.concatenate([np.empty(0, np.int64), *self.loop])
            found[f"{prefix}loop/lengths"] = np.array([len(row) for row in self.loop], np.int64)
        for name in self.rng[0].states if self.rng else ():
            rows, distinct = [], dict[bytes, int]()
            for snapshot in self.rng or ():
                rows.append(distinct.setdefault(snapshot.states[name].tobytes(), len(distinct)))
            found[f"{prefix}rng/{name}"] = np.stack([np.frombuffer(raw, np.uint8) for raw in distinct])
            found[f"{prefix}rng/{name}/row"] = np.array(rows, np.int64)
        return found


@dataclass(frozen=True)
class Columns:
    """One row per step: ``loss`` float64 [k], ``rates`` float64 [k, groups]; ``indices`` and ``rng`` only where recorded.

    ``metrics`` by name, where there are any.
    ``loop``: what happened in a script's step, as integers (:mod:`run.events`). ``ranks``: what further processes drew, from 1 on.
    """

    loss: npt.NDArray[np.float64]
    rates: npt.NDArray[np.float64]
    indices: list[npt.NDArray[np.int64]] | None = None
    rng: list[RngSnapshot] | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    loop: list[npt.NDArray[np.int64]] | None = None
    ranks: tuple[Share, ...] = ()

    def __len__(self) -> int:
        return len(self.loss)

    def encode(self) -> bytes:
        """A safetensors file."""
        arrays: dict[str, npt.NDArray[np.generic]] = {"loss": self.loss, "rates": self.rates}
        arrays |= Share(self.indices, self.rng, self.loop).arrays()
        for rank, share in enumerate(self.ranks, 1):
            arrays |= share.arrays(f"rank/{rank}/")
        for name, metric in self.metrics.items():
            arrays[f"{_METRIC}{name}"], arrays[f"{_METRIC}{name}{_STEP}"] = metric.values, metric.steps
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return b"".join(bytes(piece) for piece in encode_tensors(tensors))

    @classmethod
    def decode(cls, raw: bytearray, steps: int, what: str, ranks: int = 1) -> Columns:
        """Parse a block of ``steps`` rows of so many processes; FormatError naming ``what`` for anything else."""
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

        def ragged(name: str, lengths: str) -> list[npt.NDArray[np.int64]] | None:
            if lengths not in arrays:
                return None
            sizes = column(lengths, np.int64, (steps,)).tolist()
            flat = column(name, np.int64, (-1,))
            # The sum is taken in Python integers: int64 would wrap around for hostile lengths.
            need(min(sizes, default=0) >= 0 and sum(sizes) == len(flat), f"{lengths} and {name} disagree")
            return np.split(flat, np.cumsum(sizes)[:-1]) if steps else []

        def share(prefix: str) -> Share:
            head, rng = f"{prefix}rng/", None
            names = [n[len(head) : -4] for n in list(arrays) if n.startswith(head) and n.endswith("/row")]
            if names:
                states: list[dict[str, npt.NDArray[np.uint8]]] = [{} for _ in range(steps)]
                for name in names:
                    rows = column(f"{head}{name}/row", np.int64, (steps,))
                    table = column(f"{head}{name}", np.uint8, (-1, -1))
                    need(
                        all(0 <= row < len(table) for row in rows.tolist()),
                        f"the rows of generator {brief(name)!r} are out of range",
                    )
                    for step, row in enumerate(rows.tolist()):
                        states[step][name] = table[row]
                rng = [RngSnapshot(state) for state in states]
            indices = ragged(f"{prefix}indices", f"{prefix}lengths")
            return Share(indices, rng, ragged(f"{prefix}loop", f"{prefix}loop/lengths"))

        own, *others = (share(f"rank/{rank}/" if rank else "") for rank in range(ranks))
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
        return cls(loss, rates, own.indices, own.rng, metrics, own.loop, tuple(others))  # type: ignore[arg-type]
