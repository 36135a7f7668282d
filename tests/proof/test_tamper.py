"""Tampering: every changed bit is noticed, and whatever is handed in as a proof, the answer is a verdict or a FormatError."""

from __future__ import annotations

import functools
import math
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

import proof_of_learning as pol
import tasks
from proof_of_learning import Proof, Task, canonical
from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.files import read_at, read_bounded
from proof_of_learning.proof.format import Displacement, Header
from proof_of_learning.state.state import State
from proof_of_learning.training.batches import DerivedOrder
from support_forging import reindex, relog, reseal, rewrite
from support_proofs import smallest

FILES = ("header.json", "log.jsonl", "index.jsonl", "seal.json", "blocks.bin")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(pol.prove(smallest(), tmp_path_factory.mktemp("tamper") / "small.pol", interval=2).path)


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "copy.pol"))


def noticed(path: Path) -> bool:
    """Whether the structure check fails, or the proof is refused; anything but a FormatError is a bug that shows as itself."""
    try:
        return pol.check(path).status == "fail"
    except FormatError:
        return True


def refused(path: Path, words: str = "") -> None:
    """Both commands that read a proof say no: with a FormatError, or as invalid."""
    for judge in (pol.check, pol.verify):
        try:
            found: Any = judge(path)
        except FormatError as error:
            text = str(error)
        else:
            text = found.reason if judge is pol.verify else found.summary
            assert found.verdict == "invalid" if judge is pol.verify else found.status == "fail"
        assert words in text
        assert "\n" not in text


@pytest.mark.quick
def test_the_untouched_proof_is_valid(small: Path, copy: Path) -> None:
    assert not noticed(small)
    for unchanged in (header_with(), edit_line("segment"), environment_with(), index_line(), reseal):
        unchanged(copy)  # the tools of the tests below leave it as it is
        assert (copy / "log.jsonl").read_bytes() == (small / "log.jsonl").read_bytes()
        assert not noticed(copy)
    assert pol.verify(copy, smallest(), everything=True).verdict == "valid"


# ---- bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit_in_any_byte_is_noticed(name: str, copy: Path) -> None:
    path, chance, unnoticed = copy / name, random.Random(0), []
    original = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(original):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << chance.randrange(8)]), position)
            if not noticed(copy):
                unnoticed.append(position)
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert unnoticed == []
    assert not noticed(copy)


def test_one_changed_bit_in_an_object_is_noticed(copy: Path) -> None:
    chance = random.Random(1)
    for path in sorted((copy / "objects").rglob("*")):
        if path.is_file():
            original = path.read_bytes()
            for position in {*range(0, len(original), 9), len(original) - 1}:
                changed = bytearray(original)
                changed[position] ^= 1 << chance.randrange(8)
                path.write_bytes(changed)
                assert noticed(copy), (path.name, position)
            path.write_bytes(original)
    assert not noticed(copy)


@pytest.mark.quick
@pytest.mark.parametrize("name", FILES)
def test_what_is_cut_off_added_or_doubled_is_noticed(name: str, copy: Path) -> None:
    path = copy / name
    original = path.read_bytes()
    half = len(original) // 2
    for changed in (
        b"", original[:-1], original[:half], original + b"\n", original + b"\0", original + original, b"\n" + original,
        original[:half] + original[half + 1 :], original[:half] + b" " + original[half:], original[::-1], b"\0" * len(original),
        original.replace(b"\n", b"\r\n") if b"\n" in original else original + b"\r\n", b"\xef\xbb\xbf" + original, b"{}", b"[]\n",
    ):  # fmt: skip
        path.write_bytes(changed)
        assert noticed(copy), changed[:50]
    path.write_bytes(original)
    assert not noticed(copy)


