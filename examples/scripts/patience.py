"""Early stopping: a validation loss between epochs, the best weights kept in a file, loaded again where it gets worse."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import proof_of_learning as pol
from proof_of_learning.data.digits import digits


class Patience:
    """The lowest validation loss so far with its weights, and how many epochs have gone by since."""

    def __init__(self, model, most):
        self.model, self.most, self.best, self.bad = model, most, float("inf"), 0
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}

    def see(self, loss):
        if loss < self.best:
            self.best, self.bad = loss, 0
            self.weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        else:
            self.bad += 1
        return self.bad > self.most

    def state_dict(self):
        return {"best": self.best, "bad": self.bad, "weights": self.weights}

    def load_state_dict(self, values):
        self.best, self.bad, self.weights = values["best"], values["bad"], values["weights"]


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--lr", type=float, default=0.5)
options = parser.parse_args()

torch.manual_seed(8)
x, y = digits()
x, y = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 64) / 16, torch.as_tensor(y)
loader = DataLoader(TensorDataset(x[:512], y[:512]), batch_size=32, shuffle=True)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
patience = Patience(model, most=1)
run = pol.Run(model=model, optimizer=optimizer, patience=patience)
for epoch in run.epochs(options.epochs):
    model.train()
    for images, labels in run.batches(loader):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(x[512:1024]), y[512:1024]).item()
    print(f"epoch {epoch} validation {loss:.6f}")
    if patience.see(loss):
        break
    if patience.bad:
        model.load_state_dict(patience.weights)
run.close()
model.load_state_dict(patience.weights)
print(f"best {patience.best:.6f}")
