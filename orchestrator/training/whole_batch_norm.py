"""Batch norms over batches that lie in several processes, on CPUs as on GPUs.

torch.nn.SyncBatchNorm does not run on CPUs. What it does on GPUs, done here for both by the same code: mean and
variance of the whole batch in the forward pass, the two sums that the input's gradient needs in the backward pass.
Source of the gradient: Ioffe & Szegedy 2015, section 3, with its sums taken over all processes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orchestrator.training.share import Member

BatchNorm = Callable[..., Tensor]


@contextmanager
def whole_batch_norms(member: Member) -> Iterator[None]:
    """Within it, whatever normalises by its batch does so by the whole one, whichever code calls it.

    torch.batch_norm is where all modules and functions of PyTorch that do this meet; it is put back at the end.
    """
    plain: BatchNorm = torch.batch_norm

    def batch_norm(*arguments: Any) -> Tensor:
        pictures, weight, bias, running_mean, running_var, training, momentum, eps, _ = arguments
        if not training:
            return plain(*arguments)
        mean, var, count = _statistics(member, pictures)
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
        wide = torch.promote_types(pictures.dtype, torch.float32)
        moments = mean.to(wide), var.to(wide), count.to(wide)
        found: Tensor = _Normalised.apply(pictures, weight, bias, *moments, eps, plain, member)
        return found

    vars(torch)["batch_norm"] = batch_norm
    try:
        yield
    finally:
        vars(torch)["batch_norm"] = plain


@torch.no_grad()
def _statistics(member: Member, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[C] mean and [C] variance over the batches of all processes, and the number of values each is over; float64."""
    mean, var = torch.batch_norm_update_stats(pictures, None, None, 0.0)
    channels = len(mean)
    count = mean.new_full((1,), pictures.numel() // channels, dtype=torch.float64)
    found = member.gather(torch.cat([mean.double(), var.double(), count]))
    means, variances, counts = found.split([channels, channels, 1], dim=1)  # [processes, ...]
    whole = counts.sum()
    mean = (means * counts).sum(0) / whole
    var = ((variances + (means - mean).square()) * counts).sum(0) / whole
    return mean, var, whole


class _Normalised(torch.autograd.Function):
    """Normalisation by a mean and a variance that depend on the pictures, also on those of other processes."""

    @staticmethod
    def forward(ctx: Any, pictures: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Tensor:
        mean, var, count, ctx.eps, plain, ctx.member = rest
        ctx.save_for_backward(pictures, weight, mean, var, count)
        found: Tensor = plain(pictures, weight, bias, mean, var, False, 0.0, ctx.eps, torch.backends.cudnn.enabled)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pictures, weight, mean, var, count = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, pictures, scale, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack([of_bias, of_weight]).to(mean.dtype)
        ctx.member.sum_(sums)
        factor = scale.to(mean.dtype) * (var + ctx.eps).rsqrt()
        slope = factor * (var + ctx.eps).rsqrt() * sums[1] / count
        offset = slope * mean - factor * sums[0] / count
        shape = (-1, *[1] * (pictures.ndim - 2))  # [C] beside [N, C, ...]
        of_pictures = torch.addcmul(offset.view(shape), pictures, slope.view(shape), value=-1)
        of_pictures = of_pictures.addcmul_(gradient, factor.view(shape)).to(pictures.dtype)
        mine = (None, None) if weight is None else (of_weight, of_bias)
        return (of_pictures, *mine, *[None] * 6)