def test_exchanged_lines_and_objects_are_noticed(copy: Path) -> None:
    for name in ("log.jsonl", "index.jsonl"):
        original = (copy / name).read_bytes()
        lines = original.splitlines(keepends=True)
        for index in range(len(lines)):
            for changed in ([*lines[:index], *lines[index + 1 :]], [*lines[:index], lines[index], *lines[index:]]):
                (copy / name).write_bytes(b"".join(changed))
                assert noticed(copy)
            if index:
                lines[index - 1], lines[index] = lines[index], lines[index - 1]
                (copy / name).write_bytes(b"".join(lines))
                assert noticed(copy)
                lines[index - 1], lines[index] = lines[index], lines[index - 1]
        (copy / name).write_bytes(original)
    one, other, *_ = sorted(path for path in (copy / "objects").rglob("*") if path.is_file())
    texts = one.read_bytes(), other.read_bytes()
    one.write_bytes(texts[1])
    other.write_bytes(texts[0])
    assert noticed(copy)


# ---- files ----------------------------------------------------------------------------------------------


def objects(path: Path) -> list[Path]:
    return sorted(path for path in (path / "objects").rglob("*") if path.is_file())


def replaced_by_link(path: Path) -> None:
    shutil.move(path, path.parent.parent / f"moved-{path.name}")
    path.symlink_to(path.parent.parent / f"moved-{path.name}")


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def sparse(path: Path) -> None:
    os.truncate(path, 10 << 30)


@pytest.mark.parametrize("change", [os.unlink, replaced_by_link, replaced_by_folder, replaced_by_pipe, sparse])
@pytest.mark.parametrize("name", [*FILES, "an object"])
def test_files_that_are_none_are_refused(name: str, change: Callable[[Path], None], copy: Path) -> None:
    change(objects(copy)[1] if name == "an object" else copy / name)
    refused(copy)


def test_opening_alone_accounts_for_every_object(copy: Path) -> None:
    """Before a single state is read: none missing, none elsewhere, none through a link."""
    one, other, *_ = objects(copy)
    Proof.open(copy)
    for wrong in (other.parent / one.name, copy.parent / one.name):
        one.rename(wrong)
        with pytest.raises(FormatError):
            Proof.open(copy)
        wrong.rename(one)
    (copy.parent / "link").symlink_to(one)
    with pytest.raises(FormatError, match="symbolic link"):
        read_bounded(copy.parent / "link", 10**6)
    Proof.open(copy)


EXTRA: dict[str, Callable[[Path], Any]] = {
    "a file": lambda path: (path / "notes.txt").write_text("hello"),
    "a hidden file": lambda path: (path / ".notes").write_text("hello"),
    "a temporary file": lambda path: (path / ".tmp-x").write_text("hello"),
    "a folder": lambda path: (path / "folder").mkdir(),
    "a link": lambda path: (path / "link").symlink_to("/etc/passwd"),
    "a file among the objects": lambda path: (path / "objects" / "notes.txt").write_text("hello"),
    "a folder with a name of two lines": lambda path: (path / "objects" / "a\nb").mkdir(),
    "a folder among the objects": lambda path: (path / "objects" / "zz").mkdir(),
    "an object": lambda path: (objects(path)[0].parent / ("0" * 64)).write_text("hello"),
    "an object in another folder": lambda path: shutil.copytree(objects(path)[0].parent, path / "objects" / "00"),
    "a pipe among the objects": lambda path: os.mkfifo(objects(path)[0].parent / "pipe"),
    "a name that is no text": lambda path: Path(os.fsdecode(bytes(path) + b"/\xff\xfe")).write_text("hello"),
    "objects are a link": lambda path: replaced_by_link(path / "objects"),
    "no objects": lambda path: shutil.rmtree(path / "objects"),
    "an object's folder is a link": lambda path: replaced_by_link(objects(path)[0].parent),
}


@pytest.mark.parametrize("change", EXTRA.values(), ids=EXTRA)
def test_what_does_not_belong_to_a_proof_is_refused(change: Callable[[Path], Any], copy: Path) -> None:
    change(copy)
    refused(copy)


def test_what_does_not_fit_into_memory_is_refused(small: Path) -> None:
    with (small / "blocks.bin").open("rb") as file, pytest.raises(FormatError, match="memory"):
        read_at(file.fileno(), 2**62, 0, "an object")


@pytest.mark.parametrize("kind", ["nothing", "file", "empty folder", "link to nothing"])
def test_a_path_that_is_no_proof_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("hello")
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to(tmp_path / "y")
    refused(path)


# ---- documents --------------------------------------------------------------------------------------------


