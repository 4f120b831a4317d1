"""The rule that ends a trial: all that is to come would be dominated by the margin."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_trial import points_of

from orchestrator.record import TrialSpec
from orchestrator.search.space import SearchSpace, Stopping
from orchestrator.search.stopping import reason_to_stop

FRONTIER = [(0.05, 0.90), (0.2, 0.95), (0.5, 0.97)]
RULE = Stopping(rule="dominated", margin=0.02)


@pytest.fixture
def spec(space: SearchSpace) -> TrialSpec:
    return space.spec({"regularization_weight": 0.01, "pruning_ratio": 0.5, "iterations": 4})


def after(spec: TrialSpec, iteration: int, accuracy: float, flops_kept: float) -> str | None:
    points = points_of(spec)[: iteration + 1]
    points[-1] = points[-1].model_copy(update={"accuracy": accuracy, "flops_kept": flops_kept})
    return reason_to_stop(spec, points, FRONTIER, RULE)


def test_what_stays_below_the_frontier_is_stopped_with_its_figures(spec: TrialSpec) -> None:
    assert after(spec, 2, 0.87, 0.25) == (
        "after iteration 2 of 4: accuracy 0.8700 at flops_kept 0.250; the frontier has 0.9000 or more wherever the "
        "rest would come to lie (margin 0.02)"
    )


@pytest.mark.parametrize(
    ("iteration", "accuracy", "flops_kept"),
    [
        (2, 0.89, 0.25),  # within the margin
        (2, 0.80, 0.15),  # its last iteration would have 0.0375 of the flops, where there is nothing yet
        (0, 0.10, 1.0),  # all start with the dense model
    ],
)
def test_what_may_still_matter_goes_on(spec: TrialSpec, iteration: int, accuracy: float, flops_kept: float) -> None:
    assert after(spec, iteration, accuracy, flops_kept) is None


def test_without_a_frontier_or_a_rule_nothing_stops(spec: TrialSpec) -> None:
    points = points_of(spec)[:3]
    assert reason_to_stop(spec, points, [], RULE) is None
    assert reason_to_stop(spec, points, [(0.01, 1.0)], Stopping(rule="none")) is None
    assert reason_to_stop(spec, points, [(0.01, 1.0)], RULE) is not None


def test_the_file_says_how_trials_stop(space_file: Callable[..., Path]) -> None:
    text = {"[proposals]": '[stopping]\nrule = "none"\nmargin = 0.1\n[proposals]'}
    assert SearchSpace.read(space_file(**text)).stopping == Stopping(rule="none", margin=0.1)
