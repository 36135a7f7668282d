"""An LSTM over sequences of unequal length: padded by a collate function, packed, clipped, and a rate that falls on a plateau."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset

import proof_of_learning as pol


class Sequences(Dataset):
    """Of each sequence of digits, whether more of them are even than odd."""

    def __init__(self, count):
        draw = torch.Generator().manual_seed(7)
        self.items = [
            torch.randint(1, 10, (int(n),), generator=draw) for n in torch.randint(3, 15, (count,), generator=draw)
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        return item, int((item % 2 == 0).float().mean() > 0.5)


def padded(samples):
    items, labels = zip(*samples, strict=True)
    lengths = torch.tensor([len(item) for item in items])
    return pad_sequence(items, batch_first=True), lengths, torch.tensor(labels)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 16, num_layers=2, dropout=0.1, batch_first=True)
        self.out = nn.Linear(16, 2)

    def forward(self, items, lengths):
        packed = pack_padded_sequence(self.embed(items), lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.out(hidden[-1])


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
options = parser.parse_args()

torch.manual_seed(5)
loader = DataLoader(Sequences(480), batch_size=32, shuffle=True, collate_fn=padded)
model = Tagger()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
run = pol.Run(model=model, optimizer=optimizer, scheduler=scheduler)
for epoch in run.epochs(options.epochs):
    total = 0.0
    for items, lengths, labels in run.batches(loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(items, lengths), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
    print(f"epoch {epoch} loss {total / len(loader):.6f}")
    scheduler.step(round(loss.item(), 3))
run.close()
