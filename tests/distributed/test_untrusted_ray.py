"""Coordinator and workers as Ray actors: a worker that is killed changes nothing. Skipped where Ray is not installed."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support_rounds

from proof_of_learning import canonical
from proof_of_learning.attestation import signatures
from proof_of_learning.distributed.coordinator import Coordinator
from proof_of_learning.distributed.events import Rules
from proof_of_learning.distributed.examine import examine
from proof_of_learning.distributed.untrusted_ray import CoordinatorHost, Host, remote
from proof_of_learning.distributed.workers import Here, Honest
from proof_of_learning.proof.reader import Proof

PLACE = str(Path(support_rounds.__file__))
RULES = Rules(rounds=12, slots=4, share=0.25, probation=2, finality=6)


class Liar(Host):
    """A worker who sends the opposite of what they computed."""

    def __init__(self, target: str, settings: dict[str, Any], key: str) -> None:
        from proof_of_learning.distributed.behaviours import SignFlip

        super().__init__(target, settings, key)
        self._worker = SignFlip(self._worker.task, self._worker.key)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    before = dict(os.environ)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
    utils = pytest.importorskip(
        "ray.cluster_utils", reason="Ray is not installed: pip install 'proof-of-learning[ray]'"
    )
    import ray

    cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
        ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
        yield ray
        ray.shutdown()
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.slow
def test_on_two_nodes_a_liar_is_banned_and_a_killed_worker_changes_nothing(two_nodes: Any, tmp_path: Path) -> None:
    ray = two_nodes
    for name in ("owner", "a", "b", "liar"):
        signatures.generate(tmp_path / f"{name}.pem")
    settings = {"rounds": 12}
    actors = [remote(Host).remote(f"{PLACE}:task", settings, str(tmp_path / f"{name}.pem")) for name in "ab"]
    actors.append(remote(Liar).remote(f"{PLACE}:task", settings, str(tmp_path / "liar.pem")))
    head = remote(CoordinatorHost).remote(
        f"{PLACE}:task",
        settings,
        canonical.encode(RULES),
        str(tmp_path / "owner.pem"),
        str(tmp_path / "run"),
        "portable",
    )

    def kill() -> None:
        journal = tmp_path / "run" / "journal.jsonl"
        while not journal.exists() or journal.read_bytes().count(b'"kind":"applied"') < 3:
            time.sleep(0.01)
        ray.kill(actors[1])

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = ray.get(head.run.remote(actors, 30.0), timeout=280)
    killer.join()
    owner = signatures.load_private(tmp_path / "owner.pem")
    seen = examine(tmp_path / "run", f"{PLACE}:task", owner.public)
    assert seen.holds and found["banned"] == 1 and found["exactness"] == "bits"
    alone = Coordinator(
        f"{PLACE}:task",
        RULES,
        owner,
        Here([Honest(support_rounds.task(), owner)]),
        tmp_path / "alone",
        arithmetic="portable",
    )
    alone.run()
    ends = [Proof.open(tmp_path / name / "proof").segments[-1].state for name in ("run", "alone")]
    assert ends[0] == ends[1]
