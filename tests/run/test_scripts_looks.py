"""What a script's states show of its networks: the same, whatever its loop evaluates amid its steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from proof_of_learning.errors import PolError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.protocol import Glimpse, Probe
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.task import TaskReference
from support_scripts import record, script, verdict

STATES = 12  # more looks than the evaluating loops below take steps from one evaluation to the next
HELD = "x[640:].reshape(-1, 64), dtype=torch.float32) / 16"
COUNT = "steps += 1; "
# What the loop does at its end, and before it learns, of every few steps.
AFTER = {
    "as it trains": "model(held).argmax(1)",
    "with gradients": "nn.functional.cross_entropy(model(held), wanted).backward(); optimizer.zero_grad()",
    "in eval mode, by a loader": "model.eval(); [model(c) for c, in DataLoader(TensorDataset(held), batch_size=50)]; model.train()",
    "and leaves eval mode": "model.eval(); model(held)",
    "a fixed batch": "print(model(held[:8]).softmax(1)[0, 0].item())",
}
BEFORE = {
    "a draw": "model(held)",
    "a loader": "[model(c) for c, in DataLoader(TensorDataset(held), batch_size=50)]",
}


def evaluating(folder: Path, **places: str) -> Path:
    folder.mkdir()
    path = script(folder, **places)  # type: ignore[arg-type]
    text = path.read_text().replace(
        "steps = 0\n", f"steps = 0\nheld, wanted = torch.tensor({HELD}, torch.tensor(y[640:])\n"
    )
    path.write_text(text)
    return path


def glimpses(proof: Proof, path: Path, gradients: bool) -> list[Glimpse]:
    with Replayer(proof, TaskReference(str(path))) as replayer:
        states = [proof.state(digest) for digest in proof.state_digests()[:STATES]]
        seen = replayer.probe(Probe(np.arange(64, dtype="<i8").tobytes(), 5, gradients), states)
        return [replace(glimpse, loss=0.0) for glimpse in seen]  # a step's is the sum of what backward was called on


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Proof, list[Glimpse]]:
    folder = tmp_path_factory.mktemp("plain")
    path = script(folder)
    done = record(path, folder / "run.pol", interval=2)
    assert done.returncode == 0, done.stderr
    proof = Proof.open(folder / "run.pol")
    return proof, glimpses(proof, path, True)


@pytest.mark.parametrize("what", AFTER)
def test_a_state_shows_the_same_whatever_is_evaluated_behind_a_step(
    what: str, plain: tuple[Proof, list[Glimpse]], tmp_path: Path
) -> None:
    path = evaluating(tmp_path / "other", step=f"{COUNT}\n        if steps % 5 == 0: {AFTER[what]}")
    assert glimpses(plain[0], path, True) == plain[1]


@pytest.mark.parametrize("what", BEFORE)
def test_a_state_shows_the_same_whatever_is_evaluated_before_a_step(
    what: str, plain: tuple[Proof, list[Glimpse]], tmp_path: Path
) -> None:
    path = evaluating(tmp_path / "other", begin=f"with torch.set_grad_enabled(False): number % 3 or {BEFORE[what]}")
    assert glimpses(plain[0], path, True) == plain[1]


# Ways in which a loop ends amid the looks, or leaves its loader early, by a count of its own.
ENDS = {
    "it leaves the loader after a step": {"step": "if number >= 3: break"},
    "it leaves the loader before a step": {"begin": "if number >= 3: break"},
    "it closes after every step": {"step": "run.close()"},
    "it ends between two evaluations": {"begin": "number % 2 or model(held)", "step": "if number >= 4: break"},
    "another loop follows": {
        "step": "if number >= 3: break",
        "end": "for epoch in run.epochs(2, 4):\n    for a, b in run.batches(loader):\n"
        "        model(held); optimizer.step()\nrun.close()",
    },
}


@pytest.mark.parametrize("what", ENDS)
def test_a_state_shows_the_same_however_soon_the_loop_ends(
    what: str, plain: tuple[Proof, list[Glimpse]], tmp_path: Path
) -> None:
    path = evaluating(tmp_path / "other", **ENDS[what])
    assert glimpses(plain[0], path, True) == plain[1]


def test_a_loop_that_ends_before_it_takes_a_step_is_told(plain: tuple[Proof, list[Glimpse]], tmp_path: Path) -> None:
    path = evaluating(tmp_path / "other", begin="break")
    with pytest.raises(PolError, match="ended before it took a step"):
        glimpses(plain[0], path, False)


@pytest.mark.parametrize("every", [1, 2])
def test_states_are_seen_alike_however_often_is_evaluated(every: int, tmp_path: Path) -> None:
    """Each state twice, so that the loop's own count differs: what it evaluates at every step shows in none of them, or in all."""
    path = evaluating(tmp_path / "other", step=f"{COUNT}\n        if steps % {every} == 0: {AFTER['as it trains']}")
    assert record(path, tmp_path / "run.pol", interval=2).returncode == 0
    proof = Proof.open(tmp_path / "run.pol")
    with Replayer(proof, TaskReference(str(path))) as replayer:
        states = [proof.state(proof.state_digests()[place]) for place in (0, 7, 7, 3, 0, 3, 7)]
        seen = replayer.probe(Probe(np.arange(32, dtype="<i8").tobytes(), 5, False), states)
    assert seen[0] == seen[4] and seen[1] == seen[2] == seen[6] and seen[3] == seen[5]
    assert seen[0] != seen[1]


