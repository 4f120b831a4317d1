"""A part of the train split that is kept back: for measuring while something is learnt that is not the network."""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from orchestrator.record import InvalidInput
from orchestrator.training.splits import DataSet, MapStyle, Pictures, Split

SHARE, MOST = 0.2, 2000  # of the train split, and pictures at most


def held_out(data: DataSet, count: int | None = None, *, seed: int = 0) -> DataSet:
    """The data set with `count` train pictures in place of its validation part, and the others as its train part.

    count: a fifth of train, at most 2,000, if None. Pictures are normalised as before; neither the true validation
    split nor the test split can be reached through what is returned. Raises InvalidInput for a bad count.
    """
    whole = len(data.train)
    wanted = min(MOST, round(SHARE * whole)) if count is None else count
    if not 1 <= wanted < whole:
        raise InvalidInput(f"held_out is {wanted}; it must be at least 1 and less than the {whole} train pictures")
    order = torch.randperm(whole, generator=Generator().manual_seed(seed))
    kept_back, rest = order[:wanted].sort().values, order[wanted:].sort().values
    kept = _part(data.train, kept_back)
    return replace(data, train=_part(data.train, rest), validation=kept, test=kept)


def _part(pictures: Pictures, indices: Tensor) -> Pictures:
    return pictures.part(indices) if isinstance(pictures, Split) else _Part(pictures, indices)


class _Part:
    """Some of the pictures that are read one by one."""

    def __init__(self, pictures: MapStyle, indices: Tensor) -> None:
        self._pictures, self._indices = pictures, indices.tolist()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self._pictures[self._indices[index]]
