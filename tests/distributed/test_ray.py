"""Replay on a Ray cluster: the verdict is the sequential one. What needs Ray is skipped where it is not installed."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

import proof_of_learning as pol
import tasks
from proof_of_learning import TaskReference, Verdict
from proof_of_learning.cli.main import app
from proof_of_learning.distributed import ray as rays
from proof_of_learning.errors import UsageError
from proof_of_learning.replay.protocol import AnyRequest, Take

NONCE = "17" * 32
WHY = "Ray is not installed: pip install 'proof-of-learning[ray]'"
OPTIONS: dict[str, Any] = {"nonce": NONCE, "accept_nonce": True, "sandbox": "off"}


def told(verdict: Verdict) -> bytes:
    """A verdict as JSON, without times and without who did what."""
    cost = msgspec.structs.replace(verdict.cost, seconds=0.0, phases={}, workers=[])
    return msgspec.structs.replace(verdict, cost=cost).to_json()


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """A cluster of two nodes with one core each, on this machine, which asks for a token; its address."""
    before = dict(os.environ)
    # Ray looks at these when it is imported.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason=WHY)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.slow
def test_two_nodes_give_the_verdict_of_one_process(
    two_nodes: str, digits_proof: Path, digits: TaskReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = pol.verify(digits_proof, digits, everything=True, **OPTIONS)
    with rays.cluster(two_nodes, 2) as pool:
        several = pol.verify(digits_proof, digits, everything=True, pool=pool, **OPTIONS)
        assert alone.verdict == "valid" and told(several) == told(alone)
        # A worker takes a core, and a node has one.
        assert [share.name.partition(" on ")[0] for share in several.cost.workers] == ["worker 1", "worker 2"]

        killed, ask = list[Any](), rays.RayWorker.ask

        def kill_once(self: rays.RayWorker, request: AnyRequest, *more: Any) -> Any:
            if isinstance(request, Take) and request.start == 20 and not killed:
                killed.append(self.kill())  # type: ignore[func-returns-value]
            return ask(self, request, *more)

        monkeypatch.setattr(rays.RayWorker, "ask", kill_once)
        disturbed = pol.verify(digits_proof, digits, everything=True, pool=pool, **OPTIONS)
        assert killed and told(disturbed) == told(alone)

        monkeypatch.setattr(rays, "_versions", lambda: {**dict.fromkeys(rays._SAME, ""), "torch": "0.1"})
        with pytest.raises(UsageError, match=r"--ray: worker \d on .* install that there"):
            pol.verify(digits_proof, digits, everything=True, pool=pool, **OPTIONS)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_named(tiny_proof: Path, tiny: TaskReference) -> None:
    pytest.importorskip("ray", reason=WHY)
    done = CliRunner().invoke(app, ["verify", str(tiny_proof), "--task", tiny.target, "--ray", "127.0.0.1:9"])
    assert done.exit_code == 2
    assert "pol: --ray 127.0.0.1:9: no cluster can be joined there" in done.stderr


def test_without_ray_it_is_said_how_to_get_it(
    tiny_proof: Path, tiny: TaskReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(app, ["verify", str(tiny_proof), "--task", tiny.target, "--ray", "local"])
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [f"pol: {rays.MISSING}"]


def test_a_task_that_is_an_object_cannot_be_sent(tiny_proof: Path) -> None:
    def pool(*asked: Any) -> Any:
        return rays._pool(2, *asked)

    with pytest.raises(UsageError, match="--ray needs a task that is named by reference"):
        pol.verify(tiny_proof, tasks.task(), pool=pool)
