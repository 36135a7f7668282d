"""Attacks: ways to forge a proof for a model that its holder did not train, each in one file.

An attack is judged by the verifier like any other proof. To add one, write a file with an :class:`Attack` and name it in
``_REGISTRY``; to try an idea without that, hand its states to :func:`forge_proof`.
"""

from __future__ import annotations

from proof_of_learning.attacks.base import Attack, Forgery, Mounted, parameter
from proof_of_learning.attacks.concatenation import Concatenation
from proof_of_learning.attacks.false_settings import FalseSettings
from proof_of_learning.attacks.few_segments import FewSegments
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.infinitesimal import InfinitesimalUpdate

_REGISTRY: tuple[type[Attack], ...] = (
    Concatenation,
    FalseSettings,
    FewSegments,
    InfinitesimalUpdate,
)
ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in _REGISTRY}

__all__ = ["ATTACKS", "Attack", "Forgery", "Mounted", "forge_proof", "parameter"]
