"""What a network costs: multiply-accumulates of convolutions and linear layers at batch 1, and parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from orchestrator.network.coupling import Bools, Coupling
from orchestrator.network.meta import Example, as_meta
from orchestrator.network.recording import Call, ParameterDim
from orchestrator.network.trace import record

UNKNOWN = (1, 1)  # sizes of a weight that is no parameter


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """flops: multiply-accumulates, batch 1, biases and norms not counted. params: all parameters, tied ones once."""

    flops: int
    params: int
    layers: tuple[tuple[str, int], ...]  # (module, flops) of each call, in the order of the calls


def measure(model: nn.Module, example: Example) -> Measurement:
    """Count a network as it is, from its own tensors' sizes. Nothing is computed; the model is not touched.

    Raises UnsupportedModel if the model does not run on the example.
    """
    meta = as_meta(model).eval()
    shapes = {name: tuple(p.shape) for name, p in [*meta.named_parameters(), *meta.named_buffers()]}
    calls = record(meta, example, {}).calls
    layers = tuple((call.module, _flops(call, shapes.get(call.weight, UNKNOWN))) for call in calls)
    return Measurement(
        flops=sum(flops for _, flops in layers),
        params=sum(parameter.numel() for parameter in meta.parameters()),
        layers=layers,
    )


def _flops(call: Call, sizes: Sequence[int], stays: Bools | None = None) -> int:
    """sizes: of the weight's dimensions. stays: [channels + 1], the last for fixed places; all stay if None."""
    if call.along is None:
        return call.positions * sizes[0] * sizes[1]
    along = len(call.along) if stays is None else int(stays[list(call.along)].sum())
    return call.positions * sizes[0] * sizes[1] * along


class CostTable:
    """Exact flops and params at any widths: counting kept channels, nothing built."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self._keys = list(coupling.dims)
        index = [coupling.dims[key] for key in self._keys]
        self._flat = np.concatenate([np.zeros(0, np.int64), *index])
        self._starts = np.cumsum([0, *map(len, index)])[:-1]
        self._at = {key: i for i, key in enumerate(self._keys)}
        self._sizes = [(self._where((call.weight, 0)), self._where((call.weight, 1))) for call in coupling.calls]

    def _where(self, key: ParameterDim) -> tuple[int, int]:
        """(position in the counted dimensions or -1, full size)"""
        return self._at.get(key, -1), self.coupling.shapes.get(key[0], UNKNOWN)[key[1]]

    def _counts(self, kept: Bools | None) -> list[int]:
        if not self._keys:
            return []
        if kept is None:
            return [len(self.coupling.dims[key]) for key in self._keys]
        stays = np.append(kept, True)[self._flat].astype(np.int64)
        counts: list[int] = np.add.reduceat(stays, self._starts).tolist()
        return counts

    def layer_flops(self, kept: Bools | None = None) -> list[int]:
        """Flops of each call, in the order of `coupling.calls`, if only channels where `kept` [channels] stay."""
        counts = self._counts(kept)

        def size(where: tuple[int, int]) -> int:
            return counts[where[0]] if where[0] >= 0 else where[1]

        stays = None if kept is None else np.append(kept, True)
        return [
            _flops(call, (size(rows), size(reads)), stays)
            for call, (rows, reads) in zip(self.coupling.calls, self._sizes, strict=True)
        ]

    def flops(self, kept: Bools | None = None) -> int:
        """Flops of the network that has only the channels where `kept` [channels] is True (all if None)."""
        return sum(self.layer_flops(kept))

    def params(self, kept: Bools | None = None) -> int:
        """Parameters of that network."""
        counts = self._counts(kept)
        total = 0
        for name, shape in self.coupling.shapes.items():
            if name in self.coupling.buffers:
                continue
            sizes = [counts[self._at[name, d]] if (name, d) in self._at else n for d, n in enumerate(shape)]
            total += int(np.prod(sizes, dtype=object)) if sizes else 1
        return total

    def prunable_share(self) -> float:
        """The share of flops that would go if every group went down to one channel."""
        kept = np.zeros(self.coupling.channels, bool)
        kept[[group.start for group in self.coupling.groups]] = True
        full = self.flops()
        return 1.0 - self.flops(kept) / full if full else 0.0
