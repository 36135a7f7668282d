"""Scripts with a loop of their own: recorded without a change of any number, and replayed by the same script elsewhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import proof_of_learning as pol
from proof_of_learning.errors import UsageError
from proof_of_learning.proof.reader import Proof
from support_scripts import SCRIPTS, record, run, script, verdict

# Script, arguments, interval. Intervals that do not divide an epoch: segments begin in its middle, and span its end.
TABLE = [
    ("classify.py", ["--epochs", "2", "--lr", "0.1"], 5),
    ("gan.py", ["--epochs", "2"], 9),
    ("language.py", ["--steps", "30"], 4),
    ("accumulate.py", [], 4),
    ("augment.py", ["--workers", "1"], 5),
    ("average.py", [], 7),
    ("finetune.py", ["--weights", "WEIGHTS"], 5),
    ("patience.py", [], 6),
    ("sequences.py", [], 6),
    ("vae.py", [], 5),
]
ALIKE = pytest.mark.slow(reason="like others, in what it asks of a run")
SLOW = {"average.py", "classify.py", "language.py", "sequences.py", "vae.py"}


@pytest.mark.parametrize(
    ("name", "arguments", "interval"),
    [pytest.param(*row, marks=ALIKE if row[0] in SLOW else (), id=row[0]) for row in TABLE],
)
def test_an_example_records_unchanged_and_is_valid_elsewhere(
    name: str, arguments: list[str], interval: int, tmp_path: Path
) -> None:
    if "WEIGHTS" in arguments:
        arguments = ["--weights", str(tmp_path / "weights.pt")]
        assert run(SCRIPTS / name, *arguments, "--make").returncode == 0
    plain = run(SCRIPTS / name, *arguments)
    recorded = record(SCRIPTS / name, tmp_path / "run.pol", *arguments, interval=interval)
    assert recorded.returncode == 0, recorded.stderr
    assert plain.stdout and recorded.stdout.startswith(plain.stdout)  # every loss and accuracy that it prints
    every = verdict(tmp_path / "run.pol", SCRIPTS / name, arguments=tuple(arguments), everything=True)
    assert (every.verdict, every.assurance) == ("valid", "observed"), every.reason
    assert len(every.segments) == len(Proof.open(tmp_path / "run.pol").segments)
    assert all(segment.exact for segment in every.segments)


def test_an_example_changes_at_most_four_lines() -> None:
    for name, *_ in TABLE:
        changed = [line for line in (SCRIPTS / name).read_text().splitlines() if "run." in line or "pol" in line]
        own = [line for line in changed if "digits import" not in line]
        assert len(own) <= 5, own  # the import, the Run, and three uses of it at most


# What a forger's script does besides, with the verifier's script as it should be.
FORGERIES = [
    ("a jump", {"step": "if (epoch, number) == (1, 3): [p.data.add_(0.01) for p in model.parameters()]"}),
    ("a falsified rate", {"step": "if (epoch, number) == (1, 3): optimizer.param_groups[0]['lr'] = 0.2"}),
    pytest.param(
        "a falsified momentum",
        {"step": "if (epoch, number) == (1, 3): optimizer.param_groups[0]['momentum'] = 0.99"},
        marks=ALIKE,
    ),
    ("its own batches", {"begin": "a = a.flip(0)"}),
]


@pytest.mark.parametrize(("why", "places"), FORGERIES, ids=["a jump", "a rate", "a momentum", "batches"])
def test_a_forgery_of_a_scripts_run_is_invalid(why: str, places: dict[str, str], tmp_path: Path) -> None:
    honest = script(tmp_path)
    (tmp_path / "other").mkdir()
    forged = script(tmp_path / "other", **places)  # type: ignore[arg-type]
    assert record(forged, tmp_path / "run.pol", interval=1).returncode == 0
    found = verdict(tmp_path / "run.pol", honest)
    assert found.verdict == "invalid", found.reason


def test_a_run_that_is_shorter_than_the_script_is_not_valid(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert record(script(tmp_path / "other", epochs=1), tmp_path / "run.pol").returncode == 0
    found = verdict(tmp_path / "run.pol", script(tmp_path, epochs=2))
    assert found.verdict == "inconclusive" and "the script goes on" in found.reason


# What a forger's loop leaves out; the script as the verifier has it would have made more steps.
SHORTER = [
    ("epochs", "run.epochs(EPOCHS)", "(e for e in run.epochs(4) if e in (0, 3))"),
    (
        "batches",
        "batch_size=32, shuffle=True",
        "batch_size=32, sampler=torch.utils.data.RandomSampler(data, num_samples=128)",
    ),
]


@pytest.mark.parametrize(("what", "honest", "forged"), SHORTER, ids=[row[0] for row in SHORTER])
def test_a_run_that_leaves_steps_out_is_not_valid(what: str, honest: str, forged: str, tmp_path: Path) -> None:
    path = script(tmp_path, epochs=4)
    (tmp_path / "other").mkdir()
    other = script(tmp_path / "other", epochs=4)
    text = other.read_text().replace(honest.replace("EPOCHS", "4"), forged)
    assert text != other.read_text()
    other.write_text(text)
    assert record(other, tmp_path / "run.pol", interval=1).returncode == 0
    found = verdict(tmp_path / "run.pol", path)
    assert found.verdict == "inconclusive", found.reason
    assert found.reason.startswith("order"), found.reason


def test_a_live_epoch_and_a_live_count_are_right_after_a_jump(tmp_path: Path) -> None:
    live = script(tmp_path, begin="optimizer.param_groups[0]['lr'] = 0.1 / (1 + epoch) / (1 + number % 3)")
    assert record(live, tmp_path / "run.pol", interval=3).returncode == 0
    found = verdict(tmp_path / "run.pol", live, everything=True)
    assert found.verdict == "valid", found.reason


def test_what_a_script_writes_is_read_again_in_a_replay_and_changes_no_file(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        epoch="torch.save(model.state_dict(), 'best.pt'); model.load_state_dict(torch.load('best.pt')); "
        "open('log.txt', 'a').write(f'{epoch}')",
    )
    assert record(path, tmp_path / "run.pol", interval=7).returncode == 0
    weights, log = tmp_path / "best.pt", tmp_path / "log.txt"
    before = weights.read_bytes()
    assert log.read_text() == "01"
    found = verdict(tmp_path / "run.pol", path, everything=True)
    assert found.verdict == "valid", found.reason
    assert weights.read_bytes() == before and log.read_text() == "01"


def test_a_draw_while_a_batch_is_fetched_is_repeated(tmp_path: Path) -> None:
    path = script(tmp_path)
    text = path.read_text().replace(
        "loader = DataLoader(data, batch_size=32, shuffle=True)",
        "noisy = lambda items: [a + 0.1 * torch.randn_like(a) if a.is_floating_point() else a for a in default_collate(items)]\n"
        "loader = DataLoader(data, batch_size=32, shuffle=True, collate_fn=noisy, num_workers=WORKERS)",
    )
    path.write_text(
        text.replace("import DataLoader", "import DataLoader, default_collate").replace("WORKERS", "int(sys.argv[1])")
    )
    for workers in ("0", "1"):
        out = tmp_path / f"run{workers}.pol"
        assert record(path, out, workers, interval=7).returncode == 0
        found = verdict(out, path, everything=True)
        assert found.verdict == "valid", found.reason


def test_parts_of_every_kind_are_state(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        step="averaged.update_parameters(model); counter.load_state_dict({'n': counter.n + 1}); "
        "optimizer.param_groups[0]['weight_decay'] = 1e-4 * (counter.n % 5)",
        epoch="plateau.step(float(loss)); warm.step()",
    )
    text = path.read_text().replace(
        "run = pol.Run(model=model, optimizer=optimizer)",
        """
