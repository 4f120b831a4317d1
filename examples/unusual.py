"""A small network with six constructs that pruning by layer types gets wrong, to be searched like any other.

orchestrator inspect examples.unusual:network --input 1x8x8 --classes 10
orchestrator search search_spaces/unusual.toml
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Standardised(nn.Conv2d):
    """1. A weight that is computed before it is used: every filter is normalised over what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        spread = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (spread + 1e-5), self.bias, self.stride, self.padding)


class HalfAround(nn.Module):
    """2. One half of the channels is worked on, the other goes round it; both meet in a concatenation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.work = nn.Conv2d(width, width, 1), nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.leave = nn.Conv2d(width + width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        around, worked = self.enter(x).chunk(2, 1)
        return x + self.leave(torch.cat([around, worked, F.relu(self.work(worked))], 1))


class Shuffled(nn.Module):
    """3. Channels are shuffled between two grouped convolutions."""

    def __init__(self, width: int, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = blocks
        self.first = nn.Conv2d(width, width, 3, padding=1, groups=blocks)
        self.second = nn.Conv2d(width, width, 3, padding=1, groups=blocks)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x)).unflatten(1, (self.blocks, -1)).transpose(1, 2).flatten(1, 2)
        return x + self.second(y)


class Gated(nn.Module):
    """4. One half of what a convolution makes gates the other; 5. a learned scale a channel, no module's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * F.glu(self.conv(x), dim=1)


class Unusual(nn.Module):
    """6. Two branches, of the picture and of its mirror image, share their weights and are joined."""

    def __init__(self, classes: int, channels: int, width: int = 32) -> None:
        super().__init__()
        self.stem, self.mirrored = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(channels, width, 3, padding=1)
        self.mirrored.weight = self.stem.weight
        self.join = Standardised(2 * width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(HalfAround(width), nn.MaxPool2d(2), Shuffled(width), Gated(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.stem(x), self.mirrored(x.flip(3))], 1)
        return self.head(self.blocks(F.relu(self.norm(self.join(F.relu(both))))).mean((2, 3)))


def network(classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Called by the search with the data set's classes and picture size."""
    return Unusual(classes, input_shape[0])
