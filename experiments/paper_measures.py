"""What ``paper.py`` measures: tracked runs, replays elsewhere, inverted steps, rounded checkpoints, challenges."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from cells import ENVIRONMENTS, Cell
from scipy import stats
from torch import Tensor, nn

from proof_of_learning import Proof, Task, TaskReference, load_task
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.replay.measure import METRICS, Distance, compare, ratio, weights
from proof_of_learning.state.names import WEIGHTS
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session, derived_feed
from proof_of_learning.verifier.initialization.judge import judge_initialization
from proof_of_learning.verifier.options import Draw
from proof_of_learning.verifier.plan import challenge, make_nonce
from proof_of_learning.verifier.progress import MAIN, Measure
from proof_of_learning.verifier.survey import Survey

Report = Callable[[int, int], None]
MEMORY = 5  # steps that the root finder looks back


def flat(parameters: Mapping[str, Tensor] | Sequence[Tensor]) -> Tensor:
    """All weights in one vector."""
    tensors = list(parameters.values()) if isinstance(parameters, Mapping) else list(parameters)
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def current(session: Session) -> Tensor:
    """A session's weights in the order in which states have them, which is not the model's own."""
    return flat(weights(session.capture(live=True))).to(session.device)


def distance(a: Tensor, b: Tensor) -> Distance:
    """The four metrics between two vectors of weights."""
    return compare(*(State({}, {f"{WEIGHTS}/all": v.cpu()}) for v in (a, b))).kinds[WEIGHTS]


def plain(found: Distance) -> dict[str, float]:
    return {name: getattr(found, name) for name in METRICS}


# ---- runs -------------------------------------------------------------------------------------------


def tracked_run(task: Task, seed: int, target: Tensor, device: str, report: Report) -> tuple[Tensor, Cell]:
    """An honest run from another seed: its final weights, and after each step how far it went and how far ``target`` is (l2)."""
    session = Session(replace(task, seed=seed), randomness.key_from_seed(seed), device)
    feed, order = derived_feed(session.task, task.data(), session.key, device)
    before, target = current(session), target.to(device)
    updates, distances = [], [(before - target).norm()]
    steps = session.task.steps or 0
    for result in session.run(steps, feed, order):
        here = current(session)
        updates.append((here - before).norm())
        distances.append((here - target).norm())
        before = here
        report(result.step + 1, steps)
    found = {"updates": torch.stack(updates).tolist(), "distances": torch.stack(distances).tolist()}
    return before.cpu(), {**found, "evaluation": session.evaluate()}


# ---- replays ----------------------------------------------------------------------------------------


def variants(here: Environment, names: Sequence[str]) -> dict[str, Environment]:
    """The environments to replay in: this one, and on a CPU those of ``names``, else one with other algorithms."""
    found = {"the same": here}
    if here.device.type == "cuda":
        return {**found, "algorithms not deterministic": environments.another(here)}
    for name in names:
        variables = dict(ENVIRONMENTS[name])
        threads = int(variables.pop("OMP_NUM_THREADS"))
        if (threads, variables) != (here.threads, {}):
            found[name] = msgspec.structs.replace(here, threads=threads, variables={**here.variables, **variables})
    return found


class Replays:
    """Replays of a proof in processes of their own, one for each numeric environment."""

    def __init__(self, task: TaskReference, proof: Path, opened: ExitStack) -> None:
        self._task, self._proof, self._opened = task, proof, opened
        self._processes: dict[str, ProcessPoolExecutor] = {}

    def arrived(self, index: int, k: int, environment: Environment) -> tuple[State, float]:
        """Where the first ``k`` steps of a segment lead from its recorded start, and the seconds that the steps took."""
        variables = environments.process_variables(environment)
        process = self._processes.get(environment.digest())
        if process is None:
            process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            self._processes[environment.digest()] = self._opened.enter_context(process)
        before = dict(os.environ)
        try:
            os.environ.clear()
            os.environ.update(variables)  # which PyTorch reads when the process starts, with the first replay
            tree, arrays, seconds = process.submit(_replay, self._task, self._proof, index, k, environment).result()
        finally:
            os.environ.clear()
            os.environ.update(before)
        return State(tree, {name: torch.from_numpy(values) for name, values in arrays.items()}), seconds


def _replay(
    reference: TaskReference, path: Path, index: int, k: int, environment: Environment
) -> tuple[dict[str, Any], dict[str, np.ndarray], float]:
    environments.apply(environment, lasting=True)
    proof = Proof.open(path)
    state, seconds = steps_from(
        load_task(reference), proof, proof.state(proof.state_digests()[index]), index, [k], environment.device.type
    )
    return state[0].tree, {name: tensor.numpy() for name, tensor in state[0].tensors.items()}, seconds


def steps_from(
    task: Task, proof: Proof, state: State, index: int, ks: Sequence[int], device: str
) -> tuple[list[State], float]:
    """The states after each of ``ks`` (ascending) steps of a segment from the start ``state``, and the seconds of all steps."""
    session = Session(task, bytes.fromhex(proof.header.randomness.key), device)
    session.restore(state)
    feed, order = derived_feed(task, task.data(), session.key, device)
    captured, begun = [], time.perf_counter()
    for k in ks:
        for _ in session.run(proof.segments[index].start + k, feed, order):
            pass
        captured.append(session.capture())
    return captured, time.perf_counter() - begun


def replay_noise(
    replays: Replays, start: State, index: int, k: int, here: Environment, elsewhere: Mapping[str, Environment]
) -> Cell:
    """The first ``k`` steps of a segment, replayed in the recorded environment and in others: distances of the weights, and
    over the segment's displacement that of the full state."""
    reference, seconds = replays.arrived(index, k, here)
    moved = compare(start, reference).overall
    found: Cell = {"step_seconds": seconds / k}
    for name, environment in elsewhere.items():
        error = compare(replays.arrived(index, k, environment)[0], reference)
        found[name] = {"weights": plain(error.kinds[WEIGHTS]), "relative": error.overall.over(moved).l2}
    return found


