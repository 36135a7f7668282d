"""One of several processes that train one model together: its rank, its process group, and the modules that this keeps equal.

Recording takes the script's own process group as it is. In a replay the processes are on one machine: a group is made of files and
the loopback, left before a child is forked (its threads would be lost there), and made anew in each child.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import nn

from proof_of_learning.errors import FormatError, TaskError, UsageError
from proof_of_learning.limits import MAX_RANKS
from proof_of_learning.state.optimizers import parameters_of
from proof_of_learning.state.parts import Kind, adapter_of, of_kind
from proof_of_learning.state.ranks import divided, kinds, manifest
from proof_of_learning.state.state import State

BACKEND = "gloo"
BUCKETS = "buckets"  # the part that says in which buckets gradients are added up
ALIKE = (BUCKETS,)  # further parts that all processes hold alike
_TIES = ("reducer", "logger", "process_group")  # of a module with its process group
_POLL = 0.002  # seconds between two looks at whether the others are there
_LOST = ("gloo", "closed by peer", "reset by peer", "Connection refused", "Timed out")
REMEDY = f"processes are recorded that train by DistributedDataParallel over {BACKEND}"


@dataclass(frozen=True)
class Place:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1


def place() -> Place:
    """By the process group, or by what a launcher says before there is one."""
    if grouped():
        return Place(dist.get_rank(), dist.get_world_size())
    said = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    if not all(value.isdigit() for value in said.values()) or int(said["WORLD_SIZE"]) <= 1:
        return Place()
    return Place(int(said["RANK"]), int(said["WORLD_SIZE"]))


def alone(error: Exception) -> bool:
    """Whether a script asked for its other processes, and nobody has started any."""
    return place().size == 1 and "rendezvous" in str(error)


def lost(message: str) -> bool:
    """Whether an error says no more than that another process has gone."""
    return any(sign in message for sign in _LOST)


class Buckets:
    """The buckets in which a module's gradients are added up, as positions of its parameters.

    The first update rearranges them, and with more than two processes they decide on the order of the sums. So they are a part of
    the state.
    """

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self._modules = dict(modules)

    def state_dict(self) -> dict[str, list[list[int]]]:
        found = {}
        for name, module in self._modules.items():
            module.reducer._rebuild_buckets()  # as the next forward pass would
            found[name] = _buckets(module)
        return found

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        if set(values) != set(self._modules):
            raise FormatError("the state has the buckets of other modules than the script has")
        for name, module in self._modules.items():
            order = [index for bucket in values[name] for index in bucket]
            if any(type(index) is not int for index in order) or sorted(order) != list(range(len(_trained(module)))):
                raise FormatError("the buckets of a state do not hold each parameter once")
            if _buckets(module) != values[name]:
                renew(module)
            if _buckets(module) != values[name]:
                _rearrange(module, order)
            if _buckets(module) != values[name]:
                raise FormatError("the buckets of a state are none that the script's module makes")


def grouped() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def apart(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A script's parts with what DistributedDataParallel wraps in its place, and the wrappers by name.

    Raises UsageError where several processes train in a way that cannot be recorded.
    """
    parts, wrappers = dict(given), dict[str, Any]()
    for name, part in given.items():
        if isinstance(part, nn.parallel.DistributedDataParallel):
            parts[name], wrappers[name] = part.module, part
    here = place()
    if here.size > 1 or grouped() or wrappers:
        _check(parts, wrappers, here)
    return parts, wrappers


def _check(parts: Mapping[str, Any], wrappers: Mapping[str, Any], here: Place) -> None:
    if not grouped():
        raise UsageError(
            f"a launcher started {here.size} processes, and the script makes no process group of them; call "
            "init_process_group('gloo') in it, or start it without torchrun"
        )
    if here.size == 1:
        raise UsageError(
            "the script makes a process group of 1 process; start it with several (torchrun --nproc-per-node 2), or without "
            "torchrun and init_process_group"
        )
    if here.size > MAX_RANKS:
        raise UsageError(f"the script trains in {here.size} processes; at most {MAX_RANKS} can be recorded")
    if c10d._world.pg_map.keys() - {dist.group.WORLD}:
        raise UsageError(
            "the script makes process groups beside the one of all processes (new_group), which a replay does not make again; "
            "use the one of all"
        )
    backend = _backend()
    if backend != BACKEND:
        raise UsageError(f"the processes speak over {backend}, whose sums cannot be repeated on one machine; {REMEDY}")
    for name, part in parts.items():
        kinds_ = [kind.__name__ for kind in type(part).__mro__]
        for unknown in ("FullyShardedDataParallel", "FSDPModule", "ZeroRedundancyOptimizer"):
            if unknown in kinds_:
                raise UsageError(
                    f"the part {name!r} is sharded by {unknown}, so that no process has all of it; {REMEDY}"
                )
        if isinstance(part, nn.Module) and any(type(p).__name__ == "DTensor" for p in part.parameters()):
            raise UsageError(f"the part {name!r} is sharded (DTensor), so that no process has all of it; {REMEDY}")
    trained = {id(p) for optimizer in of_kind(parts, "optimizer").values() for p in parameters_of(optimizer)}
    for name, module in of_kind(parts, "module").items():
        if name not in wrappers and any(id(p) in trained for p in module.parameters()):
            raise UsageError(
                f"the part {name!r} is trained in {here.size} processes, and is no DistributedDataParallel: hand that over "
                f"(pol.Run({name}=DistributedDataParallel({name}), …))"
            )
    for name, wrapper in wrappers.items():
        if (odd := _unlike(wrapper)) is not None:
            raise UsageError(f"the DistributedDataParallel {name!r} {odd}, which cannot be recorded; leave it out")


