"""Plans, and the greedy choice against a naive reference that takes one channel at a time."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from orchestrator.network import (
    BudgetUnreachable,
    CostTable,
    Coupling,
    Group,
    Plan,
    PlanMismatch,
    couple,
    cut,
    greedy,
    measure,
    random_plan,
)
from orchestrator.network.plan import removal_order
from orchestrator.network.recording import Call
from orchestrator.network.zoo import NETWORKS
from orchestrator.record import InvalidInput


def chain(widths: Sequence[int], positions: Sequence[int]) -> Coupling:
    """A made-up chain of layers: 3 pictures' channels, `widths`, 10 classes; layer i runs at positions[i] places."""
    ends = np.cumsum([0, *widths])
    channels = [np.arange(start, stop) for start, stop in pairwise(ends)]
    sizes = [3, *widths, 10]
    dims = {}
    for i, mine in enumerate(channels):
        dims[f"layer{i}.weight", 0] = mine
        dims[f"layer{i + 1}.weight", 1] = mine
    groups = tuple(
        Group(
            name=f"layer{i}",
            start=int(mine[0]),
            size=len(mine),
            members=((f"layer{i}.weight", 0), (f"layer{i + 1}.weight", 1)),
            made=((f"layer{i}.weight", 0),),
            exact=True,
            inexact_reason=None,
            summed=False,
        )
        for i, mine in enumerate(channels)
    )
    calls = [Call(module=f"layer{i}", weight=f"layer{i}.weight", positions=p) for i, p in enumerate(positions)]
    shapes = {f"layer{i}.weight": (sizes[i + 1], sizes[i]) for i in range(len(sizes) - 1)}
    return Coupling(groups=groups, frozen=(), dims=dims, shapes=shapes, buffers=frozenset(), calls=tuple(calls))


def flops_by_hand(coupling: Coupling, positions: Sequence[int], kept: np.ndarray) -> int:
    widths = [3, *(int(kept[group.channels].sum()) for group in coupling.groups), 10]
    return sum(p * a * b for p, a, b in zip(positions, widths, widths[1:], strict=False))


def naive(
    coupling: Coupling, positions: Sequence[int], scores: np.ndarray, budget: int, cap: float, *, round_to: int = 1
) -> np.ndarray | None:
    """Take the lowest score that may still leave, one after another, until the budget is met; None if it cannot be.

    The budget is met by what is left of each group, rounded up to a multiple.
    """
    kept = np.ones(coupling.channels, bool)
    left = {g.name: min(int(g.size * cap + 1e-9), g.size - 1) for g in coupling.groups}
    while flops_by_hand(coupling, positions, rounded_up(coupling, scores, kept, round_to)) > budget:
        best = None
        for group in coupling.groups:
            for channel in range(group.start, group.start + group.size):
                open_here = kept[channel] and left[group.name] > 0
                if open_here and (best is None or scores[channel] < scores[best[0]]):
                    best = channel, group.name
        if best is None:
            return None
        kept[best[0]] = False
        left[best[1]] -= 1
    return rounded_up(coupling, scores, kept, round_to)


def rounded_up(coupling: Coupling, scores: np.ndarray, kept: np.ndarray, round_to: int) -> np.ndarray:
    """With the best of those that left each group taken back, up to a multiple or to the whole group."""
    result = kept.copy()
    for group in coupling.groups:
        channels = range(group.start, group.start + group.size)
        gone = sorted((c for c in channels if not kept[c]), key=lambda c: (scores[c], c))
        while gone and (group.size - len(gone)) % round_to:
            result[gone.pop()] = True
    return result


@st.composite
def cases(draw: st.DrawFn) -> tuple[Coupling, list[int], np.ndarray, int, float]:
    widths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    positions = draw(st.lists(st.integers(1, 9), min_size=len(widths) + 1, max_size=len(widths) + 1))
    coupling = chain(widths, positions)
    scores = draw(st.lists(st.integers(0, 5), min_size=sum(widths), max_size=sum(widths)))  # with ties
    full = CostTable(coupling).flops()
    return (
        coupling,
        positions,
        np.array(scores, float),
        draw(st.integers(0, full)),
        draw(st.sampled_from([0.3, 0.5, 1.0])),
    )


