"""Data sets by name: the embedded one, small files in the originals' formats, damaged ones, the user's own."""

import hashlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from orchestrator.record import InvalidInput
from orchestrator.training import datasets
from orchestrator.training.datasets import DataSet, UnknownDataSet, is_code, load, names
from orchestrator.training.files import DamagedData
from orchestrator.training.splits import SPLITS, Split, SplitName

CIFAR10 = torchvision.datasets.CIFAR10
CIFAR100 = torchvision.datasets.CIFAR100

USERS = """
import torch
from orchestrator.training.datasets import Split, in_memory

told = {}

def pictures(root, seed):
    told.update(root=root, seed=seed)
    split = Split(torch.arange(96, dtype=torch.uint8).view(6, 1, 4, 4), torch.arange(6) % 3)
    return in_memory("mine", 3, train=split, validation=split, test=split)

def nothing():
    return None
"""


def write_idx(file: Path, values: np.ndarray) -> None:
    """The idx format: two zero bytes, 8 for uint8, the number of dimensions, their sizes in big-endian, the values."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    file.write_bytes(header + values.astype(np.uint8).tobytes())


def write_mnist(raw: Path, train: int = 100, test: int = 20) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        write_idx(raw / f"{part}-images-idx3-ubyte", random.integers(256, size=(count, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)


def write_cifar(folder: Path, original: Any, *, count: int = 40, labels: str = "labels", classes: int = 10) -> None:
    """Batches as Python 2 and the NumPy of its day pickled them."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for file, _ in (*original.train_list, *original.test_list):
        pixels = random.integers(256, size=(count, 3072), dtype=np.uint8)
        batch = {"batch_label": file, labels: [index % classes for index in range(count)], "data": pixels}
        text = pickle.dumps(batch, protocol=2).replace(b"numpy._core.", b"numpy.core.")
        old = text.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")  # a dtype's flags as 0 and 1
        assert old != text
        (folder / file).write_bytes(old)


def accept_md5s(monkeypatch: pytest.MonkeyPatch, original: Any, folder: Path) -> None:
    """Let the fabricated files pass as the originals."""
    for field in ("train_list", "test_list"):
        files = [file for file, _ in getattr(original, field)]
        sums = [[file, hashlib.md5((folder / file).read_bytes()).hexdigest()] for file in files]
        monkeypatch.setattr(original, field, sums)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load("digits")


def held(data: DataSet, name: SplitName) -> Split:
    split = data.split(name)
    assert isinstance(split, Split)
    return split


def pictures_of(data: DataSet, *splits: SplitName) -> list[bytes]:
    return [picture.numpy().tobytes() for split in splits or SPLITS for picture in held(data, split).images]


def test_digits_are_split_60_20_20_by_class(digits: DataSet) -> None:
    sizes = {split: len(digits.split(split)) for split in SPLITS}
    assert sizes == {"train": 1078, "validation": 360, "test": 359}
    totals = torch.bincount(torch.from_numpy(load_digits().target))
    for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        counts = torch.bincount(held(digits, split).labels, minlength=10)
        assert ((counts - totals * share).abs() <= 1).all()
    assert (digits.classes, digits.input_shape) == (10, (1, 8, 8))


def test_digits_parts_are_disjoint_and_complete(digits: DataSet) -> None:
    scans = (load_digits().data * (255 / 16)).round().astype(np.uint8)
    assert sorted(pictures_of(digits)) == sorted(scan.tobytes() for scan in scans)


def test_digits_split_never_changes(digits: DataSet) -> None:
    assert digits.fingerprint == "e36e67feb34e" + digits.fingerprint[12:]
    assert load("digits", seed=0).fingerprint == digits.fingerprint
    other = load("digits", seed=1)
    assert other.fingerprint != digits.fingerprint
    assert sorted(pictures_of(other)) == sorted(pictures_of(digits))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_are_read(tmp_path: Path, name: str, folder: str) -> None:
    write_mnist(tmp_path / folder / "raw")
    data = load(name, root=tmp_path)
    assert (data.name, data.classes, data.input_shape) == (name, 10, (1, 28, 28))
    assert [len(data.split(split)) for split in SPLITS] == [90, 10, 20]
    assert torch.bincount(held(data, "validation").labels).tolist() == [1] * 10
    original = np.random.default_rng(0).integers(256, size=(100, 28, 28)).astype(np.uint8)
    assert {picture.tobytes() for picture in original} == set(pictures_of(data, "train", "validation"))


