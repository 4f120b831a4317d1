"""Widths of points beside the dense model, from model.json alone."""

from orchestrator import Study
from orchestrator.collector.widths import widths_of


def test_widths_of_points(full_study: Study) -> None:
    points = full_study.points()
    first = points[points["iteration"] == 1]["key"].iloc[0]
    second = points[points["iteration"] == 2]["key"].iloc[0]
    dense = points["key"].iloc[0]
    found = widths_of(full_study.store, [dense, first, second])
    assert found["groups"] == ["conv1", "conv2", "conv10"]
    assert found["dense"] == [32, 32, 64]
    assert set(found["left"]) == {first, second}
    assert found["left"][first][1:] == [32, 60]
    assert found["left"][second][1:] == [31, 60]


def test_a_point_without_a_sound_description_has_no_widths(full_study: Study) -> None:
    keys = full_study.points()["key"].tolist()[-2:]
    (full_study.path / "stages" / keys[0] / "model.json").write_text("{")
    (full_study.path / "stages" / keys[1] / "model.json").write_text('{"widths": {"conv1": 3}}')
    assert widths_of(full_study.store, keys) == {"groups": [], "dense": [], "left": {}}
