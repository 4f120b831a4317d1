"""What every method must do on every network. A new method is covered as soon as it is in METHODS."""

import copy
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import EXAMPLE, NETWORKS, built, conv, subject_of
from torch import Tensor, nn

from orchestrator.methods import METHODS, Budget, Method, Penalty, Subject
from orchestrator.methods.layers import LayerCall, calls, evaluating, outputs, watching
from orchestrator.network import BudgetUnreachable, CostTable, Coupling, Plan, cut, measure, random_plan, verify
from orchestrator.network.plan import removal_order

CAP = 0.5

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_network = pytest.mark.parametrize("network", NETWORKS)
every_penalty = pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if m.penalty], ids=[n for n, m in METHODS.items() if m.penalty]
)
every_repair = pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if m.repair_], ids=[n for n, m in METHODS.items() if m.repair_]
)


def least_flops(subject: Subject, cap: float = CAP, round_to: int = 1) -> int:
    """What is left when all that may leave has left."""
    coupling = subject.coupling
    mask = np.ones(coupling.channels, bool)
    order = removal_order(coupling, np.zeros(coupling.channels), cap, subject.prunable(), round_to=round_to)
    mask[order] = False
    return CostTable(coupling).flops(mask)


def half_way(subject: Subject, round_to: int = 1) -> Budget:
    """A budget that can be met, and only by pruning."""
    flops = CostTable(subject.coupling).flops(), least_flops(subject, round_to=round_to)
    return Budget(flops=sum(flops) // 2, group_cap=CAP, round_to=round_to)


def traces(model: nn.Module) -> dict[str, Any]:
    """All that a method could leave behind: attributes, hooks, gradients, modes, and the weights themselves."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name} attributes"] = sorted(vars(module))
        found[f"{name} hooks"] = {key: len(value) for key, value in vars(module).items() if "hooks" in key and value}
        found[f"{name} mode"] = module.training
    for name, parameter in model.named_parameters():
        hooks = (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None))
        found[f"{name} parameter"] = (id(parameter), parameter.requires_grad, parameter.grad is None, hooks)
    return found


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def kept_in(plan: Plan, coupling: Coupling) -> dict[str, int]:
    return {group.name: len(plan.kept.get(group.name, range(group.size))) for group in coupling.groups}


@every_method
@every_network
def test_choose_meets_its_budget_and_the_cap(method: Method, network: str) -> None:
    model = built(network)
    subject = subject_of(model, method)
    budget = half_way(subject)
    plan = method.choose(subject, budget)
    assert measure(cut(model, subject.coupling, plan), EXAMPLE).flops <= budget.flops
    kept = kept_in(plan, subject.coupling)
    for group in subject.coupling.groups:
        assert kept[group.name] >= max(1, group.size - int(CAP * group.size))
    assert set(plan.kept) <= subject.prunable()


@every_method
@pytest.mark.parametrize(
    ("network", "round_to"), [("wide", 8), ("plain", 8), ("depthwise_gated", 8), ("grouped", 2), ("dense", 4)]
)
def test_choose_keeps_multiples_of_round_to(method: Method, network: str, round_to: int) -> None:
    model = wide() if network == "wide" else built(network)
    subject = subject_of(model, method)
    budget = half_way(subject, round_to)
    plan = method.choose(subject, budget)
    assert plan.kept
    assert all(len(positions) % round_to == 0 for positions in plan.kept.values())
    assert measure(cut(model, subject.coupling, plan), EXAMPLE).flops <= budget.flops
    kept = kept_in(plan, subject.coupling)
    assert all(kept[group.name] >= group.size - int(CAP * group.size) for group in subject.coupling.groups)


def wide() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        parts = conv(3, 24), nn.BatchNorm2d(24), nn.ReLU(), conv(24, 40), nn.ReLU(), conv(40, 20), nn.ReLU()
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(20 * 64, 5))


@every_method
def test_an_impossible_budget_is_blamed_on_rounding(method: Method) -> None:
    subject = subject_of(wide(), method)
    budget = Budget(flops=least_flops(subject, round_to=8) - 1, group_cap=CAP, round_to=8)
    with pytest.raises(BudgetUnreachable, match=r"cannot be met: .* round_to is the reason"):
        method.choose(subject, budget)


@every_method
@every_network
def test_choose_leaves_the_model_alone(method: Method, network: str) -> None:
    model = built(network)
    before, was = state(model), traces(model)
    subject = subject_of(model, method)
    method.choose(subject, half_way(subject))
    assert same(state(model), before)
    assert traces(model) == was


@every_method
def test_choose_and_repair_leave_random_states_alone(method: Method) -> None:
    subject = subject_of(built("plain"), method)
    states = torch.get_rng_state(), np.random.get_state()
    plan = method.choose(subject, half_way(subject))
    if method.repair_ is not None:
        method.repair_(cut(subject.model, subject.coupling, plan), subject, plan)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert all(np.array_equal(now, was) for now, was in zip(np.random.get_state(), states[1], strict=True))


@every_method
def test_what_runs_in_training_alone_is_not_pruned(method: Method) -> None:
    """It costs nothing where flops are counted, so a score of 0 is no reason to take it first."""
    subject = subject_of(built("auxiliary_head"), method)
    assert subject.free_of_charge() == {"aside"}
    plan = method.choose(subject, half_way(subject))
    assert plan.kept
    assert "aside" not in plan.kept


@every_method
@every_network
def test_same_seed_same_plan(method: Method, network: str) -> None:
    model = built(network)
    first, second = subject_of(model, method), subject_of(copy.deepcopy(model), method)
    plan = method.choose(first, half_way(first))
    torch.rand(3)  # neither the global random state
    np.random.rand(3)  # nor NumPy's matters
    assert method.choose(second, half_way(second)) == plan


@every_method
@every_network
def test_what_was_chosen_can_be_cut(method: Method, network: str) -> None:
    model = built(network)
    subject = subject_of(model, method)
    plan = method.choose(subject, half_way(subject))
    assert plan.kept
    assert verify(model, subject.coupling, plan, EXAMPLE).passed


@every_method
@every_network
def test_an_impossible_budget_is_refused(method: Method, network: str) -> None:
    subject = subject_of(built(network), method)
    with pytest.raises(BudgetUnreachable, match="cannot be met"):
        method.choose(subject, Budget(flops=least_flops(subject) - 1, group_cap=CAP))


@every_method
def test_residual_streams_stay_whole_unless_asked_for(method: Method) -> None:
    model = built("residual")
    streams = {group.name for group in subject_of(model, method).coupling.groups if group.summed}
    assert streams
    for wanted in (False, True):
        subject = subject_of(model, method, residual_streams=wanted)
        plan = method.choose(subject, Budget(flops=least_flops(subject), group_cap=CAP))
        assert bool(streams & set(plan.kept)) is wanted


@every_penalty
@every_network
def test_a_penalty_acts_while_its_context_is_open_and_leaves_nothing(method: Method, network: str) -> None:
    model = built(network)
    before, was = state(model), traces(model)
    plain = gradients(model)
    with opened(method, model) as penalty:
        first = gradients(model, penalty)
        second = gradients(model, penalty)
    assert acted_on(plain, first)
    assert first.keys() == plain.keys()
    assert all(gradient.isfinite().all() for gradient in first.values())
    assert same(first, second)  # nothing of one step is left for the next
    assert same(state(model), before)
    assert traces(model) == was
    assert same(gradients(model), plain)


@every_penalty
@every_network
def test_a_penalty_leaves_nothing_where_training_fails(method: Method, network: str) -> None:
    model = built(network)
    was = traces(model)

    def train() -> None:
        with opened(method, model):
            model(EXAMPLE)
            raise MemoryError

    with pytest.raises(MemoryError):
        train()
    assert traces(model) == was


def opened(method: Method, model: nn.Module, weight: float = 0.1) -> AbstractContextManager[Penalty]:
    assert method.penalty is not None
    return method.penalty(subject_of(model, method), weight)


def gradients(model: nn.Module, penalty: Penalty | None = None) -> dict[str, Tensor]:
    """Of one step of training, as fit does it; none is left on the model, and norms' statistics are put back.

    Those of parameters that no loss and no penalty reaches are left out.
    """
    before = state(model)
    loss = F.cross_entropy(model(EXAMPLE), torch.tensor([0, 3]))
    if penalty is not None:
        loss = loss + loss_of(penalty)
    loss.backward()
    if penalty is not None and penalty.after_backward is not None:
        penalty.after_backward()
    return taken(model, before)


def loss_of(penalty: Penalty) -> Tensor:
    """The term of the loss, after a forward pass; 0 of a penalty that has none."""
    if penalty.extra_loss is None:
        return torch.zeros(())
    extra = penalty.extra_loss()
    assert extra.ndim == 0
    assert extra.isfinite()
    assert extra >= 0
    return extra


def taken(model: nn.Module, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the parameters that have one, by name; the model is brought back to where it was."""
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    model.load_state_dict(before)
    return found


def acted_on(plain: dict[str, Tensor], changed: dict[str, Tensor]) -> set[str]:
    """The parameters whose gradient the penalty has changed."""
    return {name for name in changed if name not in plain or not torch.equal(plain[name], changed[name])}


@every_penalty
@every_network
def test_a_penalty_shrinks_what_it_acts_on(method: Method, network: str) -> None:
    """A step down what it adds to the gradients makes every such weight smaller; down its loss, the loss."""
    model = built(network)
    before = state(model)
    with opened(method, model) as penalty:
        assert penalty.after_backward is not None or penalty.extra_loss is not None
        if penalty.after_backward is not None:
            penalty.after_backward()
            added = {name: gradient for name, gradient in taken(model, before).items() if gradient.any()}
            assert added
            for name, gradient in added.items():
                assert (before[name] - 0.1 * gradient).norm() < before[name].norm(), name
        if penalty.extra_loss is not None:
            assert loss_after_a_step(model, penalty) < loss_after_a_step(model, penalty, length=0.0)


def loss_after_a_step(model: nn.Module, penalty: Penalty, length: float = 1e-3) -> float:
    """The penalty's own loss where its own gradient leads, so far as `length`."""
    before = state(model)
    model(EXAMPLE)
    loss_of(penalty).backward()
    gradient = taken(model, before)
    size = torch.stack([each.norm() for each in gradient.values()]).norm()
    with torch.no_grad():
        for name, each in gradient.items():
            model.get_parameter(name).sub_(length * each / size)
    model(EXAMPLE)
    found = loss_of(penalty).item()
    model.load_state_dict(before)
    return found


@every_penalty
def test_a_parameter_that_is_not_trained_gets_no_gradient(method: Method) -> None:
    """Whichever of those that the penalty acts on it is; it acts on others all the same."""
    model = built("plain")
    plain = gradients(model)
    with opened(method, model) as penalty:
        acted = acted_on(plain, gradients(model, penalty))
    assert len(acted) > 1
    for name in sorted(acted):
        parameter = model.get_parameter(name)
        parameter.requires_grad_(False)
        without = gradients(model)
        with opened(method, model) as penalty:
            changed = gradients(model, penalty)
        assert name not in changed
        assert acted_on(without, changed)
        parameter.requires_grad_(True)


@every_repair
@every_network
def test_repair_changes_weights_of_the_cut_model_and_nothing_else(method: Method, network: str) -> None:
    model = built(network)
    before, was = state(model), traces(model)
    subject = subject_of(model, method)
    plan = random_plan(subject.coupling, 0.5)
    first, second = (cut(model, subject.coupling, plan) for _ in range(2))
    shapes, left = {name: tensor.shape for name, tensor in state(first).items()}, traces(first)
    method.repair_(first, subject, plan)
    torch.rand(3)  # no global random state matters
    method.repair_(second, subject, plan)
    assert same(state(first), state(second))
    assert traces(first) == left
    assert {name: tensor.shape for name, tensor in state(first).items()} == shapes
    assert all(tensor.isfinite().all() for tensor in state(first).values())
    assert same(state(model), before)
    assert traces(model) == was


@every_repair
@every_network
def test_repair_brings_layers_nearer_to_what_they_made(method: Method, network: str) -> None:
    """On the calibration pictures, over all layers that lost what they read, each relative to its own outputs."""
    subject = subject_of(built(network), method)
    plan = random_plan(subject.coupling, 0.5, seed=1)
    small = cut(subject.model, subject.coupling, plan)
    unrepaired = error_of(small, subject, plan)
    method.repair_(small, subject, plan)
    assert unrepaired > 0
    assert error_of(small, subject, plan) <= unrepaired * (1 + 1e-6)


@every_repair
def test_nothing_is_repaired_where_nothing_was_lost(method: Method) -> None:
    subject = subject_of(built("plain"), method)
    small = cut(subject.model, subject.coupling, Plan(kept={}))
    method.repair_(small, subject, Plan(kept={}))
    assert same(state(small), state(subject.model))


def error_of(small: nn.Module, subject: Subject, plan: Plan) -> float:
    """The sum over layers that read less than before of the mean squared error of their outputs."""
    coupling = subject.coupling
    stays = np.append(plan.mask(coupling), True)
    whole = made(subject.model, coupling, subject)
    found = 0.0
    for weight, (_, y) in made(small, coupling.restrict(plan), subject).items():
        call, expected = whole[weight]
        if not stays[call.reads].all():
            expected = expected[:, torch.from_numpy(stays[call.makes.reshape(-1)])]
            found += float((y - expected).square().mean() / expected.square().mean())
    return found


def made(model: nn.Module, coupling: Coupling, subject: Subject) -> dict[str, tuple[LayerCall, Tensor]]:
    """What each layer makes of the calibration pictures: [samples, made]."""
    found: dict[str, tuple[LayerCall, Tensor]] = {}
    [(pictures, _)] = subject.calibration()

    def see(call: LayerCall, x: Tensor, y: Tensor) -> None:
        found[call.weight] = call, outputs(call, y).flatten(1).double()

    with evaluating(model), watching(model, calls(model, coupling, pictures), see):
        model(pictures)
    return found
