"""How wide each group becomes, for methods that pick channels group by group: one share for all, or given widths."""

from collections.abc import Mapping

import numpy as np

from orchestrator.methods.method import Budget, Floats
from orchestrator.network import Coupling, Plan, PlanMismatch, greedy


def uniform_widths(coupling: Coupling, budget: Budget, groups: frozenset[str]) -> dict[str, int]:
    """How many channels each group keeps when all `groups` shrink alike, as little as the flops budget allows.

    Every group keeps the common share of its channels, rounded; flops are counted exactly, and group_cap and round_to
    hold as in greedy. Where several groups would lose a channel at one and the same share, those that come first in
    the network do so first, and no more of them than the budget asks for: it is met as closely as by greedy.
    Returns the width of every group of the coupling. Raises BudgetUnreachable, with greedy's message.
    """
    plan = greedy(
        coupling,
        _shares(coupling),
        budget.flops,
        group_cap=budget.group_cap,
        groups=groups,
        round_to=budget.round_to,
    )
    return {group.name: len(plan.kept.get(group.name, range(group.size))) for group in coupling.groups}


def _shares(coupling: Coupling) -> Floats:
    """[channels] the share that has left a group when half of its n-th channel is gone: when rounding gives it up."""
    return np.concatenate([np.zeros(0), *((np.arange(group.size) + 0.5) / group.size for group in coupling.groups)])


def widths_plan(coupling: Coupling, widths: Mapping[str, int], score: Floats) -> Plan:
    """In each group the channels of highest score stay, as many as its width says; ties leave in channel order.

    score: [channels]. Groups that are not named stay whole.
    Raises PlanMismatch for a group that there is not, or a width that it cannot have.
    """
    if len(score) != coupling.channels or not np.isfinite(score).all():
        raise ValueError(f"score: {len(score)} values for {coupling.channels} channels, all must be finite")
    mask = np.ones(coupling.channels, bool)
    for name, width in widths.items():
        group = coupling.by_name.get(name)
        if group is None:
            raise PlanMismatch(f"widths: {name} is no group of this network")
        if not 1 <= width <= group.size:
            raise PlanMismatch(f"widths: {name} is to keep {width} channels; it has {group.size} and keeps at least 1")
        order = np.argsort(score[group.channels], kind="stable")
        mask[group.start + order[: group.size - width]] = False
    return Plan.from_mask(coupling, mask)
