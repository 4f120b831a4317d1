"""Augmentation: shapes, seeds, and that a picture only moves."""

import pytest
import torch
from torch import Generator, Tensor

from orchestrator.training.augmentation import Augmentation, augment, mirrored, shifted


def pictures(count: int = 64, channels: int = 3, side: int = 32) -> Tensor:
    shape = (count, channels, side, side)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=Generator().manual_seed(1))


def draws(seed: int) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("how", ["none", "crop", "crop_flip"])
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 28), (3, 32)])
def test_shape_and_type_stay_and_the_seed_decides(how: Augmentation, channels: int, side: int) -> None:
    before = pictures(channels=channels, side=side)
    one, two, other = (augment(before, how, draws(seed)) for seed in (3, 3, 4))
    assert one.shape == before.shape
    assert one.dtype == torch.uint8
    assert torch.equal(one, two)
    assert torch.equal(one, other) == (how == "none")
    assert torch.equal(before, pictures(channels=channels, side=side))


def test_each_picture_is_a_window_of_itself_over_black() -> None:
    before = pictures(count=200, channels=2, side=8)
    after = shifted(before, 1, draws(0))
    padded = torch.zeros(200, 2, 10, 10, dtype=torch.uint8)
    padded[:, :, 1:9, 1:9] = before
    windows = torch.stack([padded[:, :, dy : dy + 8, dx : dx + 8] for dy in range(3) for dx in range(3)], 1)
    matches = (windows == after[:, None]).flatten(2).all(2)  # [200, 9]
    assert (matches.sum(1) == 1).all()
    assert matches.any(0).all()  # every shift is drawn


def test_half_of_the_pictures_are_mirrored() -> None:
    before = pictures(count=1000, channels=1, side=8)
    after = mirrored(before, draws(0))
    flipped = (after == before.flip(3)).flatten(1).all(1)
    kept = (after == before).flatten(1).all(1)
    assert (flipped ^ kept).all()
    assert 400 < flipped.sum() < 600


def test_large_shifts_grow_with_the_picture() -> None:
    white = torch.full((500, 1, 32, 32), 255, dtype=torch.uint8)
    black_rows = (augment(white, "crop", draws(0)) == 0).all(3).sum((1, 2))
    assert black_rows.max() == 4
