"""What the layers that read channels see on calibration data: moments of their unfolded inputs, one pass for all.

Source: Xie et al. 2021, arXiv:2108.13728: mean and second moments in float64, taken once on the network before any cut.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.methods.compensation_algebra import SMALLEST, Moments, Selection, damped, inverse, variances
from orchestrator.methods.compensation_shifts import Shift
from orchestrator.methods.layers import Ints, LayerCall, evaluating, patches, places_of, watching
from orchestrator.network.coupling import Group


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """One conv_group of a layer that reads channels, as a least squares problem: y = W x.

    weight: [O, F]. labels: [F] the channel that each input carries, -1 for fixed ones. centred: something behind the
    layer takes up a shift of its outputs, so that they have to be right but for a constant.
    """

    weight: Tensor
    labels: Ints
    moments: Moments
    centred: bool
    damping: float

    @cached_property
    def spread(self) -> Tensor:
        """[F, F]"""
        return self.moments.spread(self.centred)

    @cached_property
    def power(self) -> float:
        """The outputs' variance, summed."""
        return float(variances(self.weight, self.spread).sum())

    @cached_property
    def _precision(self) -> Tensor:
        return inverse(damped(self.spread, max(self.damping, SMALLEST)))

    def inputs_of(self, group: Group) -> Tensor | None:
        """[channels, inputs of each] where the group's channels stand in x; None if none of them is read."""
        mine = np.flatnonzero((self.labels >= group.start) & (self.labels < group.start + group.size))
        ordered = mine[np.argsort(self.labels[mine], kind="stable")]
        return torch.from_numpy(ordered).view(group.size, -1) if len(mine) else None

    def selection(self, where: Tensor) -> Selection:
        """An empty set to take the inputs `where` into, all others being there.

        Given the others, the covariance of these is the inverse of their block of the precision matrix.
        """
        flat = where.flatten()
        own = self.spread if len(flat) == len(self.labels) else inverse(self._precision[flat][:, flat])
        return Selection(own[flat][:, flat] if own is self.spread else own, self.weight[:, flat], self.damping)


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """A layer that reads channels: how it runs, where its outputs can be shifted, and its conv_groups' readings."""

    call: LayerCall
    shift: Shift | None
    readings: tuple[Reading, ...]


class Sums:
    """Sums over samples of x and x x^T, for each conv_group: closes over what was added so far."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """x: [samples, G, F]; y: [samples, G, O] in place of the left one of the two factors x."""
        self.count += len(x)
        self.first = self.first + x.sum(0)
        self.second = self.second + (x if y is None else y).permute(1, 2, 0) @ x.transpose(0, 1)

    def moments(self) -> list[Moments]:
        """Of each conv_group, on the CPU."""
        assert isinstance(self.first, Tensor), "a layer that ran in the first pass did not run in this one"
        assert isinstance(self.second, Tensor)
        means, seconds = (self.first / self.count).cpu(), (self.second / self.count).cpu()
        return [Moments(count=self.count, mean=m, second=s) for m, s in zip(means, seconds, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Pictures, and how many output places of each a layer is looked at; the same ones whenever asked."""

    pictures: Sequence[Tensor]
    each: int
    seed: int

    def of(self, call: LayerCall, x: Tensor, y: Tensor, pictures: int) -> Tensor:
        """[samples, G, F] float64: the unfolded inputs at the places of this batch."""
        at = places_of(call, y, pictures, self.each, self.seed)
        return patches(call, x, at).flatten(2).double()


def read(
    model: nn.Module, calls: Iterable[LayerCall], shifts: dict[str, Shift], sampling: Sampling, damping: float
) -> list[Layer]:
    """The layers of these calls with the moments of their inputs, in one pass over the pictures."""
    calls = list(calls)
    sums = {call.weight: Sums() for call in calls}
    for pictures in sampling.pictures:

        def see(call: LayerCall, x: Tensor, y: Tensor, count: int = len(pictures)) -> None:
            sums[call.weight].add(sampling.of(call, x, y, count))

        with evaluating(model), watching(model, calls, see):
            model(pictures)
    return [_layer(model, call, sums[call.weight], shifts.get(call.weight), damping) for call in calls]


def _layer(model: nn.Module, call: LayerCall, sums: Sums, shift: Shift | None, damping: float) -> Layer:
    matrix = call.matrix(model.get_parameter(call.weight).detach()).flatten(2).double().cpu()
    labels = np.repeat(call.reads, call.places, axis=1)
    readings = tuple(
        Reading(weight=weight, labels=label, moments=moments, centred=shift is not None, damping=damping)
        for weight, label, moments in zip(matrix, labels, sums.moments(), strict=True)
    )
    return Layer(call=call, shift=shift, readings=readings)
