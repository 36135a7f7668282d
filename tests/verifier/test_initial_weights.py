"""Judging a recorded initialization: honest draws pass at the stated rate, trained and arranged weights do not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from scipy import stats
from torch import Tensor, nn

from proof_of_learning.data.digits import digits
from proof_of_learning.errors import UsageError
from proof_of_learning.verifier.initialization.judge import PoolResult, TensorJudgement, judge_initialization
from proof_of_learning.verifier.initialization.sample import spectrum_p_value
from proof_of_learning.verifier.initialization.schemes import SCHEMES

init = nn.init


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def judge(tensor: Tensor, name: str = "layer.weight", **options: object) -> TensorJudgement:
    (judged,) = judge_initialization({name: tensor}, **options).tensors  # type: ignore[arg-type]
    return judged


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def train(net: nn.Module, steps: int, rate: float = 0.05) -> None:
    x, y = digits()
    pixels, labels = torch.tensor(x / 16, dtype=torch.float32).flatten(1), torch.tensor(y)
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    for _ in range(steps):
        batch = torch.randint(len(pixels), (64,))
        optimizer.zero_grad()
        functional.cross_entropy(net(pixels[batch]), labels[batch]).backward()
        optimizer.step()


# ---- honest draws -----------------------------------------------------------------------------------

MATRIX, KERNEL = (60, 100), (16, 8, 3, 3)
Fill = Callable[[Tensor], Tensor]
FILLS: dict[str, tuple[Fill, tuple[int, ...]]] = {
    "uniform": (init.uniform_, MATRIX),
    "normal": (init.normal_, MATRIX),
    "normal 0.02": (lambda w: init.normal_(w, 0, 0.02), MATRIX),
    "trunc_normal": (init.trunc_normal_, MATRIX),
    "trunc_normal of vision transformers": (lambda w: init.trunc_normal_(w, std=0.02), MATRIX),
    "trunc_normal 0.02": (lambda w: init.trunc_normal_(w, 0, 0.02, -0.04, 0.04), MATRIX),
    "xavier_uniform": (init.xavier_uniform_, MATRIX),
    "xavier_uniform tanh": (lambda w: init.xavier_uniform_(w, 5 / 3), KERNEL),
    "xavier_normal": (init.xavier_normal_, KERNEL),
    "kaiming_uniform": (init.kaiming_uniform_, MATRIX),
    "kaiming_uniform of layers": (lambda w: init.kaiming_uniform_(w, a=math.sqrt(5)), KERNEL),
    "kaiming_normal": (init.kaiming_normal_, KERNEL),
    "kaiming_normal fan_out": (lambda w: init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"), KERNEL),
    "kaiming_normal selu": (lambda w: init.kaiming_normal_(w, nonlinearity="selu"), MATRIX),
    "kaiming_normal leaky": (lambda w: init.kaiming_normal_(w, a=0.2), MATRIX),
    "orthogonal": (init.orthogonal_, MATRIX),
    "orthogonal tall, √2": (lambda w: init.orthogonal_(w, math.sqrt(2)), (100, 30)),
    "orthogonal kernel": (init.orthogonal_, KERNEL),
    "row, orthogonal": (init.orthogonal_, (1, 300)),
    "sparse": (lambda w: init.sparse_(w, 0.3), MATRIX),
    "eye": (init.eye_, MATRIX),
    "dirac": (init.dirac_, KERNEL),
    "dirac in groups": (lambda w: init.dirac_(w, 2), KERNEL),
    "zeros": (init.zeros_, MATRIX),
    "ones": (init.ones_, (50,)),
    "constant": (lambda w: init.constant_(w, 0.25), (50,)),
}


@pytest.mark.parametrize("case", FILLS)
def test_every_scheme_of_torch_is_accepted(case: str) -> None:
    fill, shape = FILLS[case]
    judged = judge(fill(torch.empty(shape)))
    assert judged.status == "fits"
    assert judged.p_value > 0.01
    for structured in ("orthogonal", "sparse", "eye", "dirac", "zeros", "ones", "constant"):
        if case.startswith(structured):
            assert judged.scheme is not None and judged.scheme.startswith(structured)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(96, 32, padding_idx=0)
        self.start = nn.Parameter(torch.randn(1, 1, 32) * 0.02)
        self.scale = nn.Parameter(torch.tensor(2.6593))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
        self.head = nn.Linear(32, 96)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.PReLU(), nn.ConvTranspose1d(32, 16, 4)
    ),
    "groups": lambda: nn.Sequential(nn.Conv2d(32, 64, 5, groups=32), nn.GroupNorm(4, 64), nn.Conv3d(64, 8, 3)),
    "bilinear": lambda: nn.Bilinear(20, 30, 40),
    "lstm": lambda: nn.LSTM(24, 40, 2, bidirectional=True, proj_size=16),
    "gru": lambda: nn.GRU(24, 40),
    "rnn cell": lambda: nn.RNNCell(24, 40),
    "attention": lambda: nn.MultiheadAttention(32, 4, add_bias_kv=True, kdim=24, vdim=16),
    "transformer": lambda: nn.Transformer(32, 4, 1, 1, 64, batch_first=True),
    "words": Words,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 32, 3)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_is_accepted_as_pytorch_leaves_it(layer: str) -> None:
    module = LAYERS[layer]()
    tensors = {f"model/parameters/{name}": t for name, t in parameters(module).items()}
    tensors |= {f"model/buffers/{name}": t for name, t in module.named_buffers()}
    result = judge_initialization(tensors)
    assert result.accepted, result.rejected
    assert [t.name for t in result.tensors] == list(tensors)


def test_recurrent_layers_may_be_filled_gate_by_gate() -> None:
    lstm = nn.LSTM(24, 40)
    for name, p in lstm.named_parameters():
        if "weight_hh" in name:
            for gate in p.data.chunk(4):
                init.orthogonal_(gate)
        elif "weight_ih" in name:
            init.xavier_uniform_(p)
        elif "bias_ih" in name:
            p.data[40:80] = 1.0  # the forget gate; the rest stays as drawn
        else:
            p.data.zero_()[40:80] = 1.0
    found = {t.name: t for t in judge_initialization(parameters(lstm)).tensors}
    assert all(t.status == "fits" for t in found.values()), found
    assert found["weight_hh_l0"].scheme == "orthogonal(gain 1, per block of 4)"
    assert found["bias_hh_l0"].scheme == "constant"


def test_residual_scaling_follows_from_the_number_of_layers() -> None:
    std = 0.02 / math.sqrt(2 * 3)
    tensors = {f"h.{i}.proj.weight": torch.randn(200, 200) * std for i in range(3)}
    assert judge_initialization(tensors).accepted
    assert not judge_initialization({"proj.weight": tensors["h.0.proj.weight"]}).accepted


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_accepted(dtype: torch.dtype) -> None:
    tensors = {f"{i}.{name}": t.to(dtype) for i in range(5) for name, t in parameters(mlp()).items()}
    tensors |= {"direct.weight": torch.empty(300, 300, dtype=dtype).uniform_(-0.1, 0.1)}
    tensors |= {"normal.weight": torch.empty(300, 300, dtype=dtype).normal_(0, 0.02)}
    tensors |= {"orthogonal.weight": init.orthogonal_(torch.empty(60, 40)).to(dtype)}
    result = judge_initialization(tensors)
    assert result.accepted, result.rejected


def test_honest_initializations_are_rejected_no_more_often_than_stated() -> None:
    """120 draws: at most the 99.9 % quantile of what a test of exactly this size would reject, at three levels."""
    p_values = []
    for seed in range(120):
        torch.manual_seed(seed)
        net = mlp()
        if seed % 2:
            for p in net.parameters():
                init.kaiming_normal_(p) if p.ndim > 1 else init.zeros_(p)
        p_values.append(judge_initialization(parameters(net)).p_value)
    for alpha in (0.01, 0.05, 0.2):
        rejected = sum(p <= alpha for p in p_values)
        assert rejected <= stats.binom.ppf(0.999, len(p_values), alpha), (alpha, rejected)


def test_copies_are_one_draw() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 4)
    once = judge_initialization(parameters(encoder.layers[0]))
    assert judge_initialization(parameters(encoder)).tests == once.tests == 6


def test_spectrum_p_value_bounds_the_true_one() -> None:
    rng = np.random.default_rng(0)
    largest = np.linalg.norm(rng.standard_normal((4000, 10, 20)), 2, axis=(1, 2)) ** 2
    p_values = np.array([spectrum_p_value(float(value), 10, 20) for value in largest])
    assert (p_values <= 0.01).mean() <= 0.01
    assert np.median(p_values) < 0.65


# ---- what is not a draw -----------------------------------------------------------------------------


def test_one_step_out_of_bounded_laws_is_noticed() -> None:
    net = mlp()
    train(net, 1)
    result = judge_initialization(parameters(net))
    assert not result.accepted
    assert any(t.scheme is None or t.p_value < 1e-6 for t in result.rejected)


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    torch.manual_seed(3)
    net = mlp()
    for p in net.parameters():
        init.kaiming_normal_(p) if p.ndim > 1 else init.zeros_(p)
    train(net, 200)
    return parameters(net)


def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if t.ndim > 1}


def test_trained_weights_are_rejected(trained: dict[str, Tensor]) -> None:
    assert not judge_initialization(trained).accepted
    assert not judge_initialization(weights(trained)).accepted


def test_pruned_weights_are_rejected() -> None:
    weight = nn.Linear(128, 64).weight.detach()
    flat = weight.flatten()
    cases = {
        "magnitude": torch.where(weight.abs() < weight.abs().median(), 0.0, weight),
        "half of every column": torch.where(weight.abs() < weight.abs().median(0).values, 0.0, weight),
        "two of four": (torch.zeros(flat.numel() // 4, 4).scatter(1, flat.view(-1, 4).abs().topk(2).indices, 1.0)
                        * flat.view(-1, 4)).view_as(weight),
    }  # fmt: skip
    for case, pruned in cases.items():
        assert judge(pruned).status == "rejected", case


def test_rearranged_draws_are_rejected_by_their_structure(trained: dict[str, Tensor]) -> None:
    """Rank matching: the values are a perfect draw, in the order of a trained model."""
    result = {}
    for name, t in weights(trained).items():
        fresh = init.kaiming_normal_(torch.empty_like(t)).flatten().sort().values
        matched = torch.empty_like(fresh)
        matched[t.flatten().argsort()] = fresh
        result[name] = matched.view_as(t)
    judged = judge_initialization(result)
    assert not judged.accepted
    assert {t.test for t in judged.rejected} <= {"sums", "spectrum"}


def test_each_test_sees_what_it_is_for() -> None:
    draw = torch.randn(64, 100)
    cases = {
        "support": functional.pad(torch.rand(63, 100) * 0.2 - 0.1, (0, 0, 0, 1), value=-0.1001),
        "marginal": torch.where(torch.rand(64, 100) < 0.5, 1.0, -1.0) * (1 + 0.01 * draw),
        "size": draw * 1.05,
        "sums": draw + 0.1 * torch.randn(64, 1),
        "spectrum": draw + 0.2 * torch.outer(torch.randn(64), torch.randn(100)),
    }
    options = {"support": ["uniform(-0.1, 0.1)"]}
    for test, weight in cases.items():
        judged = judge(weight, schemes=options.get(test, ["normal(0, 1)"]))
        assert (judged.status, judged.test) == ("rejected", test)


def test_nearly_orthogonal_is_not_orthogonal() -> None:
    weight = init.orthogonal_(torch.empty(64, 64))
    assert judge(weight, schemes=["orthogonal"]).status == "fits"
    assert judge(weight + 1e-4 * torch.randn(64, 64), schemes=["orthogonal"]).status == "rejected"
    assert (
        judge(torch.eye(64)[torch.randperm(64)], schemes=["orthogonal"]).status == "rejected"
    )  # orthonormal, not random
    assert judge(1.3 * weight, schemes=["orthogonal"]).status == "rejected"
    assert judge(1.3 * weight, schemes=["orthogonal(1.3)"]).status == "fits"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_rejected(value: float) -> None:
    for tensor in (torch.full((30,), value), torch.cat([torch.randn(29), torch.tensor([value])]), torch.tensor(value)):
        judged = judge(tensor)
        assert (judged.status, judged.p_value) == ("rejected", 0.0)


@pytest.mark.parametrize("shape", [(100, 100), (600, 600)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [1e6, 1e25, 1e38, 1e300])
def test_one_outlier_is_rejected(shape: tuple[int, int], dtype: torch.dtype, value: float) -> None:
    weight = torch.randn(shape, dtype=torch.float64)
    weight[3, 4] = value
    assert judge(weight.to(dtype)).status == "rejected"


# ---- small, odd and restricted ----------------------------------------------------------------------


def test_small_tensors_are_counted_and_listed() -> None:
    tensors = {
        "scale": torch.tensor(2.66), "one": torch.tensor([0.5]), "two": torch.tensor([0.3, -0.7]), "none": torch.empty(0, 3),
        "large": torch.randn(97),
    }  # fmt: skip
    result = judge_initialization(tensors)
    assert result.accepted
    assert [t.name for t in result.few] == ["scale", "one", "two", "none"]
    assert result.judged_share == pytest.approx(0.97, abs=0.01)


def test_small_tensors_must_still_be_possible() -> None:
    assert judge(torch.tensor([0.5, 0.7]), schemes=["uniform(-0.1, 0.1)"]).status == "rejected"
    assert judge(torch.tensor([5.0]), schemes=["layer", "zeros"]).status == "rejected"
    assert judge(torch.tensor([0.05, 0.07]), schemes=["uniform(-0.1, 0.1)"]).status == "few"


def test_integers_are_not_judged_and_complex_numbers_are_not_known() -> None:
    assert judge(torch.arange(100)).status == "not-floating"
    assert judge(torch.ones(100, dtype=torch.bool)).status == "not-floating"
    assert judge(torch.complex(torch.randn(50), torch.randn(50))).status == "rejected"
    assert judge(torch.zeros(50, dtype=torch.complex64)).status == "fits"


def test_nothing_to_judge_is_accepted() -> None:
    assert judge_initialization({}) == PoolResult(True, 0.01, 0, ())
    assert judge_initialization({"zero": torch.zeros(30)}).p_value == 1.0


def test_schemes_restrict_the_pool() -> None:
    weight = torch.randn(60, 60) * 0.03
    assert judge(weight).status == "rejected"
    assert judge(weight, schemes=[*SCHEMES, "normal(0, 0.03)"]).scheme == "normal(0, 0.03)"
    assert judge(torch.full((40,), 0.3), schemes=["normal", "zeros"]).status == "rejected"
    assert judge(torch.full((40,), 0.3), schemes=["constant(0.3)"]).status == "fits"
    law = "trunc_normal(0, 1, 0, inf)"
    with pytest.raises(UsageError):
        judge(weight, schemes=[law])
    half = torch.randn(3000).abs()
    assert judge(half, schemes=["trunc_normal(0, 1, 0, 50)"]).status == "fits"


@pytest.mark.parametrize(
    "spec",
    [
        "glorot",
        "",
        "normal(0)",
        "normal(0, x)",
        "normal(0, -1)",
        "uniform(1, 1)",
        "eye(3)",
        "constant(nan)",
        "__class__",
    ],
)
def test_an_unknown_scheme_is_one_line(spec: str) -> None:
    with pytest.raises(UsageError) as raised:
        judge_initialization({"w": torch.randn(30)}, schemes=[spec])
    assert repr(spec) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.nan])
def test_alpha_is_a_probability(alpha: float) -> None:
    with pytest.raises(UsageError, match="alpha"):
        judge_initialization({}, alpha=alpha)


def test_holm_bounds_the_family() -> None:
    """A rejected tensor lowers the bar for the others; the decision is that of Bonferroni."""
    bad = {f"bad{i}": torch.randn(2000) * 1.2 for i in range(3)}
    good = {f"good{i}": torch.randn(2000) for i in range(20)}
    result = judge_initialization(bad | good, schemes=["normal(0, 1)"])
    assert {t.name for t in result.rejected} == set(bad)
    assert result.tests == 23
    assert not result.accepted and result.p_value <= result.alpha


def test_large_matrices_are_judged_without_all_singular_values() -> None:
    weight = torch.randn(700, 600)
    assert judge(weight, schemes=["normal(0, 1)"]).status == "fits"
    spike = torch.outer(functional.normalize(torch.randn(700), dim=0), functional.normalize(torch.randn(600), dim=0))
    assert judge(weight + 60 * spike, schemes=["normal(0, 1)"]).test == "spectrum"


def test_the_same_answer_twice() -> None:
    tensors = parameters(mlp()) | {"o": init.orthogonal_(torch.empty(600, 600)), "n": torch.randn(600, 550)}
    assert judge_initialization(tensors) == judge_initialization(tensors)
