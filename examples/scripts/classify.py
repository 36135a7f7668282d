"""Classify handwritten digits: loader workers, dropout, a rate that falls after each epoch, and a test between epochs."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import proof_of_learning as pol
from proof_of_learning.data.digits import digits


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.25)
        self.out = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return F.log_softmax(self.out(self.dropout(x.flatten(1))), dim=1)


def train(model, batches, optimizer, epoch):
    model.train()
    for number, (x, y) in enumerate(batches):
        optimizer.zero_grad()
        loss = F.nll_loss(model(x), y)
        loss.backward()
        optimizer.step()
        if number % 10 == 0:
            print(f"epoch {epoch} batch {number} loss {loss.item():.6f}")


def test(model, loader):
    model.eval()
    correct = 0
    with torch.no_grad():
        for x, y in loader:
            correct += (model(x).argmax(1) == y).sum().item()
    print(f"accuracy {correct / len(loader.dataset):.4f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(1)
    x, y = digits()
    x, y = torch.tensor(x, dtype=torch.float32)[:, None] / 16, torch.tensor(y)
    train_set, test_set = TensorDataset(x[:1437], y[:1437]), TensorDataset(x[1437:], y[1437:])
    loader = DataLoader(train_set, batch_size=64, shuffle=True, num_workers=options.workers)
    test_loader = DataLoader(test_set, batch_size=256)
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
    run = pol.Run(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.epochs(options.epochs):
        train(model, run.batches(loader), optimizer, epoch)
        test(model, test_loader)
        scheduler.step()
    run.close()


if __name__ == "__main__":
    main()
