"""Picture folders: splits, sizes, augmentation, damaged files, and training through the DataLoader."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from orchestrator.network.architectures import build
from orchestrator.record import InvalidInput, Schedule
from orchestrator.training.augmentation import Augmentation
from orchestrator.training.batches import Batches
from orchestrator.training.datasets import load
from orchestrator.training.imagefolder import Files
from orchestrator.training.loop import evaluate, fit
from orchestrator.training.splits import SPLITS, Augmentable, DataSet

SIDE = 16


def write_pictures(folder: Path, count: int, *, classes: tuple[str, ...] = ("cat", "dog"), seed: int = 0) -> None:
    """Dark pictures of the first class, bright ones of the second; odd sizes, one greyscale."""
    random = np.random.default_rng(seed)
    for bright, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            height, width = random.integers(18, 40, size=2)
            pixels = random.integers(110 * bright, 110 * bright + 100, size=(height, width, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels)
            (picture.convert("L") if index == 0 else picture).save(folder / name / f"{index:03}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "train", 20)
    write_pictures(tmp_path / "val", 5, seed=1)
    return tmp_path


@pytest.fixture
def data(folder: Path) -> DataSet:
    return load(f"imagefolder:{folder}@{SIDE}")


def files_of(data: DataSet, split: str) -> set[str]:
    return {path for path, _ in getattr(data, split).samples}


def test_validation_is_carved_out_of_train(folder: Path, data: DataSet) -> None:
    assert (data.classes, data.input_shape) == (2, (3, SIDE, SIDE))
    assert [len(data.split(split)) for split in SPLITS] == [36, 4, 10]
    train, validation = files_of(data, "train"), files_of(data, "validation")
    assert train | validation == {str(path) for path in (folder / "train").rglob("*.png")}
    assert not train & validation
    assert sum("cat" in path for path in validation) == 2
    assert load(f"imagefolder:{folder}").input_shape == (3, 224, 224)


def test_it_says_how_files_become_pictures(data: DataSet) -> None:
    side = data.input_shape[1]
    said = f"RGB; the shorter side scaled to {round(side / 0.875)} (PIL, bilinear), the middle {side} x {side} cut out"
    assert data.prepared == said


def test_a_validation_folder_is_used_where_there_is_one(folder: Path) -> None:
    write_pictures(folder / "validation", 3)
    data = load(f"imagefolder:{folder}@{SIDE}")
    assert [len(data.split(split)) for split in SPLITS] == [40, 6, 10]


def test_the_fingerprint_is_of_names_sizes_and_split(folder: Path, data: DataSet) -> None:
    name = f"imagefolder:{folder}@{SIDE}"
    assert load(name).fingerprint == data.fingerprint
    prints = {data.fingerprint, load(name, seed=1).fingerprint, load(f"imagefolder:{folder}@32").fingerprint}
    write_pictures(folder / "validation", 1)
    prints.add(load(name).fingerprint)
    with (folder / "val" / "cat" / "001.png").open("ab") as file:
        file.write(b"more")
    prints.add(load(name).fingerprint)
    assert len(prints) == 5


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(folder: Path, data: DataSet) -> None:
    moved = folder.rename(folder.with_name("moved"))
    assert load(f"imagefolder:{moved}@{SIDE}").fingerprint == data.fingerprint


@pytest.mark.parametrize("how", ["none", "crop", "crop_flip"])
def test_pictures_are_squares_and_the_seed_decides(data: DataSet, how: Augmentation) -> None:
    pictures = data.train
    assert isinstance(pictures, Files)
    assert isinstance(pictures, Augmentable)
    state = torch.get_rng_state()
    one, two, other = (pictures.augmented(7, how, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert one.shape == (3, SIDE, SIDE)
    assert one.dtype == torch.uint8
    assert torch.equal(one, two)
    assert torch.equal(one, other) == (how == "none")
    assert torch.equal(pictures[7][0], pictures.augmented(7, "none", 5)[0])


def test_batches_are_the_same_with_any_number_of_processes(data: DataSet) -> None:
    device = torch.device("cpu")
    alone = Batches(data, data.train, 8, device, workers=0)
    expected = [list(alone.shuffled(seed, "crop_flip")) for seed in (3, 4)]
    batches = Batches(data, data.train, 8, device, workers=2)
    for seed, wanted in zip((3, 4), expected, strict=True):
        for (pictures, labels), (wanted_pictures, wanted_labels) in zip(
            batches.shuffled(seed, "crop_flip"), wanted, strict=True
        ):
            assert torch.equal(pictures, wanted_pictures)
            assert torch.equal(labels, wanted_labels)
    assert not torch.equal(expected[0][0][0], expected[1][0][0])


def test_a_network_learns_from_files(data: DataSet) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    schedule = Schedule(epochs=4, learning_rate=0.3, batch_size=8, augmentation="crop_flip")
    report = fit(model, data, schedule, seed=0)
    assert report.samples == 4 * 32  # 36 pictures: four full batches an epoch
    assert evaluate(model, data, "test", batch_size=4).accuracy == 1.0
    again = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    again.load_state_dict(nn.Sequential(*model).state_dict())
    assert fit(again, data, schedule, seed=1).losses != fit(again, data, schedule, seed=2).losses


def test_the_zoo_trains_on_files(data: DataSet) -> None:
    model = build("resnet20", classes=data.classes, input_shape=data.input_shape, seed=0)
    assert len(fit(model, data, Schedule(epochs=1, learning_rate=0.1, batch_size=16), seed=0).losses) == 1


def test_a_damaged_picture_is_named(folder: Path, data: DataSet) -> None:
    broken = folder / "val" / "dog" / "002.png"
    broken.write_bytes(broken.read_bytes()[:50])
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(InvalidInput, match=r"dog/002\.png: not a readable picture"):
        evaluate(model, data, "test")


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"{tmp_path}/train: no such folder; it must hold a folder of pictures"):
        load(f"imagefolder:{tmp_path}")
    (tmp_path / "train").mkdir()
    with pytest.raises(InvalidInput, match="train: Couldn't find any class folder"):
        load(f"imagefolder:{tmp_path}")
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(InvalidInput, match="train: Found no valid file for the classes cat"):
        load(f"imagefolder:{tmp_path}")


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("pictures")
    with pytest.raises(InvalidInput, match="train: no such folder"):
        load(f"imagefolder:{tmp_path}")


def test_other_classes_in_val_are_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", 2)
    write_pictures(tmp_path / "val", 2, classes=("cat", "wolf"))
    with pytest.raises(InvalidInput, match="val: its class folders are not those of train; they differ in dog, wolf"):
        load(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [("imagefolder:", "write imagefolder:PATH or"), ("imagefolder:here@4", "side is 4; it must be 8 or more")],
)
def test_a_bad_name_is_told_the_form(name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load(name)
