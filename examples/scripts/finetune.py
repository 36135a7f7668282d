"""Fine-tuning: a backbone from a file of weights, its first layer frozen, its second trained at a lower rate, under a new head."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import proof_of_learning as pol
from proof_of_learning.data.digits import digits

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--weights", default="backbone.pt")
parser.add_argument("--make", action="store_true", help="train a backbone on the digits 0 to 4, and save it")
options = parser.parse_args()

torch.manual_seed(11)
x, y = digits()
x, y = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 64) / 16, torch.as_tensor(y)
backbone = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
if options.make:
    head = nn.Linear(32, 5)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(head(backbone(x[y < 5])), y[y < 5]).backward()
        optimizer.step()
    torch.save(backbone.state_dict(), options.weights)
    raise SystemExit
backbone.load_state_dict(torch.load(options.weights))
backbone[0].requires_grad_(False)
head = nn.Linear(32, 5)
model = nn.Sequential(backbone, head)
loader = DataLoader(TensorDataset(x[y >= 5], y[y >= 5] - 5), batch_size=64, shuffle=True)
optimizer = torch.optim.Adam(
    [{"params": head.parameters(), "lr": 1e-2}, {"params": backbone[2].parameters(), "lr": 1e-3}]
)
run = pol.Run(model=model, optimizer=optimizer, pretrained=options.weights)
for epoch in run.epochs(options.epochs):
    for images, labels in run.batches(loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch} loss {loss.item():.6f}")
run.close()
