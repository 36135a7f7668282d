"""The public pool: which laws a randomly initialized tensor may follow, given its name and shape.

A scheme is a rule of ``torch.nn.init`` (or a default of a PyTorch layer) and stands for a few laws, one per gain,
fan and so on. Sources: ``torch/nn/init.py`` and the ``reset_parameters`` of ``torch/nn/modules``; Glorot and Bengio
(2010) for xavier, He et al. (2015) for kaiming, LeCun et al. (1998), Saxe et al. (2014) for orthogonal, Martens (2010)
for sparse; Radford et al. (2019) for the 0.02 of language models and its residual scaling.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from proof_of_learning.errors import UsageError
from proof_of_learning.verifier.initialization.laws import Law, normal, truncated, uniform

Shape = tuple[int, ...]

GAINS = {
    "linear": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "leaky_relu(0.01)": math.sqrt(2 / 1.0001),
    "leaky_relu(0.1)": math.sqrt(2 / 1.01), "leaky_relu(0.2)": math.sqrt(2 / 1.04), "selu": 0.75, "a=√5": math.sqrt(1 / 3),
}  # fmt: skip
"""Gains of ``torch.nn.init.calculate_gain``; ``a=√5`` is what PyTorch's layers use."""
XAVIER_GAINS = {
    "1": 1.0, "tanh": 5 / 3, "√2": math.sqrt(2), "1/√2": math.sqrt(0.5), "0.75": 0.75, "0.1": 0.1, "0.02": 0.02, "0.01": 0.01,
}  # fmt: skip
ORTHOGONAL_GAINS = (1.0, math.sqrt(2), 5 / 3, 0.75, 0.5, 2.0, 0.1, 0.01, 0.001)
NORMAL_STDS = (1.0, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001, 1e-6)
UNIFORM_WIDTHS = (1.0, 0.1, 0.08, 0.05, 0.01, 0.001)
SPARSE_STDS = (0.01, 1.0, 0.1, 0.02)
LECUN_CUT = 0.87962566103423978  # standard deviation of N(0, 1) truncated at ±2


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: what its laws follow from besides the scheme.

    fans: (fan_in, fan_out, what they are taken of), for tensors of two and more dimensions.
    module_fans: fan-ins of the weights in the same module, which PyTorch takes for a bias.
    hidden: sizes that may be the hidden size, for tensors of recurrent layers.
    depth: layers up to this one and in all (``h.3.mlp.weight`` among ``h.0`` … ``h.11``: 4 and 12), for residual scaling.
    """

    shape: Shape
    fans: tuple[tuple[float, float, str], ...] = ()
    module_fans: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    depth: tuple[int, ...] = ()


_RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr)(_l\d+)?(_reverse)?$")
_LAYER = re.compile(r"(?<=[./])\d{1,6}(?=\.)")
_DEEPEST = 1000
_STACKED = re.compile(r"(in_proj|qkv)[^/]*$")


def is_recurrent(name: str) -> bool:
    """Whether PyTorch names tensors of LSTM, GRU and RNN layers and cells so."""
    return _RECURRENT.search(_leaf(name)) is not None


def places(shapes: Mapping[str, Shape]) -> dict[str, Place]:
    """Where each of a model's tensors stands among the others."""
    modules: dict[str, list[tuple[str, Shape]]] = {}
    layers: dict[str, set[str]] = {}
    for name, shape in shapes.items():
        leaf = _leaf(name)
        # A reparametrized weight (a.parametrizations.weight.original1) lies deeper than its bias (a.bias).
        modules.setdefault(name[: -len(leaf)].partition("parametrizations.")[0], []).append((leaf, shape))
        for match in _LAYER.finditer(name):
            layers.setdefault(name[: match.start()], set()).add(match.group())
    found = {}
    for name, shape in shapes.items():
        leaf = _leaf(name)
        siblings = modules[name[: -len(leaf)].partition("parametrizations.")[0]]
        module_fans = {fan for _, s in siblings if len(s) >= 2 for fan in (s[1], s[1] * math.prod(s[2:]))}
        hidden: set[int] = set()
        if is_recurrent(name) and shape:
            hidden = {shape[0] // gates for gates in (1, 3, 4) if shape[0] % gates == 0}
            hidden |= {s[1] for k, s in siblings if "_hh" in k and len(s) == 2}
        depth = {n for m in _LAYER.finditer(name) for n in (int(m.group()) + 1, len(layers[name[: m.start()]]))}
        found[name] = Place(
            shape,
            tuple(_fans(name, shape)),
            tuple(sorted(module_fans - {0})),
            tuple(sorted(hidden - {0})),
            tuple(sorted(n for n in depth if n <= _DEEPEST)),
        )
    return found


def _leaf(name: str) -> str:
    return re.split(r"[./]", name)[-1]


def _fans(name: str, shape: Shape) -> Iterable[tuple[float, float, str]]:
    if len(shape) < 2:
        return
    window = math.prod(shape[2:])
    yield shape[1] * window, shape[0] * window, ""
    if len(shape) == 3:
        yield shape[1], shape[2], ", per matrix"
        yield shape[2], shape[1], ", per matrix"
    if shape[1] == 1 and window > 1:
        yield window, window, ", depthwise"
    if len(shape) == 2:
        blocks = (3, 4) if is_recurrent(name) else (3,) if _STACKED.search(name) else ()
        for block in blocks:
            if shape[0] % block == 0:
                yield shape[1], shape[0] // block, f", per block of {block}"


# ---- schemes ----------------------------------------------------------------------------------------


def _scaled(family: str, name: str, std: float) -> Law:
    bound = math.sqrt(3) * std
    return uniform(name, -bound, bound) if family == "uniform" else normal(name, std)


def _kaiming(family: str) -> Callable[[Place], list[Law]]:
    def laws(at: Place) -> list[Law]:
        return [
            _scaled(family, f"kaiming_{family}({mode}{of}, {gain})", value / math.sqrt(fan))
            for fan_in, fan_out, of in at.fans
            for mode, fan in (("fan_in", fan_in), ("fan_out", fan_out))
            for gain, value in GAINS.items()
            if fan > 0
        ]

    return laws


def _xavier(family: str) -> Callable[[Place], list[Law]]:
    def laws(at: Place) -> list[Law]:
        return [
            _scaled(family, f"xavier_{family}(gain {gain}{of})", value * math.sqrt(2 / (fan_in + fan_out)))
            for fan_in, fan_out, of in at.fans
            for gain, value in XAVIER_GAINS.items()
            if fan_in + fan_out > 0
        ]

    return laws


def _uniform(at: Place) -> list[Law]:
    laws = [uniform("uniform(0, 1)", 0.0, 1.0)]
    laws += [uniform(f"uniform(±{width:g})", -width, width) for width in UNIFORM_WIDTHS]
    if len(at.shape) == 2 and min(at.shape) > 0:
        rows, columns = at.shape
        laws += [uniform("uniform(±1/rows)", -1 / rows, 1 / rows)]
        laws += [uniform("uniform(±1/2 columns)", -0.5 / columns, 0.5 / columns)]
    return laws


def _normal(at: Place) -> list[Law]:
    laws = [normal(f"normal(0, {std:g})", std) for std in NORMAL_STDS]
    if at.shape and math.prod(at.shape) > 0:
        laws += [normal("normal(0, 1/√n)", 1 / math.sqrt(at.shape[-1]))]
    return [*laws, normal("normal(1, 0.02)", 0.02, mean=1.0)]


def _trunc_normal(at: Place) -> list[Law]:
    laws = [truncated("trunc_normal(0, 1, ±2)", 1.0, 2.0)]
    for std in (0.02, 0.01):
        laws += [truncated(f"trunc_normal(0, {std:g}, ±{cut}σ)", std, cut * std) for cut in (2, 3)]
    for fan_in, _, of in at.fans:
        if fan_in > 0:
            std = 1 / math.sqrt(fan_in)
            laws += [truncated(f"lecun_normal(fan_in{of})", std / LECUN_CUT, 2 * std / LECUN_CUT)]
            laws += [truncated(f"trunc_normal(0, 1/√fan_in{of}, ±{cut}σ)", std, cut * std) for cut in (2, 3)]
    return laws


def _layer(at: Place) -> list[Law]:
    fans = {fan_in for fan_in, _, of in at.fans if not of} | {at.shape[1] if len(at.shape) > 1 else 0}
    fans |= set(at.module_fans) if len(at.shape) == 1 else set()
    return [_root(f"layer default, uniform(±1/√{fan:g})", fan) for fan in sorted(fans) if fan > 0]


def _recurrent(at: Place) -> list[Law]:
    return [_root(f"recurrent default, uniform(±1/√{hidden})", hidden) for hidden in at.hidden]


def _root(label: str, size: float) -> Law:
    return uniform(label, -1 / math.sqrt(size), 1 / math.sqrt(size))


def _residual(at: Place) -> list[Law]:
    return [normal(f"residual, normal(0, 0.02/√{2 * n})", 0.02 / math.sqrt(2 * n)) for n in at.depth]


def _none(at: Place) -> list[Law]:
    return []


@dataclass(frozen=True)
class Scheme:
    """``laws`` of independent elements at a place; none for schemes that :mod:`judge` tests by their structure."""

    description: str
    laws: Callable[[Place], list[Law]] = _none


SCHEMES: dict[str, Scheme] = {
    "layer": Scheme("default of Linear, Conv*, Bilinear: uniform within 1/√fan_in, of the weight for a bias", _layer),
    "recurrent": Scheme("default of LSTM, GRU, RNN: uniform within 1/√hidden", _recurrent),
    "kaiming_uniform": Scheme("uniform, variance gain²/fan", _kaiming("uniform")),
    "kaiming_normal": Scheme("normal, variance gain²/fan", _kaiming("normal")),
    "xavier_uniform": Scheme("uniform, variance 2 gain²/(fan_in + fan_out); MultiheadAttention", _xavier("uniform")),
    "xavier_normal": Scheme("normal, variance 2 gain²/(fan_in + fan_out)", _xavier("normal")),
    "normal": Scheme("normal with a usual σ: 1 (Embedding, torch.randn), 0.02 (language models) …", _normal),
    "trunc_normal": Scheme("normal, cut at ±2 or ±3 σ (vision transformers, LeCun)", _trunc_normal),
    "uniform": Scheme("uniform with usual bounds: (0, 1), ±0.1 …", _uniform),
    "residual": Scheme("normal, 0.02/√(2 layers) (GPT-2)", _residual),
    "orthogonal": Scheme("orthonormal rows or columns times a usual gain, also per gate of a recurrent layer"),
    "sparse": Scheme("the same number of zeros in every column, the rest normal"),
    "zeros": Scheme("all zero (buffers, biases, LoRA B)"),
    "ones": Scheme("all one (normalization layers)"),
    "constant": Scheme("all the same, also per gate of a recurrent bias"),
    "eye": Scheme("the identity matrix"),
    "dirac": Scheme("identity convolution, also in groups"),
    "weight_norm": Scheme("the norms of a weight-normalized layer's directions"),
}
"""Every scheme of the pool. Laws with parameters of their own are named ``normal(mean, std)``, ``uniform(low, high)``,
``trunc_normal(mean, std, low, high)``, ``constant(value)`` and ``orthogonal(gain)``."""


@dataclass(frozen=True)
class Pool:
    """A parsed choice of schemes, of laws, and of ``rules`` that give the laws at a place."""

    names: frozenset[str]
    laws: tuple[Law, ...] = ()
    constants: tuple[float, ...] = ()
    gains: tuple[float, ...] = ()
    rules: tuple[Callable[[Place], list[Law]], ...] = ()

    def joined(self, other: Pool) -> Pool:
        """What is in one of the two."""
        return Pool(
            self.names | other.names,
            self.laws + other.laws,
            self.constants + other.constants,
            self.gains + other.gains,
            self.rules + other.rules,
        )

    def at(self, where: Place) -> list[Law]:
        """The distinct laws a tensor may follow at ``where``."""
        found: dict[tuple[str | float, ...], Law] = {}
        for name, scheme in SCHEMES.items():
            if name in self.names:
                for law in scheme.laws(where):
                    found.setdefault(law.numbers, law)
        for law in (*self.laws, *(law for rule in self.rules for law in rule(where))):
            found.setdefault(law.numbers, law)
        return list(found.values())


_ARITY = {"normal": 2, "uniform": 2, "trunc_normal": 4, "constant": 1, "orthogonal": 1}


def parse(schemes: Iterable[str] | None) -> Pool:
    """The pool that ``schemes`` name; the whole public pool for None. UsageError for what it does not know."""
    if schemes is None:
        return Pool(frozenset(SCHEMES), gains=ORTHOGONAL_GAINS)
    names, pool = set(), Pool(frozenset())
    for spec in [schemes] if isinstance(schemes, str) else schemes:
        match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", spec)
        if match is not None and match[1] in SCHEMES and match[2] is None:
            names.add(match[1])
        else:
            pool = _with(pool, spec, match[1] if match else "", _numbers(match[2] or "") if match else [])
    gains = pool.gains + (ORTHOGONAL_GAINS if "orthogonal" in names else ())
    return replace(pool, names=frozenset(names), gains=gains)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def _with(pool: Pool, spec: str, name: str, numbers: Sequence[float]) -> Pool:
    if name not in _ARITY or len(numbers) != _ARITY[name] or not all(abs(x) <= 1e30 for x in numbers):
        raise UsageError(
            f"unknown initialization scheme {spec!r}; use one of {', '.join(SCHEMES)}, or a law with numbers such as "
            "normal(0, 0.02), uniform(-0.1, 0.1), trunc_normal(0, 1, -2, 2), constant(0.5), orthogonal(1.5)"
        )
    if name == "constant":
        return replace(pool, constants=(*pool.constants, numbers[0]))
    if name == "orthogonal":
        return replace(pool, gains=(*pool.gains, numbers[0]))
    low, high = (numbers[0], numbers[1]) if name == "uniform" else (numbers[2:] or (-math.inf, math.inf))
    if not high - low > 1e-30 or (name != "uniform" and not numbers[1] > 1e-30):
        raise UsageError(f"the initialization scheme {spec!r} has an empty range or no spread")
    law = uniform(spec, low, high) if name == "uniform" else Law(spec, "normal", numbers[0], numbers[1], low, high)
    return replace(pool, laws=(*pool.laws, law))
