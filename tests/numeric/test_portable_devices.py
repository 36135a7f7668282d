"""What portable arithmetic composes itself on accelerators gives the CPU's bits; tried on the CPU, where both ways can be taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from proof_of_learning.errors import NumericEnvironmentError
from proof_of_learning.numeric import environment
from proof_of_learning.numeric.portable import PORTABLE, engine, linear, normalisation, recurrent, using, windows
from proof_of_learning.numeric.portable.selftest import numbers

aten = torch.ops.aten


def whole(seed: int, *shape: int) -> Tensor:
    return torch.randint(-50, 50, shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize(
    ("places", "kernel"), [((17,), (5,)), ((9, 8), (3, 3)), ((9, 8), (1, 2)), ((6, 5, 4), (3, 3, 2))]
)
def test_convolutions_by_windows_are_convolutions(places: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    tried, d = 0, len(places)
    for stride, padding, dilation, groups in itertools.product((1, 2, 3), (0, 2), (1, 2), (1, 2, 4)):
        x, w = whole(1, 3, 4, *places), whole(2, 8, 4 // groups, *kernel)
        settings = ([stride] * d, [padding] * d, [dilation] * d)
        if any(n + 2 * padding < dilation * (k - 1) + 1 for n, k in zip(places, kernel, strict=True)):
            continue
        y = aten.convolution.default(x, w, None, *settings, False, [0] * d, groups)
        g = whole(3, *y.shape)
        by_input, by_weight, _ = aten.convolution_backward.default(
            g, x, w, None, *settings, False, [0] * d, groups, [True, True, False]
        )
        assert torch.equal(windows.forward(x, w, *settings, groups), y)
        assert torch.equal(windows.by_input(g, w, x.shape, *settings, groups), by_input)
        assert torch.equal(windows.by_weight(g, x, w.shape, *settings, groups), by_weight)
        tried += 1
    assert tried >= 12


class Composing(TorchFunctionMode):
    """Recurrent layers as they are composed on an accelerator."""

    taken = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in recurrent.CELLS:
            Composing.taken += 1
            return recurrent.run(func.__name__, *args)
        return func(*args, **(kwargs or {}))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: nn.LSTM(5, 6),
    "two LSTMs both ways": lambda: nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True, dropout=0.3),
    "LSTM with a projection": lambda: nn.LSTM(5, 6, bias=False, proj_size=3),
    "GRU": lambda: nn.GRU(5, 6, 2, bidirectional=True),
    "tanh": lambda: nn.RNN(5, 6),
    "relu": lambda: nn.RNN(5, 6, nonlinearity="relu", bias=False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_layers_are_composed_as_a_cpu_composes_them(name: str) -> None:
    def results() -> list[Tensor | None]:
        torch.manual_seed(3)
        layer = LAYERS[name]()
        torch.manual_seed(4)
        x = numbers(1, 7, 4, 5).requires_grad_()
        y, hidden = layer(x)
        states = hidden if isinstance(hidden, tuple) else (hidden,)
        (y.sum() + sum((h * h).sum() for h in states)).backward()
        return [y, *states, x.grad, *(p.grad for p in layer.parameters())]

    with using(PORTABLE):
        wanted = results()
        before = Composing.taken
        with Composing():
            found = results()
    assert Composing.taken == before + 1
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_dropout_in_one_operation_is_dropout_in_several(p: float) -> None:
    """An accelerator takes ``native_dropout`` where a CPU composes."""

    def results(call: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
        x = numbers(1, 40, 30).requires_grad_()
        torch.manual_seed(5)
        y = call(x)
        y.backward(numbers(2, 40, 30))
        return y, x.grad

    with using(PORTABLE):
        wanted = results(lambda x: torch.dropout(x, p, True))
        found = results(lambda x: torch.native_dropout(x, p, True)[0])
    assert torch.equal(wanted[0], found[0]) and wanted[1] is not None and found[1] is not None
    assert torch.equal(wanted[1], found[1])


def test_the_switch_for_deterministic_operations_is_off_meanwhile_and_put_back() -> None:
    with environment.recording("cpu"):
        assert torch.are_deterministic_algorithms_enabled()
        with using(PORTABLE):
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cuda:0\n", "tpu"])
def test_a_device_that_is_not_known_is_named(device: str) -> None:
    with pytest.raises(NumericEnvironmentError, match="not known here"):
        environment.require(device)


def _gradients(call: Callable[..., Tensor], g: Tensor, *inputs: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    with using(PORTABLE):
        y = call(*leaves)
        y.backward(g)
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (2, 3, 4, 7), (9000, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_in_one_step_is_the_composed_one(shape: tuple[int, ...], bias: bool) -> None:
    x, w, g = numbers(1, *shape), numbers(2, 6, 7), numbers(4, *shape[:-1], 6)
    given = [x, w, numbers(3, 6)] if bias else [x, w]
    one = _gradients(lambda x, w, b=None: linear.Linear.apply(x, w, b).add_(1.5), g, *given)
    composed = _gradients(lambda x, w, b=None: F.linear(x, w, b).add_(1.5), g, *given)
    assert len(one) == len(given) + 1
    assert all(torch.equal(a, b) for a, b in zip(one, composed, strict=True))


def test_a_gradient_of_a_gradient_goes_through_a_linear_layer() -> None:
    def slope(call: Callable[..., Tensor]) -> Tensor:
        x, w = numbers(1, 3, 4).requires_grad_(), numbers(2, 2, 4).requires_grad_()
        with using(PORTABLE):
            (by_x,) = torch.autograd.grad(call(x, w, None).pow(2).sum(), x, create_graph=True)
            by_x.pow(2).sum().backward()
        assert w.grad is not None
        return w.grad

    assert torch.equal(slope(linear.Linear.apply), slope(F.linear))


def test_what_a_linear_layer_in_one_step_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.ones(2, 3), torch.ones(4, 3)
    assert not linear.taken((x, w, None), {})  # on the CPU
    monkeypatch.setattr(linear, "_fits", lambda x: type(x) in linear.KINDS)
    assert linear.taken((x, w, None), {})
    assert not linear.taken((x, w), {})
    assert not linear.taken((x[0], w, None), {})
    assert not linear.taken((x, w.t(), None), {})
    assert not linear.taken((x, w, torch.ones(3)), {})
    with forward_ad.dual_level():
        assert not linear.taken((x, w, None), {})


@pytest.mark.parametrize(("shape", "within"), [((3, 8), (8,)), ((4, 5, 8), (5, 8)), ((8,), (8,))])
def test_one_operation_for_rms_norm_is_the_composed_one(shape: tuple[int, ...], within: tuple[int, ...]) -> None:
    x, w, g = numbers(1, *shape), numbers(2, *within), numbers(3, *shape)
    y, *composed = _gradients(lambda x, w: F.rms_norm(x, within, w), g, x, w)
    found, inverse = normalisation._rms_norm(x, within, w, None)
    by_x, by_w = normalisation._rms_norm_backward(g, x, within, inverse, w, [True, True])
    assert by_x is not None
    assert by_w is not None
    assert [torch.equal(a, b) for a, b in zip((found, by_x, by_w), (y, *composed), strict=True)] == [True] * 3


def test_clamping_keeps_a_zeros_sign_and_nan_on_every_device() -> None:
    x = torch.tensor([-0.0, 0.0, float("nan"), -1e-45, 1e-45, -3.0, 7.0, -float("inf"), float("inf")])
    wanted = {
        torch.relu: [-0.0, 0.0, float("nan"), 0.0, 1e-45, 0.0, 7.0, 0.0, float("inf")],
        F.relu6: [-0.0, 0.0, float("nan"), 0.0, 1e-45, 0.0, 6.0, 0.0, 6.0],
        F.hardtanh: [-0.0, 0.0, float("nan"), -1e-45, 1e-45, -1.0, 1.0, -1.0, 1.0],
    }
    with using(PORTABLE):
        for call, values in wanted.items():
            for found in (call(x), call(x.repeat(9))[-9:]):  # those that vectors leave over, too
                assert repr(found.tolist()) == repr(torch.tensor(values).tolist()), call
        assert torch.arange(5).clamp(1, 3).tolist() == [1, 1, 2, 3, 3]
        assert not torch.signbit(x.clamp(max=0.0)[1])
        assert x.double().clamp_(min=-0.0)[0].signbit()


def test_the_engine_of_the_cpu_is_asked_after_that_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is chosen first: on a GPU the CPU's entries take nothing, and would hide the kernels."""
    calls: list[str] = []
    monkeypatch.setattr(engine, "_chosen", None)
    monkeypatch.setattr(engine, "_chosen_for_cuda", None)

    def choose(device: str) -> engine.Engine:
        calls.append(device)
        return engine.Engine("plain", "")

    monkeypatch.setattr(engine, "_choose", lambda: choose("cpu"))
    monkeypatch.setattr(engine, "_choose_for_cuda", lambda: choose("cuda"))
    engine.prepare_for_cuda()
    engine.prepare()
    assert calls == ["cpu", "cuda"]
