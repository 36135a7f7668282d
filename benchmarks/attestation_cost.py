"""What signatures and timestamps add to a verification: whole ``pol verify`` processes, the same proof without and with an owner's
signature, a timestamp on it and a hundred stamped log heads, in alternating blocks.

No task is named, so that nothing is replayed: compared are reading, attestations and survey, with all that is imported for them.
The authority is OpenSSL's, made for the occasion (P-256 certificates).
"""

from __future__ import annotations

import datetime
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import EXAMPLES, Benchmark, Cost, alternate, benchmark, middle_half, ratio

import proof_of_learning as pol
from proof_of_learning.attestation import signatures

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import support_attestation
import support_authority

HEADS, TARGET = 100, 0.2  # seconds that all of it may add
MINUTE = datetime.timedelta(minutes=1)
BEGUN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def make(folder: Path, heads: int) -> tuple[Path, Path, list[str]]:
    """A proof, the same with all of it, and the options that have it counted."""
    bare, signed, key = folder / "bare.pol", folder / "signed.pol", folder / "key.pem"
    task = pol.TaskReference(f"{EXAMPLES / 'digits.py'}:task", {"steps": 2 * heads})
    pol.prove(task, bare, interval=2, rehearse=False)
    shutil.copytree(bare, signed)
    signatures.generate(key)
    authority = support_authority.make(folder / "authority")
    pol.sign(signed, key)
    with support_authority.serving(authority.reply) as url:
        pol.timestamp(signed, [url])
    dates = [(2 * number, authority, BEGUN + number * MINUTE) for number in range(1, heads + 1)]
    support_attestation.chained(signed, dates)
    trusted = ["--trusted-key", str(signatures.public_path(key)), "--trusted-tsa", str(authority.roots)]
    return bare, signed, trusted


def verified(proof: Path, *options: str) -> tuple[Cost, dict[str, float]]:
    """The cost of a process that verifies, and seconds by phase. CPU: with the processes that it waited for."""
    out = proof.with_suffix(".json")
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "proof_of_learning", "verify", str(proof), "--json", str(out), *options]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    took, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 3, done.returncode  # without a task
    verdict = json.loads(out.read_text())
    return Cost(took, sum(after[:2]) - sum(before[:2])), verdict["cost"]["phases"]


def measure(run: Benchmark, folder: Path) -> None:
    heads, blocks = run.size.of(HEADS, HEADS, 4), run.size.of(12, 4, 1)
    bare, signed, trusted = make(folder, heads)
    phases: list[float] = []

    def with_all() -> Cost:
        cost, found = verified(signed, *trusted)
        phases.append(found["attestations"])
        return cost

    costs = alternate({"bare": lambda: verified(bare)[0], "signed": with_all}, blocks)
    added = [one.cpu - other.cpu for one, other in zip(costs["signed"], costs["bare"], strict=True)]
    least = min(cost.cpu for cost in costs["signed"]) - min(cost.cpu for cost in costs["bare"])
    what = f"a signature, a timestamp and {heads} stamped heads"
    run.add(f"{what} add to pol verify, CPU time", least, "s", target=TARGET, spread=middle_half(added))
    value, spread = ratio(costs["signed"], costs["bare"], "cpu")
    run.add("… pol verify with them over pol verify without, CPU time", value, "ratio", spread=spread)
    run.add("… phase attestations, wall", min(phases), "s", spread=middle_half(phases))


def main() -> None:
    with benchmark(__doc__) as run, tempfile.TemporaryDirectory() as scratch:
        measure(run, Path(scratch))


if __name__ == "__main__":
    main()
