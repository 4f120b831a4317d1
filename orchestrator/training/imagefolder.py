"""Pictures in class folders, read from disk one by one: sets too large for memory, of any picture size."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as T

from orchestrator.record import InvalidInput
from orchestrator.training.augmentation import Augmentation
from orchestrator.training.splits import DataSet, stratified

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Sample = tuple[str, int]  # a file and its label


class Files:
    """Picture files as squares of one side; greyscale ones become RGB.

    Plain: the shorter side scaled to side / 0.875, the middle cut out. Augmented: a random part of 8 to 100 % of the
    area, scaled (Szegedy et al. 2015), and with crop_flip mirrored one time in two. Both are ImageNet's usual.
    """

    def __init__(self, samples: Sequence[Sample], side: int) -> None:
        self.samples = tuple(samples)
        self.side = side

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture, label = self._read(index)
        middle = T.center_crop(T.resize(picture, scaled(self.side)), [self.side, self.side])
        return T.pil_to_tensor(middle), label

    def augmented(self, index: int, augmentation: Augmentation, seed: int) -> tuple[Tensor, int]:
        """The picture changed at random, as the seed has it."""
        if augmentation == "none":
            return self[index]
        picture, label = self._read(index)
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            picture = transforms.RandomResizedCrop(self.side)(picture)
            if augmentation == "crop_flip":
                picture = transforms.RandomHorizontalFlip()(picture)
        return T.pil_to_tensor(picture), label

    def _read(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        try:
            with Image.open(path) as picture:
                return picture.convert("RGB"), label
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise InvalidInput(f"{path}: not a readable picture: {error}") from error


def scaled(side: int) -> int:
    """What the shorter side of a picture is scaled to, before the middle is cut out."""
    return round(side / 0.875)


def load(name: str, *, seed: int) -> DataSet:
    """The data set `imagefolder:PATH` or `imagefolder:PATH@SIDE` (in pixels; 224 if not told).

    PATH/train and PATH/val hold a folder for each class. Test is PATH/val. Validation is PATH/validation if there is
    one, else a stratified tenth of PATH/train, though no more than about 10,000 pictures. Pixels are normalised by
    ImageNet's mean and deviation. The fingerprint is of names and sizes: the contents are not read.
    """
    match = re.fullmatch(r"imagefolder:(.+?)(?:@(\d+))?", name)
    if match is None:
        raise InvalidInput(f"data set {name!r}: write imagefolder:PATH or imagefolder:PATH@SIDE")
    root, side = Path(match[1]).expanduser(), int(match[2] or 224)
    if side < 8:
        raise InvalidInput(f"data set {name!r}: the pictures' side is {side}; it must be 8 or more")
    classes, train = _scan(root / "train")
    others, test = _scan(root / "val")
    _same_classes(root / "val", others, classes)
    if (root / "validation").exists():
        others, validation = _scan(root / "validation")
        _same_classes(root / "validation", others, classes)
    else:
        train, validation = _carved(train, seed)
    return DataSet(
        name=name,
        classes=len(classes),
        input_shape=(3, side, side),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        train=Files(train, side),
        validation=Files(validation, side),
        test=Files(test, side),
        fingerprint=_fingerprint(root, side, (train, validation, test)),
        prepared=f"RGB; the shorter side scaled to {scaled(side)} (PIL, bilinear), the middle {side} x {side} cut out",
    )


def _scan(folder: Path) -> tuple[list[str], list[Sample]]:
    try:
        found = ImageFolder(str(folder))
    except OSError as error:
        problem = str(error).partition("\n")[0] if folder.is_dir() else "no such folder"
        raise InvalidInput(f"{folder}: {problem}; it must hold a folder of pictures for each class") from error
    return found.classes, sorted(found.samples)


def _same_classes(folder: Path, classes: list[str], expected: list[str]) -> None:
    if classes != expected:
        differing = ", ".join(sorted(set(classes) ^ set(expected))[:3])
        raise InvalidInput(f"{folder}: its class folders are not those of train; they differ in {differing}")


def _carved(samples: list[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    share = min(0.1, 10_000 / len(samples))
    kept, taken = stratified([label for _, label in samples], (1 - share, share), seed)
    return [samples[index] for index in kept.tolist()], [samples[index] for index in taken.tolist()]


def _fingerprint(root: Path, side: int, parts: Sequence[Sequence[Sample]]) -> str:
    digest = hashlib.sha256(f"side {side}".encode())
    for part in parts:
        digest.update(f"\0{len(part)}".encode())
        for path, label in part:
            relative = Path(path).relative_to(root).as_posix()
            digest.update(f"\0{relative}\0{label}\0{os.stat(path).st_size}".encode())
    return digest.hexdigest()
