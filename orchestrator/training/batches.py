"""Batches of a split, on the device and normalised, from memory or from files, in the same order under a seed."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from orchestrator.network.model_card import Preprocessing
from orchestrator.record import InvalidInput
from orchestrator.training.augmentation import WHOLE, Augmentation, augment
from orchestrator.training.splits import Augmentable, DataSet, MapStyle, Pictures, Split

Batch = tuple[Tensor, Tensor]


class Batches:
    """The batches of one split of a data set.

    A split held in memory is copied to the device once, if it takes no more than half of what is free there, and is
    augmented there a batch at a time. Any other is read by a DataLoader; it augments itself where it can (Augmentable),
    else each batch is augmented on the device.
    """

    def __init__(
        self, data: DataSet, pictures: Pictures, batch_size: int, device: torch.device, *, workers: int | None = None
    ) -> None:
        self.count = len(pictures)
        self.batch_size = min(batch_size, self.count)
        self._device = device
        self._source = (
            _Memory(pictures, device)
            if isinstance(pictures, Split)
            else _Files(pictures, device, loader_workers(device) if workers is None else workers)
        )
        self._mean = torch.tensor(data.mean, device=device).view(-1, 1, 1) * 255
        self._scale = 1 / (torch.tensor(data.std, device=device).view(-1, 1, 1) * 255)

    @property
    def full(self) -> int:
        """How many batches an epoch of `shuffled` has."""
        return self.count // self.batch_size

    def in_order(self) -> Iterator[Batch]:
        """Every picture once, unchanged, in the split's own order; the last batch may be smaller."""
        plan = torch.arange(self.count).split(self.batch_size)
        for pictures, labels in self._source.read(plan, "none", 0):
            yield self._normalised(pictures), labels

    def shuffled(self, seed: int, augmentation: Augmentation = "none", part: slice = WHOLE) -> Iterator[Batch]:
        """One epoch of full batches in an order drawn under the seed; what is left over sits this epoch out.

        Of each batch only the given part is read; its pictures are those of the whole batch to the last pixel.
        """
        order = torch.randperm(self.count, generator=Generator().manual_seed(seed))
        whole = order[: self.full * self.batch_size].split(self.batch_size)
        plan = tuple(indices[part] for indices in whole)
        changes = Generator(self._device).manual_seed(seed + 1)
        for pictures, labels in self._source.read(plan, augmentation, seed):
            augmented = self._source.augments
            changed = pictures if augmented else augment(pictures, augmentation, changes, of=self.batch_size, part=part)
            yield self._normalised(changed), labels

    def _normalised(self, pictures: Tensor) -> Tensor:
        return pictures.sub(self._mean).mul_(self._scale)


def preprocessing_of(data: DataSet) -> Preprocessing:
    """What `Batches` does to pictures, for those who feed the network without it."""
    return Preprocessing(mean=data.mean, std=data.std, prepared=data.prepared)


class _Memory:
    """Pictures held in memory: a batch is one look-up."""

    augments = False

    def __init__(self, split: Split, device: torch.device) -> None:
        home = device if _fits(split.images, device) else torch.device("cpu")
        self._images, self._labels, self._device = split.images.to(home), split.labels.to(home), device

    def read(self, plan: tuple[Tensor, ...], augmentation: Augmentation, seed: int) -> Iterator[Batch]:
        for indices in plan:
            here = indices.to(self._images.device, non_blocking=True)
            yield self._images[here].to(self._device), self._labels[here].to(self._device)


def _fits(images: Tensor, device: torch.device) -> bool:
    return device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


class _Files:
    """Pictures read one by one, by a DataLoader whose processes live as long as this does."""

    def __init__(self, pictures: MapStyle, device: torch.device, workers: int) -> None:
        self.augments = isinstance(pictures, Augmentable)
        self._device = device
        self._plan: list[list[Any]] = []  # read anew by the loader at the start of each pass
        self._loader = DataLoader(
            _Drawn(pictures) if isinstance(pictures, Augmentable) else cast("Dataset[Any]", pictures),
            batch_sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # a fork of a process with threads, such as a Ray worker, may hang
            multiprocessing_context="forkserver" if workers else None,
            generator=Generator().manual_seed(0),
        )

    def read(self, plan: tuple[Tensor, ...], augmentation: Augmentation, seed: int) -> Iterator[Batch]:
        self._plan[:] = [indices.tolist() for indices in plan]
        if self.augments:
            self._plan[:] = [[(index, augmentation, seed) for index in indices] for indices in self._plan]
        for pictures, labels in self._loader:
            if pictures.dtype != torch.uint8:
                raise InvalidInput(f"a data set's pictures must be torch.uint8, 0 to 255; they are {pictures.dtype}")
            yield pictures.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)


class _Drawn(Dataset[tuple[Tensor, int]]):
    """Items of an Augmentable by (index, augmentation, seed of the epoch), whichever process draws them."""

    def __init__(self, pictures: Augmentable) -> None:
        self._pictures = pictures

    def __getitem__(self, ticket: tuple[int, Augmentation, int]) -> tuple[Tensor, int]:
        index, augmentation, seed = ticket
        # the CPU's generator takes 32 bits; an odd factor keeps the seeds of one epoch apart
        return self._pictures.augmented(index, augmentation, (seed + index * 2654435761) % 2**32)


def loader_workers(device: torch.device) -> int:
    """How many processes read files: one for each thread this process was given, beside a GPU; none on a CPU.

    A trial on the CPU has its cores busy with the network.
    """
    return min(16, torch.get_num_threads()) if device.type == "cuda" else 0
