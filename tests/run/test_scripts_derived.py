"""Scripts whose randomness follows from a key: the verifier computes start, order and generators anew, and believes nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

import proof_of_learning as pol
import support_attestation
from conftest import nursery
from proof_of_learning.errors import FormatError
from proof_of_learning.proof import parse
from proof_of_learning.proof.format import Initialization
from proof_of_learning.proof.reader import Proof
from support_authority import serving
from support_scripts import LOOP, SCRIPTS, run, script, variables, verdict

HAND = """
import random
import numpy as np, torch
from torch import nn
from torch.utils.data import TensorDataset
import proof_of_learning as pol
from proof_of_learning.data.digits import digits

rng, other, third = np.random.default_rng(0), torch.Generator(), random.Random(3)
x, y = digits()
x, y = torch.tensor(x[:320].reshape(320, 64), dtype=torch.float32) / 16, torch.tensor(y[:320])
torch.manual_seed(1)
model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = pol.Run(model=model, optimizer=optimizer, data=(x, y))
for epoch in EPOCHS:
    order = PERMUTATION
    for i in run.steps(10):
        at = order[32 * i : 32 * i + 32]
        a = x[at] + 0.01 * torch.randn(32, 64, generator=other) * third.random()
        nn.functional.cross_entropy(model(a), y[at]).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(model[0].weight[0, 0].item(), int(order[0]))
