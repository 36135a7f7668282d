"""Mutated proofs by the hundred thousand: ``python tools/fuzz.py -n 100000`` (``make fuzz N=100000``).

Small proofs of every codec, a thinned one, one of a foreign loop and one with predicted weights are damaged in bytes, in files and in
meaning (fields edited, with every hash that hangs on them made right again, so that the damage reaches deep code), and handed to
``pol.check``. What passes it under another root goes to ``pol.verify``, which replays everything. A finding is an error that is not
a PolError, a case that takes longer than ten seconds or 200 MB, a message of several lines, or a verdict ``valid``. Exit status:
0 without findings, 1 with. Every case follows from the seed and its number: ``--case NUMBER`` runs it alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zstandard
from mutations import DAMAGE, Files, Random, Seed, rows, seeds, task

import proof_of_learning as pol
from proof_of_learning.errors import PolError
from proof_of_learning.proof import format
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.codecs import get_codec

SECONDS, MEGABYTES = 10, 200


# ---- a case -----------------------------------------------------------------------------------------------


class Hang(BaseException):
    pass


@dataclass
class Tally:
    """What became of the cases, and what was found."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in self.outcomes.most_common())


@contextmanager
def bounded() -> Iterator[None]:
    """At most ``SECONDS`` for what is done inside."""

    def late(*signal_: object) -> None:
        raise Hang(f"more than {SECONDS} s")

    before, others = signal.signal(signal.SIGALRM, late), signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *others)  # a test's own limit, perhaps


def mutated(all_seeds: list[Seed], seed: int, number: int) -> tuple[Seed, Files, list[str]]:
    chance = Random(f"{seed}:{number}")
    origin = chance.choice(all_seeds)
    files, done = dict(origin.files), list[str]()
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        damage = chance.choices([kind for kind, _ in DAMAGE], [weight for _, weight in DAMAGE])[0]
        # What one damage left may be more than the next one can work with.
        with suppress(KeyError, ValueError, TypeError, IndexError, AttributeError, struct.error, zstandard.ZstdError, RecursionError,
                      PolError, RuntimeError):  # fmt: skip
            damage(files, chance)
            done.append(damage.__name__)
    return origin, files, done


def judged(origin: Seed, files: Files, folder: Path) -> str:
    """What becomes of a mutated proof; AssertionError for what must not."""
    with bounded():
        try:
            found = pol.check(folder)
        except PolError as error:
            return one_line(str(error), "refused")
    if found.status != "pass":
        return one_line(found.summary, "contradicts itself")
    if pol.Proof.open(folder).root == origin.root:
        return "the same proof"  # other bytes may store the same states
    with bounded():
        try:
            verdict = pol.verify(folder, task(origin.outputs), everything=True)
        except PolError as error:
            return one_line(str(error), "refused by verify")
    assert verdict.verdict != "valid" or harmless(origin.files, files), "valid"
    return f"verified: {verdict.verdict}"


def one_line(message: str, outcome: str) -> str:
    assert message and "\n" not in message and len(message) < 2000, f"not one line: {message[:300]!r}"
    return outcome


def harmless(before: Files, after: Files) -> bool:
    """Whether two proofs say the same about the training.

    What may differ: names for people, claims that were left out, the last digits of a displacement and all of one between states
    that were dropped, which of the exact codecs stored them, an environment in place of which another gives the same bits, and the
    states of generators that this task does not use.
    """

    def essence(files: Files) -> tuple[Any, list[Any]]:
        header, log = json.loads(files[format.HEADER_FILE]), rows(files[format.LOG_FILE])
        header["task"] = {"digest": header["task"]["digest"]}
        if get_codec(header["codec"]["name"]).exact:
            header["codec"]["name"] = "exact"
        held = {line["state"] for line in rows(files[format.INDEX_FILE])}
        blocks, at, states = [], 0, [log[0]["state"]]
        claims = [line.pop("evaluation", None) for line in log]
        for line in log:
            line.pop("prev")
            if line["kind"] == "environment":
                line["digest"] = line["environment"] = None
            if line["kind"] == "segment":
                line["environment"] = None
                moved, ends = line.pop("displacement"), {states[-1], line["state"]}
                states.append(line["state"])
                if ends <= held:
                    line["displacement"] = {name: f"{value:.4e}" for name, value in moved.items()}
                size = line.pop("block")["bytes"]
                columns = Columns.decode(bytearray(files[format.BLOCKS_FILE][at : at + size]), 2, "a block")
                at += size
                order = None if columns.indices is None else [row.tolist() for row in columns.indices]
                blocks.append((columns.loss.tolist(), columns.rates.tolist(), order))
        return (header, log, blocks), claims

    (said, claims), (says, claims_left) = essence(before), essence(after)
    return said == says and all(left is None or left == claim for claim, left in zip(claims, claims_left, strict=True))


def written(files: Files, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "objects").mkdir(parents=True)
    for name, raw in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


def run(all_seeds: list[Seed], folder: Path, seed: int, numbers: range, report: Callable[[int, Tally], None]) -> Tally:
    """Run the cases ``numbers``; ``report`` is called after each."""
    tally, peak = Tally(), 0
    for number in numbers:
        origin, files, done = mutated(all_seeds, seed, number)
        if files == origin.files:
            tally.outcomes["unchanged"] += 1
            continue
        written(files, folder)
        if number - numbers.start < 50:  # the first cases load what the later ones use
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            outcome = judged(origin, files, folder)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
            if grown > MEGABYTES and number - numbers.start >= 50:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                raise AssertionError(f"{grown:.0f} MB of memory")
        except (Exception, Hang) as error:
            outcome = "findings"
            where = traceback.extract_tb(error.__traceback__)[-1]
            tally.findings.append(
                f"case {number} ({origin.name}: {', '.join(done)}): {type(error).__name__}: {str(error)[:300]} "
                f"({Path(where.filename).name}:{where.lineno})"
            )
        tally.outcomes[outcome] += 1
        report(number, tally)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=100_000, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run this case alone, and keep its proof in ./fuzz-case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as temporary:
        all_seeds = seeds(Path(temporary) / "seeds")
        first = options.first if options.case is None else options.case
        count = options.n if options.case is None else 1
        begun, shown, printed = time.monotonic(), 0.0, 0

        def report(number: int, tally: Tally) -> None:
            nonlocal shown, printed
            now, done = time.monotonic(), number - first + 1
            while printed < len(tally.findings):
                print(tally.findings[printed], flush=True)
                printed += 1
            if now - shown > 5 or done == count:
                shown = now
                left = (now - begun) / done * (count - done)
                print(
                    f"{done:,} of {count:,}, {done / (now - begun):.0f} cases/s, {left / 60:.0f} min left: {tally}",
                    flush=True,
                )

        folder = Path("fuzz-case") if options.case is not None else Path(temporary) / "case"
        tally = run(all_seeds, folder, options.seed, range(first, first + count), report)
    seconds = time.monotonic() - begun
    print(f"{count:,} cases in {seconds:,.0f} s, seed {options.seed}: {len(tally.findings)} findings; {tally}")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
