"""Efficient channel attention: gates that a short convolution along channels computes from means.

Source: Wang et al., ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, CVPR 2020,
arXiv:1910.03151. Kernel sizes are what a network was built with: pruning changes widths, and never a kernel. Channels
keep their order when some leave, but those that stay get new neighbours, so that a cut is not the same as zeroing:
`couple` marks these channels inexact.
"""

import math

from torch import Tensor, nn


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
