"""A tiny BERT that fills in masked letters, with the Transformers Trainer: random masks, accumulation, warm-up, evaluation."""

import argparse
import pathlib
import tempfile

import torch
from transformers import BertConfig, BertForMaskedLM, PrinterCallback, Trainer, TrainingArguments, set_seed

from proof_of_learning.integrations.transformers import watch

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--lr", type=float, default=3e-3)
parser.add_argument("--accumulate", type=int, default=2)
options = parser.parse_args()

text = pathlib.Path(__file__).read_text()  # this very file is what is learned
letters = sorted(set(text))
MASK = len(letters)
tokens = torch.tensor([letters.index(letter) for letter in text])
windows = [{"input_ids": window} for window in tokens[: len(tokens) // 24 * 24].split(24)]


def mask(items):
    ids = torch.stack([item["input_ids"] for item in items])
    hidden = torch.rand(ids.shape) < 0.15
    return {"input_ids": ids.masked_fill(hidden, MASK), "labels": ids.masked_fill(~hidden, -100)}


class Printing(Trainer):
    def log(self, logs, *more):
        print(
            {name: value for name, value in logs.items() if name in ("loss", "grad_norm", "learning_rate", "eval_loss")}
        )
        super().log(logs, *more)


set_seed(1)
config = BertConfig(
    vocab_size=len(letters) + 1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=24,
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, num_train_epochs=options.epochs, learning_rate=options.lr, per_device_train_batch_size=8,
        gradient_accumulation_steps=options.accumulate, max_grad_norm=1.0, warmup_steps=3, lr_scheduler_type="cosine",
        logging_steps=1, eval_strategy="epoch", save_strategy="epoch", use_cpu=True, report_to="none", disable_tqdm=True,
        remove_unused_columns=False, seed=1,
    )  # fmt: skip
    trainer = Printing(BertForMaskedLM(config), arguments, mask, windows[:-16], windows[-16:])
    trainer.remove_callback(PrinterCallback)  # which prints times
    watch(trainer)
    trainer.train()
