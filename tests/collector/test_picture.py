"""The picture of a frontier: what is to be seen, and the file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.collector import EmptyStudy, Study
from orchestrator.collector.picture import draw_front, picture_of
from orchestrator.record import InvalidInput
from orchestrator.store import StageStore


def test_what_is_to_be_seen(study: StageStore) -> None:
    asked = Study(study.root)
    picture = picture_of(asked)
    front = asked.front()
    assert picture.title == "small: cifarnet on digits, 13 points"
    assert picture.front[:, 1].tolist() == front["accuracy"].tolist()
    assert picture.front[:, 0].tolist() == pytest.approx((front["flops"] / 1e6).tolist())
    assert len(picture.front) + len(picture.others) == 13
    assert picture.dense.tolist() == [[12.345678, 0.97]]
    assert picture.dense_flops == pytest.approx(12.345678)
    assert 0 <= picture.floor < front["accuracy"].min()


@pytest.mark.parametrize(("name", "start"), [("front.svg", b"<?xml"), ("front.png", b"\x89PNG")])
def test_the_file_is_whole_and_the_same_each_time(study: StageStore, tmp_path: Path, name: str, start: bytes) -> None:
    path = tmp_path / name
    draw_front(Study(study.root), path)
    first = path.read_bytes()
    assert first.startswith(start)
    draw_front(Study(study.root), path)
    assert path.read_bytes() == first
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "results"])


def test_a_study_of_one_point(tmp_path: Path, add_trial: Callable[..., None]) -> None:
    store = StageStore(tmp_path / "one")
    add_trial(store, 1e-3, 0.3, iterations=0)
    draw_front(Study(store.root), tmp_path / "one.svg")
    assert "one: cifarnet" in picture_of(Study(store.root)).title


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("front.pdf", r"front\.pdf: ends in '\.pdf'; a picture ends in \.svg or \.png"),
        ("front", r"front: ends in 'nothing'; a picture"),
        ("none/front.svg", r"none/front\.svg: cannot be written \(No such file"),
    ],
)
def test_a_path_that_cannot_be_drawn_to(study: StageStore, tmp_path: Path, name: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        draw_front(Study(study.root), tmp_path / name)


def test_nothing_to_draw(tmp_path: Path) -> None:
    StageStore(tmp_path / "young").prepare()
    with pytest.raises(EmptyStudy):
        draw_front(Study(tmp_path / "young"), tmp_path / "front.svg")
    assert not (tmp_path / "front.svg").exists()
