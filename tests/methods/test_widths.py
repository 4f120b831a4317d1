"""Uniform widths against brute force; plans from widths by hand."""

from fractions import Fraction

import numpy as np
import pytest
from small_networks import EXAMPLE, NETWORKS, built, subject_of

from orchestrator.methods import METHODS, Budget
from orchestrator.methods.widths import uniform_widths, widths_plan
from orchestrator.network import BudgetUnreachable, CostTable, Coupling, PlanMismatch, couple, cut, measure

FILTER_NORM = METHODS["filter_norm"]


def attainable(size: int, budget: Budget) -> list[int]:
    """All widths that a group may have, the largest first."""
    least = max(1, size - int(budget.group_cap * size + 1e-9))
    return [w for w in range(size, 0, -1) if w == size or (w >= least and w % budget.round_to == 0)]


def brute_force(coupling: Coupling, budget: Budget, groups: frozenset[str]) -> dict[str, int]:
    """Walk down the shares at which some group becomes narrower, one group at a time, until the budget is met.

    A group goes from one width to the next when the share falls to half a channel above the latter.
    """
    steps = []
    for order, group in enumerate(coupling.groups):
        widths = attainable(group.size, budget) if group.name in groups else [group.size]
        steps += [(-Fraction(2 * w + 1, 2 * group.size), order, group.name, w) for w in widths[1:]]
    found = {group.name: group.size for group in coupling.groups}
    for _, _, name, width in sorted(steps):
        if flops(coupling, found) <= budget.flops:
            break
        found[name] = width
    return found


def flops(coupling: Coupling, widths: dict[str, int]) -> int:
    mask = np.ones(coupling.channels, bool)
    for name, width in widths.items():
        group = coupling.by_name[name]
        mask[group.start : group.start + group.size - width] = False
    return CostTable(coupling).flops(mask)


@pytest.mark.parametrize("round_to", [1, 2])
@pytest.mark.parametrize("cap", [0.5, 0.9])
@pytest.mark.parametrize("network", NETWORKS)
def test_uniform_widths_are_those_of_brute_force(network: str, cap: float, round_to: int) -> None:
    subject = subject_of(built(network), FILTER_NORM)
    coupling, groups = subject.coupling, subject.prunable()
    narrowest = Budget(flops=0, group_cap=cap, round_to=round_to)
    full, least = flops(coupling, {}), flops(coupling, brute_force(coupling, narrowest, groups))
    for share in (0.0, 0.2, 0.55, 0.9, 1.0):
        budget = Budget(flops=int(least + share * (full - least)), group_cap=cap, round_to=round_to)
        found = uniform_widths(coupling, budget, groups)
        assert found == brute_force(coupling, budget, groups)
        assert flops(coupling, found) <= budget.flops
    with pytest.raises(BudgetUnreachable, match="cannot be met"):
        uniform_widths(coupling, Budget(flops=least - 1, group_cap=cap, round_to=round_to), groups)


def test_groups_shrink_alike() -> None:
    coupling = couple(built("plain"), EXAMPLE)  # 8 and 12 channels
    budget = Budget(flops=CostTable(coupling).flops() // 2, group_cap=0.9)
    widths = uniform_widths(coupling, budget, frozenset(coupling.by_name))
    shares = [widths[group.name] / group.size for group in coupling.groups]
    assert max(shares) - min(shares) <= 1 / 8
    assert uniform_widths(coupling, budget, frozenset(["a"]))["b"] == 12


def test_a_plan_keeps_the_highest_scores_and_ties_leave_in_channel_order() -> None:
    model = built("plain")
    coupling = couple(model, EXAMPLE)
    score = np.array([3.0, 1.0, 1.0, 9.0, 1.0, 2.0, 0.0, 5.0] + [1.0] * 12)
    plan = widths_plan(coupling, {"a": 6, "b": 11}, score)
    assert plan.kept == {"a": (0, 2, 3, 4, 5, 7), "b": tuple(range(1, 12))}
    assert measure(cut(model, coupling, plan), EXAMPLE).flops == flops(coupling, {"a": 6, "b": 11})
    assert widths_plan(coupling, {"a": 8}, score).kept == {}


def test_widths_that_there_cannot_be_are_refused() -> None:
    coupling = couple(built("plain"), EXAMPLE)
    score = np.zeros(20)
    with pytest.raises(PlanMismatch, match="widths: c is no group of this network"):
        widths_plan(coupling, {"c": 1}, score)
    for width in (0, 9):
        with pytest.raises(PlanMismatch, match=f"a is to keep {width} channels; it has 8 and keeps at least 1"):
            widths_plan(coupling, {"a": width}, score)
    for wrong in (score[1:], np.full(20, np.nan)):
        with pytest.raises(ValueError, match="for 20 channels, all must be finite"):
            widths_plan(coupling, {"a": 1}, wrong)
