"""A linear layer in one step each way, on devices where what an operation costs is mostly the way to it through PyTorch.

PyTorch composes it of some fifteen operations, most of them views, of which each would come through the table. The products and
sums are those of the composition: for all rows together, whatever the dimensions before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from proof_of_learning.numeric.portable import products
from proof_of_learning.numeric.portable.grid import total
from proof_of_learning.numeric.portable.table import either

KINDS = (Tensor, nn.Parameter)
_with_bias = either("addmm.default", products._addmm)


def _fits(x: Any) -> bool:
    return type(x) in KINDS and x.dtype is torch.float32 and x.device.type != "cpu" and x.numel() > 0


def taken(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of ``linear`` is one that this computes."""
    if kwargs or len(args) != 3:
        return False
    x, weight, bias = args
    return (
        _fits(x)
        and _fits(weight)
        and (bias is None or (_fits(bias) and bias.dim() == 1))
        and x.dim() > 1
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape[0] == weight.shape[0])
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


class Linear(torch.autograd.Function):
    """``linear(x, weight, bias)``. Within it, nothing goes through the table, and nothing is recorded for gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        with torch._C._AutoDispatchBelowAutograd(), torch._C._DisableTorchDispatch():
            rows = x.reshape(-1, x.shape[-1])
            found = products.matmul(rows, weight.t()) if bias is None else _with_bias(bias, rows, weight.t())
            # Not a view for PyTorch, which may be written to.
            return (
                found if x.dim() == 2 else torch.ops.aten._unsafe_view.default(found, (*x.shape[:-1], weight.shape[0]))
            )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,), (x, weight) = gradients, ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted: by what can be recorded
            rows, seen = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
            return (
                (rows @ weight).view(x.shape) if of_x else None,
                rows.t() @ seen if of_weight else None,
                rows.sum(0) if of_bias else None,
            )
        with torch._C._AutoDispatchBelowAutograd(), torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            rows = g.reshape(-1, g.shape[-1])
            by_x = products.matmul(rows, weight).view(x.shape) if of_x else None
            by_weight = products.matmul(rows.t(), x.reshape(-1, x.shape[-1])) if of_weight else None
            return by_x, by_weight, total(rows, (0,)) if of_bias else None
