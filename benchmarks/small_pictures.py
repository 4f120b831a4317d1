"""A data set for benchmarks of searches: a part of Fashion-MNIST, at half its size."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.training.datasets import fashion_mnist
from orchestrator.training.splits import DataSet, Split, in_memory, stratified

TRAIN, VALIDATION = 2400, 1200


def fashion_small(root: Path, seed: int) -> DataSet:
    """2,400 and 1,200 pictures of Fashion-MNIST's train split, stratified, and its test split, all of 14 x 14."""
    whole = fashion_mnist(root, seed)
    count = len(whole.train)
    shares = (TRAIN / count, VALIDATION / count, 1 - (TRAIN + VALIDATION) / count)
    train, validation, _ = stratified(whole.train.labels, shares, seed)
    parts = {
        "train": _halved(whole.train.part(train)),
        "validation": _halved(whole.train.part(validation)),
        "test": _halved(whole.test),
    }
    return in_memory("fashion_small", 10, **parts)


def _halved(split: Split) -> Split:
    images: Tensor = F.avg_pool2d(split.images.float(), 2).round().to(torch.uint8)
    return Split(images, split.labels)
