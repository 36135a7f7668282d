"""Challenge and open: salting 60,000 samples; what an opening discloses, by the length of segments; what reading one costs beside its
replay, and what it costs to look at answers.

The proof is of the first steps of the Fashion-MNIST example. Disclosure is computed for its whole epochs, without training.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from common import alternate, benchmark, fashion, middle_half, timed, walls

import proof_of_learning as pol
from proof_of_learning import load_task
from proof_of_learning.attestation import signatures
from proof_of_learning.data import salts
from proof_of_learning.data.commit import leaves, merkle_root
from proof_of_learning.disputes import answering, challenging, documents, opening, verifying
from proof_of_learning.numeric.randomness import key_from_seed
from proof_of_learning.training.batches import DerivedOrder
from proof_of_learning.verifier.options import Options

LEAVES, READING = 1.0, 0.5  # seconds, targets
DRAWN = (44, 100)
BATCH = 128
OPTIONS = Options.of({"sandbox": "off"})


def main() -> None:
    with benchmark(__doc__) as run, tempfile.TemporaryDirectory() as scratch:
        folder, steps = Path(scratch), run.size.of(600, 120, 24)
        reference = fashion()
        task = load_task(reference)
        data = task.data()
        count = len(data)

        def salted() -> None:
            own = salts.Secret(bytes(32), bytes(16)).salts(count)
            merkle_root(leaves(data, salts=own))

        costs = alternate({"salted": lambda: timed(salted)}, run.size.of(20, 5, 1))["salted"]
        run.add(
            f"{count:,} salted leaves and their root",
            min(walls(costs)),
            "s",
            target=LEAVES,
            spread=middle_half(walls(costs)),
        )
        run.add("the same, CPU time", min(cost.cpu for cost in costs), "s")
        chance = np.random.default_rng(run.seed)
        for interval in (20, 5, 1):
            for drawn in DRAWN:
                order, per_epoch = DerivedOrder(task, count, key_from_seed(0)), count // BATCH
                total = 10 * per_epoch // interval
                chosen = chance.permutation(total)[: min(drawn, total)]
                used = [order.indices(s) for i in sorted(chosen) for s in range(i * interval, (i + 1) * interval)]
                share = len(np.unique(np.concatenate(used))) / count
                run.add(f"samples opened by {drawn} segments of {interval} steps", share, "share")
        signatures.generate(folder / "key.pem")
        key = signatures.load_private(folder / "key.pem")
        salts.generate(folder / "data.salt")
        shorter = pol.TaskReference(reference.target, {**reference.settings, "steps": steps})
        made = pol.prove(shorter, folder / "run.pol", interval=1, salt=folder / "data.salt", rehearse=False)
        answering.manifest(made.path, folder / "manifest")
        first = challenging.challenge_first(folder / "manifest")
        told = timed(lambda: answering.answer(made.path, first, shorter, key, folder / "answers"))
        run.add(f"answering for {steps + 1} states", told.wall, "s")
        size = sum(file.stat().st_size for file in (folder / "answers").iterdir())
        run.add("answers, of a state", size / (steps + 1), "B")
        second, _ = challenging.challenge_second(
            folder / "manifest", first, folder / "answers", shorter, options=OPTIONS
        )
        documents.write_new(folder / "second.json", second)
        prepared = opening.prepare(made.path, first, folder / "answers", second, shorter, options=OPTIONS)
        opening.open_(prepared, shorter, key, folder / "opening", salt=folder / "data.salt")
        run.add("samples opened", prepared.disclosure.samples / count, "share")
        run.add("states opened", prepared.disclosure.states / prepared.disclosure.of_states, "share")
        blocks = run.size.of(10, 5, 1)
        read = [timed(lambda: verifying.read(folder / "opening", second, OPTIONS)) for _ in range(blocks)]
        run.add(
            "reading an opening: structure, signatures, samples and their multiproof", min(walls(read)), "s",
            target=READING, spread=middle_half(walls(read)),
        )  # fmt: skip
        terms = verifying.Terms(folder / "second.json", made_root(Path(made.path)))
        verdict = verifying.verify_opening(folder / "opening", shorter, OPTIONS, terms)
        for phase in ("survey", "opening", "trajectory"):
            run.add(f"verifying it, phase {phase}", verdict.cost.phases[phase], "s")
        run.note(f"the verdict: {verdict.verdict}, {verdict.reason}")


def made_root(path: Path) -> str:
    """The data root of a proof."""
    return pol.Proof.open(path).header.data.root


if __name__ == "__main__":
    main()
