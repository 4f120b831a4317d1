"""An episode of conditional channel pruning: one group after the other is given its width, and the budget is met.

Source: Liu et al. 2020, Conditional Automated Channel Pruning, arXiv:2009.09724, whose states and clamp come from AMC
(He et al. 2018, arXiv:1802.03494). There a step is a layer and the action the share of its channels that leaves; here
a step is a group of coupled channels, which may run through many layers, and the action the share that stays.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from orchestrator.methods.method import Budget, Floats
from orchestrator.methods.widths import uniform_widths
from orchestrator.network import CostTable, Coupling, Group
from orchestrator.network.coupling import Bools
from orchestrator.network.plan import removal_order
from orchestrator.network.recording import Call

# What a state holds, in this order. All lie in [0, 1]; a "share" without more is that of the largest in the network.
FEATURES = (
    "rate",  # flops asked for, of those of the network as it is
    "position",  # of the group among those that are walked over
    "kind",  # of the layers that make it: 0 linear, 1 convolutions
    "made",  # channels of the group: share
    "read",  # channels that the layers which make it read: share
    "side",  # square root of the places at which they make it: share
    "kernel",  # square root of their kernel's elements: share
    "stride",  # 1 - side of what they make / side of what they read; pooling on the way counts
    "flops",  # of all layers that make or read the group, of the network's
    "params",  # of the same layers, of the network's
    "reduced",  # flops that have left so far, of the network's
    "rest",  # flops that the groups to come can still lose, of the network's
    "previous",  # the share of its channels that the group before keeps; 1 for the first
)
Act = Callable[[Floats], float]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What an agent walks over: the groups in forward order, with what does not change from one episode to the next.

    score: [channels], in each group the highest stay.
    """

    coupling: Coupling
    names: frozenset[str]  # of the groups that may lose channels
    score: Floats

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        return tuple(group for group in self.coupling.groups if group.name in self.names)

    @cached_property
    def table(self) -> CostTable:
        return CostTable(self.coupling)

    @cached_property
    def flops(self) -> int:
        return self.table.flops()

    @cached_property
    def rank(self) -> npt.NDArray[np.int64]:
        """[channels] how many of its group stay longer than a channel; ties as in widths_plan."""
        rank = np.zeros(self.coupling.channels, np.int64)
        for group in self.coupling.groups:
            order = np.argsort(self.score[group.channels], kind="stable")[::-1]
            rank[group.start + order] = np.arange(group.size)
        return rank

    @cached_property
    def features(self) -> Floats:
        """[groups, 9] position to params."""
        count = len(self.groups)
        costs = list(zip(self.coupling.calls, self.table.layer_flops(), strict=True))
        rows = np.array([_facts(self.coupling, group, costs) for group in self.groups]).reshape(count, 8)
        flops, params = self.flops, self.table.params()
        scale = [1.0, *(max(column.max(initial=0), 1.0) for column in rows.T[1:5]), 1.0, flops, params]
        position = np.arange(count) / max(count - 1, 1)
        return np.column_stack([position, rows / scale])


def _facts(coupling: Coupling, group: Group, costs: Sequence[tuple[Call, int]]) -> tuple[float, ...]:
    """kind, channels made and read, side, kernel, stride, flops and params of a group's layers, not yet scaled."""
    makers = [(name, dim) for name, dim in group.made if len(coupling.shapes[name]) > 1]
    kernel = max((_kernel(coupling, name) for name, _ in makers), default=1)
    reads = max((coupling.shapes[name][1 - dim] for name, dim in makers), default=0)
    side = max((_side(coupling, name) for name, _ in makers), default=0.0)
    before = max((_side_read(coupling, name, 1 - dim) for name, dim in makers), default=0.0)
    names = {name for name, _ in group.members}
    flops = sum(cost for call, cost in costs if call.weight in names)
    params = sum(math.prod(coupling.shapes[name]) for name in {call.weight for call, _ in costs} & names)
    kind = max((float(len(coupling.shapes[name]) > 2) for name, _ in makers), default=0.0)
    return kind, group.size, reads, side, kernel**0.5, max(0.0, 1 - side / before) if before else 0.0, flops, params


def _kernel(coupling: Coupling, weight: str) -> int:
    return math.prod(coupling.shapes[weight][2:])


def _side(coupling: Coupling, weight: str) -> float:
    """Square root of the number of places at which a layer works; the largest where it is called more than once."""
    positions = max((call.positions for call in coupling.calls if call.weight == weight), default=0)
    return float((positions / _kernel(coupling, weight)) ** 0.5)


