"""Steering a codec in the loop: honest steps, and a rounding that leans toward the target at every checkpoint.

Under a codec in the loop training goes on from what the codec decodes. An attacker who decides how a value is rounded, up or
down, moves every weight by up to a step of the codec at every checkpoint, toward a model of his choice, while each segment
replays bit for bit from its start. It fails because nothing is left to decide: scale and rounding follow from the values, and a
verifier encodes the end of its own replay. The attack costs an honest training, and ends in a model of its own, nearer to the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.moves import as_claimed
from proof_of_learning.attacks.victim import Victim, run
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.proof.codecs import get_codec
from proof_of_learning.proof.codecs.rounding import RoundingCodec
from proof_of_learning.proof.format import CodecClaim
from proof_of_learning.replay.measure import weights
from proof_of_learning.state.state import State


@dataclass(init=False, frozen=True)
class CodecSteering(Attack):
    name = "codec-steering"
    summary = "honest steps under a codec in the loop, whose rounding leans toward the target"
    source = "found while the codecs were designed; see the decision on codecs in the loop"
    knowledge = "the target's final state, the data and the task"
    ends_in_target = False

    codec: str = parameter("quantised", "the codec that is claimed", choices=("quantised", "float16", "compact"))
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        codec = get_codec(self.codec)
        assert isinstance(codec, RoundingCodec)
        seed = victim.own_seed(self.seed)
        session, count = victim.own_session(seed), len(victim.proof.segments)
        losses: list[float] = []
        arrived: list[str] = []
        evaluation: dict[str, float] = {}

        def states() -> Iterator[State]:
            base = session.capture()
            yield base
            for done, state in enumerate(run(victim, session, victim.steps, losses), 1):
                progress("training and leaning", done, count)
                arrived.append(state.digest())
                if done < count:
                    base = leaning(codec, state, base, victim.final)
                    session.restore(base)
                    yield base
                else:
                    evaluation.update(session.evaluate() or {})
                    yield state

        claims = {
            **as_claimed(victim),
            "codec": CodecClaim(codec.name, codec.version, in_loop=True),
            "evaluation": None if victim.task.evaluate is None else evaluation,
        }
        forge_proof(
            path, victim.task, states(), None,
            hyperparameters={"loss": (losses[step] for step in range(victim.steps))},
            arrived=(arrived[i] for i in range(count)),
            seed=seed, environment=victim.environment, **claims,
        )  # fmt: skip
        return Mounted(victim.samples(0, victim.steps), range(count - 1))


def leaning(codec: RoundingCodec, state: State, base: State, goal: State) -> State:
    """What the codec could decode ``state`` to, if the multiple of a step on the goal's side were taken instead of the nearest."""
    decoded = codec.encode(state, base).state
    tensors = dict(decoded.tensors)
    for name, here in weights(state).items():
        foretold = codec.foretell([name], state.tensors, tensors, base)
        rule = codec.rules_for([name], state.tensors, base, foretold).get(name)
        wanted = goal.tensors.get(name)
        if rule is None or wanted is None:
            continue
        flat, given = here.reshape(-1), codec.beside([name], base, tensors, foretold)
        scales = rule.scales(flat, [len(flat)], given)
        items = rule.items(flat, scales, given)
        if items is not None:
            way = torch.sign(wanted.reshape(-1) - flat)
            short = torch.sign(rule.value(items, scales, given) - flat) * way < 0
            tensors[name] = rule.value(items + (way * short).to(items.dtype), scales, given).reshape(here.shape)
    return State(decoded.tree, tensors)