def rounded_starts(task: Task, proof: Proof, index: int, ks: Sequence[int], device: str) -> Cell:
    """Replays of a segment from weights rounded to float16 against those from float32, after each of ``ks`` steps."""

    before = proof.state(proof.state_digests()[index])
    lossy = {name: t.half().to(t.dtype) if name.startswith(f"{WEIGHTS}/") else t for name, t in before.tensors.items()}
    found: Cell = {"rounding": plain(compare(before, State(before.tree, lossy)).kinds[WEIGHTS])}
    full_, half_ = (
        steps_from(task, proof, state, index, ks, device)[0] for state in (before, State(before.tree, lossy))
    )
    for k, full, half in zip(ks, full_, half_, strict=True):
        error, moved = compare(half, full), compare(before, full).overall
        found[str(k)] = {"weights": plain(error.kinds[WEIGHTS]), "relative": error.overall.over(moved).l2}
    return found


# ---- inverse gradient -------------------------------------------------------------------------------


class Steps:
    """Plain gradient steps of a task's model on batches of its data, as a function of the weights."""

    def __init__(self, task: Task, seed: int, device: str) -> None:
        randomness.seed_everything(randomness.derive(randomness.key_from_seed(seed), randomness.INITIALIZATION))
        self.model: nn.Module = task.model().to(device).train()
        self.parameters = list(self.model.parameters())
        assert task.loss is not None
        self.loss, self.data, self.device = task.loss, task.data(), device
        self.batch_size, self.evaluations = task.batch_size, 0
        self.draw = torch.Generator().manual_seed(seed)

    def batch(self) -> list[Tensor]:
        pixels, labels = self.data.tensors  # type: ignore[attr-defined]
        chosen = torch.randint(len(labels), (self.batch_size,), generator=self.draw)
        return [pixels[chosen].to(self.device), labels[chosen].to(self.device)]

    def gradient(self, at: Tensor, batch: list[Tensor]) -> Tensor:
        self.put(at)
        self.evaluations += 1
        return flat(torch.autograd.grad(self.loss(self.model, batch), self.parameters))

    @torch.no_grad()
    def put(self, at: Tensor) -> None:
        for p, values in zip(self.parameters, at.split([p.numel() for p in self.parameters]), strict=True):
            p.copy_(values.view_as(p))