@settings(max_examples=300)
@given(cases())
def test_greedy_equals_one_channel_at_a_time(case: tuple[Coupling, list[int], np.ndarray, int, float]) -> None:
    coupling, positions, scores, budget, cap = case
    expected = naive(coupling, positions, scores, budget, cap)
    if expected is None:
        with pytest.raises(BudgetUnreachable):
            greedy(coupling, scores, budget, cap)
        return
    mask = greedy(coupling, scores, budget, cap).mask(coupling)
    assert mask.tolist() == expected.tolist()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.35, 0.99), st.sampled_from([0.5, 0.8, 1.0]))
def test_greedy_meets_its_budget_within_one_channel(seed: int, flops_kept: float, cap: float) -> None:
    table = CostTable(RESNET)
    scores = np.random.default_rng(seed).random(RESNET.channels)
    budget = int(table.flops() * flops_kept)
    plan = greedy(RESNET, scores, budget, cap)
    mask = plan.mask(RESNET)
    assert table.flops(mask) <= budget
    last = max(np.flatnonzero(~mask), key=lambda channel: scores[channel])
    mask[last] = True
    assert table.flops(mask) > budget
    for group in RESNET.groups:
        assert len(plan.kept.get(group.name, range(group.size))) >= 1
        assert len(plan.kept.get(group.name, range(group.size))) >= group.size - int(cap * group.size)


@settings(max_examples=300)
@given(cases(), st.integers(2, 4))
def test_rounded_greedy_equals_one_channel_at_a_time(
    case: tuple[Coupling, list[int], np.ndarray, int, float], round_to: int
) -> None:
    coupling, positions, scores, budget, cap = case
    expected = naive(coupling, positions, scores, budget, cap, round_to=round_to)
    if expected is None:
        by_rounding = naive(coupling, positions, scores, budget, cap) is not None
        with pytest.raises(BudgetUnreachable) as caught:
            greedy(coupling, scores, budget, cap, round_to=round_to)
        assert ("round_to is the reason" in str(caught.value)) is by_rounding
        return
    mask = greedy(coupling, scores, budget, cap, round_to=round_to).mask(coupling)
    assert mask.tolist() == expected.tolist()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.7, 0.99), st.sampled_from([0.5, 1.0]), st.sampled_from([3, 8, 16]))
def test_greedy_meets_its_budget_within_one_rounding_step(
    seed: int, flops_kept: float, cap: float, round_to: int
) -> None:
    table = CostTable(RESNET)
    scores = np.random.default_rng(seed).random(RESNET.channels)
    budget = int(table.flops() * flops_kept)
    plan = greedy(RESNET, scores, budget, cap, round_to=round_to)
    mask = plan.mask(RESNET)
    assert table.flops(mask) <= budget
    for name, kept in plan.kept.items():
        assert len(kept) % round_to == 0
        assert len(kept) >= RESNET.by_name[name].size * (1 - cap)
        assert (
            scores_of(RESNET, scores, name)[list(kept)].min() > np.delete(scores_of(RESNET, scores, name), kept).max()
        )
    group = RESNET.groups[RESNET.group_of[max(np.flatnonzero(~mask), key=lambda channel: scores[channel])]]
    gone = [c for c in range(group.start, group.start + group.size) if not mask[c]]
    mask[sorted(gone, key=lambda channel: scores[channel])[-round_to:]] = True  # all that left, if fewer
    assert table.flops(mask) > budget


def scores_of(coupling: Coupling, scores: np.ndarray, name: str) -> np.ndarray:
    return scores[coupling.by_name[name].channels]


@pytest.mark.parametrize(
    ("width", "round_to", "widths"),
    [
        (8, 8, {8}),  # no wider: whole
        (5, 8, {5}),
        (9, 8, {9, 8}),
        (20, 8, {20, 16, 8}),  # no multiple: whole, or down to one
        (16, 1, set(range(1, 17))),
        (7, 3, {7, 6, 3}),
    ],
)
def test_the_widths_that_a_rounded_group_can_have(width: int, round_to: int, widths: set[int]) -> None:
    coupling = chain([width], [1, 1])
    scores = np.random.default_rng(0).random(width)
    found = set()
    for budget in range(CostTable(coupling).flops() + 1):
        try:
            found.add(int(greedy(coupling, scores, budget, round_to=round_to).mask(coupling).sum()))
        except BudgetUnreachable:
            continue
    assert found == widths


