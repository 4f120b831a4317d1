"""The paper's binary structural search with step constraint, and the end floor at which it meets a flops budget.

Source: Xie et al. 2021, arXiv:2108.13728: layer after layer from the input on, the most channels leave with which the
accuracy after compensation stays above a floor, which falls linearly from layer to layer. Ours: groups in place of
layers; the floor at the end is searched for, so that the flops budget is met; flops that are then to spare are spent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from orchestrator.methods.method import Budget, Floats
from orchestrator.network import CostTable, Coupling
from orchestrator.network.plan import removal_order

END_STEPS = 12  # halvings of the range in which the end floor lies

Widths = dict[str, int]


def allowed_widths(coupling: Coupling, budget: Budget, names: frozenset[str]) -> dict[str, list[int]]:
    """Widths that group_cap and round_to allow each named group, the full one first."""
    scores = np.zeros(coupling.channels)
    order = removal_order(coupling, scores, budget.group_cap, names, round_to=budget.round_to)
    leaving = np.bincount(coupling.group_of[order], minlength=len(coupling.groups))
    found = {}
    for group, most in zip(coupling.groups, leaving.tolist(), strict=True):
        fewer = range(group.size - 1, group.size - most - 1, -1)
        if group.name in names:
            found[group.name] = [group.size, *(width for width in fewer if width % budget.round_to == 0)]
    return found


@dataclass(kw_only=True)
class StructuralSearch:
    """Closes over the accuracies that were measured: each widths' is measured once.

    allowed: of each group, from the first in the network to the last, its widths in falling order. accuracy: of the
    network with these widths, compensated. floors: of the last search, that of each group.
    """

    allowed: Mapping[str, list[int]]
    accuracy: Callable[[Widths], float]
    flops: Callable[[Widths], int]
    measured: dict[tuple[int, ...], float] = field(default_factory=dict)

    def accuracy_of(self, widths: Widths) -> float:
        key = tuple(widths.values())
        if key not in self.measured:
            self.measured[key] = self.accuracy(dict(widths))
        return self.measured[key]

    @property
    def whole(self) -> Widths:
        return {name: widths[0] for name, widths in self.allowed.items()}

    def floors(self, drop: float) -> list[float]:
        """Accuracy that may not be fallen short of after each group, with `drop` to be lost in all."""
        first = self.accuracy_of(self.whole)
        return [first - drop * (number + 1) / len(self.allowed) for number in range(len(self.allowed))]

    def with_drop(self, drop: float) -> Widths:
        """Group after group, the fewest channels that keep the accuracy above its floor, found by bisection."""
        found = self.whole
        for (name, widths), floor in zip(self.allowed.items(), self.floors(drop), strict=True):
            low, high = 0, len(widths) - 1
            while low < high:
                middle = (low + high + 1) // 2
                if self.accuracy_of({**found, name: widths[middle]}) >= floor:
                    low = middle
                else:
                    high = middle - 1
            found[name] = widths[low]
        return found

    def under(self, flops_budget: int) -> tuple[Widths, float]:
        """Widths that meet the budget with the highest end floor, and how far that lies below the first accuracy.

        At a drop of the accuracy times the number of groups every floor is 0, and all leaves that may: the budget has
        to be one that this meets.
        """
        low, high = 0.0, max(self.accuracy_of(self.whole) * len(self.allowed), 1e-9)
        best = {name: widths[-1] for name, widths in self.allowed.items()}
        for _ in range(END_STEPS):
            middle = (low + high) / 2
            found = self.with_drop(middle)
            if self.flops(found) <= flops_budget:
                best, high = found, middle
            else:
                low = middle
        return best, high

    def spent(self, widths: Widths, drop: float, flops_budget: int, worth: Mapping[str, Floats]) -> Widths:
        """The same with channels taken back while the budget is met, those of most worth first.

        worth: of each group, in the order in which its channels return: [width] the next one's at each width. What
        comes out falls below no floor that the given widths did not.
        """
        found, open_ = dict(widths), [name for name in widths if widths[name] < self.allowed[name][0]]
        while open_:
            name = max(open_, key=lambda each: float(worth[each][found[each]]))
            wider = {**found, name: min(width for width in self.allowed[name] if width > found[name])}
            if self.flops(wider) <= flops_budget:
                found = wider
            if found is not wider or found[name] == self.allowed[name][0]:
                open_.remove(name)
        floor = self.accuracy_of(self.whole) - drop
        return found if self.accuracy_of(found) >= floor else widths


def flops_of(coupling: Coupling) -> Callable[[Widths], int]:
    """Flops of the network at given widths. Which channels stay matters as little as to CostTable: the first do."""
    table = CostTable(coupling)

    def flops(widths: Widths) -> int:
        mask = np.ones(coupling.channels, bool)
        for name, width in widths.items():
            group = coupling.by_name[name]
            mask[group.start + width : group.start + group.size] = False
        return table.flops(mask)

    return flops
