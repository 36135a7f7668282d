"""Portable arithmetic: each operation near enough to the true value, and the same bits in every setting of this machine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proof_of_learning.errors import TaskError
from proof_of_learning.numeric.portable import PORTABLE, grid, selftest, using
from proof_of_learning.numeric.portable.selftest import numbers

SETTINGS: dict[str, dict[str, str]] = {
    "no vector units": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "two threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
}
CASES = selftest.cases()


@cache
def here() -> dict[str, str]:
    return selftest.digests()


@cache
def elsewhere(setting: str) -> dict[str, str]:
    """Every case's digest in a process of another setting; one process for each setting."""
    code = "import json; from proof_of_learning.numeric.portable import selftest; print(json.dumps(selftest.digests()))"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **SETTINGS[setting]}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


# ---- the same bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_the_published_bits(name: str) -> None:
    assert here()[name] == selftest.published()[name]


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow(reason="vectors narrower than here; without any stays") if name == "AVX2" else (),
        )
        for name in SETTINGS
    ],
)
def test_every_operation_gives_the_same_bits_in_another_setting(setting: str) -> None:
    assert elsewhere(setting) == selftest.published()


@pytest.mark.parametrize("name", [n for n in CASES if n not in {name for name, _ in selftest._draws()}])
def test_an_operation_computes_what_pytorch_computes(name: str) -> None:
    """Up to float32's rounding: no formula is another one. Extremes, which each defines for itself, are left out, and so are sums
    that cancel out, and places among equals.
    """
    if name in ("mm 4 3000 5", "mm of extremes", "topk"):
        pytest.skip("held against exact values below")
    with using(PORTABLE):
        ours = _flat(CASES[name]())
    theirs = _flat(CASES[name]())
    sane = ours.isfinite() & theirs.isfinite() & (theirs.abs() < 1e30)
    assert sane.sum() > 0.4 * sane.numel() or "extremes" in name
    scale = theirs[sane].abs().quantile(0.8) if sane.any() else torch.ones(())
    torch.testing.assert_close(ours[sane], theirs[sane], rtol=2e-4, atol=float(scale) * 2e-5)


def _flat(found: Any) -> Tensor:
    return torch.cat(
        [t.detach().double().reshape(-1) for t in (found if isinstance(found, (list, tuple)) else [found])]
    )


@pytest.mark.parametrize("layout", ["transposed", "strided", "channels last"])
def test_a_layout_in_memory_does_not_matter(layout: str) -> None:
    x = numbers(1, 4, 6, 10, 8)
    other = {
        "transposed": x.transpose(0, 3).contiguous().transpose(0, 3),
        "strided": torch.stack([x, x], -1)[..., 0],
        "channels last": x.to(memory_format=torch.channels_last),
    }[layout]
    w = numbers(2, 5, 6, 3, 3)
    with using(PORTABLE):
        for call in (torch.exp, F.gelu, lambda t: t.sum((0, 2)), lambda t: torch.softmax(t, 1), lambda t: F.conv2d(t, w),
                     lambda t: t @ numbers(3, 8, 3), lambda t: t.max(1)[1],
                     lambda t: F.batch_norm(t, None, None, training=True)):  # fmt: skip
            assert torch.equal(call(x), call(other))


def test_the_order_of_what_is_summed_does_not_matter() -> None:
    x = numbers(1, 5000, spread=20)
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    with using(PORTABLE):
        assert torch.equal(x.sum(), x[order].sum())
        a, b = numbers(2, 3, 5000), numbers(3, 5000, 4)
        assert torch.equal(a[:, :2000] @ b[:2000], a[:, :2000][:, order[order < 2000]] @ b[:2000][order[order < 2000]])


# ---- near enough ----------------------------------------------------------------------------------------