def inverted_step(steps: Steps, end: Tensor, rate: float, budget: int) -> tuple[Tensor, Tensor]:
    """The start V of a plain gradient step that ends in ``end``, so that V = end + rate ∇L(V), and the error of its replay.

    Fixed-point iteration with Anderson's acceleration (1965; Walker and Ni, 2011), which finds it where the plain iteration
    diverges. At most ``budget`` gradients are computed; the best start is returned.
    """
    batch = steps.batch()
    xs: list[Tensor] = []
    fs: list[Tensor] = []
    x, best, least = end, end, math.inf
    error = torch.zeros_like(end)
    for _ in range(budget):
        f = end + rate * steps.gradient(x, batch) - x
        size = float(f.norm())
        if size < least:
            best, least, error = x, size, -f  # where a step from x arrives, less ``end``
            if size <= 1e-6 * float((x - end).norm()):
                break
        if not math.isfinite(size):
            x, xs, fs = best, [], []  # start again from the best, without memory
            continue
        xs, fs = [*xs, x][-MEMORY - 1 :], [*fs, f][-MEMORY - 1 :]
        x = x + f
        if len(fs) > 1:
            df = torch.stack([b - a for a, b in pairwise(fs)], 1).double()
            dx = torch.stack([b - a for a, b in pairwise(xs)], 1).double()
            normal = df.T @ df
            ridge = (
                1e-12 * float(normal.diagonal().max()) * torch.eye(len(normal), dtype=torch.float64, device=x.device)
            )
            x = x - ((dx + df) @ torch.linalg.solve(normal + ridge, df.T @ f.double())).to(x.dtype)
    return best, error


def inverse_gradient(task: Task, seed: int, rate: float, count: int, budget: int, device: str, report: Report) -> Cell:
    """Train ``count`` steps, then invert as many: reproduction errors of the spoof at k = 1, and p-values of its initial weights."""
    steps = Steps(task, seed, device)
    start = weights_now = flat(steps.parameters)
    for done in range(count):
        weights_now = weights_now - rate * steps.gradient(weights_now, steps.batch())
        report(done + 1, 2 * count)
    honest = float((weights_now - start).norm())
    trained, steps.evaluations = weights_now, 0
    errors, relative = [], []
    for done in range(count):
        before, error = inverted_step(steps, weights_now, rate, budget)
        errors.append(plain(distance(weights_now + error, weights_now)))
        relative.append(ratio(float(error.norm()), float((before - weights_now).norm())))
        weights_now = before
        report(count + done + 1, 2 * count)
    return {
        "errors": errors, "relative": relative, "gradients": steps.evaluations / count, "moved": honest,
        "back": float((weights_now - trained).norm()), "from_start": float((weights_now - start).norm()),
        **{name: p_values(steps, at) for name, at in (("initial", start), ("trained", trained), ("inverted", weights_now))},
    }  # fmt: skip


def p_values(steps: Steps, at: Tensor) -> dict[str, Any]:
    """Kolmogorov-Smirnov p of each weight tensor against its true law (Kaiming normal), and this project's own test of all."""
    steps.put(at)
    named = {name: p.detach().cpu() for name, p in steps.model.named_parameters()}
    found = [
        float(stats.kstest(t.double().flatten().numpy(), "norm", args=(0.0, math.sqrt(2.0 / t[0].numel()))).pvalue)
        for t in named.values()
        if t.ndim >= 2
    ]
    return {"p": found, "ours": judge_initialization(named).p_value}


# ---- cost -------------------------------------------------------------------------------------------


def challenged_share(steps: int, k: int, q: int, seed: int) -> float:
    """The share of steps that the default challenge replays in a run of that size, on made-up displacements."""
    count = -(-steps // k)
    rng = np.random.default_rng(seed)
    moved, inert, progress = (rng.lognormal(0.0, 0.5, count) for _ in range(3))
    found = Survey(
        displacement=moved, weights=moved, inertia=inert, progress=progress, trivial=np.zeros(count, dtype=bool),
        idle=np.zeros(count), identity=np.zeros(count), distance=np.zeros(count + 1), settings=[], loss=[], jumps=[],
        irregular={}, relaid=[], measures=[Measure("weights", progress / progress.sum(), MAIN)], restless="",
        function=None, blind="", missing=0, parameters=0, bytes=0, final_model=None, d_ref=None,
    )  # fmt: skip
    picked = challenge(steps, k, "sha256:" + "00" * 32, found, make_nonce(f"{seed:08x}"), Draw(top_q=q))
    return sum(min(k, steps - index * k) for index in picked.segments) / steps


def final_weights(proof: Proof) -> Tensor:
    return flat(weights(proof.state(proof.segments[-1].state)))


def save(path: Path, vector: Tensor) -> None:
    np.save(path, vector.numpy())


def load(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False))
