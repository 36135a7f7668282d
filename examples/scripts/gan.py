"""A small GAN over handwritten digits: two networks, two optimizers, one loader."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import proof_of_learning as pol
from proof_of_learning.data.digits import digits

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
options = parser.parse_args()

torch.manual_seed(3)
x, _ = digits()
images = TensorDataset(torch.as_tensor(x, dtype=torch.float32).reshape(-1, 64) / 8 - 1)
loader = DataLoader(images, batch_size=64, shuffle=True, drop_last=True)
generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh())
discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
of_generator = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
run = pol.Run(generator=generator, discriminator=discriminator, optimizer_g=of_generator, optimizer_d=of_discriminator)
for epoch in run.epochs(options.epochs):
    for number, (real,) in enumerate(run.batches(loader)):
        false = generator(torch.randn(len(real), 8))
        scores = discriminator(real), discriminator(false.detach())
        loss_d = F.softplus(-scores[0]).mean() + F.softplus(scores[1]).mean()
        of_discriminator.zero_grad()
        loss_d.backward()
        of_discriminator.step()
        loss_g = F.softplus(-discriminator(false)).mean()
        of_generator.zero_grad()
        loss_g.backward()
        of_generator.step()
        if number % 10 == 0:
            print(f"epoch {epoch} batch {number} losses {loss_d.item():.6f} {loss_g.item():.6f}")
run.close()