def ulps(found: Tensor, true: list[Any]) -> float:
    """The largest error in units of the last place of float32 (denormals have that of the smallest normal number)."""
    worst = 0.0
    for value, wanted in zip(found.double().tolist(), true, strict=True):
        unit = (
            mpmath.mpf(2) ** (max(-126, int(mpmath.floor(mpmath.log(abs(wanted), 2)))) - 23)
            if wanted
            else mpmath.mpf(2) ** -149
        )
        worst = max(worst, float(abs(mpmath.mpf(value) - wanted) / unit))
    return worst


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any], Any], float, float, float]] = {
    # call, true value, from, to, largest error in units of the last place
    "exp": (torch.exp, mpmath.exp, -86, 88, 0.51), "expm1": (torch.expm1, mpmath.expm1, -20, 80, 0.51),
    "log": (torch.log, mpmath.log, 1e-30, 1e30, 0.51), "log near 1": (torch.log, mpmath.log, 0.9, 1.1, 0.51),
    "log1p": (torch.log1p, mpmath.log1p, -0.9, 9, 0.51), "tanh": (torch.tanh, mpmath.tanh, -9, 9, 0.51),
    "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), -80, 80, 0.51),
    "erf": (torch.erf, mpmath.erf, -4, 4, 0.52), "erfc": (torch.erfc, mpmath.erfc, -4, 9, 0.55),
    "sin": (torch.sin, mpmath.sin, -1000, 1000, 0.51), "cos": (torch.cos, mpmath.cos, -1000, 1000, 0.51),
    "sqrt": (torch.sqrt, mpmath.sqrt, 1e-30, 1e30, 0.5), "sqrt of small": (torch.sqrt, mpmath.sqrt, 1, 4, 0.5),
    "rsqrt": (torch.rsqrt, lambda x: 1 / mpmath.sqrt(x), 1e-20, 1e20, 1.5),
    "gelu": (F.gelu, lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2, -9, 9, 0.55),
    "silu": (F.silu, lambda x: x / (1 + mpmath.exp(-x)), -60, 60, 0.51),
    "softplus": (F.softplus, lambda x: mpmath.log1p(mpmath.exp(x)), -60, 60, 1.1),
    "pow 2.5": (lambda x: x**2.5, lambda x: x ** mpmath.mpf("2.5"), 1e-8, 1e8, 0.52),
    "pow -0.75": (lambda x: x**-0.75, lambda x: x ** mpmath.mpf(-0.75), 1e-8, 1e8, 0.52),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_right_to_the_last_place(name: str) -> None:
    call, true, low, high, limit = FUNCTIONS[name]
    share = torch.linspace(0, 1, 1500, dtype=torch.float64)
    wide = low > 0 and high / low > 100
    x = (low * (high / low) ** share if wide else low + (high - low) * share).float()
    if low < 0:
        x = torch.cat(
            [x, torch.logspace(-20, 0, 300, dtype=torch.float64).float(), -torch.logspace(-20, -2, 300).float()]
        )
    with using(PORTABLE):
        found = call(x)
    with mpmath.workdps(40):
        assert ulps(found, [true(mpmath.mpf(v)) for v in x.double().tolist()]) <= limit


def test_a_square_root_is_rounded_right() -> None:
    x = torch.cat([numbers(1, 20_000, spread=60).abs(), torch.tensor([0.0, 1e-45, 3e-39, 3.4e38])])
    with using(PORTABLE):
        found = x.sqrt()
    for value, root in zip(x.double().tolist(), found.double().tolist(), strict=True):
        if value:
            step = math.ldexp(1.0, math.frexp(root)[1] - 24)
            assert Fraction(root - step / 2) ** 2 <= Fraction(value) <= Fraction(root + step / 2) ** 2


@pytest.mark.parametrize(("terms", "spread"), [(1, 3), (40, 3), (600, 12), (2100, 3), (9000, 6), (20_000, 3)])
def test_a_product_errs_by_no_more_than_its_grid(terms: int, spread: int) -> None:
    a, b = numbers(1, 2, terms, spread=spread), numbers(2, terms, 2, spread=spread)
    with using(PORTABLE):
        found = a @ b
    bits, _ = grid.product_bits(terms)
    assert bits >= 20
    for i in range(2):
        for j in range(2):
            row, column = a[i].double().tolist(), b[:, j].double().tolist()
            true = sum(Fraction(x) * Fraction(y) for x, y in zip(row, column, strict=True))
            largest = [max(abs(v) for v in values) for values in (row, column)]
            each = sum(largest[0] * abs(y) + largest[1] * abs(x) for x, y in zip(row, column, strict=True)) * 2.0**-bits
            rounding = abs(float(true)) * 2.0**-24 + 2.0**-149
            assert abs(Fraction(found[i, j].item()) - true) <= Fraction(1.001 * (each + rounding))


@pytest.mark.parametrize(("terms", "spread"), [(1, 3), (7, 20), (1000, 8), (100_000, 12)])
def test_a_sum_errs_by_no_more_than_its_grid(terms: int, spread: int) -> None:
    x = numbers(3, terms, spread=spread)
    with using(PORTABLE):
        found = x.sum().item()
    true = sum(map(Fraction, x.double().tolist()), start=Fraction(0))
    step = 2.0 ** (math.frexp(x.abs().max().item())[1] - (grid.SUM_BITS - grid.ceil_log2(terms)))
    assert abs(Fraction(found) - true) <= Fraction(terms * step / 2) + abs(true) * Fraction(1, 2**24)


def test_what_is_not_finite_makes_nan_of_all_that_shares_its_grid() -> None:
    a, b = numbers(1, 3, 5), numbers(2, 5, 4)
    a[1, 2] = math.inf
    b[0, 3] = math.nan
    with using(PORTABLE):
        found, rows = a @ b, a.sum(1)
    wanted = torch.zeros(3, 4, dtype=torch.bool)
    wanted[1] = wanted[:, 3] = True
    assert torch.equal(found.isnan(), wanted)
    assert rows.isnan().tolist() == [False, True, False]


# ---- optimizers -----------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda w, **k: torch.optim.SGD(w, 0.1, momentum=0.9, weight_decay=1e-3, **k),
    "Adam": lambda w, **k: torch.optim.Adam(w, 0.01, weight_decay=0.1, **k),
    "Adam amsgrad": lambda w, **k: torch.optim.Adam(w, 0.01, amsgrad=True, **k),
    "AdamW": lambda w, **k: torch.optim.AdamW(w, 0.01, **k), "NAdam": lambda w, **k: torch.optim.NAdam(w, 0.01, **k),
    "RAdam": lambda w, **k: torch.optim.RAdam(w, 0.01, **k), "Adamax": lambda w, **k: torch.optim.Adamax(w, 0.01, **k),
    "Adagrad": lambda w, **k: torch.optim.Adagrad(w, 0.1, **k), "Adadelta": lambda w, **k: torch.optim.Adadelta(w, 0.5, **k),
    "RMSprop": lambda w, **k: torch.optim.RMSprop(w, 0.01, momentum=0.5, centered=True, **k),
}  # fmt: skip


