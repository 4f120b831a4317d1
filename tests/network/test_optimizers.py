"""Optimizers and averages of a network that is cut: their state is cut as the weights are, and training goes on."""

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patterns import PATTERNS, Net, conv, linear, pooled
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from orchestrator.network import (
    Coupling,
    Plan,
    PlanMismatch,
    UnsupportedModel,
    UnsupportedOptimizer,
    couple,
    cut,
    cut_averaged,
    cut_optimizer,
    masked,
    random_plan,
)

Make = Callable[[Any], optim.Optimizer]


def tied() -> nn.Module:
    """Two layers with one weight, each with a bias of its own."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(pooled(F.relu(m.b(F.relu(m.a(F.relu(m.stem(x))))))))

    model = Net(forward, {"stem": conv(3, 8), "a": conv(8, 8), "b": conv(8, 8), "head": linear(8, 5)})
    model.b.weight = model.a.weight
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": PATTERNS["plain"].build,
    "residual": PATTERNS["residual"].build,
    "grouped_equal": PATTERNS["grouped_equal"].build,
    "depthwise": PATTERNS["depthwise"].build,
    "tied": tied,
}
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "sgd_nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, maximize=True),
    "sgd_without_momentum": lambda p: optim.SGD(p, lr=0.05),
    "sgd_fused": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: optim.Adam(p, lr=1e-3, weight_decay=1e-3),
    "adam_amsgrad": lambda p: optim.Adam(p, lr=1e-3, amsgrad=True, foreach=True),
    "adamw": lambda p: optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "adamw_fused": lambda p: optim.AdamW(p, lr=1e-3, fused=True),
    "rmsprop": lambda p: optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=1e-3, eps=1e-6),
    "nadam": lambda p: optim.NAdam(p, lr=1e-3),
    "radam": lambda p: optim.RAdam(p, lr=1e-3),
    "adamax": lambda p: optim.Adamax(p, lr=1e-3),
    "asgd": lambda p: optim.ASGD(p, lr=1e-3),
    "rprop": lambda p: optim.Rprop(p, lr=1e-3),
    "adadelta": lambda p: optim.Adadelta(p, lr=1e-2),
}
every_network = pytest.mark.parametrize("network", NETWORKS)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
EXAMPLE = torch.zeros(1, 3, 8, 8)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def coupled(network: str) -> tuple[Coupling, Plan]:
    coupling = couple(NETWORKS[network](), EXAMPLE)
    plan = random_plan(coupling, keep=0.5)
    assert plan.kept
    return coupling, plan


def built(network: str) -> tuple[nn.Module, Coupling, Plan]:
    """In float64 and training mode."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = NETWORKS[network]()
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return model.double().train(), *coupled(network)


