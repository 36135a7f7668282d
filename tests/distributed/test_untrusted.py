"""Training with untrusted workers: what is trained does not depend on them, lies are found and proven, and nobody honest is banned."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import support_rounds
from cryptography.hazmat.primitives.asymmetric import ec

import proof_of_learning as pol
from proof_of_learning import canonical
from proof_of_learning.attestation.signatures import PrivateKey
from proof_of_learning.distributed import core, events, fraud, messages
from proof_of_learning.distributed.behaviours import BEHAVIOURS, Ring, SignFlip
from proof_of_learning.distributed.coordinator import Coordinator, Outcome
from proof_of_learning.distributed.events import Rules
from proof_of_learning.distributed.examine import examine
from proof_of_learning.distributed.workers import Answer, Fault, Here, Honest, Request, Worker
from proof_of_learning.errors import FormatError, IntegrityError, RecordingError, UsageError, WorkerError

PLACE = str(Path(support_rounds.__file__))
RULES = Rules(rounds=12, slots=4, share=0.25, probation=2, finality=6)


def key(number: int) -> PrivateKey:
    return PrivateKey(ec.derive_private_key(1000 + number, ec.SECP256R1()))


OWNER = key(0)


def crowd(behaviour: str, dishonest: int, honest: int = 1, settings: dict[str, int] | None = None) -> list[Worker]:
    task, ring = support_rounds.task(**(settings or {})), Ring()  # type: ignore[arg-type]
    bad: list[Worker] = [BEHAVIOURS[behaviour](task, key(50 + i), ring=ring, seed=i) for i in range(dishonest)]
    return [*bad, *(Honest(task, key(1 + i)) for i in range(honest))]


def train(workers: Sequence[Worker], folder: Path | None = None, rules: Rules = RULES, **settings: int) -> Outcome:
    reference = pol.TaskReference(f"{PLACE}:task", dict(settings))
    return Coordinator(reference, rules, OWNER, Here(workers), folder, interval=2).run()


def weights(outcome: Outcome) -> str:
    from proof_of_learning.distributed.rounds import flat, trained, weights_digest

    return weights_digest(flat(trained(outcome.model)))


@pytest.fixture(scope="module")
def honest() -> Outcome:
    return train(crowd("lazy", 0, honest=4))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, train(crowd("sign-flip", 3), folder)


def banned(outcome: Outcome) -> set[str]:
    return {ban.work.assignment.worker for ban in outcome.book.bans}


@pytest.mark.quick
@pytest.mark.parametrize(
    "behaviour", [name for name in BEHAVIOURS if name not in ("backdoor", "until-trusted", "rare-cheat")]
)
def test_with_most_workers_dishonest_the_weights_are_those_of_honest_training(behaviour: str, honest: Outcome) -> None:
    workers = crowd(behaviour, 3, honest=1)
    found = train(workers)
    assert weights(found) == weights(honest)
    assert not banned(found) & {w.public.digest for w in workers if type(w) is Honest}
    silent = behaviour in ("crash", "vanish", "oversized")
    assert len(found.book.bans) == (0 if silent else 3 if behaviour != "freeloader" else len(found.book.bans))


def test_the_run_is_a_proof_that_a_third_party_verifies(attacked: tuple[Path, Outcome]) -> None:
    folder, found = attacked
    verdict = pol.verify(folder / "proof", pol.TaskReference(f"{PLACE}:task"), everything=True, sandbox="off")
    assert {c.name: c.status for c in verdict.checks}["trajectory"] == "pass"
    assert verdict.verdict != "invalid" and verdict.proof is not None and verdict.proof.root == found.root
    seen = examine(folder, f"{PLACE}:task", OWNER.public)
    assert seen.holds, seen.problems
    assert len(seen.findings) == 3 and all(item.proven for item in seen.findings)


def test_local_steps_are_trained_and_proven(tmp_path: Path) -> None:
    found = train(crowd("fewer-steps", 3, settings={"local": 3}), tmp_path / "run", local=3)
    assert len(found.book.bans) == 3
    verdict = pol.verify(
        tmp_path / "run" / "proof", pol.TaskReference(f"{PLACE}:task", {"local": 3}), everything=True, sandbox="off"
    )
    assert {c.name: c.status for c in verdict.checks}["trajectory"] == "pass"


def test_portable_arithmetic_holds_workers_to_bits(tmp_path: Path) -> None:
    task = support_rounds.task(rounds=3)
    rules = dataclasses_replace(RULES, rounds=3)
    made = Coordinator(
        task,
        rules,
        OWNER,
        Here([BEHAVIOURS["sign-flip"](task, key(50)), Honest(task, key(1))]),
        tmp_path / "run",
        arithmetic="portable",
    )
    found = made.run()
    assert len(found.book.bans) == 1 and made.agreed.environment is None and found.exactness == "bits"
    assert examine(tmp_path / "run", task, OWNER.public).holds


def dataclasses_replace(rules: Rules, **changes: object) -> Rules:
    return Rules(**{**{name: getattr(rules, name) for name in rules.__struct_fields__}, **changes})


def test_a_proven_lie_is_undone_from_the_first_one_that_was_let_pass() -> None:
    """Trusted from the third slice on, a liar is seen late: what stays of their lies is older than the window."""
    rules = dataclasses_replace(RULES, share=0.15, finality=12, rounds=12)

    class Late(SignFlip):
        def lying(self, asked: events.Assignment) -> bool:
            return self.made > 3

    task = support_rounds.task()
    undone = 0
    for seed in range(4):
        workers = [Late(task, key(60 + seed * 3 + i)) for i in range(3)] + [Honest(task, key(1))]
        found = train(workers, rules=rules)
        undone += found.book.counts.undone
        if len(found.book.bans) == 3:
            assert weights(found) == weights(train(crowd("lazy", 0, 2), rules=rules))
    assert undone > 0


def test_calibrated_misses_never_ban() -> None:
    found = train(crowd("sign-flip", 3), rules=dataclasses_replace(RULES, limit=1e-3))
    assert found.exactness == "calibrated" and not found.book.bans
    assert sum(member.strikes for member in found.book.members) >= 3


class KilledError(Exception):
    """Stands for the end of the coordinator's process."""


