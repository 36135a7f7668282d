"""Attacks: ways to forge a proof for a model that its holder did not train, each in one file.

An attack is judged by the verifier like any other proof. To add one, write a file with an :class:`Attack` and name it in
``_REGISTRY``; to try an idea without that, hand its states to :func:`forge_proof`.
"""

from __future__ import annotations

from proof_of_learning.attacks.adam_freeze import AdamFreeze
from proof_of_learning.attacks.base import Attack, Forgery, Mounted, parameter
from proof_of_learning.attacks.blindfold import Blindfold
from proof_of_learning.attacks.bridge import Bridge
from proof_of_learning.attacks.claimed_environment import ClaimedEnvironment
from proof_of_learning.attacks.codec_steering import CodecSteering
from proof_of_learning.attacks.concatenation import Concatenation
from proof_of_learning.attacks.decoy import Decoy
from proof_of_learning.attacks.decoy_network import DecoyNetwork
from proof_of_learning.attacks.derivative import Derivative
from proof_of_learning.attacks.directed import DirectedWeights, RateSteering
from proof_of_learning.attacks.drift import Drift
from proof_of_learning.attacks.dropped_state import DroppedState
from proof_of_learning.attacks.false_settings import FalseSettings
from proof_of_learning.attacks.few_segments import FewSegments
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.frozen import Frozen
from proof_of_learning.attacks.grinding import Grinding
from proof_of_learning.attacks.hidden_memory import HiddenMemory
from proof_of_learning.attacks.huge_rate import HugeRate
from proof_of_learning.attacks.idle_excursion import IdleExcursion
from proof_of_learning.attacks.infinitesimal import InfinitesimalUpdate
from proof_of_learning.attacks.inverse_gradient import InverseGradient
from proof_of_learning.attacks.knowing_start import KnowingStart
from proof_of_learning.attacks.late_jump import LateJump
from proof_of_learning.attacks.lazy import Lazy
from proof_of_learning.attacks.padding import Padding
from proof_of_learning.attacks.poisoned_probe import PoisonedProbe
from proof_of_learning.attacks.rank_matched import RankMatched
from proof_of_learning.attacks.rearranged import Rearranged
from proof_of_learning.attacks.scaler_freeze import ScalerFreeze
from proof_of_learning.attacks.shadow import Shadow
from proof_of_learning.attacks.slow_memory import SlowMemory
from proof_of_learning.attacks.stolen import Stolen
from proof_of_learning.attacks.synthetic_data import SyntheticData
from proof_of_learning.attacks.task_weapon import TaskWeapon
from proof_of_learning.attacks.teleport import Teleport

_REGISTRY: tuple[type[Attack], ...] = (
    AdamFreeze,
    Blindfold,
    Bridge,
    ClaimedEnvironment,
    CodecSteering,
    Concatenation,
    Decoy,
    DecoyNetwork,
    Derivative,
    DirectedWeights,
    Drift,
    DroppedState,
    FalseSettings,
    FewSegments,
    Frozen,
    Grinding,
    HiddenMemory,
    HugeRate,
    IdleExcursion,
    InfinitesimalUpdate,
    InverseGradient,
    KnowingStart,
    LateJump,
    Lazy,
    Padding,
    PoisonedProbe,
    RankMatched,
    RateSteering,
    Rearranged,
    ScalerFreeze,
    Shadow,
    SlowMemory,
    Stolen,
    SyntheticData,
    TaskWeapon,
    Teleport,
)
ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in _REGISTRY}

__all__ = ["ATTACKS", "Attack", "Forgery", "Mounted", "forge_proof", "parameter"]
