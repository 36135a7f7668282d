"""What calibrated verification costs over the exact one, on the same segments of the same proof.

The proof is recorded in an environment that this machine can reproduce (one thread, and ATen limited to AVX2, where AVX-512 is
there, else to its default code paths). Verifications alternate: exact, in that environment, and calibrated, as a machine without
it would have to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import benchmark, fashion, ratio, timed, walls

import proof_of_learning as pol
from proof_of_learning import TaskReference

INTERVAL = 5
NONCE = "5eed"


def prove(task: TaskReference, path: Path) -> None:
    """Record in a process of its own, for ATen reads its capability when it starts."""
    code = (
        "import json, sys, proof_of_learning as pol\n"
        "target, settings, path, k = json.loads(sys.argv[1])\n"
        "pol.prove(pol.TaskReference(target, settings), path, interval=k, threads=1)\n"
    )
    arguments = json.dumps([task.target, dict(task.settings), str(path), INTERVAL])
    older = "avx2" if "512" in torch.backends.cpu.get_cpu_capability() else "default"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": older, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, arguments], env=environment, check=True)


def main() -> None:
    with benchmark(__doc__) as run, tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        task, path, verdicts = fashion(steps=run.size.of(300, 60, 10)), Path(scratch) / "proof", {}
        prove(task, path)

        def verify(calibrated: bool) -> None:
            verdicts[calibrated] = pol.verify(
                path, task, nonce=NONCE, accept_nonce=True, random=run.size.of(60, 20, 1), sandbox="off",
                reproduce=not calibrated, allow_calibrated=calibrated,
            )  # fmt: skip

        exact, calibrated = [], []
        for _ in range(run.size.of(6, 2, 1)):
            exact.append(timed(lambda: verify(False)))
            calibrated.append(timed(lambda: verify(True)))
        assert verdicts[False].exactness == "exact" and verdicts[True].exactness == "calibrated", verdicts[True].reason
        assert [s.index for s in verdicts[False].segments] == [s.index for s in verdicts[True].segments]
        assert all(verdict.verdict == "valid" for verdict in verdicts.values()), verdicts[True].reason
        value, spread = ratio(calibrated, exact)
        run.add("calibrated verification over exact, whole command", value, "ratio", target=3.0, spread=spread)
        steps = [verdicts[mode].cost.phases["replayed steps"] for mode in (True, False)]
        run.add("calibrated verification over exact, replayed steps alone", steps[0] / steps[1], "ratio", target=3.0)
        run.add("exact verification", min(walls(exact)), "s")
        run.add("segments", len(verdicts[False].segments), "segments")


if __name__ == "__main__":
    main()