class Deadly(Here):
    """Kills the coordinator after some answers; forgets, repeats, delays and mangles answers, by what ``what`` says."""

    def __init__(self, workers: Sequence[Worker], after: int) -> None:
        super().__init__(workers)
        self.left = after

    def ask(self, requests: Sequence[Request], run: bytes) -> Iterator[tuple[Request, Answer]]:
        for item in super().ask(requests, run):
            self.left -= 1
            if self.left < 0:
                raise KilledError
            yield item


@pytest.mark.parametrize("step", [7, 23])
def test_a_coordinator_killed_again_and_again_resumes_to_the_same_root(
    step: int, tmp_path: Path, attacked: tuple[Path, Outcome]
) -> None:
    reference = pol.TaskReference(f"{PLACE}:task")
    for _ in range(200):
        try:
            found = Coordinator(
                reference, RULES, OWNER, Deadly(crowd("sign-flip", 3), step), tmp_path / "run", interval=2
            ).run()
            break
        except KilledError:
            continue
    assert found.root == attacked[1].root
    assert examine(tmp_path / "run", f"{PLACE}:task", OWNER.public).holds


class Unreliable(Here):
    """Loses, repeats, delays and cuts answers, of honest workers too."""

    def __init__(self, workers: Sequence[Worker], seed: int) -> None:
        import random

        super().__init__(workers)
        self.random, self.late = random.Random(seed), list[tuple[Request, Answer]]()

    def ask(self, requests: Sequence[Request], run: bytes) -> Iterator[tuple[Request, Answer]]:
        yield from self.late
        self.late = []
        for request, found in super().ask(requests, run):
            draw = self.random.random()
            if draw < 0.05:
                self.late.append((request, found))
            elif draw < 0.1:
                yield request, Fault("killed")
            elif draw < 0.15 and isinstance(found, bytes):
                yield request, found[:-3]
            else:
                yield request, found
            if draw > 0.9:
                yield request, found


@pytest.mark.parametrize("seed", range(5))
def test_faults_of_transport_change_nothing_and_ban_nobody(seed: int, honest: Outcome) -> None:
    workers = crowd("lazy", 0, honest=4)
    found = Coordinator(f"{PLACE}:task", RULES, OWNER, Unreliable(workers, seed)).run()
    assert weights(found) == weights(honest) and not found.book.bans
    assert found.book.counts.late + sum(m.faults + m.strikes for m in found.book.members) > 0


def test_without_workers_it_stops_and_goes_on_with_others(tmp_path: Path, attacked: tuple[Path, Outcome]) -> None:
    with pytest.raises(WorkerError, match=r"3 are banned.*further workers"):
        train(crowd("sign-flip", 3, honest=0), tmp_path / "run")
    assert train(crowd("sign-flip", 3, honest=1), tmp_path / "run").root == attacked[1].root


def test_a_folder_of_another_run_is_refused(attacked: tuple[Path, Outcome]) -> None:
    with pytest.raises(RecordingError, match="another run"):
        train(crowd("lazy", 0, 1), attacked[0], rules=dataclasses_replace(RULES, share=0.5))
    with pytest.raises(UsageError):
        train(crowd("lazy", 0, 1), rules=dataclasses_replace(RULES, share=2.0))


def test_a_finished_run_is_found_finished(attacked: tuple[Path, Outcome]) -> None:
    assert train(crowd("sign-flip", 3), attacked[0]).root == attacked[1].root


# ---- third parties -------------------------------------------------------------------------------------------------


def one_fraud(folder: Path) -> fraud.FraudProof:
    return fraud.load(sorted((folder / "fraud").iterdir())[0])


