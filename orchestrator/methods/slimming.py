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
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.methods.channel_sums import ChannelSums
from orchestrator.methods.method import Ahead, Floats, Method, Options, Penalty, Subject, by_score
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

    def spread(self, values: Tensor) -> Tensor:
        """What each entry of the scale has of its channel. values: [channels + 1], the last for none."""
        shape = [-1 if dim == self.dim else 1 for dim in range(self.weight.ndim)]
        return values[self.channels].view(shape).to(self.weight)


def scales(model: nn.Module, coupling: Coupling) -> list[Scale]:
    """The scales of batch, instance, group, layer and RMS norms that follow channels.

    One that several norms share counts once. A norm that is no module of PyTorch's, nor of a class derived from one, is
    not seen: its channels count as without.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    norms = (module.weight for module in model.modules() if isinstance(module, NORMS))
    found = []
    for weight in {id(weight): weight for weight in norms if isinstance(weight, nn.Parameter)}.values():
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
    found = scales(subject.model, coupling)
    for scale in found:
        places, values = scale.channels.numpy(), scale.magnitudes().numpy()
        np.add.at(sums, places, values)
        np.add.at(numbers, places, 1)
        np.maximum.at(largest, places, values)
    combined = {"sum": sums, "mean": sums / np.maximum(numbers, 1), "max": largest}[subject.options.several]
    bare = _without_norm(subject, found)
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
    found = scales(model, coupling)
    bare = _without_norm(subject, found) & subject.prunable()
    allowed = regularization_weight * torch.from_numpy(_channels_of(coupling, subject.prunable()))
    strengths = [(one.weight, one.spread(F.pad(allowed, (0, 1)))) for one in found if one.weight.requires_grad]
    filters = ChannelSums(model, coupling, made_only=True, only=bare)
    strength = allowed.to(filters.weights_of) * torch.from_numpy(_channels_of(coupling, bare)).to(filters.weights_of)

    @torch.no_grad()
    def after_backward() -> None:
        for weight, factor in strengths:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.addcmul_(weight.sign(), factor)
        if bare:
            norms = filters.squares().sqrt_()
            filters.add_scaled_(torch.where(norms > 0, strength / norms, 0.0))

    yield Penalty(after_backward=after_backward)


def check(ahead: Ahead) -> None:
    """Raises InvalidInput where the options refuse groups without norms, and there is one that may lose channels."""
    channel_scales(ahead.subject)


def _without_norm(subject: Subject, found: list[Scale]) -> frozenset[str]:
    """The groups that none of these norms scales. Raises InvalidInput where the options refuse one that may leave."""
    scaled = np.zeros(subject.coupling.channels + 1, bool)
    for scale in found:
        scaled[scale.channels.numpy()] = True
    bare = [group for group in subject.coupling.groups if not scaled[group.channels].any()]
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
    version=2,
    options=SlimmingOptions,
    penalty=slimming_penalty,
    choose=by_score(channel_scales),
    check=check,
)