def optimized(name: str, steps: int = 9, **options: Any) -> list[Tensor]:
    """The weights and what the optimizer keeps after some steps on given gradients."""
    weights = [nn.Parameter(numbers(5, 7, 3)), nn.Parameter(numbers(6, 4)), nn.Parameter(numbers(7, 2, 2))]
    optimizer = OPTIMIZERS[name](weights, **options)
    with using(PORTABLE):
        for step in range(steps):
            for place, weight in enumerate(weights):
                weight.grad = numbers(100 * step + place, *weight.shape)
            optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    assert all(group["foreach"] is options.get("foreach") for group in optimizer.param_groups)  # put back
    return [*(weight.detach() for weight in weights), *kept]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_the_same_steps_in_either_form(name: str) -> None:
    """A GPU takes ``foreach`` where nobody chose."""
    wanted, found = optimized(name), optimized(name, foreach=True)
    assert all(map(torch.equal, wanted, found))
    assert all(map(torch.equal, wanted, optimized(name, foreach=False)))


def test_a_fused_optimizer_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match=r"fused=True of AdamW, called at .*test_portable\.py:\d+"):
        optimized("AdamW", fused=True)


def test_an_operation_on_lists_in_place_is_known_where_only_lists_have_it() -> None:
    lists = [[numbers(1, 9), numbers(2, 4)], [numbers(3, 9), numbers(4, 4)]]
    with using(PORTABLE):
        torch._foreach_maximum_(*lists)
    assert torch.equal(lists[0][1], torch.maximum(numbers(2, 4), numbers(4, 4)))


