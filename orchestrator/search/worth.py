"""What points are worth to a study, within its limits: their hypervolume, and what a trajectory adds to it."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from orchestrator.record import Point
from orchestrator.search.space import Limits


class Found(NamedTuple):
    """What is kept of a point to guide the search."""

    iteration: int
    accuracy: float
    flops_kept: float
    flops: int
    params: int
    latency_ms: float | None

    @classmethod
    def of(cls, point: Point) -> "Found":
        return cls(point.iteration, point.accuracy, point.flops_kept, point.flops, point.params, point.latency_ms)


class Front:
    """The frontier of the points so far that keep to the limits: accuracy up, flops_kept down.

    Worth is the area that it dominates in the box of what is of use: flops_kept up to that of max_flops (else 1),
    accuracy from min_accuracy (else 0) up.
    """

    def __init__(self, limits: Limits, points: Iterable[Found] = ()) -> None:
        self.limits = limits
        self._flops: list[float] = []  # flops_kept, ascending
        self._accuracy: list[float] = []  # ascending too: what costs more is more accurate
        self._ceiling = 1.0
        for point in points:
            self.add(point)

    def steps(self) -> list[tuple[float, float]]:
        """(flops_kept, accuracy) of the frontier, in ascending order of both."""
        return list(zip(self._flops, self._accuracy, strict=True))

    def add(self, point: Found) -> float:
        """Take in a point; returns by how much it raises the worth."""
        self._note_ceiling(point)
        if violation(point, self.limits) > 0 or self.accuracy_within(point.flops_kept) >= point.accuracy:
            return 0.0
        before = self.worth
        at = bisect_right(self._flops, point.flops_kept)
        at -= at > 0 and self._flops[at - 1] == point.flops_kept
        end = bisect_right(self._accuracy, point.accuracy)
        self._flops[at:end] = [point.flops_kept]
        self._accuracy[at:end] = [point.accuracy]
        return self.worth - before

    def accuracy_within(self, flops_kept: float) -> float:
        """The best accuracy at most so many flops_kept; -1 if there is no point."""
        at = bisect_right(self._flops, flops_kept)
        return self._accuracy[at - 1] if at else -1.0

    def score(self, points: Sequence[Found]) -> float:
        """What a trajectory is worth, before it is added: comparable with all others', the higher the better.

        What it adds to the worth, in [0, 1]; if it adds nothing, minus the accuracy that it lacks, in [-1, 0]; if no
        point of it keeps to the limits, below -1 by how far they are exceeded.
        """
        useful = [point for point in points if violation(point, self.limits) == 0]
        if not useful:
            return -1.0 - min((violation(point, self.limits) for point in points), default=1.0)
        grown = self._copy()
        gain = sum(grown.add(point) for point in useful)
        if gain > 0:
            return gain
        return -min(max(0.0, self.accuracy_within(point.flops_kept) - point.accuracy) for point in useful)

    def _copy(self) -> "Front":
        copy = Front(self.limits)
        copy._flops, copy._accuracy, copy._ceiling = list(self._flops), list(self._accuracy), self._ceiling
        return copy

    def _note_ceiling(self, point: Found) -> None:
        if self.limits.max_flops is not None:
            self._ceiling = min(1.0, self.limits.max_flops * point.flops_kept / point.flops)

    @property
    def worth(self) -> float:
        """The hypervolume within the limits."""
        floor = self.limits.min_accuracy or 0.0
        ends = [*self._flops, self._ceiling][1:]
        return sum(
            max(0.0, end - start) * (accuracy - floor)
            for start, end, accuracy in zip(self._flops, ends, self._accuracy, strict=True)
        )


def violation(point: Found, limits: Limits) -> float:
    """By how much a point exceeds the limits, as shares of them added up; 0 if it keeps to all."""
    pairs = (
        (point.flops, limits.max_flops),
        (point.params, limits.max_params),
        (point.latency_ms, limits.max_latency_ms),
    )
    over = sum(max(0.0, found / limit - 1) for found, limit in pairs if limit is not None and found is not None)
    return over + max(0.0, (limits.min_accuracy or 0.0) - point.accuracy)
