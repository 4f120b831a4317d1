"""Plan: the channels that stay. greedy: which those are, from scores and an exact flops budget."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from orchestrator.network.cost import CostTable
from orchestrator.network.coupling import Bools, Coupling
from orchestrator.record import InvalidInput


class BudgetUnreachable(InvalidInput):
    """No plan that respects the per-group cap (and leaves a channel in every group) is this cheap."""


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
) -> Plan:
    """Global greedy pruning: the lowest scores of all groups leave first, until the flops budget is met.

    scores: [channels], higher stays longer; ties leave in channel order. group_cap: the largest share of a group
    that may leave; at least one channel of each group stays. groups: names that may lose channels (all if None).
    The plan takes the fewest channels that meet the budget: with one less, flops are above it.
    Raises BudgetUnreachable when even all that may leave is not enough.
    Source: Li et al. 2019, OICSR, global greedy pruning; the cap from readers' notes on the paper.
    """
    if len(scores) != coupling.channels or not np.isfinite(scores).all():
        raise ValueError(f"scores: {len(scores)} values for {coupling.channels} channels, all must be finite")
    order = removal_order(coupling, scores, group_cap, groups)
    table = CostTable(coupling)
    mask = np.ones(coupling.channels, bool)

    def flops(count: int) -> int:
        mask[:] = True
        mask[order[:count]] = False
        return table.flops(mask)

    least = flops(len(order))
    if least > flops_budget:
        raise BudgetUnreachable(
            f"flops budget {flops_budget:,} cannot be met: with a cap of {group_cap:g} a group and at least "
            f"one channel in each, flops fall from {table.flops():,} to {least:,} at the lowest"
        )
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if flops(middle) <= flops_budget:
            high = middle
        else:
            low = middle + 1
    flops(low)
    return Plan.from_mask(coupling, mask)


def removal_order(
    coupling: Coupling,
    scores: npt.NDArray[np.floating[Any]],
    group_cap: float = 1.0,
    groups: frozenset[str] | None = None,
) -> npt.NDArray[np.int64]:
    """Channels that may leave, the first to leave first: ascending score, every group only up to its cap."""
    order = np.argsort(scores, kind="stable")
    quota = np.array([_quota(g.size, group_cap) if groups is None or g.name in groups else 0 for g in coupling.groups])
    owner = coupling.group_of[order]
    by_group = np.argsort(owner, kind="stable")
    sizes = np.array([g.size for g in coupling.groups], dtype=np.int64)
    rank = np.empty(len(order), np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(sizes) else np.zeros(0, np.int64)
    rank[by_group] = np.arange(len(order)) - np.repeat(starts, sizes)
    allowed: npt.NDArray[np.int64] = order[rank < quota[owner]] if len(order) else order
    return allowed


def _quota(size: int, cap: float) -> int:
    return min(int(size * cap + 1e-9), size - 1)
