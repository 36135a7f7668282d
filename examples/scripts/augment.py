"""Images shifted and mirrored at random as they are read, by Python's, NumPy's and PyTorch's generators, in loader workers."""

import argparse
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import proof_of_learning as pol
from proof_of_learning.data.digits import digits


class Augmented(Dataset):
    def __init__(self, plain):
        self.plain = plain

    def __len__(self):
        return len(self.plain)

    def __getitem__(self, index):
        image, label = self.plain[index]
        down, right = random.randrange(3), np.random.randint(3)
        image = F.pad(image, (1, 1, 1, 1))[:, down : down + 8, right : right + 8]
        return image + 0.05 * torch.randn(image.shape), label


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--workers", type=int, default=2)
options = parser.parse_args()

random.seed(10), np.random.seed(10), torch.manual_seed(10)
x, y = digits()
plain = TensorDataset(torch.as_tensor(x[:800], dtype=torch.float32)[:, None] / 16, torch.as_tensor(y[:800]))
loader = DataLoader(
    Augmented(plain), batch_size=50, shuffle=True, num_workers=options.workers, persistent_workers=options.workers > 0
)
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
run = pol.Run(data=plain, model=model, optimizer=optimizer)
for epoch in run.epochs(options.epochs):
    for images, labels in run.batches(loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch} loss {loss.item():.6f}")
run.close()
