"""Private replay: one training step by two parties who see neither weights nor data, and what that is worth.

    python experiments/private_replay.py [--quick | --tiny] [--data DIR] --json FILE [--output DIR]

An experiment, and no part of the product. A prover shares a state, a batch and the state that was recorded after it; two processes
take the step on shares (`private_party.py`, `secret_sharing.py`) and open one bit for each record: within the tolerance, or not.
Beside it, in the clear, the same step in PyTorch.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import HERE, Cell, Result, compute, parser, part_of, provenance, table, write, write_page
from secret_sharing import DEALER, real
from torch import Tensor, nn

from proof_of_learning.data.digits import digits

BATCH, RATE, MOMENTUM, RHO = 32, 0.1, 0.9, 0.01
WARM = 5  # plain steps before the one that is replayed, so that momenta are none of 0
PLAIN = 20  # times that the step is taken in the clear, for the clock
FALSE = 0.05  # of the displacement: how far the false record is from the true one
DELAY = 0.02  # seconds of a round, as an example
BITS = (16, 20, 24)
GATES = 22_573  # AND gates of SHA-256 for a block of 64 bytes (Bristol Fashion circuits)
MODELS = {
    "digits MLP": "64-32-10, as in the README",
    "MLP": "784-128-10",
    "CNN": "28 x 28: two convolutions of 8 and 16 channels, means of 2 x 2 between, one layer",
}


def network(model: str) -> list[Tensor]:
    """Parameters by seed, as the parties have them: matrices of (inputs, outputs), of a convolution (9 * channels, outputs)."""
    sizes = {
        "digits MLP": [(64, 32), (32, 10)],
        "MLP": [(784, 128), (128, 10)],
        "CNN": [(9, 8), (72, 16), (784, 10)],
        "tiny MLP": [(64, 4), (4, 3)],
        "tiny CNN": [(9, 2), (18, 2), (2 * 4, 3)],
    }[model]
    made = []
    for inputs, outputs in sizes:
        layer = nn.Linear(inputs, outputs)
        made += [layer.weight.detach().T.contiguous(), layer.bias.detach()]
    return made


def loss(kind: str, parameters: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    pairs = [parameters[n : n + 2] for n in range(0, len(parameters), 2)]
    for number, (weight, bias) in enumerate(pairs):
        last = number == len(pairs) - 1
        if kind == "mlp" or last:
            x = x.flatten(1) @ weight + bias
        else:
            kernel = weight.reshape(3, 3, x.shape[3], -1).permute(3, 2, 0, 1)
            x = nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel, bias, padding=1).permute(0, 2, 3, 1)
        if not last:
            x = torch.relu(x)
            if kind == "cnn":
                x = nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    return nn.functional.cross_entropy(x, y)


def plain_step(
    kind: str, parameters: list[Tensor], momenta: list[Tensor], x: Tensor, y: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """SGD with momentum, in the precision of what it is given."""
    leaves = [one.detach().clone().requires_grad_() for one in parameters]
    gradients = torch.autograd.grad(loss(kind, leaves, x, y), leaves)
    moved = [MOMENTUM * momentum + gradient for momentum, gradient in zip(momenta, gradients, strict=True)]
    return [one - RATE * step for one, step in zip(parameters, moved, strict=True)], moved


def images(model: str, data: str | None) -> tuple[Tensor, Tensor]:
    """Samples from 0 to 1, (samples, height, width, 1) or flat, with their classes."""
    if "28" in MODELS.get(model, "") or model == "MLP":
        file = Path(data or ".") / "fashion_mnist.npz"
        if data and file.is_file():
            with np.load(file) as found:
                x, y = torch.tensor(found["train_x"][:1024]) / 255.0, torch.tensor(found["train_y"][:1024]).long()
        else:
            x, y = torch.rand(1024, 28, 28), torch.randint(0, 10, (1024,))
        x = x.float()
    else:
        raw, labels = digits()
        x, y = torch.tensor(raw).float()[:1024] / 16, torch.tensor(labels)[:1024].long()
        if model.startswith("tiny"):
            y = y % 3
    return (x.flatten(1) if "MLP" in model else x.unsqueeze(3)), y


def measure(model: str, bits: int, seed: int, batch: int, data: str | None) -> Cell:
    """One step in private and in the clear."""
    torch.manual_seed(seed)
    kind = "mlp" if "MLP" in model else "cnn"
    parameters, (x, y) = network(model), images(model, data)
    momenta = [torch.zeros_like(one) for one in parameters]
    for number in range(WARM):
        some = slice(number * batch, (number + 1) * batch)
        parameters, momenta = plain_step(kind, parameters, momenta, x[some], y[some])
    some = slice(WARM * batch, (WARM + 1) * batch)
    begun = time.perf_counter()
    for _ in range(PLAIN):
        record, _ = plain_step(kind, parameters, momenta, x[some], y[some])
    seconds = (time.perf_counter() - begun) / PLAIN
    exact, _ = plain_step(
        kind, [p.double() for p in parameters], [m.double() for m in momenta], x[some].double(), y[some]
    )
    moved = float(torch.sqrt(sum((a - b).square().sum() for a, b in zip(exact, parameters, strict=True))))  # type: ignore[arg-type]
    noise = [torch.randn_like(one) for one in record]
    length = float(torch.sqrt(sum(one.square().sum() for one in noise)))  # type: ignore[arg-type]
    false = [one + FALSE * moved / length * other for one, other in zip(record, noise, strict=True)]
    secrets: dict[str, np.ndarray[Any, Any]] = {
        "x": x[some].numpy(), "y": nn.functional.one_hot(y[some], parameters[-1].numel()).numpy(),
        **{f"weight{n}": one.numpy() for n, one in enumerate(parameters)},
        **{f"momentum{n}": one.numpy() for n, one in enumerate(momenta)},
        **{f"record{r}.{n}": one.numpy() for r, of in enumerate((record, false, false)) for n, one in enumerate(of)},
    }  # fmt: skip
    told = {
        "kind": kind, "bits": bits, "batch": batch, "rate": RATE, "momentum": MOMENTUM, "rho": RHO, "records": 3, "cheats": 2,
        "seed": seed,
        "parameters": len(parameters), "shapes": {name: list(value.shape) for name, value in secrets.items()},
    }  # fmt: skip
    done, after = played(told, secrets)
    errors = [float(np.square(a - b.numpy()).sum()) for a, b in zip(after, exact, strict=True)]
    error = float(np.sqrt(sum(errors))) / moved
    numbers = sum(one.numel() for one in parameters)
    return {
        "model": model, "bits": bits, "parameters": numbers, "plain_seconds": seconds, "distance": error,
        "seconds": max(one["online"][0] for one in done[:2]), "cpu": sum(one["online"][1] for one in done[:2]),
        "offline_seconds": done[DEALER]["offline"][0], "dealt": done[DEALER]["dealt"], "rounds": done[0]["rounds"],
        "sent": done[0]["sent"] + done[1]["sent"], "true": done[0]["answers"][0], "false": done[0]["answers"][1],
        "cheated": done[1]["answers"][2],
        "hash_gates": -(-8 * numbers // 64) * 2 * GATES,  # weights and momenta before and after
        "shown": f"{max(one['online'][0] for one in done[:2]):.2f} s, error {error:.1e}, {done[0]['answers']}",
    }  # fmt: skip


def played(told: Mapping[str, Any], secrets: Mapping[str, Any]) -> tuple[list[Cell], list[np.ndarray[Any, Any]]]:
    """The protocol, by three processes; what they say, and the weights that the two shares add up to."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "told.json").write_text(json.dumps(told))
        np.savez(folder / "secrets.npz", **secrets)
        between, *dealing = (socket.socketpair() for _ in range(3))
        ends = [(between[0], dealing[0][0]), (between[1], dealing[1][0]), (dealing[0][1], dealing[1][1])]
        running = []
        for role, sockets in enumerate(ends):
            numbers = [one.fileno() for one in sockets]
            command = [sys.executable, str(HERE / "private_party.py"), str(role), scratch, *map(str, numbers)]
            running.append(subprocess.Popen(command, pass_fds=numbers))
        for pair in ends:
            for one in pair:
                one.close()
        for process in running:
            if process.wait():
                raise RuntimeError(f"a party ended with status {process.returncode}")
        done = [json.loads((folder / f"done{role}.json").read_text()) for role in range(3)]
        held = [np.load(folder / f"shares{role}.npz", allow_pickle=False) for role in range(2)]
        after = [real(held[0][name] + held[1][name], told["bits"]) for name in held[0].files]
    return done, after


