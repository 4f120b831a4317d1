"""Network slimming: an L1 penalty on the scales of norms; channels of small scale leave, from all layers together.

Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, arXiv:1708.06519. The
paper's networks have a batch norm behind every convolution, and its threshold empties layers where it is set too high;
here the budget, the cap of a group and its last channel hold as for every method. Coupled channels and layers without
norms, of which the paper does not speak, are switches below; the defaults are our choice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.methods.channel_sums import ChannelSums
from orchestrator.methods.method import Budget, Floats, Method, Options, Penalty, Subject, by_score
from orchestrator.network import Coupling
from orchestrator.record import InvalidInput

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class SlimmingOptions(Options):
    """several: what stands for a channel that several norms scale, as in a residual stream or a dense block.

    without_norm: what becomes of a group that no norm scales. "filter_norm": the L2 norm of the filters that make a
    channel stands for its scale, and is penalised in its place. It is the deviation of what they make of inputs without
    correlation and of deviation 1, as the scale is that of a channel behind its norm. "refuse": the method ends with an
    error that names the group.
    """

    several: Literal["mean", "max", "sum"] = "mean"
    without_norm: Literal["filter_norm", "refuse"] = "filter_norm"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The scale of a norm, and the channel of each position along one of its dimensions; -1: none."""

    weight: nn.Parameter
    dim: int
    channels: Tensor

    def magnitudes(self) -> Tensor:
        """[positions] the mean of |scale| over its other dimensions, which few norms have."""
        others = [dim for dim in range(self.weight.ndim) if dim != self.dim]
        found = self.weight.detach().abs()
        return (found.mean(others) if others else found).double().cpu()

    @torch.no_grad()
    def add_sign_(self, factor: Tensor) -> None:
        """gradient += sign of the scale x factor of its channel. factor: [channels + 1], the last for none."""
        weight = self.weight
        shape = [-1 if dim == self.dim else 1 for dim in range(weight.ndim)]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.addcmul_(weight.sign(), factor[self.channels].view(shape).to(weight))


def scales(model: nn.Module, coupling: Coupling) -> list[Scale]:
    """The scales of batch, instance, group, layer and RMS norms that follow channels.

    A norm that is no module of PyTorch's, nor of a class derived from one, is not seen: its channels count as without.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for module in model.modules():
        weight = module.weight if isinstance(module, NORMS) else None
        if not isinstance(weight, nn.Parameter):
            continue
        for dim in range(weight.ndim):
            channels = coupling.dims.get((names[id(weight)], dim))
            if channels is not None:
                found.append(Scale(weight=weight, dim=dim, channels=torch.from_numpy(channels)))
    return found


def channel_scales(subject: Subject) -> Floats:
    """[channels] |scale| of each channel; of those without a norm, the L2 norm of the filters that make them.

    Raises InvalidInput where the options refuse groups without norms.
    """
    coupling = subject.coupling
    sums, numbers = np.zeros(coupling.channels + 1), np.zeros(coupling.channels + 1)
    largest = np.zeros(coupling.channels + 1)
    for scale in scales(subject.model, coupling):
        places, values = scale.channels.numpy(), scale.magnitudes().numpy()
        np.add.at(sums, places, values)
        np.add.at(numbers, places, 1)
        np.maximum.at(largest, places, values)
    combined = {"sum": sums, "mean": sums / np.maximum(numbers, 1), "max": largest}[subject.options.several]
    bare = _without_norm(subject, numbers[:-1])
    filters = ChannelSums(subject.model, coupling, made_only=True, only=bare).squares().sqrt()
    mask = _channels_of(coupling, bare)
    result: Floats = np.where(mask, filters.double().cpu().numpy(), combined[:-1])
    return result


@contextmanager
def slimming_penalty(subject: Subject, regularization_weight: float) -> Iterator[Penalty]:
    """L1 on norms' scales: after backward, gradient += weight x sign(scale), of channels that may leave.

    Where a group has no norm: += weight x filters / their L2 norm, the subgradient of that norm (0 at 0).
    Raises InvalidInput where the options refuse groups without norms.
    """
    coupling, model = subject.coupling, subject.model
    found = [scale for scale in scales(model, coupling) if scale.weight.requires_grad]
    numbers = np.zeros(coupling.channels + 1)
    for scale in scales(model, coupling):
        np.add.at(numbers, scale.channels.numpy(), 1)
    bare = _without_norm(subject, numbers[:-1])
    allowed = np.append(_channels_of(coupling, subject.prunable()), False)
    factor = torch.from_numpy(regularization_weight * allowed)
    filters = ChannelSums(model, coupling, made_only=True, only=bare & subject.prunable())
    penalised = torch.from_numpy(regularization_weight * (_channels_of(coupling, bare) & allowed[:-1]))
    strength = penalised.to(filters.weights_of)

    def after_backward() -> None:
        for scale in found:
            scale.add_sign_(factor)
        if bare:
            norms = filters.squares().sqrt_()
            filters.add_scaled_(torch.where(norms > 0, strength / norms, 0.0))

    yield Penalty(after_backward=after_backward)


def check(subject: Subject, budget: Budget) -> None:
    """Raises InvalidInput where the options refuse groups without norms, and there is one that may lose channels."""
    channel_scales(subject)


def _without_norm(subject: Subject, numbers: Floats) -> frozenset[str]:
    """The groups that no norm scales. numbers: [channels] how many scales each channel has."""
    bare = [group for group in subject.coupling.groups if not numbers[group.channels].any()]
    refused = [group for group in bare if group.name in subject.prunable()]
    if refused and subject.options.without_norm == "refuse":
        raise InvalidInput(
            f"slimming: no norm scales the {refused[0].size} channels of {refused[0].name}; with "
            'method_options.without_norm = "filter_norm" the norm of their filters stands for it'
        )
    return frozenset(group.name for group in bare)


def _channels_of(coupling: Coupling, names: frozenset[str]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[channels] True in these groups."""
    mask = np.zeros(coupling.channels, bool)
    for name in names:
        mask[coupling.by_name[name].channels] = True
    return mask


SLIMMING = Method(
    name="slimming",
    source="Liu et al. 2017, network slimming, arXiv:1708.06519",
    version=1,
    options=SlimmingOptions,
    penalty=slimming_penalty,
    choose=by_score(channel_scales),
    check=check,
)
