"""Batches: order, normalisation, leftovers, and what a user's own pictures must be."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from orchestrator.record import InvalidInput
from orchestrator.training.augmentation import Augmentation
from orchestrator.training.batches import Batches, loader_workers, preprocessing_of
from orchestrator.training.splits import DataSet, Pictures, Split, in_memory

CPU = torch.device("cpu")


class Listed:
    """A user's map-style pictures."""

    def __init__(self, split: Split, dtype: torch.dtype = torch.uint8) -> None:
        self.split, self.dtype = split, dtype

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.split.images[index].to(self.dtype), int(self.split.labels[index])


@pytest.fixture
def data() -> DataSet:
    images = torch.randint(256, (50, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(50) % 5)
    return in_memory("made_up", 5, train=split, validation=split, test=split)


def in_memory_split(pictures: Pictures) -> Split:
    assert isinstance(pictures, Split)
    return pictures


def test_pictures_are_normalised_in_order(data: DataSet) -> None:
    batches = list(Batches(data, data.test, 16, CPU).in_order())
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    pictures = torch.cat([pictures for pictures, _ in batches])
    assert pictures.dtype == torch.float32
    torch.testing.assert_close(pictures.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(pictures.std((0, 2, 3), correction=0), torch.ones(2))
    assert torch.equal(torch.cat([labels for _, labels in batches]), in_memory_split(data.test).labels)
    told = preprocessing_of(data)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (told.mean, told.std))
    torch.testing.assert_close((in_memory_split(data.test).images - 255 * mean) / (255 * std), pictures)


def test_an_epoch_has_full_batches_of_different_pictures(data: DataSet) -> None:
    batches = Batches(data, data.train, 16, CPU)
    drawn = [labels for _, labels in batches.shuffled(1)]
    assert [len(labels) for labels in drawn] == [16] * batches.full == [16] * 3
    pictures = torch.cat([pictures for pictures, _ in batches.shuffled(1)])
    assert len(pictures.unique(dim=0)) == 48
    assert torch.equal(torch.cat(drawn), torch.cat([labels for _, labels in batches.shuffled(1)]))
    assert not torch.equal(torch.cat(drawn), torch.cat([labels for _, labels in batches.shuffled(2)]))


def test_a_batch_larger_than_the_set_is_the_set(data: DataSet) -> None:
    batches = Batches(data, data.train, 1000, CPU)
    assert (batches.full, batches.batch_size) == (1, 50)
    assert [len(labels) for _, labels in batches.shuffled(0)] == [50]


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_pictures_read_one_by_one_make_the_same_batches(data: DataSet, augmentation: Augmentation) -> None:
    listed = replace(data, train=Listed(in_memory_split(data.train)))
    for one, other in zip(
        Batches(data, data.train, 16, CPU).shuffled(7, augmentation),
        Batches(listed, listed.train, 16, CPU).shuffled(7, augmentation),
        strict=True,
    ):
        assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_pictures_that_are_no_bytes_are_refused(data: DataSet) -> None:
    batches = Batches(data, Listed(in_memory_split(data.train), torch.float32), 16, CPU)
    with pytest.raises(InvalidInput, match=r"pictures must be torch\.uint8, 0 to 255; they are torch\.float32"):
        next(batches.in_order())


def test_processes_read_files_beside_a_gpu_only() -> None:
    assert loader_workers(CPU) == 0
    assert loader_workers(torch.device("cuda")) == min(16, torch.get_num_threads())