def test_the_fingerprint_is_of_every_pixel_and_label(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw)
    prints = {load("mnist", root=tmp_path).fingerprint}
    for name in ("t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        content = bytearray((raw / name).read_bytes())
        content[-1] ^= 1
        (raw / name).write_bytes(content)
        prints.add(load("mnist", root=tmp_path).fingerprint)
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("name", "original", "labels", "count"),
    [("cifar10", CIFAR10, "labels", 40), ("cifar100", CIFAR100, "fine_labels", 1000)],
)
def test_cifar_batches_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, name: str, original: Any, labels: str, count: int
) -> None:
    classes = int(name.removeprefix("cifar"))
    folder = tmp_path / original.base_folder
    write_cifar(folder, original, count=count, labels=labels, classes=classes)
    accept_md5s(monkeypatch, original, folder)
    data = load(name, root=tmp_path)
    assert (data.classes, data.input_shape) == (classes, (3, 32, 32))
    whole = len(original.train_list) * count
    assert [len(data.split(split)) for split in SPLITS] == [whole * 9 // 10, whole // 10, count]
    first = np.random.default_rng(0).integers(256, size=(count, 3072), dtype=np.uint8).reshape(-1, 3, 32, 32)
    assert {picture.tobytes() for picture in first} <= set(pictures_of(data, "train", "validation"))


def test_cifar10_jpeg_needs_no_md5_and_a_folder_of_its_own(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar10-jpeg" / CIFAR10.base_folder, CIFAR10)
    assert load("cifar10_jpeg", root=tmp_path).name == "cifar10_jpeg"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_missing_set_is_named_with_the_command_that_gets_it(tmp_path: Path, name: str) -> None:
    command = f"python -m orchestrator.training.datasets {name} --root {tmp_path}"
    with pytest.raises(InvalidInput, match=rf"data set {name}: {tmp_path}/.*: no such file; get it by: {command}"):
        load(name, root=tmp_path)


def test_a_missing_set_without_a_download_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cifar10-jpeg/.*/data_batch_1: no such file; this set has no download"):
        load("cifar10_jpeg", root=tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3-ubyte", None, "train-images-idx3-ubyte: damaged: RuntimeError: shape"),
        ("train-images-idx3-ubyte", b"", "train-images-idx3-ubyte: damaged: ValueError"),
        ("t10k-images-idx3-ubyte", b"not an idx file at all", "t10k-images-idx3-ubyte: damaged: AssertionError"),
        ("t10k-labels-idx1-ubyte", bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 1]), "it has 2 labels for 20 pictures"),
        ("t10k-labels-idx1-ubyte", bytes([0, 0, 8, 1, 0, 0, 0, 20] + [11] * 20), "label 11 is met; allowed are 0 to 9"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw)
    (raw / file).write_bytes((raw / file).read_bytes()[:5000] if content is None else content)
    with pytest.raises(DamagedData, match=message):
        load("mnist", root=tmp_path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil-was-here",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "data_batch_3: damaged: .*(truncated|exhausted|end of file|Ran out)"),
        (b"", "data_batch_3: damaged: EOFError"),
        (pickle.dumps(Evil()), r"data_batch_3: damaged: UnpicklingError: it asks for posix\.mkdir"),
        (pickle.dumps({"data": 1}), "data_batch_3: damaged"),
        (pickle.dumps([1]), "data_batch_3: damaged: TypeError"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, 2), "it has 1 labels for 2 pictures"),
        (
            pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, 2),
            "label -1 is met; allowed are 0 to 9",
        ),
        (pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": []}, 4), "data_batch_3: damaged: it is empty"),
    ],
)
def test_a_damaged_cifar_batch_is_named_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar10-jpeg" / CIFAR10.base_folder
    write_cifar(folder, CIFAR10)
    file = folder / "data_batch_3"
    file.write_bytes(file.read_bytes()[:5000] if content is None else content)
    with pytest.raises(DamagedData, match=message):
        load("cifar10_jpeg", root=tmp_path)
    assert not Path("evil-was-here").exists()


def test_an_altered_original_is_told_by_its_md5(tmp_path: Path) -> None:
    write_cifar(tmp_path / CIFAR10.base_folder, CIFAR10)
    with pytest.raises(DamagedData, match="data_batch_1: damaged: its MD5 is not the original's, c99cafc1"):
        load("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar", "unknown data set 'cifar'; did you mean cifar10"),
        ("", "unknown data set ''; allowed are digits, mnist, .*, imagefolder:PATH, .*, package.module:function"),
    ],
)
def test_an_unknown_name_is_told_what_is_allowed(name: str, message: str) -> None:
    with pytest.raises(UnknownDataSet, match=message):
        load(name)
    assert "digits" in names()


def test_a_users_function_gives_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pictures.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    data = load("my_pictures:pictures", root=tmp_path, seed=4)
    assert sys.modules["my_pictures"].told == {"root": tmp_path, "seed": 4}
    assert (data.name, data.classes, data.input_shape) == ("mine", 3, (1, 4, 4))
    assert data.mean == (47.5 / 255,)
    assert isinstance(data.train, Split)
    with pytest.raises(
        InvalidInput, match=r"data set my_pictures:nothing must return a .*DataSet; it returned NoneType"
    ):
        load("my_pictures:nothing")


@pytest.mark.parametrize(
    ("name", "runs"),
    [("digits", False), ("imagefolder:birds", False), ("my_data:load", True), ("my.data:load", True)],
)
def test_which_names_are_code(name: str, runs: bool) -> None:
    assert is_code(name) is runs


def test_the_command_line_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def download(root: Path, *, train: bool, download: bool) -> None:
        asked.append((root, train, download))
        write_mnist(root / "MNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    assert datasets.main(["mnist", "--root", str(tmp_path)]) == 0
    assert asked == [(tmp_path, True, True), (tmp_path, False, True)]
    assert capsys.readouterr().out == f"mnist is in {tmp_path}: 90 train, 10 validation, 20 test pictures\n"


def test_the_command_line_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(root: Path, *, train: bool, download: bool) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    assert datasets.main(["mnist", "--root", str(tmp_path)]) == 2
    assert f"error: mnist could not be downloaded to {tmp_path}: <urlopen error no route" in capsys.readouterr().err
