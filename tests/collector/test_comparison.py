"""A comparison's figures by hand: frontiers over seeds, one reference, budgets, costs counted once; what differs."""

import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from orchestrator import Study, cli
from orchestrator.collector.comparison import Comparison, Figure, as_table, compare, confirmed_of, mean_front
from orchestrator.collector.comparison_facts import OF_SEEDS, differences
from orchestrator.collector.comparison_page import comparison_data
from orchestrator.collector.comparison_picture import draw_comparison
from orchestrator.collector.query import EmptyStudy
from orchestrator.record import (
    Cost,
    InvalidInput,
    Point,
    Schedule,
    Stage,
    TrialRecord,
    TrialSpec,
    stage_key,
    whereabouts,
)
from orchestrator.stage_files import write_record
from orchestrator.store import StageStore

SCHEDULE: dict[str, Any] = {"epochs": 2, "learning_rate": 0.1}
DENSE = 1000  # flops
Cuts = Mapping[int, float]  # flops -> accuracy


class Made:
    """A study of points that a test states, in as many stages as it takes."""

    def __init__(self, folder: Path) -> None:
        self.store = StageStore(folder)
        self.store.prepare()
        self.store.write_json("study.json", {"name": folder.name})
        self.trials = 0

    @property
    def study(self) -> Study:
        return Study(self.store.root)

    def stage(self, parent: Stage | None, kind: Any, parameters: dict[str, Any], figures: dict[str, Any]) -> Stage:
        above = None if parent is None else parent.key
        key = stage_key(above, kind, parameters)
        cost = Cost(train_flops=100, seconds=1.0)
        stage = Stage(key=key, parent=above, kind=kind, parameters=parameters, cost=cost, **whereabouts())

        def compute(folder: Path) -> None:
            write_record(folder / "stage.json", stage)
            if figures:
                known = {"params": 10, "dataset": "digits", "model": "cifarnet", "cost": cost, "path_cost": cost}
                point = Point(key=key, parent=above, kind=kind, created=stage.created, **{**known, **figures})
                write_record(folder / "point.json", point)

        self.store.obtain(key, compute)
        return stage

    def dense(self, accuracy: float = 0.9, *, seed: int = 0, flops: int = DENSE, **about: Any) -> Stage:
        data = {"name": about.get("dataset", "digits"), "fingerprint": about.pop("fingerprint", "f" * 20)}
        model = about.get("model", "cifarnet")
        parameters = {"version": 1, "model": model, "data": data, "seed": seed, "schedule": SCHEDULE}
        figures = {"iteration": 0, "flops": flops, "flops_kept": 1.0, "accuracy": accuracy, "seed": seed, **about}
        return self.stage(None, "dense", parameters, figures)

    def cuts(
        self, dense: Stage, cuts: Cuts, *, method: str = "oicsr", seed: int = 0, epochs: int = 2, **about: Any
    ) -> list[Stage]:
        """A sparse stage that they share, and a cut for each."""
        sparse = self.stage(dense, "sparse", {"version": 1, "schedule": SCHEDULE, "penalty": method}, {})
        made = []
        for flops, accuracy in cuts.items():
            parameters = {
                "version": 1,
                "method": {"name": method, "options": about.get("options", {})},
                "pruning_ratio": 1 - flops / DENSE,
                "group_cap": about.get("group_cap", 0.5),
                "recovery": {**SCHEDULE, "epochs": epochs},
            }
            figures = {"iteration": 1, "flops": flops, "flops_kept": flops / DENSE, "accuracy": accuracy, "seed": seed}
            known = {name: about[name] for name in ("dataset", "model", "latency_ms") if name in about}
            made.append(self.stage(sparse, "cut", parameters, {**figures, "method": method, **known}))
        return made

    def end(self, method: str, *, seed: int = 0, pruning_ratio: float = 0.5) -> None:
        """Records a trial of this method."""
        short = Schedule(**SCHEDULE)
        spec = TrialSpec(
            model="cifarnet", dataset="digits", method=method, regularization_weight=0.0,
            pruning_ratio=pruning_ratio, iterations=1, seed=seed, dense=short, sparse=short, recovery=short,
        )  # fmt: skip
        self.store.record_trial(TrialRecord(index=self.trials, spec=spec, stages=(), created="2026-01-01"))
        self.trials += 1


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Made]:
    return lambda name: Made(tmp_path / name)


