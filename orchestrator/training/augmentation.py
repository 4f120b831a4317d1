"""Random changes to training pictures, on whole batches, wherever the batch lies."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Augmentation = Literal["none", "crop", "crop_flip"]
WHOLE = slice(None)


def augment(
    pictures: Tensor, how: Augmentation, generator: Generator, *, of: int | None = None, part: slice = WHOLE
) -> Tensor:
    """Shift each picture by up to an eighth of its side (4 pixels of 32) over black, and mirror one in two.

    pictures: [N, C, H, W] of any type, before normalisation; the generator must be of their device. They may be a
    part of a batch of `of` pictures: each is then changed as it would be with the whole batch.
    Source: the CIFAR papers' usual recipe (He et al. 2016, section 4.2).
    """
    if how == "none":
        return pictures
    pictures = shifted(pictures, max(1, round(pictures.shape[2] / 8)), generator, of=of, part=part)
    return mirrored(pictures, generator, of=of, part=part) if how == "crop_flip" else pictures


def shifted(pictures: Tensor, most: int, generator: Generator, *, of: int | None = None, part: slice = WHOLE) -> Tensor:
    """Each picture moved by -most to most pixels in both directions; what comes into view is zero."""
    count, _, height, width = pictures.shape
    device = pictures.device
    padded = F.pad(pictures, (most, most, most, most))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)  # [N, dy, dx, C, H, W], a view
    down, right = torch.randint(2 * most + 1, (2, of or count), generator=generator, device=device)[:, part]
    return windows[torch.arange(count, device=device), down, right]


def mirrored(pictures: Tensor, generator: Generator, *, of: int | None = None, part: slice = WHOLE) -> Tensor:
    """One picture in two, drawn at random, with left and right exchanged."""
    drawn = torch.rand(of or len(pictures), 1, 1, 1, generator=generator, device=pictures.device)
    return torch.where(drawn[part] < 0.5, pictures.flip(3), pictures)
