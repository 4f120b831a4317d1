"""Label tensors: which channel each element of a tensor belongs to. Pure arithmetic on int64 tensors.

A label tensor has its tensor's shape; 0 means "belongs to no channel". Wherever labels are constant along a
dimension its stride is 0, so that a picture of 224 x 224 costs as much as one of 1 x 1.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor


def blank(shape: Sequence[int]) -> Tensor:
    """Labels of a tensor without channels."""
    return torch.zeros(1, dtype=torch.int64).expand(tuple(shape)) if shape else torch.zeros((), dtype=torch.int64)


def along(vector: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """[n] -> labels of `shape` that follow `vector` along dimension `dim` and are constant elsewhere."""
    view = [1] * len(shape)
    view[dim] = vector.numel()
    return vector.reshape(view).expand(tuple(shape))


def core(labels: Tensor, keep: Iterable[int] = ()) -> Tensor:
    """The same labels with every stride-0 dimension (but those in `keep`) narrowed to one element."""
    strides = labels.stride()
    if 0 not in strides:
        return labels
    sizes = [
        1 if stride == 0 and dim not in keep else size
        for dim, (size, stride) in enumerate(zip(labels.shape, strides, strict=True))
    ]
    return labels.as_strided(sizes, strides)


def varies(labels: Tensor, dim: int) -> bool:
    """Whether labels differ along a dimension: whether it is (also) a channel dimension."""
    size = labels.size(dim)
    if size <= 1 or labels.stride(dim) == 0:
        return False
    small = core(labels)
    return not torch.equal(small.narrow(dim, 0, size - 1), small.narrow(dim, 1, size - 1))


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which labels differ."""
    return [dim for dim, stride in enumerate(labels.stride()) if stride and varies(labels, dim)]


def settle(labels: Tensor) -> Tensor:
    """Give stride 0 to every dimension along which the labels are constant, so that later operators stay cheap."""
    shape = labels.shape
    for dim in range(labels.ndim):
        if labels.size(dim) > 1 and labels.stride(dim) != 0 and not varies(labels, dim):
            labels = labels.narrow(dim, 0, 1)
    return labels.expand(shape)


def vector(labels: Tensor, dim: int) -> Tensor | None:
    """[n] labels along `dim` if they follow no other dimension, else None."""
    if any(d != dim for d in varying(labels)):
        return None
    index = tuple(slice(None) if d == dim else 0 for d in range(labels.ndim))
    return labels[index]


def refinement(old: Sequence[int], new: Sequence[int]) -> list[int] | None:
    """The coarsest common split of two shapes with equal element counts; None where they do not nest.

    [6, 4] and [2, 12] -> [2, 3, 4]; [4, 6] and [3, 8] -> None.
    """
    borders: set[int] = set()
    for shape in (old, new):
        product = 1
        for size in reversed(shape):
            product *= size
            borders.add(product)
    ordered = sorted(borders | {1})
    factors = []
    for low, high in pairwise(ordered):
        if high % low:
            return None
        factors.append(high // low)
    return factors[::-1]


def factors_of(shape: Sequence[int], refined: Sequence[int]) -> list[list[int]]:
    """For each dimension of `shape` the axes of `refined` that it consists of (none for a size of 1)."""
    axes: list[list[int]] = []
    position = len(refined)
    for size in reversed(shape):
        mine: list[int] = []
        product = 1
        while product < size:
            position -= 1
            product *= refined[position]
            mine.insert(0, position)
        axes.insert(0, mine)
    return axes
