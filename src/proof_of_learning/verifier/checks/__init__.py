"""The checks, one file each, in the one order in which they are run: cheapest first."""

from __future__ import annotations

from proof_of_learning.verifier.checks.attestation import AttestationCheck
from proof_of_learning.verifier.checks.data import DataCheck
from proof_of_learning.verifier.checks.drift import DriftCheck
from proof_of_learning.verifier.checks.endpoint import EndpointCheck
from proof_of_learning.verifier.checks.hyperparameters import HyperparametersCheck
from proof_of_learning.verifier.checks.initialization import InitializationCheck
from proof_of_learning.verifier.checks.learning import LearningCheck
from proof_of_learning.verifier.checks.order import OrderCheck
from proof_of_learning.verifier.checks.performance import PerformanceCheck
from proof_of_learning.verifier.checks.policy import PolicyCheck
from proof_of_learning.verifier.checks.registration import RegistrationCheck
from proof_of_learning.verifier.checks.structure import StructureCheck
from proof_of_learning.verifier.checks.task import TaskCheck
from proof_of_learning.verifier.checks.trajectory import TrajectoryCheck
from proof_of_learning.verifier.evidence import Check

STRUCTURE = StructureCheck()
REGISTRATION = RegistrationCheck()
ATTESTATION = AttestationCheck()
CHECKS: tuple[Check, ...] = (
    STRUCTURE,
    REGISTRATION,
    ATTESTATION,
    TaskCheck(),
    DataCheck(),
    InitializationCheck(),
    OrderCheck(),
    HyperparametersCheck(),
    LearningCheck(),
    PolicyCheck(),
    TrajectoryCheck(),
    DriftCheck(),
    EndpointCheck(),
    PerformanceCheck(),
)