def header_with(**changed: Any) -> Callable[[Path], Any]:
    """Exchange parts of the header (``a__b`` is b within a) and make the rest of the proof consistent with it."""

    def change(path: Path) -> None:
        plain = msgspec.json.decode((path / "header.json").read_bytes())
        for name, value in changed.items():
            *outer, last = name.split("__")
            target = functools.reduce(lambda node, key: node[key], outer, plain)
            if value is None:
                del target[last]
            else:
                target[last] = value
        (path / "header.json").write_bytes(canonical.encode(plain))
        relog(path, lambda lines: None)
        reindex(path, lambda lines: None)

    return change


HEADERS: dict[str, Callable[[Path], Any]] = {
    "another format": header_with(format="pol/proof/v3"),
    "no format": header_with(format=None),
    "interval 0": header_with(training__interval=0),
    "interval -1": header_with(training__interval=-1),
    "interval of text": header_with(training__interval="2"),
    "interval 0.5": header_with(training__interval=0.5),
    "interval beyond all": header_with(training__interval=2**40),
    "another interval": header_with(training__interval=3),
    "no steps": header_with(training__planned=0),
    "more steps": header_with(training__planned=5),
    "very many steps": header_with(training__planned=2**52),
    "very long segments": header_with(training__planned=2**47, training__interval=2**32),
    "an epoch of nothing": header_with(training__steps_per_epoch=0),
    "a short key": header_with(randomness__key="00"),
    "a key in capitals": header_with(randomness__key="AB" * 32),
    "another mode": header_with(randomness__mode="recorded"),
    "an unknown mode": header_with(randomness__mode="chosen"),
    "a seed beyond 64 bits": header_with(randomness__seed=str(2**64)),
    "a seed beyond 64 bits, in 20 digits": header_with(randomness__seed="9" * 20),
    "a seed with a zero before it": header_with(randomness__seed="00"),
    "a negative seed": header_with(randomness__seed="-1"),
    "a seed of words": header_with(randomness__seed="five"),
    "a data root that is none": header_with(data__root="sha256:xyz"),
    "no samples": header_with(data__samples=0),
    "minus one samples": header_with(data__samples=-1),
    "a task digest of another": header_with(task__digest="sha256:" + "0" * 64),
    "a description of another": header_with(task__description={}),
    "an unknown codec": header_with(codec__name="pickle"),
    "a later codec": header_with(codec__version=2),
    "a codec in the loop": header_with(codec__in_loop=True),
    "a codec with options": header_with(codec__options={"level": 3}),
    "an unknown initialization": header_with(initialization__kind="found"),
    "an initialization from elsewhere": header_with(initialization__proof="../../other"),
    "one field more": header_with(more=1),
    "one field less": header_with(training=None),
    "a list": lambda path: (path / "header.json").write_bytes(b"[]"),
    "deep": lambda path: (path / "header.json").write_bytes(b'{"a":' * 100_000 + b"0" + b"}" * 100_000),
    "duplicate": lambda path: (path / "header.json").write_bytes(
        (path / "header.json").read_bytes()[:-1] + b',"format":"pol/proof/v2"}'
    ),
    "a long name": header_with(format="x" * 100_000),
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_headers_that_make_no_sense_are_refused(change: Callable[[Path], Any], copy: Path) -> None:
    change(copy)
    refused(copy)


def edit_line(kind: str, nth: int = 0, /, **changed: Any) -> Callable[[Path], Any]:
    def edit(lines: list[dict[str, Any]]) -> None:
        line = [line for line in lines if line["kind"] == kind][nth]
        for name, value in changed.items():
            *outer, last = name.split("__")
            target = functools.reduce(lambda node, key: node[key], outer, line)
            if value is None:
                del target[last]
            else:
                target[last] = value

    return lambda path: relog(path, edit)


def environment_with(**changed: Any) -> Callable[[Path], Any]:
    """An environment with the right digest, which every segment names."""

    def edit(lines: list[dict[str, Any]]) -> None:
        line = next(line for line in lines if line["kind"] == "environment")
        line["environment"] |= changed
        line["digest"] = canonical.sha256(b"pol/v1/environment\0", canonical.encode(line["environment"]))
        for other in lines:
            if other["kind"] == "segment":
                other["environment"] = line["digest"]

    return lambda path: relog(path, edit)


LOGS: dict[str, Callable[[Path], Any]] = {
    "another index": edit_line("segment", 1, index=5),
    "another start": edit_line("segment", 1, start=3),
    "another stop": edit_line("segment", 0, stop=3),
    "an index of text": edit_line("segment", 0, index="0"),
    "a huge index": edit_line("segment", 0, index=2**53 - 1),
    "a missing field": edit_line("segment", 0, block=None),
    "a field more": edit_line("segment", 0, more=1),
    "an unknown kind": edit_line("segment", 0, kind="jump"),
    "a state that is no digest": edit_line("segment", 0, state="../../etc/passwd"),
    "an arrival elsewhere": edit_line("segment", 0, arrived="sha256:" + "0" * 64),
    "a block that is no digest": edit_line("segment", 0, block__digest="x"),
    "another block": edit_line("segment", 0, block__digest="sha256:" + "0" * 64),
    "an empty block": edit_line("segment", 0, block__bytes=0),
    "a negative block": edit_line("segment", 0, block__bytes=-5),
    "a huge block": edit_line("segment", 0, block__bytes=2**40),
    "a longer block": edit_line("segment", 0, block__bytes=1000),
    "a negative displacement": edit_line("segment", 0, displacement__state=-1.0),
    "a larger displacement": edit_line("segment", 0, displacement__state=100.0),
    "a smaller displacement": edit_line("segment", 1, displacement__weights=0.0),
    "an environment that was not told": edit_line("segment", 0, environment="sha256:" + "0" * 64),
    "an environment with another digest": edit_line("environment", 0, digest="sha256:" + "0" * 64),
    "an evaluation of words": edit_line("segment", 0, evaluation={"accuracy": "high"}),
    "another initial state": edit_line("start", 0, state="sha256:" + "0" * 64),
    "a final model that is no digest": edit_line("end", 0, final_weights=5),
    "no end": lambda path: relog(path, lambda lines: lines[:-1]),
    "two ends": lambda path: relog(path, lambda lines: [*lines, lines[-1]]),
    "two starts": lambda path: relog(path, lambda lines: [lines[0], *lines]),
    "no start": lambda path: relog(path, lambda lines: lines[1:]),
    "the environment twice": lambda path: relog(path, lambda lines: [*lines[:2], *lines[1:]]),
    "a segment less": lambda path: relog(path, lambda lines: [*lines[:-2], lines[-1]]),
    "a segment more": lambda path: relog(path, lambda lines: [*lines[:-1], lines[-2], lines[-1]]),
    "nothing": lambda path: (relog(path, lambda lines: lines[:1]), (path / "log.jsonl").write_bytes(b"")),
    "a variable that loads a library": environment_with(variables={"LD_PRELOAD": "/tmp/evil.so"}),
    "a variable with a value of its own": environment_with(variables={"MKL_CBWR": "AVX2; rm -rf /"}),
    "no threads": environment_with(threads=0),
    "a million threads": environment_with(threads=10**6),
    "no threads between operators": environment_with(interop_threads=0),
    "an unknown device": environment_with(
        device={"type": "abacus", "name": None, "capability": None, "cuda": None, "cudnn": None}
    ),
    "a field more in the environment": environment_with(more=1),
}


@pytest.mark.parametrize("change", LOGS.values(), ids=LOGS)
def test_logs_that_make_no_sense_are_refused(change: Callable[[Path], Any], copy: Path) -> None:
    change(copy)
    refused(copy)


def index_line(**changed: Any) -> Callable[[Path], Any]:
    return lambda path: reindex(path, lambda lines: lines[1].update(changed))


def exchange(lines: list[dict[str, Any]]) -> None:
    one, other = ({name: lines[index][name] for name in ("object", "bytes")} for index in (1, 2))
    lines[1] |= other
    lines[2] |= one


INDEXES: dict[str, Callable[[Path], Any]] = {
    "a path for a name": index_line(object="sha256:../../../../etc/passwd"),
    "a path as long as a name": index_line(object="sha256:" + "../" * 21 + "x"),
    "an absolute path": index_line(object="/etc/passwd"),
    "a name in capitals": index_line(object="sha256:" + "A" * 64),
    "a name with a newline": index_line(object="sha256:" + "0" * 64 + "\n"),
    "another object": index_line(object="sha256:" + "0" * 64),
    "a foreign state": index_line(state="sha256:" + "0" * 64),
    "no bytes": index_line(bytes=0),
    "negative bytes": index_line(bytes=-1),
    "huge bytes": index_line(bytes=2**52),
    "another codec": index_line(codec="pickle"),
    "a base": index_line(base="sha256:" + "0" * 64),
    "a field more": index_line(more=1),
    "another kind": index_line(kind="states"),
    "a state twice": lambda path: reindex(path, lambda lines: [*lines, lines[0]]),
    "one object for two states": lambda path: reindex(
        path, lambda lines: lines[1].update(object=lines[0]["object"], bytes=lines[0]["bytes"])
    ),
    "another seal": lambda path: reseal(path, index="sha256:" + "0" * 64),
    "another root": lambda path: reseal(path, root="sha256:" + "0" * 64),
    "a seal of more": lambda path: reseal(path, segments=3),
    "a seal of text": lambda path: reseal(path, segments="2"),
    "another schema": lambda path: reseal(path, schema="pol/seal/v9"),
    "a seal with a signature in it": lambda path: reseal(path, signature="x"),
}


@pytest.mark.parametrize("change", INDEXES.values(), ids=INDEXES)
def test_indexes_and_seals_that_make_no_sense_are_refused(change: Callable[[Path], Any], copy: Path) -> None:
    change(copy)
    refused(copy)


def test_an_object_must_hold_the_state_that_the_index_says(copy: Path) -> None:
    reindex(copy, exchange)
    refused(copy, "holds another state")


def test_a_dropped_state_keeps_the_root_and_is_passed_through_on_the_way(copy: Path) -> None:
    """The segment after it is replayed from the nearest state that is held."""
    root = Proof.open(copy).root
    middle = Proof.open(copy).state_digests()[1]
    dropped = object_of(copy, middle)
    reindex(copy, lambda lines: [line for line in lines if line["state"] != middle])
    dropped.unlink()
    dropped.parent.rmdir()
    assert Proof.open(copy).root == root
    assert pol.check(copy).evidence["states_missing"] == 1
    verdict = pol.verify(copy, smallest(), everything=True)
    assert verdict.verdict == "valid", verdict.reason
    assert [segment.status for segment in verdict.segments] == ["pass", "pass"]
    assert not verdict.guarantee.missing  # all of it was replayed
    assert pol.verify(copy, smallest(), random=1).check("policy").evidence["broken"] == ["every_guarantee"]


def object_of(path: Path, state: str) -> Path:
    name = Proof.open(path).index[state].object[7:]
    return path / "objects" / name[:2] / name


# ---- perfect on the outside -------------------------------------------------------------------------------

WEIGHT, BIAS = "model/parameters/weight", "model/parameters/bias"


def judged(path: Path, task: Task | None = None) -> Any:
    """The verdict with everything tried; FormatError is an answer too (None)."""
    try:
        return pol.verify(path, task or smallest(), everything=True, keep_going=True)
    except FormatError:
        return None


def with_tensor(
    name: str, change: Callable[[Tensor], Tensor], where: slice = slice(1, 2)
) -> Callable[[list[State]], list[State]]:
    def edit(states: list[State]) -> list[State]:
        chosen = set(range(len(states))[where])
        return [
            State(s.tree, {**s.tensors, name: change(s.tensors[name].clone())}) if i in chosen else s
            for i, s in enumerate(states)
        ]

    return edit


VALUES = [math.nan, math.inf, -math.inf, 1e38, 3e38]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("where", [slice(1, 2), slice(1, None), slice(None), slice(-1, None)], ids=str)
def test_values_that_are_not_finite_never_pass(value: float, where: slice, small: Path, tmp_path: Path) -> None:
    claims = {0: Displacement(1.0, 1.0), 1: Displacement(0.0, 0.0)}
    forged = rewrite(
        small, tmp_path / "x.pol", states=with_tensor(WEIGHT, lambda t: t.fill_(value), where), claims=claims
    )
    found = judged(forged)
    assert found is None or found.verdict == "invalid"


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200, 1e308])
def test_values_of_another_type_that_overflow_never_pass(value: float, small: Path, tmp_path: Path) -> None:
    forged = rewrite(
        small,
        tmp_path / "x.pol",
        states=with_tensor(BIAS, lambda t: torch.tensor([value], dtype=torch.float64), slice(None)),
        claims={0: Displacement(1.0, 1.0), 1: Displacement(1.0, 1.0)},
    )
    found = judged(forged)
    assert found is None or found.verdict == "invalid"


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "more rows": lambda t: torch.cat([t, t]),
    "one row": lambda t: t[0],
    "no elements": lambda t: t[:0],
    "a number": lambda t: t.sum(),
    "double": lambda t: t.double(),
    "integer": lambda t: t.int(),
    "complex": lambda t: t + 0j,
}


