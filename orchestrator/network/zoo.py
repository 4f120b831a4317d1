"""The papers' networks for pictures of 32 x 32 pixels and fewer. Each is a function of classes and input shape.

Those in zoo_eca_resnets.py are for larger ones, and take small ones too.

All take [N, C, H, W] with any C and H = W = 8, 28 or 32 (others too, as long as they do not shrink to nothing) and
end in [N, classes]. They are written for 32 x 32 and 3 channels; the notes say where a smaller picture changes
anything. Nothing is drawn at random but the weights, so `torch.manual_seed` fixes a network.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.network.zoo_attention import EfficientChannelAttention, kernel_size

InputShape = tuple[int, int, int]  # channels, height, width


def _conv3x3(made_from: int, made: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(made_from, made, 3, stride, padding=1, bias=False)


def _he_initialised(model: nn.Module) -> nn.Module:
    """Draw convolutions as He et al. 2015 (arXiv:1502.01852) do, by fan-out; linear layers keep PyTorch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class CifarNet(nn.Module):
    """Three 5 x 5 convolutions (32, 32, 64 channels), each followed by 3 x 3 pooling of stride 2; one classifier."""

    def __init__(self, classes: int, input_shape: InputShape) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 32, 5, padding=2, bias=False)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2, bias=False)
        self.norm3 = nn.BatchNorm2d(64)
        # three poolings, each of which rounds half a side up
        self.classifier = nn.Linear(64 * -(-height // 8) * -(-width // 8), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 3, stride=2, padding=1)
        x = F.avg_pool2d(F.relu(self.norm2(self.conv2(x))), 3, stride=2, padding=1, count_include_pad=False)
        x = F.avg_pool2d(F.relu(self.norm3(self.conv3(x))), 3, stride=2, padding=1, count_include_pad=False)
        out: Tensor = self.classifier(x.flatten(1))
        return out


def cifarnet(classes: int, input_shape: InputShape) -> nn.Module:
    """The small CIFAR-10 network of cuda-convnet and Caffe (Krizhevsky 2012), with batch norm.

    Departs from it in three ways. Batch norm stands in place of local response normalisation and of the convolutions'
    biases: methods that prune by norm scales need it, and no learning rate has to be tuned by hand. Poolings are padded
    by one pixel, so that 32 x 32, 28 x 28 and 8 x 8 pictures end at 4 x 4, 4 x 4 and 1 x 1. Weights start as He's.
    """
    return _he_initialised(CifarNet(classes, input_shape))


VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Plain 3 x 3 convolutions with batch norm, pooled after each stage; one linear classifier."""

    def __init__(self, classes: int, channels: int, stages: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for widths in stages:
            for width in widths:
                layers += [_conv3x3(channels, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            # rounding up keeps 28 x 28 and 8 x 8 pictures from shrinking to nothing; at 32 x 32 it changes nothing
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


def vgg16(classes: int, input_shape: InputShape) -> nn.Module:
    """VGG-16 for CIFAR (Simonyan & Zisserman 2015), batch norm, one linear layer in place of three: 313.2 M flops."""
    return _he_initialised(VGG(classes, input_shape[0], VGG16))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut without parameters (option A of He et al. 2016)."""

    def __init__(self, made_from: int, made: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(made_from, made, stride)
        self.norm1 = nn.BatchNorm2d(made)
        self.conv2 = _conv3x3(made, made)
        self.norm2 = nn.BatchNorm2d(made)
        self.stride = stride
        self.new_channels = made - made_from

    def shortcut(self, x: Tensor) -> Tensor:
        """Every other pixel, and zeros for the new channels, half of them before the old ones and half after."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        before = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of basic blocks with 16, 32 and 64 channels at full, half and quarter size."""

    block = BasicBlock

    def __init__(self, classes: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.conv = _conv3x3(channels, 16)
        self.norm = nn.BatchNorm2d(16)
        self.stage1 = self._stage(16, 16, blocks, stride=1)
        self.stage2 = self._stage(16, 32, blocks, stride=2)
        self.stage3 = self._stage(32, 64, blocks, stride=2)
        self.classifier = nn.Linear(64, classes)

    def _stage(self, made_from: int, made: int, blocks: int, *, stride: int) -> nn.Sequential:
        rest = (self.block(made, made, 1) for _ in range(blocks - 1))
        return nn.Sequential(self.block(made_from, made, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        out: Tensor = self.classifier(x.mean((2, 3)))
        return out


def resnet20(classes: int, input_shape: InputShape) -> nn.Module:
    """ResNet-20 for CIFAR (He et al. 2016, arXiv:1512.03385, section 4.2), option-A shortcuts: 40.6 M flops."""
    return _he_initialised(ResNet(classes, input_shape[0], blocks=3))


def resnet56(classes: int, input_shape: InputShape) -> nn.Module:
    """ResNet-56 for CIFAR (He et al. 2016), option-A shortcuts: 125.5 M flops."""
    return _he_initialised(ResNet(classes, input_shape[0], blocks=9))


def resnet110(classes: int, input_shape: InputShape) -> nn.Module:
    """ResNet-110 for CIFAR (He et al. 2016), option-A shortcuts: 252.9 M flops."""
    return _he_initialised(ResNet(classes, input_shape[0], blocks=18))


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 3 x 3 convolution; what it makes is put behind all that was made before."""

    def __init__(self, made_from: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(made_from)
        self.conv = _conv3x3(made_from, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(F.relu(self.norm(x)))), 1)


class Transition(nn.Module):
    """Between two dense blocks: batch norm, ReLU, 1 x 1 convolution of unchanged width, 2 x 2 average pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """Three dense blocks without bottlenecks or compression."""

    def __init__(self, classes: int, channels: int, *, first: int, layers: int, growth: int) -> None:
        super().__init__()
        width = first
        self.conv = _conv3x3(channels, width)
        self.features = nn.Sequential()
        for block in range(3):
            if block > 0:
                self.features.append(Transition(width))
            for _ in range(layers):
                self.features.append(DenseLayer(width, growth))
                width += growth
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.features(self.conv(x))))
        out: Tensor = self.classifier(x.mean((2, 3)))
        return out


def densenet40(classes: int, input_shape: InputShape) -> nn.Module:
    """DenseNet-40, k = 12 (Huang et al. 2017, arXiv:1608.06993), 24 first channels: 282.9 M flops.

    24 channels, twice the growth rate, is what the pruning papers start from; the paper's own plain DenseNet has 16.
    """
    return _he_initialised(DenseNet(classes, input_shape[0], first=24, layers=12, growth=12))


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate that sees the means of all channels."""

    def __init__(self, width: int, reduction: int = 16) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, width // reduction, 1)
        self.excite = nn.Conv2d(width // reduction, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        gated: Tensor = x * self.excite(gate).sigmoid()
        return gated


class GatedBlock(BasicBlock):
    """A basic block with a gate behind its second norm, before the sum."""

    def __init__(self, made_from: int, made: int, stride: int) -> None:
        super().__init__(made_from, made, stride)
        self.gate = self.make_gate(made)

    def make_gate(self, width: int) -> nn.Module:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.gate(self.norm2(self.conv2(out)))
        return F.relu(out + self.shortcut(x))


class EcaBlock(GatedBlock):
    """With efficient channel attention; the kernel is that of the width the block is built with."""

    def make_gate(self, width: int) -> nn.Module:
        return EfficientChannelAttention(kernel_size(width))


class SeBlock(GatedBlock):
    """With squeeze and excitation."""

    def make_gate(self, width: int) -> nn.Module:
        return SqueezeExcite(width)


class EcaResNet(ResNet):
    """With a gate along channels in each block."""

    block = EcaBlock


class SeResNet(ResNet):
    """With a squeeze-and-excite gate in each block."""

    block = SeBlock


def eca_resnet20(classes: int, input_shape: InputShape) -> nn.Module:
    """ResNet-20 for CIFAR with ECA gates (Wang et al. 2020, arXiv:1910.03151): 40.6 M flops.

    The paper has no networks for CIFAR. Gates are where it has them, behind a block's last norm; its formula gives
    kernels of 3 for 16, 32 and 64 channels.
    """
    return _he_initialised(EcaResNet(classes, input_shape[0], blocks=3))


def eca_resnet56(classes: int, input_shape: InputShape) -> nn.Module:
    """ResNet-56 for CIFAR with ECA gates, as eca_resnet20: 125.5 M flops."""
    return _he_initialised(EcaResNet(classes, input_shape[0], blocks=9))


def se_resnet20(classes: int, input_shape: InputShape) -> nn.Module:
    """ResNet-20 for CIFAR with SE gates (Hu et al. 2018, arXiv:1709.01507) behind each block's last norm: 40.6 M flops.

    Reduction 16, the paper's: hidden widths of 1, 2 and 4 channels in the three stages.
    """
    return _he_initialised(SeResNet(classes, input_shape[0], blocks=3))


def se_resnet56(classes: int, input_shape: InputShape) -> nn.Module:
    """ResNet-56 for CIFAR with SE gates, as se_resnet20: 125.5 M flops."""
    return _he_initialised(SeResNet(classes, input_shape[0], blocks=9))


class PreActSeBlock(nn.Module):
    """Norm and ReLU before each convolution, and a squeeze-and-excite gate on the branch before the sum."""

    def __init__(self, made_from: int, made: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(made_from)
        self.conv1 = _conv3x3(made_from, made, stride)
        self.norm2 = nn.BatchNorm2d(made)
        self.conv2 = _conv3x3(made, made)
        self.gate = SqueezeExcite(made)
        same = stride == 1 and made_from == made
        self.projection = None if same else nn.Conv2d(made_from, made, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(x))
        shortcut = x if self.projection is None else self.projection(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.norm2(out)))
        total: Tensor = self.gate(out) + shortcut
        return total


class PreActSeNet(nn.Module):
    """Four stages of pre-activation SE blocks with 64, 128, 256 and 512 channels."""

    def __init__(self, classes: int, channels: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        width = 64
        self.conv = _conv3x3(channels, width)
        self.features = nn.Sequential()
        for stage, count in enumerate(blocks):
            for block in range(count):
                made = 64 * 2**stage
                self.features.append(PreActSeBlock(width, made, 2 if stage > 0 and block == 0 else 1))
                width = made
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.features(self.conv(x))))
        out: Tensor = self.classifier(x.mean((2, 3)))
        return out


def preact_senet18(classes: int, input_shape: InputShape) -> nn.Module:
    """PreActSeNet-18: pre-activation ResNet-18 (He et al. 2016, arXiv:1603.05027) for CIFAR with SE gates.

    Gates as Hu et al. 2018 (arXiv:1709.01507), reduction 16, on the branch before the sum; 1 x 1 projections where the
    width changes; a last norm and ReLU before the classifier, as pre-activation needs.
    """
    return _he_initialised(PreActSeNet(classes, input_shape[0], blocks=(2, 2, 2, 2)))


def _for_imagenet(name: str, classes: int, input_shape: InputShape) -> nn.Module:
    from orchestrator.network.zoo_eca_resnets import ECA_RESNETS  # and torchvision, slow and of no use to the others

    return ECA_RESNETS[name](classes, input_shape)


NETWORKS: dict[str, Callable[[int, InputShape], nn.Module]] = {
    "cifarnet": cifarnet,
    "vgg16": vgg16,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "densenet40": densenet40,
    "preact_senet18": preact_senet18,
    "eca_resnet20": eca_resnet20,
    "eca_resnet56": eca_resnet56,
    "se_resnet20": se_resnet20,
    "se_resnet56": se_resnet56,
    **{name: partial(_for_imagenet, name) for name in ("eca_resnet18", "eca_resnet34", "eca_resnet50")},
}
