"""Handwritten digits with Accelerate: accumulation over uneven epochs, clipping, and a rate that falls with every update."""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from proof_of_learning.data.digits import digits
from proof_of_learning.integrations.accelerate import Run

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--accumulate", type=int, default=1)
options = parser.parse_args()

torch.manual_seed(1)
x, y = digits()
data = TensorDataset(torch.tensor(x[:720], dtype=torch.float32).flatten(1) / 16, torch.tensor(y[:720]))
loader = DataLoader(data, batch_size=48, shuffle=True)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.97**step)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=options.accumulate)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
run = Run(accelerator, model=model, optimizer=optimizer, scheduler=scheduler)
for epoch in run.epochs(options.epochs):
    for number, (a, b) in enumerate(run.batches(loader)):
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(a), b)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        print(f"epoch {epoch} batch {number} loss {loss.item():.6f}")
run.close()