@pytest.fixture
def pair(make: Callable[[str], Made]) -> tuple[Study, Study]:
    """Two studies of one dense model: one is better at half of the flops, the other at a quarter."""
    first, second = make("first"), make("second")
    first.cuts(first.dense(), {500: 0.8, 250: 0.4})
    second.cuts(second.dense(), {500: 0.6, 250: 0.5})
    return first.study, second.study


@pytest.fixture
def seeds(make: Callable[[str], Made]) -> Study:
    """Two methods; of one there are two seeds, and only one of them has a point below 400 flops."""
    made = make("seeds")
    denses = [made.dense(0.9 + 0.02 * seed, seed=seed) for seed in (0, 1)]
    made.cuts(denses[0], {500: 0.8, 300: 0.5})
    made.cuts(denses[1], {600: 0.9, 400: 0.7}, seed=1)
    made.cuts(denses[0], {500: 0.7}, method="filter_norm")
    for method in ("oicsr", "oicsr", "filter_norm"):
        made.end(method)
    return made.study


def told(comparison: Comparison, *studies: Study) -> dict[str, tuple[str, ...]]:
    return {one.field: one.values for one in differences(comparison, studies)}


def test_figures_by_hand(pair: tuple[Study, Study]) -> None:
    comparison = compare(pair, at="500,0.25,0.1")
    assert comparison.by == "study"
    assert comparison.budgets == (500, 250, 100)
    assert comparison.reference_flops == DENSE
    first, second = comparison.lines
    assert comparison.hypervolume(first).mean == pytest.approx(0.25 * 0.4 + 0.5 * 0.8)
    assert comparison.hypervolume(second).mean == pytest.approx(0.25 * 0.5 + 0.5 * 0.6)
    assert [one.mean for one in comparison.accuracy_at(first)[:2]] == [0.8, 0.4]
    assert [one.mean for one in comparison.accuracy_at(second)[:2]] == [0.6, 0.5]
    nothing = comparison.accuracy_at(first)[2]
    assert nothing.seeds == 0
    assert math.isnan(nothing.mean)
    assert first.train_flops == 4 * 100  # dense, sparse and two cuts: what two points share once


def test_a_figure_of_several_seeds_is_a_mean_and_a_deviation() -> None:
    assert Figure.of([0.5, 0.7, None]) == Figure(mean=0.6, deviation=pytest.approx(math.sqrt(0.02)), seeds=2)
    assert math.isnan(Figure.of([0.5]).deviation)


def test_methods_of_one_study_over_their_seeds(seeds: Study) -> None:
    comparison = compare([seeds], at="600,500,300")
    assert comparison.by == "method"
    norm, oicsr = comparison.lines
    assert (norm.name, oicsr.name) == ("filter_norm", "oicsr")
    assert (norm.seeds, oicsr.seeds) == ((0,), (0, 1))
    assert (norm.trials, oicsr.trials) == (1, 2)
    at = comparison.accuracy_at(oicsr)
    assert [one.seeds for one in at] == [2, 2, 1]
    assert [one.mean for one in at] == pytest.approx([0.85, 0.75, 0.5])
    assert at[0].deviation == pytest.approx(math.sqrt(2 * 0.05**2))
    worth = [0.2 * 0.5 + 0.5 * 0.8, 0.2 * 0.7 + 0.4 * 0.9]
    assert comparison.hypervolume(oicsr).mean == pytest.approx(sum(worth) / 2)
    assert oicsr.train_flops == 8 * 100
    assert norm.train_flops == 3 * 100
    assert list(norm.dense["seed"]) == [0]  # the dense model that its point came from, and no other


