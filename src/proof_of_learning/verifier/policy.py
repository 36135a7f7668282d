"""A verifier's policy: what a proof must satisfy beyond being true, in a TOML file (``pol policy`` prints a commented one).

The rules are judged by the check ``policy``; what a verification may cost is looked at before it begins.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from proof_of_learning import keeping
from proof_of_learning.attestation.revocation import revoked
from proof_of_learning.errors import UsageError
from proof_of_learning.limits import MAX_POLICY
from proof_of_learning.verifier.initialization.named import named_laws
from proof_of_learning.verifier.verdict import Assurance

DEFAULT = "policy.default.toml"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules that are None (or missing) are not applied."""


class Accept(_Section, frozen=True):
    """Digests of which the proof's must be one: of tasks (their descriptions), of tasks with their sources, of data roots."""

    tasks: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    data: tuple[str, ...] | None = None


class Training(_Section, frozen=True):
    """Bounds on the run. Rates are those of all groups in all steps; for the lower bound, those that are not 0.

    ``free_order`` grants, as ``--accept-order`` does, that a recorded order is no permutation of the data in every epoch.
    ``stopped_early`` grants, as ``--accept-stopped`` does, that a run has fewer steps than its task.
    ``max_idle_share``: of the run, in which a network may learn nothing (sparse designs, clipped losses).
    """

    min_interval: Count | None = None
    max_interval: Count | None = None
    max_steps: Count | None = None
    min_learning_rate: Positive | None = None
    max_learning_rate: Positive | None = None
    max_trivial_share: Share | None = None
    min_trained_share: Share | None = None
    free_order: bool = False
    stopped_early: bool = False
    max_idle_share: Share | None = None


class Initialization(_Section, frozen=True):
    """``approved_fixed``: patterns of tensors that may be the same under every key, besides those of ``--approve-fixed``.
    ``laws``: laws of recorded initial weights, besides those of ``--initial-law``.
    """

    approved_fixed: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()


class Trust(_Section, frozen=True):
    """``assurance``: the weakest that is accepted. ``keys``: digests of public keys, of which ``threshold`` have to have signed.
    ``revoked``: tables of keys that count only for what was stamped before, besides those of ``--revoked``.
    ``exact``: nothing but bit-exact replay is enough. ``chosen_nonce`` grants, as ``--accept-nonce`` does, that the nonce was handed
    in.
    """

    assurance: Assurance | None = None
    keys: tuple[str, ...] | None = None
    threshold: Count = 1
    revoked: tuple[dict[str, Any], ...] = ()
    exact: bool = False
    chosen_nonce: bool = False


class Guarantees(_Section, frozen=True):
    """The largest shares (of segments, of the weights' and the function's progress) that may stay forgeable with 1 %.

    ``uniform_only`` grants, as ``--accept-uniform`` does, that the guarantees by progress are missing.
    """

    forged_fraction: Share | None = None
    progress_fraction: Share | None = None
    function_fraction: Share | None = None
    uniform_only: bool = False


class Limits(_Section, frozen=True):
    """What the replay of the challenged segments may cost: its share of the run's steps, and seconds."""

    max_share: Share | None = None
    max_seconds: Positive | None = None


class Policy(_Section, frozen=True):
    """The sections of a policy; ``name`` and ``digest`` say which file it is."""

    accept: Accept = Accept()
    training: Training = Training()
    initialization: Initialization = Initialization()
    trust: Trust = Trust()
    guarantee: Guarantees = Guarantees()
    cost: Limits = Limits()
    name: str = "policy"
    digest: str = ""

    def rules(self) -> list[str]:
        """The names of the rules that are applied."""
        values = {
            f"{section}.{key}": getattr(getattr(self, section), key)
            for section, kind in SECTIONS.items()
            for key in kind.__struct_fields__
        }
        del values["trust.threshold"]  # which `trust.keys` says
        return [name for name, value in values.items() if value is not None and value is not False and value != ()]

    def afford(self, replayed: int, steps: int, seconds: float | None = None) -> None:
        """UsageError where replaying ``replayed`` of ``steps`` steps (in ``seconds``, if that is known) is too expensive."""
        share, advice = self.cost.max_share, "ask for fewer segments (--random, --top-q), or raise the limit"
        if share is not None and not replayed / steps <= share:
            raise UsageError(
                f"{self.name}: cost.max_share: the challenge replays {replayed:,} of {steps:,} steps "
                f"({replayed / steps:.3g}), the policy allows {share:g}; {advice}"
            )
        limit = self.cost.max_seconds
        if limit is not None and seconds is not None and not seconds <= limit:
            raise UsageError(
                f"{self.name}: cost.max_seconds: replaying {replayed:,} steps would take about {seconds:.3g} seconds here, "
                f"the policy allows {limit:g}; {advice}"
            )


