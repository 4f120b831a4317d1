"""The zoo: closed-form flops, shapes, option-A shortcuts."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from orchestrator.network.zoo import NETWORKS, BasicBlock

SHAPES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 8, 8)]


def flops(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions and linear layers for one picture, counted while it passes."""
    counted = 0

    def count(layer: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        positions = out[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
        counted += layer.weight.numel() * positions

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return counted


def cifarnet_flops(channels: int, sides: tuple[int, int, int, int]) -> int:
    """25 weights a pair of channels, at full, half and quarter side; a classifier on what is left."""
    full, half, quarter, last = (side * side for side in sides)
    return 25 * (channels * 32 * full + 32 * 32 * half + 32 * 64 * quarter) + 64 * last * 10


def resnet_flops(blocks: int) -> int:
    """A first convolution; 2 x blocks a stage, of which the first sees half the channels; a classifier."""
    first = 9 * 3 * 16 * 32**2
    stage1 = 2 * blocks * 9 * 16 * 16 * 32**2
    stage2 = (2 * blocks - 1) * 9 * 32 * 32 * 16**2 + 9 * 16 * 32 * 16**2
    stage3 = (2 * blocks - 1) * 9 * 64 * 64 * 8**2 + 9 * 32 * 64 * 8**2
    return first + stage1 + stage2 + stage3 + 64 * 10


def densenet40_flops() -> int:
    """Twelve layers a block, each from all channels so far to 12; transitions keep the width."""
    total, width = 9 * 3 * 24 * 32**2, 24
    for block, side in enumerate((32, 16, 8)):
        for _ in range(12):
            total += 9 * width * 12 * side**2
            width += 12
        if block < 2:
            total += width * width * side**2  # before its pooling
    return total + width * 10


def vgg16_flops() -> int:
    widths = [(64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)]
    total, channels = 512 * 10, 3
    for stage, made in enumerate(widths):
        for width in made:
            total += 9 * channels * width * (32 >> stage) ** 2
            channels = width
    return total


def preact_senet18_flops() -> int:
    total, width = 9 * 3 * 64 * 32**2 + 512 * 10, 64
    for stage in range(4):
        made, pixels = 64 << stage, (32 >> stage) ** 2
        total += 9 * (width * made + 3 * made * made) * pixels
        total += width * made * pixels if made != width else 0
        total += 2 * 2 * made * (made // 16)
        width = made
    return total


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifarnet", cifarnet_flops(3, (32, 16, 8, 4))),
        ("vgg16", vgg16_flops()),
        ("resnet20", resnet_flops(3)),
        ("resnet56", resnet_flops(9)),
        ("resnet110", resnet_flops(18)),
        ("densenet40", densenet40_flops()),
        ("preact_senet18", preact_senet18_flops()),
    ],
)
def test_flops_equal_the_closed_form_at_32(name: str, expected: int) -> None:
    assert flops(NETWORKS[name](10, (3, 32, 32)), (3, 32, 32)) == expected


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 40.6), ("resnet56", 125.5), ("resnet110", 252.9), ("densenet40", 282.9), ("vgg16", 313.2)],
)
def test_flops_are_those_of_the_papers(name: str, millions: float) -> None:
    assert round(flops(NETWORKS[name](10, (3, 32, 32)), (3, 32, 32)) / 1e6, 1) == millions


def test_the_counter_knows_resnet50() -> None:
    assert flops(torchvision.models.resnet50(), (3, 224, 224)) == 4089184256


def test_cifarnet_fits_smaller_pictures() -> None:
    assert flops(NETWORKS["cifarnet"](10, (1, 28, 28)), (1, 28, 28)) == cifarnet_flops(1, (28, 14, 7, 4))
    assert flops(NETWORKS["cifarnet"](10, (1, 8, 8)), (1, 8, 8)) == cifarnet_flops(1, (8, 4, 2, 1)) == 666240


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_every_shape(name: str, shape: tuple[int, int, int]) -> None:
    model = NETWORKS[name](7, shape)
    out = model(torch.randn(2, *shape))
    assert out.shape == (2, 7)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_option_a_shortcut_has_no_parameters_and_pads_with_zeros() -> None:
    block = BasicBlock(16, 32, 2)
    x = torch.randn(2, 16, 8, 8)
    out = block.shortcut(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"conv1", "norm1", "conv2", "norm2"}
