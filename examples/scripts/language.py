"""A small GPT over characters: its own get_batch, two micro-batches, clipping, a rate set by hand, evaluation in the loop."""

import argparse
import math
import pathlib

import torch
import torch.nn.functional as F
from torch import nn

import proof_of_learning as pol


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x):
        b, t, w = x.shape
        q, k, v = (z.view(b, t, self.heads, -1).transpose(1, 2) for z in self.attend(self.first(x)).split(w, dim=2))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        x = x + self.project(y.transpose(1, 2).reshape(b, t, w))
        return x + self.mlp(self.second(x))


class GPT(nn.Module):
    def __init__(self, vocabulary, context, width=32, heads=2, layers=2, dropout=0.1):
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x, y=None):
        h = self.blocks(self.token(x) + self.place(torch.arange(x.shape[1])))
        logits = self.head(self.norm(h))
        return logits, None if y is None else F.cross_entropy(logits.flatten(0, 1), y.flatten())


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--context", type=int, default=32)
options = parser.parse_args()

torch.manual_seed(1337)
text = pathlib.Path(__file__).read_text()  # this very file is what is learned
characters = sorted(set(text))
tokens = torch.tensor([characters.index(c) for c in text])
train_tokens, test_tokens = tokens[: int(0.9 * len(tokens))], tokens[int(0.9 * len(tokens)) :]


def get_batch(data, size=8):
    at = torch.randint(len(data) - options.context, (size,))
    x = torch.stack([data[i : i + options.context] for i in at])
    y = torch.stack([data[i + 1 : i + 1 + options.context] for i in at])
    return x, y


@torch.no_grad()
def estimate(model):
    model.eval()
    losses = {name: torch.stack([model(*get_batch(data))[1] for _ in range(4)]).mean() for name, data in
              (("train", train_tokens), ("test", test_tokens))}  # fmt: skip
    model.train()
    return losses


model = GPT(len(characters), options.context)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
run = pol.Run(model=model, optimizer=optimizer, data=tokens)
for step in run.steps(options.steps):
    rate = 3e-3 * min(1.0, (step + 1) / 10) * 0.5 * (1.1 + math.cos(math.pi * step / options.steps))
    for group in optimizer.param_groups:
        group["lr"] = rate
    if step % 20 == 0:
        print(f"step {step} " + " ".join(f"{name} {value:.6f}" for name, value in estimate(model).items()))
    for _ in range(2):
        _, loss = model(*get_batch(train_tokens))
        (loss / 2).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print(f"end {estimate(model)['test']:.6f}")
run.close()
