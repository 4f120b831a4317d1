"""When the rest of a trajectory cannot matter: the rule, and the reason that is kept for every trial that it stopped.

The rule `dominated`. After iteration k a trial has accuracy a at flops_kept f, and each later iteration n would have
about f (1 - pruning_ratio)^(n - k). It is stopped if for every one of them the frontier has a point at no more flops
whose accuracy is a + margin or more: even if pruning cost no accuracy from here on, all that is to come would be
dominated by the margin. The frontier is that of the trials told before this one was asked for, so that the same study
stops the same trials, whatever finishes first. The dense point, from which all start, stops nothing.
"""

from bisect import bisect_right
from collections.abc import Sequence

from orchestrator.record import Point, TrialSpec
from orchestrator.search.space import Stopping


def reason_to_stop(
    spec: TrialSpec, points: Sequence[Point], frontier: Sequence[tuple[float, float]], stopping: Stopping
) -> str | None:
    """Why a trial with these points so far ends here, or None if it goes on.

    frontier: (flops_kept, accuracy) in ascending order of both.
    """
    now = points[-1]
    if stopping.rule == "none" or not now.iteration or not frontier:
        return None
    flops = [kept for kept, _ in frontier]
    least = 1.0
    for ahead in range(1, spec.iterations - now.iteration + 1):
        at = bisect_right(flops, now.flops_kept * (1 - spec.pruning_ratio) ** ahead)
        best = frontier[at - 1][1] if at else -1.0
        if best < now.accuracy + stopping.margin:
            return None
        least = min(least, best)
    return (
        f"after iteration {now.iteration} of {spec.iterations}: accuracy {now.accuracy:.4f} at flops_kept "
        f"{now.flops_kept:.3f}; the frontier has {least:.4f} or more wherever the rest would come to lie "
        f"(margin {stopping.margin:g})"
    )
