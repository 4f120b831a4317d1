"""Data sets by name, each with a fixed split into train, validation and test. None is downloaded but on request:

python -m orchestrator.training.datasets cifar10 --root data

torchvision and scikit-learn are slow to import: the sets that need them do so.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from orchestrator.network import user_function
from orchestrator.record import InvalidInput
from orchestrator.training.splits import DataSet, Split, in_memory, stratified

__all__ = ["DOWNLOADS", "LOADERS", "DataSet", "Split", "UnknownDataSet", "in_memory", "load", "names"]

FORMS = ("imagefolder:PATH", "imagefolder:PATH@SIDE", "package.module:function")
VALIDATION_SHARE = 0.1  # of the train pictures, where a set comes with train and test alone


class UnknownDataSet(InvalidInput):
    """A data set's name that nothing answers to."""


def digits(root: Path, seed: int) -> DataSet:
    """1,797 scans of hand-written digits, 8 x 8 in 17 greys, out of scikit-learn itself; 60 / 20 / 20 per cent."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).mul_(255 / 16).round_().to(torch.uint8).view(-1, 1, 8, 8)
    whole = Split(images, torch.from_numpy(labels).to(torch.int64))
    train, validation, test = (whole.part(part) for part in stratified(labels, (0.6, 0.2, 0.2), seed))
    prepared = "scikit-learn's greys, 0 to 16, times 255 / 16, rounded"
    return in_memory("digits", 10, train=train, validation=validation, test=test, prepared=prepared)


def mnist(root: Path, seed: int) -> DataSet:
    """70,000 hand-written digits, 28 x 28 grey, from ROOT/MNIST/raw."""
    return _from_idx("mnist", root, "MNIST", seed)


def fashion_mnist(root: Path, seed: int) -> DataSet:
    """70,000 pictures of clothes, 28 x 28 grey, from ROOT/FashionMNIST/raw."""
    return _from_idx("fashion_mnist", root, "FashionMNIST", seed)


def cifar10(root: Path, seed: int) -> DataSet:
    """60,000 pictures of 10 classes, 32 x 32 RGB, from ROOT/cifar-10-batches-py, checked against the originals' MD5."""
    return _from_cifar("cifar10", root, "CIFAR10", seed)


def cifar10_jpeg(root: Path, seed: int) -> DataSet:
    """CIFAR-10 whose pixels went through JPEG, in the layout of the original: ROOT/cifar10-jpeg/cifar-10-batches-py.

    Figures from it do not compare with published CIFAR-10 results. No MD5 is known, so none is checked.
    """
    return _from_cifar("cifar10_jpeg", root, "CIFAR10", seed, folder="cifar10-jpeg")


def cifar100(root: Path, seed: int) -> DataSet:
    """60,000 pictures of 100 classes, 32 x 32 RGB, from ROOT/cifar-100-python, checked against the originals' MD5."""
    return _from_cifar("cifar100", root, "CIFAR100", seed)


LOADERS: dict[str, Callable[[Path, int], DataSet]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar10_jpeg": cifar10_jpeg,
    "cifar100": cifar100,
}

DOWNLOADS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
"""The names that torchvision.datasets has for those it downloads."""


def names() -> tuple[str, ...]:
    """The data sets known by a plain name; the other forms of a name are in FORMS."""
    return tuple(LOADERS)


def load(name: str, *, root: str | os.PathLike[str] = "data", seed: int = 0) -> DataSet:
    """The named data set; `root` is the folder of the downloaded ones. The seed chooses the split and nothing else.

    A user's function is called with `root` and `seed` where its signature takes them, and returns a DataSet;
    `in_memory` makes one from tensors. Raises UnknownDataSet, or InvalidInput naming the missing or damaged file.
    """
    if name in LOADERS:
        return LOADERS[name](Path(root), seed)
    if name.startswith("imagefolder:"):
        from orchestrator.training import imagefolder

        return imagefolder.load(name, seed=seed)
    if not user_function.is_reference(name):
        close = difflib.get_close_matches(name, LOADERS, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UnknownDataSet(f"unknown data set {name!r}; {hint}allowed are {', '.join((*LOADERS, *FORMS))}")
    data = user_function.call(name, root=Path(root), seed=seed)
    if not isinstance(data, DataSet):
        raise InvalidInput(
            f"data set {name} must return a {DataSet.__module__}.DataSet; it returned {type(data).__name__}"
        )
    return data


def is_code(name: str) -> bool:
    """Whether `load` would run a user's function for this name."""
    return name not in LOADERS and not name.startswith("imagefolder:") and user_function.is_reference(name)


def _from_idx(name: str, root: Path, folder: str, seed: int) -> DataSet:
    from orchestrator.training import files

    raw = root / folder / "raw"
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    _check_present(name, root, [raw / f"{part}-{kind}" for part in ("train", "t10k") for kind in kinds])
    return _official(name, 10, files.idx_split(raw, "train"), files.idx_split(raw, "t10k"), seed)


def _from_cifar(name: str, root: Path, kind: str, seed: int, *, folder: str | None = None) -> DataSet:
    """A set in the layout of torchvision's `kind`; one in a folder of its own is not the original's to the byte."""
    import torchvision

    from orchestrator.training import files

    original = getattr(torchvision.datasets, kind)
    home = root / (folder or "") / original.base_folder
    parts = [
        [(home / file, md5 if folder is None else None) for file, md5 in part]
        for part in (original.train_list, original.test_list)
    ]
    _check_present(name, root, [file for part in parts for file, _ in part])
    classes = 100 if kind == "CIFAR100" else 10
    train, test = (files.cifar_split(part, classes=classes) for part in parts)
    return _official(name, classes, train, test, seed)


def _check_present(name: str, root: Path, needed: Sequence[Path]) -> None:
    for file in needed:
        if not os.path.isfile(file):  # Path.is_file raises in a folder that must not be read
            command = f"python -m orchestrator.training.datasets {name} --root {root}"
            remedy = f"get it by: {command}" if name in DOWNLOADS else "this set has no download"
            raise InvalidInput(f"data set {name}: {file}: no such file; {remedy}")


def _official(name: str, classes: int, train: Split, test: Split, seed: int) -> DataSet:
    """A set that comes with train and test: validation is a stratified tenth of train."""
    kept, taken = stratified(train.labels, (1 - VALIDATION_SHARE, VALIDATION_SHARE), seed)
    return in_memory(name, classes, train=train.part(kept), validation=train.part(taken), test=test)


def main(arguments: Sequence[str] | None = None) -> int:
    """Download a data set through torchvision, which checks what it gets."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.training.datasets", description=main.__doc__)
    parser.add_argument("name", choices=sorted(DOWNLOADS))
    parser.add_argument("--root", type=Path, default=Path("data"), help="the folder to put it in (default: data)")
    chosen = parser.parse_args(arguments)
    import torchvision

    try:
        for train in (True, False):
            getattr(torchvision.datasets, DOWNLOADS[chosen.name])(chosen.root, train=train, download=True)
        data = load(chosen.name, root=chosen.root)
    except (OSError, RuntimeError, InvalidInput) as error:  # torchvision's own, urllib's, ours
        print(f"error: {chosen.name} could not be downloaded to {chosen.root}: {error}", file=sys.stderr)
        return 2
    counts = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test pictures"
    print(f"{chosen.name} is in {chosen.root}: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
