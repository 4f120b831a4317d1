"""Closed-form compensation: the layers that lost inputs get the weights that make the most of those left.

Source: Xie et al. 2021, arXiv:2108.13728: W' = W S_{:,s} S_ss^{-1}, each row scaled to its old variance, and a shift
that keeps the mean, into the bias. Where a layer has none, the batch norm behind it takes the shift into its running
mean, which is the same (and what re-estimated statistics would find); where there is neither, no shift is possible, and
all is done with second moments in place of covariances: the least squares without an intercept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.methods.compensation_algebra import Moments, refitted, rescaled, variances
from orchestrator.methods.compensation_readings import Layer, Reading, Sampling, Sums
from orchestrator.methods.layers import Ints, LayerCall, calls, evaluating, watching
from orchestrator.network import Coupling, Plan
from orchestrator.network.surgery import shrink

Seen = tuple[Tensor, Moments]  # E[y x^T] [O, S] of the outputs before the cut with the inputs after it, and these' own


@dataclass(frozen=True, eq=False, kw_only=True)
class Compensation:
    """How the layers of one network are compensated. What was computed for the same inputs left is kept."""

    model: nn.Module  # before the cut
    coupling: Coupling
    layers: Sequence[Layer]
    rescale: bool
    _known: dict[tuple[str, bytes], dict[str, Tensor]] = field(default_factory=dict)

    def lost(self, plan: Plan) -> list[tuple[Layer, list[Ints]]]:
        """The layers that lose inputs, in forward order, and where in each conv_group the others stand."""
        mask = np.append(plan.mask(self.coupling), True)
        found = [(layer, [np.flatnonzero(mask[r.labels]) for r in layer.readings]) for layer in self.layers]
        return [
            (layer, left)
            for layer, left in found
            if any(len(s) < len(r.labels) for s, r in zip(left, layer.readings, strict=True))
        ]

    def apply_(self, small: nn.Module, plan: Plan) -> None:
        """In place, the inputs taken to be what they were before the cut, as the paper has it."""
        kept = shrink(self.coupling, plan)
        for layer, left in self.lost(plan):
            key = layer.call.weight, b"".join(s.tobytes() + b"|" for s in left)
            if key not in self._known:
                seen = [before_cut(r, s) for r, s in zip(layer.readings, left, strict=True)]
                self._known[key] = self.tensors(layer, left, seen)
            for name, tensor in self._known[key].items():
                _put_(small, name, kept(name, tensor))

    def apply_forward_(self, small: nn.Module, plan: Plan, sampling: Sampling) -> None:
        """In place from the input on, each layer's inputs being what the layers before it now make."""
        kept = shrink(self.coupling, plan)
        own = {call.weight: call for call in calls(small, self.coupling.restrict(plan), sampling.pictures[0])}
        for layer, left in self.lost(plan):
            seen = after_cut(self.model, small, layer, own[layer.call.weight], sampling)
            for name, tensor in self.tensors(layer, left, seen).items():
                _put_(small, name, kept(name, tensor))

    def tensors(self, layer: Layer, left: Sequence[Ints], seen: Sequence[Seen]) -> dict[str, Tensor]:
        """The layer's parameters and buffers that change, in the shapes that they have before the cut."""
        weights, moved = [], []
        for reading, inputs, (cross, moments) in zip(layer.readings, left, seen, strict=True):
            weight, shift = compensated(reading, inputs, cross, moments, rescale=self.rescale)
            full = reading.weight.clone()
            full[:, inputs] = weight
            weights.append(full)
            moved.append(shift)
        call, shift = layer.call, torch.cat(moved)
        found = {call.weight: call.tensor(torch.stack(weights).unflatten(-1, (-1, call.places)))}
        if layer.shift is not None and layer.shift.bias is not None:
            found[layer.shift.bias] = self.model.get_parameter(layer.shift.bias).detach().double().cpu() + shift
        if layer.shift is not None and layer.shift.running_mean is not None:
            name = layer.shift.running_mean
            found[name] = self.model.get_buffer(name).double().cpu() - shift
        return found


def before_cut(reading: Reading, inputs: Ints) -> Seen:
    """What is known from the network before the cut alone: the inputs left, as they were there."""
    index, moments = torch.from_numpy(inputs), reading.moments
    second = moments.second[:, index]
    own = Moments(count=moments.count, mean=moments.mean[index], second=second[index])
    return reading.weight @ second, own


def after_cut(model: nn.Module, small: nn.Module, layer: Layer, own: LayerCall, sampling: Sampling) -> list[Seen]:
    """For each conv_group, from both networks side by side: one pass of each."""
    weight = torch.stack([reading.weight for reading in layer.readings])
    inputs, pairs = Sums(), Sums()
    for pictures in sampling.pictures:
        found: list[Tensor] = []

        def see(call: LayerCall, x: Tensor, y: Tensor, found: list[Tensor] = found, count: int = len(pictures)) -> None:
            found.append(sampling.of(call, x, y, count))

        for network, call in ((model, layer.call), (small, own)):
            with evaluating(network), watching(network, [call], see):
                network(pictures)
        before, after = found
        inputs.add(after)
        pairs.add(after, torch.einsum("sgf,gof->sgo", before, weight.to(before)))
    return [(pair.second, moments) for pair, moments in zip(pairs.moments(), inputs.moments(), strict=True)]


def compensated(
    reading: Reading, inputs: Ints, cross: Tensor, moments: Moments, *, rescale: bool
) -> tuple[Tensor, Tensor]:
    """Weights [O, S] for the inputs left, and the shift [O] of the outputs that goes with them.

    cross: E[y x^T] [O, S] of the outputs before the cut with the inputs left; moments: of these. Without centring, what
    is rescaled to is the outputs' mean square, and the shift is 0.
    """
    mean = reading.weight @ reading.moments.mean  # [O] of the outputs before the cut
    if reading.centred:
        cross = cross - mean.unsqueeze(1) * moments.mean
    own = moments.spread(reading.centred)
    weight = refitted(cross, own, reading.weight[:, torch.from_numpy(inputs)], reading.damping)
    if rescale:
        weight = rescaled(weight, own, variances(reading.weight, reading.spread))
    return weight, mean - weight @ moments.mean if reading.centred else torch.zeros_like(mean)


@torch.no_grad()
def _put_(small: nn.Module, name: str, value: Tensor) -> None:
    """Overwrite a parameter or a buffer; shapes and types stay."""
    place, _, last = name.rpartition(".")
    tensor = getattr(small.get_submodule(place), last)
    assert tensor.shape == value.shape, name
    tensor.copy_(value)


def right_share(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The share of pictures that the model classifies as they are labelled."""
    with evaluating(model):
        right = sum(int((model(pictures).argmax(1) == labels).sum()) for pictures, labels in batches)
    return right / sum(len(labels) for _, labels in batches)
