"""Compensation against plain least squares, its ranking against brute force, its search against its own rules."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import EXAMPLE, built, conv, subject_of
from torch import Tensor, nn

from orchestrator.methods import METHODS, Budget, Subject
from orchestrator.methods.compensation import halves
from orchestrator.methods.compensation_algebra import Moments, Selection, refitted, rescaled, variances
from orchestrator.methods.compensation_ranking import places, ranked
from orchestrator.methods.compensation_readings import Reading
from orchestrator.methods.compensation_repair import Compensation
from orchestrator.methods.compensation_search import StructuralSearch, allowed_widths, flops_of
from orchestrator.methods.compensation_shifts import Shift, shifts
from orchestrator.methods.layers import COMPUTED, calls, evaluating, outputs, patches, watching
from orchestrator.network import BudgetUnreachable, CostTable, Plan, couple, cut, measure
from orchestrator.network.coupling import Group
from orchestrator.record import InvalidInput

COMPENSATION = METHODS["compensation"]
EXACT = {"damping": 0.0, "positions": 0, "rescale": False}


def samples(count: int, size: int, seed: int = 0, rank: int | None = None) -> Tensor:
    """[count, size] correlated, with a mean of its own; of less than full rank if asked."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(count, rank or size, generator=generator, dtype=torch.float64)
    mix = torch.randn(rank or size, size, generator=generator, dtype=torch.float64)
    return low @ mix + torch.randn(size, generator=generator, dtype=torch.float64)


