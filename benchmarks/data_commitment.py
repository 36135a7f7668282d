"""How long it takes to commit to 60,000 Fashion-MNIST images with their labels; beside it, one SHA-256 over the same bytes."""

from __future__ import annotations

import hashlib

from common import Cost, alternate, benchmark, fashion, middle_half, ratio, timed, walls

from proof_of_learning import load_task
from proof_of_learning.data.commit import commit
from proof_of_learning.state.state import tensor_bytes

TARGET = 3.0  # seconds


def main() -> None:
    with benchmark(__doc__) as run:
        task = load_task(fashion())
        read = [timed(task.data).wall for _ in range(3)]
        data = task.data()

        def floor() -> None:
            hasher = hashlib.sha256()
            for column in data.tensors:  # type: ignore[attr-defined]
                hasher.update(tensor_bytes(column))

        modes = {"commit": lambda: timed(lambda: commit(data)), "floor": lambda: timed(floor)}
        costs: dict[str, list[Cost]] = alternate(modes, run.size.of(20, 5, 1))
        seconds = walls(costs["commit"])
        run.add(f"commitment to {len(data):,} images", min(seconds), "s", target=TARGET, spread=middle_half(seconds))
        run.add("commitment, CPU time", min(cost.cpu for cost in costs["commit"]), "s")
        run.add("one SHA-256 over the same bytes", min(walls(costs["floor"])), "s")
        value, spread = ratio(costs["commit"], costs["floor"])
        run.add("commitment over one SHA-256", value, "ratio", spread=spread)
        run.add("reading the file", min(read), "s", spread=middle_half(read))
        run.note("the original implementation needs over two minutes for 60,000 images, each time (quoted, not rerun)")


if __name__ == "__main__":
    main()
