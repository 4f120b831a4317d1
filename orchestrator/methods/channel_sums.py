"""Sums over every weight of a channel, and gradients scaled channel by channel: two passes over the weights."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.network import Coupling, UnsupportedModel
from orchestrator.network.coupling import Ints


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A weight [rows, columns, ...] or a vector [rows], and where its sums lie in the long vector of all sums.

    `front` is the dimension of the rows: 0 for weights; a norm's scale, say, can follow channels along a later one.
    """

    parameter: nn.Parameter
    front: int
    rows: slice | None
    columns: slice | None

    def sums(self, power: int) -> list[Tensor]:
        """Sums of |weight| ** power over rows, over columns, or both, as far as they belong to channels."""
        weight = self.parameter.detach().movedim(self.front, 0).float()
        if self.columns is None:
            return [_summed(weight, power, list(range(1, weight.ndim)))]
        table = weight.flatten(1) if weight.numel() == weight.shape[0] * weight.shape[1] else weight
        table = _summed(table, power, list(range(2, table.ndim)))
        columns = [table.sum(0)]
        return columns if self.rows is None else [table.sum(1), *columns]


def _summed(weight: Tensor, power: int, dims: list[int]) -> Tensor:
    """The sum of |weight| ** power over dimensions; the way that is fastest in the weight's memory layout."""
    if not dims or not weight.is_contiguous():
        values = weight.square() if power == 2 else weight.abs()
        return values.sum(dims) if dims else values
    norms = torch.linalg.vector_norm(weight, power, dims)
    return norms.square_() if power == 2 else norms


class ChannelSums:
    """Which weights belong to which channel, as index tensors made once.

    A channel's weights are the rows that make it and the columns that read it, in every convolution and linear layer.
    made_only leaves the columns out. norm_parameters adds what acts on it element by element: norms, biases, scales.
    """

    def __init__(
        self, model: nn.Module, coupling: Coupling, *, made_only: bool = False, norm_parameters: bool = False
    ) -> None:
        parameters = dict(model.named_parameters())
        weights = {call.weight for call in coupling.calls}
        made = {key for group in coupling.groups for key in group.made}
        self.coupling = coupling
        self._parts: list[_Part] = []
        index: list[Ints] = []
        sizes: list[Ints] = []
        length = 0
        for name in dict.fromkeys(name for name, _ in coupling.dims):
            if name in coupling.buffers or (name not in weights and not norm_parameters):
                continue
            parameter = parameters.get(name)
            if parameter is None or tuple(parameter.shape) != coupling.shapes[name]:
                raise UnsupportedModel(f"{name} is not in this model, or has another shape than in its coupling")
            followed = [dim for dim in range(parameter.ndim) if (name, dim) in coupling.dims]
            front = 0 if name in weights else followed[0]
            slices: list[slice | None] = [None, None]
            for dim in followed:
                if made_only and (name, dim) not in made:
                    continue
                channels = coupling.dims[name, dim]
                index.append(channels)
                sizes.append(np.full(len(channels), parameter.numel() // parameter.shape[dim]))
                slices[dim if front == 0 else 0] = slice(length, length + len(channels))
                length += len(channels)
            if any(slices):
                self._parts.append(_Part(parameter=parameter, front=front, rows=slices[0], columns=slices[1]))
        flat = np.concatenate([np.zeros(0, np.int64), *index])
        device = next((p.device for p in parameters.values()), torch.device("cpu"))
        # channel -1 (a frozen position) goes to one more place at the end, which is never read
        self._index = torch.from_numpy(np.where(flat < 0, coupling.channels, flat)).to(device)
        counts = np.bincount(self._index.cpu().numpy(), np.concatenate([np.zeros(0), *sizes]), coupling.channels + 1)
        self.weights_of = torch.from_numpy(counts[: coupling.channels]).to(device, torch.float32)

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
        """gradient += weight x scale of each channel the weight belongs to. scale: [channels]."""
        factors = torch.cat([scale, scale.new_zeros(1)])[self._index]
        for part in self._parts:
            parameter = part.parameter
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            rows = None if part.rows is None else factors[part.rows]
            if parameter.ndim > 1 and rows is not None:
                rows = rows[:, None]
            columns = None if part.columns is None else factors[part.columns]
            both = rows if columns is None else columns[None] if rows is None else rows + columns
            assert both is not None
            both = both.reshape(tuple(both.shape) + (1,) * (parameter.ndim - both.ndim))
            weight, gradient = parameter.movedim(part.front, 0), parameter.grad.movedim(part.front, 0)
            gradient.addcmul_(weight, both.to(weight.dtype))
