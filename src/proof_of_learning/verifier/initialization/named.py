"""Laws that a verifier names for tensors, beside the pool: ``PATTERN=LAW`` such as ``first.weight=normal:0.03``."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proof_of_learning.errors import UsageError
from proof_of_learning.state.names import short_name
from proof_of_learning.verifier.initialization.laws import Law, normal, truncated, uniform
from proof_of_learning.verifier.initialization.schemes import Place, Pool

LARGEST, SMALLEST = 1e30, 1e-30  # of a number in a law

FORMS = {
    "normal": "normal:STD[:MEAN]", "uniform": "uniform:WIDTH (±WIDTH) or uniform:LOW:HIGH", "trunc_normal": "trunc_normal:STD:CUT",
    "constant": "constant:VALUE", "orthogonal": "orthogonal:GAIN", "xavier_uniform": "xavier_uniform:GAIN",
    "xavier_normal": "xavier_normal:GAIN", "kaiming_uniform": "kaiming_uniform:GAIN", "kaiming_normal": "kaiming_normal:GAIN",
    "siren": "siren:OMEGA",
}  # fmt: skip
"""What may be named. The last five follow from a tensor's shape as well; ``siren`` is that of Sitzmann et al. (2020): uniform within
√(6/fan_in)/OMEGA, and within 1/fan_in for a first layer."""

_PARAMETERS = {kind: (2, 2) if kind in ("uniform", "trunc_normal") else (1, 1) for kind in FORMS} | {"normal": (1, 2)}


@dataclass(frozen=True)
class NamedLaw:
    """A law for the tensors whose name fits ``pattern``; ``pool`` holds it alone."""

    pattern: str
    text: str
    pool: Pool

    def fits(self, name: str) -> bool:
        """Whether it is meant for the tensor of that name in a state (``model/parameters/a.weight``, or short ``a.weight``)."""
        return any(fnmatch.fnmatchcase(n, self.pattern) for n in (name, short_name(name)))


def named_laws(texts: Iterable[str]) -> tuple[NamedLaw, ...]:
    """Read ``PATTERN=LAW``; raises UsageError, one line, for what is none."""
    return tuple(_named(text) for text in ([texts] if isinstance(texts, str) else texts))


def _named(text: str) -> NamedLaw:
    pattern, equals, law = text.rpartition("=")
    kind, *rest = law.strip().split(":")
    try:
        numbers = [float(part) for part in rest]
    except ValueError:
        numbers = [math.nan]
    pool = _pool(kind, law.strip(), numbers) if all(abs(x) <= LARGEST for x in numbers) else None
    if not equals or not pattern.strip() or pool is None:
        raise UsageError(
            f"the initial law {text[:120]!r} is not of the form PATTERN=LAW, such as 'first.weight=normal:0.03'; "
            f"laws are {', '.join(FORMS.values())}"
        )
    return NamedLaw(pattern.strip(), law.strip(), pool)


def _pool(kind: str, text: str, numbers: list[float]) -> Pool | None:
    """The law as a pool; None for one that has another number of parameters, or no spread."""
    if kind == "uniform" and len(numbers) == 1:
        numbers = [-numbers[0], numbers[0]]
    spread = numbers[1] - numbers[0] if kind == "uniform" and len(numbers) == 2 else numbers[0] if numbers else 0.0
    if kind not in FORMS or not _PARAMETERS[kind][0] <= len(numbers) <= _PARAMETERS[kind][1]:
        return None
    if kind == "constant":
        return Pool(frozenset(), constants=(numbers[0],))
    if not spread > SMALLEST or (kind == "trunc_normal" and not numbers[1] > SMALLEST):
        return None
    if kind == "orthogonal":
        return Pool(frozenset(), gains=(numbers[0],))
    if kind == "siren":
        return Pool(frozenset(), rules=(_siren(text, numbers[0]),))
    if kind.startswith(("xavier", "kaiming")):
        return Pool(frozenset(), rules=(_scaled(text, kind, numbers[0]),))
    makers: dict[str, Callable[..., Law]] = {"normal": normal, "uniform": uniform, "trunc_normal": truncated}
    return Pool(frozenset(), laws=(makers[kind](text, *numbers),))


def _siren(text: str, omega: float) -> Callable[[Place], list[Law]]:
    def laws(at: Place) -> list[Law]:
        widths = [w for fan, _, _ in at.fans if fan > 0 for w in (math.sqrt(6 / fan) / omega, 1 / fan)]
        return [uniform(text, -width, width) for width in widths]

    return laws


def _scaled(text: str, kind: str, gain: float) -> Callable[[Place], list[Law]]:
    scheme, _, family = kind.partition("_")

    def laws(at: Place) -> list[Law]:
        sizes = [s for a, b, _ in at.fans for s in ([(a + b) / 2] if scheme == "xavier" else [a, b]) if s > 0]
        stds = [gain / math.sqrt(size) for size in sizes]
        if family == "normal":
            return [normal(text, std) for std in stds]
        return [uniform(text, -math.sqrt(3) * std, math.sqrt(3) * std) for std in stds]

    return laws
