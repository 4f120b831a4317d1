"""The picture of a frontier: what is to be seen, and the file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.collector import EmptyStudy, Study
from orchestrator.collector.picture import draw, picture_of
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
    assert picture.dense_cost == pytest.approx(12.345678)
    assert len(picture.steps) == 12
    assert 0 <= picture.floor < front["accuracy"].min()


@pytest.mark.parametrize(("name", "start"), [("front.svg", b"<?xml"), ("front.png", b"\x89PNG")])
def test_the_file_is_whole_and_the_same_each_time(study: StageStore, tmp_path: Path, name: str, start: bytes) -> None:
    path = tmp_path / name
    draw(Study(study.root), path)
    first = path.read_bytes()
    assert first.startswith(start)
    draw(Study(study.root), path)
    assert path.read_bytes() == first
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "results"])


def test_a_study_of_one_point(tmp_path: Path, add_trial: Callable[..., None]) -> None:
    store = StageStore(tmp_path / "one")
    add_trial(store, 1e-3, 0.3, iterations=0)
    draw(Study(store.root), tmp_path / "one.svg")
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
        draw(Study(study.root), tmp_path / name)


def test_nothing_to_draw(tmp_path: Path) -> None:
    StageStore(tmp_path / "young").prepare()
    with pytest.raises(EmptyStudy):
        draw(Study(tmp_path / "young"), tmp_path / "front.svg")
    assert not (tmp_path / "front.svg").exists()


@pytest.mark.parametrize(("show", "over"), [("trajectories", "params"), ("hypervolume", "flops")])
def test_other_pictures(study: StageStore, tmp_path: Path, show: str, over: str) -> None:
    draw(Study(study.root), tmp_path / "picture.svg", show=show, over=over)
    draw(Study(study.root), tmp_path / "front.svg")
    first, second = ((tmp_path / name).read_bytes() for name in ("picture.svg", "front.svg"))
    assert first.startswith(b"<?xml")
    assert first != second


def test_a_frontier_over_another_cost(study: StageStore, add_trial: Callable[..., None]) -> None:
    add_trial(study, 1e-3, 0.2, iterations=2, latency=True)
    picture = picture_of(Study(study.root), "latency_ms")
    assert picture.front[:, 0].tolist() == pytest.approx([6.4, 8.0])
    assert (len(picture.others), len(picture.dense), picture.dense_cost) == (0, 0, 8.0)
    assert picture.steps[0] == pytest.approx(picture.front[::-1])


def test_a_cost_that_was_not_measured(study: StageStore) -> None:
    with pytest.raises(InvalidInput, match=r"no point has latency_ms; trial\.latency_batch in the search space"):
        picture_of(Study(study.root), "latency_ms")


def test_a_name_that_looks_like_mathematics(study: StageStore, tmp_path: Path) -> None:
    draw(Study(study.root.rename(study.root.with_name(r"$\frac{$ & <b>"))), tmp_path / "name.svg")
    assert (tmp_path / "name.svg").is_file()