def step(model: nn.Module, optimizer: optim.Optimizer, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, wanted = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 5, (4,), generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(model(x.double()), wanted).backward()
    optimizer.step()


def trained(network: str, make: Make, steps: int = 3) -> tuple[nn.Module, optim.Optimizer, Coupling, Plan]:
    model, coupling, plan = built(network)
    optimizer = make(model.parameters())
    for seed in range(steps):
        step(model, optimizer, seed)
    return model, optimizer, coupling, plan


def as_weights(model: nn.Module, optimizer: optim.Optimizer, key: str) -> nn.Module:
    """A copy of the network with an optimizer's state in place of each parameter."""
    twin = copy.deepcopy(model)
    for mine, parameter in zip(twin.parameters(), model.parameters(), strict=True):
        mine.data = optimizer.state[parameter][key].clone()
    return twin


def tensors_like_parameters(optimizer: optim.Optimizer) -> list[str]:
    ((parameter, values), *_) = optimizer.state.items()
    return [key for key, value in values.items() if isinstance(value, Tensor) and value.shape == parameter.shape]


@every_network
@every_optimizer
def test_state_is_cut_as_the_weights_are(network: str, name: str) -> None:
    model, optimizer, coupling, plan = trained(network, OPTIMIZERS[name])
    small = cut(model, coupling, plan)
    found = cut_optimizer(optimizer, model, small, coupling, plan)
    assert type(found) is type(optimizer)
    assert [id(p) for p in found.param_groups[0]["params"]] == [id(p) for p in small.parameters()]
    assert set(found.state) == (set(small.parameters()) if optimizer.state else set())
    for key in tensors_like_parameters(optimizer) if optimizer.state else ():
        expected = cut(as_weights(model, optimizer, key), coupling, plan)
        for parameter, wanted in zip(small.parameters(), expected.parameters(), strict=True):
            assert torch.equal(found.state[parameter][key], wanted)
    for mine, theirs in zip(found.state.values(), optimizer.state.values(), strict=True):
        assert list(mine) == list(theirs)
        assert all(mine[k] == v for k, v in theirs.items() if not isinstance(v, Tensor) or v.ndim == 0)


def test_momentum_by_hand() -> None:
    model, optimizer, coupling, _ = trained("plain", OPTIMIZERS["sgd"])
    index = [0, 2, 5]
    plan = Plan(kept={"a": tuple(index)})
    small = cut(model, coupling, plan)
    found = cut_optimizer(optimizer, model, small, coupling, plan)
    full = {name: optimizer.state[p]["momentum_buffer"] for name, p in model.named_parameters()}
    mine = {name: found.state[p]["momentum_buffer"] for name, p in small.named_parameters()}
    assert torch.equal(mine["a.weight"], full["a.weight"][index])
    assert torch.equal(mine["n.bias"], full["n.bias"][index])
    assert torch.equal(mine["b.weight"], full["b.weight"][:, index])
    assert torch.equal(mine["b.bias"], full["b.bias"])


# Not Rprop: it acts on signs, and the gradient of a bias before a norm is zero but for rounding.
@every_network
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "rprop"])
def test_training_goes_on_where_it_was(network: str, name: str) -> None:
    """The next step of the cut network is that of the full one with zeros, in weights and state, where it was cut."""
    make = OPTIMIZERS[name]
    model, optimizer, coupling, plan = trained(network, make)
    small, full = cut(model, coupling, plan), masked(model, coupling, plan)
    small_optimizer, full_optimizer = cut_optimizer(optimizer, model, small, coupling, plan), make(full.parameters())
    for mine, parameter in zip(full.parameters(), model.parameters(), strict=True):
        if parameter in optimizer.state:
            full_optimizer.state[mine] = dict(optimizer.state[parameter])
    for key in tensors_like_parameters(optimizer) if optimizer.state else ():
        zeroed = masked(as_weights(model, optimizer, key), coupling, plan)
        for mine, values in zip(full.parameters(), zeroed.parameters(), strict=True):
            full_optimizer.state[mine][key] = values.data
    step(small, small_optimizer, seed=9)
    step(full, full_optimizer, seed=9)
    expected = cut(full, coupling, plan).state_dict()
    before = cut(model, coupling, plan).state_dict()
    moved = 0.0
    for entry, tensor in small.state_dict().items():
        torch.testing.assert_close(tensor, expected[entry], rtol=0, atol=1e-10)
        moved = max(moved, (tensor - before[entry]).abs().max().item())
    assert moved > 1e-6


@every_network
@pytest.mark.parametrize("name", ["sgd", "adamw_fused", "asgd"])
def test_what_is_given_stays_as_it_was(network: str, name: str) -> None:
    model, optimizer, coupling, plan = trained(network, OPTIMIZERS[name])
    small = cut(model, coupling, plan)
    given = model.state_dict(), optimizer.state_dict(), small.state_dict()
    before = copy.deepcopy(given)
    found = cut_optimizer(optimizer, model, small, coupling, plan)
    torch.testing.assert_close(given, before, rtol=0, atol=0)
    step(small, found)
    torch.testing.assert_close(given[:2], before[:2], rtol=0, atol=0)
    found.param_groups[0]["lr"] = 7.0
    assert optimizer.param_groups[0]["lr"] != 7.0


@every_optimizer
def test_a_plan_that_keeps_everything_shares_nothing_either(name: str) -> None:
    model, optimizer, coupling, _ = trained("plain", OPTIMIZERS[name])
    small = cut(model, coupling, Plan(kept={}))
    found = cut_optimizer(optimizer, model, small, coupling, Plan(kept={}))
    torch.testing.assert_close(found.state_dict(), optimizer.state_dict(), rtol=0, atol=0)
    before = copy.deepcopy(optimizer.state_dict())
    step(small, found)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_an_optimizer_that_made_no_step_has_no_state() -> None:
    model, optimizer, coupling, plan = trained("plain", OPTIMIZERS["adamw"], steps=0)
    small = cut(model, coupling, plan)
    found = cut_optimizer(optimizer, model, small, coupling, plan)
    assert not found.state
    step(small, found)
    assert len(found.state) == len(list(small.parameters()))


