"""What a script's worker does for each request: describes the script, takes a segment's steps, or looks at states."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from proof_of_learning import canonical
from proof_of_learning.data.commit import commit
from proof_of_learning.errors import TaskError, WorkerError
from proof_of_learning.replay import protocol
from proof_of_learning.replay.origins import origin
from proof_of_learning.run import inputs
from proof_of_learning.run.clock import Walk
from proof_of_learning.run.facts import Facts, facts
from proof_of_learning.run.mode import Given
from proof_of_learning.run.probing import Left, Probing
from proof_of_learning.run.replay import Answer, Job, Replaying, Taking, Tools
from proof_of_learning.state.names import weight_name
from proof_of_learning.state.state import State
from proof_of_learning.task import task_code
from proof_of_learning.training.steps import groups, members


def job_for(
    clock: Replaying,
    request: protocol.AnyRequest,
    states: Sequence[State],
    answer: Answer,
    tools: Tools,
    left: Left | None = None,
) -> Job:
    """The job that answers a request. ``left``: what another process, which could not finish it, had seen."""
    if isinstance(request, protocol.Take):
        return Taking(clock, request, states[0], answer, tools)
    if isinstance(request, protocol.Probe):
        return Probing(clock, request, states, answer, tools, left)
    return Telling(clock, request, answer, tools)


class Telling:
    """Answers what can be said when the first batch is asked for: nothing has been trained yet."""

    place = None

    def __init__(self, clock: Replaying, request: protocol.AnyRequest, answer: Answer, tools: Tools) -> None:
        self._clock, self._request, self._answer, self._tools = clock, request, answer, tools

    def clocked(self, walk: Walk) -> Any:
        found = facts(self._clock.given, walk.source)
        match self._request:
            case protocol.Describe():
                self._answer(described(found, self._clock, walk), ())
            case protocol.CommitData():
                total = len(found.data)
                with task_code("reading the data"):
                    made = commit(found.data, progress=lambda done: self._tools.pulse(done, total))
                self._answer(protocol.Committed(made), ())
            case protocol.Start():
                self._answer(*started(found, self._tools.second(self._request.other), self._clock.given))
            case protocol.Evaluate():
                self._answer(protocol.Evaluated(None), ())
        raise WorkerError("a script has no answer to that request")

    def beside(self, walk: Walk) -> Any:
        raise WorkerError("the script's loop is not as it was recorded")

    def closed(self) -> None:
        raise TaskError("the script called close() before its first step")


def described(found: Facts, clock: Replaying, walk: Walk) -> protocol.Described:
    description = found.describe()
    return protocol.Described(
        digest=description.digest(),
        description=canonical.encode(description.content),
        sources=description.sources,
        steps=clock.expected * found.walk,
        steps_per_epoch=max(1, found.walk),
        samples=len(found.data),
        batch=found.batch,
        loop_schedule=False,
        evaluates=False,
        members=members(found.parts),
        optimizers=groups(found.parts),
        modules=found.modules(),
        script=True,
        arguments=sys.argv[1:],
        place=[clock.phase, clock.epoch, walk.number],
        inputs=inputs.of_script(clock.given),
        pretrained=os.path.basename(inputs.pretrained_file(clock.given.pretrained) or ""),
    )


def started(found: Facts, second: State, given: Given) -> tuple[protocol.Started, Sequence[State]]:
    """What is the same under both keys because it is in the file that the script names as pretrained counts as linked to that."""
    first, file = found.capture(), inputs.pretrained_file(given.pretrained)
    trainable = {weight_name(name) for name, p in found.parts["model"].named_parameters() if p.requires_grad}
    tensors = [
        origin(name, tensor, second.tensors.get(name), name in trainable) for name, tensor in first.tensors.items()
    ]
    if file is not None:
        weights = inputs.Weights(file)
        tensors = [
            msgspec.structs.replace(t, origin="linked")
            if t.origin == "fixed" and weights.hold(first.tensors[t.name])
            else t
            for t in tensors
        ]
    return protocol.Started(tensors), (first, second)
