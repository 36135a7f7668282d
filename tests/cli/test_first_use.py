"""What somebody does who has read the README alone: what they read then says what, where, and what to change."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from rich.console import Console
from rich.table import Table

from conftest import nursery
from proof_of_learning.attestation import signatures
from proof_of_learning.cli import common
from proof_of_learning.cli import prove as proving
from proof_of_learning.proof.reader import Proof
from proof_of_learning.recording.stamping import Stamped
from proof_of_learning.replay.doubt import HERE
from proof_of_learning.report import advice, print_verdict, render_html, words
from proof_of_learning.run import command as recording
from proof_of_learning.run import launching
from proof_of_learning.verifier import forecast
from proof_of_learning.verifier.conclude import Clock, broken, own_replays, refused
from proof_of_learning.verifier.verdict import (
    CheckResult,
    Conditions,
    Moment,
    Nonce,
    Round,
    Signer,
    Verdict,
    WorkerShare,
)
from support_cli import one_line, pol
from support_scripts import variables
from support_verdicts import digest, trajectory, verdict_of

SEVERAL = 'import torch.distributed as dist\ndist.init_process_group("gloo")\n'


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SEVERAL)
    return path


def place(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """As a launcher tells a process."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")


# ---- several processes ----------------------------------------------------------------------------------------------


