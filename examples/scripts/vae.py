"""A variational autoencoder of handwritten digits: noise in every step, two terms of loss, a picture's quality between epochs."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import proof_of_learning as pol
from proof_of_learning.data.digits import digits


class VAE(nn.Module):
    def __init__(self, width=32, latent=4):
        super().__init__()
        self.encode, self.mean, self.scale = nn.Linear(64, width), nn.Linear(width, latent), nn.Linear(width, latent)
        self.decode = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, 64), nn.Sigmoid())

    def forward(self, x):
        hidden = F.relu(self.encode(x))
        mean, logvar = self.mean(hidden), self.scale(hidden)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        return self.decode(z), mean, logvar


def loss_of(model, x):
    y, mean, logvar = model(x)
    fit = F.binary_cross_entropy(y, x, reduction="sum")
    return fit - 0.5 * (1 + logvar - mean.square() - logvar.exp()).sum()


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
options = parser.parse_args()

torch.manual_seed(4)
x, _ = digits()
x = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 64) / 16
loader = DataLoader(TensorDataset(x[:1024]), batch_size=64, shuffle=True)
model = VAE()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
run = pol.Run(model=model, optimizer=optimizer)
for epoch in run.epochs(options.epochs):
    model.train()
    total = 0.0
    for (images,) in run.batches(loader):
        optimizer.zero_grad()
        loss = loss_of(model, images)
        loss.backward()
        optimizer.step()
        total += loss.item()
    model.eval()
    with torch.no_grad():
        print(f"epoch {epoch} loss {total / 1024:.6f} test {loss_of(model, x[1024:]).item() / len(x[1024:]):.6f}")
run.close()
