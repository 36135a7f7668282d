"""Training loops that other libraries own: recorded without a change of any number, and replayed by the library's loop elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proof_of_learning.proof.reader import Proof
from support_scripts import SCRIPTS, record, run, verdict
from support_workers import imported

LOADED = ("accelerate", "lightning.pytorch", "transformers.trainer", "transformers.models.bert.modeling_bert")
LESS = pytest.mark.slow(reason="the row with two micro-batches asks for more")
# Script, arguments, interval. Two micro-batches a step where not said otherwise, and an odd number of them in an epoch.
TABLE = [
    pytest.param("accelerated.py", ["--accumulate", "1"], 7, marks=LESS),
    ("accelerated.py", ["--accumulate", "2"], 3),
    ("lit.py", [], 5),
    ("trainer.py", [], 4),
]
IDS = ["accelerated.py 1", "accelerated.py 2", "lit.py", "trainer.py"]

# What a forger's script does besides: by example, the line that it stands before, when, and whose parameters and optimizer.
PLACES = {
    "accelerated.py": ("        print(", "(epoch, number) == (1, 3)", "model", "optimizer"),
    "lit.py": ("        print(", "(self.current_epoch, number) == (1, 4)", "self", "self.trainer.optimizers[0]"),
    "trainer.py": ("        super().log(", "self.state.global_step == 6", "self.model", "self.optimizer"),
}
JUMP = "[p.data.add_(0.01) for p in {model}.parameters()]"
RATE = "{optimizer}.param_groups[0]['lr'] = 0.3"


@pytest.fixture(autouse=True, scope="module")
def _imported() -> Iterator[None]:
    """Starts of these libraries take seconds."""
    with imported(*LOADED):
        yield


@pytest.mark.parametrize(("name", "arguments", "interval"), TABLE, ids=IDS)
def test_a_frameworks_loop_records_unchanged_and_every_segment_is_exact_elsewhere(
    name: str, arguments: list[str], interval: int, tmp_path: Path
) -> None:
    plain = run(SCRIPTS / name, *arguments)
    recorded = record(SCRIPTS / name, tmp_path / "run.pol", *arguments, interval=interval)
    assert recorded.returncode == 0, recorded.stderr
    assert plain.stdout and recorded.stdout.startswith(plain.stdout)  # every loss that it prints
    every = verdict(tmp_path / "run.pol", SCRIPTS / name, everything=True)
    assert (every.verdict, every.assurance) == ("valid", "observed"), every.reason
    assert len(every.segments) == len(Proof.open(tmp_path / "run.pol").segments) > 2
    assert all(segment.exact for segment in every.segments)


def forged(name: str, what: str, folder: Path) -> Path:
    at, when, model, optimizer = PLACES[name]
    text, path = (SCRIPTS / name).read_text(), folder / name
    assert at in text
    path.write_text(text.replace(at, f"        if {when}: {what.format(model=model, optimizer=optimizer)}\n{at}", 1))
    return path


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("accelerated.py", JUMP),
        pytest.param("lit.py", JUMP, marks=pytest.mark.slow),
        pytest.param("trainer.py", JUMP, marks=pytest.mark.slow),
        pytest.param("accelerated.py", RATE, marks=pytest.mark.slow),
        pytest.param("lit.py", RATE, marks=pytest.mark.slow),
    ],
)
def test_a_forgery_of_a_frameworks_run_is_invalid(name: str, what: str, tmp_path: Path) -> None:
    path = forged(name, what, tmp_path)
    done = record(path, tmp_path / "run.pol", interval=2)
    assert done.returncode == 0, done.stderr
    (tmp_path / "honest").mkdir()
    honest = tmp_path / "honest" / name  # one of them learns a text: that of the forger's
    text = (SCRIPTS / name).read_text()
    honest.write_text(text.replace("pathlib.Path(__file__)", f"pathlib.Path({str(path)!r})"))
    found = verdict(tmp_path / "run.pol", honest, everything=True)
    assert found.verdict == "invalid", found.reason


@pytest.mark.parametrize(("name", "lines"), [("accelerated.py", 4), ("lit.py", 2), ("trainer.py", 2)])
def test_an_example_changes_few_lines(name: str, lines: int) -> None:
    own = [line for line in (SCRIPTS / name).read_text().splitlines() if any(
        word in line for word in ("integrations", "Run(", "run.", "Watch()", "watch(trainer)"))]  # fmt: skip
    assert len(own) <= lines + 1, own


def test_the_package_imports_no_framework() -> None:
    code = (
        "import sys, proof_of_learning as pol; pol.Run, pol.verify, pol.prove; "
        "print([name for name in ('lightning', 'transformers', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What cannot be followed: where it stands in which example, and what is said.
DISPATCH = "cpu=True, dataloader_config=accelerate.DataLoaderConfiguration(dispatch_batches=True),"
LOADER = "DataLoader(train_set, batch_size=48, shuffle=True)"
REFUSED = [
    ("lit.py", "devices=1,", "devices=1, max_time='00:01:00:00',", "ends the training by the clock"),
    ("lit.py", LOADER, f"[next(iter({LOADER}))]", "a Tensor, whose samples have no indices"),
    ("lit.py", "devices=1,", "devices=1, reload_dataloaders_every_n_epochs=1,", "new loaders in mid-run"),
    ("accelerated.py", "cpu=True,", DISPATCH, "DataLoaderDispatcher"),
    ("trainer.py", "trainer.train()", "trainer.train(); trainer.train()", "one train() is recorded"),
]


@pytest.mark.parametrize(("name", "at", "instead", "says"), REFUSED, ids=[row[3] for row in REFUSED])
def test_what_cannot_be_followed_is_refused_by_name(
    name: str, at: str, instead: str, says: str, tmp_path: Path
) -> None:
    text = (SCRIPTS / name).read_text()
    assert at in text
    (tmp_path / name).write_text(
        text.replace(at, instead).replace("import argparse", "import accelerate\nimport argparse")
    )
    done = record(tmp_path / name, tmp_path / "run.pol")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert says in last and "Traceback" not in done.stderr


LAUNCHED = [
    ({"WORLD_SIZE": "2", "RANK": "0"}, "a launcher started 2 processes, and the script makes no process group"),
    ({}, "a process group of 1 process"),
]


@pytest.mark.parametrize(("variables", "says"), LAUNCHED, ids=["torchrun", "a process group"])
def test_a_script_of_several_processes_is_refused_by_name(
    variables: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support_scripts import script

    path = script(tmp_path)
    if not variables:
        opened = (
            "torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)"
        )
        path.write_text(path.read_text().replace("torch.manual_seed(1)", f"torch.manual_seed(1)\n{opened}"))
    for key, value in variables.items():
        monkeypatch.setitem(os.environ, key, value)
    done = record(path, tmp_path / "run.pol")
    assert done.returncode == 2 and says in done.stderr
    assert not (tmp_path / "run.pol" / "seal.json").exists()


def test_a_stray_frameworks_loop_is_told_and_does_not_hang(tmp_path: Path) -> None:
    """The verifier's script has other micro-batches than the recorded one: the loop takes another way."""
    text = (SCRIPTS / "lit.py").read_text()
    other = tmp_path / "lit.py"
    other.write_text(text.replace("accumulate_grad_batches=options.accumulate", "accumulate_grad_batches=3"))
    assert record(other, tmp_path / "run.pol", "--epochs", "1", interval=2).returncode == 0
    found = verdict(tmp_path / "run.pol", SCRIPTS / "lit.py", timeout=60.0)
    assert found.verdict in ("invalid", "inconclusive")
    assert "no sign of life" not in found.reason, found.reason