@pytest.mark.parametrize("where", [slice(1, 2), slice(None), slice(-1, None)], ids=["middle", "all", "last"])
@pytest.mark.parametrize("form", FORMS)
def test_states_that_do_not_fit_the_task_are_invalid_and_say_so(
    form: str, where: slice, small: Path, tmp_path: Path
) -> None:
    forged = rewrite(small, tmp_path / "x.pol", states=with_tensor(WEIGHT, FORMS[form], where))
    found = judged(forged)
    assert found.verdict == "invalid"
    if where != slice(-1, None):
        notes = " ".join(segment.note for segment in found.segments)
        assert "model/parameters/weight: the task's model has torch.float32 (1, 2), the state has" in notes


def part(name: str, value: Any) -> Callable[[Any], Any]:
    return lambda tree: {"d": [[key, value if key == f"s:{name}" else node] for key, node in tree["d"]]}


TREES: dict[str, Callable[[Any], Any]] = {
    "a part more": lambda tree: {"d": sorted([*tree["d"], ["s:more", {"i": "1"}]])},
    "a part less": lambda tree: {"d": [item for item in tree["d"] if item[0] != "s:progress"]},
    "another step": part("progress", {"d": [["s:step", {"i": "0"}]]}),
    "a step of text": part("progress", {"d": [["s:step", "2"]]}),
    "no step": part("progress", {"d": []}),
    "an optimizer of text": part("optimizer", "SGD"),
    "an optimizer of nothing": part("optimizer", {"d": []}),
    "an optimizer of lists": part("optimizer", {"d": [["s:groups", {"l": [None]}], ["s:state", {"l": []}]]}),
    "an optimizer with odd groups": part("optimizer", {"d": [["s:groups", {"d": []}], ["s:state", {"d": []}]]}),
    "a model of text": part("model", "linear"),
}