def test_a_launcher_and_ranks_together_are_refused(
    train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its processes would start as many again, and all wait for each other."""
    asked = ("prove", train, "-o", tmp_path / "run.pol", "--ranks", 2)
    place(monkeypatch, 0)
    assert "torchrun started this as process 0 of 2 already; leave --ranks out" in one_line(pol(*asked), 2)
    place(monkeypatch, 1)
    quiet = pol(*asked)
    assert (quiet.exit_code, quiet.output) == (2, "")


def test_a_key_for_several_processes_is_refused_before_they_train(
    train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("prove", train, "-o", tmp_path / "run.pol", "--seed", 3)
    assert "leave --seed and --registration out" in one_line(pol(*asked, "--ranks", 2), 2)
    place(monkeypatch, 0)
    assert "leave --seed and --registration out" in one_line(pol(*asked), 2)
    place(monkeypatch, 1)
    quiet = pol(*asked)
    assert (quiet.exit_code, quiet.output) == (2, "")


def test_an_interrupted_recording_of_several_processes_is_not_said_to_go_on(
    train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "launch", stopped)
    monkeypatch.setattr(recording, "prove_script", stopped)
    out = tmp_path / "run.pol"
    told = f"several processes cannot be gone on with: remove {out}, and run the command again"
    assert told in one_line(pol("prove", train, "-o", out, "--ranks", 2), 130)
    place(monkeypatch, 0)
    assert told in one_line(pol("prove", train, "-o", out), 130)
    for rank, name in ((1, "x"), (0, launching.LAUNCHED)):  # who is not asked is quiet
        place(monkeypatch, rank)
        monkeypatch.setenv(name, "1")
        quiet = pol("prove", train, "-o", out)
        assert (quiet.exit_code, quiet.output) == (130, "")


@pytest.mark.parametrize(
    ("asked", "says"),
    [(("doctor",), "`pol prove --ranks N`"), (("register", "-o", "claim.json"), "cannot be registered yet")],
)
def test_a_script_of_several_processes_that_is_started_in_one_says_what_to_do(
    asked: tuple[str, ...], says: str, train: Path, tmp_path: Path
) -> None:
    done = nursery.run((asked[0], train, *asked[1:]), variables(), tmp_path)
    assert done.returncode == 2 and says in done.stderr.decode(), done.stderr


def test_a_plan_counts_the_processes_of_a_worker(tiny_proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "processes trained together" not in pol("plan", tiny_proof).stdout
    opened = Proof.open(tiny_proof)
    several = dataclasses.replace(opened, header=msgspec.structs.replace(opened.header, ranks=2))
    monkeypatch.setattr(forecast, "Proof", SimpleNamespace(open=lambda _: several))
    assert "each worker is a group of 2 processes" in pol("plan", tiny_proof).stdout


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prove", "verify", "plan", "doctor", "register"])
def test_an_argument_of_the_script_before_the_dashes_says_where_it_belongs(name: str) -> None:
    done = pol(name, "train.py", "--lr", "0.1")
    assert done.exit_code == 2 and "a script's own arguments stand behind `--`" in done.stderr
    assert "stand behind" not in pol(name, "train.py", "--lrr", "--", "--lr", "0.1").stderr


def test_more_workers_than_could_pay_are_not_started(tiny_proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proof_of_learning.replay.fork.cores", lambda: 6)
    said = one_line(pol("verify", tiny_proof, "--task", "tasks.py:task", "--workers", 2000), 2)
    assert "--workers 2000: this machine has 6 cores" in said
    common.enough(12)


def test_what_is_not_there_is_not_said_to_be_missing_from_a_proof(tmp_path: Path) -> None:
    signatures.generate(tmp_path / "key.pem")
    for asked in (("sign", "--key", tmp_path / "key.pem"), ("timestamp", "--tsa", "http://127.0.0.1:1/")):
        assert f"{tmp_path / 'none'} does not exist" in one_line(pol(asked[0], tmp_path / "none", *asked[1:]), 2)


@pytest.mark.parametrize(
    ("given", "says"),
    [("https://api.drand.sh/x/public/7", "nothing is fetched here: `curl -o round.json"), ("none.json", "`curl -o none.json")],
)  # fmt: skip
def test_a_round_is_a_file_that_one_fetches(given: str, says: str, tiny_proof: Path) -> None:
    assert says in one_line(pol("verify", tiny_proof, "--task", "tasks.py:task", "--beacon", given), 2)


# ---- stamps ---------------------------------------------------------------------------------------------------------


def test_a_claim_that_could_not_be_stamped_says_how_it_can_be(tiny: Any, tmp_path: Path) -> None:
    signatures.generate(tmp_path / "key.pem")
    claim = tmp_path / "claim.json"
    done = pol("register", tiny.target, "-o", claim, "--key", tmp_path / "key.pem", "--tsa", "http://127.0.0.1:1/")
    assert f"`pol timestamp {claim} --tsa URL` stamps the claim" in one_line(done, 2) and claim.exists()


def test_nothing_is_called_stamped_where_no_head_was(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"steps": 4, "segments": 2, "interval": 2, "evaluation": None, "root": "x"}
    proving._told("run.pol", {**summary, "stamped": Stamped(0, 0, ("after step 0: no answer",))}, None)
    said = capsys.readouterr().out
    assert "no head of the log was stamped" in said and "0 heads" not in said and "after step 0" in said


# ---- verdicts -------------------------------------------------------------------------------------------------------


def shown(verdict: Verdict) -> str:
    page = io.StringIO()
    print_verdict(verdict, Console(file=page, width=400))
    return page.getvalue()


def undrawn(why: str, timeline: list[Moment]) -> Verdict:
    policy = CheckResult("policy", "inconclusive", "broken", {"broken": ["drawn_nonce"]})
    nonce = Nonce("c0ffee", "self-chosen", Round("52db", 1000, "2023-08-23T15:59:24Z"), why)
    made = verdict_of(trajectory(20), [], [policy], conditions=Conditions(task=digest(1)))
    return msgspec.structs.replace(made, nonce=nonce, timeline=timeline)


def test_a_round_that_does_not_count_gets_its_own_advice() -> None:
    stamp = Moment("seal", "a.tsr", "a", "CN=A", True, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "", "")
    other, none = (advice.next_steps(undrawn("why", timeline)) for timeline in ([stamp], []))
    assert advice.OTHER_ROUND in other and advice.NO_ROUND in none
    assert not any("--nonce" in step for step in (*other, *none))


def test_a_proof_of_which_nothing_was_read_is_called_nothing() -> None:
    unread = refused(broken("the log is not that of the seal"), Nonce("00", "drawn"), Clock())
    assert "observed" not in shown(unread) and "kind" not in shown(unread)
    assert "<dt>Assurance" not in render_html(unread)
    read = verdict_of(trajectory(20), [], [])
    assert words.kind(read) in shown(read) and "<dt>Assurance" in render_html(read)


def test_whose_digest_of_the_sources_it_is_is_said_where_the_proof_has_another() -> None:
    def told(claimed: str) -> str:
        task = CheckResult("task", "pass", "", {"sources_claimed": claimed})
        conditions = Conditions(task=digest(1), sources=digest(2))
        return words.sources(verdict_of(trajectory(20), [], [task], conditions=conditions))[1]

    assert "proof" not in told(digest(2))
    assert f"of the verifier's files; the proof says that it was made with others, {digest(3)}" in told(digest(3))


def test_who_was_left_nothing_to_replay_could_hide_nothing() -> None:
    def missed(share: float, here: range, challenged: int) -> Any:
        evidence: Any = SimpleNamespace(
            options=SimpleNamespace(runtime=SimpleNamespace(double_check=share)),
            proof=SimpleNamespace(segments=range(20)),
            challenge=SimpleNamespace(
                segments=dict.fromkeys(range(challenged)), guarantee=SimpleNamespace(miss_probability=0.01)
            ),
        )
        return own_replays(evidence, [WorkerShare(HERE, list(here), len(here), 1.0)])

    assert missed(1.0, range(20), 20) == (1.0, 0.0)
    assert missed(0.5, range(20), 20) == (1.0, 0.0)
    assert missed(1.0, range(10), 10) == (1.0, pytest.approx(0.01))
    assert missed(0.5, range(5), 10) == (0.5, pytest.approx(0.505))
    assert missed(0.5, range(10), 20) == (0.5, pytest.approx(0.5))


def test_the_recovery_key_is_no_witness() -> None:
    signer = Signer(key=digest(1), owner=False, trusted=False, signed=["recovery"], replaces=[])
    verdict = msgspec.structs.replace(verdict_of(trajectory(20), [], []), signers=[signer])
    assert words.signers(verdict) == [(digest(1), "signed the recovery; the recovery key by the claim")]


# ---- pipes ----------------------------------------------------------------------------------------------------------


def test_colours_that_were_asked_for_bring_neither_padding_nor_bars_into_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    table.add_row("root", "short")
    table.add_row("task", "a longer one " * 9)
    common.results().print(table)
    with common.progress_bar() as progress:
        progress("replaying", 1, 2)
    said = capsys.readouterr()
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", row) for row in said.out.splitlines()]
    assert "\x1b[" in said.out and len(rows) == 2 and rows == [row.rstrip() for row in rows]
    assert said.err == ""
