"""Sums over every weight of a channel, and gradients scaled channel by channel: two passes over the weights."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from orchestrator.network import Coupling, UnsupportedModel

Ints = npt.NDArray[np.int64]
BLOCK = 300_000  # weights that are worked on at once: with their gradient about what a core's cache holds


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A parameter, and for each of its dimensions that follow channels its place in the long vector of all sums."""

    parameter: nn.Parameter
    places: tuple[tuple[int, slice], ...]

    def sums(self, power: int, scratch: Tensor) -> list[Tensor]:
        """For each place, the sums of |weight| ** power over everything but its dimension.

        scratch: float32, as many elements as the largest weight; its contents are lost. Without it a step allocates as
        much memory as the network has weights, which on a CPU costs more than the sums.
        """
        weight = self.parameter.detach().float()
        followed = [dim for dim, _ in self.places]
        table = _Table.of(weight) if max(followed) < 2 else None
        if table is None:
            powers = _powers(weight, power)
            return [powers.movedim(dim, 0).reshape(weight.shape[dim], -1).sum(1) for dim in followed]
        if followed == [0]:
            norms = torch.linalg.vector_norm(table.matrix, power, 1)
            return [norms.square_() if power == 2 else norms]
        powers = _powers(table.matrix, power, out=scratch[: weight.numel()].view_as(table.matrix))
        return [powers.sum(1) if dim == 0 else table.gathered(powers.sum(0)) for dim in followed]

    def add_scaled_(self, gradient: Tensor, of_all: Tensor) -> None:
        """gradient += weight x the sum of the factors of its channels."""
        parts = {dim: of_all[place].to(gradient.dtype) for dim, place in self.places}
        weight, ndim = self.parameter, self.parameter.ndim
        ours, theirs = (_Table.of(tensor) if max(parts) < 2 else None for tensor in (weight, gradient))
        if ours is not None and theirs is not None and ours.short_rows and theirs.short_rows and not weight.is_cuda:
            ours.add_scaled_(theirs.matrix, parts)
            return
        shaped = (factors.view([-1 if d == dim else 1 for d in range(ndim)]) for dim, factors in parts.items())
        gradient.addcmul_(weight, reduce(torch.add, shaped))


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A weight [rows, columns, *kernel] seen as a matrix without a copy: each row's elements as they lie in memory."""

    matrix: Tensor  # [rows, columns x kernel places], or the places first where the weight is channels_last
    columns: int
    kernel: int
    places_first: bool

    @classmethod
    def of(cls, weight: Tensor) -> "_Table | None":
        """None if the weight has fewer than two dimensions, or lies in memory in another way."""
        if weight.ndim < 2 or not weight.numel():
            return None
        kernel = weight[0, 0].numel()
        if weight.is_contiguous():
            return cls(matrix=weight.flatten(1), columns=weight.shape[1], kernel=kernel, places_first=False)
        moved = weight.movedim(1, -1)
        if moved.is_contiguous():
            return cls(matrix=moved.flatten(1), columns=weight.shape[1], kernel=kernel, places_first=True)
        return None

    @property
    def short_rows(self) -> bool:
        """Whether broadcasting a factor a column would run an innermost loop of a kernel's few places."""
        return self.kernel > 1 and not self.places_first

    def add_scaled_(self, gradient: Tensor, parts: dict[int, Tensor]) -> None:
        """Two passes over full rows, block by block so that the second finds the block in the cache.

        On contiguous 3 x 3 weights this takes two thirds of the time of one pass with broadcast factors.
        """
        rows, columns = parts.get(0), parts.get(1)
        spread = None if columns is None else columns.repeat_interleave(self.kernel)
        step = max(1, BLOCK // self.matrix.shape[1])
        for start in range(0, len(self.matrix), step):
            block = slice(start, start + step)
            if rows is not None:
                gradient[block].addcmul_(self.matrix[block], rows[block, None])
            if spread is not None:
                gradient[block].addcmul_(self.matrix[block], spread)

    def gathered(self, sums: Tensor) -> Tensor:
        """[columns x places] -> [columns]"""
        if self.places_first:
            return sums.view(self.kernel, self.columns).sum(0)
        return sums.view(self.columns, self.kernel).sum(1)


def _powers(weight: Tensor, power: int, out: Tensor | None = None) -> Tensor:
    return torch.mul(weight, weight, out=out) if power == 2 else torch.abs(weight, out=out)


class ChannelSums:
    """Which weights belong to which channel, as index tensors made once.

    A channel's weights are the rows that make it and the columns that read it, in every convolution and linear layer,
    one after the other: a weight that is both (a residual stream that feeds itself) counts twice. made_only leaves
    the columns out. norm_parameters adds what acts on the channel element by element: norms, biases, scales.
    The model stays on its device as long as this is used.
    """

    def __init__(
        self, model: nn.Module, coupling: Coupling, *, made_only: bool = False, norm_parameters: bool = False
    ) -> None:
        weights = {call.weight for call in coupling.calls}
        made = {key for group in coupling.groups for key in group.made}
        wanted: dict[str, list[int]] = {}
        for name, dim in coupling.dims:
            right_kind = name not in coupling.buffers and (name in weights or norm_parameters)
            if right_kind and ((name, dim) in made or not made_only):
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
        largest = max((part.parameter.numel() for part in self._parts), default=0)
        self._scratch = torch.empty(largest, device=device)
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
        sums = [each for part in self._parts for each in part.sums(power, self._scratch)]
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
            part.add_scaled_(parameter.grad, factors)


def _parameter(model: nn.Module, coupling: Coupling, name: str) -> nn.Parameter:
    try:
        parameter = model.get_parameter(name)
    except AttributeError:
        parameter = None
    if parameter is None or tuple(parameter.shape) != coupling.shapes[name]:
        raise UnsupportedModel(f"{name} is not in this model, or has another shape than in its coupling")
    return parameter