def test_parameter_groups_keep_their_order_and_settings() -> None:
    model, coupling, plan = built("plain")
    groups = [
        {"params": [("head", model.head.weight), ("b", model.b.weight)], "lr": 0.1, "weight_decay": 0.0},
        {"params": [("a", model.a.weight)], "betas": (0.8, 0.9), "mine": ["of", "any", "kind"]},
    ]
    optimizer = optim.AdamW(groups, lr=torch.tensor(0.01), foreach=False)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for seed in range(2):
        step(model, optimizer, seed)
        scheduler.step()
    small = cut(model, coupling, plan)
    found = cut_optimizer(optimizer, model, small, coupling, plan)
    assert found.defaults == optimizer.defaults
    params = [group["params"] for group in found.param_groups]
    assert [list(map(id, one)) for one in params] == [[id(small.head.weight), id(small.b.weight)], [id(small.a.weight)]]
    settings = [{k: v for k, v in group.items() if k != "params"} for group in found.param_groups]
    assert settings == [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    assert settings[0]["lr"] == 0.1 * 0.25
    assert settings[0]["initial_lr"] == 0.1
    assert settings[0]["param_names"] == ["head", "b"]
    assert found.param_groups[1]["lr"] is not optimizer.param_groups[1]["lr"]


def test_a_scheduler_goes_on_with_the_cut_optimizer() -> None:
    model, coupling, plan = built("plain")
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    for seed in range(3):
        step(model, optimizer, seed)
        scheduler.step()
    small = cut(model, coupling, plan)
    scheduler.optimizer = cut_optimizer(optimizer, model, small, coupling, plan)
    before = copy.deepcopy(optimizer.state_dict())
    step(small, scheduler.optimizer)  # not the old one's step, which the scheduler has wrapped
    scheduler.step()
    assert scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * 4 / 6)) / 2)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_frozen_parameters_and_those_without_a_gradient_are_fine() -> None:
    model, coupling, plan = built("residual")
    frozen = next(iter(model.parameters())).requires_grad_(False)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    step(model, optimizer)
    assert frozen not in optimizer.state
    small = cut(model, coupling, plan)
    found = cut_optimizer(optimizer, model, small, coupling, plan)
    first, *others = small.parameters()
    assert not first.requires_grad
    assert set(found.state) == set(others)
    assert found.param_groups[0]["params"][0] is first


def test_an_optimizer_of_some_parameters_is_cut_alike() -> None:
    model, coupling, plan = built("plain")
    optimizer = OPTIMIZERS["sgd"](model.b.parameters())
    step(model, optimizer)
    small = cut(model, coupling, plan)
    assert set(cut_optimizer(optimizer, model, small, coupling, plan).state) == set(small.b.parameters())


def test_tied_weights_have_one_state() -> None:
    model, optimizer, coupling, plan = trained("tied", OPTIMIZERS["sgd"])
    small = cut(model, coupling, plan)
    found = cut_optimizer(optimizer, model, small, coupling, plan)
    assert small.a.weight is small.b.weight
    assert sum(parameter is small.a.weight for parameter in found.state) == 1
    kept = len(plan.kept["stem"])
    assert found.state[small.a.weight]["momentum_buffer"].shape == (kept, kept, 3, 3)


def test_settings_of_fused_optimizers_are_kept() -> None:
    model, optimizer, coupling, plan = trained("plain", OPTIMIZERS["adamw_fused"])
    found = cut_optimizer(optimizer, model, cut(model, coupling, plan), coupling, plan)
    assert found._step_supports_amp_scaling
    assert found.param_groups[0]["fused"] is True


@every_network
def test_factored_moments_are_cut_along_the_dimensions_they_have(network: str) -> None:
    model, optimizer, coupling, plan = trained(network, lambda p: optim.Adafactor(p, lr=1e-2))
    small = cut(model, coupling, plan)
    found = cut_optimizer(optimizer, model, small, coupling, plan)
    for name, parameter in model.named_parameters():
        mine, theirs = found.state[small.get_parameter(name)], optimizer.state[parameter]
        for key, last in (("row_var", -1), ("col_var", -2)):
            if key in theirs:
                twin = copy.deepcopy(model)
                twin.get_parameter(name).data = theirs[key].expand(parameter.shape).clone()
                expected = cut(twin, coupling, plan).get_parameter(name)
                assert torch.equal(mine[key], expected.narrow(last, 0, 1))
    step(small, found)


