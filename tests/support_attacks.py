"""A small target for attacks, and the verdict on what they make of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import proof_of_learning as pol
from proof_of_learning.attacks import ATTACKS, Forgery

STEPS, INTERVAL, SEGMENTS = 120, 2, 60


@dataclass(frozen=True)
class Target:
    """An honest proof of the digits task, replayed in this process; ``folder`` takes what is forged."""

    proof: pol.Proof
    task: pol.Task
    folder: Path

    @classmethod
    def record(cls, digits: pol.TaskReference, folder: Path, *, interval: int = INTERVAL, **settings: Any) -> Target:
        """The honest proof under the task's own seed, in ``folder``."""
        reference = pol.TaskReference(digits.target, {"steps": STEPS, **settings})
        task = replace(pol.load_task(reference), reference=None)
        return cls(pol.Proof.open(pol.prove(task, folder / "target", interval=interval).path), task, folder)

    def attack(self, name: str, **parameters: Any) -> Forgery:
        """Forge under a name of its own; the forgery is structurally perfect."""
        path = self.folder / f"forged-{len(list(self.folder.iterdir()))}"
        forgery = ATTACKS[name](**parameters).forge(self.proof, self.task, path)
        assert pol.check(path).status == "pass"
        return forgery

    def verdict(self, forgery: Forgery, **options: Any) -> pol.Verdict:
        """The verdict at the verifier's defaults (but for ``options``)."""
        return pol.verify(forgery.path, self.task, **options)

    def judge(self, name: str, options: dict[str, Any] | None = None, **parameters: Any) -> tuple[Forgery, pol.Verdict]:
        forgery = self.attack(name, **parameters)
        return forgery, self.verdict(forgery, **(options or {}))


def rejects(verdict: pol.Verdict) -> str:
    """The check that failed; there is one, for the verifier stops there."""
    assert verdict.verdict == "invalid", verdict.reason
    (failed,) = [check.name for check in verdict.checks if check.status == "fail"]
    return failed
