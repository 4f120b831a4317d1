"""What a trajectory is worth: the hypervolume that it adds, in order below that what it lacks, and within limits."""

import random
from typing import Any

import pytest

from orchestrator.collector import hypervolume
from orchestrator.search.space import Limits
from orchestrator.search.worth import Found, Front, violation


def found(flops_kept: float, accuracy: float, iteration: int = 1, **more: Any) -> Found:
    given = {"flops": round(1000 * flops_kept), "params": round(100 * flops_kept), "latency_ms": None, **more}
    return Found(iteration=iteration, accuracy=accuracy, flops_kept=flops_kept, **given)


@pytest.mark.parametrize("seed", range(5))
def test_worth_grows_as_the_hypervolume_does(seed: int) -> None:
    draw = random.Random(seed)
    points = [found(draw.randint(1, 20) / 20, draw.randint(0, 20) / 20) for _ in range(60)]
    front = Front(Limits())
    total = 0.0
    for count, point in enumerate(points, start=1):
        total += front.add(point)
        seen = points[:count]
        assert total == pytest.approx(hypervolume([p.accuracy for p in seen], [p.flops_kept for p in seen]))
    assert front.steps() == sorted(set(front.steps()))


def test_a_trajectory_scores_what_it_adds_and_changes_nothing() -> None:
    front = Front(Limits(), [found(1.0, 0.9), found(0.5, 0.8)])
    before = front.steps()
    path = [found(0.6, 0.85), found(0.3, 0.7)]
    assert front.score(path) == pytest.approx(0.2 * 0.7 + 0.4 * 0.05)
    assert front.steps() == before


def test_below_the_frontier_the_nearest_is_best_and_outside_the_limits_it_is_worse() -> None:
    front = Front(Limits(max_flops=900), [found(0.5, 0.8)])
    near, far = front.score([found(0.6, 0.79)]), front.score([found(0.6, 0.5), found(0.7, 0.4)])
    outside, far_outside = front.score([found(0.91, 0.99)]), front.score([found(1.8, 0.99)])
    assert near == pytest.approx(-0.01)
    assert 0 > near > far > -1 > outside > far_outside
    assert front.score([]) == -2.0


def test_limits_bound_the_box_that_counts() -> None:
    front = Front(Limits(max_flops=500, min_accuracy=0.6))
    assert front.add(found(1.0, 0.95)) == 0  # too many flops
    assert front.add(found(0.2, 0.5)) == 0  # not accurate enough
    assert front.add(found(0.25, 0.8)) == pytest.approx(0.25 * 0.2)
    assert front.accuracy_within(0.2) == -1


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), 0.0),
        (Limits(max_flops=400), 0.25),
        (Limits(max_params=40), 0.25),
        (Limits(max_latency_ms=2.0), 0.5),
        (Limits(min_accuracy=0.8), 0.1),
        (Limits(max_flops=400, min_accuracy=0.8), 0.35),
    ],
)
def test_violations_are_shares_of_the_limits(limits: Limits, expected: float) -> None:
    assert violation(found(0.5, 0.7, latency_ms=3.0), limits) == pytest.approx(expected)
