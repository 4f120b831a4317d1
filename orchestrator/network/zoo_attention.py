"""Networks with efficient channel attention: gates that a short convolution along channels computes from means.

Source: Wang et al., ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, CVPR 2020,
arXiv:1910.03151. Kernel sizes are what a network was built with: pruning changes widths, and never a kernel. Channels
keep their order when some leave, but those that stay get new neighbours, so that a cut is not the same as zeroing:
`couple` marks these channels inexact.
"""

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

InputShape = tuple[int, int, int]  # channels, height, width


def kernel_size(channels: int) -> int:
    """(log2(channels) + 1) / 2 rounded down, and up to the next odd number, as the authors' code has the paper's k.

    3 for 16 to 64 channels, 5 for 128 to 1,024, 7 for 2,048.
    """
    size = int((math.log2(channels) + 1) / 2)
    return size if size % 2 else size + 1


class EfficientChannelAttention(nn.Module):
    """Scale every channel by a gate that sees the means of it and of its neighbours."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()  # [N, 1, C]
        gated: Tensor = x * gate.transpose(1, 2).unsqueeze(-1)  # [N, C, 1, 1]
        return gated


def _eca_resnet(
    kind: Literal["basic", "bottleneck"],
    blocks: tuple[int, int, int, int],
    kernels: str,
    classes: int,
    input_shape: InputShape,
) -> nn.Module:
    from orchestrator.network.zoo_eca_blocks import eca_resnet  # and torchvision, which other networks do without

    return eca_resnet(kind, blocks, kernels, classes, input_shape)


def eca_resnet18(classes: int, input_shape: InputShape) -> nn.Module:
    """ECA-Net18 for ImageNet, kernels 3, 5, 7, 7: 1.81 G flops at 224 x 224, 11.69 M parameters (11.15 x 2^20).

    The kernels are those of the authors' table of results; their function for this network has 3 in every stage.
    """
    return _eca_resnet("basic", (2, 2, 2, 2), "3577", classes, input_shape)


def eca_resnet34(classes: int, input_shape: InputShape) -> nn.Module:
    """ECA-Net34 for ImageNet, kernels 3, 3, 5, 7: 3.66 G flops at 224 x 224, 21.80 M parameters (20.79 x 2^20)."""
    return _eca_resnet("basic", (3, 4, 6, 3), "3357", classes, input_shape)


def eca_resnet50(classes: int, input_shape: InputShape) -> nn.Module:
    """ECA-Net50 for ImageNet, kernels 3, 5, 5, 7: 4.09 G flops at 224 x 224, 25.56 M parameters (24.37 x 2^20)."""
    return _eca_resnet("bottleneck", (3, 4, 6, 3), "3557", classes, input_shape)


ECA_RESNETS: dict[str, Callable[[int, InputShape], nn.Module]] = {
    "eca_resnet18": eca_resnet18,
    "eca_resnet34": eca_resnet34,
    "eca_resnet50": eca_resnet50,
}
