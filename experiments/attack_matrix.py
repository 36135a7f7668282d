"""Attacks × checks × (derived, observed) × (exact, calibrated): what the verifier makes of every registered attack.

    python experiments/attack_matrix.py [--quick | --tiny] [--data DIR] [--output DIR] [--seeds N] [--attacks A,B] --json FILE

Every attack of the registry is forged against an honest target, in every variant that it declares (else in every combination of
its parameters' choices), and judged with all checks. *Derived*: all randomness follows from a key, as under a registered
claim, but the attacker chooses his own key, which a claim made before would not let him. *Observed*: the same states, with
order, generator states and initial weights written down as an observed run's. *Exact*: the verifier reproduces the
recorded environment. *Calibrated*: it has another one (other threads or code paths) and allows comparison within its own noise.

For each: the verdict, which check failed first and which failed alone, how often the draw misses every forged segment (over 200
nonces, without replaying), the attacker's and the verifier's cost, and the distance to the nearest limit. A row ``honest``
stands beside them. Writes JSON, and a Markdown page with a picture to the output folder.

``--quick``: a short digits task, one seed, everything in this process, the first two variants of each attack (calibrated: one).
Otherwise the digits with SGD (three seeds), with Adam, and with a schedule that has a stretch of rate 0, and Fashion-MNIST;
and the attacks that gamble on the draw against a run of 3,000 segments.
Finished cells are kept in FILE.part, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import ne
from pathlib import Path
from typing import Any

import torch
from cells import EXAMPLES, HERE, Cell, compute, indices, parser, part_of, pol, ranges, write
from matrix_page import Matrix, write_page

from proof_of_learning import Proof, Task, TaskReference, Verdict, load_task, prove, verify
from proof_of_learning.attacks import ATTACKS, Attack, Forgery, forge_proof
from proof_of_learning.attacks.gamble import fixed_nonces, odds, surveyed
from proof_of_learning.attacks.victim import step_snapshot
from proof_of_learning.errors import AttackError, PolError, WorkerError
from proof_of_learning.proof import codecs
from proof_of_learning.training.batches import DerivedOrder

NONCES = 200
QUICK_VARIANTS = {"exact": 2, "calibrated": 1}  # of each attack
ELSEWHERE = "ATen AVX2"  # the prover's environment in calibrated comparison, where the verifier has this process's
THREADS_ELSEWHERE = 2  # or, all in one process, where the verifier has one: other sums, other bits
HONEST = "honest"


@dataclass(frozen=True)
class Target:
    """A task that attacks are measured on: ``target`` and ``settings`` as in a TaskReference, k, seeds, and the file it reads.

    ``comparisons``: of ``exact`` and ``calibrated``. ``apart``: whether calibrated comparison is with proofs of another process, on
    other code paths; else they were made here with other threads. ``attacks``: the only ones that are measured on it, if there
    are any, ``without`` those that are left out, and ``most`` how many variants of each. ``codec``: how its states are stored, and
    those of its forgeries.
    """

    name: str
    target: str
    settings: Mapping[str, Any]
    interval: int
    seeds: int = 1
    needs: str | None = None
    comparisons: tuple[str, ...] = ("exact", "calibrated")
    apart: bool = False
    attacks: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    most: int | None = None
    codec: str = codecs.DEFAULT

    def reference(self, seed: int) -> TaskReference:
        return TaskReference(self.target, {**self.settings, "seed": seed})


DIGITS = f"{EXAMPLES / 'digits.py'}:task"
QUICK = (Target("digits", DIGITS, {"steps": 80}, 2),)
TINY = (Target("digits", DIGITS, {"steps": 8}, 2, comparisons=("exact",), attacks=("concatenation",)),)
VARIANTS, FASHION = f"{HERE / 'variants.py'}:task", f"{EXAMPLES / 'fashion_mnist.py'}:task"
# Calibrated judgements take twice the replays, or several processes each: shorter runs, fewer variants.
DEAR = ("inverse-gradient", "synthetic-data")  # ten to ninety honest trainings each
FULL = (
    Target("digits", DIGITS, {"steps": 1200}, 2, comparisons=("exact",), without=DEAR),
    Target("digits", DIGITS, {"steps": 300}, 2, comparisons=("calibrated",), most=2),
    Target("digits-adam", VARIANTS, {"optimizer": "adam", "steps": 300}, 2, comparisons=("exact",), without=DEAR, most=1),
    Target("digits-adam", VARIANTS, {"optimizer": "adam", "steps": 200}, 1, comparisons=("calibrated",), without=DEAR, most=1),
    Target("digits-pause", VARIANTS, {"schedule": "pause", "steps": 300}, 2, comparisons=("exact",), without=DEAR, most=1),
    Target("fashion-mnist", FASHION, {"steps": 120}, 2, needs="fashion_mnist.npz", comparisons=("exact",), most=2),
    Target("fashion-mnist", FASHION, {"steps": 120}, 2, needs="fashion_mnist.npz", comparisons=("calibrated",),
           apart=True, most=1),
    Target("fashion-mnist-long", FASHION, {"steps": 6000, "batch_size": 32}, 2, needs="fashion_mnist.npz",
           comparisons=("exact",), attacks=("few-segments", "grinding"), most=1),
    Target("digits", DIGITS, {"steps": 1200}, 2, 3, comparisons=("exact",), without=DEAR, most=1),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One forgery and its judgements. ``attack``: None for the honest proof itself."""

    target: Target
    seed: int
    attack: str | None
    settings: Mapping[str, Any]
    comparison: str
    quick: bool = False

    @property
    def variant(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())

    @property
    def name(self) -> str:
        what = self.attack or HONEST
        shown = f"{what} ({self.variant})" if self.variant else what
        return f"{self.target.name}, {self.comparison}/{shown}, seed {self.seed}"


