"""LASSO selection against scikit-learn on the written-out regression, and what repair makes of a cut network."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, islice

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, LinearRegression
from small_networks import EXAMPLE, built, conv, subject_of
from torch import Tensor, nn

from orchestrator.methods import METHODS, Budget, Subject, options_of
from orchestrator.methods.lasso import choose, contributions, lasso_at, repair_, strongest
from orchestrator.methods.layers import LayerCall, calls, evaluating, outputs, patches, watching
from orchestrator.methods.least_squares import Moments
from orchestrator.network import CostTable, Plan, couple, cut
from orchestrator.record import InvalidInput, Schedule
from orchestrator.training.batches import Batches
from orchestrator.training.datasets import load
from orchestrator.training.loop import evaluate, fit, reestimate_norm_statistics_
from orchestrator.training.splits import DataSet

LASSO, FILTER_NORM = METHODS["lasso"], METHODS["filter_norm"]


def regression(seed: int, channels: int = 8, samples: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A regression written out: columns [samples, channels] that are not independent, a target; and which count."""
    generator = np.random.default_rng(seed)
    columns = generator.normal(size=(samples, channels)) @ (
        np.eye(channels) + generator.normal(size=(channels,) * 2) / 5
    )
    weights = generator.permutation(np.geomspace(1, 0.05, channels))
    return columns, columns @ weights + generator.normal(size=samples) / 5, weights


@pytest.mark.parametrize("seed", range(5))
def test_lasso_at_is_on_scikit_learns_path_with_the_wanted_number(seed: int) -> None:
    """Bisection meets every number of channels; there the solution is scikit-learn's for the same columns."""
    columns, target, _ = regression(seed)
    scale = len(target)
    for count in range(1, 8):
        found = lasso_at(columns.T @ columns / scale, columns.T @ target / scale, count)
        assert np.count_nonzero(found) == count
        slack = columns.T @ (target - columns @ found) / scale
        alpha = np.abs(slack).max()  # what every channel that is left meets, and no other exceeds
        expected = Lasso(alpha=alpha, fit_intercept=False, tol=1e-10).fit(columns, target).coef_
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_lasso_finds_the_best_subset_where_channels_are_independent(seed: int) -> None:
    generator = np.random.default_rng(seed)
    columns = np.linalg.qr(generator.normal(size=(50, 6)))[0]
    target = columns @ generator.permutation([1.0, 0.8, 0.6, 0.4, 0.3, 0.2]) + generator.normal(size=50) / 100
    gram, against = columns.T @ columns, columns.T @ target
    for width in (2, 3, 5):
        subsets = list(combinations(range(6), width))
        fits = [LinearRegression(fit_intercept=False).fit(columns[:, s], target) for s in subsets]
        errors = [((target - fit.predict(columns[:, s])) ** 2).sum() for fit, s in zip(fits, subsets, strict=True)]
        best = subsets[int(np.argmin(errors))]
        assert tuple(np.flatnonzero(strongest(gram, against, width, np.zeros(6)))) == best


def test_channels_that_are_dead_or_alike_do_not_stop_it() -> None:
    columns, target, _ = regression(0)
    columns[:, 1] = 0.0
    columns[:, 3] = columns[:, 2]
    gram, against, norms = columns.T @ columns / 60, columns.T @ target / 60, np.arange(8.0)
    for width in range(1, 9):
        stays = strongest(gram, against, width, norms)
        assert stays.sum() == width
        assert bool(stays[1]) is (width == 8)  # the dead one leaves first
    nothing = strongest(gram * 0, against * 0, 3, norms)
    assert np.flatnonzero(nothing).tolist() == [5, 6, 7]  # all are dead: the largest norms stay


def group_and_reader(name: str, reader: str) -> tuple[Subject, LayerCall, Tensor, Tensor]:
    """A reader with its input and output on the calibration pictures, in float64."""
    model = built(name).double().eval()
    subject = subject_of(model, LASSO)
    [(pictures, _)] = subject.calibration()
    seen: list[tuple[LayerCall, Tensor, Tensor]] = []
    layers = calls(model, subject.coupling, pictures.double())
    with evaluating(model), watching(model, layers, lambda *args: seen.append(args)):
        model(pictures.double())
    [found] = [args for args in seen if args[0].layer == reader]
    return subject, *found