def test_the_mean_frontier_begins_where_every_seed_has_a_point(seeds: Study) -> None:
    norm, oicsr = compare([seeds]).lines
    steps = mean_front(oicsr)
    assert steps[:, 0].tolist() == [400, 500, 600, 1000]
    assert steps[:, 1] == pytest.approx([0.6, 0.75, 0.85, 0.91])
    assert steps[0, 2] == pytest.approx(math.sqrt(2 * 0.1**2))
    assert mean_front(norm)[:, :2].tolist() == [[500, 0.7], [1000, 0.9]]
    assert np.isnan(mean_front(norm)[:, 2]).all()
    assert mean_front(norm, "latency_ms").shape == (0, 3)


def test_networks_of_different_size_have_one_reference(make: Callable[[str], Made]) -> None:
    large, small = make("large"), make("small")
    large.cuts(large.dense(), {500: 0.8})
    small.cuts(small.dense(0.85, flops=400, model="resnet20"), {200: 0.7}, model="resnet20")
    comparison = compare([large.study, small.study], at="0.4")
    assert comparison.reference_flops == 1000
    assert comparison.budgets == (400,)
    line = comparison.lines[1]
    assert comparison.hypervolume(line).mean == pytest.approx(0.2 * 0.7 + 0.6 * 0.85)
    found = told(comparison, large.study, small.study)
    assert found["model"] == ("cifarnet", "resnet20")
    assert found["flops of the dense model"] == ("1 k", "400")
    assert found["accuracy of the dense model"] == ("0.9000", "0.8500")


def test_methods_over_several_studies_share_their_lines(seeds: Study, pair: tuple[Study, Study]) -> None:
    comparison = compare([seeds, *pair], by="method")
    norm, oicsr = comparison.lines
    assert oicsr.studies == ("seeds", "first", "second")
    assert norm.studies == ("seeds",)
    keys = oicsr.points["key"]
    assert keys.is_unique  # the dense model that all have counts once
    assert oicsr.train_flops == 100 * len({*keys, *oicsr.points["parent"].dropna()})


def test_what_is_the_same_is_not_told(pair: tuple[Study, Study]) -> None:
    assert told(compare(pair), *pair) == {}


def test_what_differs_is_told(make: Callable[[str], Made]) -> None:
    first, second = make("first"), make("second")
    first.cuts(first.dense(), {500: 0.8})
    dense = second.dense(0.88, seed=3, fingerprint="e" * 20)
    second.cuts(dense, {500: 0.8, 300: 0.7}, seed=3, epochs=9, group_cap=0.3, options={"norm_parameters": True})
    second.end("oicsr")
    studies = first.study, second.study
    found = told(compare(studies), *studies)
    assert found == {
        "accuracy of the dense model": ("0.9000", "0.8800"),
        "seed": ("0", "3"),
        "fingerprint of the data": ("f" * 12, "e" * 12),
        "recovery.epochs": ("2", "9"),
        "group_cap": ("0.5", "0.3"),
        "trials": ("0", "1"),
        "train_flops": ("300", "400"),
    }


def test_options_are_told_where_a_method_is_in_both(make: Callable[[str], Made]) -> None:
    made = [make(name) for name in ("first", "second", "third")]
    for one, method, options in zip(
        made, ("oicsr", "oicsr", "filter_norm"), ({"a": 1}, {"a": 2}, {"b": 1}), strict=True
    ):
        flops = 400 + 100 * options.get("a", 0)  # so that both of its variants are on the frontier
        one.cuts(one.dense(), {flops: flops / DENSE}, method=method, options=options)
    studies = [one.study for one in made]
    assert told(compare(studies), *studies) == {"method_options.oicsr.a": ("1", "2", "-")}
    by_method = told(compare(studies, by="method"), *studies)
    assert by_method.keys() == {"method_options.oicsr.a", "train_flops"}
    assert by_method["method_options.oicsr.a"] == ("-", "1, 2")  # one line had two variants, the other one


@pytest.mark.parametrize("by", ["study", "method"])
def test_an_option_that_all_methods_have_is_compared_over_them(make: Callable[[str], Made], by: Any) -> None:
    made = [make(name) for name in ("first", "second")]
    for one, method, streams in zip(made, ("filter_norm", "oicsr"), (False, True), strict=True):
        options = {"residual_streams": streams, f"own_{method}": 1}
        one.cuts(one.dense(), {500: 0.8}, method=method, options=options)
    studies = [one.study for one in made]
    assert told(compare(studies, by=by), *studies) == {"method_options.residual_streams": ("False", "True")}


