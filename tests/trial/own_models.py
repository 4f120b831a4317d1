"""A user's models, as `own_models:function`, for 1 x 8 x 8 pictures of ten classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Small(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class BreaksInTraining(Small):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("the user's own bug\nin two lines")
        return super().forward(x)


class Rigid(nn.Module):
    """Nothing in it can be pruned: its one layer makes the output."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Deceitful(Small):
    """On meta tensors, as it is traced, nothing is seen of what it does with the sixth channel of `a`."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        if x.device.type != "meta":
            x = x + 0.5 * torch.arange(x.shape[1], dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
        return self.head(F.relu(self.b(x)).mean((2, 3)))


class DeceitfulLater(Small):
    """As Deceitful, but nothing is to be seen of it before it is trained."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        if x.device.type != "meta":
            x = x + self.gain * torch.arange(x.shape[1], dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
        return self.head(F.relu(self.b(x)).mean((2, 3)))


class Noisy(Small):
    """Its dropout does not know of evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x))


def small(classes: int) -> nn.Module:
    return Small(classes)


def breaks_in_training(classes: int) -> nn.Module:
    return BreaksInTraining(classes)


def rigid(classes: int) -> nn.Module:
    return Rigid(classes)


def deceitful(classes: int) -> nn.Module:
    return Deceitful(classes)


def deceitful_later(classes: int) -> nn.Module:
    return DeceitfulLater(classes)


def weight_normed(classes: int) -> nn.Module:
    """Its second convolution computes its weight before it uses it."""
    model = Small(classes)
    nn.utils.parametrizations.weight_norm(model.b)
    return model


class OneFeature(nn.Module):
    """All that a layer reads but the pictures is one vector."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(64, 8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(x.flatten(1))))


def one_feature(classes: int) -> nn.Module:
    return OneFeature(classes)


def auxiliary_head(classes: int) -> nn.Module:
    """A second head that runs in training alone."""

    class Twice(Small):
        def __init__(self) -> None:
            super().__init__(classes)
            self.aside, self.second = nn.Conv2d(8, 6, 3), nn.Linear(6, classes)

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out + self.second(self.aside(self.a(x)).mean((2, 3))) if self.training else out

    return Twice()


def noisy(classes: int) -> nn.Module:
    return Noisy(classes)


def two_outputs(classes: int) -> nn.Module:
    model = Small(classes)
    model.register_forward_hook(lambda module, inputs, output: (output, output))
    return model


def eleven_classes() -> nn.Module:
    return Small(11)