@pytest.mark.parametrize(
    ("network", "reader"),
    [
        ("plain", "b"),
        ("plain", "head"),
        ("grouped", "b"),
        ("dense", "b"),
        ("flattened", "hidden"),
        ("transposed", "up"),
    ],
)
def test_contributions_are_those_of_the_written_out_regression(network: str, reader: str) -> None:
    """A column a channel: what it adds to all outputs at all samples; the target: what other channels leave."""
    subject, call, x, y = group_and_reader(network, reader)
    model, coupling = subject.model, subject.coupling
    group = next(g for g in coupling.groups if (call.reads == g.start).any())
    read, weight = patches(call, x), call.matrix(model.get_parameter(call.weight).detach())
    made = outputs(call, y)
    moments = Moments.of(read.flatten(2), made)
    gram, against = contributions(call, moments, weight.flatten(2), group)

    def column(wanted: np.ndarray) -> Tensor:
        mask = torch.from_numpy(wanted)[None, :, :, None]
        return torch.einsum("sgip,goip->sgo", read * mask, weight)

    parts = [column(call.reads == channel) for channel in range(group.start, group.start + group.size)]
    target = made - column((call.reads < group.start) | (call.reads >= group.start + group.size))
    if call.bias is not None:
        parts, target, made = [p - p.mean(0) for p in parts], target - target.mean(0), made - made.mean(0)
    columns = torch.stack([part.flatten() for part in parts], 1).detach()
    energy = made.square().sum()
    np.testing.assert_allclose(gram, (columns.T @ columns / energy).numpy(), atol=1e-9)
    np.testing.assert_allclose(against, (columns.T @ target.detach().flatten() / energy).numpy(), atol=1e-9)


class Twins(nn.Module):
    """Filters in pairs that are alike: half of them can go, and nothing is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 4, bias=False), nn.Linear(4, 5)
        with torch.no_grad():
            self.a.weight[4:], self.a.bias[4:] = self.a.weight[:4], self.a.bias[:4]
            self.a.weight[:4] *= 5.0  # filter norms would keep these four; as good, and no better
            self.a.bias[:4] *= 5.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))


def test_one_of_each_pair_stays_and_repair_makes_good_for_the_other() -> None:
    torch.manual_seed(0)
    model = Twins()
    coupling = couple(model, EXAMPLE).without(["b"], "this layer alone")
    subject = subject_of(model, LASSO, coupling)
    narrow = np.ones(coupling.channels, bool)
    narrow[:4] = False
    plan = choose(subject, Budget(flops=CostTable(coupling).flops(narrow), group_cap=0.5))
    assert sorted(channel % 4 for channel in plan.kept["a"]) == [0, 1, 2, 3]
    small = cut(model, coupling, plan)
    [(pictures, _)] = subject.calibration()
    with torch.no_grad():
        assert not torch.allclose(small(pictures), model(pictures), atol=1e-3)
        repair_(small, subject, plan)
        torch.testing.assert_close(small(pictures), model(pictures), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(small(EXAMPLE), model(EXAMPLE), rtol=1e-4, atol=1e-5)  # others as well


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_fitted_as_scikit_learn_fits_it(bias: bool) -> None:
    """Plain least squares over all places: of what the cut network gives the layer, to what it made before."""
    torch.manual_seed(1)
    model = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4, bias=bias), nn.ReLU(), conv(4, 5))
    subject = subject_of(model, LASSO, shrinkage="none", places=64)
    plan = Plan(kept={"0": (0, 2, 5)})
    small = cut(model, subject.coupling, plan)
    [(pictures, _)] = subject.calibration()
    with torch.no_grad():
        read = nn.functional.unfold(small[1](small[0](pictures)), 3, padding=1).transpose(1, 2).flatten(0, 1)
        made = model[:3](pictures).movedim(1, -1).flatten(0, 2)
    expected = LinearRegression(fit_intercept=bias).fit(read.double().numpy(), made.double().numpy())
    assert repair_(small, subject, plan) == {}
    np.testing.assert_allclose(small[2].weight.detach().flatten(1), expected.coef_, rtol=1e-3, atol=1e-5)
    if bias:
        np.testing.assert_allclose(small[2].bias.detach(), expected.intercept_, rtol=1e-3, atol=1e-5)
    assert (small[2].bias is None) is not bias
    assert torch.equal(small[4].weight, model[4].weight)  # it has lost nothing


class Stream(nn.Module):
    """Two blocks around a stream, with batch norms at the branches' ends, one of them added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.into, self.back = (nn.ModuleList(conv(*sizes, bias=False) for _ in range(2)) for sizes in [(6, 8), (8, 6)])
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.uniform_(norm.running_var, 0.2, 0.5)
        self.head = nn.Linear(6, 5)

    def stream(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.norms[0](self.back[0](self.into[0](x).relu()))
        y = self.norms[1](self.back[1](self.into[1](x).relu()))
        y += x
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stream(x).mean((2, 3)))


def test_the_last_layer_of_a_branch_makes_up_for_its_shortcut() -> None:
    """Fitted to Y1 - Y1' + Y2, the stream after the block is nearer to the original's than fitted to Y2 alone."""
    torch.manual_seed(2)
    model = Stream().eval()
    plan = Plan(kept={"into.0": (0, 1, 2), "into.1": (0, 1, 2, 3)})
    errors = {}
    for residual in (True, False):
        subject = subject_of(model, LASSO, shrinkage="none", places=64, residual=residual)
        small = cut(model, subject.coupling, plan)
        repair_(small, subject, plan)
        [(pictures, _)] = subject.calibration()
        with torch.no_grad():
            errors[residual] = float((small.stream(pictures) - model.stream(pictures)).square().mean())
    assert errors[True] < 0.95 * errors[False]