@pytest.mark.parametrize("where", [1, 2])
@pytest.mark.parametrize("edit", TREES.values(), ids=TREES)
def test_states_of_another_structure_are_invalid(
    edit: Callable[[Any], Any], where: int, small: Path, tmp_path: Path
) -> None:
    def states(given: list[State]) -> list[State]:
        tree = edit(given[where].tree)
        return [State(tree, s.tensors) if i == where else s for i, s in enumerate(given)]

    found = judged(rewrite(small, tmp_path / "x.pol", states=states))
    assert found is None or found.verdict == "invalid"


def test_a_proof_without_a_model_is_not_valid(small: Path, tmp_path: Path) -> None:
    def states(given: list[State]) -> list[State]:
        return [s.part("optimizer", "progress") for s in given]

    found = judged(rewrite(small, tmp_path / "x.pol", states=states))
    assert found is None or found.verdict == "invalid"


COLUMNS: dict[str, Callable[[Columns], Columns]] = {
    "losses that are not finite": lambda c: replace(c, loss=c.loss * math.nan),
    "rates that are not finite": lambda c: replace(c, rates=c.rates * math.inf),
    "a group more": lambda c: replace(c, rates=np.tile(c.rates, 2)),
    "no groups": lambda c: replace(c, rates=c.rates[:, :0]),
    "a step more": lambda c: replace(c, loss=np.tile(c.loss, 2), rates=np.tile(c.rates, (2, 1))),
    "rates of zero": lambda c: replace(c, rates=c.rates * 0),
    "negative rates": lambda c: replace(c, rates=-c.rates),
    "an order that was not to be recorded": lambda c: replace(
        c, indices=[np.array([0, 1])] * 2, rng=[RngSnapshot.take()] * 2
    ),
    "an order without generators": lambda c: replace(c, indices=[np.array([0, 1])] * 2),
}


