"""Confirmed figures in frames: a made-up study, some points of which were trained anew."""

import json
import math
from collections.abc import Callable

import pytest

from orchestrator import Study
from orchestrator.collector.confirmed import COLUMNS
from orchestrator.store import CONFIRMED, StageStore

Measure = Callable[..., str]


@pytest.fixture
def points(study: StageStore) -> list[str]:
    """The keys of the pruned part of the frontier."""
    front = Study(study.root).front()
    keys: list[str] = front[front["kind"] == "cut"]["key"].tolist()
    return keys


def test_nothing_confirmed_is_an_empty_frame(study: StageStore) -> None:
    asked = Study(study.root)
    confirmed = asked.confirmed()
    assert list(confirmed.columns) == list(COLUMNS)
    assert confirmed.empty
    assert asked.front()["confirmed_test_accuracy"].isna().all()
    assert not (study.root / CONFIRMED).exists()


def test_a_row_a_point_and_arm(study: StageStore, measure: Measure, points: list[str]) -> None:
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        measure(points[0], "pruned", seed, accuracy)
        measure(points[0], "scratch", seed, accuracy - 0.1)
    measure(points[1], "pruned", 0, 0.8)
    asked = Study(study.root)
    confirmed = asked.confirmed()
    assert confirmed[["key", "arm", "seeds"]].values.tolist() == [
        [points[0], "pruned", 3],
        [points[0], "scratch", 3],
        [points[1], "pruned", 1],
    ]
    first = confirmed.iloc[0]
    mean = (0.90 + 0.92 + 0.97) / 3
    assert first["test_accuracy_mean"] == pytest.approx(mean)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in (0.90, 0.92, 0.97)) / 2)
    assert first["test_accuracy_deviation"] == pytest.approx(deviation)
    assert first["optimism"] == pytest.approx(study.point(points[0]).accuracy - mean)
    assert math.isnan(confirmed["optimism"].iloc[1])
    assert math.isnan(confirmed["test_accuracy_deviation"].iloc[2])
    assert (first["flops"], first["params"], first["train_flops_mean"]) == (5001, 70, 1001.0)


def test_the_frontier_has_confirmed_figures_at_its_end(study: StageStore, measure: Measure, points: list[str]) -> None:
    for seed, accuracy in enumerate((0.90, 0.92)):
        measure(points[1], "pruned", seed, accuracy)
        measure(points[1], "dense", seed, 0.99)
    front = Study(study.root).front()
    assert list(front.columns)[-2:] == ["confirmed_test_accuracy", "confirmed_deviation"]
    found = front.set_index("key")
    assert found["confirmed_test_accuracy"][points[1]] == pytest.approx(0.91)
    assert found["confirmed_deviation"][points[1]] == pytest.approx(0.02 / math.sqrt(2))
    assert front["confirmed_test_accuracy"].notna().sum() == 1


def test_the_last_confirmation_of_a_point_counts(study: StageStore, measure: Measure, points: list[str]) -> None:
    for seed in (0, 1):
        measure(points[0], "pruned", seed, 0.8)
    measure(points[0], "pruned", 0, 0.9, length=2.0, with_validation=True)
    measure(points[0], "dense", 0, 0.7)
    (row,) = Study(study.root).confirmed().itertuples()
    assert (row.seeds, row.test_accuracy_mean, row.with_validation) == (1, 0.9, True)
    measure(points[0], "pruned", 1, 0.8)
    rows = Study(study.root).confirmed()
    assert rows[["arm", "seeds", "with_validation"]].values.tolist() == [["pruned", 2, False], ["dense", 1, False]]


def test_failures_and_what_cannot_be_read_are_left_out(study: StageStore, measure: Measure, points: list[str]) -> None:
    measure(points[0], "pruned", 0, 0.9)
    measure(points[0], "pruned", 1, 0.1, failure="diverged: the loss is NaN")
    torn = measure(points[0], "dense", 0, 0.9)
    (study.root / CONFIRMED / "stages" / torn / "tested.json").write_text("{")
    gone = measure(points[0], "scratch", 0, 0.9)
    (study.root / CONFIRMED / "stages" / gone).rename(study.root / "elsewhere")
    confirmed = Study(study.root).confirmed()
    assert confirmed[["arm", "seeds"]].values.tolist() == [["pruned", 1]]


def test_a_point_that_is_gone_has_no_optimism(study: StageStore, measure: Measure) -> None:
    measure("b" * 64, "pruned", 0, 0.9)
    (row,) = Study(study.root).confirmed().itertuples()
    assert math.isnan(row.optimism)


def test_an_index_without_these_figures_goes_on_working(study: StageStore, measure: Measure, points: list[str]) -> None:
    asked = Study(study.root)
    asked.front()
    index = (study.root / "index.parquet").read_bytes()
    measure(points[0], "pruned", 0, 0.9)
    assert asked.front()["confirmed_test_accuracy"].notna().sum() == 1
    assert (study.root / "index.parquet").read_bytes() == index
    assert len(asked.points()) == len(list(study.points()))


def test_what_front_status_and_best_say(study: StageStore, measure: Measure, points: list[str]) -> None:
    from typer.testing import CliRunner

    from orchestrator import cli

    def lines(*command: str) -> list[str]:
        result = CliRunner().invoke(cli.app, [*command, "--storage", str(study.root.parent)])
        assert result.exit_code == 0, result.output
        return [line.rstrip() for line in result.stdout.splitlines()]

    assert not [line for line in (*lines("front", "small"), *lines("status", "small")) if "confirmed" in line]
    for seed, accuracy in enumerate((0.90, 0.92)):
        measure(points[0], "pruned", seed, accuracy)
    measure(points[0], "scratch", 0, 0.8, with_validation=False)
    front = lines("front", "small")
    means = "top-1 on the test split, trained anew from fresh seeds: mean ± deviation of the sample"
    assert front[3] == f"confirmed: {means}"
    assert front[4].split()[-1] == "confirmed"
    assert front[5].endswith("0.9100 ± 0.0141")
    assert {line.split()[-1] for line in front[6:-1]} == {"-"}
    record = json.loads("\n".join(lines("front", "small", "--format", "json")))[0]
    assert record["confirmed_test_accuracy"] == pytest.approx(0.91)
    status = lines("status", "small")
    assert "confirmed    1 points, 3 models measured on the test split" in status
    assert f"Confirmed points of {study.root}" in status
    optimism = study.point(points[0]).accuracy - 0.91
    row = next(line for line in status if line.startswith(points[0][:12]))
    assert row.split() == f"{points[0][:12]} pruned 2 0.9100 ± 0.0141 {optimism:+.4f} 5 k 70 1 k no".split()
    best = lines("best", "small", "--max-flops", str(study.point(points[0]).flops))
    assert "confirmed              0.9100 ± 0.0141 on the test split, 2 seeds" in best
    assert "confirmed, scratch     0.8000 on the test split, 1 seed" in best
    header, first, *rest = [line.split(",") for line in lines("front", "small", "--format", "csv")]
    assert header[-2:] == ["confirmed_test_accuracy", "confirmed_deviation"]
    assert [float(figure) for figure in first[-2:]] == pytest.approx([0.91, 0.02 / math.sqrt(2)])
    assert {tuple(row[-2:]) for row in rest} == {("", "")}
    limit = str(study.point(points[0]).flops)
    copied = lines("best", "small", "--max-flops", limit, "--output", str(study.root / "copied"))
    assert "confirmed              0.9100 ± 0.0141 on the test split, 2 seeds" in copied
    assert f"wrote {study.root / 'copied' / 'weights.safetensors'}" in copied  # the search's own, as the figures above