def test_options_exchanged_between_methods_are_told_of_each(make: Callable[[str], Made]) -> None:
    made = [make(name) for name in ("first", "second")]
    for one, streams in zip(made, (False, True), strict=True):
        dense = one.dense()
        for method, flops, wanted in (("oicsr", 500, streams), ("filter_norm", 400, not streams)):
            one.cuts(dense, {flops: flops / DENSE}, method=method, options={"residual_streams": wanted})
    studies = [one.study for one in made]
    assert told(compare(studies), *studies) == {
        "method_options.oicsr.residual_streams": ("False", "True"),
        "method_options.filter_norm.residual_streams": ("True", "False"),
    }


def test_seeds_of_unequal_settings_are_told(make: Callable[[str], Made]) -> None:
    made = make("made")
    for seed in (0, 1):
        dense = made.dense(seed=seed)
        for method in ("lasso", "oicsr"):
            made.cuts(dense, {500: 0.8}, method=method, seed=seed)
        made.end("oicsr", seed=seed)
    made.end("lasso", seed=0, pruning_ratio=0.3)
    made.end("lasso", seed=1)
    comparison = compare([made.study])
    found = told(comparison, made.study)
    assert found == {OF_SEEDS: ("1 each, in different settings", "1 each, in the same settings")}
    made.end("lasso", seed=1, pruning_ratio=0.3)
    made.end("oicsr", seed=2)
    found = told(compare([made.study]), made.study)
    assert found[OF_SEEDS][0] == "1 of seed 0, 2 of seed 1, in different settings"
    made.end("lasso", seed=0)
    found = told(compare([made.study]), made.study)
    assert OF_SEEDS not in found  # one trial of a third seed is in the same settings as those of the others


def test_what_is_printed_of_unequal_seeds_and_of_a_dense_model_alone(make: Callable[[str], Made]) -> None:
    made, dense = make("made"), make("dense")
    for seed in (0, 1):
        made.cuts(made.dense(seed=seed), {500: 0.8}, seed=seed)
        made.end("oicsr", seed=seed, pruning_ratio=0.3 + 0.2 * seed)
    dense.dense()
    lines = CliRunner().invoke(cli.app, ["compare", str(made.store.root), str(dense.store.root)]).stdout.splitlines()
    cells = [re.split(" {2,}", line.rstrip()) for line in lines]
    assert ["trials of each seed", "1 each, in different settings", "-"] in cells
    assert next(row for row in cells if row[0] == "dense")[1] == "-"
    assert lines[-1].startswith("trials of each seed: where their settings are different, ± is a deviation of settings")


def test_a_study_for_each_seed_with_the_same_settings_is_fair(make: Callable[[str], Made]) -> None:
    made = [make(f"seed{seed}") for seed in (0, 1)]
    for seed, one in enumerate(made):
        for method in ("lasso", "oicsr"):
            one.cuts(one.dense(seed=seed), {500: 0.8}, method=method, seed=seed)
            one.end(method, seed=seed)
    studies = [one.study for one in made]
    assert OF_SEEDS not in told(compare(studies, by="method"), *studies)
    made[1].end("lasso", seed=1, pruning_ratio=0.7)
    found = told(compare(studies, by="method"), *studies)
    assert found[OF_SEEDS] == ("1 of seed 0, 2 of seed 1, in different settings", "1 each, in the same settings")
    assert OF_SEEDS not in told(compare(studies), *studies)  # by study, each line has one seed


def test_the_trials_of_many_seeds_are_a_range(make: Callable[[str], Made]) -> None:
    made, other = make("made"), make("other")
    for seed in range(8):
        made.cuts(made.dense(seed=seed), {500: 0.8}, seed=seed)
        made.end("oicsr", seed=seed)
    made.end("oicsr", seed=3)
    other.cuts(other.dense(), {500: 0.8})
    studies = made.study, other.study
    assert told(compare(studies), *studies)[OF_SEEDS] == ("1 to 2 each, in different settings", "-")


