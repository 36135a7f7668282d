"""What an attack is: a recipe with parameters that turns somebody's trained model into a proof of one's own."""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import UsageError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.measure import weight_distance, weights
from proof_of_learning.task import Setting, Task


@dataclass(frozen=True)
class Forgery:
    """A forged proof and what it took.

    samples_processed: samples whose gradients the attacker computed; ``honest_samples``: those of the training he claims.
    distance: l2 from the forged final weights to the target's; 0 unless the attack says otherwise.
    forged: the segments that do not replay, as far as the attack knows them.
    """

    path: Path
    root: str
    samples_processed: int
    honest_samples: int
    distance: float
    forged: tuple[int, ...] = ()

    @property
    def cost(self) -> float:
        """The attacker's samples as a share of the honest training's."""
        return self.samples_processed / self.honest_samples


@dataclass(frozen=True)
class Mounted:
    """What :meth:`Attack.mount` did: the samples whose gradients it computed, and the indices of the segments that do not replay."""

    samples: int
    forged: Sequence[int] = ()


def parameter(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
) -> Any:
    """Declare a parameter of an attack: a field with a default, the values it may take (``low`` to ``high``) and one line of help."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


class Attack(ABC):
    """A way to forge a proof that ends in a target's final weights.

    A subclass is a ``@dataclass(init=False, frozen=True)`` whose fields, made by :func:`parameter`, are its parameters. They are
    set by name when it is built, from values or from the strings of a command line. ``name``, ``summary`` (one line), ``source``
    (where it was published) and ``knowledge`` (what the attacker is assumed to hold) describe it; ``ends_in_target`` says whether
    its forgery, by default, ends in exactly the target's final weights. ``variants``: the settings under which experiments measure
    it; where there are none, every combination of its parameters' ``choices``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    knowledge: ClassVar[str]
    ends_in_target: ClassVar[bool] = True
    variants: ClassVar[Sequence[Mapping[str, Setting]]] = ()

    def __init__(self, **settings: Setting) -> None:
        fields = self.parameters()
        unknown = sorted(set(settings) - set(fields))
        if unknown:
            known = ", ".join(fields) or "none"
            raise UsageError(f"the attack {self.name} has no parameter {unknown[0]!r}; its parameters: {known}")
        types_ = typing.get_type_hints(type(self))
        for name, field in fields.items():
            value = settings.get(name, field.default)
            object.__setattr__(self, name, _checked(field, types_[name], value))

    @classmethod
    def parameters(cls) -> dict[str, dataclasses.Field[Any]]:
        """The parameters by name; ``metadata["help"]`` says what each does."""
        return {field.name: field for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}

    def forge(
        self, target: Proof, task: Task, path: str | os.PathLike[str], *, progress: ProgressCallback = silent
    ) -> Forgery:
        """Write a forged proof for ``target``'s final model to ``path``.

        Raises AttackError where the target cannot be used (its final state is missing, it is of another task).
        """
        device = Victim.device_of(target)
        with randomness.preserved(), environments.recording(device) as environment:
            victim = Victim.of(target, task, device, environment)
            mounted = self.mount(victim, Path(path), progress)
        forged = Proof.open(path)
        final = forged.state(forged.segments[-1].state)
        distance = weight_distance(weights(victim.final), weights(final))
        honest = victim.samples(0, victim.steps)
        return Forgery(Path(path), forged.root, mounted.samples, honest, distance, tuple(mounted.forged))

    @abstractmethod
    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        """Write the forged proof to ``path``; returns what it cost and which segments are forged."""


def _checked(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """``value`` as the parameter's type (``int | None`` among others) and within its limits; UsageError otherwise."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    try:
        if not isinstance(value, str) and (
            isinstance(value, bool) != (kind is bool) or (kind is int and value != int(value))
        ):
            raise ValueError
        if kind is bool:
            value = value if isinstance(value, bool) else {"true": True, "false": False}[value.lower()]
        value = kind(value)
        low, high, choices = (field.metadata.get(key) for key in ("low", "high", "choices"))
        if choices and value not in choices:
            raise ValueError
        if kind in (int, float) and not low <= value <= high:
            raise ValueError
    except (ValueError, KeyError, TypeError, OverflowError):
        raise UsageError(f"parameter {field.name}={value!r}: expected {_wanted(field, kind)}") from None
    return value


def _wanted(field: dataclasses.Field[Any], kind: Any) -> str:
    if field.metadata.get("choices"):
        return " or ".join(map(repr, field.metadata["choices"]))
    if kind is bool:
        return "true or false"
    low, high = field.metadata.get("low", -math.inf), field.metadata.get("high", math.inf)
    what = {int: "an integer", float: "a number"}.get(kind, kind.__name__)
    if math.isfinite(low) and math.isfinite(high):
        return f"{what} from {low} to {high}"
    return f"{what} of at least {low}" if math.isfinite(low) else what