def variants(attack: type[Attack]) -> list[dict[str, Any]]:
    """The settings to measure an attack under: what it declares, else all combinations of its choices (defaults first)."""
    if attack.variants:
        return [dict(settings) for settings in attack.variants]
    choices = {
        name: sorted(field.metadata["choices"], key=partial(ne, field.default))
        for name, field in attack.parameters().items()
        if field.metadata.get("choices")
    }
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def cases(targets: tuple[Target, ...], names: list[str], quick: bool = False) -> Iterator[Case]:
    runs = [(target, seed) for target in targets for seed in range(target.seeds)]
    for (target, seed), comparison in ((run, comparison) for run in runs for comparison in run[0].comparisons):
        for name in (None, *(n for n in names if n in (target.attacks or names) and n not in target.without)):
            chosen = [{}] if name is None else variants(ATTACKS[name])
            for settings in chosen[: QUICK_VARIANTS[comparison] if quick else target.most]:
                yield Case(target, seed, name, settings, comparison, quick)


# ---- one case ---------------------------------------------------------------------------------------


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(case: Case, work: Path) -> Cell:
    """Forge, judge as derived and as observed; one row each."""
    reference = case.target.reference(case.seed)
    task = replace(load_task(reference), reference=None)
    size = "-".join(str(value) for value in (case.target.settings.get("steps", ""), case.target.interval, case.seed))
    path = (
        work / f"{case.target.name}-{size}-{case.target.codec}-{case.comparison}.pol"
    )  # the target, made once for all attacks on it
    with tempfile.TemporaryDirectory(prefix="pol-matrix-") as folder:
        begun = time.perf_counter()
        try:
            if case.comparison == "calibrated" and case.target.apart:
                forgery = forge_elsewhere(case, path, reference, Path(folder) / "forged.pol")
            else:
                with threads(THREADS_ELSEWHERE if case.comparison == "calibrated" else 1):
                    prove(task, path, interval=case.target.interval, codec=case.target.codec)
                    forgery = forge(case, path, task, Path(folder) / "forged.pol")
        except AttackError as error:
            return {"rows": [], "not_applicable": str(error), "shown": f"cannot be used: {error}"}
        seconds = time.perf_counter() - begun
        made, modes, note = Proof.open(forgery.path), dict[str, Path](), dict[str, str]()
        modes["observed" if made.header.randomness.mode == "recorded" else "derived"] = forgery.path
        if "derived" in modes and not (case.quick and case.comparison == "calibrated"):
            try:
                modes["observed"] = as_observed(made, task, Path(folder) / "observed.pol")
            except PolError as error:
                note = {"not_applicable": f"not as an observed run: {error}"}
        rows = [judge(case, mode, where, forgery, task, reference) for mode, where in modes.items()]
        rows[0]["seconds_to_forge"] = seconds
        return {"rows": rows, "shown": ", ".join(f"{row['mode']} {row['verdict']}" for row in rows), **note}


