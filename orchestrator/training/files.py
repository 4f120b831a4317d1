"""Reading the files that MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 come in. A damaged one is named."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import mnist
from torchvision.datasets.utils import check_integrity

from orchestrator.record import InvalidInput
from orchestrator.training.splits import Split

_BAD_CONTENT = (
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


class DamagedData(InvalidInput):
    """A data set's file that is there but does not hold what it must."""


def idx_split(folder: Path, prefix: str) -> Split:
    """Pictures and labels of a pair of idx files, `<prefix>-images-idx3-ubyte` and `<prefix>-labels-idx1-ubyte`."""
    images_file, labels_file = folder / f"{prefix}-images-idx3-ubyte", folder / f"{prefix}-labels-idx1-ubyte"
    try:
        file = images_file
        images = mnist.read_image_file(str(file))
        file = labels_file
        labels = mnist.read_label_file(str(file))
    except _BAD_CONTENT as error:
        raise _damaged(file, error) from error
    if len(images) != len(labels):
        raise DamagedData(f"{labels_file}: damaged: it has {len(labels)} labels for {len(images)} pictures")
    _check_labels(labels_file, labels, 10)
    return Split(images.unsqueeze(1), labels)


def cifar_split(files: Sequence[tuple[Path, str | None]], *, classes: int) -> Split:
    """Pictures and labels of CIFAR's pickled batches: (file, its MD5 or None where it is not to be checked)."""
    batches = [_cifar_batch(file, md5, classes) for file, md5 in files]
    return Split(torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches]))


def _cifar_batch(file: Path, md5: str | None, classes: int) -> Split:
    if md5 is not None and not check_integrity(str(file), md5):
        raise DamagedData(f"{file}: damaged: its MD5 is not the original's, {md5}")
    try:
        with file.open("rb") as stream:
            batch = _ArraysOnly(stream, encoding="latin1").load()
        pixels = torch.from_numpy(np.array(batch["data"], dtype=np.uint8, copy=True)).view(-1, 3, 32, 32)
        labels = torch.tensor(batch["labels"] if "labels" in batch else batch["fine_labels"], dtype=torch.int64)
    except _BAD_CONTENT as error:
        raise _damaged(file, error) from error
    if labels.shape != pixels.shape[:1]:
        raise DamagedData(f"{file}: damaged: it has {labels.numel()} labels for {len(pixels)} pictures")
    _check_labels(file, labels, classes)
    return Split(pixels, labels)


class _ArraysOnly(pickle.Unpickler):
    """Reads what a CIFAR batch is made of, and refuses anything else, so that no file can run code of its own."""

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 has moved its insides to numpy._core; files of old name numpy.core
        found = (module.replace("numpy.core.", "numpy._core."), name)
        if found == ("numpy", "dtype"):
            return _dtype
        if found in {("numpy", "ndarray"), ("numpy._core.multiarray", "_reconstruct"), ("_codecs", "encode")}:
            return super().find_class(*found)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _dtype(kind: str, align: int = 0, copy: int = 0) -> Any:
    """numpy.dtype with the flags as old pickles have them; NumPy itself now warns at 0 and 1."""
    return np.dtype(kind, align=bool(align), copy=bool(copy))


def _check_labels(file: Path, labels: torch.Tensor, classes: int) -> None:
    if len(labels) == 0:
        raise DamagedData(f"{file}: damaged: it is empty")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DamagedData(f"{file}: damaged: label {int(labels.max())} is met; allowed are 0 to {classes - 1}")


def _damaged(file: Path, error: BaseException) -> DamagedData:
    if isinstance(error, OSError) and error.strerror:
        return DamagedData(f"{file}: cannot be read: {error.strerror}")
    return DamagedData(f"{file}: damaged: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
