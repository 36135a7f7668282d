"""What looking at the function costs: evaluating states on the verifier's samples, over training.

The digits example at k = 1, where there are most states. Both are CPU time: training is a loop of bare steps (a part of them, times
what is missing), the probe all that its requests take here and in the worker, with the states that it reads for a closer look. What
a coarser grid costs in draws is told beside it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from common import EXAMPLES, Benchmark, benchmark, cpu_seconds, process_tree, timed

import proof_of_learning as pol
from proof_of_learning import Proof, TaskReference, load_task
from proof_of_learning.numeric import environment, randomness
from proof_of_learning.replay.protocol import Describe
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.training.steps import Session, derived_feed
from proof_of_learning.verifier import guarantee
from proof_of_learning.verifier.function import look
from proof_of_learning.verifier.progress import importance

TARGETS = {5000: 0.02}  # by segments


def bare(target: TaskReference, steps: int) -> float:
    """CPU seconds of so many steps of training, without any record."""
    task = load_task(target)
    session = Session(task, randomness.key_from_seed(task.seed))
    feed, order = derived_feed(task, task.data(), session.key, "cpu")

    def train() -> None:
        for _ in session.run(steps, feed, order):
            pass

    with environment.restored(), randomness.preserved():
        return timed(train).cpu


def measure(run: Benchmark, folder: Path, steps: int, sampled: int, repeats: int) -> None:
    target = TaskReference(f"{EXAMPLES / 'digits.py'}:task", {"steps": steps})
    proof = Proof.open(pol.prove(target, folder / str(steps), interval=1).path)
    training, costs = [], []
    for number in range(repeats):
        training.append(bare(target, sampled) * steps / sampled)
        with Replayer(proof, target) as replayer:
            described = replayer.ask(Describe())
            digests = proof.state_digests()
            spent = 0.0

            def reading() -> float:
                return cpu_seconds(process_tree(os.getpid()))

            begun = reading()
            prober, why = look(proof, replayer, described, number, proof.state(digests[0]), proof.state(digests[-1]))
            assert prober is not None, why
            spent += reading() - begun
            grid = [(position, proof.state(digests[position])) for position in prober.grid]
            begun = reading()
            for position, state in grid:
                prober.add(position, state)
            function = prober.finish(lambda number: None)
            costs.append(spent + reading() - begun)
    weight = importance(function.measures(steps), steps)
    draws = guarantee.progress_draws_needed(weight, min(1.0, 1.0 / float(weight.sum())))
    run.add(
        f"function probe over training, {steps:,} segments", min(costs) / min(training), "ratio", target=TARGETS.get(steps),
        spread=(min(costs) / max(training), max(costs) / min(training)),
    )  # fmt: skip
    run.add(f"... states that were evaluated, {steps:,} segments", len(function.positions), "states")
    run.add(f"... draws that the function's progress takes, {steps:,} segments", draws, "segments")
    run.add(f"... a state, {steps:,} segments", min(costs) / len(function.positions) * 1e3, "ms CPU")
    run.add(f"bare step, {steps:,} segments", min(training) / steps * 1e3, "ms CPU")


def main() -> None:
    with benchmark(__doc__) as run, tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        for steps in run.size.of((600, 3000, 5000), (600, 1000), (12,)):
            measure(run, Path(scratch), steps, min(steps, run.size.of(1000, 300, 4)), run.size.of(3, 1, 1))


if __name__ == "__main__":
    main()
