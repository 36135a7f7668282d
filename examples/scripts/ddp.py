"""Classify handwritten digits in several processes that train together: `torchrun --nproc-per-node 2`, or `pol prove … --ranks 2`."""

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import proof_of_learning as pol
from proof_of_learning.data.digits import digits

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--lr", type=float, default=0.01)
options = parser.parse_args()

dist.init_process_group("gloo")
torch.manual_seed(1 + dist.get_rank())  # dropout is each process's own; the first weights are process 0's
x, y = digits()
data = TensorDataset(torch.tensor(x[:600], dtype=torch.float32)[:, None] / 16, torch.tensor(y[:600]))
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=32, sampler=sampler)
network = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.25),
    nn.Linear(128, 10),
)  # fmt: skip
model = DistributedDataParallel(network)
optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
run = pol.Run(model=model, optimizer=optimizer)
for epoch in run.epochs(options.epochs):
    sampler.set_epoch(epoch)
    for images, labels in run.batches(loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    total = loss.detach().clone()
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        print(f"epoch {epoch} loss {total.item() / dist.get_world_size():.6f}")
run.close()
dist.destroy_process_group()
