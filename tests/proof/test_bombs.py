"""Small proofs that would cost a reader much: what is decoded follows from what is stored."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import proof_of_learning as pol
from proof_of_learning.errors import FormatError, IntegrityError
from proof_of_learning.limits import HEADER_WEIGHT, MAX_EXPANSION, MAX_EXPANSION_COMPACT, WEIGHT_ROOM
from proof_of_learning.numeric import environment
from proof_of_learning.proof.codecs import packed
from proof_of_learning.proof.reader import Proof
from proof_of_learning.proof.rewrite import rewrite
from proof_of_learning.proof.writer import ProofWriter
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.state import State, tree_tensors
from support_bombs import Made, columns, header, named, tightly, whole, write
from support_proofs import tree_of

LARGEST = 1_000_000  # bytes of a proof
MEMORY = 500  # MB of a process that checks it


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def held(*objects: Made) -> list[str]:
    """Names for a log: the states of these objects, and one that is missing."""
    return [*(made.state for made in objects), digest(1)]


def string(path: Path) -> Path:
    made = whole({"d": [["s:x", "x" * (60 << 20)]]})
    return write(path, [made.state, *map(digest, range(60))], [made])


def flat(path: Path) -> Path:
    made = Made(tightly({"d": [["s:x", {"l": [{"l": []}] * 5_000_000}]]}, {}, {}), "lossless", digest(0))
    return write(path, held(made), [made])


def deep(path: Path) -> Path:
    node: list[Any] = []
    for _ in range(25):
        node = [{"l": node}]
    made = Made(tightly({"d": [["s:x", {"l": node * 200_000}]]}, {}, {}), "lossless", digest(0))
    return write(path, held(made), [made])


def many_states(path: Path) -> Path:
    """None of them large."""
    node: dict[str, Any] = {"l": [{"l": []}] * 2800}
    made = [whole({"d": [["s:model", node], ["s:progress", {"i": str(step)}]]}) for step in range(300)]
    return write(path, held(*made), made)


def zeros(path: Path) -> Path:
    made = whole(tree_of(["a"]), {"a": torch.zeros(10 << 20)})
    return write(path, held(made), [made])


def differences(path: Path) -> Path:
    """Each to the one before, in which nothing changes but a number."""
    values, entries = {"model": torch.zeros(1 << 16)}, {}
    made: list[Made] = []
    for step in range(300):
        tree = {"d": [["s:model", {"t": "model"}], ["s:progress", {"i": str(step)}]]}
        if step % 60 == 0:
            made.append(whole(tree, values))
            continue
        entries["model"] = packed.entry(values["model"], 4, "difference")
        raw = tightly(tree, entries, {"model": torch.zeros(1 << 16, dtype=torch.int32)})
        made.append(Made(raw, "lossless", named(tree, values), made[-1].state))
    return write(path, held(*made), made)


def under(items: list[Any]) -> dict[str, Any]:
    """A tree with the parts that the header names, and these in its model."""
    return {"d": [["s:model", {"d": items}], ["s:progress", {"i": "1"}]]}


def padded(path: Path) -> Path:
    """Noise makes as much room as a proof of this size can have, and booleans, of which most is made, fill it."""
    noise = np.random.default_rng(0).integers(0, 256, 900_000, dtype=np.uint8)
    room = WEIGHT_ROOM + MAX_EXPANSION * len(noise) - len(noise) - HEADER_WEIGHT * 1000
    tensors = {"model/a": torch.zeros(room, dtype=torch.bool), "model/b": torch.from_numpy(noise)}
    made = whole(under([["s:a", {"t": "model/a"}], ["s:b", {"t": "model/b"}]]), tensors)
    return write(path, [digest(1), made.state], [made])


def rounded(path: Path) -> Path:
    """The same with the codec that makes the most room, in one momentum, which takes the most memory to decode."""
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 900_000, dtype=np.uint8))
    room = WEIGHT_ROOM + MAX_EXPANSION_COMPACT * len(noise) - len(noise) - HEADER_WEIGHT * 1000
    momentum, size = "model/state/0/exp_avg", room // 4
    entries = {momentum: packed.Entry("float32", [size], 4, "new"), "model/b": packed.entry(noise, 1, "plain")}
    tree = under([["s:b", {"t": "model/b"}], ["s:state", {"d": [["s:0", {"d": [["s:exp_avg", {"t": momentum}]]}]]}]])
    items = {"model/b": packed.map_bits(noise)}
    first = whole({"d": [["s:model", {"d": []}], ["s:progress", {"i": "0"}]]}, codec="raw")
    state = named(tree, {momentum: torch.zeros(size), "model/b": noise})
    made = Made(tightly(tree, entries, items, {"moved": 0, "new": size, "octaves": 0}), "compact", state, first.state)
    return write(path, [first.state, made.state], [first, made], codec="compact")


def names(path: Path) -> Path:
    """A long name above many nodes."""
    made = whole(under([["s:" + "k" * 400_000, {"l": [None] * 100_000}]]), codec="raw")
    return write(path, [digest(1), made.state], [made], codec="raw")


def lists(path: Path) -> Path:
    """A header that takes the slow way to be compared with its canonical form."""
    return write(path, [digest(1), digest(2)], [], description={"x": [1e-7, "\U0001f600"], "y": [[]] * 320_000})


def nodes(path: Path) -> Path:
    """A state's tree that takes it again and again."""
    made = whole(under([["s:\U0001f600", {"l": [{"l": []}] * 90_000}]]), codec="raw")
    return write(path, [digest(1), made.state], [made], codec="raw")


