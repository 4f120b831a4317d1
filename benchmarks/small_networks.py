"""A network for benchmarks of searches: other than CifarNet, and so small that a stage takes less than a second."""

import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.network.zoo import BasicBlock, InputShape


class SmallResNet(nn.Module):
    """The residual network of the CIFAR experiments, cut short: a stem and two blocks that halve the picture."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 64, 2))
        self.classifier = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        out: Tensor = self.classifier(x.mean((2, 3)))
        return out


def small_resnet(classes: int, input_shape: InputShape) -> nn.Module:
    """Five 3 x 3 convolutions, two shortcuts."""
    return SmallResNet(classes, input_shape[0])
