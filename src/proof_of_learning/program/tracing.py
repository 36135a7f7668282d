"""From a task to its sealed program: model and loss by ``torch.export``, the rest by name. What cannot be sealed is refused."""

from __future__ import annotations

import logging
import operator
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from proof_of_learning.canonical import brief
from proof_of_learning.data.commit import Dataset
from proof_of_learning.errors import FormatError, TaskError
from proof_of_learning.numeric import randomness
from proof_of_learning.program.checking import check
from proof_of_learning.program.document import (
    SCHEMA,
    Graph,
    Group,
    Held,
    Operation,
    Program,
    Schedule,
    Update,
    argument,
)
from proof_of_learning.program.operations import OPERATIONS, PLACES
from proof_of_learning.program.recording import ADVICE, Constants, place, record
from proof_of_learning.program.schedules import OPTIMIZERS, RECORDED, SCHEDULES, arguments_of
from proof_of_learning.program.sealed import SETTINGS, SealedModel, leaves
from proof_of_learning.state.modules import lazy_tensor, tensors_in
from proof_of_learning.state.state import DTYPE_NAMES
from proof_of_learning.task import Task, task_code
from proof_of_learning.training.batches import Feed

PROBED = 64  # samples that a verifier looks at outputs with (verifier.function.SAMPLES)
KEY = randomness.key_from_seed(0)
_PASSED = {
    "_assert_tensor_metadata.default",
    "_assert_scalar.default",
}  # what tracing adds to see that shapes are as they were
_REFUSED = {
    "step": "a step of its own (`step`); give the task a `loss`",
    "augment": "an augmentation (`augment`); make the changed samples part of `data`, or do it in the loss",
    "collate": "a collation of its own (`collate`); let `data` give tensors that are stacked as they are",
    "scaler": "a gradient scaler (`scaler`)",
    "parts": "further parts of the state (`parts`)",
}


def seal(task: Task, data: Dataset) -> Program:
    """The program of a task over its data. Raises TaskError, which names what cannot be sealed, where, and what to do."""
    if task.program is not None:
        raise TaskError("the task is a sealed program already")
    for name, what in _REFUSED.items():
        if getattr(task, name) is not None:
            raise TaskError(f"a sealed program has no place for {what}; {ADVICE}")
    with randomness.preserved():
        program = _sealed(task, data)
    try:
        check(program)
    except FormatError as error:
        raise TaskError(f"the task cannot be sealed: {error}; {ADVICE}") from None
    _same_start(task, program)
    return program


def _sealed(task: Task, data: Dataset) -> Program:
    constants = Constants()
    randomness.seed_everything(randomness.derive(KEY, randomness.INITIALIZATION))
    with task_code("building the model to seal it"):
        model, initial = record(task.model, constants)
    if lazy_tensor(model) is not None:
        raise TaskError(
            f"the model has a lazy layer, whose shape is not known where it is built; give it its sizes; {ADVICE}"
        )
    base = nn.Module.get_extra_state
    odd = [name for name, module in model.named_modules() if type(module).get_extra_state is not base]
    if odd:
        raise TaskError(f"the module {odd[0]!r} keeps extra state, which has no place in a sealed program; {ADVICE}")
    model.train()
    names = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    every = {id(t): list[str]() for t in (*model.parameters(), *model.buffers())}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        if name != names[id(tensor)]:
            every[id(tensor)].append(name)

    def held(tensor: Tensor) -> Held:
        dtype = DTYPE_NAMES[tensor.dtype]
        return Held(names[id(tensor)], dtype, list(tensor.shape), tensor.requires_grad, every[id(tensor)])

    with task_code("building the optimizer to seal it"):
        optimizer = task.optimizer(model)
    update = _update(optimizer, names)
    parameters, buffers = [held(p) for p in model.parameters()], [held(b) for b in model.buffers()]
    total = task.total_steps(len(data))
    schedule = _schedule(task, optimizer, total, task.steps_per_epoch(len(data)))
    feed = Feed(task, data, KEY)
    import numpy as np

    steps = [
        _graph(task, model, feed.batches(0, np.arange(size))[0], constants, parameters, buffers)
        for size in sizes(task, len(data))
    ]
    unique = [graph for place_, graph in enumerate(steps) if graph.inputs not in [g.inputs for g in steps[:place_]]]
    settings = {name: argument(getattr(task, name)) for name in SETTINGS if name not in ("steps", "clip_norm")}
    clip = None if task.clip_norm is None else float(task.clip_norm)
    settings |= {"steps": argument(total), "clip_norm": argument(clip)}
    return Program(SCHEMA, task.name, parameters, buffers, constants.all, initial, unique, update, schedule, settings)


