"""Initial weights for the experiment: honest ones under several schemes, and forged ones made from trained models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from scipy import stats
from torch import Tensor, nn

from proof_of_learning.data import digits as shipped
from proof_of_learning.verifier.initialization.laws import Law, normal, uniform

Tensors = dict[str, Tensor]

# ---- models and their initializations ---------------------------------------------------------------


class ResNet20(nn.Module):
    """He et al. (2016) for CIFAR-10, shortcuts without parameters; the model of the paper's experiments."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        widths = [(16, 16)] * 3 + [(16, 32)] + [(32, 32)] * 2 + [(32, 64)] + [(64, 64)] * 2
        self.first = nn.ModuleList(nn.Conv2d(a, b, 3, b // a, 1, bias=False) for a, b in widths)
        self.second = nn.ModuleList(nn.Conv2d(b, b, 3, 1, 1, bias=False) for _, b in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in widths for _ in range(2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        for i, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            y = self.norms[2 * i + 1](second(functional.relu(self.norms[2 * i](first(x)))))
            stride = y.shape[1] // x.shape[1]
            short = x[:, :, ::stride, ::stride]
            x = functional.relu(y + functional.pad(short, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])))
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(96, 64), nn.Embedding(64, 64)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2)
        self.head = nn.Linear(64, 96)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.cell, self.head = nn.Embedding(96, 32), nn.LSTM(32, 64, 2), nn.Linear(64, 96)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp, "cnn": cnn, "resnet20": ResNet20, "transformer": Transformer, "lstm": Recurrent,
}  # fmt: skip


def build(model: str, scheme: str, seed: int) -> nn.Module:
    """A model under a seed; ``default`` leaves PyTorch's own initialization, others redraw weights and zero biases."""
    torch.manual_seed(seed)
    net = MODELS[model]()
    for name, p in net.named_parameters():
        if scheme != "default" and p.ndim >= 2:
            redraw: dict[str, Callable[[Tensor], Tensor]] = {
                "kaiming_normal": nn.init.kaiming_normal_,
                "orthogonal": nn.init.orthogonal_,
                "normal": lambda w: nn.init.normal_(w, 0, 0.02),
            }
            redraw[scheme](p)
        elif scheme != "default" and name.endswith("bias"):
            nn.init.zeros_(p)
    return net


def true_law(scheme: str, name: str, p: Tensor, fan_in: int) -> Law | None:
    """The law of a drawn tensor of ``mlp``, ``cnn`` and ``resnet20``; None for one that is constant at the start."""
    if p.ndim < 2 and (scheme != "default" or fan_in == 0):
        return None
    if scheme == "kaiming_normal":
        return normal(name, math.sqrt(2 / fan_in))
    return uniform(name, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


def true_laws(net: nn.Module, scheme: str) -> dict[str, Law | None]:
    found: dict[str, Law | None] = {}
    for prefix, module in net.named_modules():
        fan_in = module.weight[0].numel() if isinstance(module, (nn.Linear, nn.Conv2d)) else 0
        for name, p in module.named_parameters(prefix, recurse=False):
            found[name] = true_law(scheme, name, p, fan_in)
    return found


def state(net: nn.Module) -> Tensors:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def weights(tensors: Tensors) -> Tensors:
    return {name: t for name, t in tensors.items() if t.ndim >= 2}


def original_rule(tensors: Tensors, laws: dict[str, Law | None]) -> bool:
    """Rejects? The rule of the original code: the smallest Kolmogorov-Smirnov p over the weights against 0.01.

    It is told the true law of each layer; ours has to find one in the pool.
    """
    values = (
        stats.kstest(t.double().flatten().numpy(), law.cdf, method="asymp").pvalue
        for name, t in weights(tensors).items()
        if (law := laws[name]) is not None
    )
    return bool(min(values) < 0.01)


# ---- training ---------------------------------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, y = shipped.digits()
    x = images.reshape(len(images), -1)
    order = np.random.default_rng(0).permutation(len(x))
    pixels, labels = torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order])
    return pixels[:1400], labels[:1400], pixels[1400:], labels[1400:]


