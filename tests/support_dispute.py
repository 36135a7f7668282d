"""What the tests of disputes share: two honest runs of the tiny task, a copy of one, and ways to make a model a near one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import proof_of_learning as pol
from proof_of_learning import Dispute, TaskReference
from proof_of_learning.attacks import ATTACKS
from proof_of_learning.attestation import gathering, statements
from proof_of_learning.data.digits import digits
from proof_of_learning.proof import format
from proof_of_learning.proof.reader import Proof
from proof_of_learning.state.names import is_weight, short_name
from proof_of_learning.state.state import State
from support_attestation import only, put
from support_authority import Authority

Weights = dict[str, Tensor]
MATRICES = ("first.weight", "middle.weight", "last.weight")


@dataclass(frozen=True)
class Quarrel:
    """An owner's proof, a stranger's of the same task under another key, a thief's copies of the owner's steps (one is written down as
    observed, one forged under a key that leads elsewhere), and the owner's model. Read only."""

    folder: Path
    task: TaskReference
    other: TaskReference

    @property
    def owner(self) -> tuple[Path, TaskReference]:
        return self.folder / "owner", self.task

    @property
    def stranger(self) -> tuple[Path, TaskReference]:
        return self.folder / "stranger", self.other

    @property
    def thief(self) -> tuple[Path, TaskReference]:
        return self.folder / "thief", self.task

    @property
    def forged(self) -> tuple[Path, TaskReference]:
        return self.folder / "forged", self.task

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    def weights(self) -> Weights:
        return load_file(self.model)

    def made(self, name: str, change: Callable[[Weights], Mapping[str, Tensor]]) -> Path:
        """The model with a change, in a file of its own."""
        path = self.folder / f"{name}.safetensors"
        save_file({n: t.contiguous() for n, t in change(self.weights()).items()}, path)
        return path

    def dispute(self, model: Path, *proofs: tuple[Path, TaskReference], **options: object) -> Dispute:
        return pol.dispute(model, proofs, fresh=0, sandbox="off", **options)  # type: ignore[arg-type]


def build(folder: Path, path: str) -> Quarrel:
    """``path``: of the tiny tasks."""
    made = Quarrel(folder, TaskReference(path, {}), TaskReference(path, {"seed": 5}))
    for name, task in (("owner", made.task), ("stranger", made.other)):
        pol.prove(task, folder / name, interval=2, rehearse=False)
    for name, how in (("thief", "observed"), ("forged", "other-seed")):
        stolen = ATTACKS["stolen"](how=how, seed=99)
        stolen.forge(Proof.open(folder / "owner"), pol.load_task(made.task), folder / name)
    pol.export(folder / "owner", made.model)
    return made


def dated(proof: Path, authority: Authority, year: int) -> None:
    """A timestamp on the finished proof, with a date of one's choice; signed by nobody."""
    raw = statements.seal(gathering.sealed(Proof.open(proof)), [])
    name = put(proof, "seal-.json", raw).name if not list((proof / format.ATTESTATIONS).glob("seal-*.json")) else ""
    assert name or only(proof, "seal-*.json")
    put(proof, "seal-.tsr", authority.crafted(raw, datetime(year, 1, 1, tzinfo=UTC)))


def dated_head(proof: Path, authority: Authority, year: int, segment: int) -> None:
    """A timestamp on the state of the log after a segment."""
    opened = Proof.open(proof)
    lines = (proof / format.LOG_FILE).read_bytes().splitlines()
    line = [raw for raw in lines if json.loads(raw)["kind"] == "segment"][segment]
    head = format.line_digest(line, opened.header.version)
    raw = statements.head(gathering.sealed(opened).header, head, opened.segments[segment].stop, [])
    put(proof, "head-.json", raw)
    put(proof, "head-.tsr", authority.crafted(raw, datetime(year, 1, 1, tzinfo=UTC)))


def rearranged(weights: Weights, seed: int = 0) -> Weights:
    """The same function: hidden units of both layers in another order, and the sign of some turned round (tanh is odd)."""
    generator = torch.Generator().manual_seed(seed)
    made = dict(weights)
    for before, after in (("first", "middle"), ("middle", "last")):
        order = torch.randperm(16, generator=generator)
        sign = torch.where(torch.rand(16, generator=generator) < 0.5, -1.0, 1.0)
        made[f"{before}.weight"] = (made[f"{before}.weight"] * sign[:, None])[order]
        made[f"{before}.bias"] = (made[f"{before}.bias"] * sign)[order]
        made[f"{after}.weight"] = (made[f"{after}.weight"] * sign)[:, order]
    return made


def noisy(weights: Weights, share: float, seed: int = 0) -> Weights:
    """Each tensor moved at random by a share of its own length."""
    generator = torch.Generator().manual_seed(seed)
    made = dict(weights)
    for name in MATRICES:
        noise = torch.randn(made[name].shape, generator=generator)
        made[name] = made[name] + share * noise * made[name].norm() / noise.norm()
    return made


def matrices(weights: Weights, change: Callable[[Tensor], Tensor]) -> Weights:
    return {name: change(t) if name in MATRICES else t for name, t in weights.items()}


def in_state(state: State, change: Callable[[Weights], Weights]) -> Weights:
    """The weights of a state under their names there, changed."""
    names = {short_name(name): name for name in state.tensors if is_weight(name)}
    return {names[n]: t for n, t in change({n: state.tensors[name] for n, name in names.items()}).items()}


def trained(seed: int) -> Weights:
    """An MLP that learned the digits, with decay."""
    x, y = (torch.tensor(part) for part in digits())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)
        for _ in range(600):
            batch = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch].flatten(1).float() / 16), y[batch].long()).backward()
            optimizer.step()
    return {name: t.detach() for name, t in model.named_parameters()}
