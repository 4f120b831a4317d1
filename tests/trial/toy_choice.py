"""A network in which one layer is needed to its last channel and the other, eight times as wide, does nothing."""

from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.training.splits import DataSet, Split, in_memory

CLASSES = 8


class Toy(nn.Module):
    """Made, not trained: channel k of `needed` is class k's."""

    def __init__(self) -> None:
        super().__init__()
        self.needed = nn.Conv2d(CLASSES, CLASSES, 1, bias=False)
        self.useless = nn.Conv2d(CLASSES, 8 * CLASSES, 1, bias=False)
        self.head = nn.Linear(9 * CLASSES, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.needed.weight.copy_(torch.eye(CLASSES)[:, :, None, None])
            self.head.weight[:, :CLASSES] = torch.eye(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat((self.needed(x), self.useless(x)), 1).flatten(1))
        return out


def toy(classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    return Toy()


def pictures(root: Path, seed: int) -> DataSet:
    """One pixel of as many channels as classes: its own channel is bright."""
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> Split:
        labels = torch.arange(count) % CLASSES
        images = torch.randint(0, 100, (count, CLASSES, 1, 1), generator=generator)
        images[torch.arange(count), labels] = 255
        return Split(images.to(torch.uint8), labels)

    return in_memory("toy", CLASSES, train=split(320), validation=split(40), test=split(40))
