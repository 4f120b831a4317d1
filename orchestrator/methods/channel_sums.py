"""Sums over every weight of a channel, and gradients scaled channel by channel: two passes over the weights."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from orchestrator.network import Coupling, UnsupportedModel

Ints = npt.NDArray[np.int64]
BLOCK = 2**18  # elements whose sums stay in a core's cache


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A parameter, and for each of its dimensions that follow channels its place in the long vector of all sums."""

    parameter: nn.Parameter
    places: tuple[tuple[int, slice], ...]

    def sums(self, power: int) -> list[Tensor]:
        """For each place, the sums of |weight| ** power over everything but its dimension."""
        weight = self.parameter.detach().float()
        followed = [dim for dim, _ in self.places]
        others = [dim for dim in range(weight.ndim) if dim not in followed and weight.shape[dim] > 1]
        if followed == [1] and weight.is_contiguous():  # full rows are summed faster than each place of a kernel
            return [_column_sums(weight.flatten(1), power).view(weight.shape[1], -1).sum(1)]
        table = _summed(weight, power, others).reshape([weight.shape[dim] for dim in followed])
        if len(followed) == 1:
            return [table]
        return [table.sum([other for other in range(len(followed)) if other != dim]) for dim in range(len(followed))]

    def factors(self, of_all: Tensor) -> Tensor:
        """What each weight is to be multiplied by, broadcastable to the parameter: the sum over its channels."""
        shapes = ([-1 if other == dim else 1 for other in range(self.parameter.ndim)] for dim, _ in self.places)
        parts = [of_all[place].view(shape) for (_, place), shape in zip(self.places, shapes, strict=True)]
        factors = reduce(torch.add, parts).to(self.parameter.dtype)
        if [dim for dim, _ in self.places] == [1] and self.parameter.is_contiguous():
            # spelt out over the kernel's places, so that the product runs over full rows and not over a few places
            return factors.expand(1, *self.parameter.shape[1:]).contiguous()
        return factors


def _column_sums(matrix: Tensor, power: int) -> Tensor:
    """[columns] sums of |element| ** power. Large matrices go in blocks of rows, so that no copy of them is written."""
    rows = BLOCK // max(1, matrix.shape[1])
    if power != 2 or rows < 1 or matrix.numel() < 2 * BLOCK:
        return _powers(matrix, power).sum(0)
    sums = matrix.new_zeros(rows, matrix.shape[1])
    for block in matrix.split(rows):
        sums[: len(block)].addcmul_(block, block)
    return sums.sum(0)


def _summed(weight: Tensor, power: int, dims: list[int]) -> Tensor:
    """The sum of |weight| ** power over dimensions; the way that is fastest in the weight's layout."""
    if not dims or dims[0] == 0 or not weight.is_contiguous():
        values = _powers(weight, power)
        return values.sum(dims) if dims else values
    norms: Tensor = torch.linalg.vector_norm(weight, power, dims)
    return norms.square_() if power == 2 else norms


def _powers(weight: Tensor, power: int) -> Tensor:
    return weight.square() if power == 2 else weight.abs()


class ChannelSums:
    """Which weights belong to which channel, as index tensors made once.

    A channel's weights are the rows that make it and the columns that read it, in every convolution and linear layer,
    one after the other: a weight that is both (a residual stream that feeds itself) counts twice. made_only leaves
    the columns out. norm_parameters adds what acts on the channel element by element: norms, biases, scales.
    only: the names of groups that matter; nothing is computed for weights of others, whose sums are then too low.
    The model stays on its device as long as this is used.
    """

    def __init__(
        self,
        model: nn.Module,
        coupling: Coupling,
        *,
        made_only: bool = False,
        norm_parameters: bool = False,
        only: frozenset[str] | None = None,
    ) -> None:
        matter = {key for group in coupling.groups if only is None or group.name in only for key in group.members}
        weights = {call.weight for call in coupling.calls}
        made = {key for group in coupling.groups for key in group.made}
        wanted: dict[str, list[int]] = {}
        for name, dim in coupling.dims:
            right_kind = name not in coupling.buffers and (name in weights or norm_parameters)
            if right_kind and (name, dim) in matter and ((name, dim) in made or not made_only):
                wanted.setdefault(name, []).append(dim)
        self.coupling = coupling
        self._parts: list[_Part] = []
        channels: list[Ints] = [np.zeros(0, np.int64)]
        sizes: list[Ints] = [np.zeros(0, np.int64)]
        start = 0
        for name, dims in wanted.items():
            parameter = _parameter(model, coupling, name)
            places = []
            for dim in dims:
                channels.append(coupling.dims[name, dim])
                length = parameter.shape[dim]
                sizes.append(np.full(length, parameter.numel() // length))
                places.append((dim, slice(start, start + length)))
                start += length
            self._parts.append(_Part(parameter=parameter, places=tuple(places)))
        self._number(np.concatenate(channels), np.concatenate(sizes), model)

    def _number(self, channels: Ints, sizes: Ints, model: nn.Module) -> None:
        """weights_of: [channels] float32, how many weights each channel has."""
        count = self.coupling.channels
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        index = np.where(channels < 0, count, channels)  # fixed positions go to one more place, which is never read
        self._index = torch.from_numpy(index).to(device)
        numbers = np.bincount(index, sizes, count + 1)[:count]
        self.weights_of = torch.from_numpy(numbers).to(device, torch.float32)

    @torch.no_grad()
    def squares(self) -> Tensor:
        """[channels] float32: the sum of squares of each channel's weights."""
        return self._gather(2)

    @torch.no_grad()
    def magnitudes(self) -> Tensor:
        """[channels] float32: the sum of absolute values of each channel's weights."""
        return self._gather(1)

    def _gather(self, power: int) -> Tensor:
        sums = [each for part in self._parts for each in part.sums(power)]
        total = torch.zeros(self.coupling.channels + 1, device=self._index.device)
        if sums:
            total.index_add_(0, self._index, torch.cat(sums))
        return total[:-1]

    @torch.no_grad()
    def add_scaled_(self, scale: Tensor) -> None:
        """gradient += weight x scale of each channel the weight belongs to. scale: [channels].

        Parameters that are not trained get no gradient.
        """
        factors = torch.cat([scale, scale.new_zeros(1)])[self._index]
        for part in self._parts:
            parameter = part.parameter
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.addcmul_(parameter, part.factors(factors))


def _parameter(model: nn.Module, coupling: Coupling, name: str) -> nn.Parameter:
    try:
        parameter = model.get_parameter(name)
    except AttributeError:
        parameter = None
    if parameter is None or tuple(parameter.shape) != coupling.shapes[name]:
        raise UnsupportedModel(f"{name} is not in this model, or has another shape than in its coupling")
    return parameter
