"""What a data set is: pictures and labels in three parts that never change."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from orchestrator.record import InvalidInput
from orchestrator.training.augmentation import Augmentation

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Pictures held in memory: uint8 [N, C, H, W], and their int64 labels [N]."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise InvalidInput(f"images must be uint8 [N, C, H, W]; they are {_described(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise InvalidInput(f"labels must be int64 [{len(self.images)}]; they are {_described(self.labels)}")

    def __len__(self) -> int:
        return len(self.images)

    def part(self, indices: Tensor) -> "Split":
        """The pictures at these indices, in their order."""
        return Split(self.images[indices], self.labels[indices])


class MapStyle(Protocol):
    """Pictures read one by one, as torch.utils.data has it: uint8 [C, H, W], all of one size, and a label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


@runtime_checkable
class Augmentable(Protocol):
    """Pictures that change themselves at random while they are read, where whole batches cannot do it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...

    def augmented(self, index: int, augmentation: Augmentation, seed: int) -> tuple[Tensor, int]:
        """The same picture for the same three arguments, in whichever process."""
        ...


Pictures = Split | MapStyle


@dataclass(frozen=True, eq=False, kw_only=True)
class DataSet:
    """Pictures of `classes` classes in three disjoint parts.

    mean and std are the train pictures', per channel, of values in [0, 1]; the fingerprint tells any two contents or
    splits apart and is part of the key of every stage trained on them. `prepared` tells whoever feeds a network
    later how a picture becomes what the splits hold, where that is more than to read it.
    """

    name: str
    classes: int
    input_shape: tuple[int, int, int]  # channels, height, width
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Pictures
    validation: Pictures
    test: Pictures
    fingerprint: str
    prepared: str | None = None

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InvalidInput(f"data set {self.name}: classes is {self.classes}; it must be 2 or more")
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) != self.input_shape[0] or not all(math.isfinite(value) for value in values):
                raise InvalidInput(f"data set {self.name}: {field} is {values}; it needs a number for each channel")
        if min(self.std) <= 0:
            raise InvalidInput(f"data set {self.name}: std is {self.std}; it must be above 0")
        for split in SPLITS:
            self._check(split)

    def _check(self, split: SplitName) -> None:
        pictures: Pictures = getattr(self, split)
        where = f"data set {self.name}: {split}"
        if len(pictures) == 0:
            raise InvalidInput(f"{where} has no pictures")
        if not isinstance(pictures, Split):
            return
        if tuple(pictures.images.shape[1:]) != tuple(self.input_shape):
            raise InvalidInput(f"{where}: images are {_described(pictures.images)}; input_shape is {self.input_shape}")
        least, most = int(pictures.labels.min()), int(pictures.labels.max())
        if least < 0 or most >= self.classes:
            raise InvalidInput(f"{where}: labels go from {least} to {most}; allowed are 0 to {self.classes - 1}")

    def split(self, name: SplitName) -> Pictures:
        """One of the three parts by its name."""
        if name not in SPLITS:
            raise InvalidInput(f"no split is called {name!r}; allowed are {', '.join(SPLITS)}")
        pictures: Pictures = getattr(self, name)
        return pictures


def in_memory(
    name: str, classes: int, *, train: Split, validation: Split, test: Split, prepared: str | None = None
) -> DataSet:
    """A data set of pictures in memory; mean, deviation and fingerprint are computed from them."""
    if len(train) == 0:
        raise InvalidInput(f"data set {name}: train has no pictures")
    mean, std = channel_statistics(train.images)
    digest = hashlib.sha256(f"{classes} classes".encode())
    for split, part in zip(SPLITS, (train, validation, test), strict=True):
        digest.update(f"{split} {tuple(part.images.shape)}".encode())
        for tensor in (part.images, part.labels):
            digest.update(tensor.contiguous().numpy().data)
    channels, height, width = train.images.shape[1:]
    return DataSet(
        name=name,
        classes=classes,
        input_shape=(channels, height, width),
        mean=mean,
        std=std,
        train=train,
        validation=validation,
        test=test,
        fingerprint=digest.hexdigest(),
        prepared=prepared,
    )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], in [0, 1].

    Sums of integers below 2^53, so every machine gets the same digits. A constant channel gets deviation 1/255, not 0.
    """
    count = images.numel() // images.shape[1]
    total, squares = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for chunk in images.split(256):  # the wider copies stay small
        values = chunk.to(torch.float64)
        total += values.sum((0, 2, 3))
        squares += values.square_().sum((0, 2, 3))
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def stratified(labels: Tensor | Sequence[int], shares: tuple[float, ...], seed: int) -> tuple[Tensor, ...]:
    """Indices, ascending, of disjoint parts that hold these shares (they sum to 1) of every class."""
    assert math.isclose(sum(shares), 1.0)
    values = np.asarray(labels)
    # of NumPy's and PyTorch's generators, this one alone is promised to give the same numbers in every release
    random = np.random.RandomState(seed)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(values):
        indices = random.permutation(np.flatnonzero(values == label))
        ends = np.rint(np.cumsum(shares[:-1]) * len(indices)).astype(int)
        for part, chosen in zip(parts, np.split(indices, ends), strict=True):
            part.append(chosen)
    return tuple(torch.from_numpy(np.sort(np.concatenate(part))) for part in parts)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