class Untreatable(nn.Module):
    """Its second layer runs twice, its third has a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.twice = conv(3, 8), conv(8, 8)
        self.normed, self.head = nn.utils.parametrizations.weight_norm(conv(8, 6)), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.a(x).relu()).relu()).relu()
        return self.head(self.normed(x).relu().mean((2, 3)))


def test_layers_that_cannot_be_fitted_are_named_and_stay_as_cut() -> None:
    """A group whose readers cannot be followed keeps the filters of largest norm."""
    torch.manual_seed(3)
    model = Untreatable()
    subject = subject_of(model, LASSO, residual_streams=True)
    plan = choose(subject, Budget(flops=int(CostTable(subject.coupling).flops() * 0.6), group_cap=0.9))
    norms = model.a.weight.abs().sum((1, 2, 3)) + model.twice.weight.abs().sum((1, 2, 3))
    kept = plan.kept["a"]
    assert set(kept) == set(norms.argsort(descending=True)[: len(kept)].tolist())
    small, untouched = (cut(model, subject.coupling, plan) for _ in range(2))
    assert repair_(small, subject, plan) == {
        "twice": "its weight is used more than once",
        "normed": "its weight is computed before it is used, or used in another shape",
    }
    assert torch.equal(small.twice.weight, untouched.twice.weight)
    assert not torch.equal(small.head.weight, untouched.head.weight)


def test_widths_are_uniform_or_those_of_greedy_pruning() -> None:
    model = built("plain")
    with torch.no_grad():
        model.b.weight *= 10
    found = {}
    for widths in ("uniform", "greedy"):
        subject = subject_of(model, LASSO, widths=widths)
        plan = choose(subject, Budget(flops=CostTable(subject.coupling).flops() // 2, group_cap=0.9))
        found[widths] = {name: len(kept) for name, kept in plan.kept.items()}
    assert found["uniform"] == {"a": 5, "b": 8}
    assert found["greedy"] == {"a": 3}


def test_options_are_checked() -> None:
    with pytest.raises(InvalidInput, match=r"method_options\.places of lasso is 0; input should be greater than or eq"):
        options_of(LASSO, {"places": 0})
    with pytest.raises(InvalidInput, match=r"method_options\.widths of lasso is 'same'; input should be 'uni"):
        options_of(LASSO, {"widths": "same"})


class Digits(nn.Module):
    """A small network with four blocks, one channel in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(1, 12), nn.BatchNorm2d(12))
        self.blocks = nn.ModuleList(self._block() for _ in range(4))
        self.head = nn.Linear(12 * 16, 10)

    def _block(self) -> nn.Module:
        into = conv(12, 16, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        return nn.Sequential(*into, conv(16, 12, bias=False), nn.BatchNorm2d(12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


def on_digits(model: nn.Module, data: DataSet, name: str) -> Subject:
    def calibration() -> Iterator[tuple[Tensor, Tensor]]:
        return islice(Batches(data, data.train, 128, torch.device("cpu")).shuffled(0), 2)

    coupling = couple(model, torch.randn(2, *data.input_shape))
    options = METHODS[name].options()
    return Subject(model=model, coupling=coupling, options=options, calibration=calibration, seed=0)


def test_on_digits_repair_regains_what_a_cut_costs() -> None:
    """Validation accuracy with norm statistics re-estimated, nothing trained, at a quarter of the flops."""
    data = load("digits")
    torch.manual_seed(1)
    model = Digits()
    fit(model, data, Schedule(epochs=6, learning_rate=0.02, batch_size=64), seed=1)
    found = {}
    for name in ("filter_norm", "lasso"):
        method, subject = METHODS[name], on_digits(model, data, name)
        budget = Budget(flops=CostTable(subject.coupling).flops() // 4, group_cap=0.95)
        plan = method.choose(subject, budget)
        for repaired in (False, True):
            small = cut(model, subject.coupling, plan)
            if repaired and method.repair_ is not None:
                method.repair_(small, subject, plan)
            reestimate_norm_statistics_(small, data, seed=0)
            found[name, repaired] = evaluate(small, data, "validation").accuracy
    assert found["lasso", True] > found["lasso", False] + 0.05
    assert found["lasso", True] > found["filter_norm", True] + 0.05
    assert found["filter_norm", True] == found["filter_norm", False]  # it has no repair


def test_a_group_that_is_never_other_than_zero_is_told_by_nothing() -> None:
    """Its solution is 0 at any alpha: none is looked for."""
    assert lasso_at(np.zeros((4, 4)), np.zeros(4), 2).tolist() == [0.0] * 4
    stays = strongest(np.zeros((4, 4)), np.zeros(4), 2, np.array([1.0, 3.0, 4.0, 2.0]))
    assert stays.tolist() == [False, True, True, False]


def test_without_pictures_it_says_what_it_needs() -> None:
    subject = replace(subject_of(built("plain"), METHODS["lasso"]), calibration=lambda: ())
    budget = Budget(flops=CostTable(subject.coupling).flops() - 1, group_cap=0.5)
    with pytest.raises(InvalidInput, match="there are no calibration pictures to fit layers on; at least a batch"):
        choose(subject, budget)