def sizes(task: Task, samples: int) -> list[int]:
    """The numbers of samples that a batch may have: in training, in an epoch's last step, and where a verifier looks at outputs."""
    size, looked = task.batch_size, min(PROBED, samples)
    last = samples % size if not task.drop_last else 0
    found = [min(size, samples), last, min(size, looked), looked % size]
    return sorted({count for count in found if count}, reverse=True)


def _same_start(task: Task, program: Program) -> None:
    """Whether the first weights are those of the task's own factory under another key, too."""
    other = randomness.key_from_seed(1)
    with randomness.preserved():
        randomness.seed_everything(randomness.derive(other, randomness.INITIALIZATION))
        own = task.model()
        randomness.seed_everything(randomness.derive(other, randomness.INITIALIZATION))
        sealed = SealedModel(program)
    drawn = dict((*sealed.named_parameters(), *sealed.named_buffers()))
    for name, tensor in (*own.named_parameters(), *own.named_buffers()):
        if name not in drawn or drawn[name].shape != tensor.shape or not torch.equal(drawn[name], tensor):
            raise TaskError(
                f"the first values of {name!r} do not follow from PyTorch's generator alone (NumPy's, Python's, a file?), so that no "
                f"program can draw them; {ADVICE}"
            )


# ---- optimizer and schedule ------------------------------------------------------------------------------


def _update(optimizer: Any, names: dict[int, str]) -> Update:
    kind = type(optimizer)
    name = kind.__name__
    if OPTIMIZERS.get(name) is not kind:
        raise TaskError(
            f"the optimizer {name} has no place in a sealed program, which knows {', '.join(OPTIMIZERS)}; {ADVICE}"
        )
    groups = []
    for group in optimizer.param_groups:
        if not all(id(p) in names for p in group["params"]):
            raise TaskError(f"the optimizer steps a tensor that is no parameter of the model; {ADVICE}")
        try:
            options = {key: argument(value) for key, value in group.items() if key != "params"}
        except TypeError as error:
            raise TaskError(
                f"a setting of the optimizer is a {error}; a sealed program has numbers; {ADVICE}"
            ) from None
        groups.append(Group([names[id(p)] for p in group["params"]], options))
    return Update(name, groups)