BOMBS: dict[Callable[[Path], Path], str] = {
    string: "decompression bomb",
    flat: "decompression bomb",
    deep: "decompression bomb",
    many_states: "decompression bomb",
    zeros: "decompression bomb",
    differences: "decompression bomb",
    padded: "all digests correct",
    rounded: "all digests correct",
    names: "all digests correct",
    lists: "all digests correct",
    nodes: "all digests correct",
}

PROGRAM = """
import os, sys
import proof_of_learning as pol
pol.check, pol.errors.PolError  # imported once, before processes are made that hold nothing but that
for path in sys.argv[1:]:
    if os.fork() == 0:
        try:
            said = pol.check(path).summary
        except pol.errors.PolError as error:
            said = str(error)
        with open("/proc/self/status") as status:
            (peak,) = (int(line.split()[1]) // 1000 for line in status if line.startswith("VmHWM"))
        print(said, peak, sep="\\n", flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, path
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """What a check says of each, and the most MB that the process held which it was made in."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = [made(folder / made.__name__) for made in BOMBS]
    for path in paths:
        assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < LARGEST, path
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths],
        capture_output=True, text=True, timeout=250, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return {path.name: (said, int(peak)) for path, said, peak in zip(paths, lines[::2], lines[1::2], strict=True)}


@pytest.mark.parametrize("made", BOMBS, ids=lambda made: made.__name__)
def test_a_small_proof_takes_little_memory(made: Callable[[Path], Path], checked: dict[str, tuple[str, int]]) -> None:
    said, memory = checked[made.__name__]
    assert BOMBS[made] in said
    assert memory < MEMORY


def test_one_state_at_two_steps_is_refused(tmp_path: Path) -> None:
    """A state says how many steps were taken; the same one again and again would be read for a line each."""
    made = whole(tree_of(["a"]), {"a": torch.zeros(3)})
    with pytest.raises(IntegrityError, match="after different steps"):
        Proof.open(write(tmp_path / "run.pol", [made.state, digest(1), made.state], [made]))


@pytest.mark.parametrize("codec", ["lossless", "raw"])
def test_a_difference_to_any_but_the_state_before_is_refused(codec: str, tmp_path: Path) -> None:
    """Else each of many states could take a chain of its own; and what is not compressed takes no base at all."""
    first, second = (whole({"d": [["s:a", {"i": str(n)}]]}, codec="raw") for n in range(2))
    base, states = (first.state, [first.state, digest(1), second.state])
    if codec == "raw":
        states = [first.state, second.state]
    objects = [first, second._replace(base=base, codec=codec)]
    with pytest.raises(FormatError, match="not the state one segment before"):
        Proof.open(write(tmp_path / "run.pol", states, objects, codec=codec))


def test_one_object_makes_room_once(tmp_path: Path) -> None:
    """However many states the index says that it stands for."""
    made = whole(tree_of(["a"]), {"a": torch.zeros(3)})
    names = [made.state, *map(digest, range(50))]
    proof = Proof.open(write(tmp_path / "run.pol", names, [made._replace(state=name) for name in names]))
    assert proof.stored_bytes == len(made.raw)


def frozen(count: int, size: int) -> list[State]:
    """States in which only the number of steps changes."""
    return [
        State(
            {"d": [["s:model", {"t": "model"}], ["s:progress", {"d": [["s:step", {"i": str(step)}]]}]]},
            {"model": torch.zeros(size)},
        )
        for step in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("keep_every", [None, 3])
@pytest.mark.parametrize("codec", ["lossless", "quantised"])
def test_what_a_writer_writes_a_reader_reads(codec: str, keep_every: int | None, tmp_path: Path) -> None:
    """Zeros compress to almost nothing; where a reader would take that for a bomb, states are stored as they are."""
    states, here = frozen(9, WEIGHT_ROOM // 10), environment.current()
    path = tmp_path / "run.pol"
    with ProofWriter.create(path, header(8, codec), keep_every) as writer:
        writer.start(states[0])
        for before, after in itertools.pairwise(states):
            encoded = writer.encode(after, writer.steps + 1)
            writer.segment(
                arrived=after.digest(), state=after, displacement=displacement(before, after), environment=here,
                columns=columns(), encoded=encoded,
            )  # fmt: skip
        writer.seal()
    assert pol.check(path).status == "pass"
    used = [stored.codec for stored in Proof.open(path).index.values()]
    assert keep_every or "raw" in used
    rewrite(Proof.open(path), [0, 3, 6, 8], tmp_path / "thin.pol")
    assert pol.check(tmp_path / "thin.pol").status == "pass"


def test_the_names_of_a_tree_are_those_of_its_tensors() -> None:
    tree = {"d": [["s:a/b", {"l": [None, {"t": "a~1b/1"}, {"u": [{"t": "a~1b/2/0"}]}]}], ["s:c", {"t": "c"}]]}
    assert list(tree_tensors(tree)) == ["a~1b/1", "a~1b/2/0", "c"]
    for wrong in ("a~1b/2", "b~1b/1", "a~1b/11"):
        with pytest.raises(FormatError, match="malformed at"):
            list(tree_tensors({"d": [["s:a/b", {"l": [None, {"t": wrong}]}]]}))
