"""Mixed precision: bfloat16 autocast, four micro-batches to an update, clipped gradients, warm-up and decay by two schedulers."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

import proof_of_learning as pol
from proof_of_learning.data.digits import digits

MICRO = 4

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
options = parser.parse_args()

torch.manual_seed(9)
x, y = digits()
x, y = torch.as_tensor(x, dtype=torch.float32)[:, None] / 16, torch.as_tensor(y)
loader = DataLoader(TensorDataset(x[:1000], y[:1000]), batch_size=16, shuffle=True)
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
updates = options.epochs * (len(loader) // MICRO)
scheduler = SequentialLR(
    optimizer, [LinearLR(optimizer, 0.1, total_iters=5), CosineAnnealingLR(optimizer, updates - 5)], [5]
)
run = pol.Run(model=model, optimizer=optimizer, scheduler=scheduler)
for epoch in run.epochs(options.epochs):
    for number, (images, labels) in enumerate(run.batches(loader)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(images), labels) / MICRO
        loss.backward()
        if (number + 1) % MICRO == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    print(f"epoch {epoch} loss {MICRO * loss.item():.6f}")
run.close()