# -- optimizers of other people --------------------------------------------------------------------------------------


class Keeps(optim.Optimizer):
    """Keeps what it is told to for each parameter."""

    def __init__(self, parameters: Any, kept: Callable[[Tensor], dict[str, Any]]) -> None:
        super().__init__(parameters, {"lr": 0.1})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = kept(parameter)


def cut_of(kept: Callable[[Tensor], dict[str, Any]], model: nn.Module | None = None) -> tuple[nn.Module, Keeps]:
    """A network with widths 8 and 8, and the optimizer, cut."""
    model = model or nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), nn.Flatten(), linear(512, 5))
    coupling = couple(model, EXAMPLE)
    plan = Plan(kept={"0": (0, 2, 5), "2": (1, 6)})
    small = cut(model, coupling, plan)
    return small, cut_optimizer(Keeps(model.parameters(), kept), model, small, coupling, plan)


def numbered(*sizes: int) -> Tensor:
    return torch.arange(torch.Size(sizes).numel()).reshape(sizes)


def test_factors_without_a_dimension_are_cut_where_that_is_clear() -> None:
    def factors(parameter: Tensor) -> dict[str, Any]:
        if parameter.ndim < 4:
            return {}
        made, read, *_ = parameter.shape
        return {
            "row": numbered(made, read, 3),
            "places": numbered(3),
            "norm": torch.ones(1),
            "made": numbered(made, 1) if read == 3 else numbered(1),
        }

    small, found = cut_of(factors)
    first, second = found.state[small[0].weight], found.state[small[2].weight]
    assert torch.equal(first["row"], numbered(8, 3, 3)[[0, 2, 5]])
    assert torch.equal(first["made"], numbered(8, 1)[[0, 2, 5]])
    assert torch.equal(second["row"], numbered(8, 8, 3)[[1, 6]][:, [0, 2, 5]])
    assert torch.equal(second["places"], numbered(3))
    assert torch.equal(second["norm"], torch.ones(1))


def test_plain_values_are_copied() -> None:
    small, found = cut_of(lambda _: {"step": 3, "lrs": [0.1, 0.2], "name": "a", "none": None, "empty": torch.ones(0)})
    values = found.state[small[0].weight]
    assert values.pop("empty").shape == (0,)
    assert values == {"step": 3, "lrs": [0.1, 0.2], "name": "a", "none": None}


class Own:
    """A value that is no plain one."""


@pytest.mark.parametrize(
    ("kept", "what"),
    [
        (
            lambda p: {"one": torch.ones(p.shape[0] + 1)},
            r"one of 0\.weight is \(9,\), and the parameter \(8, 3, 3, 3\)",
        ),
        (lambda p: {"left": torch.eye(p.shape[0])}, r"left of 0\.weight is \(8, 8\)"),
        (lambda p: {"two": torch.ones(8) if p.shape[1:2] == (8,) else 0}, r"two of 2\.weight is \(8,\)"),
        (lambda p: {"sides": torch.ones(8, 8) if p.shape[1:2] == (8,) else 0}, r"sides of 2\.weight is \(8, 8\)"),
        (lambda p: {"old": [torch.zeros_like(p)]}, r"old of 0\.weight is a list"),
        (lambda _: {"own": Own()}, r"own of 0\.weight is a Own"),
    ],
)
def test_state_that_cannot_be_told_apart_is_refused(kept: Callable[[Tensor], dict[str, Any]], what: str) -> None:
    with pytest.raises(UnsupportedOptimizer, match=rf"^Keeps: the state {what}.*; which channels it belongs to cannot"):
        cut_of(kept)


def test_a_preconditioner_of_a_square_weight_is_not_taken_for_its_moment() -> None:
    class Mlp(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1))

    model = Mlp(linear(192, 8), nn.ReLU(), linear(8, 8), nn.ReLU(), linear(8, 5))
    with pytest.raises(
        UnsupportedOptimizer, match=r"the state left of 0\.weight is \(8, 8\), and the parameter \(8, 19"
    ):
        cut_of(lambda p: {"left": torch.eye(p.shape[0])}, model)
    with pytest.raises(
        UnsupportedOptimizer, match=r"the state left of 2\.weight is \(8, 8\), and the parameter \(8, 8"
    ):
        cut_of(lambda p: {"left": torch.eye(len(p))} if p.shape in [(8, 8), (5,)] else {}, model)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_lbfgs_is_refused() -> None:
    model, _optimizer, coupling, plan = trained("plain", OPTIMIZERS["sgd"])
    with pytest.raises(UnsupportedOptimizer, match=r"^LBFGS keeps one flat history of all parameters together"):
        cut_optimizer(optim.LBFGS(model.parameters()), model, cut(model, coupling, plan), coupling, plan)


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, _, coupling, plan = trained("plain", OPTIMIZERS["sgd"])
    _, other, *_ = trained("plain", OPTIMIZERS["sgd"])
    small = cut(model, coupling, plan)
    with pytest.raises(
        UnsupportedOptimizer, match=r"^SGD: parameter 0 of group 0, \(8, 3, 3, 3\), is none of the model;"
    ):
        cut_optimizer(other, model, small, coupling, plan)


