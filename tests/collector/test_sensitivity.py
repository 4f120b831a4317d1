"""The picture of a sensitivity with few groups and with many; nothing is left aside."""

from pathlib import Path

import pytest

from orchestrator.collector.sensitivity import Sensitivity, draw
from orchestrator.record import Sensed


def made_up(groups: int) -> Sensitivity:
    places = [(f"stage{nth}.conv1", share) for nth in range(groups) for share in (0.25, 0.75)]
    same = {"channels": 8, "flops": 5, "flops_kept": 0.5}
    measured = [
        Sensed(group=name, share=share, kept=round(8 * (1 - share)), accuracy=1 - share, **same)
        for name, share in places
    ]
    return Sensitivity(
        model="$x$", dataset="digits", definition={}, accuracy=0.9, flops=10, measured=tuple(reversed(measured))
    )


@pytest.mark.parametrize(("groups", "named"), [(1, 1), (10, 10), (11, 2)])
def test_groups_are_named_as_long_as_they_are_few(tmp_path: Path, groups: int, named: int) -> None:
    found = made_up(groups)
    draw(found, tmp_path / "picture.svg")
    first = (tmp_path / "picture.svg").read_text()
    assert sum(f"<!-- {name} -->" in first for name in found.by_group()) == named
    assert "<!-- $x$ on digits: each group pruned alone, nothing trained -->" in first.replace("\\$", "$")
    draw(found, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text() == first
    assert [file.name for file in tmp_path.iterdir()] == ["picture.svg"]


def test_measurements_by_group_and_place() -> None:
    found = made_up(2)
    assert [one.share for one in found.by_group()["stage0.conv1"]] == [0.25, 0.75]
    assert [one.group for one in found.only([("stage0.conv1", 0.75), ("stage9.conv1", 0.75)]).measured] == [
        "stage0.conv1"
    ]
