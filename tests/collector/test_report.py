"""What a page is made of: page_data for all kinds of studies, and the file."""

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Study
from orchestrator.collector import report
from orchestrator.collector.page import html_of
from orchestrator.collector.report import COLUMNS, page_data, write_report
from orchestrator.record import InvalidInput
from orchestrator.store import StageStore

Measure = Callable[..., str]


def keys_at(data: dict[str, Any], places: list[int]) -> list[str]:
    return [data["points"]["columns"]["key"][place] for place in places]


def test_all_that_a_page_shows(full_study: Study) -> None:
    data = page_data(full_study)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    points = full_study.points()
    columns = data["points"]["columns"]
    assert set(columns) == set(COLUMNS)
    assert columns["key"] == points["key"].tolist()
    assert columns["accuracy"] == pytest.approx(points["accuracy"].tolist(), abs=1e-6)
    assert (data["points"]["total"], data["points"]["left_out"]) == (13, 0)
    assert keys_at(data, data["fronts"]["flops"]) == full_study.front()["key"].tolist()
    assert data["fronts"]["latency_ms"] == []
    assert data["study"]["name"] == "small"
    assert data["study"]["models"] == ["cifarnet"]
    assert data["course"]["hypervolume"][-1] == pytest.approx(full_study.status().hypervolume, abs=1e-6)
    assert data["course"]["train_flops"][-1] == full_study.status().train_flops
    assert data["stopped"] == [{"trial": 3, "reason": "what is left is dominated"}]
    assert [one["message"] for one in data["failures"]] == ["the loss is NaN in epoch 3"]
    assert "secret" not in json.dumps(data)  # tracebacks hold paths of machines
    assert data["state"]["driver"] is None
    assert data["commands"]["export"] == f"orchestrator export {full_study.path}"
    assert any(isinstance(piece, dict) for piece in data["commands"]["space"])
    assert {"flops", "accuracy", "train_flops", "hypervolume"} <= set(data["counted"])


def test_trajectories_and_widths_speak_of_places_in_the_columns(full_study: Study) -> None:
    data = page_data(full_study)
    columns, previous = data["points"]["columns"], data["points"]["previous"]
    for at, before in enumerate(previous):
        assert (before is None) == (columns["kind"][at] == "dense")
        assert before is None or columns["iteration"][before] == columns["iteration"][at] - 1
    left = data["widths"]["left"]
    assert {columns["kind"][int(place)] for place in left} == {"cut"}
    assert all(len(widths) == len(data["widths"]["groups"]) == 3 for widths in left.values())


def test_a_study_without_a_point_and_one_with_one(tmp_path: Path, add_trial: Any) -> None:
    store = StageStore(tmp_path / "young")
    store.prepare()
    data = page_data(Study(store.root))
    assert (data["points"]["total"], data["fronts"]["flops"], data["course"]["train_flops"]) == (0, [], [])
    assert "young" in html_of(data)
    add_trial(store, 1e-3, 0.3, iterations=0)
    data = page_data(Study(store.root))
    assert (data["points"]["total"], data["fronts"]["flops"]) == (1, [0])
    assert data["importance"][0]["silence"] is not None


def test_latencies_have_a_frontier_of_their_own(full_study: Study, add_trial: Any) -> None:
    add_trial(full_study.store, 1e-3, 0.25, iterations=2, latency=True)
    data = page_data(full_study)
    front = data["fronts"]["latency_ms"]
    assert len(front) == 2
    assert [data["points"]["columns"]["latency_ms"][at] for at in front] == pytest.approx([5.625, 7.5])


def test_very_many_points_are_thinned_out_but_never_the_frontier(
    full_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = page_data(full_study)
    monkeypatch.setattr(report, "SHOWN", 2)
    data = page_data(full_study)
    front = keys_at(whole, whole["fronts"]["flops"])
    assert keys_at(data, data["fronts"]["flops"]) == front
    kept = data["points"]["columns"]["key"]
    assert len(kept) + data["points"]["left_out"] == data["points"]["total"] == 13
    assert data["points"]["left_out"] > 0
    for key in front:
        place, steps = kept.index(key), 0
        while (before := data["points"]["previous"][place]) is not None:
            place, steps = before, steps + 1
        assert steps == data["points"]["columns"]["iteration"][kept.index(key)]


def test_confirmed_figures_are_in_the_page(full_study: Study, measure: Measure) -> None:
    assert page_data(full_study)["confirmed"] == []
    front = full_study.front()
    key = front["key"].iloc[0]
    for seed, accuracy in enumerate((0.90, 0.92)):
        measure(key, "pruned", seed, accuracy)
        measure(key, "scratch", seed, accuracy - 0.1)
    measure(key, "dense", 0, 0.95)
    measure("b" * 64, "pruned", 0, 0.5)  # a point that is gone
    data = page_data(full_study)
    rows = {row["arm"]: row for row in data["confirmed"]}
    assert list(rows) == ["pruned", "dense", "scratch"]
    assert keys_at(data, [row["point"] for row in rows.values()]) == [key] * 3
    assert (rows["pruned"]["seeds"], rows["pruned"]["test_accuracy_mean"]) == (2, pytest.approx(0.91))
    assert rows["pruned"]["test_accuracy_deviation"] == pytest.approx(0.02 / math.sqrt(2))
    assert rows["pruned"]["optimism"] == pytest.approx(front["accuracy"].iloc[0] - 0.91)
    assert (rows["dense"]["test_accuracy_deviation"], rows["dense"]["optimism"]) == (None, None)
    assert rows["pruned"]["with_validation"] is False


def test_how_a_search_goes_on(full_study: Study) -> None:
    def command() -> str | None:
        found: str | None = page_data(full_study)["commands"]["search"]
        return found

    def by(file: object) -> str:
        return shlex.join(["orchestrator", "search", str(file), "--storage", str(full_study.path.parent)])

    assert command() == by("small.toml")
    full_study.store.write_bytes("small.toml", b"")  # as rerun leaves it
    assert command() == by(full_study.path / "small.toml")
    full_study.store.write_json("study.json", {"name": "small", "merged": {}})
    assert command() is None


def test_the_file_is_whole_and_complete_in_itself(full_study: Study, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    size = write_report(full_study, path)
    text = path.read_text()
    assert path.stat().st_size == size < 200_000
    assert text.startswith("<!doctype html>")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["page.html", "results"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("page.pdf", r"page\.pdf: ends in '\.pdf'; a page ends in \.html or \.htm"),
        ("page", r"page: ends in 'nothing'; a page"),
        ("none/page.html", r"none/page\.html: cannot be written \(No such file"),
    ],
)
def test_a_path_that_cannot_be_written(full_study: Study, tmp_path: Path, name: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        write_report(full_study, tmp_path / name)


def test_the_page_of_very_many_points_is_not_large(many_points: Study) -> None:
    data = page_data(many_points)
    assert data["points"]["total"] == 100_000
    assert len(data["points"]["columns"]["key"]) == 100_000 - data["points"]["left_out"] < 15_000
    assert len(html_of(data)) < 10_000_000