def main() -> None:
    made = parser(__doc__, "one model, one precision")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--output", type=Path, help="folder for the page (default: none is written)")
    options = made.parse_args()
    torch.set_num_threads(1)
    models = options.size.of(tuple(MODELS), ("digits MLP",), ("tiny MLP", "tiny CNN"))
    precisions = options.size.of(BITS, (20,), (20,))
    batch = options.size.of(BATCH, BATCH, 4)
    todo: dict[str, Callable[[], Cell]] = {
        f"{model}/{bits} bits": partial(measure, model, bits, options.seed, batch, options.data)
        for model in models
        for bits in precisions
    }
    real_data = bool(options.data) and (Path(options.data or ".") / "fashion_mnist.npz").is_file()
    label = {"size": options.size.name, "seed": options.seed, "real_data": real_data}
    done = compute(todo, part_of(options.json), label, finished=options.finished)
    write(options.json, results(done), size=options.size, seed=options.seed, real_data=real_data, cells=done)
    if options.output is not None:
        write_page(options.output / "private-replay.md", page(done, options.seed, real_data))


def results(done: Mapping[str, Cell]) -> list[Result]:
    found = []
    for name, cell in done.items():
        told = float(cell["true"] - cell["false"])
        found += [
            Result(f"{name}: a step, online", cell["seconds"], "s", "lower"),
            Result(f"{name}: sent by both parties", cell["sent"], "B", "lower"),
            Result(f"{name}: error of the update", cell["distance"], "", "lower"),
            Result(f"{name}: the true record fits, and the false one does not", told, "", "higher", 1.0),
        ]
    return found