run.close()
"""


def derived(
    path: Path, out: Path, *arguments: str, seed: int = 7, interval: int = 4, rehearse: bool = False, claim: Path | None = None
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """``pol prove PATH -o OUT --seed SEED`` (or ``--registration CLAIM``)."""
    source = ("--seed", seed) if claim is None else ("--registration", claim)
    done = nursery.run(
        ("prove", path, "-o", out, "-k", interval, *source, "--", *arguments), variables(rehearse), out.parent
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    ("name", "arguments", "interval"),
    [
        ("classify.py", ("--epochs", "2", "--workers", "2"), 5),
        pytest.param("language.py", ("--steps", "24"), 5, marks=pytest.mark.slow),
        pytest.param("augment.py", ("--workers", "1"), 5, marks=pytest.mark.slow),
        pytest.param("accumulate.py", (), 4, marks=pytest.mark.slow),
        pytest.param("patience.py", (), 6, marks=pytest.mark.slow),
    ],
)
def test_an_example_whose_randomness_follows_from_a_seed_is_valid(
    name: str, arguments: tuple[str, ...], interval: int, tmp_path: Path
) -> None:
    done = derived(SCRIPTS / name, tmp_path / "run.pol", *arguments, interval=interval, rehearse=name == "augment.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("all randomness follows from seed 7") == 1
    found = verdict(tmp_path / "run.pol", SCRIPTS / name, arguments=arguments, everything=True)
    assert (found.verdict, found.assurance) == ("valid", "seed-derived"), found.reason
    assert all(segment.exact for segment in found.segments)
    columns = list(Proof.open(tmp_path / "run.pol").all_columns())
    assert all(held.indices is None and held.rng is None for held in columns)  # nothing that could be believed


@pytest.mark.parametrize(
    ("epochs", "permutation"), [("run.epochs(3)", "rng.permutation(320)"), ("range(3)", "torch.randperm(320)")]
)
def test_an_order_drawn_by_hand_follows_from_the_key(epochs: str, permutation: str, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(HAND.replace("EPOCHS", epochs).replace("PERMUTATION", permutation))
    done = derived(path, tmp_path / "run.pol")
    assert done.returncode == 0, done.stderr
    found = verdict(tmp_path / "run.pol", path, everything=True)
    assert (found.verdict, found.assurance) == ("valid", "seed-derived"), found.reason
    firsts = {line.split()[1] for line in done.stdout.splitlines()[:3]}
    assert len(firsts) > 1  # each epoch has an order of its own


def test_the_same_seed_gives_the_same_root_and_another_one_another_run(tmp_path: Path) -> None:
    path = script(tmp_path)
    roots = []
    for number, seed in enumerate((1, 1, 2)):
        assert derived(path, tmp_path / f"{number}.pol", seed=seed).returncode == 0
        roots.append(Proof.open(tmp_path / f"{number}.pol").root)
    assert roots[0] == roots[1] != roots[2]


SPLIT = (
    "loader = DataLoader(data, batch_size=32, shuffle=True)",
    "data, rest = torch.utils.data.random_split(data, [512, 128], generator=torch.Generator().manual_seed(0))\n"
    "loader = DataLoader(data, batch_size=32, sampler=torch.utils.data.WeightedRandomSampler(torch.arange(512.0) + 1, 512))",
)


def replaced(path: Path, *pairs: tuple[str, str]) -> Path:
    text = path.read_text()
    for before, after in pairs:
        assert before in text, before
        text = text.replace(before, after)
    path.write_text(text)
    return path


def test_a_random_split_is_the_verifiers_too_and_cannot_be_registered(tmp_path: Path) -> None:
    path = replaced(script(tmp_path), SPLIT)
    assert derived(path, tmp_path / "run.pol").returncode == 0
    found = verdict(tmp_path / "run.pol", path)
    assert (found.verdict, found.assurance) == ("valid", "seed-derived"), found.reason
    done = nursery.run(("register", path, "-o", tmp_path / "claim.json"), variables(), tmp_path)
    assert done.returncode == 2 and b"follow from its seeds" in done.stderr, done.stderr
    assert not (tmp_path / "claim.json").exists()


# What a forger does besides, in a script of their own, and what the check says that finds it.
FORGERIES = {
    "an order that the key does not give": (
        ("steps = 0", "plain = run._clock.plan\nrun._clock.plan = lambda walk: plain(walk)[::-1]"),
        "not what training gives",
    ),
    "a start from elsewhere": (("steps = 0", "model[0].weight.data.mul_(1.5)"), "did not start from the state"),
    "generators of one's own": (
        (
            "steps = 0",
            "from proof_of_learning.run.seeds import Seeds\nplain = Seeds.step\n"
            "Seeds.step = lambda self, place, position: plain(self, place, 0)",
        ),
        "not what training gives",
    ),
    "generator states written down": (
        (
            "loss.backward()",
            "loss.backward(); from proof_of_learning.run.events import AFTER, Event; (epoch, number) == (0, 9) and "
            "run._clock._events.append(Event(AFTER, generator='torch', state=bytes(torch.get_rng_state().numpy())))",
        ),
        "are recorded that do not follow from the key",
    ),
    "a key of one's own choice": (
        (
            "steps = 0",
            "import msgspec\nplain = run._clock._header\n"
            "run._clock._header = lambda found: (lambda h: msgspec.structs.replace(h, randomness=msgspec.structs.replace("
            "h.randomness, seed='8')))(plain(found))",
        ),
        "the key does not follow from the seed",
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forgery_of_derived_randomness_is_invalid(what: str, tmp_path: Path) -> None:
    change, says = FORGERIES[what]
    path = script(tmp_path)
    (tmp_path / "other").mkdir()
    done = derived(replaced(script(tmp_path / "other"), change), tmp_path / "run.pol")
    assert done.returncode == 0, done.stderr
    found = verdict(tmp_path / "run.pol", path, accept_order=True)
    assert found.verdict == "invalid", found.reason
    assert any(check.status == "fail" and says in check.summary for check in found.checks), found.reason


def test_weights_that_no_key_gives_are_pretrained_and_have_to_be_declared(tmp_path: Path) -> None:
    stolen, file = tmp_path / "make.py", tmp_path / "weights.pt"
    stolen.write_text(LOOP.partition("optimizer =")[0] + f"torch.save(model.state_dict(), {str(file)!r})\n")
    assert run(stolen).returncode == 0
    path = script(tmp_path, epochs=1)
    replaced(path, ("optimizer = torch", f"model.load_state_dict(torch.load({str(file)!r}))\noptimizer = torch"))
    assert derived(path, tmp_path / "run.pol").returncode == 0
    found = verdict(tmp_path / "run.pol", path)
    assert found.verdict == "invalid" and "do not depend on the key" in found.reason, found.reason
    replaced(path, ("optimizer=optimizer)", f"optimizer=optimizer, pretrained={str(file)!r})"))
    assert derived(path, tmp_path / "said.pol").returncode == 0
    found = verdict(tmp_path / "said.pol", path)
    assert (found.verdict, found.assurance) == ("valid", "seed-derived"), found.reason
    assert "weights.pt" in next(check for check in found.checks if check.name == "initialization").summary


STATEFUL = """
class Own(torch.utils.data.Sampler):
    turn = 0
    def __len__(self): return 640
    def __iter__(self):
        self.turn += 1
        return iter([(i + self.turn) % 640 for i in range(640)])