def _side_read(coupling: Coupling, weight: str, dim: int) -> float:
    """The same of the layers that make what a layer reads; 0 where no layer of the network does."""
    channels = coupling.dims.get((weight, dim), np.zeros(0, np.int64))
    owners = np.unique(coupling.group_of[channels[channels >= 0]])
    return max((_side(coupling, name) for owner in owners for name, _ in coupling.groups[owner].made), default=0.0)


class Walk:
    """One episode: asked for the first group's share, then for the next one's, until all have a width.

    The clamp: a group gets at most so many channels that the budget can still be met with the fewest in every group
    to come (AMC's guarantee, here with exact flops). With spend_budget it also gets at least so many that the budget
    can still be used up with all channels in every group to come: then no flops that were granted are given away,
    and plans are compared at equal flops. The sources have the first clamp alone.
    Widths are those that greedy may choose: within group_cap, and multiples of round_to.
    Raises BudgetUnreachable, with greedy's message, where no widths meet the budget.
    """

    def __init__(self, ground: Ground, budget: Budget, *, spend_budget: bool = True) -> None:
        self.ground, self.budget, self.spend_budget = ground, budget, spend_budget
        coupling = ground.coupling
        uniform_widths(coupling, budget, ground.names)  # raises where the budget cannot be met
        self._most, self._least = np.ones(coupling.channels, bool), np.ones(coupling.channels, bool)
        self._least[self._leaving()] = False
        self._fewest = {group.name: int(self._least[group.channels].sum()) for group in ground.groups}
        for group in ground.groups:
            self._keep(self._least, group, self._fewest[group.name])
        self.widths: dict[str, int] = {}
        self.previous = 1.0

    def _leaving(self) -> npt.NDArray[np.int64]:
        """Channels that are gone where every group has as few as it may."""
        coupling, budget = self.ground.coupling, self.budget
        nothing = np.zeros(coupling.channels)
        return removal_order(coupling, nothing, budget.group_cap, self.ground.names, round_to=budget.round_to)

    def _keep(self, mask: Bools, group: Group, width: int) -> None:
        mask[group.channels] = self.ground.rank[group.channels] < width

    @property
    def group(self) -> Group | None:
        """The group whose share is asked for next; None when all have their width."""
        done = len(self.widths)
        return self.ground.groups[done] if done < len(self.ground.groups) else None

    @property
    def mask(self) -> Bools:
        """[channels] True where a channel stays; groups that have no width yet are whole."""
        return self._most.copy()

    @property
    def rate(self) -> float:
        """flops asked for, as a share of those of the network as it is."""
        return self.budget.flops / self.ground.flops

    def state(self) -> Floats:
        """[13] what the agent is shown before it gives the next group's share: FEATURES. Zeros after the last."""
        found = np.zeros(len(FEATURES), np.float32)
        if self.group is not None:
            flops, table = self.ground.flops, self.ground.table
            most, least = table.flops(self._most), table.flops(self._least)
            facts = self.ground.features[len(self.widths)]
            found[:] = [self.rate, *facts, 1 - most / flops, (most - least) / flops, self.previous]
        return found

    def step(self, share: float) -> None:
        """Give the next group the width nearest to a share of its channels that the clamp allows."""
        group = self.group
        assert group is not None, "every group has its width"
        allowed = self._allowed(group)
        wanted = int(np.argmin([abs(width - share * group.size) for width in allowed]))
        highest = self._count_while(lambda width: self._flops(self._least, group, width) <= self.budget.flops, allowed)
        lowest = 0
        if self.spend_budget:
            lowest = self._count_while(lambda width: self._flops(self._most, group, width) < self.budget.flops, allowed)
        width = allowed[min(max(wanted, lowest), highest - 1)]
        self._keep(self._most, group, width)
        self._keep(self._least, group, width)
        self.widths[group.name] = width
        self.previous = width / group.size

    def _allowed(self, group: Group) -> list[int]:
        """The widths that a group may have, ascending; the last is its own."""
        fewest = self._fewest[group.name]
        return [*range(fewest, group.size, self.budget.round_to), group.size]

    def _flops(self, rest: Bools, group: Group, width: int) -> int:
        before = rest[group.channels].copy()
        self._keep(rest, group, width)
        flops = self.ground.table.flops(rest)
        rest[group.channels] = before
        return flops

    @staticmethod
    def _count_while(holds: Callable[[int], bool], allowed: Sequence[int]) -> int:
        """How many of the widths, from the first on, a condition holds for that wider ones lose."""
        return bisect_left(allowed, True, key=lambda width: not holds(width))


def walked(walk: Walk, act: Act) -> dict[str, int]:
    """The widths that come of asking `act` for every group's share, which meet the budget exactly."""
    while walk.group is not None:
        walk.step(act(walk.state()))
    flops = walk.ground.table.flops(walk.mask)
    assert flops <= walk.budget.flops, f"{flops} flops over a budget of {walk.budget.flops}"
    return walk.widths