class Counter:
    n = 0
    def state_dict(self): return {"n": self.n}
    def load_state_dict(self, values): self.n = values["n"]

counter = Counter()
averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
run = pol.Run(net=model, opt=optimizer, plateau=plateau, warm=warm, ema=averaged, counter=counter)
""",
    )
    path.write_text(text)
    done = record(path, tmp_path / "run.pol", interval=3)
    assert done.returncode == 0, done.stderr
    assert set(Proof.open(tmp_path / "run.pol").header.parts) == {
        "model", "optimizer", "scheduler.plateau", "scheduler.warm", "ema", "counter", "progress",
    }  # fmt: skip
    found = verdict(tmp_path / "run.pol", path, everything=True)
    assert found.verdict == "valid", found.reason


def test_batches_that_the_script_names_itself_are_recorded_and_replayed(tmp_path: Path) -> None:
    path = script(tmp_path, epoch="run.end()")
    text = path.read_text().replace(
        "for number, (a, b) in enumerate(run.batches(loader)):",
        "for chosen in torch.randperm(640).split(32):\n        a, b = data[run.begin(chosen)]",
    )
    path.write_text(text.replace("model=model,", "data=data, model=model,"))
    plain, done = run(path), record(path, tmp_path / "run.pol", interval=3)
    assert plain.returncode == 0 and done.returncode == 0, done.stderr
    # Whoever verifies cannot know what batches the script would name, and has to accept that.
    assert verdict(tmp_path / "run.pol", path).verdict == "inconclusive"
    found = verdict(tmp_path / "run.pol", path, everything=True, accept_order=True)
    assert found.verdict == "valid", found.reason


def test_other_arguments_of_the_verifiers_are_no_forgery(tmp_path: Path) -> None:
    path = script(tmp_path, begin="optimizer.param_groups[0]['lr'] = float(sys.argv[1])")
    assert record(path, tmp_path / "run.pol", "0.1").returncode == 0
    assert Proof.open(tmp_path / "run.pol").header.program.arguments == ["0.1"]
    found = verdict(tmp_path / "run.pol", path, arguments=("0.3",))
    assert found.verdict == "inconclusive"
    assert "you named other arguments (0.3) than the proof was recorded with (0.1)" in found.reason
    with pytest.raises(UsageError, match=r"the proof is of a script, and train\.py:task is a task"):
        pol.verify(tmp_path / "run.pol", f"{path}:task")
    assert verdict(tmp_path / "run.pol", path).verdict == "valid"


# What cannot be recorded: said in one line, nothing is sealed, status 2; the training went on.
BAD = [
    ("without run.close()", {"end": "pass"}),
    ("training is no longer finite", {"begin": "optimizer.param_groups[0]['lr'] = 1e38"}),
    ("makes a second pol.Run", {"end": "run.close(); pol.Run(model=model)"}),
    ("ended itself with status 3", {"step": "sys.exit(3)"}),
    ("asks for more batches after run.close()", {"step": "run.close() if number == 7 else None"}),
]


@pytest.mark.parametrize(("says", "places"), BAD, ids=[row[0] for row in BAD])
def test_what_cannot_be_recorded_is_said_in_one_line(says: str, places: dict[str, str], tmp_path: Path) -> None:
    done = record(script(tmp_path, **places), tmp_path / "run.pol")  # type: ignore[arg-type]
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


def test_data_that_read_otherwise_each_time_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = script(tmp_path, epochs=1)
    noisy = "data.__class__ = type('Noisy', (TensorDataset,), {'__getitem__': lambda self, i: (torch.rand(64), self.tensors[1][i])})"
    path.write_text(path.read_text().replace("steps = 0", noisy))
    done = record(path, tmp_path / "run.pol")
    assert done.returncode == 2
    assert (
        "reads differently the second time; hand the data without random changes over: pol.Run(data=plain"
        in done.stderr
    )


def test_a_finished_directory_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    path = script(tmp_path, epochs=1, end="run.close(); print('trained')")
    (tmp_path / "run.pol").mkdir()
    (tmp_path / "run.pol" / "seal.json").write_text("{}")
    done = record(path, tmp_path / "run.pol")
    assert done.returncode == 2 and "trained" not in done.stdout
    assert "holds a finished proof already" in done.stderr


READS = ("torch.manual_seed(1)", "torch.manual_seed(int(open(sys.argv[1]).read()))")


def test_a_file_that_the_script_reads_first_is_an_input_and_another_one_is_named(tmp_path: Path) -> None:
    path = script(tmp_path)
    path.write_text(path.read_text().replace(*READS))
    for folder, seed in (("here", "7"), ("there", "7"), ("elsewhere", "8")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "seed.txt").write_text(seed)
    assert record(path, tmp_path / "run.pol", str(tmp_path / "here" / "seed.txt")).returncode == 0
    assert [item.name for item in Proof.open(tmp_path / "run.pol").header.inputs] == ["seed.txt"]
    same = verdict(tmp_path / "run.pol", path, arguments=(str(tmp_path / "there" / "seed.txt"),))
    assert same.verdict == "valid", same.reason
    assert "reads the same 1 file: seed.txt" in next(c.summary for c in same.checks if c.name == "task")
    other = verdict(tmp_path / "run.pol", path, arguments=(str(tmp_path / "elsewhere" / "seed.txt"),))
    assert other.verdict == "inconclusive" and "you have another file seed.txt" in other.reason, other.reason


def test_loaders_with_batches_of_other_sizes_are_no_forgery(tmp_path: Path) -> None:
    path = script(tmp_path)
    text = path.read_text().replace("steps = 0", "small = DataLoader(data, batch_size=20, shuffle=True)")
    path.write_text(text.replace("run.batches(loader)", "run.batches(small if epoch else loader)"))
    assert record(path, tmp_path / "run.pol", interval=7).returncode == 0
    found = verdict(tmp_path / "run.pol", path)
    assert found.verdict == "inconclusive" and "takes a batch of 20" in found.reason, found.reason
    assert verdict(tmp_path / "run.pol", path, accept_order=True).verdict == "valid"


def test_what_is_logged_is_said_to_be_no_part_of_the_proof(tmp_path: Path) -> None:
    path = script(tmp_path, epochs=1, step="run.log(loss=loss.item())")
    done = record(path, tmp_path / "run.pol")
    assert done.returncode == 0 and done.stderr.count("run.log(loss) records nothing") == 1, done.stderr


def test_networks_are_shown_as_many_samples_wherever_an_update_of_several_batches_stands(tmp_path: Path) -> None:
    """A loop that steps at every second number is amid an update where a replay begins, and at an update's end for the next state."""
    path = script(tmp_path, epochs=8)
    text = (
        path.read_text()
        .replace("[:640]", "[:48]")
        .replace("(640, 64)", "(48, 64)")
        .replace("batch_size=32", "batch_size=8")
    )
    for line in ("optimizer.step()", "optimizer.zero_grad()"):
        assert line in text
        text = text.replace(line, f"if number % 2: {line}")
    path.write_text(text)
    assert record(path, tmp_path / "run.pol").returncode == 0
    found = verdict(tmp_path / "run.pol", path)
    learning = next(check for check in found.checks if check.name == "learning")
    assert learning.status == "pass", learning.summary


