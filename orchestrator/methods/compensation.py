"""Compensation-aware pruning: the channels leave that the others can best make up for, in closed form; no training.

Source: Xie et al. 2021, Pruning with Compensation, arXiv:2108.13728, and its authors' repository for what the paper
does not say. Three parts: compensation (compensation_repair), ranking that takes it into account
(compensation_ranking), and the widths, for which there is our global ranking and the paper's binary structural search
(compensation_search). Departures, each for a reason: a group that several layers read is ranked by all of them
together, as one channel cannot leave one of them alone; statistics come from the trial's calibration pictures in place
of a fifth of the training data; inverses are damped, because fewer pictures say less; the search meets a flops budget,
which the paper's does not know.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from orchestrator.methods.compensation_ranking import places
from orchestrator.methods.compensation_readings import Layer, Sampling, read
from orchestrator.methods.compensation_repair import Compensation, right_share
from orchestrator.methods.compensation_search import StructuralSearch, Widths, allowed_widths, flops_of
from orchestrator.methods.compensation_shifts import shifts
from orchestrator.methods.layers import LayerCall, calls, left_out
from orchestrator.methods.method import Budget, Floats, Method, Options, Subject
from orchestrator.methods.widths import widths_plan
from orchestrator.network import BudgetUnreachable, Coupling, Plan, cut, greedy
from orchestrator.network.recording import layer_of
from orchestrator.record import InvalidInput

Batches = Sequence[tuple[Tensor, Tensor]]
UNREAD = "compensation can treat no layer that reads these channels"


class CompensationOptions(Options):
    """What the paper leaves open, and what a reader may want otherwise.

    widths: "greedy" ranks all groups' channels together, by the share of variance lost for each flop saved (ours);
    "search" is the paper's binary structural search, on calibration pictures that the statistics do not see.
    rescale: each output gets its old variance back, as in the paper; without, the error is the least there is.
    inputs: what a layer is fitted to read. "original": what it read before the cut, as in the paper; "cut": what the
    compensated layers before it make, layer after layer (ours, after He et al. 2017; a pass for each layer).
    damping: pull of the weights towards what they were, relative to the inputs' mean variance; the paper's is 0.
    positions: how many places of each picture a convolution is looked at, at random; 0 is all, as in the paper.
    """

    widths: Literal["greedy", "search"] = "greedy"
    rescale: bool = True
    inputs: Literal["original", "cut"] = "original"
    damping: float = Field(default=1e-3, ge=0)
    positions: int = Field(default=32, ge=0)


def choose(subject: Subject, budget: Budget) -> Plan:
    """Which channels stay: see CompensationOptions.widths. Groups that cannot be ranked stay whole: see left_whole.

    Raises BudgetUnreachable.
    """
    batches = _calibration(subject)
    if subject.options.widths == "search":
        return _searched(subject, budget, *halves(batches))
    layers = _layers(subject, subject.prunable(), _sampling(subject, batches))
    return _ranked(subject, budget, layers)[0]


def _ranked(subject: Subject, budget: Budget, layers: Sequence[Layer]) -> tuple[Plan, frozenset[str], Floats]:
    """The plan of our global ranking, the groups that it may cut, and each channel's place."""
    coupling, names = subject.coupling, _treated(subject, [layer.call for layer in layers])
    order = places(coupling, names, [reading for layer in layers for reading in layer.readings])
    cap, step = budget.group_cap, budget.round_to
    try:
        plan = greedy(coupling, order, budget.flops, group_cap=cap, groups=names, round_to=step)
    except BudgetUnreachable as error:
        untreated = ", ".join(sorted(subject.prunable() - names))
        raise BudgetUnreachable(f"{error}; left whole: {untreated}, as {UNREAD}" if untreated else str(error)) from None
    return plan, names, order


def _searched(subject: Subject, budget: Budget, seen: Batches, held: Batches) -> Plan:
    """The paper's search: statistics of the pictures `seen`, accuracies on those `held`."""
    coupling, model = subject.coupling, subject.model
    sampling = _sampling(subject, seen)
    layers = _layers(subject, subject.prunable(), sampling)
    _, names, order = _ranked(subject, budget, layers)  # says so where no widths can meet the budget
    compensate_ = _compensating(subject, layers, sampling)

    def accuracy(widths: Widths) -> float:
        plan = widths_plan(coupling, widths, order)
        small = cut(model, coupling, plan)
        compensate_(small, plan)
        return right_share(small, held)

    allowed = allowed_widths(coupling, budget, names)
    search = StructuralSearch(allowed=allowed, accuracy=accuracy, flops=flops_of(coupling))
    widths, drop = search.under(budget.flops)
    worth = {name: np.sort(order[coupling.by_name[name].channels])[::-1] for name in widths}
    return widths_plan(coupling, search.spent(widths, drop, budget.flops, worth), order)


