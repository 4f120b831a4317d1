"""Train and validation pictures as one part: in memory, from files, and pictures that change themselves."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from orchestrator.training.augmentation import Augmentation
from orchestrator.training.batches import Batches
from orchestrator.training.datasets import load
from orchestrator.training.joined import joined
from orchestrator.training.splits import Augmentable, DataSet, Split


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load("digits")


class Files:
    """Pictures read one by one."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self._split.images[index], int(self._split.labels[index])


class Changing(Files):
    """Pictures that change themselves."""

    def augmented(self, index: int, augmentation: Augmentation, seed: int) -> tuple[Tensor, int]:
        image, label = self[index]
        return (image if augmentation == "none" else image.flip(-1)), label


def contents(data: DataSet) -> tuple[Tensor, Tensor]:
    """Pictures and labels of the train part, normalised, in order."""
    batches = list(Batches(data, data.train, 512, torch.device("cpu")).in_order())
    return torch.cat([pictures for pictures, _ in batches]), torch.cat([labels for _, labels in batches])


def test_validation_pictures_follow_those_of_train(data: DataSet) -> None:
    whole = joined(data)
    assert isinstance(whole.train, Split)
    assert isinstance(data.train, Split)
    assert isinstance(data.validation, Split)
    assert len(whole.train) == len(data.train) + len(data.validation)
    assert whole.train.images[: len(data.train)].equal(data.train.images)
    assert whole.train.images[len(data.train) :].equal(data.validation.images)
    assert whole.train.labels[len(data.train) :].equal(data.validation.labels)


def test_test_and_normalisation_stay_and_the_fingerprint_does_not(data: DataSet) -> None:
    whole = joined(data)
    assert whole.test is data.test
    assert (whole.mean, whole.std) == (data.mean, data.std)
    assert whole.fingerprint != data.fingerprint
    assert whole.fingerprint == joined(data).fingerprint


def test_no_test_picture_is_trained_on(data: DataSet) -> None:
    whole = joined(data)
    assert isinstance(whole.train, Split)
    assert isinstance(whole.test, Split)
    trained = {image.numpy().tobytes() for image in whole.train.images}
    assert len(trained & {image.numpy().tobytes() for image in whole.test.images}) == 0
    assert len(whole.train) + len(whole.test) == 1797


@pytest.mark.parametrize("kinds", [(Files, Files), (Split, Files), (Changing, Files), (Changing, Changing)])
def test_pictures_from_files_are_joined_as_those_in_memory(data: DataSet, kinds: tuple[type, type]) -> None:
    parts = {
        name: split if kind is Split else kind(split)
        for name, kind, split in zip(("train", "validation"), kinds, (data.train, data.validation), strict=True)
    }
    mixed = joined(replace(data, **parts))
    assert isinstance(mixed.train, Augmentable) == (kinds == (Changing, Changing))
    for found, expected in zip(contents(mixed), contents(joined(data)), strict=True):
        assert found.equal(expected)


def test_pictures_that_change_themselves_still_do(data: DataSet) -> None:
    assert isinstance(data.train, Split)
    assert isinstance(data.validation, Split)
    whole = joined(replace(data, train=Changing(data.train), validation=Changing(data.validation)))
    assert isinstance(whole.train, Augmentable)
    last = len(data.train)
    for index, image in ((3, data.train.images[3]), (last, data.validation.images[0])):
        assert whole.train.augmented(index, "crop_flip", 0)[0].equal(image.flip(-1))
