"""What the verifier decides, in four groups. One value, made once, and never changed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from proof_of_learning import registration as registrations
from proof_of_learning.attestation.revocation import Revoked, load_revoked, revoked
from proof_of_learning.errors import UsageError
from proof_of_learning.registration import Registration
from proof_of_learning.replay.process import DEFAULT_TIMEOUT
from proof_of_learning.verifier.guarantee import MISS_PROBABILITY, MISSED_IN_PUBLIC
from proof_of_learning.verifier.initialization.named import named_laws
from proof_of_learning.verifier.policy import Policy, load_policy

if TYPE_CHECKING:
    from proof_of_learning.attestation.beacon import Beacon
    from proof_of_learning.attestation.timestamps import Authorities
    from proof_of_learning.verifier.verdict import Nonce

Place = str | os.PathLike[str]


@dataclass(frozen=True)
class Draw:
    """Which segments are replayed.

    top_q: segments with the largest displacement and inertia, in each tenth of the run.
    random: number of random segments, half uniform, half weighted; by default as many as all guarantees need (10 % / 1 %).
    everything: replay every segment.
    nonce: hex; by default 32 bytes drawn when the root is known. drawn: one that was drawn when the roots of several proofs were
    known, by whoever has them verified together.
    beacon: a round of public randomness that the nonce follows from, so that whoever trusts no verifier can draw the same segments.
    miss: the probability with which a forgery of the stated size may be missed: 1 %, and with a beacon 1e-9, for a prover can
    seal and stamp again until a round suits.
    """

    top_q: int = 1
    random: int | None = None
    everything: bool = False
    nonce: str | None = None
    drawn: Nonce | None = None
    beacon: Beacon | None = None

    @property
    def miss(self) -> float:
        return MISS_PROBABILITY if self.beacon is None else MISSED_IN_PUBLIC


@dataclass(frozen=True)
class Comparison:
    """How a replay is held against what was recorded.

    allow_calibrated: where bits cannot be reproduced, within the verifier's own noise.
    exact: nothing but bit-exact replay is enough.
    reproduce: replay in the recorded numeric environment; False: in this process's own, as another machine would.
    """

    allow_calibrated: bool = False
    exact: bool = False
    reproduce: bool = True


@dataclass(frozen=True)
class Claims:
    """What this proof has to be, and which built-in defaults it is excused from. Not inherited by the links of a chain.

    registration: the claim under which it must have been made. model: a safetensors file that it must end in.
    approve_fixed: shell patterns of tensors that may be the same under every key.
    laws: ``PATTERN=LAW`` for initial tensors whose law is not in the pool (:mod:`initialization.named`).
    accept_nonce: it may be valid although the nonce was handed in. accept_order: although a recorded order is no permutation of
    the data in every epoch (weighted sampling, say). accept_uniform: although only the uniform draws carry a guarantee (a thinned
    proof, a task that shows no outputs). accept_stopped: although it stopped before the task's number of steps.
    trusted_keys: digests of public keys, of which ``threshold`` have to have signed. authorities: whose timestamps count. revoked:
    keys that count only for what was stamped before. Links of a chain inherit both.
    policy: rules that proof and verification must satisfy; what it says of the same things is included in the other fields.
    """

    registration: Registration | None = None
    model: Path | None = None
    approve_fixed: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()
    accept_nonce: bool = False
    accept_order: bool = False
    accept_uniform: bool = False
    accept_stopped: bool = False
    trusted_keys: tuple[str, ...] = ()
    threshold: int = 1
    authorities: Authorities | None = None
    revoked: Revoked = field(default_factory=Revoked)
    policy: Policy | None = None


@dataclass(frozen=True)
class Runtime:
    """How the verification runs.

    keep_going: run all checks even after a failure. timeout: seconds without a sign of life after which a hanging task is given up.
    sandbox: ``"auto"`` confines the task's code where bubblewrap works and warns elsewhere, ``"require"`` raises UsageError
    there, ``"off"`` confines nothing. allow_read: further files and folders that confined code may read.
    workers: how many processes take steps, and before read states, at once; the verdict does not depend on it.
    double_check: nobody vouches for the workers of the pool that is handed in, and this share of what they replay is replayed here
        again, beside all that does not agree with the record; None where they are one's own.
    """

    keep_going: bool = False
    timeout: float = DEFAULT_TIMEOUT
    sandbox: str = "auto"
    allow_read: tuple[Path, ...] = ()
    workers: int = 1
    double_check: float | None = None


class Choices(TypedDict, total=False):
    """The fields of all groups by name, as keywords of :func:`verify` and as the command line has them."""

    top_q: int
    random: int | None
    everything: bool
    nonce: str | None
    beacon: Place | None
    beacon_chain: Place | None
    allow_calibrated: bool
    require: str | None
    reproduce: bool
    registration: Place | None
    model: Place | None
    approve_fixed: Iterable[str]
    laws: Iterable[str] | str
    accept_nonce: bool
    accept_order: bool
    accept_uniform: bool
    accept_stopped: bool
    trusted_keys: Iterable[Place]
    threshold: int
    trusted_tsa: Iterable[Place]
    revoked: Iterable[Place]
    policy: Policy | Place | None
    keep_going: bool
    timeout: float
    sandbox: str
    allow_read: Iterable[Place]
    workers: int
    double_check: float | None


@dataclass(frozen=True)
class Options:
    """All that a verifier decides. The links of a chain inherit ``draw``, ``comparison`` and ``runtime``."""

    draw: Draw = field(default_factory=Draw)
    comparison: Comparison = field(default_factory=Comparison)
    claims: Claims = field(default_factory=Claims)
    runtime: Runtime = field(default_factory=Runtime)

    @classmethod
    def of(cls, choices: Choices) -> Options:
        """Options by their names alone. Raises UsageError for values that make no sense, before anything is read."""
        unknown = set(choices) - set(Choices.__annotations__)
        if unknown:
            raise TypeError(f"verify() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        draw = Draw(
            choices.get("top_q", 1), choices.get("random"), choices.get("everything", False), choices.get("nonce"),
            beacon=_beacon(choices),
        )  # fmt: skip
        if draw.top_q < 0 or (draw.random is not None and draw.random < 0):
            raise UsageError("the numbers of segments to replay cannot be negative")
        require = choices.get("require")
        if require not in (None, "exact"):
            raise UsageError(f"--require takes 'exact', not {require!r}")
        given = choices.get("policy")
        rules = given if given is None or isinstance(given, Policy) else load_policy(given)
        runtime = Runtime(
            choices.get("keep_going", False),
            choices.get("timeout", DEFAULT_TIMEOUT),
            choices.get("sandbox", "auto"),
            tuple(Path(place) for place in choices.get("allow_read", ())),
            choices.get("workers", 1),
            _share(choices.get("double_check")),
        )
        comparison = Comparison(
            choices.get("allow_calibrated", False),
            require == "exact" or (rules is not None and rules.trust.exact),
            choices.get("reproduce", True),
        )
        return cls(draw, comparison, _claims(choices, rules), runtime)

    def for_link(self, nonce: Nonce) -> Options:
        """What a link of the chain behind a proof is verified with: its own nonce, and no claims but whom to believe about time.

        nonce: of the proof. Where that is public randomness, it counts for the link as well: the proof's root, which was there before,
        covers the link's.
        """
        believed = Claims(authorities=self.claims.authorities, revoked=self.claims.revoked)
        drawn = nonce if nonce.origin == "beacon" else None
        return replace(self, draw=replace(self.draw, nonce=None, drawn=drawn), claims=believed)


def _beacon(choices: Choices) -> Beacon | None:
    path, chain = choices.get("beacon"), choices.get("beacon_chain")
    if path is None:
        if chain is not None:
            raise UsageError("--beacon-chain says which network a round is of; name the round, too (--beacon)")
        return None
    if choices.get("nonce") is not None:
        raise UsageError("--nonce and --beacon both say what is drawn; leave out one")
    from proof_of_learning.attestation.beacon import load_beacon

    return load_beacon(path, chain)


def _claims(choices: Choices, rules: Policy | None) -> Claims:
    laws, keys = choices.get("laws", ()), _keys(choices.get("trusted_keys", ()))
    registration, model = choices.get("registration"), choices.get("model")
    claims = Claims(
        registration=None if registration is None else registrations.load(registration),
        model=None if model is None else Path(model),
        approve_fixed=tuple(choices.get("approve_fixed", ())),
        laws=(laws,) if isinstance(laws, str) else tuple(laws),
        accept_nonce=choices.get("accept_nonce", False),
        accept_order=choices.get("accept_order", False),
        accept_uniform=choices.get("accept_uniform", False),
        accept_stopped=choices.get("accept_stopped", False),
        trusted_keys=keys,
        threshold=_threshold(choices.get("threshold", 1), keys),
        authorities=_authorities(choices.get("trusted_tsa", ())),
        revoked=load_revoked(_several(choices.get("revoked", ()))),
        policy=rules,
    )
    if rules is not None:
        claims = replace(
            claims,
            approve_fixed=(*claims.approve_fixed, *rules.initialization.approved_fixed),
            laws=(*claims.laws, *rules.initialization.laws),
            trusted_keys=tuple(dict.fromkeys((*claims.trusted_keys, *(rules.trust.keys or ())))),
            threshold=max(claims.threshold, rules.trust.threshold),
            revoked=claims.revoked.joined(revoked(rules.trust.revoked, "trust.revoked")),
            accept_nonce=claims.accept_nonce or rules.trust.chosen_nonce,
            accept_order=claims.accept_order or rules.training.free_order,
            accept_uniform=claims.accept_uniform or rules.guarantee.uniform_only,
            accept_stopped=claims.accept_stopped or rules.training.stopped_early,
        )
    named_laws(claims.laws)
    return claims


def _keys(paths: Iterable[Place]) -> tuple[str, ...]:
    """Digests of the public keys in PEM files."""
    given = _several(paths)
    if not given:
        return ()
    from proof_of_learning.attestation.signatures import load_public

    return tuple(dict.fromkeys(load_public(path).digest for path in given))


def _threshold(wanted: int, keys: tuple[str, ...]) -> int:
    if wanted != 1 and not 1 <= wanted <= len(keys):
        raise UsageError(f"--threshold {wanted}: expected 1 to the number of trusted keys, {len(keys)}")
    return wanted


def _share(given: float | None) -> float | None:
    if given is not None and not 0.0 < given <= 1.0:
        raise UsageError(f"--double-check {given:g}: expected a share above 0, up to 1")
    return given


def _authorities(paths: Iterable[Place]) -> Authorities | None:
    given = _several(paths)
    if not given:
        return None
    from proof_of_learning.attestation.timestamps import load_authorities

    return load_authorities(given)


def _several(paths: Iterable[Place] | Place) -> tuple[Place, ...]:
    return (paths,) if isinstance(paths, (str, os.PathLike)) else tuple(paths)