def test_a_fraud_proof_cannot_be_made_of_something_else(attacked: tuple[Path, Outcome]) -> None:
    proof, task = one_fraud(attacked[0]), support_rounds.task()
    assert fraud.check(proof, task, OWNER.public).proven
    other = fraud.load(sorted((attacked[0] / "fraud").iterdir())[1])
    assert not fraud.check(dataclasses.replace(proof, assignment=other.assignment), task, OWNER.public).proven
    assert not fraud.check(dataclasses.replace(proof, start=b"\0" * len(proof.start)), task, OWNER.public).proven
    assert not fraud.check(proof, task, key(9).public).proven
    for bad in (
        dataclasses.replace(proof, worker=key(1).public),
        dataclasses.replace(proof, commitment=other.commitment),
    ):
        with pytest.raises(FormatError):
            fraud.check(bad, task, OWNER.public)
    assert not fraud.check(proof, support_rounds.task(slots=5), OWNER.public).proven


def test_an_honest_worker_signs_nothing_by_which_they_could_be_framed(attacked: tuple[Path, Outcome]) -> None:
    import numpy as np

    folder, _ = attacked
    proof, worker = one_fraud(folder), Honest(support_rounds.task(), key(1))
    run = proof.run
    asked = messages.opened(proof.assignment, events.Assignment, OWNER.public, "it")
    mine = msgspec_replace(asked, worker=worker.public.digest)
    worker.work(messages.signed(mine, OWNER), proof.start, run)
    false = [
        (asked, proof.start),
        (msgspec_replace(mine, samples="sha256:" + "0" * 64), proof.start),
        (mine, np.zeros(len(proof.start) // 4, np.float32).tobytes()),
        (msgspec_replace(mine, run="sha256:" + "0" * 64), proof.start),
    ]
    for assignment, start in false:
        with pytest.raises(FormatError, match="nothing is signed"):
            worker.work(messages.signed(assignment, OWNER), start, run)
    with pytest.raises(FormatError, match="not signed"):
        worker.work(messages.signed(mine, key(3)), proof.start, run)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"environment": None}, "does not promise"),
        ({"environment": "sha256:" + "0" * 64}, "numeric environment"),
        ({"task": "sha256:" + "0" * 64}, "another task"),
        ({"data": "sha256:" + "0" * 64}, "other data"),
    ],
)
def test_a_run_in_which_honest_workers_could_be_framed_is_neither_joined_nor_believed(
    change: dict[str, str | None], why: str, attacked: tuple[Path, Outcome]
) -> None:
    proof, worker = one_fraud(attacked[0]), Honest(support_rounds.task(), key(1))
    run = msgspec.structs.replace(canonical.decode(proof.run, messages.Run, "it"), **change)
    raw = canonical.encode(run)
    asked = messages.opened(proof.assignment, events.Assignment, OWNER.public, "it")
    mine = msgspec_replace(asked, worker=worker.public.digest, run=run.digest())
    with pytest.raises(FormatError, match=why):
        worker.work(messages.signed(mine, OWNER), proof.start, raw)
    lies = events.Commitment(mine.digest(), "sha256:" + "1" * 64, [])
    framed = fraud.FraudProof(
        raw, messages.signed(mine, OWNER), messages.signed(lies, key(1)), worker.public, proof.start
    )
    assert not fraud.check(framed, support_rounds.task(), OWNER.public).proven


def msgspec_replace(assignment: events.Assignment, **changes: str) -> events.Assignment:
    return msgspec.structs.replace(assignment, **changes)


@pytest.mark.parametrize("what", ["a replay that never was", "a line less", "another draw", "a ban less"])
def test_a_journal_that_was_tampered_with_is_seen(what: str, attacked: tuple[Path, Outcome], tmp_path: Path) -> None:
    shutil.copytree(attacked[0], tmp_path / "run")
    place = tmp_path / "run" / "journal.jsonl"
    lines = place.read_bytes().splitlines(keepends=True)
    if what == "a replay that never was":
        lines = [line for line in lines if b'"kind":"replayed"' not in line]
    elif what == "a line less":
        lines = lines[:-1]
    elif what == "another draw":
        lines = [line.replace(b'"link":"', b'"link":"00', 1) for line in lines]
    else:
        shutil.rmtree(sorted((tmp_path / "run" / "fraud").iterdir())[0])
    place.write_bytes(b"".join(lines))
    with contextlib.suppress(FormatError, IntegrityError):
        assert not examine(tmp_path / "run", f"{PLACE}:task", OWNER.public).holds


def test_no_honest_worker_is_banned_in_twenty_runs() -> None:
    names = [
        "lazy",
        "random",
        "scaled",
        "collusion",
        "until-trusted",
        "rare-cheat",
        "crash",
        "vanish",
        "label-flip",
        "backdoor",
    ]
    rules = dataclasses_replace(RULES, rounds=4)
    for number in range(20):
        workers = crowd(names[number % len(names)], 3, 2, {"rounds": 4})
        good = {w.public.digest for w in workers if type(w) is Honest}
        found = train(workers, rules=rules, rounds=4, seed=number)
        assert not banned(found) & good


def test_what_a_rare_cheat_can_do_is_bounded() -> None:
    mean, most = core.unseen_lies(0.1)
    assert mean == pytest.approx(9.0) and 0.9 ** (most + 1) <= 0.01 < 0.9**most
    assert core.unseen_lies(1.0) == (0.0, 0)