# What the loop uses of its network's calls only in some states, or calls more often there.
VARYING = {
    "a loss leaves a call out": "more = model(a + 1).square().mean(); loss = loss if sure else loss + more; loss.backward()",
    "a closure is taken more often": "loss.backward(); optimizer.step(lambda: [model(a) for _ in range(1 + 3 * sure)])",
}


@pytest.mark.parametrize("what", VARYING)
def test_all_states_show_as_many_rows_whatever_a_loss_uses(
    what: str, plain: tuple[Proof, list[Glimpse]], tmp_path: Path
) -> None:
    states = [plain[0].state(digest).tensors for digest in plain[0].state_digests()[:STATES]]
    norms = sorted(float(next(t for n, t in state.items() if n.endswith("0.weight")).norm()) for state in states)
    path = evaluating(tmp_path / "other", begin=f"sure = bool(model[0].weight.norm() > {norms[STATES // 2]})")
    path.write_text(path.read_text().replace("loss.backward()", VARYING[what]))
    assert len({head.rows for glimpse in glimpses(plain[0], path, False) for head in glimpse.heads}) == 1


def test_a_network_that_is_trained_now_and_then_is_judged_where_it_is(tmp_path: Path) -> None:
    """As of a GAN whose generator learns in every third step."""
    learn = "second.zero_grad(); (other(model(a).detach()) - a).square().mean().backward(); second.step()"
    path = evaluating(tmp_path / "script", step=f"if number % 3 == 2: {learn}")
    made = "other = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 64))\n"
    made += "second = torch.optim.Adam(other.parameters(), 3e-3)\nrun = pol.Run(other=other, second=second, "
    path.write_text(path.read_text().replace("run = pol.Run(", made))
    assert record(path, tmp_path / "run.pol", interval=1).returncode == 0
    found = verdict(tmp_path / "run.pol", path)
    assert found.verdict == "valid", found.reason


def test_networks_that_are_only_asked_are_not_said_to_learn_nothing(tmp_path: Path) -> None:
    """A teacher and an average, whose parameters no optimizer holds, though gradients could reach them."""
    path = evaluating(
        tmp_path / "script", step=f"{COUNT}average.update_parameters(model)\n        if steps % 5 == 0: average(held)"
    )
    path.write_text(
        path.read_text()
        .replace(
            "run = pol.Run(",
            "teacher, average = nn.Linear(64, 10), torch.optim.swa_utils.AveragedModel(model)\nrun = pol.Run(",
        )
        .replace("optimizer=optimizer)", "optimizer=optimizer, teacher=teacher, average=average)")
        .replace("model(a), b)", "model(a), b) + 0.1 * (model(a) - teacher(a).detach()).square().mean()")
    )
    assert record(path, tmp_path / "run.pol", interval=1).returncode == 0
    found = verdict(tmp_path / "run.pol", path)
    assert found.verdict == "valid", found.reason


DRAWS = [
    pytest.param(number, marks=[] if number < 2 else pytest.mark.slow(reason="like others")) for number in range(10)
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Small batches, so that many looks are taken between two states, and in train mode, with dropout."""
    folder = tmp_path_factory.mktemp("trained")
    path = evaluating(folder / "script", step=f"{COUNT}\n        if steps % 20 == 0: {AFTER['as it trains']}")
    path.write_text(path.read_text().replace("batch_size=32", "batch_size=8").replace("lr=0.1", "lr=0.02"))
    assert record(path, folder / "run.pol", interval=1).returncode == 0
    return folder / "run.pol", path


@pytest.mark.parametrize("number", DRAWS)
def test_a_run_that_evaluates_amid_its_steps_is_valid_under_every_draw(number: int, trained: tuple[Path, Path]) -> None:
    found = verdict(*trained, nonce=f"{number:064x}", accept_nonce=True)
    assert found.check("learning").status == "pass", found.check("learning").summary
    assert found.check("learning").evidence["final_unrest"] < 0.3
    assert found.verdict == "valid", found.reason