@pytest.mark.parametrize(("cap", "kept"), [(0.25, 24), (0.34, 16), (0.7, 8)])
def test_rounding_never_takes_more_than_the_cap(cap: float, kept: int) -> None:
    coupling = chain([24], [1, 1])
    assert removal_order(coupling, np.zeros(24), cap, round_to=8).tolist() == list(range(24 - kept))


def test_iteration_after_iteration_widths_stay_multiples() -> None:
    coupling, plan = RESNET, Plan(kept={})
    for seed in range(3):
        scores = np.random.default_rng(seed).random(coupling.channels)
        later = greedy(coupling, scores, int(CostTable(coupling).flops() * 0.75), 0.5, round_to=8)
        assert later.kept
        coupling, plan = coupling.restrict(later), plan.then(later)
        assert all(len(kept) % 8 == 0 for kept in plan.kept.values())


def test_the_channels_of_a_step_leave_together() -> None:
    coupling = chain([4, 4], [1, 1, 1])
    scores = np.array([0.0, 5, 6, 7, 1, 2, 3, 4])
    assert removal_order(coupling, scores).tolist() == [0, 4, 5, 6, 1, 2]
    assert removal_order(coupling, scores, round_to=2).tolist() == [4, 5, 0, 1]


RESNET = couple(NETWORKS["resnet20"](10, (3, 32, 32)), torch.zeros(1, 3, 32, 32))


def test_greedy_takes_from_the_named_groups_only() -> None:
    scores = np.arange(RESNET.channels, dtype=float)
    allowed = frozenset(group.name for group in RESNET.groups if not group.summed)
    plan = greedy(RESNET, scores, int(CostTable(RESNET).flops() * 0.8), groups=allowed)
    assert set(plan.kept) <= allowed


