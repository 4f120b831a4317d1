"""ECA-ResNets: torchvision's, with a gate in each block. Imported when one is built, for torchvision is slow to import.

Source: Wang et al., ECA-Net, CVPR 2020, arXiv:1910.03151.
"""

from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from orchestrator.network.zoo_attention import EfficientChannelAttention, InputShape


class EcaBasicBlock(BasicBlock):  # type: ignore[misc]  # torchvision says no types
    """torchvision's block with a gate behind its last norm, before the sum."""

    eca: EfficientChannelAttention

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.eca(self.bn2(self.conv2(out)))
        result: Tensor = self.relu(out + shortcut)
        return result


class EcaBottleneck(Bottleneck):  # type: ignore[misc]
    """torchvision's block with a gate behind its last norm, before the sum."""

    eca: EfficientChannelAttention

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.eca(self.bn3(self.conv3(out)))
        result: Tensor = self.relu(out + shortcut)
        return result


def eca_resnet(
    kind: Literal["basic", "bottleneck"],
    blocks: tuple[int, int, int, int],
    kernels: str,
    classes: int,
    input_shape: InputShape,
) -> nn.Module:
    """kernels: one figure a stage, as the authors' table has them. Parameters have the names of their code."""
    block = {"basic": EcaBasicBlock, "bottleneck": EcaBottleneck}[kind]
    model: nn.Module = ResNet(block, list(blocks), num_classes=classes)
    for stage, kernel in enumerate(kernels, start=1):
        for each in model.get_submodule(f"layer{stage}").children():
            each.eca = EfficientChannelAttention(int(kernel))
    if input_shape[0] != 3:
        conv = nn.Conv2d(input_shape[0], 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        model.conv1 = conv
    return model
