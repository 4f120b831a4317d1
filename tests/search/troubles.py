"""A user's models and data sets that fail, as `troubles:function`, each in its own way; for 1 x 8 x 8 pictures."""

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.training.datasets import DataSet

HUNG = Path("hung.txt")  # in the folder that the search was started in


class Small(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class Diverges(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (torch.inf if self.training else 1)


class OutOfMemory(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (torch.empty(2**50)[0] if self.training else 0)


class BreaksInTraining(Small):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("no such layer")
        return super().forward(x)


class BreaksInEvaluation(Small):
    """What measures the accuracy fails, on more pictures than tracing and verification show it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and len(x) > 2:
            raise RuntimeError("too many pictures")
        return super().forward(x)


class HangsOnce(Small):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and not HUNG.exists():
            HUNG.touch()
            while True:
                time.sleep(0.1)
        return super().forward(x)


def sound(classes: int) -> nn.Module:
    return Small(classes)


def diverges(classes: int) -> nn.Module:
    return Diverges(classes)


def out_of_memory(classes: int) -> nn.Module:
    return OutOfMemory(classes)


def breaks_in_training(classes: int) -> nn.Module:
    return BreaksInTraining(classes)


def breaks_in_evaluation(classes: int) -> nn.Module:
    return BreaksInEvaluation(classes)


def hangs_once(classes: int) -> nn.Module:
    return HangsOnce(classes)


def missing() -> DataSet:
    raise OSError("the disk with the pictures is not there")
