"""Coordinator and workers of an untrusted training as actors of a Ray cluster.

Messages are the signed bytes of :mod:`messages`. Ray itself passes pickled values among its members, and runs what they send: its
nodes have to be trusted with code, even where what their workers compute is not. For others, write a transport of your own.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from proof_of_learning import canonical
from proof_of_learning.attestation.signatures import PrivateKey, PublicKey, decode_public, load_private
from proof_of_learning.distributed.coordinator import Coordinator
from proof_of_learning.distributed.events import Rules
from proof_of_learning.distributed.workers import Answer, Fault, Honest, Request
from proof_of_learning.errors import UsageError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.task import TaskReference, load_task

TIMEOUT = 60.0  # seconds that a worker has for an answer
MAX_ANSWER = 1 << 34
_HELLO = b"pol/v1/hello\0"


class Host:
    """An honest worker in a process of its own. ``key``: a PEM file on its node."""

    def __init__(self, target: str, settings: Mapping[str, Any], key: str | os.PathLike[str]) -> None:
        self._worker = Honest(load_task(TaskReference(target, dict(settings))), self._key(key))

    @staticmethod
    def _key(path: str | os.PathLike[str]) -> PrivateKey:
        return load_private(path)

    def hello(self, nonce: bytes) -> tuple[bytes, bytes]:
        """Their public key, and a signature that shows that they have the private one."""
        return self._worker.public.encoded, self._worker.key.sign(_HELLO + nonce)

    def work(self, envelope: bytes, start: bytes, run: bytes) -> bytes:
        with environments.recording("cpu"):
            return self._worker.work(envelope, start, run)

    def reveal(self, assignment: str) -> bytes:
        return self._worker.reveal(assignment)


class RayTransport:
    """Asks actors side by side. Who does not answer within ``timeout`` seconds has not; a late answer is passed on when it comes."""

    def __init__(self, actors: Sequence[Any], timeout: float = TIMEOUT) -> None:
        import ray

        self._ray, self._timeout = ray, timeout
        self._actors: dict[str, Any] = {}
        self._keys: list[PublicKey] = []
        self._waiting: dict[Any, Request] = {}
        for actor in actors:
            try:
                nonce = secrets.token_bytes(32)
                encoded, signature = ray.get(actor.hello.remote(nonce), timeout=timeout)
                key = decode_public(encoded, "a worker's key")
                if key.digest in self._actors or not key.verifies(signature, _HELLO + nonce):
                    continue  # somebody else's key
            except Exception:  # one that never came to be
                continue
            self._actors[key.digest] = actor
            self._keys.append(key)
        if not self._keys:
            raise UsageError("none of the workers answers")

    def members(self) -> Sequence[PublicKey]:
        return self._keys

    def ask(self, requests: Sequence[Request], run: bytes) -> Iterator[tuple[Request, Answer]]:
        for request in requests:
            actor = self._actors.get(request.worker)
            if actor is None:
                yield request, Fault("gone")
            elif request.what == "work":
                self._waiting[actor.work.remote(request.envelope, request.start, run)] = request
            else:
                self._waiting[actor.reveal.remote(request.assignment)] = request
        mine = {(r.what, r.assignment) for r in requests}
        end = time.monotonic() + self._timeout
        while any((r.what, r.assignment) in mine for r in self._waiting.values()):
            ready, _ = self._ray.wait(list(self._waiting), timeout=max(0.0, end - time.monotonic()))
            if not ready:
                break
            request = self._waiting.pop(ready[0])
            yield request, self._get(ready[0])
        for request in requests:
            if request in self._waiting.values():
                yield request, Fault(f"no answer within {self._timeout:g} seconds")

    def _get(self, reference: Any) -> Answer:
        try:
            found = self._ray.get(reference)
        except Exception as error:
            return Fault(canonical.brief(f"{type(error).__name__}: {error}"))
        return found if isinstance(found, bytes) and len(found) <= MAX_ANSWER else Fault("no bytes")


class CoordinatorHost:
    """The coordinator, as an actor: ``run`` trains to the end and says what came of it."""

    def __init__(
        self, target: str, settings: Mapping[str, Any], rules: bytes, key: str, folder: str, arithmetic: str = "native"
    ) -> None:
        self._reference, self._folder, self._arithmetic = TaskReference(target, dict(settings)), folder, arithmetic
        self._rules, self._key = canonical.decode(rules, Rules, "the rules"), load_private(key)

    def run(self, actors: Sequence[Any], timeout: float = TIMEOUT) -> dict[str, Any]:
        transport = RayTransport(actors, timeout)
        made = Coordinator(
            self._reference, self._rules, self._key, transport, self._folder, arithmetic=self._arithmetic
        )  # fmt: skip
        found = made.run()
        return {"root": found.root, "banned": len(found.book.bans), "share": found.share, "exactness": found.exactness}


def remote(kind: type[Any], cores: int = 1) -> Any:
    """The class as a Ray actor with ``cores``, and without restarts."""
    import ray

    return ray.remote(kind).options(num_cpus=cores, max_restarts=0)


__all__ = ["CoordinatorHost", "Host", "RayTransport", "remote"]
