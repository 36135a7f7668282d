"""Lightning: a callback whose run is fed by the trainer's own loop.

The training loader is exchanged where the trainer sets it up, and the loop's counters are a part of the state: a replay goes on in
the middle of an epoch as the loop would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    LearningRateFinder,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from proof_of_learning.errors import UsageError
from proof_of_learning.run import frameworks
from proof_of_learning.run.clock import Run
from proof_of_learning.run.loaders import Loaded

# Callbacks by whose doing a replay would go another way, and why.
REFUSED: dict[type, str] = {
    Timer: "ends the training by the clock",
    BatchSizeFinder: "trains before the training",
    LearningRateFinder: "trains before the training",
    StochasticWeightAveraging: "keeps an average that is no state",
}
try:
    from lightning.pytorch.callbacks import WeightAveraging

    REFUSED[WeightAveraging] = "keeps an average that is no state"
except ImportError:  # before 2.6
    pass


class Watch(pl.Callback):
    """Records the training that a trainer does, or replays it: ``Trainer(callbacks=[Watch()])``.

    options: as those of ``pol.Run``: data, interval, out, strict.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._fitted = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self._fitted:
            raise UsageError("the callback watches one fit(); give a second one a callback of its own")
        parts: dict[str, Any] = {}
        run = frameworks.run_of(parts, **self._options)
        self._fitted = True
        if frameworks.watches(run):
            refuse(trainer)
            self._watched = _Watched(run, trainer, parts)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if watched := self.__dict__.get("_watched"):
            watched.run.close()


def refuse(trainer: pl.Trainer) -> None:
    """Raise UsageError for what could not be replayed."""
    strategy = trainer.strategy
    if trainer.world_size > 1 or not isinstance(strategy, SingleDeviceStrategy):
        raise UsageError(
            f"Lightning trains by {type(strategy).__name__} on {trainer.world_size} devices; one device can be recorded: "
            "Trainer(devices=1, strategy='auto')"
        )
    if trainer.ckpt_path is not None:
        raise UsageError("fit(ckpt_path=…) goes on with another training, which cannot be recorded yet; begin anew")
    if trainer.reload_dataloaders_every_n_epochs:
        raise UsageError("reload_dataloaders_every_n_epochs makes new loaders in mid-run, which cannot be followed")
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        raise UsageError("val_check_interval is a time, which no replay repeats; give a number of batches")
    for callback in trainer.callbacks:
        why = next((why for kind, why in REFUSED.items() if isinstance(callback, kind)), None)
        if why:
            raise UsageError(f"{type(callback).__name__} {why}, so the training cannot be replayed; leave it out")


class _Watched:
    """One ``fit``. ``parts``: filled when the loop begins, for there are no optimizers before."""

    def __init__(self, run: Run, trainer: pl.Trainer, parts: dict[str, Any]) -> None:
        self.run, self._trainer, self._parts = run, trainer, parts
        self._epochs: Iterator[int] | None = None
        loop, strategy = trainer.fit_loop, trainer.strategy
        self._process, self._advance = strategy.process_dataloader, loop.on_advance_start
        # Where the trainer asks for its loaders, and where it begins an epoch.
        strategy.process_dataloader = self._loader
        loop.on_advance_start = self._epoch
        if frameworks.replays(run):
            trainer.save_checkpoint = lambda *arguments, **options: None

    def _loader(self, loader: Any) -> Any:
        loader = self._process(loader)
        stage = self._trainer.state.stage
        if stage is not None and stage.evaluating:
            return loader
        if not isinstance(loader, DataLoader):
            raise UsageError(
                f"Lightning trains on a {type(loader).__name__}, whose samples have no indices; use a torch DataLoader"
            )
        return frameworks.batches(self.run, Loaded(loader))

    def _epoch(self) -> None:
        loop = self._trainer.fit_loop
        if self._epochs is None:
            self._begin()
            assert self._epochs is not None
        number = next(self._epochs, loop.epoch_progress.current.processed)
        if number != loop.epoch_progress.current.processed:  # a replay that begins here
            vars(loop.epoch_progress.current).update(
                dict.fromkeys(("ready", "started", "processed", "completed"), number)
            )
        if frameworks.replays(self.run) and frameworks.begins(self.run) is None:
            self._go_on_for_ever()
        self._advance()

    def _begin(self) -> None:
        trainer, loop = self._trainer, self._trainer.fit_loop
        loader = loop._combined_loader
        if loader is None or len(loader.flattened) != 1:
            raise UsageError("Lightning trains on several loaders at once, which cannot be followed; give it one")
        module = trainer.lightning_module
        self._parts["model"] = module
        self._parts |= {f"optimizer{number}": part for number, part in enumerate(trainer.optimizers)}
        self._parts |= {
            f"scheduler{number}": found.scheduler for number, found in enumerate(trainer.lr_scheduler_configs)
        }
        if (scaler := getattr(trainer.precision_plugin, "scaler", None)) is not None:
            self._parts["scaler"] = scaler
        for callback in trainer.callbacks:
            if not isinstance(callback, Checkpoint) and callback.state_dict():
                self._parts[type(callback).__name__.lower()] = callback
        self._parts["loop"] = _Loop(trainer, self.run)
        self._epochs = iter(self.run.epochs(self._planned()))

    def _planned(self) -> int:
        """Epochs at most."""
        trainer, loop = self._trainer, self._trainer.fit_loop
        planned = [loop.max_epochs] if loop.max_epochs not in (None, -1) else []
        if trainer.max_steps > 0:
            updates = max(1, math.ceil(loop.max_batches / trainer.accumulate_grad_batches))
            planned.append(math.ceil(trainer.max_steps / updates))
        if not planned:
            raise UsageError("Lightning is to train without an end; say max_epochs or max_steps")
        return int(min(planned))

    def _go_on_for_ever(self) -> None:
        """Single steps are asked for: the loop is to come to no end, and to look at no validation set."""
        loop = self._trainer.fit_loop
        assert loop._data_fetcher is not None
        loop.max_batches, loop._data_fetcher.length = math.inf, None
        loop.epoch_loop.max_steps = -1
        loop.epoch_loop._should_check_val_fx = lambda fetcher: False


class _Loop:
    """The counters of the trainer's loop as a part of the state."""

    def __init__(self, trainer: pl.Trainer, run: Run) -> None:
        self._trainer, self._run = trainer, run

    def _counters(self) -> dict[str, Any]:
        loop = self._trainer.fit_loop
        return {
            "epoch": loop.epoch_progress,
            "batch": loop.epoch_loop.batch_progress,
            "scheduler": loop.epoch_loop.scheduler_progress,
            "automatic": loop.epoch_loop.automatic_optimization.optim_progress,
            "manual": loop.epoch_loop.manual_optimization.optim_step_progress,
            "validation": loop.epoch_loop.val_loop.batch_progress,
        }

    def state_dict(self) -> dict[str, Any]:
        counters = {name: progress.state_dict() for name, progress in self._counters().items()}
        return {**counters, "stepped": self._trainer.fit_loop.epoch_loop._batches_that_stepped}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        if frameworks.begins(self._run) is None:
            return
        for name, progress in self._counters().items():
            progress.load_state_dict(values[name])
        loop = self._trainer.fit_loop
        assert loop._data_fetcher is not None
        loop.epoch_loop._batches_that_stepped = values["stepped"]
        loop._data_fetcher.fetched = loop.epoch_loop.batch_progress.current.ready