def forge(case: Case, target: Path, task: Task, path: Path) -> Forgery:
    proof = Proof.open(target)
    if case.attack is not None:
        return ATTACKS[case.attack](**case.settings).forge(proof, task, path)
    shutil.copytree(target, path)
    return Forgery(path, proof.root, 1, 1, 0.0)


def forge_elsewhere(case: Case, target: Path, reference: TaskReference, path: Path) -> Forgery:
    """The same by commands in another numeric environment."""

    def given(option: str, settings: Mapping[str, Any]) -> list[str]:
        return [part for name, value in settings.items() for part in (option, f"{name}={value}")]

    def command(*arguments: object) -> bytes:
        done = pol(ELSEWHERE, *map(str, arguments), *given("--set", reference.settings))
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip().removeprefix("pol: ")
            raise (AttackError if arguments[0] == "attack" and done.returncode == 2 else WorkerError)(message[-500:])
        return done.stdout

    command("prove", reference.target, "-o", target, "-k", case.target.interval, "--codec", case.target.codec)
    if case.attack is None:
        return forge(case, target, load_task(reference), path)
    told = json.loads(
        command("attack", case.attack, "--target", target, "--task", reference.target, "-o", path, "--json", "-",
                *given("--param", case.settings))
    )  # fmt: skip
    return Forgery(
        path, told["root"], told["samples_processed"], told["honest_samples"], told["distance"], tuple(told["forged"])
    )


def as_observed(proof: Proof, task: Task, path: Path) -> Path:
    """The same run, sealed again with its order, generator states and start written down instead of derived."""
    header = proof.header
    key, steps = bytes.fromhex(header.randomness.key), proof.steps
    seed = int(header.randomness.seed or 0)
    order = DerivedOrder(task, header.data.samples, key)
    derived = header.initialization.kind == "derived"
    forge_proof(
        path, task, (proof.state(digest) for digest in proof.state_digests()), (order.indices(step) for step in range(steps)),
        hyperparameters={
            "loss": (loss for columns in proof.all_columns() for loss in columns.loss.tolist()),
            "rates": (row for columns in proof.all_columns() for row in columns.rates),
        },
        rng=(step_snapshot(key, step) for step in range(steps)), seed=seed, training=header.training, data=header.data,
        task_claim=header.task, codec=header.codec, keep_progress=True, evaluation=proof.end.evaluation,
        initialization="recorded" if derived else header.initialization,
        environment=[proof.environments[segment.environment] for segment in proof.segments],
        arrived=[segment.arrived for segment in proof.segments],
    )  # fmt: skip
    return path


def judge(case: Case, mode: str, path: Path, forgery: Forgery, task: Task, reference: TaskReference) -> dict[str, Any]:
    """The verifier's judgement at its defaults with all checks run, and the odds of the draw, as plain values."""
    calibrated = case.comparison == "calibrated"
    with threads(1):
        verdict = verify(
            path, reference if calibrated and case.target.apart else task, keep_going=True, reproduce=not calibrated,
            allow_calibrated=calibrated, nonce=fixed_nonces(case.seed + 1)[case.seed], accept_nonce=True, sandbox="off",
        )  # fmt: skip
    row = {
        "target": case.target.name, "seed": case.seed, "attack": case.attack or HONEST, "variant": case.variant, "mode": mode,
        "comparison": case.comparison, "attacker_cost": forgery.cost, "distance": forgery.distance,
        "forged": list(forgery.forged),
        **summary(verdict),
    }  # fmt: skip
    if forgery.forged:
        proof = Proof.open(path)
        row["odds"] = asdict(odds(proof, forgery.forged, fixed_nonces(NONCES), found=surveyed(proof, task)))
    return row


def summary(verdict: Verdict) -> dict[str, Any]:
    failed = [check.name for check in verdict.checks if check.status == "fail"]
    open_ = [check.name for check in verdict.checks if check.mandatory and check.status in ("inconclusive", "skipped")]
    shares = [s.limit_share for s in verdict.segments if s.limit_share is not None and not s.exact]
    over = [s.limit_share for s in verdict.segments if s.limit_share is not None and s.status == "fail"]
    try:
        z = verdict.check("drift").evidence.get("z")
    except KeyError:
        z = None
    return {
        "verdict": verdict.verdict,
        "d_ref": None if verdict.thresholds.d_ref is None else verdict.thresholds.d_ref.l2,
        "assurance": verdict.assurance,
        "failed": failed,
        "inconclusive": open_,
        "reason": verdict.reason[:300],
        "segments": verdict.proof.segments,
        "challenged": len(verdict.segments),
        "not_replaying": sum(s.status == "fail" for s in verdict.segments),
        "limit_share": max(shares, default=None),  # the largest error over its limit
        "nearest_fail": min(over, default=None),
        "drift_z": z,
        "verifier_cost": verdict.cost.share,
        "seconds": verdict.cost.seconds,
    }


