"""Samples as plain arrays in a folder: ``data.json`` and one ``.npy`` file for each value of a sample, without pickles."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from proof_of_learning import canonical
from proof_of_learning.canonical import brief
from proof_of_learning.data.commit import Dataset
from proof_of_learning.errors import DataError
from proof_of_learning.limits import MAX_LIST
from proof_of_learning.proof import files

SCHEMA = "pol/data/v1"
FILE = "data.json"
MAX_INDEX = 1 << 20
_KINDS = {"tensor": None, "int": int, "float": float, "bool": bool}
_TYPES = (
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``sample``: lists, objects, and at the leaves the kind of a value; the n-th leaf is in ``n.npy``, its first axis the samples."""

    schema: str
    samples: int
    sample: Any


class Samples:
    """A data set of arrays, each sample of the same make as the exported one."""

    def __init__(self, count: int, sample: Any, columns: list[Any]) -> None:
        self._count, self._sample, self._columns = count, sample, columns

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return _built(self._sample, iter(self._columns), index)


def _built(sample: Any, columns: Iterator[Any], index: int) -> Any:
    if isinstance(sample, list):
        return [_built(item, columns, index) for item in sample]
    if isinstance(sample, dict):
        return {key: _built(sample[key], columns, index) for key in sorted(sample)}
    value = next(columns)[index]
    kind = _KINDS[sample]
    return torch.from_numpy(np.array(value)) if kind is None else kind(value)


def samples(folder: str | os.PathLike[str]) -> Dataset:
    """The data set in a folder that :func:`export` wrote. Raises DataError."""
    place = Path(folder)
    if not folder or not (place / FILE).is_file():
        raise DataError(
            f"{folder or 'the data'}: there is no {FILE}; name the folder that `pol export-data` wrote (--data)"
        )
    raw = bytes(files.read_bounded(place / FILE, MAX_INDEX))
    index = canonical.decode(raw, Index, FILE)
    kinds = list(_kinds(index.sample))
    if index.schema != SCHEMA or index.samples < 1 or not 1 <= len(kinds) <= MAX_LIST:
        raise DataError(f"{FILE}: its schema is not {SCHEMA!r}, or it has no samples")
    columns = [_column(place / f"{number}.npy", index.samples, kind) for number, kind in enumerate(kinds)]
    if isinstance(index.sample, list) and all(kind == "tensor" for kind in index.sample):
        return TensorDataset(*(torch.from_numpy(np.array(column)) for column in columns))
    return Samples(index.samples, index.sample, columns)


def _kinds(sample: Any) -> Iterator[str]:
    if isinstance(sample, (list, dict)):
        for item in sample if isinstance(sample, list) else (sample[key] for key in sorted(sample)):
            yield from _kinds(item)
    elif isinstance(sample, str) and sample in _KINDS:
        yield sample
    else:
        raise DataError(f"{FILE}: a sample has values of the kinds {', '.join(_KINDS)}, not {brief(sample)}")


def _column(path: Path, count: int, kind: str) -> Any:
    """One array, mapped into memory, so that what its head claims is held against the file's size."""
    if not path.is_file() or not stat.S_ISREG(path.lstat().st_mode):
        raise DataError(f"{path.name} is missing from the data's folder, or no regular file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, TypeError, SyntaxError) as error:
        raise DataError(f"{path.name} is no array in NumPy's format: {brief(error)}") from None
    fits = isinstance(array, np.ndarray) and array.ndim >= 1 and len(array) == count and array.dtype.name in _TYPES
    if not fits or (kind != "tensor" and array.ndim != 1):
        raise DataError(f"{path.name} does not have one value of a known type for each of the {count:,} samples")
    return array


def export(
    data: Dataset, folder: str | os.PathLike[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Write every sample; returns how many. DataError where samples are not all of the same make."""
    place, count = Path(folder), len(data)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise DataError(f"{place} exists and is not an empty folder; choose another path")
    make: Any = None
    arrays: list[Any] = []
    for number in range(count):
        sample = data[number]
        own, values = _make(sample), list(_values(sample))
        if number == 0:
            make = own
            arrays = [np.empty((count, *np.shape(value)), dtype=np.asarray(value).dtype) for value in values]
        if own != make or any(
            np.shape(v) != a.shape[1:] or np.asarray(v).dtype != a.dtype for v, a in zip(values, arrays, strict=True)
        ):
            raise DataError(
                f"sample {number} is of another make or shape than sample 0, so that they are not arrays; pad them in `data`"
            )
        for value, array in zip(values, arrays, strict=True):
            array[number] = value
        if number % 1024 == 0:
            progress(number, count)
    with files.writing(str(place)):
        place.mkdir(parents=True, exist_ok=True)
        for number, array in enumerate(arrays):
            with open(place / f"{number}.npy", "xb") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
    files.write_atomic(place / FILE, [canonical.encode(Index(SCHEMA, count, make))])
    return count


def _make(sample: Any) -> Any:
    if isinstance(sample, (list, tuple)):
        return [_make(item) for item in sample]
    if isinstance(sample, Mapping):
        return {str(key): _make(sample[key]) for key in sample}
    if isinstance(sample, (Tensor, np.ndarray, np.generic)):
        name = str(sample.dtype).removeprefix("torch.")
        if name in _TYPES:
            return "tensor"
        raise DataError(f"a sample holds {name} numbers, which have no place in NumPy's format; convert them in `data`")
    for name, kind in _KINDS.items():
        if type(sample) is kind:
            return name
    raise DataError(f"a sample holds a {type(sample).__name__}; arrays have tensors and numbers; encode it in `data`")


def _values(sample: Any) -> Iterator[Any]:
    if isinstance(sample, (list, tuple)):
        for item in sample:
            yield from _values(item)
    elif isinstance(sample, Mapping):
        for key in sorted(sample):
            yield from _values(sample[key])
    else:
        yield sample.detach().cpu().numpy() if isinstance(sample, Tensor) else sample