def _unlike(wrapper: Any) -> str | None:
    """What a wrapper does that a replay would not."""
    if any(parameter.device.type != "cpu" for parameter in wrapper.module.parameters()):
        return "is on an accelerator"
    if wrapper.process_group is not dist.group.WORLD:
        return "has a process group of its own"
    if wrapper._comm_hooks:
        return "has a communication hook"
    if wrapper.static_graph:
        return "has static_graph=True"
    if wrapper.mixed_precision is not None:
        return "has a mixed precision of its own"
    if getattr(wrapper, "_delay_all_reduce_params", None):
        return "has gradients that are added up later"
    if wrapper._build_params_for_reducer()[1].count(True):
        return "has sparse gradients"
    if getattr(wrapper._join_config, "enable", False):
        return "is in join(), for processes with unequal numbers of batches"
    return None


def _backend() -> str:
    """What the group of all processes speaks over on the CPU."""
    try:
        name: str = dist.group.WORLD._get_backend(torch.device("cpu")).name()  # type: ignore[union-attr]
    except RuntimeError:
        return str(dist.get_backend())
    return name


def told(parts: Mapping[str, Any], state: State) -> tuple[State, dict[str, str]]:
    """What this process says of its state: process 0 all of it, the others what is their own; and digests of what all must hold
    alike.
    """
    common, own = divided(state, kinds_of(parts), ALIKE)
    return state if not place().rank else own, manifest(common)


def kinds_of(parts: Mapping[str, Any]) -> dict[str, Kind]:
    return {name: adapter_of(part).kind for name, part in parts.items()}


def parts_of_all(parts: Mapping[str, Any]) -> dict[str, Kind]:
    """The parts of the state of all processes."""
    return kinds(kinds_of(parts), place().size, ALIKE)


# ---- buckets ----------------------------------------------------------------------------------------


def _trained(module: Any) -> list[torch.Tensor]:
    """The parameters in the order by which buckets name them."""
    found: list[torch.Tensor] = module._build_params_for_reducer()[0]
    return found


def _buckets(module: Any) -> list[list[int]]:
    position = {id(parameter): index for index, parameter in enumerate(_trained(module))}
    return [
        [position[id(parameter)] for parameter in bucket.parameters()]
        for bucket in module.reducer._get_zeros_like_grad_buckets()
    ]


def renew(module: Any) -> None:
    """Give the module a fresh reducer, in the process group that there is now."""
    for name in _TIES:
        module.__dict__.pop(name, None)
    module.__setstate__(module.__dict__)


def _rearrange(module: Any, order: list[int]) -> None:
    """Have the reducer arrange its buckets as it did after the first update: gradients (of zero) arrive in that order again."""
    parameters = _trained(module)
    before = [parameter.grad for parameter in parameters]
    module.reducer.prepare_for_backward([])
    for index in order:
        (parameters[index] * 0).sum().backward()  # type: ignore[no-untyped-call]
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient
    module.reducer._rebuild_buckets()


# ---- replays ----------------------------------------------------------------------------------------


class Local:
    """The process groups of a replay, on one machine. ``folder``: where their processes meet."""

    def __init__(self, here: Place, folder: str) -> None:
        self._here, self._folder = here, folder
        self.name = "setup"  # of the next group: where its processes meet
        self._make: Any = None
        self._store: Any = None
        self._options: dict[str, Any] = {}

    def enter(self) -> None:
        """Be one of the processes of a launcher, to the script that runs next."""
        here = self._here
        os.environ.update(
            {
                "RANK": str(here.rank), "LOCAL_RANK": str(here.rank), "WORLD_SIZE": str(here.size),
                "LOCAL_WORLD_SIZE": str(here.size), "GROUP_RANK": "0", "ROLE_RANK": str(here.rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "lo",
            }
        )  # fmt: skip
        self._make = dist.init_process_group

        def init_process_group(backend: str | None = None, *_: Any, timeout: Any = None, **options: Any) -> None:
            named = [piece.rpartition(":") for piece in (backend or BACKEND).split(",")]
            if [name for device, _, name in named if device in ("", "cpu")] != [BACKEND]:
                raise TaskError(f"the script makes a process group over {backend!r}; {REMEDY}")
            self._options = {} if timeout is None else {"timeout": timeout}
            self._join()

        for module in (dist, c10d):
            module.init_process_group = init_process_group  # type: ignore[attr-defined]

    def _join(self) -> None:
        self._store = dist.FileStore(  # type: ignore[attr-defined]
            os.path.join(self._folder, self.name), self._here.size
        )
        self._make(BACKEND, store=self._store, rank=self._here.rank, world_size=self._here.size, **self._options)
        self._meet("joined")

    def _meet(self, where: str) -> None:
        """Wait for the others: who ends a connection that another one still makes or reads from would break it."""
        self._store.add(where, 1)
        while self._store.add(where, 0) < self._here.size:
            time.sleep(_POLL)

    def leave(self, given: Mapping[str, Any]) -> None:
        """Leave the group, so that this process can be forked."""
        if not dist.is_initialized():
            return
        for module in _wrappers(given):
            for name in _TIES:
                module.__dict__.pop(name, None)
        self._meet("leaving")
        dist.destroy_process_group()
        gc.collect()

    def rejoin(self, given: Mapping[str, Any], name: str) -> None:
        """Be in a group again, and put the modules that it keeps equal into it."""
        if not self._make or dist.is_initialized() or self.name == name:
            return
        self.name = name
        self._join()
        for module in _wrappers(given):
            renew(module)


def _wrappers(given: Mapping[str, Any]) -> Iterator[Any]:
    for part in given.values():
        if isinstance(part, nn.parallel.DistributedDataParallel):
            yield part
