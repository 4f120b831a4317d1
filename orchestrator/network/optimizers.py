"""An optimizer, or an averaged copy, of a network that is cut: along the same indices, so that training goes on."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves

from orchestrator.network.coupling import Coupling
from orchestrator.network.meta import UnsupportedModel
from orchestrator.network.plan import Plan, PlanMismatch
from orchestrator.network.surgery import cut, shrink
from orchestrator.record import InvalidInput

SomeOptimizer = TypeVar("SomeOptimizer", bound=Optimizer)
Shrink = Callable[[str, Tensor], Tensor]

KEPT = ("defaults", "param_groups", "state")  # what PyTorch pickles of an optimizer
NOT_KEPT = ("step", "_zero_grad_profile_name")  # a scheduler's wrapper of the old one; made anew
PLAIN = (bool, int, float, str, type(None))


class UnsupportedOptimizer(InvalidInput):
    """An optimizer that keeps what cannot be cut along a network's channels without guessing."""


def cut_optimizer(
    optimizer: SomeOptimizer, model: nn.Module, small: nn.Module, coupling: Coupling, plan: Plan
) -> SomeOptimizer:
    """The optimizer of `small = cut(model, coupling, plan)` that goes on where the given one, of `model`, stands.

    Of the same class, with the same parameter groups and settings (a scheduler's lr and initial_lr too). What it
    keeps for a parameter, if it has the parameter's shape, is cut as the parameter is; factors over some of its
    dimensions (Adafactor) likewise; counters are copied. Nothing is shared with the given optimizer, whose hooks stay
    with it; a scheduler goes on after `scheduler.optimizer = cut_optimizer(...)`.
    Raises UnsupportedOptimizer for what cannot be cut without guessing, UnsupportedModel or PlanMismatch if model,
    small, coupling and plan do not belong together.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UnsupportedOptimizer("LBFGS keeps one flat history of all parameters together, which cannot be cut")
    _check_shapes(model, small, coupling, plan)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    _check_parameters(optimizer, names)
    parameters = dict(small.named_parameters())
    memo: dict[int, Any] = {key: parameters[name] for key, name in names.items()}
    new: SomeOptimizer = object.__new__(type(optimizer))
    new.__setstate__(
        {
            **_settings_beside(optimizer),
            "defaults": copy.deepcopy(optimizer.defaults, memo),
            "param_groups": copy.deepcopy(optimizer.param_groups, memo),
            "state": _cut_state(optimizer, names, parameters, shrink(coupling, plan)),
        }
    )
    return new


def cut_averaged(averaged: AveragedModel, coupling: Coupling, plan: Plan) -> AveragedModel:
    """The moving or plain average of a network's weights, cut as the network is; it goes on averaging the cut one.

    How many were averaged, and the function that does it, are kept; the given one is untouched. An average that is
    a network of its own, not wrapped, is cut by `cut`.
    Raises UnsupportedModel if the coupling is of another network, PlanMismatch if the plan is.
    """
    small = cut(averaged.module, coupling, plan)
    return copy.deepcopy(averaged, {id(averaged.module): small})


def _check_shapes(model: nn.Module, small: nn.Module, coupling: Coupling, plan: Plan) -> None:
    full, kept = coupling.shapes, coupling.restrict(plan).shapes
    for name, parameter in model.named_parameters():
        if full.get(name) != tuple(parameter.shape):
            raise UnsupportedModel(
                f"{name} is {tuple(parameter.shape)} in this model and {full.get(name)} in the coupling; "
                "use the coupling of this very network"
            )
    found = {name: tuple(parameter.shape) for name, parameter in small.named_parameters()}
    for name, _ in model.named_parameters():
        if found.get(name) != kept[name]:
            raise PlanMismatch(
                f"plan: {name} is {found.get(name)} in the small network, and the plan leaves {kept[name]}; "
                "give small = cut(model, coupling, plan)"
            )


def _check_parameters(optimizer: Optimizer, names: Mapping[int, str]) -> None:
    kind = type(optimizer).__name__
    for number, group in enumerate(optimizer.param_groups):
        for at, parameter in enumerate(group["params"]):
            if id(parameter) not in names:
                raise UnsupportedOptimizer(
                    f"{kind}: parameter {at} of group {number}, {tuple(parameter.shape)}, is none of the model; "
                    "give the model that the optimizer was made for"
                )
    for key in optimizer.state:
        if id(key) not in names:
            what = f"a parameter {tuple(key.shape)}" if isinstance(key, Tensor) else repr(key)
            raise UnsupportedOptimizer(f"{kind}: it keeps state for {what}, which is none of the model's parameters")


def _settings_beside(optimizer: Optimizer) -> dict[str, Any]:
    """The attributes that a class of optimizers has of its own: plain values are kept, others refused."""
    found = {}
    for name, value in vars(optimizer).items():
        if name in (*KEPT, *NOT_KEPT) or name.startswith("_optimizer_"):  # the last are hooks
            continue
        if not _is_plain(value):
            raise UnsupportedOptimizer(
                f"{type(optimizer).__name__}: it keeps {name}, a {type(value).__name__}, beside its state; "
                "only plain values can be kept"
            )
        found[name] = copy.deepcopy(value)
    return found


def _is_plain(value: Any) -> bool:
    return all(isinstance(leaf, PLAIN) for leaf in tree_leaves(value))


def _cut_state(
    optimizer: Optimizer, names: Mapping[int, str], parameters: Mapping[str, nn.Parameter], select: Shrink
) -> dict[nn.Parameter, dict[str, Any]]:
    """What is kept for each parameter of the small network."""
    aligned = _aligned(optimizer)
    state: dict[nn.Parameter, dict[str, Any]] = defaultdict(dict)
    for parameter, values in optimizer.state.items():
        name = names[id(parameter)]
        mine = parameters[name]
        for key, value in values.items():
            if mine.shape == parameter.shape or _is_plain(value):
                state[mine][key] = copy.deepcopy(value)
                continue
            found = _cut_value(value, name, parameter.shape, select, aligned=key in aligned)
            if found is None:
                what = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise UnsupportedOptimizer(
                    f"{type(optimizer).__name__}: the state {key} of {name} is {what}, and the parameter "
                    f"{tuple(parameter.shape)}; which channels it belongs to cannot be told"
                )
            state[mine][key] = found
    return state


def _aligned(optimizer: Optimizer) -> set[str]:
    """The keys whose tensors follow their parameters dimension by dimension: of equal size, or 1.

    Told from all parameters together: a preconditioner [n, n] of one that is [n, n] itself would pass alone.
    """
    fits: dict[str, bool] = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.numel() > 1:
                fits[key] = fits.get(key, True) and _fits(value.shape, parameter.shape)
    return {key for key, fit in fits.items() if fit}


def _fits(sizes: tuple[int, ...], others: tuple[int, ...]) -> bool:
    return len(sizes) == len(others) and all(a in (1, b) for a, b in zip(sizes, others, strict=True))


def _cut_value(value: Any, name: str, shape: torch.Size, select: Shrink, *, aligned: bool) -> Tensor | None:
    """A tensor of an optimizer's state, cut as its parameter, of that name and shape, is; None if it cannot be told.

    Where dimensions are missing, every way of placing those there are must keep the same entries.
    """
    if not isinstance(value, Tensor):
        return None
    if value.numel() <= 1:
        return value.clone()
    if aligned and value.shape == shape:
        return select(name, value)
    ways = [
        dims
        for dims in combinations(range(len(shape)), value.ndim)
        if _fits(value.shape, tuple(shape[dim] for dim in dims))
    ]
    if not ways or (not aligned and value.ndim == 2 and value.shape[0] == value.shape[1]):  # a preconditioner?
        return None
    first, *others = (_entries(value.shape, dims, name, shape, select) for dims in ways)
    return value.take(first.to(value.device)) if all(torch.equal(first, other) for other in others) else None


def _entries(sizes: torch.Size, dims: tuple[int, ...], name: str, shape: torch.Size, select: Shrink) -> Tensor:
    """The flat indices of what stays of a tensor of these sizes, whose dimensions are `dims` of its parameter."""
    spread = [1] * len(shape)
    for dim, size in zip(dims, sizes, strict=True):
        spread[dim] = size
    numbers = torch.arange(sizes.numel()).reshape(spread)
    found = select(name, numbers.expand(shape))
    for dim, size in enumerate(spread):
        found = found.narrow(dim, 0, 1) if size == 1 else found
    return found.reshape([found.shape[dim] for dim in dims])