@pytest.mark.parametrize("where", [slice(0, 1), slice(None)], ids=["one", "all"])
@pytest.mark.parametrize("edit", COLUMNS.values(), ids=COLUMNS)
def test_columns_of_another_run_are_invalid(
    edit: Callable[[Columns], Columns], where: slice, small: Path, tmp_path: Path
) -> None:
    def columns(given: list[Columns]) -> list[Columns]:
        return [edit(c) if i in range(len(given))[where] else c for i, c in enumerate(given)]

    found = judged(rewrite(small, tmp_path / "x.pol", columns=columns))
    assert found is None or found.verdict == "invalid"


RECORDED: dict[str, Callable[[Columns], Columns]] = {
    "honest": lambda c: c,
    "beyond the data": lambda c: replace(c, indices=[np.array([0, 4])] * 2),
    "negative": lambda c: replace(c, indices=[np.array([0, -1])] * 2),
    "none": lambda c: replace(c, indices=[np.array([], np.int64)] * 2),
    "too few": lambda c: replace(c, indices=[np.array([1])] * 2),
    "too many": lambda c: replace(c, indices=[np.array([0, 1, 2, 3])] * 2),
    "a generator of zeros": lambda c: replace(c, rng=[RngSnapshot({"torch": np.zeros(5056, np.uint8)})] * 2),
    "an unknown generator": lambda c: replace(c, rng=[RngSnapshot({"dice": np.zeros(4, np.uint8)})] * 2),
}


