"""Random weights under which every channel matters, for comparing two networks on what they compute.

A fresh network is a poor test of surgery: all its norms are the identity, its signal fades from layer to layer, and
in the end two outputs agree because both are the last layer's bias.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map

from orchestrator.network.meta import Example
from orchestrator.network.recording import tensors_in
from orchestrator.network.seeding import seeded

BATCH = 4


def lively_(model: nn.Module, example: Example, seed: int = 0) -> tuple[Tensor, ...]:
    """Make a network float64, in evaluation mode, with random parameters that keep its signal alive.

    Weights are drawn by fan-in, norms' scales away from zero, and running statistics are those of random pictures.
    Returns a random batch of inputs shaped like the example; integer tensors of the example are repeated.
    """
    model.double()
    with seeded(seed), torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.numel() == max(parameter.shape):
                parameter.uniform_(0.5, 1.5)  # a scale a channel: drawn wider, deep networks blow rounding errors up
            elif parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter) if parameter.numel() else None
            else:
                parameter.normal_(0.0, 0.3)
        for module in model.modules():
            scale = getattr(module, "weight", None)
            if isinstance(scale, nn.Parameter) and scale.ndim == 1:
                scale.uniform_(0.5, 1.5)
        inputs = _random_inputs(example)
        _calibrate_(model, inputs)
    return inputs


def _random_inputs(example: Example) -> tuple[Tensor, ...]:
    def draw(leaf: object) -> object:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        if not leaf.is_floating_point():
            return leaf[:1].repeat(BATCH, *[1] * (leaf.ndim - 1))
        return torch.randn(BATCH, *leaf.shape[1:], dtype=torch.float64)

    inputs = example if isinstance(example, tuple) else (example,)
    found: tuple[Tensor, ...] = tuple(tree_map(draw, inputs))
    return found


def _calibrate_(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Let norms take the statistics of one batch; only they are in training mode, so dropout stays off."""
    norms = [
        module for module in model.eval().modules() if isinstance(module, _NormBase) and module.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        if norm.running_var is not None:
            norm.running_var.clamp_(min=1e-3)


def difference(left: nn.Module, right: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """The worst difference of two networks' outputs, relative to how much the second's depend on the picture.

    What all pictures have in common, the last layer's bias before all, does not count as agreement.
    """
    worst = 0.0
    with torch.no_grad():
        for a, b in zip(tensors_in(left(*inputs)), tensors_in(right(*inputs)), strict=True):
            spread = (b - b.mean(0, keepdim=True)).abs().max().item()
            worst = max(worst, (a - b).abs().max().item() / spread if spread else float("inf"))
    return float("inf") if math.isnan(worst) else worst
