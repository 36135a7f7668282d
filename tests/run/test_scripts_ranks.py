"""Several processes that train one model: recorded as one proof, and replayed on one machine by as many."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import nursery
from proof_of_learning.proof.reader import Proof
from proof_of_learning.run import launching
from proof_of_learning.run.launching import launch
from support_scripts import SCRIPTS, variables, verdict
from support_workers import imported

# Places as in support_scripts.LOOP. Parameters are registered in another order than they are used in, and in several buckets.
LOOP = """
import os, signal, sys, torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
import proof_of_learning as pol

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)
x = torch.randn(126, 12, generator=torch.Generator().manual_seed(5))
data = TensorDataset(x, x[:, :4].argmax(1))
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=8, sampler=sampler)

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.hidden, self.first, self.norm = nn.Linear(90, 4), nn.Linear(90, 90), nn.Linear(12, 90), nn.BatchNorm1d(90)

    def forward(self, x):
        x = nn.functional.dropout(self.norm(self.first(x)).relu(), 0.1, self.training)
        return self.out(self.hidden(x).relu())

network = Network()
model = DistributedDataParallel(network, bucket_cap_mb=0.02)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
SETUP
run = pol.Run(model=model, optimizer=optimizer)
for epoch in run.epochs(2):
    sampler.set_epoch(epoch)
    for number, (a, b) in enumerate(run.batches(loader)):
        BEGIN
        loss = nn.functional.cross_entropy(model(a + 0.01 * torch.randn_like(a)), b)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        STEP
END
"""


@pytest.fixture(autouse=True, scope="module")
def _imported() -> Iterator[None]:
    """What DistributedDataParallel imports takes a second in each process."""
    with imported("torch._dynamo", "torch.distributed.nn"):
        yield


def script(
    folder: Path, *, setup: str = "pass", begin: str = "pass", step: str = "pass", end: str = "run.close()"
) -> Path:
    text = LOOP.replace("SETUP", setup).replace("BEGIN", begin).replace("STEP", step).replace("END", end)
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(text)
    return folder / "train.py"


def record(
    path: Path, out: Path, ranks: int, *, interval: int = 3, rehearse: bool = False
) -> list[subprocess.CompletedProcess[str]]:
    """``pol prove`` as a launcher starts it, once for each process; what they said, in order of rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**variables(rehearse), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    nursery._parent(shared)  # before threads ask for it

    def one(rank: int) -> subprocess.CompletedProcess[str]:
        command = ("prove", path, "-o", out, "-k", interval)
        done = nursery.run(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, out.parent)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    with ThreadPoolExecutor(ranks) as threads:
        return list(threads.map(one, range(ranks)))


