"""Hugging Face Accelerate: a run over what ``accelerator.prepare`` gave back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator, DistributedType
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import send_to_device
from torch.utils.data import BatchSampler, SequentialSampler

from proof_of_learning.errors import UsageError
from proof_of_learning.run import clock, frameworks
from proof_of_learning.run.loaders import Loaded


class Run(clock.Run):
    """``pol.Run`` for prepared objects.

    accelerator: what prepared them; one process, without a plugin that splits the model.
    data, interval, out, strict, parts: as those of ``pol.Run``.
    """

    def __init__(self, accelerator: Accelerator, **given: Any) -> None:
        parts = {name: bare(part) for name, part in given.items()}
        if accelerator.scaler is not None and "scaler" not in parts:
            parts["scaler"] = accelerator.scaler
        super().__init__(**parts)
        if frameworks.watches(self):
            refuse(accelerator)

    def batches(self, loader: Any) -> Any:
        """The prepared loader, watched."""
        return frameworks.batches(self, source(loader)) if frameworks.watches(self) else loader


def refuse(accelerator: Accelerator) -> None:
    """Raise UsageError for what one process could not replay."""
    if accelerator.num_processes > 1 or accelerator.distributed_type != DistributedType.NO:
        raise UsageError(
            f"Accelerate runs {accelerator.num_processes} processes ({accelerator.distributed_type.value}); one process can be "
            "recorded: launch it with --num_processes 1"
        )


def bare(part: Any) -> Any:
    """What Accelerate wrapped: it steps that, and a state is taken of it."""
    if isinstance(part, AcceleratedOptimizer):
        return part.optimizer
    return part.scheduler if isinstance(part, AcceleratedScheduler) else part


def source(loader: Any) -> Loaded:
    """What a walk over a loader takes its batches from. Raises UsageError where they cannot be made again."""
    if type(loader) is DataLoaderShard:
        return Prepared(loader)
    if hasattr(loader, "base_dataloader"):
        raise UsageError(
            f"Accelerate hands batches out by a {type(loader).__name__}, which cannot be followed; leave dispatch_batches and "
            "skip_first_batches out"
        )
    return Loaded(loader)


class Prepared(Loaded):
    """A prepared loader: it moves batches to the device, and says which is the last, which ends accumulation."""

    def __init__(self, loader: DataLoaderShard) -> None:
        if loader.skip_batches or loader.use_stateful_dataloader:
            raise UsageError("Accelerate's skip_first_batches and stateful loaders cannot be followed; leave them out")
        super().__init__(loader)

    @property
    def _sampler(self) -> Any:
        """What makes batches of a sampler's indices: PyTorch's own, or None."""
        sampler = self.base.batch_sampler
        sampler = sampler.batch_sampler if isinstance(sampler, BatchSamplerShard) else sampler
        return sampler if type(sampler) is BatchSampler else None

    @property
    def batch_size(self) -> int:
        return 0 if self._sampler is None else int(self._sampler.batch_size)

    @property
    def drops(self) -> bool:
        return self._sampler is not None and bool(self._sampler.drop_last)

    @property
    def shuffles(self) -> bool:
        return self._sampler is None or not isinstance(self._sampler.sampler, SequentialSampler)

    def again(self, indices: Sequence[int], position: int) -> Any:
        loader = self.loader
        if loader.gradient_state.active_dataloader is not loader:
            loader.begin()
        loader.end_of_dataloader = position == len(loader) - 1
        batch = super().again(indices, position)
        return batch if loader.device is None else send_to_device(batch, loader.device)