@pytest.mark.parametrize("edit", RECORDED)
def test_recorded_orders_are_checked(edit: str, small: Path, tmp_path: Path) -> None:
    """The same run, as if its order had been recorded: with the right order it replays, with hostile ones it is invalid."""
    proof = Proof.open(small)
    order = DerivedOrder(smallest(), 4, bytes.fromhex(proof.header.randomness.key))

    def header(given: Header) -> Header:
        recorded = msgspec.structs.replace(given.randomness, mode="recorded")
        return msgspec.structs.replace(
            given, randomness=recorded, initialization=msgspec.structs.replace(given.initialization, kind="recorded")
        )

    def columns(given: list[Columns]) -> list[Columns]:
        rows = [[order.indices(2 * i), order.indices(2 * i + 1)] for i in range(2)]
        honest = [replace(c, indices=rows[i], rng=[RngSnapshot.take()] * 2) for i, c in enumerate(given)]
        return [RECORDED[edit](honest[0]), honest[1]]

    found = judged(rewrite(small, tmp_path / "x.pol", header=header, columns=columns))
    if edit == "honest":
        assert found.check("trajectory").status == "pass"
        assert found.verdict != "invalid"
    else:
        assert found.verdict == "invalid"


def test_a_proof_of_another_task_is_invalid_not_an_error(small: Path, tiny_proof: Path) -> None:
    for path, task in ((small, tasks.task()), (tiny_proof, smallest())):
        found = pol.verify(path, task, everything=True, keep_going=True)
        assert found.verdict == "invalid"
        assert found.check("task").status == "fail"


def test_final_weights_of_another_model_are_invalid(copy: Path) -> None:
    edit_line("end", 0, final_weights="sha256:" + "1" * 64)(copy)
    found = pol.verify(copy, smallest())
    assert found.verdict == "invalid"
    assert found.check("endpoint").status == "fail"


def test_a_claimed_environment_is_no_way_out_of_a_verdict(small: Path, tmp_path: Path) -> None:
    def elsewhere(environment: Environment) -> Environment:
        return msgspec.structs.replace(environment, machine="pdp11", threads=4096, variables={"MKL_CBWR": "SSE2"})

    forged = rewrite(
        small, tmp_path / "x.pol", environment=elsewhere, states=with_tensor(WEIGHT, lambda t: t + 1.0, slice(1, None))
    )
    found = pol.verify(forged, smallest(), everything=True)
    assert found.verdict in ("inconclusive", "invalid")
    assert any("pdp11" in line for line in found.unreproduced)