def test_greedy_cut_has_the_flops_of_the_table() -> None:
    model, example = NETWORKS["cifarnet"](10, (3, 32, 32)), torch.zeros(1, 3, 32, 32)
    coupling = couple(model, example)
    table = CostTable(coupling)
    plan = greedy(coupling, np.random.default_rng(0).random(coupling.channels), table.flops() // 2)
    assert measure(cut(model, coupling, plan), example).flops == table.flops(plan.mask(coupling)) <= table.flops() // 2


def test_a_full_budget_keeps_everything() -> None:
    assert greedy(RESNET, np.zeros(RESNET.channels), CostTable(RESNET).flops()).kept == {}


def test_an_unreachable_budget_says_how_low_it_goes() -> None:
    coupling = chain([4, 4], [1, 1, 1])
    with pytest.raises(
        BudgetUnreachable, match=r"^flops budget 10 cannot be met: with a cap of 0\.5 .* from 68 to 30 at"
    ):
        greedy(coupling, np.zeros(8), 10, 0.5)


def test_a_budget_that_only_rounding_makes_unreachable_says_so() -> None:
    coupling = chain([4, 4], [1, 1, 1])  # 3 x 4 + 4 x 4 + 4 x 10
    with pytest.raises(
        BudgetUnreachable,
        match=r"^flops budget 40 cannot be met: with a cap of 0\.5 a group and round_to 4, flops fall from 68 to 68 at "
        r"the lowest; round_to is the reason: without it they fall to 30$",
    ):
        greedy(coupling, np.zeros(8), 40, 0.5, round_to=4)
    with pytest.raises(BudgetUnreachable, match=r"round_to 2, flops fall from 68 to 30 at the lowest$"):
        greedy(coupling, np.zeros(8), 10, 0.5, round_to=2)


@pytest.mark.parametrize("round_to", [0, -8, 8.0, True, None, "8"])
def test_round_to_is_a_whole_number(round_to: object) -> None:
    with pytest.raises(InvalidInput, match=r"^round_to is .*; it must be a whole number, at least 1$"):
        greedy(chain([4, 4], [1, 1, 1]), np.zeros(8), 68, round_to=round_to)


@pytest.mark.parametrize("scores", [np.zeros(7), np.full(8, np.nan)])
def test_scores_must_fit(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="values for 8 channels, all must be finite"):
        greedy(chain([4, 4], [1, 1, 1]), scores, 40)


masks = st.lists(st.booleans(), min_size=9, max_size=9)


def any_left(coupling: Coupling, mask: Sequence[bool]) -> np.ndarray:
    found = np.array(mask)
    found[[group.start for group in coupling.groups]] = True
    return found


@given(masks)
def test_plan_round_trips(mask: list[bool]) -> None:
    coupling = chain([4, 2, 3], [1, 1, 1, 1])
    kept = any_left(coupling, mask)
    plan = Plan.from_mask(coupling, kept)
    assert plan.mask(coupling).tolist() == kept.tolist()
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_mask(coupling, np.ones(9, bool)).kept == {}


@given(masks, masks)
def test_plans_compose(first: list[bool], second: list[bool]) -> None:
    coupling = chain([4, 2, 3], [1, 1, 1, 1])
    plan = Plan.from_mask(coupling, any_left(coupling, first))
    smaller = coupling.restrict(plan)
    later = Plan.from_mask(smaller, any_left(smaller, second[: smaller.channels]))
    both = plan.then(later)
    assert smaller.restrict(later).shapes == coupling.restrict(both).shapes
    expected = plan.mask(coupling)
    expected[np.flatnonzero(expected)[~later.mask(smaller)]] = False
    assert both.mask(coupling).tolist() == expected.tolist()


def test_composed_plan_cuts_as_two_cuts_do() -> None:
    model, example = NETWORKS["cifarnet"](10, (3, 32, 32)), torch.zeros(1, 3, 32, 32)
    coupling = couple(model, example)
    first = random_plan(coupling, seed=1)
    second = random_plan(coupling.restrict(first), seed=2)
    twice = cut(cut(model, coupling, first), coupling.restrict(first), second)
    once = cut(model, coupling, first.then(second))
    assert all(torch.equal(a, b) for a, b in zip(twice.parameters(), once.parameters(), strict=True))


@pytest.mark.parametrize("positions", [(), (1, 0), (1, 1), (-1, 0)])
def test_plan_positions_ascend(positions: tuple[int, ...]) -> None:
    with pytest.raises(PlanMismatch, match=r"plan: conv keeps .* ascending positions"):
        Plan(kept={"conv": positions})


def test_plan_of_another_network_does_not_fit() -> None:
    coupling = chain([4, 4], [1, 1, 1])
    with pytest.raises(PlanMismatch, match="plan: conv9 is no group of this network"):
        Plan(kept={"conv9": (0,)}).mask(coupling)
    with pytest.raises(PlanMismatch, match="plan: layer1 keeps position 4; the group has 4 channels"):
        Plan(kept={"layer1": (0, 4)}).mask(coupling)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kept": [1]}', '{"kept": {"a": 3}}', '{"kept": {"a": ["x"]}}'])
def test_text_that_is_no_plan(text: str) -> None:
    with pytest.raises(PlanMismatch, match="plan: not of the form"):
        Plan.from_json(text)


@given(st.integers(0, 1000), st.floats(0.01, 1.0))
def test_random_plan_leaves_every_group_some_and_takes_some(seed: int, keep: float) -> None:
    coupling = chain([4, 1, 7], [1, 1, 1, 1])
    plan = random_plan(coupling, keep=keep, seed=seed)
    assert set(plan.kept) == {"layer0", "layer2"}
    assert 1 <= len(plan.kept["layer0"]) <= 3
    assert plan == random_plan(coupling, keep=keep, seed=seed)


def test_random_plan_leaves_inexact_groups_whole() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 2)
    )
    coupling = couple(model, torch.zeros(1, 3, 8, 8))
    assert set(random_plan(coupling).kept) == {"2"}
    everything = random_plan(coupling, exact_only=False)
    assert set(everything.kept) == {"0", "2"}
    assert everything.exact_only(coupling).kept == {"2": everything.kept["2"]}
