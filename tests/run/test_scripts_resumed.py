"""A killed recording of a script whose randomness follows from a key goes on, to the root of an undisturbed one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from conftest import nursery
from proof_of_learning.proof.reader import Proof
from support_scripts import record, script, variables, verdict

DIE = "import os, signal\n        if (epoch, number) == WHERE and not os.path.exists(AGAIN): os.kill(os.getpid(), signal.SIGKILL)"


def derived(path: Path, out: Path, *more: object) -> subprocess.CompletedProcess[bytes]:
    return nursery.run(("prove", path, "-o", out, "-k", 7, "--seed", "7", *more), variables(), out.parent)


# Before any checkpoint, behind an epoch's end, amid one.
@pytest.mark.parametrize(
    "where", [pytest.param((0, 3), marks=pytest.mark.slow), pytest.param((1, 1), marks=pytest.mark.slow), (1, 15)]
)
def test_a_killed_recording_under_a_key_goes_on_to_the_same_root(where: tuple[int, int], tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    path = script(tmp_path, begin=DIE.replace("WHERE", str(where)).replace("AGAIN", repr(str(again / "now"))))
    killed = derived(path, tmp_path / "run.pol")
    assert killed.returncode == -9, killed.stderr
    (again / "now").touch()
    resumed = derived(path, tmp_path / "run.pol")
    assert resumed.returncode == 0, resumed.stderr
    step = (where[0] * 20 + where[1]) // 7 * 7
    assert (f"goes on after step {step}".encode() in resumed.stderr) == bool(step)
    assert derived(path, tmp_path / "whole.pol").returncode == 0
    assert Proof.open(tmp_path / "run.pol").root == Proof.open(tmp_path / "whole.pol").root
    assert not [entry for entry in (tmp_path / "run.pol").iterdir() if entry.name.startswith(".")]
    if where == (1, 15):
        assert verdict(tmp_path / "run.pol", path).verdict == "valid"


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    path = script(tmp_path, begin=DIE.replace("WHERE", "(1, 1)").replace("AGAIN", "'none'"))
    assert derived(path, tmp_path / "run.pol").returncode == -9
    before = {file: file.read_bytes() for file in (tmp_path / "run.pol").rglob("*") if file.is_file()}
    done = record(path, tmp_path / "run.pol")
    assert done.returncode == 2 and "goes on only under a key" in done.stderr
    other = nursery.run(("prove", path, "-o", tmp_path / "run.pol", "-k", 7, "--seed", "8"), variables(), tmp_path)
    assert other.returncode == 2 and b"under another key" in other.stderr, other.stderr
    changed = derived(path, tmp_path / "run.pol", "--", "--lr", "1")
    told = b"holds another run (program: there arguments none, now arguments --lr 1)"
    assert changed.returncode == 2 and told in changed.stderr, changed.stderr
    assert b"goes on after" not in changed.stderr, changed.stderr
    assert before == {file: file.read_bytes() for file in (tmp_path / "run.pol").rglob("*") if file.is_file()}


SEALING = """import os, signal
from proof_of_learning.proof.writer import ProofWriter
plain = ProofWriter.seal
ProofWriter.seal = lambda *a, **k: plain(*a, **k) if os.path.exists(AGAIN) else os.kill(os.getpid(), signal.SIGKILL)
run.close()"""


def test_a_recording_that_was_killed_behind_its_loop_goes_on_from_a_checkpoint_within(tmp_path: Path) -> None:
    """The last checkpoint, which the end of the loop brought about, says nothing of where the loop stood."""
    again = tmp_path / "again"
    again.mkdir()
    path = script(tmp_path, end=SEALING.replace("AGAIN", repr(str(again / "now"))))
    killed = derived(path, tmp_path / "run.pol", "-k", 4)  # of 40 steps
    assert killed.returncode == -9, killed.stderr
    (again / "now").touch()
    resumed = derived(path, tmp_path / "run.pol", "-k", 4)
    assert resumed.returncode == 0 and b"goes on after step 36" in resumed.stderr, resumed.stderr
    assert derived(path, tmp_path / "whole.pol", "-k", 4).returncode == 0
    assert Proof.open(tmp_path / "run.pol").root == Proof.open(tmp_path / "whole.pol").root


def test_where_nothing_can_be_written_no_script_is_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = script(tmp_path, begin=f"open({str(tmp_path / 'ran')!r}, 'w')")
    done = nursery.run(("prove", path, "-o", tmp_path / "file" / "run.pol"), variables(), tmp_path)
    assert done.returncode == 2 and b"cannot be written" in done.stderr, done.stderr
    assert b"Traceback" not in done.stderr and not (tmp_path / "ran").exists()


SAME = "visits the samples in the same order"


def test_a_sampler_that_is_never_told_the_epoch_is_said_and_valid(tmp_path: Path) -> None:
    path = script(tmp_path)
    forgotten = "DistributedSampler(data, num_replicas=1, rank=0)"
    text = path.read_text().replace("shuffle=True)", f"sampler=torch.utils.data.{forgotten})")
    path.write_text(text)
    done = record(path, tmp_path / "run.pol")
    assert done.returncode == 0 and done.stderr.count(SAME) == 1, done.stderr
    found = verdict(tmp_path / "run.pol", path)
    (order,) = (check for check in found.checks if check.name == "order")
    assert found.verdict == "valid" and SAME in order.summary, found.reason
    told = nursery.run(("doctor", path), variables(), tmp_path)
    assert told.returncode == 0 and told.stdout.decode().count(SAME) == 1, told.stdout
    path.write_text(text.replace("    for number", "    loader.sampler.set_epoch(epoch)\n    for number"))
    done = record(path, tmp_path / "told.pol")
    assert done.returncode == 0 and SAME not in done.stderr, done.stderr