@pytest.mark.parametrize(
    ("key", "what"), [("history", "'history'"), (nn.Parameter(torch.ones(2, 3)), r"a parameter \(2, 3\)")]
)
def test_state_of_nothing_in_the_model_is_refused(key: Any, what: str) -> None:
    model, optimizer, coupling, plan = trained("plain", OPTIMIZERS["sgd"])
    optimizer.state[key] = {"momentum_buffer": torch.ones(2, 3)}
    with pytest.raises(UnsupportedOptimizer, match=rf"^SGD: it keeps state for {what}, which is none of the model's"):
        cut_optimizer(optimizer, model, cut(model, coupling, plan), coupling, plan)


def test_tensors_beside_the_state_are_refused() -> None:
    model, optimizer, coupling, plan = trained("plain", OPTIMIZERS["sgd"])
    optimizer.direction = torch.ones(3)
    with pytest.raises(UnsupportedOptimizer, match=r"^SGD: it keeps direction, a Tensor, beside its state; only plain"):
        cut_optimizer(optimizer, model, cut(model, coupling, plan), coupling, plan)


def test_what_does_not_belong_together_is_refused() -> None:
    model, optimizer, coupling, plan = trained("plain", OPTIMIZERS["sgd"])
    small = cut(model, coupling, plan)
    with pytest.raises(
        UnsupportedModel, match=r"a\.weight is \(4, 3, 3, 3\) in this model and \(8, 3, 3, 3\) in the cou"
    ):
        cut_optimizer(optimizer, small, small, coupling, plan)
    with pytest.raises(
        PlanMismatch, match=r"a\.weight is \(8, 3, 3, 3\) in the small network, and the plan leaves \(4, "
    ):
        cut_optimizer(optimizer, model, model, coupling, plan)
    with pytest.raises(PlanMismatch, match=r"a\.weight is None in the small network"):
        cut_optimizer(optimizer, model, nn.Linear(2, 2), coupling, plan)
    with pytest.raises(PlanMismatch, match="is no group of this network"):
        cut_optimizer(optimizer, model, small, coupling, Plan(kept={"z": (0,)}))


# -- averages --------------------------------------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize(
    "options", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9), "use_buffers": True}], ids=["swa", "ema"]
)
def test_an_average_goes_on_where_it_was(network: str, options: dict[str, Any]) -> None:
    model, optimizer, coupling, plan = trained(network, OPTIMIZERS["sgd"], steps=0)
    averaged = AveragedModel(model, **options).eval()
    for seed in range(3):
        step(model, optimizer, seed)
        averaged.update_parameters(model)
    before = copy.deepcopy(averaged.state_dict())
    small = cut_averaged(averaged, coupling, plan)
    assert type(small) is AveragedModel
    assert small.n_averaged == 3
    assert (small.avg_fn, small.multi_avg_fn) == (averaged.avg_fn, averaged.multi_avg_fn)
    assert small.use_buffers is averaged.use_buffers
    assert not small.training
    step(model, optimizer, seed=3)
    small.update_parameters(cut(model, coupling, plan))
    torch.testing.assert_close(averaged.state_dict(), before, rtol=0, atol=0)
    averaged.update_parameters(model)
    expected = cut(averaged.module, coupling, plan).state_dict()
    torch.testing.assert_close(small.module.state_dict(), expected, rtol=0, atol=1e-15)
    assert small.n_averaged == averaged.n_averaged == 4


def test_an_average_of_another_network_is_refused() -> None:
    _, coupling, plan = built("plain")
    other, *_ = built("residual")
    with pytest.raises(UnsupportedModel, match=r"in this model and .* in the coupling"):
        cut_averaged(AveragedModel(other), coupling, plan)