def cifar(folder: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with np.load(Path(folder) / "cifar10.npz") as file:
        x, y = torch.from_numpy(file["train_x"][:10_000]), torch.from_numpy(file["train_y"][:10_000]).long()
    x = (x if x.shape[1] == 3 else x.permute(0, 3, 1, 2)).float() / 127.5 - 1
    return x, y.flatten(), x[:1000], y.flatten()[:1000]


def optimizer(name: str, net: nn.Module) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(net.parameters(), lr=1e-3)
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def train(net: nn.Module, opt: torch.optim.Optimizer, x: Tensor, y: Tensor, seed: int) -> Iterator[int]:
    """Steps with random batches of 64; yields how many were made."""
    draw = torch.Generator().manual_seed(seed)
    step = 0
    while True:
        batch = torch.randint(len(x), (64,), generator=draw)
        opt.zero_grad()
        functional.cross_entropy(net(x[batch]), y[batch]).backward()
        opt.step()
        step += 1
        yield step


# ---- forged initializations -------------------------------------------------------------------------


def pruned(tensors: Tensors, share: float) -> Tensors:
    """The smallest ``share`` of all weights set to zero."""
    every = torch.cat([t.abs().flatten() for t in weights(tensors).values()])
    limit = every.kthvalue(int(share * len(every))).values
    return {name: torch.where(t.abs() <= limit, 0.0, t) if t.ndim >= 2 else t for name, t in tensors.items()}


def sparsified(tensors: Tensors) -> Tensors:
    """The smaller two of every four neighbouring weights set to zero."""

    def halve(t: Tensor) -> Tensor:
        flat = t.flatten()
        head = flat[: len(flat) // 4 * 4].view(-1, 4)
        kept = torch.zeros_like(head).scatter(1, head.abs().topk(2).indices, 1.0) * head
        return torch.cat([kept.flatten(), flat[head.numel() :]]).view(t.shape)

    return {name: halve(t) if t.ndim >= 2 else t for name, t in tensors.items()}


def inverted(net: nn.Module, x: Tensor, y: Tensor, seed: int, steps: int, rate: float = 0.01) -> float:
    """Plain SGD backwards, W' = W + rate ∇L(W') by fixed-point iteration; returns the largest residual.

    The residual ‖W' - rate ∇L(W') - W‖ is relative to the step ‖W' - W‖.
    """
    draw, worst = torch.Generator().manual_seed(seed), 0.0
    parameters = list(net.parameters())
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=draw)
        after = [p.detach().clone() for p in parameters]
        for _ in range(40):
            gradients = torch.autograd.grad(functional.cross_entropy(net(x[batch]), y[batch]), parameters)
            with torch.no_grad():
                moved = [w + rate * g for w, g in zip(after, gradients, strict=True)]
                residual = _distance(parameters, moved) / max(_distance(moved, after), 1e-12)
                for p, m in zip(parameters, moved, strict=True):
                    p.copy_(m)
            if residual < 1e-3:
                break
        worst = max(worst, residual)
    return worst


def _distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float((p - q).square().sum()) for p, q in zip(a, b, strict=True)))


def rank_matched(tensors: Tensors, start: Tensors, laws: dict[str, Law | None], whiten: int = 0) -> Tensors:
    """Fresh draws (those of ``start``) in the order of the trained weights; constants as they must be.

    whiten: rounds in which directions that stick out of a random matrix are pressed back before sorting again.
    """
    found = {}
    for name, t in tensors.items():
        law = laws[name]
        if law is None:
            found[name] = start[name]
            continue
        fresh, target = start[name].flatten().sort().values, t
        for left in range(whiten, -1, -1):
            matched = torch.empty_like(fresh)
            matched[target.flatten().argsort()] = fresh
            target = _pressed(matched.view(t.shape), law) if left and t.ndim >= 2 else matched.view(t.shape)
        found[name] = target
    return found


def _pressed(values: Tensor, law: Law) -> Tensor:
    """Singular values cut at the edge of a random matrix, and row sums scaled to what a random one has."""
    matrix = values.view(len(values), -1).double()
    rows, columns = matrix.shape
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    edge = 0.97 * law.std * (math.sqrt(rows) + math.sqrt(columns))
    matrix = u @ torch.diag(s.clamp(max=edge)) @ v
    sums = matrix.sum(1, keepdim=True)
    scale = min(1.0, math.sqrt(rows * columns) * law.std / max(float(sums.norm()), 1e-12))
    return (matrix - (1 - scale) * sums / columns).view(values.shape).float()


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    # With the batch's own statistics: a forged start has no running ones.
    with torch.no_grad():
        return float((net.train()(x).argmax(1) == y).float().mean())


def cosine(a: Tensors, b: Tensors) -> float:
    left, right = (torch.cat([t.flatten() for t in side.values()]) for side in (a, b))
    return float(functional.cosine_similarity(left, right, dim=0))
