"""The frontier and its hypervolume against the naive definition and against moocore."""

from itertools import pairwise
from random import Random

import moocore  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.collector import best_at, frontier, frontier_mask, hypervolume
from orchestrator.record import Cost, Point

# Few distinct values, so that ties and duplicates abound.
shares = st.one_of(st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]), st.floats(0.001, 1.0))
clouds = st.lists(st.tuples(shares, shares), min_size=1, max_size=30)


def naive(cloud: list[tuple[float, float]]) -> list[bool]:
    """The definition: no other point is at least as good in both and better in one; of equals, the first."""
    return [
        not any((a >= accuracy and f <= flops and (a > accuracy or f < flops)) for a, f in cloud)
        and (accuracy, flops) not in cloud[:index]
        for index, (accuracy, flops) in enumerate(cloud)
    ]


def columns(cloud: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [accuracy for accuracy, _ in cloud], [flops for _, flops in cloud]


def point(accuracy: float, flops: int, params: int = 10, key: str = "k") -> Point:
    return Point(
        key=key,
        parent=None,
        kind="dense",
        iteration=0,
        model="m",
        dataset="d",
        seed=0,
        flops=flops,
        params=params,
        flops_kept=1.0,
        accuracy=accuracy,
        cost=Cost(),
        path_cost=Cost(),
        created="2025-01-01T00:00:00.000+00:00",
    )


@given(clouds)
def test_the_mask_is_the_definition(cloud: list[tuple[float, float]]) -> None:
    assert frontier_mask(*columns(cloud)).tolist() == naive(cloud)


@given(clouds)
def test_the_mask_is_moocores(cloud: list[tuple[float, float]]) -> None:
    mask = moocore.is_nondominated(np.array(cloud), maximise=[True, False], keep_weakly=False)
    assert frontier_mask(*columns(cloud)).tolist() == mask.tolist()


@given(clouds)
def test_the_hypervolume_is_moocores(cloud: list[tuple[float, float]]) -> None:
    data = np.array(cloud)
    oracle = moocore.hypervolume(data, ref=np.array([0.0, 1.0]), maximise=[True, False])
    assert hypervolume(data[:, 0], data[:, 1]) == pytest.approx(oracle, abs=1e-12)
    assert 0.0 <= hypervolume(data[:, 0], data[:, 1]) <= 1.0


@given(clouds, st.tuples(shares, shares))
def test_the_reference_is_moocores(cloud: list[tuple[float, float]], reference: tuple[float, float]) -> None:
    data = np.array(cloud)
    oracle = moocore.hypervolume(data, ref=np.array(reference), maximise=[True, False])
    assert hypervolume(data[:, 0], data[:, 1], reference) == pytest.approx(oracle, abs=1e-12)


@given(clouds, st.randoms())
def test_order_does_not_matter(cloud: list[tuple[float, float]], random: Random) -> None:
    points = [point(a, round(f * 1000), key=str(index)) for index, (a, f) in enumerate(cloud)]
    shuffled = random.sample(points, len(points))
    assert frontier(points) == frontier(shuffled)
    assert hypervolume(*columns(cloud)) == pytest.approx(hypervolume(*columns(cloud[::-1])))


@given(clouds, shares, shares)
def test_a_dominated_point_changes_nothing(cloud: list[tuple[float, float]], worse: float, dearer: float) -> None:
    accuracy, flops = cloud[0]
    more = [*cloud, (accuracy * worse, flops + dearer)]
    assert frontier_mask(*columns(more)).tolist() == [*frontier_mask(*columns(cloud)).tolist(), False]
    assert hypervolume(*columns(more)) == hypervolume(*columns(cloud))


@given(clouds)
def test_the_frontier_climbs_and_is_its_own(cloud: list[tuple[float, float]]) -> None:
    found = frontier([point(a, round(f * 1000)) for a, f in cloud])
    assert found
    assert all(a.flops < b.flops and a.accuracy < b.accuracy for a, b in pairwise(found))
    assert frontier(found) == found


@given(clouds, st.tuples(shares, shares))
def test_a_further_point_never_lowers_the_hypervolume(
    cloud: list[tuple[float, float]], further: tuple[float, float]
) -> None:
    assert hypervolume(*columns([*cloud, further])) >= hypervolume(*columns(cloud)) - 1e-12


def test_ties_go_to_the_smaller_model_then_to_the_lower_key() -> None:
    twins = [point(0.9, 100, params=20, key="a"), point(0.9, 100, key="c"), point(0.9, 100, key="b")]
    assert frontier(twins) == [twins[2]]


def test_nothing_has_an_empty_frontier_and_no_volume() -> None:
    assert frontier([]) == []
    assert frontier_mask([], []).tolist() == []
    assert hypervolume([], []) == 0.0


def test_closed_forms() -> None:
    assert hypervolume([0.9], [1.0]) == 0.0
    assert hypervolume([1.0], [0.0]) == 1.0
    assert hypervolume([0.8, 0.6], [0.5, 0.25]) == pytest.approx(0.5 * 0.8 + 0.25 * 0.6)
    assert hypervolume([0.8, 0.1], [0.5, 0.25], reference=(0.2, 0.9)) == pytest.approx(0.4 * 0.6)


def test_best_at_budgets() -> None:
    found = best_at([0.9, 0.8, 0.85], [1.0, 0.3, 0.5], budgets=(1.0, 0.5, 0.3, 0.1))
    assert found == {1.0: 0.9, 0.5: 0.85, 0.3: 0.8, 0.1: None}


def test_arrays_of_different_lengths_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match=r"accuracy has shape \(2,\), flops \(1,\)"):
        frontier_mask([0.1, 0.2], [1])
