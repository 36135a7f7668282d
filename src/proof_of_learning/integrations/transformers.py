"""Hugging Face Transformers: the run of a ``Trainer``, fed by the trainer's own loop.

A replay that goes on in the middle of an epoch enters the loop as a training that is resumed does; the trainer's counters are a part
of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import transformers
from transformers import Trainer, TrainerCallback
from transformers import trainer as module
from transformers.trainer_callback import ExportableState, TrainerControl

from proof_of_learning.errors import UsageError
from proof_of_learning.integrations.accelerate import bare, refuse, source
from proof_of_learning.run import frameworks
from proof_of_learning.run.clock import Run

STEPS = ("_prepare_for_training", "_run_epoch", "_finalize_training")  # of the trainer's loop, which are watched
ENDLESS = 10**9  # updates of an epoch that is to come to no end
HERE = ""  # where a replay goes on: no checkpoint is read


def watch(trainer: Trainer, **options: Any) -> None:
    """Record the training that ``trainer.train()`` does, or replay it.

    options: as those of ``pol.Run``: data, interval, out, strict.

    Raises UsageError where the trainer's loop is another than the one that is known.
    """
    missing = [name for name in STEPS if not hasattr(trainer, name)]
    if missing:
        raise UsageError(
            f"transformers {transformers.__version__} has a training loop without {missing[0]}, which cannot be followed; use the "
            "version that the package is tested with"
        )
    _Watched(trainer, options)


class _Watched:
    """One ``train()``."""

    def __init__(self, trainer: Trainer, options: Mapping[str, Any]) -> None:
        self._trainer, self._options = trainer, options
        self.run: Run | None = None
        self._epochs: Iterator[int] | None = None
        self._jumped = False
        # The trainer has no callback that could hand it batches: what stands around its loop is exchanged.
        self._plain: list[Callable[..., Any]] = [getattr(trainer, name) for name in STEPS]
        for name, ours in zip(STEPS, (self._prepare, self._epoch, self._finalize), strict=True):
            setattr(trainer, name, ours)

    def _prepare(self, max_steps: int, loader: Any, resumed: Any) -> tuple[Any, Any]:
        """Model, optimizer and scheduler are there from here on."""
        trainer = self._trainer
        model, loader = self._plain[0](max_steps, loader, resumed)
        if self.run is not None:
            raise UsageError("one train() is recorded; the second one is not")
        parts = {"model": trainer.model, "optimizer": bare(trainer.optimizer), "scheduler": bare(trainer.lr_scheduler)}
        if trainer.accelerator.scaler is not None:
            parts["scaler"] = trainer.accelerator.scaler
        self.run = run = Run(**self._options, **parts, loop=_Loop(trainer, self))
        if not frameworks.watches(run):
            return model, loader
        refuse(trainer.accelerator)
        if resumed is not None:
            raise UsageError(
                "train(resume_from_checkpoint=…) goes on with another training, which cannot be recorded yet; begin anew"
            )
        if trainer.args.n_gpu > 1 or model is not trainer.model:
            raise UsageError(
                f"the Trainer wraps the model in a {type(model).__name__}, which cannot be followed; use one device"
            )
        if frameworks.replays(run):
            trainer._save_checkpoint = lambda *arguments, **named: None  # files are no part of a replay
        updates = -(-len(loader) // trainer.args.gradient_accumulation_steps)
        self._epochs = iter(run.epochs(-(-max_steps // updates)))
        return model, frameworks.batches(run, source(loader))

    def _epoch(self, **given: Any) -> None:
        assert self.run is not None
        if self._epochs is None:
            self._plain[1](**given)
            return
        given["epoch"] = next(self._epochs, given["epoch"])
        if frameworks.replays(self.run) and not self._jumped:
            self._jumped = True
            self._jump(given)
        self._plain[1](**given)

    def _jump(self, given: dict[str, Any]) -> None:
        """Have the loop go on where the replay does."""
        trainer = self._trainer
        assert self.run is not None
        begins = frameworks.begins(self.run)
        if begins is None:  # single steps are asked for: neither an end nor an evaluation
            given |= {"num_update_steps_per_epoch": ENDLESS, "steps_in_epoch": ENDLESS}
            trainer.state.max_steps = ENDLESS
            trainer._maybe_log_save_evaluate = lambda *arguments, **named: None
        elif begins[1]:
            module.skip_first_batches = lambda loader, batches: loader
            trainer._load_rng_state = lambda checkpoint: None
            given |= {
                "resume_from_checkpoint": HERE, "epochs_trained": given["epoch"], "steps_trained_in_current_epoch": begins[1],
            }  # fmt: skip

    def _finalize(self, *given: Any, **named: Any) -> Any:
        """The last step is over; which weights the trainer keeps afterwards is no training."""
        if self.run is not None:
            self.run.close()
        return self._plain[2](*given, **named)


class _Loop:
    """The counters of the trainer, and of callbacks that have some, as a part of the state."""

    def __init__(self, trainer: Trainer, watched: _Watched) -> None:
        self._trainer, self._watched = trainer, watched

    def _callbacks(self) -> dict[str, TrainerCallback]:
        found = self._trainer.callback_handler.callbacks
        return {
            type(c).__name__: c for c in found if isinstance(c, ExportableState) and not isinstance(c, TrainerControl)
        }

    def state_dict(self) -> dict[str, Any]:
        state = self._trainer.state
        return {
            "step": state.global_step,
            "epoch": float(state.epoch or 0),
            "best": [] if state.best_metric is None else [float(state.best_metric)],
            "callbacks": {name: callback.state()["attributes"] for name, callback in self._callbacks().items()},
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        state, run = self._trainer.state, self._watched.run
        if run is None or frameworks.begins(run) is None:
            return
        state.global_step, state.epoch = values["step"], values["epoch"]
        state.best_metric = values["best"][0] if values["best"] else None
        for name, callback in self._callbacks().items():
            for attribute, value in values["callbacks"][name].items():
                setattr(callback, attribute, value)
