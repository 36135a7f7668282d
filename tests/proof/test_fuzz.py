"""A short run of the fuzzer (`make fuzz` is the long one), and whether it would notice."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

import proof_of_learning as pol

PATH = Path(__file__).parents[2] / "tools" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz", PATH)
    assert spec is not None and spec.loader is not None
    sys.path.insert(0, str(PATH.parent))  # as if it were run
    module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(PATH.parent))
    return module


@pytest.fixture(scope="module")
def proofs(fuzz: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fuzz.seeds(tmp_path_factory.mktemp("fuzz"))


def test_the_untouched_proofs_are_valid(fuzz: Any, proofs: Any, tmp_path: Path) -> None:
    for seed in proofs:
        sys.modules["mutations"].consistent(files := dict(seed.files))
        assert files == seed.files  # what makes a damaged proof consistent leaves a good one as it is
        fuzz.written(files, tmp_path / seed.name)
        assert pol.verify(tmp_path / seed.name, fuzz.task(seed.outputs), everything=True).verdict == "valid"


def test_one_of_them_has_predicted_weights(proofs: Any) -> None:
    how = {
        entry["how"]
        for seed in proofs
        if seed.name == "predicted"
        for name, raw in seed.files.items()
        if name.startswith("objects/")
        for entry in json.loads(zstandard.decompress(raw[4 : 4 + int.from_bytes(raw[:4], "little")]))[
            "tensors"
        ].values()
    }
    assert how == {"plain", "difference", "predicted"}


def test_no_mutated_proof_does_any_harm(fuzz: Any, proofs: Any, tmp_path: Path) -> None:
    tally = fuzz.run(proofs, tmp_path / "case", 1, range(300), lambda number, tally: None)
    assert tally.findings == []
    # The damage reaches every depth: the reader, the survey of the states, and the replay.
    assert {"refused", "contradicts itself", "verified: invalid"} <= set(tally.outcomes)


@pytest.mark.parametrize("trouble", ["crash", "hang", "lines", "valid"])
def test_it_notices(trouble: str, fuzz: Any, proofs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(*arguments: Any, **options: Any) -> Any:
        if trouble == "crash":
            raise KeyError("x")
        if trouble == "lines":
            raise pol.PolError("one\ntwo")
        while trouble == "hang":
            pass
        return honest

    good = tmp_path / "good"
    fuzz.written(proofs[0].files, good)
    honest = pol.verify(good, fuzz.task()) if trouble == "valid" else None
    monkeypatch.setattr(fuzz, "SECONDS", 1.0 if trouble != "valid" else 60.0)
    monkeypatch.setattr(fuzz.pol, "verify" if trouble == "valid" else "check", bad)
    numbers = range(120) if trouble == "valid" else range(1)
    assert fuzz.run(proofs, tmp_path / "case", 1, numbers, lambda number, tally: None).findings