def unwritable(folder: Path, strict: str) -> subprocess.CompletedProcess[str]:
    """Record a script in whose fifth step the folder of its states stops to be one, as a disk stops to have room."""
    states = folder / "run.pol" / "objects"
    breaks = f"steps += 1; steps == 5 and (os.rename({str(states)!r}, 'gone'), open({str(states)!r}, 'w').close())"
    path = script(folder, epochs=1, step=breaks, end="run.close(); print('trained', steps)")
    text = path.read_text().replace("import sys, torch", "import os, sys, torch")
    path.write_text(text.replace("optimizer=optimizer)", f"optimizer=optimizer{strict})"))
    return record(path, folder / "run.pol", interval=2)


@pytest.mark.parametrize("strict", ["", ", strict=True"])
def test_a_script_that_is_run_for_its_proof_stops_where_that_cannot_be_written(strict: str, tmp_path: Path) -> None:
    done = unwritable(tmp_path, strict)
    assert done.returncode == 2 and not done.stdout and "cannot be written" in done.stderr, done.stderr
    assert strict or ("Training stops after" in done.stderr and f"remove {tmp_path / 'run.pol'} first" in done.stderr)
    assert done.stderr.count("cannot be written") == 1 and "Traceback" not in done.stderr


def test_a_script_that_says_so_trains_on_without_its_proof(tmp_path: Path) -> None:
    done = unwritable(tmp_path, ", strict=False")
    assert (done.returncode, done.stdout) == (2, "trained 20\n"), done.stderr
    assert "Training goes on without a proof" in done.stderr


def test_what_stands_behind_the_loop_runs_though_the_last_state_cannot_be_written(tmp_path: Path) -> None:
    states = tmp_path / "run.pol" / "objects"
    breaks = f"import os; os.rename({str(states)!r}, 'gone'); open({str(states)!r}, 'w').close()"
    path = script(tmp_path, epochs=1, end=f"{breaks}; run.close(); print('saved')")
    done = record(path, tmp_path / "run.pol", interval=7)
    assert (done.returncode, done.stdout) == (2, "saved\n"), done.stderr
    assert "Nothing was sealed; the script goes on behind its loop" in done.stderr
