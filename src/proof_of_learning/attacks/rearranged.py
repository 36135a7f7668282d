"""Rearranged: somebody's whole run, with its hidden units in another order, or their signs turned round, as one's own observed one.

W₂ f(W₁ x) is the same function for P W₁ and W₂ Pᵀ with any permutation P, and for odd f with any signs; optimizers that work element
by element keep it so. No state holds a matrix of the target's, and no training was taken. In another *order* sums round otherwise, so
that the run replays only up to rounding: it takes a verifier who compares within a tolerance, for which it claims an environment that
they cannot have. *Signs* leave every sum as it was, and the run replays bit for bit.

No replay can tell it from honest training, for up to names of units it is one: of somebody else. What is accepted is graded
``observed``, and a dispute between both proofs finds their starts made from one another. ``noise`` is to hide that: the same random
offset is added to the weights of every state. It does not: of a hundredth of their spread an error comes that is hundreds of times
beyond the tolerance (digits), and a dispute sees through thirty times as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.claimed_environment import claimed
from proof_of_learning.attacks.dead import sample_losses
from proof_of_learning.attacks.moves import sealed_again
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.disputes import units
from proof_of_learning.errors import AttackError
from proof_of_learning.numeric import randomness
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.proof.format import Initialization, Randomness
from proof_of_learning.state.names import is_weight, role, short_name
from proof_of_learning.state.state import State

ALIKE = 1e-3  # of the losses, before and after
SAMPLES = 32


@dataclass(init=False, frozen=True)
class Rearranged(Attack):
    name = "rearranged"
    summary = "the target's whole run with its hidden units in another order or with other signs; no training"
    source = "this project, found by an attack from outside on its own verifier"
    knowledge = "the target's whole proof, and the task"
    ends_in_target = False
    variants = (
        {}, {"claims": "machine"}, {"claims": "nothing"}, {"share": 0.1}, {"noise": 0.01}, {"noise": 0.1},
        {"how": "signs", "claims": "nothing"},
    )  # fmt: skip

    how: str = parameter("order", "what becomes of hidden units", choices=("order", "signs"))
    share: float = parameter(1.0, "share of each layer's hidden units that it becomes of", low=0.0, high=1.0)
    noise: float = parameter(0.0, "offset of all states' weights, as a share of their spread", low=0.0, high=10.0)
    claims: str = parameter(
        "library", "what the claimed environment differs in", choices=("library", "machine", "threads", "nothing")
    )
    seed: int | None = parameter(
        None, "the seed that is claimed (default: one of the attacker's own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed, count = victim.own_seed(self.seed), len(victim.proof.segments)
        disguise = Disguise.of(victim, self, seed)
        here = next(iter(victim.proof.environments.values()))
        sealed_again(
            victim, path, count, progress, observed=True, change=disguise.worn,
            environment=here if self.claims == "nothing" else claimed(here, self.claims),
            randomness=Randomness("recorded", randomness.key_from_seed(seed).hex(), seed=str(seed)),
            initialization=Initialization("recorded"),
        )  # fmt: skip
        bits_differ = self.noise > 0 or (self.how == "order" and self.share > 0)
        return Mounted(0, range(count) if bits_differ else ())


@dataclass(frozen=True)
class Disguise:
    """What becomes of a state: rows and columns of its tensors by name, [tensor, axis] → places and signs, and offsets of weights.

    weights: of entries of the optimizers' states, the weights that they belong to.
    """

    rows: Mapping[tuple[str, int], tuple[Tensor, Tensor]]
    offsets: Mapping[str, Tensor]
    weights: Mapping[str, str]

    @classmethod
    def of(cls, victim: Victim, settings: Rearranged, seed: int) -> Disguise:
        """Drawn from the attacker's seed. Raises AttackError where the model's layers are no chain that stays the same function."""
        generator = torch.Generator().manual_seed(seed % 2**63)
        model = {short_name(name): t for name, t in victim.final.part("model").tensors.items() if is_weight(name)}
        orders, why = units.chains(model)
        if not orders:
            raise AttackError(f"this attack needs a model whose layers are a chain: {why}")
        rows: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        for before, after in pairwise(orders[0]):
            places, signs = _drawn(before.units, settings, generator)
            rows[before.name, 0] = places, signs
            if before.bias:
                rows[before.bias, 0] = places, signs
            each = after.inputs // before.units
            columns = (places[:, None] * each + torch.arange(each)).flatten()
            rows[after.name, 1] = columns, signs.repeat_interleave(each)
        offsets = {
            name: settings.noise * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
            for name, tensor in (model.items() if settings.noise else ())
        }
        session = victim.own_session(seed)
        made = cls(rows, offsets, {entry: short_name(name) for entry, name in session.members().items() if name})
        session.restore(victim.final)
        losses = sample_losses(session, victim, SAMPLES)
        session.restore(cls(rows, {}, made.weights).worn(victim.final))
        if not torch.allclose(sample_losses(session, victim, SAMPLES), losses, rtol=ALIKE, atol=ALIKE):
            raise AttackError(
                f"this attack needs a model that stays the same function with its hidden units' {settings.how} changed"
            )
        return made

    def worn(self, state: State) -> State:
        """The state in disguise."""
        return State(state.tree, {name: self._tensor(name, tensor) for name, tensor in state.tensors.items()})

    def _tensor(self, name: str, tensor: Tensor) -> Tensor:
        weight = short_name(name) if is_weight(name) else self.weights.get(name.rpartition("/")[0], "")
        for axis in range(min(2, tensor.ndim)):
            if (weight, axis) in self.rows:
                places, signs = self.rows[weight, axis]
                shape = [-1 if place == axis else 1 for place in range(tensor.ndim)]
                signs = signs.abs() if role(name) == "second" else signs
                tensor = tensor.index_select(axis, places) * signs[places].reshape(shape)
        if is_weight(name) and weight in self.offsets:
            tensor = tensor + self.offsets[weight]
        return tensor + 0.0 if weight and tensor.is_floating_point() else tensor  # the sum of nothing is no -0


def _drawn(count: int, settings: Rearranged, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places and signs of a layer's units."""
    chosen = torch.randperm(count, generator=generator)[: round(settings.share * count)].sort().values
    places, signs = torch.arange(count), torch.ones(count)
    if settings.how == "order":
        places[chosen] = chosen[torch.randperm(len(chosen), generator=generator)]
    else:
        signs[chosen[torch.rand(len(chosen), generator=generator) < 0.5]] = -1.0
    return places, signs