def _schedule(task: Task, optimizer: Any, total: int, per_epoch: int) -> Schedule | None:
    if task.scheduler is None:
        return None
    with task_code("building the scheduler to seal it"):
        scheduler = task.scheduler(optimizer)
    kind = type(scheduler)
    if SCHEDULES.get(kind.__name__) is kind:
        options = {name: _listed(getattr(scheduler, name)) for name in arguments_of(kind)}
        return Schedule(kind.__name__, {name: argument(value) for name, value in options.items()})
    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler) or isinstance(
        scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau
    ):
        raise TaskError(
            f"the scheduler {kind.__name__} follows what training does, which a sealed program cannot; {ADVICE}"
        )
    rows, before = [], _others(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(1 + (total if task.schedule == "step" else -(-total // per_epoch))):
            rows.append([argument(float(group["lr"])) for group in optimizer.param_groups])
            with task_code("stepping the scheduler to seal it"):
                if len(rows) <= (total if task.schedule == "step" else total // per_epoch):
                    scheduler.step()
            if _others(optimizer) != before:
                raise TaskError(f"the scheduler {kind.__name__} changes more than learning rates; {ADVICE}")
    return Schedule(RECORDED, {}, rows)


def _listed(value: Any) -> Any:
    return sorted(value.elements()) if hasattr(value, "elements") else value


def _others(optimizer: Any) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")} for group in optimizer.param_groups
    ]


# ---- one graph -------------------------------------------------------------------------------------------


class _Step(nn.Module):
    """Loss and outputs of a model as one function of tensors, for ``torch.export``."""

    def __init__(self, task: Task, model: nn.Module, batch: Any, order: list[tuple[str, int]]) -> None:
        """``order``: is filled with where outputs come from, and how many tensors each has."""
        super().__init__()
        self.model = model
        self._given = (task, batch, order)  # in a tuple, for tracing puts back what it finds changed

    def forward(self, *given: Tensor) -> Any:
        outputs: list[Tensor] = []
        task, batch, order = self._given
        assert task.loss is not None
        with _listening(self.model) as heard:
            loss = task.loss(self.model, _rebuilt(batch, iter(given)))
        order.clear()
        for path, top, value in heard:
            found = list(tensors_in(value))
            order.append((path if not top else f"*{path}", len(found)))
            outputs += found
        return loss, outputs


@contextmanager
def _listening(model: nn.Module) -> Iterator[list[tuple[str, bool, Any]]]:
    """What the modules put out: those with parameters of their own, and (``top``) those that no other calls."""
    heard: list[tuple[str, bool, Any]] = []
    depth = [0]

    def before(module: nn.Module, given: Any) -> None:
        depth[0] += 1

    def after(path: str, own: bool) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            depth[0] -= 1
            if own:
                heard.append((path, False, output))
            if depth[0] == 0:
                heard.append((path, True, output))

        return hook

    handles: list[Any] = []
    for path, module in model.named_modules():
        own = any(p.requires_grad for p in module.parameters(recurse=False))
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after(path, own))]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _rebuilt(batch: Any, given: Iterator[Tensor]) -> Any:
    """A batch of the same make with other tensors, in the order of :func:`leaves`."""
    if isinstance(batch, Tensor):
        return next(given)
    if isinstance(batch, dict):
        made = {key: _rebuilt(batch[key], given) for key in sorted(batch)}
        return {key: made[key] for key in batch}
    made_list = [_rebuilt(item, given) for item in batch]
    if isinstance(batch, tuple):
        return type(batch)(*made_list) if hasattr(batch, "_fields") else tuple(made_list)
    return made_list


def _graph(
    task: Task, model: nn.Module, batch: Any, constants: Constants, parameters: list[Held], buffers: list[Held]
) -> Graph:
    inputs = leaves(batch)
    order: list[tuple[str, int]] = []
    step = _Step(task, model, batch, order)
    try:
        with warnings.catch_warnings(), _lines_of(task.loss), _quiet():
            warnings.simplefilter("ignore")
            exported = torch.export.export(step, tuple(inputs), strict=False)
    except TaskError:
        raise
    except Exception as error:
        raise _untraceable(error) from None
    signature = exported.graph_signature
    values: dict[Any, str] = {}
    by_name = {f"model.{name}": f"p{n}" for n, held in enumerate(parameters) for name in (held.name, *held.other)}
    by_name |= {f"model.{name}": f"b{n}" for n, held in enumerate(buffers) for name in (held.name, *held.other)}
    fixed = {**exported.constants, **exported.state_dict}
    nodes = {node.name: node for node in exported.graph.nodes}
    count = 0
    for spec in signature.input_specs:
        node, kind = nodes[spec.arg.name], spec.kind.name
        if kind == "USER_INPUT":
            values[node], count = f"i{count}", count + 1
        elif spec.target in by_name:
            values[node] = by_name[spec.target]
        elif isinstance(fixed.get(spec.target), Tensor):
            values[node] = constants.reference(fixed[spec.target])
        else:
            raise TaskError(f"the loss uses {brief(spec.target)!r}, which is no tensor of the model; {ADVICE}")
    odd = [spec for spec in signature.output_specs if spec.kind.name != "USER_OUTPUT"]
    if odd:
        raise TaskError(
            f"the loss changes {brief(odd[0].target or 'its batch')!r} by assignment; write into the buffer in place; {ADVICE}"
        )
    operations, outputs = _operations(exported.graph, values)
    shown, heads, at = list[tuple[str, list[str]]](), list[str](), 1
    for path, number in order:
        found, at = outputs[at : at + number], at + number
        if path.startswith("*"):
            floating = [
                t
                for t in found
                if (m := nodes_meta(exported, t, values)) is None or (m.is_floating_point() and m.ndim > 0)
            ]
            heads += floating[:1]
        elif path and found:
            shown.append((path, found))
    named = {"loss": outputs[0], **({"head": heads[-1]} if heads else {})}
    told = [(DTYPE_NAMES[tensor.dtype], list(tensor.shape)) for tensor in inputs]
    return Graph(told, operations, named, shown)


def nodes_meta(exported: Any, reference: str, values: dict[Any, str]) -> Any:
    """The shape and type of a value, as tracing saw it."""
    return next((node.meta.get("val") for node, name in values.items() if name == reference), None)


def _operations(graph: Any, values: dict[Any, str]) -> tuple[list[Operation], list[str]]:
    """The calls of a traced graph; ``values`` has names for its inputs, and gets those of the rest."""
    operations: list[Operation] = []

    def told(value: Any, node: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return values[value]
        if isinstance(value, (list, tuple)):
            return [told(item, node) for item in value]
        try:
            return argument(value)
        except TypeError as error:
            raise TaskError(
                f"{node.target} takes a {error}{_line(node)}, which has no place in a sealed program; {ADVICE}"
            ) from None

    outputs: list[str] = []
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):  # the latter: a graph within, which its caller is refused for
            continue
        if node.op == "output":
            outputs = [values[value] for value in node.args[0]]
            continue
        name = str(node.target).removeprefix("aten.")
        if node.target is operator.getitem:
            values[node] = f"{values[node.args[0]]}.{node.args[1]}"
            continue
        if name in _PASSED:
            continue
        if name == "detach_.default" or name == "lift_fresh_copy.default":
            name = "clone.default" if name.startswith("lift") else name
        if node.op != "call_function" or name not in OPERATIONS:
            raise _refused(node)
        if node.kwargs.get("generator") is not None:
            raise TaskError(f"{node.target} draws from a generator of its own{_line(node)}; {ADVICE}")
        kwargs = {
            key: told(value, node) for key, value in node.kwargs.items() if key not in PLACES and value is not None
        }
        operations.append(Operation(name, [told(value, node) for value in node.args], kwargs))
        values[node] = f"%{len(operations) - 1}"
    return operations, outputs


def _refused(node: Any) -> TaskError:
    target = str(node.target)
    if target.startswith("aten.sym_"):
        return TaskError(
            f"a shape depends on numbers in the data{_line(node)}; use torch.where and fixed shapes; {ADVICE}"
        )
    if "autocast" in target:
        return TaskError(
            f"the loss uses autocast{_line(node)}; compute in one type, or convert with .to(dtype) yourself; {ADVICE}"
        )
    if "set_grad_enabled" in target:
        return TaskError(f"the loss switches gradients off (no_grad){_line(node)}; use .detach() instead; {ADVICE}")
    if "cond" in target or "while_loop" in target:
        return TaskError(
            f"the loss has control flow that depends on numbers ({brief(target)}){_line(node)}; use torch.where; {ADVICE}"
        )
    return TaskError(f"the operation {brief(target)} has no place in a sealed program{_line(node)}; {ADVICE}")


@contextmanager
def _lines_of(function: Any) -> Iterator[None]:
    """Let what is traced remember the lines of ``function``, beside those of methods that are called ``forward``."""
    anchors = getattr(torch.fx.proxy, "_STACK_TRACE_ANCHORS", None)
    code = getattr(getattr(function, "func", function), "__code__", None)
    entry = None if code is None else (code.co_filename, code.co_name)
    if not isinstance(anchors, set) or entry is None or entry in anchors:
        yield
        return
    anchors.add(entry)
    try:
        yield
    finally:
        anchors.discard(entry)


@contextmanager
def _quiet() -> Iterator[None]:
    """What tracing logs of a graph that it gives up is said in one line by us."""
    logger = logging.getLogger("torch")
    before, logger.disabled = logger.disabled, True
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logger.disabled = before
        logging.disable(level)


def _line(node: Any) -> str:
    """Where the task's own code called an operation; of a graph within, its first one."""
    library = os.path.dirname(os.path.abspath(torch.__file__))
    trace = node.meta.get("stack_trace") or ""
    for given in node.args:
        if not trace and isinstance(given, torch.fx.Node) and given.op == "get_attr":
            within = getattr(given.graph.owning_module, str(given.target), None)
            traces = [n.meta.get("stack_trace") for n in getattr(getattr(within, "graph", None), "nodes", ())]
            trace = next(filter(None, traces), "")
    found = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n([^\n]*)', trace)
    own = [f for f in found if not f[0].startswith(library) and "proof_of_learning/program" not in f[0]] or found
    return f" ({os.path.basename(own[-1][0])}:{own[-1][1]}: {own[-1][2].strip()})" if own else ""


def _untraceable(error: Exception) -> TaskError:
    text, where = f"{type(error).__name__}: {error}", place(error)
    if "DataDependent" in text or "data-dependent" in text or "unbacked" in text or "guard" in text.lower():
        return TaskError(
            f"the step depends on numbers in its data (a condition, an index or a shape){where}; use torch.where "
            f"and fixed shapes; {ADVICE}"
        )
    return TaskError(f"the loss cannot be traced{where}: {brief(text)}; {ADVICE}")
