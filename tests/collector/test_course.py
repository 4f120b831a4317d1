"""How a study came to its frontier: hypervolume over cost, and the point that each was made of."""

import numpy as np
import pandas as pd
import pytest

from orchestrator import Study
from orchestrator.collector import hypervolume
from orchestrator.collector.course import hypervolume_over_cost, previous_points, with_ancestors
from orchestrator.store import StageStore


def test_hypervolume_over_cost_equals_that_of_every_prefix() -> None:
    random = np.random.default_rng(0)
    stages = pd.DataFrame(
        {
            "train_flops": random.integers(1, 9, 200).astype(float),
            "accuracy": np.where(random.random(200) < 0.3, np.nan, random.random(200).round(2)),
            "flops_kept": random.random(200).round(2),
        }
    )
    cost, worth = hypervolume_over_cost(stages)
    spent = stages["train_flops"].cumsum()
    assert cost[-1] == spent.iloc[-1]
    assert list(cost) == sorted(cost)
    for at in range(0, 200, 7):
        known = stages[: at + 1].dropna()
        now = np.searchsorted(cost, spent.iloc[at], side="right") - 1
        assert (worth[now] if now >= 0 else 0.0) == pytest.approx(hypervolume(known["accuracy"], known["flops_kept"]))


def test_a_study_without_a_point_has_no_course(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = StageStore(tmp_path_factory.mktemp("young"))
    store.prepare()
    cost, worth = hypervolume_over_cost(Study(store.root).stages())
    assert (len(cost), len(worth)) == (0, 0)


def test_each_point_was_made_of_the_one_before_it(study: StageStore) -> None:
    asked = Study(study.root)
    points = asked.points()
    previous = dict(zip(points["key"], previous_points(asked.stages()), strict=True))
    iteration = dict(zip(points["key"], points["iteration"], strict=True))
    for key, before in previous.items():
        assert (before is None) == (iteration[key] == 0)
        assert before is None or iteration[before] == iteration[key] - 1
    last = points.loc[points["iteration"].idxmax(), "key"]
    assert sorted(iteration[key] for key in with_ancestors([last], previous)) == [0, 1, 2, 3]
