"""Handwritten digits with Lightning: accumulation, clipping, validation, a rate that falls with every epoch, and early stopping."""

import argparse

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from proof_of_learning.data.digits import digits
from proof_of_learning.integrations.lightning import Watch


class Classifier(lightning.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))

    def training_step(self, batch, number):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        print(f"epoch {self.current_epoch} batch {number} loss {loss.item():.6f}")
        return loss

    def validation_step(self, batch, number):
        x, y = batch
        self.log("missed", (self.net(x).argmax(1) != y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--accumulate", type=int, default=2)
options = parser.parse_args()

torch.manual_seed(1)
x, y = digits()
x, y = torch.tensor(x, dtype=torch.float32).flatten(1) / 16, torch.tensor(y)
train_set, test_set = TensorDataset(x[:720], y[:720]), TensorDataset(x[720:960], y[720:960])
trainer = lightning.Trainer(
    accelerator="cpu", devices=1, max_epochs=options.epochs, accumulate_grad_batches=options.accumulate, gradient_clip_val=1.0,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[EarlyStopping("missed", patience=1), Watch()],
)  # fmt: skip
trainer.fit(
    Classifier(options.lr), DataLoader(train_set, batch_size=48, shuffle=True), DataLoader(test_set, batch_size=240)
)
