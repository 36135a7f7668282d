"""Attacks: ways to forge a proof for a model that its holder did not train, each in one file.

An attack is judged by the verifier like any other proof. To add one, write a file with an :class:`Attack` and name it in
``_REGISTRY``; to try an idea without that, hand its states to :func:`forge_proof`.
"""

from __future__ import annotations

from proof_of_learning.attacks.base import Attack, Forgery, parameter
from proof_of_learning.attacks.bridge import Bridge
from proof_of_learning.attacks.concatenation import Concatenation
from proof_of_learning.attacks.derivative import Derivative
from proof_of_learning.attacks.directed import DirectedWeights, RateSteering
from proof_of_learning.attacks.false_settings import FalseSettings
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.huge_rate import HugeRate
from proof_of_learning.attacks.infinitesimal import InfinitesimalUpdate
from proof_of_learning.attacks.inverse_gradient import InverseGradient
from proof_of_learning.attacks.lazy import Lazy
from proof_of_learning.attacks.rank_matched import RankMatched
from proof_of_learning.attacks.stolen import Stolen
from proof_of_learning.attacks.task_weapon import TaskWeapon

_REGISTRY: tuple[type[Attack], ...] = (
    Bridge,
    Concatenation,
    Derivative,
    DirectedWeights,
    FalseSettings,
    HugeRate,
    InfinitesimalUpdate,
    InverseGradient,
    Lazy,
    RankMatched,
    RateSteering,
    Stolen,
    TaskWeapon,
)
ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in _REGISTRY}

__all__ = ["ATTACKS", "Attack", "Forgery", "forge_proof", "parameter"]
