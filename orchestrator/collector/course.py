"""How a study came to its frontier: hypervolume over cost, and which point led to which. Arithmetic on frames."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.collector.frontier import hypervolume

Floats = NDArray[np.float64]


def hypervolume_over_cost(stages: pd.DataFrame) -> tuple[Floats, Floats]:
    """The train_flops that all stages so far had cost, and the hypervolume then: where it rose, and at the end.

    `stages` as Study.stages() gives them, the oldest first.
    """
    cost = np.cumsum(stages["train_flops"].fillna(0.0).to_numpy())
    is_point = stages["accuracy"].notna().to_numpy()
    front = _Front()
    at: list[float] = []
    worth: list[float] = []
    for spent, accuracy, kept in zip(
        cost[is_point], stages["accuracy"].to_numpy()[is_point], stages["flops_kept"].to_numpy()[is_point], strict=True
    ):
        if front.add(accuracy, kept) or not at:
            at.append(float(spent))
            worth.append(front.worth())
    if at and cost[-1] > at[-1]:
        at.append(float(cost[-1]))
        worth.append(worth[-1])
    return np.array(at), np.array(worth)


def previous_points(stages: pd.DataFrame) -> list[str | None]:
    """For each point, in the order of the frame, the key of the point that it was made from; None for a first one."""
    keys, parents = stages["key"].tolist(), stages["parent"].tolist()
    parent_of = dict(zip(keys, parents, strict=True))
    points = stages["key"][stages["accuracy"].notna()].tolist()
    is_point = set(points)

    def above(key: str) -> str | None:
        parent = parent_of.get(key)
        while isinstance(parent, str) and parent not in is_point:  # a missing one is None or NaN
            parent = parent_of.get(parent)
        return parent if isinstance(parent, str) else None

    return [above(key) for key in points]


def with_ancestors(keys: Sequence[str], previous: Mapping[str, str | None]) -> set[str]:
    """These points and all that they were made from."""
    found: set[str] = set()
    for key in keys:
        at: str | None = key
        while at is not None and at not in found:
            found.add(at)
            at = previous.get(at)
    return found


class _Front:
    """The frontier of the points so far, both lists ascending."""

    def __init__(self) -> None:
        self._kept: list[float] = []
        self._accuracy: list[float] = []

    def add(self, accuracy: float, kept: float) -> bool:
        """Takes in a point; whether the frontier has changed."""
        before = bisect_right(self._kept, kept)
        if before and self._accuracy[before - 1] >= accuracy:
            return False
        start = bisect_left(self._kept, kept)
        end = bisect_right(self._accuracy, accuracy)
        self._kept[start:end] = [kept]
        self._accuracy[start:end] = [accuracy]
        return True

    def worth(self) -> float:
        return hypervolume(self._accuracy, self._kept)