def test_confirmed_figures_with_their_controls(full_study: Study, measure: Callable[..., str], make: Any) -> None:
    key = str(full_study.front()["key"].iloc[0])
    for arm, accuracy in (("pruned", 0.91), ("dense", 0.95), ("scratch", 0.89)):
        for seed in (1001, 1002):
            measure(key, arm, seed, accuracy + 0.01 * (seed - 1001))
    other = make("other")
    other.cuts(other.dense(0.97), {500: 0.9})
    comparison = compare([full_study, other.study])
    found = confirmed_of(comparison).set_index("arm")
    assert list(found["line"]) == ["small"] * 3
    assert list(found["method"]) == ["oicsr"] * 3
    assert found.loc["scratch", "test_accuracy_mean"] == pytest.approx(0.895)
    assert list(found["seeds"]) == [2, 2, 2]
    printed = CliRunner().invoke(cli.app, ["compare", str(full_study.path), str(other.store.root)]).stdout
    rows = [line.split() for line in printed.split("Confirmed points")[1].splitlines()]
    assert ["small", "oicsr", key[:12], "scratch", "2", "0.8950", "±", "0.0071"] in [row[:8] for row in rows]
    data = comparison_data(comparison, [full_study, other.study])
    assert [(row["arm"], row["test_accuracy_mean"]) for row in data["confirmed"]] == [
        ("pruned", 0.915), ("dense", 0.955), ("scratch", 0.895),
    ]  # fmt: skip


def test_a_table_has_a_row_for_each_line_and_budget(seeds: Study) -> None:
    table = as_table(compare([seeds], at="0.5,0.3"))
    assert list(zip(table["line"], table["budget_flops"], strict=True)) == [
        ("filter_norm", 500), ("filter_norm", 300), ("oicsr", 500), ("oicsr", 300),
    ]  # fmt: skip
    assert list(table["accuracy_seeds"]) == [1, 0, 2, 1]
    assert isinstance(table, pd.DataFrame)


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_the_overlay_as_a_picture(seeds: Study, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"overlay{ending}"
    draw_comparison(compare([seeds]), file)
    if ending == ".png":
        assert matplotlib.image.imread(file).shape[1] == 1080
    else:
        assert "filter_norm" in file.read_text()
    assert [path.name for path in tmp_path.glob(f"*{ending}")] == [file.name]


def test_a_picture_over_what_was_not_measured(seeds: Study, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"filter_norm: no point has latency_ms; trial.latency_batch"):
        draw_comparison(compare([seeds]), tmp_path / "overlay.svg", over="latency_ms")


def test_what_cannot_be_compared_is_one_line(make: Callable[[str], Made], pair: tuple[Study, Study]) -> None:
    other, empty = make("other"), make("empty")
    other.cuts(other.dense(dataset="cifar10"), {500: 0.8}, dataset="cifar10")
    first = pair[0]
    bad: dict[str, Callable[[], object]] = {
        "different data sets cannot be compared: cifar10 in other, digits in first$": lambda: compare(
            [first, other.study]
        ),
        "first: is given twice; give each study once": lambda: compare([first, first]),
        "first: has one method, oicsr; give a second study, or one of several methods": lambda: compare([first]),
        "first: is one study; give a second one, or --by method": lambda: compare([first], by="study"),
        "empty: no point so far": lambda: compare([first, empty.study]),
        "--at is 'many'; give a number above 0": lambda: compare(pair, at="500,many"),
        "--at -1: give flops, such as 50M, or a share of the dense model's, above 0": lambda: compare(pair, at="-1"),
    }
    for message, ask in bad.items():
        with pytest.raises(InvalidInput, match=message):
            ask()
    assert issubclass(EmptyStudy, InvalidInput)


def test_studies_of_one_name_are_told_apart_by_their_paths(make: Callable[[str], Made]) -> None:
    studies = []
    for folder in ("here", "there"):
        made = make(f"{folder}/same")
        made.cuts(made.dense(), {500: 0.8})
        studies.append(made.study)
    comparison = compare(studies)
    assert [line.name for line in comparison.lines] == [str(study.path) for study in studies]
    assert told(comparison, *studies) == {}


def test_no_torch_is_needed() -> None:
    program = (
        "import sys, orchestrator.collector.comparison_page, orchestrator.collector.comparison_picture; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
