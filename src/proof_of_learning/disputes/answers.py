"""Answers: of every state the raw bits at a few coordinates, and what it computes on a few samples. Written by the owner, read by a
verifier who trusts no byte of it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from proof_of_learning import canonical
from proof_of_learning.disputes import documents
from proof_of_learning.disputes.documents import ANSWERS_FILE, AnswersHead, First, Head
from proof_of_learning.disputes.owners import Owners
from proof_of_learning.errors import FormatError, IntegrityError
from proof_of_learning.limits import (
    MAX_COLUMNS,
    MAX_CUT,
    MAX_CUTS,
    MAX_DIMENSIONS,
    MAX_HEADS,
    MAX_LAYOUTS,
    MAX_ROWS,
)
from proof_of_learning.proof import files
from proof_of_learning.proof.codecs.raw import RawCodec
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay import protocol
from proof_of_learning.state.names import is_weight
from proof_of_learning.state.state import State
from proof_of_learning.verifier.plan import survey_seed
from proof_of_learning.verifier.sampling import coordinates

COORDINATES = 700  # of the weights of a state, all tensors together
FEWEST, MOST = 16, 512  # of one tensor
STATES_FILE, OUTPUTS_FILE = "states.bin", "outputs.bin"
_PIECE = 1 << 20


class Cutter:
    """Cuts states to what is looked at. ``most``: elements of a tensor; ``seed``: what their places follow from."""

    def __init__(self, most: int, seed: int) -> None:
        self.most, self._seed = most, seed
        self._places: dict[int, torch.Tensor | None] = {}

    @classmethod
    def of(cls, first: State, seed: int) -> Cutter:
        """With as many coordinates of each tensor as the weights of the first state leave to each."""
        count = sum(is_weight(name) for name in first.tensors)
        return cls(max(FEWEST, min(MOST, COORDINATES // max(1, count))), seed)

    def cut(self, state: State) -> State:
        """The tree as it is, and of each tensor its elements at the coordinates, flattened."""
        found = {}
        for name, tensor in state.tensors.items():
            flat, elements = tensor.reshape(-1), tensor.numel()
            if elements not in self._places:
                self._places[elements] = coordinates(self._seed, elements, self.most)
            places = self._places[elements]
            found[name] = flat.clone() if places is None else flat[places]
        return State(state.tree, found)


def shapes(state: State) -> dict[str, list[int]]:
    """How a state lays out its tensors."""
    return {name: list(tensor.shape) for name, tensor in sorted(state.tensors.items())}


@dataclass(frozen=True)
class Answers:
    """Answers that fit their proof and the first challenge, and are signed. ``keys``: digests of who signed them."""

    folder: Path
    head: AnswersHead
    keys: list[str]
    first: First
    parts: frozenset[str]

    @property
    def digest(self) -> str:
        return self.head.digest()

    @property
    def seed(self) -> int:
        """What coordinates and samples follow from."""
        return survey_seed(self.head.root, self.first.looking)

    @property
    def cutter(self) -> Cutter:
        return Cutter(self.head.coordinates, self.seed)

    def layout(self, position: int) -> Mapping[str, list[int]]:
        return self.head.layouts[self.head.layout[position]]

    def states(self) -> Iterator[State]:
        """The cut states in their order. Raises FormatError for one that no state is cut to."""
        descriptor, at = files.open_regular(self.folder / STATES_FILE), 0
        try:
            for position, size in enumerate(self.head.sizes):
                what = f"{STATES_FILE}: the state at position {position}"
                state = RawCodec().decode(files.read_at(descriptor, size, at, what), None)
                at += size
                layout = self.layout(position)
                fits = set(state.tensors) == set(layout) and all(
                    list(tensor.shape) == [min(math.prod(layout[name]), self.head.coordinates)]
                    for name, tensor in state.tensors.items()
                )
                if not fits or (self.parts and set(state.parts()) != self.parts):
                    raise FormatError(f"{what} has other tensors or parts than it is said to have")
                yield state
        finally:
            os.close(descriptor)

    def outputs(self) -> Callable[[int], list[protocol.Head]]:
        """What the state at a position puts out on the samples; read from the file when it is asked for."""
        row = [head.rows * head.columns for head in self.head.heads]
        table = np.memmap(self.folder / OUTPUTS_FILE, dtype="<f4", mode="r", shape=(len(self.head.sizes), sum(row)))
        bounds = np.cumsum([0, *row])

        def at(position: int) -> list[protocol.Head]:
            return [
                protocol.Head(head.name, head.rows, table[position, bounds[i] : bounds[i + 1]].tobytes(), head.scores)
                for i, head in enumerate(self.head.heads)
            ]

        return at


def read(folder: Path, proof: Proof, first: First, whose: Owners | None = None) -> Answers:
    """Read answers to the challenge ``first`` about ``proof``, of which no state need be there. whose: they have to be, as a verifier
    believes; None: as the proof says, with no key revoked.

    Raises FormatError for what is malformed, IntegrityError for answers to something else, or signed by nobody who may.
    """
    head = documents.load(folder / ANSWERS_FILE, AnswersHead)
    count = len(proof.segments) + 1
    if head.root != proof.root or first.root != proof.root:
        raise IntegrityError("the answers, or the challenge, are about another proof: the roots differ")
    if first.claim != proof.header.randomness.claim:
        raise IntegrityError("the challenge names another claim than the proof was made under")
    if head.challenge != first.digest():
        raise IntegrityError("the answers were given to another challenge")
    keys = documents.signers(head, documents.envelope(folder, "answers"), whose or Owners.of(proof))

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise FormatError(f"{ANSWERS_FILE}: {message}")

    need(FEWEST <= head.coordinates <= MOST, f"{head.coordinates} coordinates; expected {FEWEST} to {MOST}")
    need(len(head.layout) == len(head.sizes) == count, f"it has {len(head.sizes)} states; the proof has {count}")
    need(1 <= len(head.layouts) <= MAX_LAYOUTS, f"it has more than {MAX_LAYOUTS} layouts, or none")
    need(all(0 <= number < len(head.layouts) for number in head.layout), "a state has a layout that is not there")
    need(len({canonical.encode_plain(layout) for layout in head.layouts}) == len(head.layouts), "a layout stands twice")
    for layout in head.layouts:
        for shape in layout.values():
            extent = math.prod(max(length, 1) for length in shape[:MAX_DIMENSIONS])
            need(
                len(shape) <= MAX_DIMENSIONS and min(shape, default=0) >= 0 and extent < 2**62, "a shape makes no sense"
            )
    wanted = max(FEWEST, min(MOST, COORDINATES // max(1, sum(map(is_weight, head.layouts[head.layout[0]])))))
    need(head.coordinates == wanted, f"{head.coordinates} coordinates of each tensor; of these {wanted} are looked at")
    need(all(0 < size <= MAX_CUT for size in head.sizes) and sum(head.sizes) <= MAX_CUTS, "a size is out of range")
    need(len(head.heads) <= MAX_HEADS, f"more than {MAX_HEADS} outputs")
    need(len({one.name for one in head.heads}) == len(head.heads), "an output stands twice")
    for one in head.heads:
        need(1 <= one.rows <= MAX_ROWS and 1 <= one.columns <= MAX_COLUMNS, "an output's size is out of range")
    need(head.segments is None or 0 <= head.segments < count, "its number of segments is out of range")
    entries = 4 * count * sum(one.rows * one.columns for one in head.heads)
    for name, size, digest in ((STATES_FILE, sum(head.sizes), head.states), (OUTPUTS_FILE, entries, head.outputs)):
        if file_digest(folder / name, size) != digest:
            raise IntegrityError(f"{name} is not the file that {ANSWERS_FILE} names")
    return Answers(folder, head, keys, first, frozenset(proof.header.parts))


def file_digest(path: Path, size: int) -> str:
    """The digest of a file that has exactly ``size`` bytes. Raises FormatError for one that has not."""
    descriptor = files.open_regular(path)
    with os.fdopen(descriptor, "rb") as stream, files.reading(path.name):
        if os.fstat(descriptor).st_size != size:
            raise FormatError(f"{path.name} does not have the {size:,} bytes that it has to have")
        hasher = hashlib.sha256()
        while piece := stream.read(_PIECE):
            hasher.update(piece)
    return f"sha256:{hasher.hexdigest()}"


def heads_of(given: list[protocol.Head]) -> list[Head]:
    """Outputs as ``answers.json`` describes them."""
    return [Head(one.name, one.rows, len(one.values) // (4 * one.rows), one.scores) for one in given]
