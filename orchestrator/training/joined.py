"""A data set whose train part holds the validation pictures too: for the last training, when all is chosen."""

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from orchestrator.training.augmentation import Augmentation
from orchestrator.training.splits import Augmentable, DataSet, MapStyle, Pictures, Split


def joined(data: DataSet) -> DataSet:
    """The data set with its validation pictures in train, after the others; test is what it was.

    Its validation part is no longer held out: an accuracy on it says nothing. Pictures are normalised as before, with
    the figures of the smaller train part. The fingerprint is another one.
    """
    digest = hashlib.sha256(f"train and validation of {data.fingerprint}".encode())
    return replace(data, train=_after(data.train, data.validation), fingerprint=digest.hexdigest())


def _after(first: Pictures, second: Pictures) -> Pictures:
    if isinstance(first, Split) and isinstance(second, Split):
        return Split(torch.cat((first.images, second.images)), torch.cat((first.labels, second.labels)))
    if isinstance(first, Augmentable) and isinstance(second, Augmentable):
        return _AugmentableJoint(first, second)
    return _Joint(_map_style(first), _map_style(second))


def _map_style(pictures: Pictures) -> MapStyle:
    return _Held(pictures) if isinstance(pictures, Split) else pictures


class _Held:
    """A split in memory, read one by one."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self._split.images[index], int(self._split.labels[index])


class _Joint:
    """Two sets of pictures that are read one by one, the second after the first."""

    def __init__(self, first: MapStyle, second: MapStyle) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        count = len(self._first)
        return self._first[index] if index < count else self._second[index - count]


class _AugmentableJoint(_Joint):
    """Two of them that change their pictures themselves."""

    def __init__(self, first: Augmentable, second: Augmentable) -> None:
        super().__init__(first, second)
        self._parts = first, second

    def augmented(self, index: int, augmentation: Augmentation, seed: int) -> tuple[Tensor, int]:
        first, second = self._parts
        count = len(first)
        if index < count:
            return first.augmented(index, augmentation, seed)
        return second.augmented(index - count, augmentation, seed)
