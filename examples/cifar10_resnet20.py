"""ResNet-20 on CIFAR-10, the set-up of the Proof-of-Learning paper: batches of 128, 390 steps an epoch, 200 epochs.

Reads ``cifar10.npz`` (uint8 arrays train_x of shape 50000×3×32×32, train_y, test_x, test_y) from the folder in the
setting ``data`` or in the environment variable ``POL_DATA``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _data import images
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from proof_of_learning import Task

FILE = "cifar10.npz"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Block(nn.Module):
    """Two 3×3 convolutions around a shortcut without parameters (He et al. 2016, section 4.2, option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.stride, self.wider = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.wider // 2, self.wider // 2))
        return F.relu(out + shortcut)


def model() -> nn.Module:
    widths = [16] * 3 + [32] * 3 + [64] * 3
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in zip([16, *widths], widths, strict=False)]
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
        nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return network


def augment(sample: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random crop after padding by 4, and a flip every other time; random through ``generator`` alone."""
    pixels, label = sample
    top, left, flip = torch.randint(0, 2**30, (3,), generator=generator).tolist()
    pixels = F.pad(pixels, (4, 4, 4, 4))[:, top % 9 :, left % 9 :][:, :32, :32]
    return (pixels.flip(2) if flip % 2 else pixels), label


def scores(model: nn.Module, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, STD))
    return model((pixels.float() / 255.0 - mean) / std)


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    pixels, labels = batch
    return F.cross_entropy(scores(model, pixels), labels)


def task(
    data: str | None = None,
    epochs: int = 200,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> Task:
    """``steps``, where given, takes the place of ``epochs``. The learning rate falls tenfold at 1/2 and at 3/4 of the epochs."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        pixels, labels = images(FILE, "test", data)
        right = sum(
            int((scores(model, x.to(device)).argmax(1).cpu() == y).sum())
            for x, y in zip(pixels.split(250), labels.split(250), strict=True)
        )
        return {"test_accuracy": right / len(labels)}

    return Task(
        name="cifar10-resnet20",
        model=model,
        data=lambda: TensorDataset(*images(FILE, "train", data)),
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2, epochs * 3 // 4]),
        schedule="epoch",
        loss=loss,
        augment=augment,
        evaluate=evaluate,
        batch_size=batch_size,
        drop_last=True,  # 390 whole batches an epoch, as in the paper
        steps=steps,
        epochs=None if steps else epochs,
        seed=seed,
    )
