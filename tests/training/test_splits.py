"""What a data set is: what it refuses, statistics against a direct computation, stratified parts."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.record import InvalidInput
from orchestrator.training.splits import DataSet, MapStyle, Split, SplitName, channel_statistics, in_memory, stratified


def split(count: int = 6, channels: int = 3) -> Split:
    images = torch.randint(256, (count, channels, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(count) % 3)


def data() -> DataSet:
    return in_memory("made_up", 3, train=split(), validation=split(), test=split())


def test_statistics_equal_a_direct_computation() -> None:
    images = split(700).images
    mean, std = channel_statistics(images)
    values = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), values.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), values.std((0, 2, 3), correction=0))


def test_a_constant_channel_has_no_zero_deviation() -> None:
    assert channel_statistics(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)) == ((1.0,), (1 / 255,))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(0, 2**32 - 1))
def test_parts_are_disjoint_complete_and_stratified(labels: list[int], seed: int) -> None:
    shares = (0.6, 0.3, 0.1)
    parts = stratified(labels, shares, seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    values = torch.tensor(labels)
    totals = torch.bincount(values, minlength=5)
    for part, share in zip(parts, shares, strict=True):
        assert part.tolist() == sorted(part.tolist())
        assert ((torch.bincount(values[part], minlength=5) - totals * share).abs() <= 1).all()
    again = stratified(values, shares, seed)
    assert all(torch.equal(left, right) for left, right in zip(parts, again, strict=True))


def test_parts_are_drawn_at_random() -> None:
    labels = torch.zeros(100)
    kept, taken = stratified(labels, (0.9, 0.1), 0)
    assert taken.tolist() == [9, 21, 36, 44, 47, 64, 67, 83, 87, 96]  # as in every release, on every machine
    assert not torch.equal(taken, stratified(labels, (0.9, 0.1), 1)[1])
    assert len(kept) == 90


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            torch.zeros(2, 1, 4, 4),
            torch.zeros(2, dtype=torch.int64),
            r"images must be uint8 \[N, C, H, W\]; they are float",
        ),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"they are uint8 \[2, 4, 4\]"),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            torch.zeros(2),
            r"labels must be int64 \[2\]; they are float32 \[2\]",
        ),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"they are int64 \[3\]"),
    ],
)
def test_a_split_of_the_wrong_type_is_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Split(images, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 1}, "made_up: classes is 1; it must be 2 or more"),
        ({"classes": 2}, "made_up: train: labels go from 0 to 2; allowed are 0 to 1"),
        ({"mean": (0.5,)}, "made_up: mean is .*; it needs a number for each channel"),
        ({"mean": (0.5, 0.5, float("nan"))}, "made_up: mean is .*; it needs a number for each channel"),
        ({"std": (0.5, 0.5, 0.0)}, "made_up: std is .*; it must be above 0"),
        ({"input_shape": (3, 8, 8)}, r"made_up: train: images are uint8 \[6, 3, 4, 4\]; input_shape is \(3, 8, 8\)"),
        ({"validation": split(0)}, "made_up: validation has no pictures"),
    ],
)
def test_a_data_set_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        replace(data(), **change)


def test_a_set_needs_train_pictures() -> None:
    with pytest.raises(InvalidInput, match="made_up: train has no pictures"):
        in_memory("made_up", 3, train=split(0), validation=split(), test=split())


def test_a_split_is_found_by_name() -> None:
    made_up = data()
    assert made_up.split("validation") is made_up.validation
    with pytest.raises(InvalidInput, match="no split is called 'val'; allowed are train, validation, test"):
        made_up.split(cast("SplitName", "val"))


def test_pictures_read_one_by_one_are_taken_unread() -> None:
    class Pictures:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise AssertionError("read too early")

    pictures: MapStyle = Pictures()
    assert replace(data(), train=pictures).train is pictures
