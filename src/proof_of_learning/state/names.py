"""The names of tensors in a state: paths such as ``model/parameters/conv.weight`` or ``optimizer/state/0/momentum_buffer``.

A component that has a ``/`` or ``~`` of its own (a layer named ``a/b``) is written with ``~1`` and ``~0`` for them.
"""

from __future__ import annotations

import functools

WEIGHTS = "model/parameters"
KNOWN = 1 << 14  # names of which it is remembered what they say: the same ones come with every state
STATE = "/state/"  # between an optimizer's part and the position of a weight

# What optimizers keep for each weight, by what it does.
CARRYING = ("momentum_buffer", "exp_avg")  # carries the weight on, without a gradient
MOMENTA = (*CARRYING, "grad_avg")
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")  # of Adam, RMSprop, Adagrad


def escaped(text: str) -> str:
    """``text`` as one component of a name."""
    return text.replace("~", "~0").replace("/", "~1") if "/" in text or "~" in text else text


def unescaped(component: str) -> str:
    """The inverse of :func:`escaped`."""
    return component.replace("~1", "/").replace("~0", "~")


def joined(*components: str) -> str:
    """The name that consists of these."""
    return "/".join(map(escaped, components))


def split(name: str) -> list[str]:
    """The components of a name."""
    return list(map(unescaped, name.split("/")))


def weight_name(name: str) -> str:
    """The name in a state of the parameter that the model calls ``name``."""
    return f"{WEIGHTS}/{escaped(name)}"


def is_weight(name: str) -> bool:
    """Whether a tensor is a parameter of the model."""
    return name.startswith(f"{WEIGHTS}/")


def short_name(name: str) -> str:
    """What the module itself calls a parameter or buffer; other names without their first two components."""
    return unescaped(name.split("/", 2)[-1])


def part_of(name: str) -> str:
    """The part that a tensor belongs to."""
    return unescaped(name.split("/", 1)[0])


def family_of(part: str) -> str:
    """The family of a part: ``optimizer`` of ``optimizer.generator``."""
    return part.split(".", 1)[0]


def entry_name(part: str, position: int) -> str:
    """What precedes the names of all that an optimizer keeps for the weight at a position."""
    return f"{escaped(part)}{STATE}{position}"


def split_entry(name: str) -> tuple[str, str]:
    """The inverse of :func:`entry_name`: the part, and the position as text; another name gives anything."""
    part, _, position = name.rpartition(STATE)
    return unescaped(part), position


def key_of(name: str) -> str:
    """The last component, which says what an optimizer keeps: ``momentum_buffer``, ``exp_avg`` …"""
    return name.rpartition("/")[2]


@functools.lru_cache(KNOWN)
def kind_of(name: str) -> str:
    """The kind of state a tensor belongs to: ``model/parameters``, ``optimizer/momentum_buffer``, ``ema/parameters`` …"""
    parts = name.split("/")
    if len(parts) > 2 and parts[1] in ("parameters", "buffers", "extra"):
        return f"{parts[0]}/{parts[1]}"
    return f"{parts[0]}/{parts[-1]}" if len(parts) > 2 and parts[1] == "state" else parts[0]


@functools.lru_cache(KNOWN)
def role(name: str) -> str:
    """``weights`` (parameters of the model or of an average of it), ``momentum``, ``second`` or nothing."""
    parts = name.split("/")
    if parts[1:2] == ["parameters"]:
        return "weights"
    if len(parts) > 3 and parts[1] == "state":
        return "second" if parts[-1] in SECOND_MOMENTS else "momentum" if parts[-1] in MOMENTA else ""
    return ""


@functools.lru_cache(KNOWN)
def second_of(name: str) -> str:
    """The name of the second moment beside a momentum; nothing for any other tensor."""
    return f"{name.rpartition('/')[0]}/exp_avg_sq" if role(name) == "momentum" else ""
