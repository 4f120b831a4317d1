"""ECA-ResNets for ImageNet: torchvision's, with a gate in each block. Imported with the first that is built.

Source: Wang et al., ECA-Net, CVPR 2020, arXiv:1910.03151.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from orchestrator.network.zoo_attention import EfficientChannelAttention

InputShape = tuple[int, int, int]  # channels, height, width


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


def _eca_resnet(
    block: type[EcaBasicBlock | EcaBottleneck],
    blocks: tuple[int, int, int, int],
    kernels: str,
    classes: int,
    input_shape: InputShape,
) -> nn.Module:
    """kernels: one figure a stage, as the authors' table has them. Parameters have the names of their code."""
    model: nn.Module = ResNet(block, list(blocks), num_classes=classes)
    for stage, kernel in enumerate(kernels, start=1):
        for each in model.get_submodule(f"layer{stage}").children():
            each.eca = EfficientChannelAttention(int(kernel))
    if input_shape[0] != 3:
        conv = nn.Conv2d(input_shape[0], 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        model.conv1 = conv
    return model


def eca_resnet18(classes: int, input_shape: InputShape) -> nn.Module:
    """ECA-Net18 for ImageNet, kernels 3, 5, 7, 7: 1.81 G flops at 224 x 224, 11.69 M parameters (11.15 x 2^20).

    The kernels are those of the authors' table of results; their function for this network has 3 in every stage.
    """
    return _eca_resnet(EcaBasicBlock, (2, 2, 2, 2), "3577", classes, input_shape)


def eca_resnet34(classes: int, input_shape: InputShape) -> nn.Module:
    """ECA-Net34 for ImageNet, kernels 3, 3, 5, 7: 3.66 G flops at 224 x 224, 21.80 M parameters (20.79 x 2^20)."""
    return _eca_resnet(EcaBasicBlock, (3, 4, 6, 3), "3357", classes, input_shape)


def eca_resnet50(classes: int, input_shape: InputShape) -> nn.Module:
    """ECA-Net50 for ImageNet, kernels 3, 5, 5, 7: 4.09 G flops at 224 x 224, 25.56 M parameters (24.37 x 2^20)."""
    return _eca_resnet(EcaBottleneck, (3, 4, 6, 3), "3557", classes, input_shape)


ECA_RESNETS: dict[str, Callable[[int, InputShape], nn.Module]] = {
    "eca_resnet18": eca_resnet18,
    "eca_resnet34": eca_resnet34,
    "eca_resnet50": eca_resnet50,
}