HEAD = (
    "model", "parameters", "bits", "online", "CPU, both", "times a plain step", "sent", "rounds", "from the dealer",
    "error of the update", "true / false / false and cheated: fits",
)  # fmt: skip


def page(done: Mapping[str, Cell], seed: int, real_data: bool) -> str:
    rows = [
        (
            c["model"], f"{c['parameters']:,}", c["bits"], f"{c['seconds']:.2f} s", f"{c['cpu']:.2f} s",
            f"{c['seconds'] / c['plain_seconds']:,.0f}", f"{c['sent'] / 1e6:.1f} MB", f"{c['rounds']:,}",
            f"{c['dealt'] / 1e6:.0f} MB", f"{c['distance']:.1e}",
            " / ".join("yes" if c[name] else "no" for name in ("true", "false", "cheated")),
        )
        for c in done.values()
    ]  # fmt: skip
    first = next(iter(done.values()))
    return f"""# Private replay

From `python experiments/private_replay.py --data DIR --json FILE --output DIR`, seed {seed}; {provenance()}.
The numbers are in [data/private-replay.json](data/private-replay.json).

The original paper suggests, in a sentence, that prover and verifier could replay a step by multi-party computation, so that nothing of
model and data is disclosed. This page is what that comes to, tried as an experiment; it is no part of `pol`.

One step of SGD with momentum, batch {BATCH}, after {WARM} plain ones. {_models(real_data)}
Two processes on one machine, joined by a socket, hold additive shares modulo 2^64 of weights, momenta, batch, labels, and the recorded
weights after the step; a third one, the dealer, sends correlated randomness ahead. They take the step (matrix products by Beaver
triples, ReLU by comparing bits, softmax by squaring and Newton's method), compare with the record at {RHO:.0%} of its displacement,
and open one bit. "False" is a record that lies {FALSE:.0%} of the displacement beside the true one; "cheated" is the same, and the
prover adds 1 to their share of the answer before it is opened. "Bits" are those of the fraction. "Error" is the distance of
the result from the exact one (float64), over the update.

{table(HEAD, rows)}
Times are of a busy machine, and of a socket without delay: each round also costs the way there and back (at {DELAY:.2f} s,
{max(c["rounds"] for c in done.values()) * DELAY:.0f} s for the longest of these), and the bytes their bandwidth. Without
a dealer the parties make their triples themselves, which takes most of the time then: another library (SPU 0.9.5, parties as
threads, batch 32) took 1.7 to 2.0 s for the MLP and 19 to 35 s for a CNN of two convolutions, with errors of 4e-3 to 1e-4.

## What the parties learn

Each sees masked values, which are uniform whatever the secrets are, and the opened bit. What leaks by design: architecture and shapes,
batch size, rates and momentum (public here), the number of steps and of records, the tolerance, and the answers. The dealer sees
shapes alone, and must not talk to either party: with one of them it knows everything. (NumPy's generators stand in for ciphers here,
and the measurement joins the shares at the end, to know the error.)

## What it is worth

- *Semi-honest is the wrong assumption.* Whoever forges a proof deviates. A party who adds a number to what it sends moves the result
  by it, unseen, and the opened bit with it: the last column. Protocols that notice (message authentication codes on all shares,
  checked triples) cost several times as much.
- *Inputs are not bound to the root.* The prover can feed in any state and any record. To bind them, SHA-256 has to be computed on
  shares: for the states before and after one step of the {first["model"]}, some {first["hash_gates"] / 1e6:.0f} million AND gates
  ({GATES:,} for 64 bytes), one block after the other along each hash. None of it is in the table.
- *No bits are equal.* The result is off by the error above, and with other randomness by another, so that a record is judged with a
  tolerance, and a nudge below it passes, at every step.
- *A step is no proof.* A default verification replays hundreds of steps, and looks at all states to draw them
  ([selection](selection.md)); data digests and the start's law come on top. Each would be a computation of its own.
- *What it hides is not what is asked for.* To third parties the answer is worth the word of both, and nobody can repeat it.

So `pol` lets owners keep states and data and [open what was drawn](../guide/opening.md): after the root and after their answers, by
two random values of the verifier's, bit for bit, at the cost of a replay; and it says before what that discloses. Single steps
(k = 1) and a budget make it less. Who may disclose nothing at all has no proof of learning, today, that an opponent should believe.
"""


def _models(real_data: bool) -> str:
    told = "; ".join(f"{name}: {what}" for name, what in MODELS.items())
    return f"{told} (the larger two on {'images of Fashion-MNIST' if real_data else 'random images'})."


if __name__ == "__main__":
    main()
