"""What a proof takes on disk and what reading and writing it costs, codec by codec.

Bytes of real recordings (Fashion-MNIST CNN, SGD with momentum and AdamW), beside what ``torch.save`` takes; encoding and decoding
per core; what one checkpoint out of many needs to be read; what thinning leaves; and opening the log of a long run.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from common import Benchmark, benchmark, fashion

import proof_of_learning as pol
from proof_of_learning import Proof, load_task
from proof_of_learning.numeric.environment import current
from proof_of_learning.proof import codecs, format
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.writer import ProofWriter
from proof_of_learning.state.state import State

TARGETS = {
    ("sgd", "lossless"): 6.0, ("sgd", "quantised"): 0.5, ("adamw", "quantised"): 0.9,
    ("sgd", "compact"): 0.25, ("adamw", "compact"): 0.4,
}  # fmt: skip
EPOCHS = 5  # as the example trains


def parameters(state: State) -> int:
    return sum(t.numel() for name, t in state.tensors.items() if name.startswith("model/parameters/"))


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)


def sizes(
    run: Benchmark, folder: Path, optimizer: str, steps: int, interval: int, names: Sequence[str] = codecs.NAMES
) -> dict[str, Path]:
    """Record once with every codec of ``names``; bytes a parameter and checkpoint, keyframes and whole ends included."""
    task = load_task(fashion(steps=steps))
    task = replace(task, reference=None, seed=run.seed)
    if optimizer == "adamw":
        task = replace(task, optimizer=adamw, scheduler=None)
    paths = {}
    for codec in names:
        path = folder / f"{optimizer}-{interval}-{codec}.pol"
        pol.prove(task, path, interval=interval, codec=codec)
        proof, paths[codec] = Proof.open(path), path
        count = parameters(proof.state(proof.segments[-1].state))
        stored = [proof.index[digest].bytes for digest in proof.state_digests()]
        run.add(
            f"{optimizer}, {codec}, k={interval}: bytes a parameter and checkpoint",
            sum(stored) / len(stored) / count,
            "B",
            target=TARGETS.get((optimizer, codec)),
        )
        bits = sum(
            segment.block.bytes for segment in proof.segments
        ) + (path / format.LOG_FILE).stat().st_size  # fmt: skip
        run.add(f"{optimizer}, {codec}, k={interval}: log and blocks", bits / len(proof.segments), "B a segment")
    state = proof.state(proof.segments[-1].state)
    saved = folder / "saved.pt"
    torch.save(dict(state.tensors.items()), saved)
    run.add(
        f"{optimizer}, torch.save, k={interval}: bytes a parameter and checkpoint", saved.stat().st_size / count, "B"
    )
    return paths


def speeds(run: Benchmark, path: Path, codec_name: str, repeats: int) -> None:
    """Encoding (with everything that goes into the object) and decoding of successive checkpoints, on one core, CPU time."""
    proof, codec = Proof.open(path), codecs.get_codec(codec_name)
    digests = proof.state_digests()[-3:-1]
    base, state = (proof.state(digest) for digest in digests)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoding, decoding = [], []
        for _ in range(repeats):
            begun = time.process_time()
            encoded = codec.encode(state, base)
            raw = bytearray().join(bytes(chunk) for chunk in encoded.chunks())
            encoding.append(state.nbytes / (time.process_time() - begun) / 1e6)
            begun = time.process_time()
            codec.decode(raw, base)
            decoding.append(state.nbytes / (time.process_time() - begun) / 1e6)
    finally:
        torch.set_num_threads(before)
    middle = lambda values: (float(np.quantile(values, 0.25)), float(np.quantile(values, 0.75)))  # noqa: E731
    run.add(f"{codec_name}: encoding", max(encoding), "MB/s", better="higher", target=200.0, spread=middle(encoding))
    run.add(f"{codec_name}: decoding", max(decoding), "MB/s", better="higher", spread=middle(decoding))


def one_checkpoint(run: Benchmark, path: Path, codec: str) -> None:
    """The most that must be read to open one checkpoint, in checkpoints of this proof and in raw ones."""
    proof = Proof.open(path)
    mean = sum(stored.bytes for stored in proof.index.values()) / len(proof.index)
    raw, worst = proof.state(proof.segments[-1].state).nbytes, 0
    for digest in proof.state_digests():
        total, at = 0, digest
        while True:
            total += proof.index[at].bytes
            if proof.index[at].base is None:
                break
            at = str(proof.index[at].base)
        worst = max(worst, total)
    run.add(
        f"{codec}: most to read for one checkpoint, in states as they are in memory", worst / raw, "states", target=8.0
    )
    run.add(f"{codec}: most to read for one checkpoint, in stored checkpoints", worst / mean, "checkpoints")


def thinned(run: Benchmark, folder: Path, segments: int) -> None:
    """A run with a checkpoint every step, thinned to its ends."""
    task = replace(load_task(fashion(steps=segments)), reference=None)
    path = folder / "long.pol"
    pol.prove(task, path, interval=1, keep_every=segments)
    proof = Proof.open(path)
    whole = proof.state(proof.segments[-1].state).nbytes * (segments + 1)
    total = sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    kept = len(proof.index)
    run.add(f"thinned to {kept} of {segments + 1:,} states: whole proof, how many times smaller", whole / total, "x",
            better="higher", target=1000.0)  # fmt: skip
    run.add("thinned: log and blocks", (total - kept * whole / (segments + 1)) / segments, "B a segment")


def long_log(run: Benchmark, folder: Path, steps: int, interval: int, target: float | None) -> None:
    path = folder / f"long-{interval}.pol"
    state = State({"d": [["s:model", {"d": [["s:parameters", {"d": [["s:w", {"t": "model/parameters/w"}]]}]]}]]},
                  {"model/parameters/w": torch.zeros(4)})  # fmt: skip
    short = load_task(fashion(steps=1))
    from proof_of_learning.data.commitment import DataCommitment
    from proof_of_learning.numeric import randomness
    from proof_of_learning.recording.header import make_header
    from proof_of_learning.training.steps import Session

    data = DataCommitment(root="sha256:" + "0" * 64, samples=60000, salted=False)
    header = make_header(short, Session(short, randomness.key_from_seed(0)), [0] * 60000, data_commitment=data)
    segments = -(-steps // interval)
    training = format.Training(steps, interval, 469)
    header = msgspec.structs.replace(header, training=training)
    environment, loss = current(), np.ones(interval)
    with ProofWriter.create(path, header, keep_every=1 << 40) as writer:
        writer.start(state)
        tensor = state.tensors["model/parameters/w"]
        for index in range(segments):
            moved = State(state.tree, {"model/parameters/w": tensor + index + 1})
            columns = Columns(loss, loss.reshape(-1, 1), None, None)
            writer.segment(arrived=moved.digest(), state=moved, displacement=format.Displacement(2.0, 2.0),
                           environment=environment, columns=columns)  # fmt: skip
        writer.seal()
    code = (
        "import resource, sys, time\nfrom proof_of_learning.proof.reader import Proof\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbegun = time.perf_counter()\n"
        "proof = Proof.open(sys.argv[1])\nprint(time.perf_counter() - begun)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    seconds, memory = (float(line) for line in out.stdout.split())
    label = f"a log of {steps:,} steps in {segments:,} segments"
    run.add(f"{label}: opening", seconds, "s", target=target)
    run.add(f"{label}: memory beyond PyTorch", memory, "MiB", target=None if target is None else 200.0)


def main() -> None:
    with benchmark(__doc__) as run, tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        folder, k = Path(scratch), run.size.of(10, 10, 2)
        paths = sizes(run, folder, "sgd", run.size.of(EPOCHS * 469, 160, 8), k)
        for codec in codecs.NAMES:
            speeds(run, paths[codec], codec, run.size.of(30, 5, 1))
            one_checkpoint(run, paths[codec], codec)
        for interval in run.size.of((1, 2, 5), (1, 2, 5), (1,)):  # what momenta predict depends on it
            sizes(run, folder, "sgd", run.size.of(64, 16, 2) * interval, interval, ("lossless",))
        sizes(run, folder, "adamw", run.size.of(640, 160, 8), k)
        thinned(run, folder, run.size.of(5000, 200, 4))
        long_log(run, folder, run.size.of(1_000_000, 1_000_000, 4000), 1000, 1.0)
        if run.size.full:
            long_log(run, folder, 1_000_000, 10, None)
        run.note(f"peak memory of this program {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
