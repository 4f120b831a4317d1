"""Plan: the channels that stay. greedy: which those are, from scores and an exact flops budget."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from orchestrator.network.cost import CostTable
from orchestrator.network.coupling import Bools, Coupling
from orchestrator.network.solve import Ints
from orchestrator.record import InvalidInput


class BudgetUnreachable(InvalidInput):
    """No plan that respects the per-group cap and round_to (and leaves a channel in every group) is this cheap."""


class PlanMismatch(InvalidInput):
    """A plan that was made for a network of other groups or widths."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The channels that stay, by group: positions in ascending order. Groups that are not named keep all."""

    kept: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for name, positions in self.kept.items():
            if not positions or list(positions) != sorted(set(positions)) or positions[0] < 0:
                raise PlanMismatch(f"plan: {name} keeps {list(positions)[:8]}; it must name ascending positions >= 0")

    def mask(self, coupling: Coupling) -> Bools:
        """[channels] True where a channel stays. Raises PlanMismatch if the plan does not fit."""
        mask = np.ones(coupling.channels, bool)
        for name, positions in self.kept.items():
            group = coupling.by_name.get(name)
            if group is None:
                raise PlanMismatch(f"plan: {name} is no group of this network")
            if positions[-1] >= group.size:
                raise PlanMismatch(f"plan: {name} keeps position {positions[-1]}; the group has {group.size} channels")
            mask[group.channels] = False
            mask[group.start + np.asarray(positions)] = True
        return mask

    @classmethod
    def from_mask(cls, coupling: Coupling, mask: Bools) -> Self:
        """The plan that keeps channels where `mask` [channels] is True."""
        found = {group.name: np.flatnonzero(mask[group.channels]) for group in coupling.groups}
        return cls(kept={g.name: tuple(found[g.name].tolist()) for g in coupling.groups if len(found[g.name]) < g.size})

    def then(self, later: "Plan") -> "Plan":
        """This plan followed by one for the network that it leaves: one plan for the first network."""
        kept = dict(self.kept)
        for name, positions in later.kept.items():
            mine = kept.get(name)
            kept[name] = tuple(mine[p] for p in positions) if mine is not None else positions
        return Plan(kept=kept)

    def since(self, before: "Plan") -> "Plan":
        """What came after `before`: before.then(self.since(before)) is this plan. Raises PlanMismatch if none did."""
        kept = {}
        for name, positions in self.kept.items():
            place = {position: at for at, position in enumerate(before.kept.get(name, ()))}
            if place and not place.keys() >= set(positions):
                raise PlanMismatch(f"plan: {name} keeps channels that the plan before it does not")
            if len(positions) != len(place):
                kept[name] = tuple(place[position] for position in positions) if place else positions
        if before.kept.keys() - self.kept.keys():
            raise PlanMismatch(f"plan: {min(before.kept.keys() - self.kept.keys())} is whole; before it was not")
        return Plan(kept=kept)

    def exact_only(self, coupling: Coupling) -> "Plan":
        """Without the groups for which cutting is not the same as zeroing."""
        return Plan(kept={n: p for n, p in self.kept.items() if coupling.by_name[n].exact})

    def to_json(self) -> str:
        return json.dumps({"kept": {name: list(p) for name, p in sorted(self.kept.items())}}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises PlanMismatch if the text is no plan."""
        try:
            value: Any = json.loads(text)
            kept = {str(name): tuple(map(int, positions)) for name, positions in value["kept"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanMismatch(f"plan: not of the form {{'kept': {{group: [positions]}}}}: {error}") from error
        return cls(kept=kept)


def random_plan(coupling: Coupling, keep: float = 0.7, seed: int = 0, exact_only: bool = True) -> Plan:
    """Keep a random share of every group that has two channels or more, at least one of each and not all.

    exact_only leaves inexact groups whole, as the law "cut equals masked" needs.
    """
    generator = np.random.default_rng(seed)
    kept = {}
    for group in coupling.groups:
        count = min(max(1, round(keep * group.size)), group.size - 1)
        positions = np.sort(generator.permutation(group.size)[:count])
        if group.size > 1 and (group.exact or not exact_only):
            kept[group.name] = tuple(positions.tolist())
    return Plan(kept=kept)


def greedy(
    coupling: Coupling,
    scores: npt.NDArray[np.floating[Any]],
    flops_budget: int,
    group_cap: float = 1.0,
    groups: frozenset[str] | None = None,
    *,
    round_to: int = 1,
) -> Plan:
    """Global greedy pruning: the lowest scores of all groups leave first, until the flops budget is met.

    scores: [channels], higher stays longer; ties leave in channel order. group_cap: the largest share of a group
    that may leave; at least one channel of each group stays. groups: names that may lose channels (all if None).
    round_to: a group that loses channels keeps a multiple of this, at least once; one that is no wider stays whole.
    It counts channels of the group: a layer in which the group stands n times (conv_groups, chunks, blocks) keeps
    n times as many, and one that reads several groups the sum of their multiples.
    The plan takes the fewest steps that meet the budget: with one less, flops are above it. A step is a channel, or
    with round_to the channels of a group between two multiples, which leave when the last of them would.
    Raises BudgetUnreachable when even all that may leave is not enough, InvalidInput for a bad round_to.
    Source: Li et al. 2019, OICSR, global greedy pruning; the cap from readers' notes on the paper.
    """
    if len(scores) != coupling.channels or not np.isfinite(scores).all():
        raise ValueError(f"scores: {len(scores)} values for {coupling.channels} channels, all must be finite")
    order, ends = _removal_steps(coupling, scores, group_cap, groups, round_to=round_to)
    table = CostTable(coupling)
    mask = np.ones(coupling.channels, bool)

    def flops(steps: int) -> int:
        mask[:] = True
        mask[order[: ends[steps]]] = False
        return table.flops(mask)

    low, high = 0, len(ends) - 1
    least = flops(high)
    if least > flops_budget:
        raise BudgetUnreachable(
            f"flops budget {flops_budget:,} cannot be met: with a cap of {group_cap:g} a group and "
            f"{'at least one channel in each' if round_to == 1 else f'round_to {round_to}'}, flops fall from "
            f"{table.flops():,} to {least:,} at the lowest"
            + _blame_on_rounding(table, flops_budget, group_cap, groups, round_to)
        )
    while low < high:
        middle = (low + high) // 2
        if flops(middle) <= flops_budget:
            high = middle
        else:
            low = middle + 1
    flops(low)
    return Plan.from_mask(coupling, mask)


def _blame_on_rounding(
    table: CostTable, flops_budget: int, group_cap: float, groups: frozenset[str] | None, round_to: int
) -> str:
    """What to add to the message of a budget that only round_to makes unreachable."""
    mask = np.ones(table.coupling.channels, bool)
    mask[removal_order(table.coupling, np.zeros(len(mask)), group_cap, groups)] = False
    least = table.flops(mask)
    met = round_to > 1 and least <= flops_budget
    return f"; round_to is the reason: without it they fall to {least:,}" if met else ""


def removal_order(
    coupling: Coupling,
    scores: npt.NDArray[np.floating[Any]],
    group_cap: float = 1.0,
    groups: frozenset[str] | None = None,
    *,
    round_to: int = 1,
) -> Ints:
    """Channels that may leave, the first to leave first: ascending score, every group only up to its cap.

    With round_to, those that leave a group together stand together, where the last of them would alone.
    """
    return _removal_steps(coupling, scores, group_cap, groups, round_to=round_to)[0]


def _removal_steps(
    coupling: Coupling,
    scores: npt.NDArray[np.floating[Any]],
    group_cap: float,
    groups: frozenset[str] | None,
    *,
    round_to: int,
) -> tuple[Ints, Ints]:
    """The removal order, and [steps + 1] how many channels have left after each step, from 0 on."""
    _check_round_to(round_to)
    quotas = [_quota(g.size, group_cap, round_to) if groups is None or g.name in groups else 0 for g in coupling.groups]
    sizes, quota = np.array([g.size for g in coupling.groups], np.int64), np.array(quotas, np.int64)
    order = np.argsort(scores, kind="stable")
    by_group = np.argsort(coupling.group_of[order], kind="stable")  # group after group, each in ascending score
    order = order[by_group]
    owner = coupling.group_of[order]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    leaves = rank < quota[owner]
    last = leaves & ((sizes[owner] - rank - 1) % round_to == 0)  # a step ends where a multiple is left
    step = np.repeat(np.flatnonzero(last), np.diff(np.flatnonzero(last[leaves]), prepend=-1))
    when = np.argsort(by_group[step], kind="stable")
    ends = np.flatnonzero(np.diff(step[when], append=-1)) + 1
    return order[leaves][when], np.concatenate([np.zeros(1, np.int64), ends])


def _quota(size: int, cap: float, round_to: int) -> int:
    """How many channels may leave a group: within the cap, not all, and to a multiple of round_to."""
    may = min(int(size * cap + 1e-9), size - 1)
    return max(0, size - -(-(size - may) // round_to) * round_to)


def _check_round_to(round_to: Any) -> None:
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise InvalidInput(f"round_to is {round_to!r}; it must be a whole number, at least 1")
