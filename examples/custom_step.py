"""A step of one's own: a small GAN on handwritten digits, with two optimizers and a running average of the generator.

What a custom step has to know: everything that the next step depends on must lie in a part of the state. Gradients do not,
so the step leaves none behind; random numbers may be drawn freely, since each step's generators are seeded for it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import TensorDataset

from proof_of_learning import StepContext, Task
from proof_of_learning.data.digits import digits

NOISE = 16


def training_data() -> TensorDataset:
    x, _ = digits()
    return TensorDataset(torch.tensor(x, dtype=torch.float32).flatten(1) / 16.0)


def model() -> nn.Module:
    return nn.ModuleDict(
        {
            "generator": nn.Sequential(
                nn.Linear(NOISE, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid()
            ),
            "discriminator": nn.Sequential(
                nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(64, 1), nn.Flatten(0)
            ),
        }
    )


def step(context: StepContext, batches: list[Any]) -> Tensor:
    """One update of the discriminator, one of the generator, one of the average. Returns the sum of both losses."""
    ((real,),) = batches
    generator, discriminator = context.model["generator"], context.model["discriminator"]
    fake = generator(torch.randn(len(real), NOISE, device=real.device))

    judged_real, judged_fake = discriminator(real), discriminator(fake.detach())
    loss_d = F.softplus(-judged_real).mean() + F.softplus(judged_fake).mean()
    context.backward(loss_d)
    context.update("discriminator")

    loss_g = F.softplus(-discriminator(fake)).mean()
    context.backward(loss_g)
    context.update("generator")
    context.optimizers["discriminator"].zero_grad(set_to_none=True)  # the generator's loss left gradients there

    context.parts["ema"].update_parameters(generator)
    return loss_d.detach() + loss_g.detach()


def evaluate(model: nn.Module) -> dict[str, float]:
    """How often the discriminator is right, on real digits and on generated ones (0.5: it cannot tell)."""
    (real,) = training_data().tensors
    real = real.to(next(model.parameters()).device)
    fake = model["generator"](torch.randn(len(real), NOISE, device=real.device))
    right = torch.cat([model["discriminator"](real) > 0, model["discriminator"](fake) < 0])
    return {"discriminator_accuracy": right.double().mean().item()}


def task(steps: int = 2000, batch_size: int = 64, lr: float = 1e-3, seed: int = 0) -> Task:
    return Task(
        name="digits-gan",
        model=model,
        data=training_data,
        optimizer=lambda m: {
            name: torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.99)) for name, network in m.items()
        },
        parts=lambda m: {"ema": AveragedModel(m["generator"], avg_fn=get_ema_avg_fn(0.99), use_buffers=False)},
        step=step,
        evaluate=evaluate,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
    )