SECTIONS: dict[str, type[_Section]] = {
    "accept": Accept, "training": Training, "initialization": Initialization, "trust": Trust, "guarantee": Guarantees,
    "cost": Limits,
}  # fmt: skip


def default_policy() -> str:
    """The text of the commented default policy."""
    return resources.files("proof_of_learning.verifier").joinpath(DEFAULT).read_text(encoding="utf-8")


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Read a policy. Raises UsageError, one line, for whatever is not a rule that would be applied."""
    name = Path(path).name
    raw = keeping.read(path, f"--policy {path}", MAX_POLICY)
    if len(raw) > MAX_POLICY:
        raise UsageError(f"--policy {path}: larger than {MAX_POLICY:,} bytes")
    content = keeping.toml(raw, name)
    for line in itertools.chain(_unknown(content), _not_finite(content)):
        raise UsageError(f"{name}: {line}")
    try:
        policy = msgspec.convert(content, Policy)
    except msgspec.ValidationError as error:
        raise UsageError(f"{name}: {_readable(str(error))}") from None
    for line in itertools.chain(_contradictions(policy), _bad_digests(policy), _bad_laws(policy), _bad_keys(policy)):
        raise UsageError(f"{name}: {line}")
    return msgspec.structs.replace(policy, name=name, digest=f"sha256:{hashlib.sha256(raw).hexdigest()}")


def _unknown(content: dict[str, Any]) -> Iterator[str]:
    """Sections and keys that no rule belongs to, each with the nearest that one does."""
    homes = {key: section for section, kind in SECTIONS.items() for key in kind.__struct_fields__}
    for section, values in content.items():
        if section in SECTIONS:
            if not isinstance(values, dict):
                yield f"{section}: expected a section [{section}], found {_kind(values)}"
                continue
            known = SECTIONS[section].__struct_fields__
            for key in values:
                if key in known:
                    continue
                if key in homes:
                    yield f"{section}.{key}: this key belongs in [{homes[key]}]"
                yield f"{section}.{key}: unknown key; the nearest one known is {_nearest(key, known)!r}"
        elif isinstance(values, dict):
            yield f"[{section}]: unknown section; the nearest one known is [{_nearest(section, SECTIONS)}]"
        elif section in homes:
            yield f"{section}: this key belongs in a section, [{homes[section]}]"
        else:
            nearest = _nearest(section, homes)
            yield f"{section}: unknown key; the nearest one known is {nearest!r} in [{homes[nearest]}]"


def _nearest(word: str, known: Iterable[str]) -> str:
    nearest: str = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.0)[0]
    return nearest


def _not_finite(content: dict[str, Any]) -> Iterator[str]:
    for section, values in content.items():
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                yield f"{section}.{key}: expected a finite number, found {value}"


def _readable(message: str) -> str:
    """msgspec's ``Expected `int`, got `str` - at `$.training.max_steps``` with the key in front."""
    what, _, where = message.rpartition(" - at ")
    what = what.replace("`null`", "").replace(" | `", "`").replace("`", "").replace("object", "section")
    what = what.replace(" | null", "").replace("got", "found")
    return f"{where.strip('`').removeprefix('$.')}: {what[:1].lower()}{what[1:]}"


def _contradictions(policy: Policy) -> Iterator[str]:
    training = policy.training
    for name, low, high in (
        ("interval", training.min_interval, training.max_interval),
        ("learning_rate", training.min_learning_rate, training.max_learning_rate),
    ):
        if low is not None and high is not None and low > high:
            yield f"training.min_{name}: {low:g} is above training.max_{name}, {high:g}; no run could satisfy both"
    if not policy.trust.threshold <= len(set(policy.trust.keys or ())) and (
        policy.trust.keys or policy.trust.threshold > 1
    ):
        yield f"trust.threshold: {policy.trust.threshold} is more than the {len(set(policy.trust.keys or ()))} keys in trust.keys"


def _bad_digests(policy: Policy) -> Iterator[str]:
    lists = {f"accept.{key}": getattr(policy.accept, key) for key in ("tasks", "sources", "data")}
    for name, digests in {**lists, "trust.keys": policy.trust.keys}.items():
        if digests is not None and not digests:
            yield f"{name}: an empty list accepts nothing; leave the key out to accept anything"
        for digest in digests or ():
            if not _DIGEST.fullmatch(digest):
                yield f"{name}: {digest[:80]!r} is not of the form sha256:<64 hex digits>; `pol inspect` shows a proof's"


def _bad_laws(policy: Policy) -> Iterator[str]:
    try:
        named_laws(policy.initialization.laws)
    except UsageError as error:
        yield f"initialization.laws: {error}"


def _bad_keys(policy: Policy) -> Iterator[str]:
    try:
        revoked(policy.trust.revoked, "trust.revoked")
    except UsageError as error:
        yield str(error)


def _kind(value: Any) -> str:
    return {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list"}.get(
        type(value), "a date"
    )