def left_whole(subject: Subject, example: Tensor) -> dict[str, str]:
    """The groups that cannot be ranked, as no layer that reads them can be compensated, each with the reason."""
    reading = _readers(subject, subject.prunable(), calls(subject.model, subject.coupling, example))
    return dict.fromkeys(sorted(subject.prunable() - _treated(subject, reading)), UNREAD)


def repair_(small: nn.Module, subject: Subject, plan: Plan) -> dict[str, str]:
    """Compensate every layer that lost inputs, on all calibration pictures.

    Returns those that it could not treat, with the reason; they stay as they were cut.
    """
    sampling = _sampling(subject, _calibration(subject))
    layers = _layers(subject, frozenset(plan.kept), sampling)
    _compensating(subject, layers, sampling)(small, plan)
    losing = _readers_in(subject.coupling, frozenset(plan.kept))
    reasons = left_out(subject.model, subject.coupling, sampling.pictures[0])
    return {layer: reason for layer, reason in reasons.items() if layer in losing}


def _compensating(subject: Subject, layers: Sequence[Layer], sampling: Sampling) -> Callable[[nn.Module, Plan], None]:
    """What compensates a cut network in place, as the options have it."""
    rescale = subject.options.rescale
    compensation = Compensation(model=subject.model, coupling=subject.coupling, layers=layers, rescale=rescale)
    if subject.options.inputs == "original":
        return compensation.apply_
    return lambda small, plan: compensation.apply_forward_(small, plan, sampling)


def halves(batches: Batches) -> tuple[Batches, Batches]:
    """Each batch's first half, and its second: for statistics, and for accuracies that owe nothing to them."""
    middle = [(len(labels) + 1) // 2 for _, labels in batches]
    first = [(x[:n], y[:n]) for (x, y), n in zip(batches, middle, strict=True)]
    second = [(x[n:], y[n:]) for (x, y), n in zip(batches, middle, strict=True) if n < len(y)]
    if not second:
        raise InvalidInput("compensation: widths = 'search' needs batches of two or more calibration pictures")
    return first, second


def _calibration(subject: Subject) -> Batches:
    batches = list(subject.calibration())
    if not batches:
        raise InvalidInput("compensation: there are no calibration pictures; it needs at least a batch of them")
    return batches


def _sampling(subject: Subject, batches: Batches) -> Sampling:
    each = subject.options.positions or sys.maxsize
    return Sampling(pictures=[pictures for pictures, _ in batches], each=each, seed=subject.seed)


def _layers(subject: Subject, names: frozenset[str], sampling: Sampling) -> list[Layer]:
    """The layers that read channels of these groups, with what they read."""
    model, example = subject.model, sampling.pictures[0]
    found = calls(model, subject.coupling, example)
    readers = _readers(subject, names, found)
    return read(model, readers, shifts(model, found, example), sampling, subject.options.damping)


def _readers(subject: Subject, names: frozenset[str], found: Sequence[LayerCall]) -> list[LayerCall]:
    """Those of the layers that read channels of these groups and can be compensated."""
    wanted = np.zeros(subject.coupling.channels + 1, bool)  # the last for fixed places
    for name in names:
        wanted[subject.coupling.by_name[name].channels] = True
    return [call for call in found if not call.depthwise and wanted[call.reads].any()]


def _readers_in(coupling: Coupling, names: frozenset[str]) -> set[str]:
    """Modules with a weight that reads channels of these groups, as far as the coupling can tell."""
    members = [
        key for name in names for key in coupling.by_name[name].members if key not in coupling.by_name[name].made
    ]
    return {layer_of(weight) or weight for weight, dim in members if len(coupling.shapes[weight]) > 1}


def _treated(subject: Subject, readers: Sequence[LayerCall]) -> frozenset[str]:
    """Groups that may lose channels, and are read by one of these layers."""
    seen = np.zeros(subject.coupling.channels + 1, bool)
    for call in readers:
        seen[call.reads] = True
    allowed = subject.prunable()
    return frozenset(name for name in allowed if seen[subject.coupling.by_name[name].start])


COMPENSATION = Method(
    name="compensation",
    source="Xie et al. 2021, Pruning with Compensation, arXiv:2108.13728",
    version=2,
    options=CompensationOptions,
    choose=choose,
    repair_=repair_,
    left_whole=left_whole,
)
