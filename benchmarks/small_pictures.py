"""Data sets for benchmarks: Fashion-MNIST and CIFAR-10, whole and stratified parts, some at half their size."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.training.datasets import cifar10_jpeg, fashion_mnist
from orchestrator.training.splits import DataSet, Split, in_memory, stratified

TRAIN, VALIDATION = 2400, 1200
PART = (10_000, 2_000)  # train and validation pictures of the larger parts


def fashion_small(root: Path, seed: int) -> DataSet:
    """2,400 and 1,200 pictures of Fashion-MNIST's train split, stratified, and its test split, all of 14 x 14."""
    return _part("fashion_small", fashion_mnist(root, seed), (TRAIN, VALIDATION), seed, halved=True)


@lru_cache(maxsize=1)  # a benchmark's worker asks for it many times over
def fashion_part(root: Path, seed: int) -> DataSet:
    """10,000 and 2,000 pictures of Fashion-MNIST's train split, stratified, and its test split, as they are."""
    return _part("fashion_part", fashion_mnist(root, seed), PART, seed, halved=False)


@lru_cache(maxsize=1)
def cifar_part(root: Path, seed: int) -> DataSet:
    """10,000 and 2,000 pictures of CIFAR-10's train split, from JPEGs, stratified, and its test split; all 16 x 16."""
    return _part("cifar_part", cifar10_jpeg(root, seed), PART, seed, halved=True)


@lru_cache(maxsize=1)
def fashion_whole(root: Path, seed: int) -> DataSet:
    """Fashion-MNIST as it is."""
    return fashion_mnist(root, seed)


@lru_cache(maxsize=1)
def cifar_whole(root: Path, seed: int) -> DataSet:
    """CIFAR-10 from JPEGs as it is."""
    return cifar10_jpeg(root, seed)


def _part(name: str, whole: DataSet, sizes: tuple[int, int], seed: int, *, halved: bool) -> DataSet:
    """So many train and validation pictures, all of them from the train split; the test split stays whole."""
    assert isinstance(whole.train, Split)
    assert isinstance(whole.test, Split)
    count = len(whole.train)
    shares = (sizes[0] / count, sizes[1] / count, 1 - sum(sizes) / count)
    train, validation, _ = stratified(whole.train.labels, shares, seed)
    parts = {"train": whole.train.part(train), "validation": whole.train.part(validation), "test": whole.test}
    return in_memory(name, 10, **{split: _halved(part) if halved else part for split, part in parts.items()})


def _halved(split: Split) -> Split:
    images: Tensor = F.avg_pool2d(split.images.float(), 2).round().to(torch.uint8)
    return Split(images, split.labels)
