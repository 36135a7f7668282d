"""What an optimizer does by itself: where its momentum carries the weights, what decay takes, and which equations its state obeys.

Pure functions on arrays of sampled coordinates; nothing here reads a proof or runs a task.
"""

from proof_of_learning.verifier.dynamics.course import CLASSES, Course, Family, Rule, family, read_rule
from proof_of_learning.verifier.dynamics.identity import IDENTITY_LIMIT, identity, miscounted
from proof_of_learning.verifier.dynamics.motion import (
    coasting,
    idle_by_rest,
    idle_segments,
    idle_share,
    idle_tensors,
    moved,
    still,
)
from proof_of_learning.verifier.dynamics.rates import rates_by_part
from proof_of_learning.verifier.dynamics.scaler import scaler_consistent

__all__ = [
    "CLASSES",
    "IDENTITY_LIMIT",
    "Course",
    "Family",
    "Rule",
    "coasting",
    "family",
    "identity",
    "idle_by_rest",
    "idle_segments",
    "idle_share",
    "idle_tensors",
    "miscounted",
    "moved",
    "rates_by_part",
    "read_rule",
    "scaler_consistent",
    "still",
]
