"""The frontier, and what it is worth: accuracy up, flops down. Pure arithmetic on arrays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.record import Point

BUDGETS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15)  # of flops_kept, where a search is looked at


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points no other point beats in both accuracy and flops, in ascending order of flops.

    Of points with equal accuracy and flops the one with the fewest params is kept, then the one with the lowest key.
    """
    tidy = sorted(points, key=lambda point: (point.params, point.key))
    mask = frontier_mask([point.accuracy for point in tidy], [point.flops for point in tidy])
    kept = [point for point, on_frontier in zip(tidy, mask, strict=True) if on_frontier]
    return sorted(kept, key=lambda point: point.flops)


def frontier_mask(accuracy: ArrayLike, flops: ArrayLike) -> NDArray[np.bool_]:
    """Which points are on the frontier: [points] bool. Of equal points, the first.

    flops may be counts or shares. In ascending order of flops, a point is on the frontier if it is more accurate
    than all before it.
    """
    high, low = _columns(accuracy, flops)
    order = np.lexsort((-high, low))
    ascending = high[order]
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(ascending)))[:-1]
    mask = np.zeros(len(high), dtype=np.bool_)
    mask[order] = ascending > best_before
    return mask


def hypervolume(accuracy: ArrayLike, flops_kept: ArrayLike, reference: tuple[float, float] = (0.0, 1.0)) -> float:
    """The area that the points dominate in the (flops_kept, accuracy) plane, in [0, 1].

    `reference` is (accuracy, flops_kept) of the worst corner; points beyond it count nothing. 1 would be perfect
    accuracy at no cost; a dense model alone, at flops_kept 1, is worth 0.
    """
    high, low = _columns(accuracy, flops_kept)
    inside = (high > reference[0]) & (low < reference[1])
    high, low = high[inside], low[inside]
    mask = frontier_mask(high, low)
    order = np.argsort(low[mask])
    steps = np.append(low[mask][order], reference[1])
    return float(np.sum(np.diff(steps) * (high[mask][order] - reference[0])))


def best_at(
    accuracy: ArrayLike, flops_kept: ArrayLike, budgets: Sequence[float] = BUDGETS
) -> dict[float, float | None]:
    """The best accuracy within each budget of flops_kept; None where no point is within it."""
    high, low = _columns(accuracy, flops_kept)
    within = {budget: high[low <= budget] for budget in budgets}
    return {budget: float(found.max()) if len(found) else None for budget, found in within.items()}


def _columns(accuracy: ArrayLike, flops: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    high, low = np.asarray(accuracy, dtype=np.float64), np.asarray(flops, dtype=np.float64)
    assert high.ndim == 1, f"accuracy has shape {high.shape}"
    assert high.shape == low.shape, f"accuracy has shape {high.shape}, flops {low.shape}"
    return high, low