# ---- the switch -----------------------------------------------------------------------------------------


def test_an_operation_that_is_not_in_the_table_is_refused_with_its_line() -> None:
    with (
        using(PORTABLE),
        pytest.raises(TaskError, match=r"aten\.linalg_qr.*called at .*test_portable\.py:\d+ \(torch\.linalg\.qr"),
    ):
        torch.linalg.qr(numbers(1, 4, 4))
    with using(PORTABLE), pytest.raises(TaskError, match="float16"):
        numbers(1, 4).half()
    with using(PORTABLE), pytest.raises(TaskError, match="float64"):
        numbers(1, 4).double().exp()


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64])
def test_a_kind_of_number_without_a_portable_form_is_refused_in_lists_too(dtype: torch.dtype) -> None:
    held = [torch.ones(3, dtype=dtype), torch.ones(2, dtype=dtype)]
    for call in (lambda: torch._foreach_mul(held, held), lambda: torch._foreach_add(held, held)):
        with using(PORTABLE), pytest.raises(TaskError, match=str(dtype).removeprefix("torch.")):
            call()


def test_nothing_is_different_outside() -> None:
    before = (
        torch.backends.mkldnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
    )
    found: dict[str, Tensor] = {}
    with using(PORTABLE):
        with using(PORTABLE):  # it is in force already
            inside = numbers(1, 100).exp()
        other = threading.Thread(target=lambda: found.update(qr=torch.linalg.qr(torch.eye(3))[0]))
        other.start()
        other.join()
        with pytest.raises(TaskError):
            torch.linalg.qr(torch.eye(3))
    assert "qr" in found
    assert (
        torch.backends.mkldnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
    ) == before
    torch.linalg.qr(torch.eye(3))
    torch.testing.assert_close(inside, numbers(1, 100).exp())


def test_initial_weights_and_draws_follow_from_the_seed_alone() -> None:
    def drawn() -> list[Tensor]:
        torch.default_generator.manual_seed(3)
        net = nn.Sequential(nn.Linear(9, 5), nn.LSTM(5, 4), nn.Embedding(6, 2), nn.Conv2d(1, 2, 3))
        return [*(p.detach() for p in net.parameters()), torch.randn(7), torch.randperm(9)]

    with using(PORTABLE):
        first, second = drawn(), drawn()
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], drawn()[0])
    with using(PORTABLE):
        normal = torch.randn(20_000)
        uniform, kept = torch.rand(20_000), F.dropout(torch.ones(20_000), 0.25)
    assert (
        abs(normal.mean()) < 0.04
        and abs(normal.std() - 1) < 0.03
        and abs(normal.abs().gt(1.96).float().mean() - 0.05) < 0.01
    )
    assert abs(uniform.mean() - 0.5) < 0.02 and uniform.min() >= 0 and uniform.max() < 1
    assert abs(kept.gt(0).float().mean() - 0.75) < 0.02


def test_modules_are_copied_as_averages_of_weights_do() -> None:
    with using("portable"):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        model(torch.ones(5, 3)).sum().backward()
        average = torch.optim.swa_utils.AveragedModel(model)
        average.update_parameters(model)
    assert all(torch.equal(a, b) for a, b in zip(average.module.parameters(), model.parameters(), strict=True))