def shortened(row: Cell) -> Cell:
    """A row whose lists of segments are ranges; one that has them already stays."""
    found = {**row, "forged": ranges(indices(row["forged"]))} if "forged" in row else row
    odds = found.get("odds")
    if isinstance(odds, dict) and "conspicuous" in odds:
        found = {**found, "odds": {**odds, "conspicuous": ranges(indices(odds["conspicuous"]))}}
    return found


# ---- the run ----------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    targets = _targets(options)
    names = options.attacks.split(",") if options.attacks else list(ATTACKS)
    unknown = [name for name in names if name not in ATTACKS]
    if unknown:
        raise SystemExit(f"there is no attack {unknown[0]!r}; known: {', '.join(ATTACKS)}")
    torch.set_num_threads(1)
    work = Path("matrix.work" if options.json == "-" else f"{options.json}.work")
    work.mkdir(parents=True, exist_ok=True)

    def cell(case: Case) -> Callable[[], Cell]:
        def compute_one() -> Cell:
            try:
                return run(case, work)
            except PolError as error:
                return {"error": f"{type(error).__name__}: {error}".replace(str(work), "…"), "rows": []}

        return compute_one

    todo = {case.name: cell(case) for case in cases(targets, names, not options.size.full)}
    label = json.loads(json.dumps({"size": options.size.name, "targets": [asdict(target) for target in targets]}))
    done = compute(todo, part_of(options.json), label, finished=options.finished)
    missing = [name for name in todo if name not in done]
    matrix = Matrix(done, NONCES, not options.size.full, missing=missing)
    if options.output is not None:
        write_page(matrix, Path(options.output))
    print(matrix.closest())
    write(
        options.json, matrix.results(), size=options.size, keep=options.finished, rows=[shortened(row) for row in matrix.rows],
        checks=matrix.unique(), not_applicable=matrix.not_applicable, errors=matrix.errors, missing=missing,
    )  # fmt: skip
    if not options.finished:
        shutil.rmtree(work, ignore_errors=True)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "the digits task, one seed, in this process")
    made.add_argument(
        "--output", help="folder for the page and its picture (default: docs/evidence; none if --quick or --tiny)"
    )
    made.add_argument("--seeds", type=int, help="targets of each task (default: 1; of digits in exact comparison 3)")
    made.add_argument("--attacks", help="names, separated by commas (default: all)")
    made.add_argument("--tasks", help="names of the built-in tasks to measure on (default: all)")
    made.add_argument(
        "--codec", choices=codecs.NAMES, default=codecs.DEFAULT, help="how targets and forgeries are stored"
    )
    made.add_argument("--comparison", choices=("exact", "calibrated"), help="the only one that is measured")
    made.add_argument("--task", help="measure on this task instead: path.py:function")
    made.add_argument("--interval", type=int, default=2, help="k, with --task")
    options = made.parse_args(arguments)
    if options.output is None and options.size.full:
        options.output = str(HERE.parent / "docs" / "evidence")
    return options


def _targets(options: argparse.Namespace) -> tuple[Target, ...]:
    if options.task:
        name = Path(options.task.split(":")[0]).stem
        return (Target(name, options.task, {}, options.interval, options.seeds or 1, codec=options.codec),)
    found = []
    for target in options.size.of(FULL, QUICK, TINY):
        if options.tasks and target.name not in options.tasks.split(","):
            continue
        if target.needs and not (options.data and (Path(options.data) / target.needs).is_file()):
            print(f"{target.name} is left out: name the folder that holds {target.needs} with --data", flush=True)
            continue
        settings = {**target.settings, **({"data": str(Path(options.data).resolve())} if target.needs else {})}
        comparisons = tuple(c for c in target.comparisons if options.comparison in (None, c))
        found.append(
            replace(
                target,
                settings=settings,
                seeds=options.seeds or target.seeds,
                codec=options.codec,
                comparisons=comparisons,
            )
        )
    if not found:
        raise SystemExit(f"no task is left to measure on; known: {', '.join(target.name for target in FULL)}")
    return tuple(found)


if __name__ == "__main__":
    main()