def weights(made: int, read: int) -> Tensor:
    return torch.randn(made, read, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def moments_of(x: Tensor) -> Moments:
    return Moments(count=len(x), mean=x.mean(0), second=x.T @ x / len(x))


def reading_of(x: Tensor, weight: Tensor, labels: list[int], *, centred: bool = True) -> Reading:
    moments = moments_of(x)
    return Reading(weight=weight, labels=np.array(labels), moments=moments, centred=centred, damping=0.0)


def group_of(size: int, start: int = 0) -> Group:
    return Group(name="g", start=start, size=size, members=(), made=(), exact=True, inexact_reason=None, summed=False)


def explained(spread: Tensor, weight: Tensor, taken: list[int]) -> float:
    """tr(B^T S_ss^{-1} B) with B = S_{s,:} W^T, computed anew."""
    if not taken:
        return 0.0
    against = spread[taken] @ weight.T
    return float(torch.trace(against.T @ torch.linalg.solve(spread[taken][:, taken], against)))


# -- matrices


@pytest.mark.parametrize("centred", [True, False])
def test_refitted_weights_are_those_of_plain_least_squares(centred: bool) -> None:
    x, weight, left = samples(200, 12), weights(5, 12), [0, 2, 3, 7, 8, 11]
    spread = moments_of(x).spread(centred)
    found = refitted(weight @ spread[:, left], spread[left][:, left], weight[:, left], 0.0)
    y, inputs = x @ weight.T, x[:, left]
    if centred:
        y, inputs = y - y.mean(0), inputs - inputs.mean(0)
    expected = np.linalg.lstsq(inputs.numpy(), y.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("damping", [0.0, 1e-6, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("rank", [12, 4])
def test_refitting_never_makes_the_error_larger(damping: float, rank: int) -> None:
    x, weight, left = samples(200, 12, rank=rank), weights(5, 12), [0, 2, 3, 7, 8, 11]
    spread = moments_of(x).spread(True)
    before = weight.clone()
    before[:, [i for i in range(12) if i not in left]] = 0
    after = torch.zeros_like(weight)
    after[:, left] = refitted(weight @ spread[:, left], spread[left][:, left], weight[:, left], damping)
    lost, kept = (variances(weight - each, spread).sum() for each in (before, after))
    assert kept <= lost * (1 + 1e-9)
    if rank < len(left) and damping == 0:
        assert kept < 1e-9 * lost  # what is left spans all there is


def test_inputs_that_do_not_vary_keep_their_weights() -> None:
    x, weight = samples(200, 6), weights(3, 6)
    x[:, 1] = 0.0
    spread, left = moments_of(x).spread(True), [0, 1, 2, 3]
    found = refitted(weight @ spread[:, left], spread[left][:, left], weight[:, left], 0.0)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, 1], weight[:, 1])


def test_rescaled_rows_have_the_wanted_variance() -> None:
    spread, weight = moments_of(samples(200, 6)).spread(True), weights(3, 6)
    wanted = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(variances(rescaled(weight, spread, wanted), spread), wanted)
    nothing = torch.zeros_like(weight)
    assert torch.equal(rescaled(nothing, spread, wanted), nothing)  # no scale brings back what is gone


def test_a_growing_set_holds_inverse_weights_and_residual() -> None:
    """The block inverse that grows against the one computed directly; so for what hangs on it."""
    spread, weight = moments_of(samples(300, 15)).spread(True), weights(4, 15)
    selection, blocks = Selection(spread, weight, 0.0), torch.arange(15).view(5, 3)
    taken: list[int] = []
    for block in (3, 0, 4):
        gain = selection.gains(blocks)[block].item()
        more = [*taken, *blocks[block].tolist()]
        step = explained(spread, weight, more) - explained(spread, weight, taken)
        assert gain == pytest.approx(step, rel=1e-6)
        selection.take_(blocks[block])
        taken = more
        inverse = torch.linalg.inv(spread[taken][:, taken])
        rest = [i for i in range(15) if i not in taken]
        torch.testing.assert_close(-selection.table[taken][:, taken], inverse, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(selection.cross[:, taken], weight @ spread[:, taken] @ inverse, rtol=1e-6, atol=1e-8)
        schur = spread[rest][:, rest] - spread[rest][:, taken] @ inverse @ spread[taken][:, rest]
        torch.testing.assert_close(selection.table[rest][:, rest], schur, rtol=1e-6, atol=1e-7)


def test_what_others_hold_already_adds_nothing() -> None:
    x = samples(300, 6)
    x[:, 4:] = x[:, :2]  # the last block repeats the first
    selection = Selection(moments_of(x).spread(True), weights(4, 6), 0.0)
    blocks = torch.arange(6).view(3, 2)
    first = selection.gains(blocks)
    selection.take_(blocks[0])
    second = selection.gains(blocks)
    assert second[2] < 1e-6 * first[2]
    selection.take_(blocks[2])
    selection.take_(blocks[1])
    assert selection.table.isfinite().all()


# -- ranking


def test_greedy_ranking_is_that_of_brute_force() -> None:
    """At every step the channel that explains most with those before it; the first step is the best of all."""
    x, weight = samples(300, 10), weights(4, 10)
    reading = reading_of(x, weight, [i // 2 for i in range(10)])
    order, gains = ranked(group_of(5), [reading])
    spread, total, taken = reading.spread, reading.power, []
    for rank, found in enumerate(order.tolist()):
        left = [c for c in range(5) if c not in taken]
        inputs = {c: [i for t in [*taken, c] for i in (2 * t, 2 * t + 1)] for c in left}
        best = max(left, key=lambda c: explained(spread, weight, inputs[c]))
        assert found == best
        taken.append(found)
        assert gains[: rank + 1].sum() == pytest.approx(explained(spread, weight, inputs[best]) / total, rel=1e-6)
    assert gains.sum() == pytest.approx(1.0, rel=1e-6)


def test_all_layers_that_read_a_group_rank_it_together() -> None:
    """A dense block's channels: one layer reads them alone, one with others, which are there to make up for them."""
    x, labels = samples(400, 8), [7, 0, 1, 2, 3, 7, 7, -1]
    first = reading_of(x[:, 1:5], weights(3, 4), [0, 1, 2, 3], centred=False)
    second = reading_of(x, weights(5, 8), labels)
    order, gains = ranked(group_of(4), [first, second])
    others = [0, 5, 6, 7]

    def worth(channels: tuple[int, ...]) -> float:
        alone = explained(first.spread, first.weight, list(channels)) / first.power
        inputs = [*others, *(1 + c for c in channels)]
        base = explained(second.spread, second.weight, others)
        return alone + (explained(second.spread, second.weight, inputs) - base) / second.power

    assert order[0] == max(range(4), key=lambda c: worth((c,)))
    for count in (1, 2, 3, 4):
        assert gains[:count].sum() == pytest.approx(worth(tuple(order[:count].tolist())), rel=1e-6)
    pair = max(itertools.combinations(range(4), 2), key=worth)
    assert worth(tuple(order[:2].tolist())) <= worth(pair)


def test_places_follow_each_groups_order_and_leave_other_groups_last() -> None:
    coupling = couple(built("plain"), EXAMPLE)
    a, b = coupling.groups
    readings = [
        reading_of(samples(300, 8), weights(4, 8), list(range(8))),
        reading_of(samples(300, 12, seed=1), weights(5, 12), list(range(8, 20))),
    ]
    found = places(coupling, frozenset({"a"}), readings)
    assert sorted(found) == list(range(20))
    order, _ = ranked(a, readings)
    assert np.array_equal(np.argsort(-found[a.channels]), order)
    assert found[b.channels].min() > found[a.channels].max()
    both = places(coupling, frozenset({"a", "b"}), readings)
    for group in (a, b):
        assert np.array_equal(np.argsort(-both[group.channels]), ranked(group, readings)[0])


# -- networks


def seen(model: nn.Module, subject: Subject, weight: str, plan: Plan | None = None) -> tuple[Tensor, Tensor]:
    """(unfolded inputs [samples, conv_groups, F], outputs [samples, conv_groups, made]) of one layer, float64."""
    coupling = subject.coupling if plan is None else subject.coupling.restrict(plan)
    [(pictures, _)] = subject.calibration()
    [call] = [call for call in calls(model, coupling, pictures) if call.weight == weight]
    found: list[tuple[Tensor, Tensor]] = []
    with evaluating(model), watching(model, [call], lambda c, x, y: found.append((x, y))):
        model(pictures)
    return patches(call, found[0][0]).flatten(2).double(), outputs(call, found[0][1]).double()


LAYERS = [
    ("plain", "a", "b.weight"),  # no bias and no norm: no shift
    ("plain", "b", "head.weight"),
    ("grouped", "a", "b.weight"),
    ("grouped", "b", "c.weight"),
    ("transposed", "a", "up.weight"),
    ("transposed_grouped", "a", "up.weight"),
    ("dense", "stem", "a.weight"),
    ("dense", "b", "last.weight"),
    ("flattened", "a", "hidden.weight"),
]


@pytest.mark.parametrize(("network", "group", "weight"), LAYERS)
def test_a_layer_comes_as_near_to_what_it_made_as_least_squares(network: str, group: str, weight: str) -> None:
    subject = subject_of(built(network), COMPENSATION, **EXACT)
    size = subject.coupling.by_name[group].size
    plan = Plan(kept={group: tuple(range(0, size, 2))})
    small = cut(subject.model, subject.coupling, plan)
    x, before = seen(small, subject, weight, plan)
    y = seen(subject.model, subject, weight)[1]
    COMPENSATION.repair_(small, subject, plan)
    after = seen(small, subject, weight, plan)[1]
    lost, left = ((each - y).square().mean() for each in (before, after))
    assert left <= lost
    has_bias = weight.replace("weight", "bias") in dict(small.named_parameters())
    for number in range(x.shape[1]):
        inputs = torch.cat([x[:, number], x.new_ones(len(x), has_bias)], 1)
        fit = torch.linalg.lstsq(inputs, y[:, number], driver="gelsd").solution
        least = (inputs @ fit - y[:, number]).square().mean()
        assert (after[:, number] - y[:, number]).square().mean() <= least * (1 + 1e-4) + 1e-9


@pytest.mark.parametrize(("network", "group", "weight"), LAYERS)
def test_rescaled_outputs_vary_as_they_did(network: str, group: str, weight: str) -> None:
    """Where no shift is possible their mean square is what it was."""
    subject = subject_of(built(network), COMPENSATION, **{**EXACT, "rescale": True})
    plan = Plan(kept={group: tuple(range(0, subject.coupling.by_name[group].size, 2))})
    small = cut(subject.model, subject.coupling, plan)
    COMPENSATION.repair_(small, subject, plan)
    y, after = seen(subject.model, subject, weight)[1], seen(small, subject, weight, plan)[1]
    if weight.replace("weight", "bias") in dict(small.named_parameters()):
        torch.testing.assert_close(after.mean(0), y.mean(0), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(after.var(0), y.var(0), rtol=1e-3, atol=1e-6)
    else:
        torch.testing.assert_close(after.square().mean(0), y.square().mean(0), rtol=1e-3, atol=1e-6)


class Normed(nn.Module):
    """Convolutions without biases: one before a norm, one before a norm and something else, one before nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stem, self.norm0 = conv(3, 8), nn.BatchNorm2d(8)
        self.a, self.norm1 = conv(8, 8, bias=False), nn.BatchNorm2d(8, **options)
        self.b, self.norm2 = conv(8, 8, bias=False), nn.BatchNorm2d(8)
        self.c, self.head = conv(8, 6, bias=False), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.a(F.relu(self.norm0(self.stem(x))))))
        y = self.b(x)
        return self.head(F.relu(self.c(F.relu(self.norm2(y) + y))).mean((2, 3)))


def normed(**options: Any) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return Normed(**options).eval()


def shifts_of(model: nn.Module) -> dict[str, Shift]:
    return shifts(model, calls(model, couple(model, EXAMPLE), EXAMPLE), EXAMPLE)


def test_a_shift_goes_into_the_bias_or_the_norm_that_alone_reads_the_layer() -> None:
    model = normed()
    expected = {
        "stem.weight": Shift(bias="stem.bias"),
        "a.weight": Shift(running_mean="norm1.running_mean"),
        "head.weight": Shift(bias="head.bias"),
    }
    assert shifts_of(model) == expected
    assert shifts_of(normed(track_running_stats=False)) == {**expected, "a.weight": Shift()}
    model.b.bias = model.stem.bias  # of two layers: the shift of one is wrong for the other
    assert "stem.weight" not in shifts_of(model)


def test_what_is_given_back_is_read() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = conv(3, 4, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.a(x)
            return x, self.norm(x)

    assert shifts_of(Both().eval()) == {}


def test_the_norm_takes_the_shift_up() -> None:
    """What leaves the norm has the mean that it had, by its running mean alone; nothing had to be measured anew."""
    subject = subject_of(normed(), COMPENSATION, **EXACT)
    plan = Plan(kept={"stem": (0, 1, 5)})
    small = cut(subject.model, subject.coupling, plan)
    COMPENSATION.repair_(small, subject, plan)
    [(pictures, _)] = subject.calibration()
    with torch.no_grad():
        after = small.norm1(small.a(F.relu(small.norm0(small.stem(pictures)))))
        before = subject.model.norm1(subject.model.a(F.relu(subject.model.norm0(subject.model.stem(pictures)))))
    torch.testing.assert_close(after.mean((0, 2, 3)), before.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not torch.equal(small.norm1.running_mean, subject.model.norm1.running_mean)


def test_layers_can_be_fitted_to_what_those_before_them_now_make() -> None:
    subject = subject_of(built("plain"), COMPENSATION, **EXACT, inputs="cut")
    plan = Plan(kept={"a": (0, 3, 5), "b": (1, 2, 5, 7)})
    small = cut(subject.model, subject.coupling, plan)
    COMPENSATION.repair_(small, subject, plan)
    x, after = seen(small, subject, "head.weight", plan)
    y = seen(subject.model, subject, "head.weight")[1]
    inputs = torch.cat([x[:, 0], torch.ones(len(x), 1)], 1)
    best = inputs @ torch.linalg.lstsq(inputs, y[:, 0], driver="gelsd").solution
    torch.testing.assert_close(after[:, 0], best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("widths", ["greedy", "search"])
@pytest.mark.parametrize("network", ["residual", "depthwise_gated", "grouped", "one_channel", "flattened"])
def test_both_ways_to_widths_meet_the_budget(network: str, widths: str) -> None:
    model = built(network)
    subject = subject_of(model, COMPENSATION, widths=widths, residual_streams=network == "residual")
    cap, flops = 0.5, CostTable(subject.coupling).flops()
    budget = Budget(flops=int(flops * 0.75), group_cap=cap)
    plan = COMPENSATION.choose(subject, budget)
    assert 0.5 * budget.flops < measure(cut(model, subject.coupling, plan), EXAMPLE).flops <= budget.flops
    for name, kept in plan.kept.items():
        size = subject.coupling.by_name[name].size
        assert len(kept) >= size - int(cap * size)


def test_the_search_keeps_multiples_of_round_to() -> None:
    subject = subject_of(built("depthwise_gated"), COMPENSATION, widths="search")
    budget = Budget(flops=int(CostTable(subject.coupling).flops() * 0.8), group_cap=0.7, round_to=4)
    plan = COMPENSATION.choose(subject, budget)
    assert plan.kept
    assert all(len(kept) % 4 == 0 for kept in plan.kept.values())


# -- search


def search_of(accuracy: Callable[[dict[str, int]], float]) -> StructuralSearch:
    coupling = couple(built("grouped"), EXAMPLE)
    allowed = allowed_widths(coupling, Budget(flops=0, group_cap=0.75), frozenset(coupling.by_name))
    return StructuralSearch(allowed=allowed, accuracy=accuracy, flops=flops_of(coupling))


def smooth(widths: dict[str, int]) -> float:
    """An accuracy that falls with every channel."""
    return 0.9 * (1 - sum(0.1 / width for width in widths.values()))


def test_flops_at_widths_are_those_of_the_network() -> None:
    model = built("grouped")
    coupling = couple(model, EXAMPLE)
    plan = Plan(kept={name: tuple(range(group.size // 2)) for name, group in coupling.by_name.items()})
    widths = {name: len(kept) for name, kept in plan.kept.items()}
    assert flops_of(coupling)(widths) == measure(cut(model, coupling, plan), EXAMPLE).flops


@pytest.mark.parametrize("drop", [0.0, 0.02, 0.1])
def test_no_group_falls_below_its_floor_and_each_goes_as_far_as_it_can(drop: float) -> None:
    search = search_of(smooth)
    found, widths = search.with_drop(drop), search.whole
    first = smooth(widths)
    for number, (name, allowed) in enumerate(search.allowed.items(), start=1):
        widths[name] = found[name]
        floor = first - drop * number / len(search.allowed)
        assert smooth(widths) >= floor
        narrower = [width for width in allowed if width < found[name]]
        assert not narrower or smooth({**widths, name: max(narrower)}) < floor


def test_the_end_floor_is_the_highest_that_meets_the_budget() -> None:
    search = search_of(smooth)
    budget = int(search.flops(search.whole) * 0.6)
    widths, drop = search.under(budget)
    assert search.flops(widths) <= budget
    assert smooth(widths) >= smooth(search.whole) - drop
    step = smooth(search.whole) * len(search.allowed) / 2**12
    assert search.flops(search.with_drop(drop - step)) > budget


def test_widths_are_measured_once() -> None:
    asked: list[tuple[int, ...]] = []

    def accuracy(widths: dict[str, int]) -> float:
        asked.append(tuple(widths.values()))
        return smooth(widths)

    search = search_of(accuracy)
    search.under(int(search.flops(search.whole) * 0.6))
    assert len(asked) == len(set(asked))


def test_a_network_that_knows_nothing_is_cut_as_far_as_it_goes_where_it_must() -> None:
    search = search_of(lambda widths: 0.0)
    least = {name: widths[-1] for name, widths in search.allowed.items()}
    assert search.under(search.flops(least))[0] == least


def test_an_accuracy_of_zero_is_no_reason_to_miss_the_budget() -> None:
    """In floating point 1/3 - 25 x 1/3 / 25 is above 0, and all groups stayed whole."""
    allowed = {f"group{number}": [2, 1] for number in range(25)}
    search = StructuralSearch(
        allowed=allowed,
        accuracy=lambda widths: 1 / 3 if min(widths.values()) == 2 else 0.0,
        flops=lambda widths: sum(widths.values()),
    )
    assert search.flops(search.under(25)[0]) == 25


@pytest.mark.parametrize("inputs", ["original", "cut"])
def test_the_search_compensates_as_the_repair_will(inputs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name, function in (("original", Compensation.apply_), ("cut", Compensation.apply_forward_)):

        def noted(*given: Any, name: str = name, function: Callable[..., None] = function) -> None:
            done.append(name)
            function(*given)

        monkeypatch.setattr(Compensation, function.__name__, noted)
    subject = subject_of(built("plain"), COMPENSATION, widths="search", inputs=inputs)
    budget = Budget(flops=int(CostTable(subject.coupling).flops() * 0.75), group_cap=0.5)
    COMPENSATION.choose(subject, budget)
    assert set(done) == {inputs}


def test_flops_to_spare_are_spent_unless_that_costs_accuracy() -> None:
    search = search_of(smooth)
    budget = int(search.flops(search.whole) * 0.6)
    least = {name: widths[-1] for name, widths in search.allowed.items()}
    worth = {name: np.arange(widths[0])[::-1].astype(float) for name, widths in search.allowed.items()}
    found = search.spent(least, 0.5, budget, worth)
    assert search.flops(least) < search.flops(found) <= budget
    for name, widths in search.allowed.items():
        wider = [width for width in widths if width > found[name]]
        assert not wider or search.flops({**found, name: min(wider)}) > budget
    odd = search_of(lambda widths: 0.1 if widths != least else 0.9)
    odd.measured[tuple(odd.whole.values())] = 0.9
    assert odd.spent(least, 0.1, budget, worth) == least


def test_accuracies_and_statistics_see_different_pictures() -> None:
    pictures, labels = torch.arange(5), torch.arange(5)
    first, second = halves([(pictures, labels), (pictures[:1], labels[:1])])
    assert [x.tolist() for x, _ in first] == [[0, 1, 2], [0]]
    assert [x.tolist() for x, _ in second] == [[3, 4]]


# -- errors


def test_it_says_what_calibration_it_needs() -> None:
    subject = subject_of(built("plain"), COMPENSATION, widths="search")
    budget = Budget(flops=CostTable(subject.coupling).flops() - 1, group_cap=0.5)
    with pytest.raises(InvalidInput, match="there are no calibration pictures; it needs at least a batch"):
        COMPENSATION.choose(replace(subject, calibration=lambda: ()), budget)
    one = (torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InvalidInput, match="widths = 'search' needs batches of two or more calibration pictures"):
        COMPENSATION.choose(replace(subject, calibration=lambda: [one]), budget)


def test_layers_that_cannot_be_treated_are_named() -> None:
    model = built("plain")
    nn.utils.parametrizations.weight_norm(model.b)
    subject = subject_of(model, COMPENSATION)
    budget = Budget(flops=CostTable(subject.coupling).flops() - 1, group_cap=0.5)
    assert set(COMPENSATION.choose(subject, budget).kept) == {"b"}
    (pictures, _), *_ = subject.calibration()
    reasons = COMPENSATION.left_whole(replace(subject, calibration=lambda: ()), pictures)
    assert reasons == {"a": "compensation can treat no layer that reads these channels"}
    with pytest.raises(BudgetUnreachable, match=r"cannot be met.*; left whole: a, as compensation can treat no"):
        COMPENSATION.choose(subject, replace(budget, flops=1))
    plan = Plan(kept={"a": (0, 1), "b": (0, 1)})
    small = cut(model, subject.coupling, plan)
    assert COMPENSATION.repair_(small, subject, plan) == {"b": COMPUTED}