loader = DataLoader(data, batch_size=32, sampler=Own())
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("loader = DataLoader(data, batch_size=32, shuffle=True)", STATEFUL), "the order of the loader's Own does not follow"),
        (
            ("        loss =", "        next(iter(run.batches(DataLoader(data))))\n        loss ="),
            "a second loader beside the first",
        ),
        (
            ("batch_size=32, shuffle=True", "batch_size=32, shuffle=True, num_workers=1, multiprocessing_context='spawn'"),
            "'spawn', where no key reaches them",
        ),
    ],
    ids=["sampler", "second loader", "workers"],
)  # fmt: skip
def test_what_the_key_does_not_reach_is_refused_by_name(change: tuple[str, str], says: str, tmp_path: Path) -> None:
    path = replaced(script(tmp_path, epochs=1, end="run.close(); print('trained')"), change)
    if "spawn" in says:  # its workers run the script again
        path.write_text(
            "if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in path.read_text().splitlines())
        )
    done = derived(path, tmp_path / "run.pol")
    assert done.returncode == 2 and "trained" not in done.stdout, done.stderr
    assert says in done.stderr and "Training stops after 0 steps" in done.stderr
    assert not (tmp_path / "run.pol" / "seal.json").exists()


def test_a_start_that_differs_in_each_process_is_named_while_training(tmp_path: Path) -> None:
    path = replaced(script(tmp_path), ("torch.manual_seed(1)", "import os\ntorch.manual_seed(os.getpid())"))
    done = derived(path, tmp_path / "run.pol", rehearse=True)
    assert done.returncode == 2 and "the initial state is another in a fresh process" in done.stderr, done.stderr


def test_a_scripts_run_under_a_stamped_claim_is_registered(world: support_attestation.World, tmp_path: Path) -> None:
    path, claim, proof = script(tmp_path, epochs=1), tmp_path / "claim.json", tmp_path / "run.pol"
    done = nursery.run(("register", path, "-o", claim, "-k", 7, "--owner", world.trusted), variables(), tmp_path)
    assert done.returncode == 0 and b"as many steps as the script takes" in done.stdout, done.stderr
    with serving(world.first.reply) as authority:
        pol.sign(claim, world.folder / "key.pem")
        pol.timestamp(claim, [authority])
        recorded = nursery.run(("prove", path, "-o", proof, "--registration", claim), variables(), tmp_path)
        assert recorded.returncode == 0, recorded.stderr
        pol.sign(proof, world.folder / "key.pem")
        pol.timestamp(proof, [authority])
    found = verdict(proof, path, registration=claim, trusted_tsa=[world.first.roots], trusted_keys=[world.trusted])
    assert (found.verdict, found.assurance) == ("valid", "registered"), found.reason
    again = derived(path, tmp_path / "again.pol", claim=claim)
    assert again.returncode == 2 and "already used" in again.stderr and not again.stdout


def test_a_run_that_its_claim_does_not_fix_ends_before_it_trains(tmp_path: Path) -> None:
    path, claim = script(tmp_path, epochs=1, begin="print('a step')"), tmp_path / "claim.json"
    assert nursery.run(("register", path, "-o", claim, "-k", 4), variables(), tmp_path).returncode == 0
    typed = derived(path, tmp_path / "run.pol", "--lr", "1", claim=claim)
    assert "the claim fixes the script's arguments as none, not '--lr 1'" in typed.stderr
    rate = derived(path, tmp_path / "run.pol", claim=claim, interval=5)
    assert "the claim fixes interval as 4, not 5" in rate.stderr
    path.write_text(path.read_text().replace("momentum=0.9", "momentum=0.8"))  # seen when the first batch is asked for
    code = derived(path, tmp_path / "run.pol", claim=claim)
    assert "the claim fixes the task (its code, or a number in it)" in code.stderr
    for done in (typed, rate, code):
        assert done.returncode == 2 and "Training goes on" not in done.stderr and done.stdout in ("", "a step\n")
    assert not (tmp_path / "run.pol").exists()


def test_a_header_of_two_minds_is_refused(tmp_path: Path) -> None:
    assert derived(script(tmp_path, epochs=1), tmp_path / "run.pol").returncode == 0
    header = Proof.open(tmp_path / "run.pol").header
    parse.check(header)
    with pytest.raises(FormatError, match="recorded or derived, as its order is"):
        parse.check(msgspec.structs.replace(header, initialization=Initialization("recorded")))
