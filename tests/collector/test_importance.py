"""Which settings explain what a study found, against cases whose answer is known."""

import numpy as np
import pytest

from orchestrator.collector.importance import SETTINGS, _explained, even_positions, importance_for_trials
from orchestrator.collector.query import Study

GRID = np.array([(w, r, k) for w in (1e-3, 1e-2, 1e-1, 1.0) for r in (0.2, 0.3, 0.4, 0.5) for k in (2.0, 4.0)])


def test_the_only_setting_that_matters_has_all_of_the_variance() -> None:
    found = _explained("accuracy", np.column_stack((GRID, 1 - GRID[:, 1])), SETTINGS)
    assert found.silence is None
    assert found.samples == len(GRID)
    assert found.explained is not None
    assert found.explained > 0.9
    shares = {name: share or 0.0 for name, share in found.settings.items()}
    assert shares["pruning_ratio"] == pytest.approx(1.0, abs=0.25)
    assert max(shares["regularization_weight"], shares["iterations"]) < 0.05


def test_a_setting_that_did_not_vary_has_no_share() -> None:
    table = np.column_stack((GRID[GRID[:, 2] == 2.0], np.log10(GRID[GRID[:, 2] == 2.0][:, 0])))
    found = _explained("accuracy", table, SETTINGS)
    assert found.settings["iterations"] is None
    assert found.settings["regularization_weight"] is not None


@pytest.mark.parametrize(
    ("table", "silence"),
    [
        (np.column_stack((GRID[:8], GRID[:8, 1])), "12 different pairs of .* are needed, there are 4"),
        (np.zeros((0, 4)), "there are 0"),
        (np.column_stack((GRID, np.full(len(GRID), 0.9))), "the same for all"),
        (np.column_stack((GRID, np.random.default_rng(0).random(len(GRID)))), "explain too little of it"),
    ],
)
def test_what_cannot_be_told_is_not_told(table: np.ndarray, silence: str) -> None:
    found = _explained("accuracy", table, SETTINGS)
    assert found.silence is not None
    with pytest.raises(AssertionError, match=silence):
        raise AssertionError(found.silence)
    assert set(found.settings.values()) == {None}


def test_a_study_of_few_trials_says_so(full_study: Study) -> None:
    found = importance_for_trials(full_study.store.trials(), full_study.stages())
    assert found.samples == 4
    assert found.silence == "12 different pairs of regularization_weight and pruning_ratio are needed, there are 4"


def test_even_positions() -> None:
    assert even_positions(3, 10).tolist() == [0, 1, 2]
    assert even_positions(100, 4).tolist() == [0, 33, 66, 99]
    assert even_positions(0, 4).tolist() == []
