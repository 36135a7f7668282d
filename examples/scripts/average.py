"""Averages of the weights: an exponential one after each step, and a stochastic one (SWA) over the last epochs."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, TensorDataset

import proof_of_learning as pol
from proof_of_learning.data.digits import digits

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
options = parser.parse_args()

torch.manual_seed(6)
x, y = digits()
x, y = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 64) / 16, torch.as_tensor(y)
loader = DataLoader(TensorDataset(x[:1024], y[:1024]), batch_size=64, shuffle=True)
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
ema, swa = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95)), AveragedModel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
cosine, flat = CosineAnnealingLR(optimizer, T_max=options.epochs), SWALR(optimizer, swa_lr=0.05)
first = options.epochs - 2  # the first epoch that is averaged
run = pol.Run(model=model, optimizer=optimizer, ema=ema, swa=swa, cosine=cosine, flat=flat)
for epoch in run.epochs(options.epochs):
    for images, labels in run.batches(loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        ema.update_parameters(model)
    if epoch >= first:
        swa.update_parameters(model)
        flat.step()
    else:
        cosine.step()
    print(f"epoch {epoch} loss {loss.item():.6f}")
run.close()
update_bn((images for images, _ in loader), swa)
swa.eval()
print(f"accuracy {(swa(x[1024:]).argmax(1) == y[1024:]).float().mean().item():.4f}")