@pytest.fixture(scope="module")
def honest(_imported: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The script, and a proof of three processes: 12 steps, the last segment shorter. Read only."""
    folder = tmp_path_factory.mktemp("ranks")
    path = script(folder)
    done = record(path, folder / "run.pol", 3, interval=5)
    assert [one.returncode for one in done] == [0, 0, 0], done
    assert done[0].stdout.startswith("run.pol") or "12 steps" in done[0].stdout
    assert done[1].stdout == done[2].stdout == ""
    return path, folder / "run.pol"


def test_three_processes_are_one_proof_and_every_segment_of_it_is_replayed_exactly(honest: tuple[Path, Path]) -> None:
    path, proof = honest
    found = verdict(proof, path, everything=True)
    assert (found.verdict, found.assurance) == ("valid", "observed"), found.reason
    assert len(found.segments) == 3 and all(segment.exact for segment in found.segments)


def test_a_proof_holds_what_each_process_drew_and_the_weights_once(honest: tuple[Path, Path]) -> None:
    proof = Proof.open(honest[1])
    assert proof.header.ranks == 3
    assert set(proof.header.parts) == {"buckets", "model", "model@1", "model@2", "optimizer", "progress"}
    state = proof.state(proof.segments[-1].state)
    assert [name for name in state.tensors if name.startswith("model@1/parameters")] == []
    assert any(name.startswith("model@1/buffers/") for name in state.tensors)
    columns = proof.columns(0)
    drawn = [set(columns.indices[0].tolist()), *(set(share.indices[0].tolist()) for share in columns.ranks)]  # type: ignore[index]
    assert len(drawn) == 3 and len(set.union(*drawn)) == 24  # a step's batches have no sample in common
    assert len({share.rng[0].states["torch"].tobytes() for share in columns.ranks}) == 2  # type: ignore[index]


def test_the_buckets_of_gradients_are_a_part_of_the_state(honest: tuple[Path, Path]) -> None:
    """They change with the first update; without them sums of three numbers would be taken in another order."""
    proof = Proof.open(honest[1])
    trees = [dict(proof.state(digest).tree["d"])["s:buckets"] for digest in proof.state_digests()]
    assert trees[0] != trees[1] and trees[1] == trees[2] == trees[3]


# What a forger's script does besides, with the verifier's script as it should be.
FORGERIES = {
    "a rank's own batch": {"begin": "a = a.flip(0) if rank == 1 and number == 2 else a"},
    "a jump on all": {"step": "if (epoch, number) == (1, 2): network.out.bias.data += 0.01"},
    "a rank's own buffer": {"step": "if rank == 1: network.norm.running_mean += 0.01"},
}


SLOW = pytest.mark.slow(reason="like others, in what they ask of a run; each starts several processes")


@pytest.mark.parametrize("what", [pytest.param(what, marks=SLOW if "batch" not in what else ()) for what in FORGERIES])
def test_a_forgery_by_one_of_several_processes_is_invalid(what: str, tmp_path: Path) -> None:
    honest = script(tmp_path)
    forged = script(tmp_path / "other", **FORGERIES[what])
    done = record(forged, tmp_path / "run.pol", 2, interval=4)
    assert [one.returncode for one in done] == [0, 0], done
    found = verdict(tmp_path / "run.pol", honest)
    assert found.verdict == "invalid", found.reason


# What one process does besides, and what is said, on whichever of them.
PARTED = {
    "other weights": ({"step": "network.out.bias.data += rank"}, "process 1 has another model/parameters/out.bias than process 0"),
    "another rate": (
        {"step": "optimizer.param_groups[0]['lr'] *= 1 + rank"}, "process 1 trained at another learning rate than process 0",
    ),
    "other data": ({"setup": "data.tensors[0][0] += rank"}, "process 1 trains on other data than process 0"),
    "one close alone": (
        {"end": "if rank == 0: run.close()"}, "process 1: the script ended after 15 steps without run.close(), so nothing was sealed"
    ),
    "no module of all": ({"setup": "model = network"}, "is no DistributedDataParallel: hand that over"),
    "unequal batches": (
        {"setup": "from contextlib import ExitStack; stack = ExitStack(); stack.enter_context(model.join())"}, "is in join()",
    ),
    "a hook": (
        {"setup": "from torch.distributed.algorithms.ddp_comm_hooks import default_hooks as hooks; "
                  "model.register_comm_hook(None, hooks.fp16_compress_hook)"},
        "has a communication hook",
    ),
    "sharded": (
        {"setup": "from torch.distributed.optim import ZeroRedundancyOptimizer as Z; "
                  "optimizer = Z(model.parameters(), torch.optim.SGD, lr=0.1)"},
        "is sharded by ZeroRedundancyOptimizer",
    ),
}  # fmt: skip


LIKE = ("other data", "no module of all", "another rate", "unequal batches", "a hook", "sharded")


@pytest.mark.parametrize("what", [pytest.param(what, marks=SLOW if what in LIKE else ()) for what in PARTED])
def test_what_processes_do_not_have_in_common_is_said_and_nothing_is_sealed(what: str, tmp_path: Path) -> None:
    places, says = PARTED[what]
    done = record(script(tmp_path, **places), tmp_path / "run.pol", 2, interval=2)
    assert [one.returncode for one in done] == [2, 2], done
    said = "".join(one.stderr for one in done)
    assert says in said and "Traceback" not in said, said
    assert not (tmp_path / "run.pol" / "seal.json").exists()


@pytest.mark.slow
def test_what_no_process_has_as_a_part_is_found_by_the_rehearsal(tmp_path: Path) -> None:
    drift = script(tmp_path, setup="count = 0", begin="count += rank; a = a * (1 + 0.01 * count)")
    done = record(drift, tmp_path / "run.pol", 2, interval=5, rehearse=True)
    assert [one.returncode for one in done] == [2, 2], done
    assert "a replay of steps 15 to 16 from their recorded state alone arrives elsewhere" in done[0].stderr, done
    assert not (tmp_path / "run.pol" / "seal.json").exists()


def test_recording_several_processes_changes_no_loss(tmp_path: Path) -> None:
    """The loop once without a Run, and once more with one, from the same seeds."""
    path = script(tmp_path)
    head, begins, loop = (
        path.read_text().replace("loss.backward()", "losses.append(loss.item()); loss.backward()").partition("class")
    )
    plain = loop
    for ours, own in (
        ("run.epochs(2)", "range(2)"),
        ("run.batches(loader)", "loader"),
        ("run.close()", ""),
        ("run = pol.Run", "dict"),
    ):
        assert ours in plain
        plain = plain.replace(ours, own)
    twice = "".join(f"torch.manual_seed(rank)\n{begins}{text}" for text in (plain, loop))
    path.write_text(f"{head}losses = []\n{twice}\nprint('same', losses[:16] == losses[16:], len(losses))\n")
    done = record(path, tmp_path / "run.pol", 2)
    assert [one.stdout.splitlines()[0] for one in done] == ["same True 32", "same True 32"], done


def test_the_example_of_several_processes_is_valid(tmp_path: Path) -> None:
    done = record(SCRIPTS / "ddp.py", tmp_path / "run.pol", 2, interval=7)
    assert [one.returncode for one in done] == [0, 0], done
    found = verdict(tmp_path / "run.pol", SCRIPTS / "ddp.py")
    assert found.verdict == "valid", found.reason


@pytest.mark.slow
def test_the_example_trains_alike_under_a_launcher_and_with_ranks(tmp_path: Path) -> None:
    """As users start them: the processes and their workers are real, the worker in its sandbox."""
    plain = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(SCRIPTS / "ddp.py")],
        capture_output=True, text=True, env=variables(), check=False,
    )  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "proof_of_learning",
        "prove",
        str(SCRIPTS / "ddp.py"),
        "-o",
        "run.pol",
        "--ranks",
        "2",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=variables(rehearse=True), cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert plain.stdout and done.stdout.startswith(plain.stdout)
    verify = [sys.executable, "-m", "proof_of_learning", "verify", "run.pol", "--task", str(SCRIPTS / "ddp.py")]
    done = subprocess.run(verify, capture_output=True, text=True, env=variables(), cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout


def test_a_process_that_is_killed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "GRACE", 0.1)
    code = "import os, time; time.sleep(30) if os.environ['RANK'] == '0' else os.kill(os.getpid(), 9)"
    assert launch(2, [sys.executable, "-c", code]) == (2, "process 1 was ended by SIGKILL, so nothing was sealed")
    status = "import os; raise SystemExit(3 * int(os.environ['RANK']) * int(os.environ['WORLD_SIZE']))"
    assert launch(2, [sys.executable, "-c", "pass"]) == (0, "")
    assert launch(2, [sys.executable, "-c", status])[0] == 2


DRAWN = """
chosen = torch.randint(126, (8,))
        a, b = x[chosen], data.tensors[1][chosen]
"""


@pytest.mark.slow
def test_processes_that_draw_the_samples_of_one_do_not_pass_for_several(tmp_path: Path) -> None:
    """The work of one process: in the replay of every segment all of them draw the same, as recorded."""
    found = {}
    for name, seed in (("honest", "rank"), ("forged", "0")):
        path = script(tmp_path / name, setup=f"torch.manual_seed(100 + {seed})", begin=DRAWN.strip())
        text = path.read_text().replace(
            "in enumerate(run.batches(loader))", "in ((n, (None, None)) for n in run.steps(8))"
        )
        path.write_text(text.replace("optimizer=optimizer)", "optimizer=optimizer, data=data.tensors)"))
        assert [one.returncode for one in record(path, tmp_path / f"{name}.pol", 2, interval=4)] == [0, 0]
        found[name] = verdict(
            tmp_path / f"{name}.pol", tmp_path / "honest" / "train.py", everything=True, keep_going=True
        )
    assert found["honest"].verdict == "valid", found["honest"].reason
    assert found["forged"].check("trajectory").status == "pass"
    assert found["forged"].verdict == "inconclusive" and "two processes draw the same" in found["forged"].reason
