"""Recording and verifying together, over training alone: a Fashion-MNIST run of thousands of segments, with both guarantees.

Blocks of plain training alternate with recorded training until the recorded run is complete; then the proof is verified as
anyone would, task and data in a process of their own, and once more with the random draws alone. What a segment costs beside
its steps is nearly the same for segments of any length, so ``--interval`` decides: 2 steps a segment are 10,000 steps in all,
20 are 100,000 (two hours). The directed draws of an epoch cost more the longer segments are.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from common import benchmark, fashion
from plain import Loop, deterministic

import proof_of_learning as pol
from proof_of_learning import Recorder, load_task
from proof_of_learning.numeric import environment, randomness
from proof_of_learning.recording.header import make_header
from proof_of_learning.training.steps import Session, derived_feed

SEGMENTS, CODEC = 5000, "quantised"
QUICK, TINY = 100, 3


def main() -> None:
    with benchmark(__doc__, interval=20) as run, tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        segments = run.size.of(SEGMENTS, QUICK, TINY)
        interval = run.size.of(run.numbers["interval"], run.numbers["interval"], 2)
        steps, path = segments * interval, Path(scratch) / "proof"
        target = fashion(steps=steps)
        task = load_task(target)
        data = task.data()
        plain_steps = plain = recorded = 0.0
        with environment.recording("cpu") as here:
            deterministic()
            loop = Loop(task)
            session = Session(task, randomness.key_from_seed(task.seed))
            header = make_header(task, session, data, interval=interval, codec=CODEC)
            feed, order = derived_feed(task, data, session.key, "cpu")
            with Recorder(path, header, session.parts, here) as recorder:
                while session.progress.step < steps:
                    count = min(100, steps - session.progress.step)
                    begun = time.perf_counter()
                    for result in session.run(session.progress.step + count, feed, order):
                        recorder.step(result.loss, result.rates)
                    recorded += time.perf_counter() - begun
                    if (
                        session.progress.step % 1000 == 0 or not run.size.full
                    ):  # a tenth is enough to know what a step costs
                        begun = time.perf_counter()
                        loop.run(count)
                        plain, plain_steps = plain + time.perf_counter() - begun, plain_steps + count
                        done = session.progress.step
                        ratio = recorded / done / (plain / plain_steps)
                        print(
                            f"{done:,} of {steps:,} steps; recording so far: {ratio:.3f}", file=sys.stderr, flush=True
                        )
                begun = time.perf_counter()
                recorder.close(session.evaluate())
                recorded += time.perf_counter() - begun
        training = plain / plain_steps * steps
        name = f"{segments:,} segments of {interval}, {CODEC}"
        run.add(f"{name}: training alone", training, "s")
        run.add(f"{name}: recording over training", recorded / training, "ratio")
        # The guarantees are those of the random draws; the directed ones, up to four an epoch, come on top.
        for draws, top_q in (("", 1), (" with random draws alone", 0)):
            begun = time.perf_counter()
            verdict = pol.verify(path, target, top_q=top_q)
            verified = time.perf_counter() - begun
            assert verdict.verdict == "valid", verdict.reason
            both = f"{name}: recording and verifying{draws} over training"
            run.add(both, (recorded + verified) / training, "ratio", target=1.10)
            run.add(f"{name}: verifying{draws} over training", verified / training, "ratio")
            run.add(f"{name}: replayed steps{draws} over all", verdict.cost.share, "ratio", target=0.07)
            for phase, seconds in verdict.cost.phases.items():
                run.add(f"{name}: verifying{draws}, {phase}", seconds, "s")
        size = sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
        run.add(f"{name}: size of the proof", size / 2**20, "MiB")


if __name__ == "__main__":
    main()
