"""Compensation-aware pruning: the channels leave that the others can best make up for, in closed form; no training.

Source: Xie et al. 2021, Pruning with Compensation, arXiv:2108.13728, and its authors' repository for what the paper does
not say. Three parts: compensation (compensation_repair), ranking that takes it into account (compensation_ranking) and
the widths, for which there is our global ranking and the paper's binary structural search (compensation_search).
Departures, each for a reason: a group that several layers read is ranked by all of them together, as one channel cannot
leave one of them alone; statistics come from the trial's calibration pictures in place of a fifth of the training data;
inverses are damped, because fewer pictures say less; the search meets a flops budget, which the paper's does not know.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from orchestrator.methods.compensation_ranking import places
from orchestrator.methods.compensation_readings import Layer, Sampling, read
from orchestrator.methods.compensation_repair import Compensation, mask_of, right_share
from orchestrator.methods.compensation_search import StructuralSearch, Widths, allowed_widths, flops_of
from orchestrator.methods.compensation_shifts import shifts
from orchestrator.methods.layers import calls
from orchestrator.methods.method import Budget, Floats, Method, Options, Subject
from orchestrator.methods.widths import widths_plan
from orchestrator.network import Coupling, Plan, cut, greedy
from orchestrator.network.coupling import Bools
from orchestrator.record import InvalidInput

Batches = Sequence[tuple[Tensor, Tensor]]


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """A subject, looked at: the layers that read the channels of some groups, and how they were looked at."""

    subject: Subject
    layers: list[Layer]
    sampling: Sampling

    @classmethod
    def of(cls, subject: Subject, channels: Bools, batches: Batches) -> "Study":
        """channels: [channels] those whose readers matter."""
        options, model = subject.options, subject.model
        pictures = [batch[0] for batch in batches]
        found = calls(model, subject.coupling, pictures[0])
        wanted = [call for call in found if not call.depthwise and mask_of(call.reads, channels).any()]
        sampling = Sampling(pictures=pictures, each=options.positions or sys.maxsize, seed=subject.seed)
        layers = read(model, wanted, shifts(model, found, pictures[0]), sampling, options.damping)
        return cls(subject=subject, layers=layers, sampling=sampling)

    @property
    def compensation(self) -> Compensation:
        subject = self.subject
        return Compensation(
            model=subject.model, coupling=subject.coupling, layers=self.layers, rescale=subject.options.rescale
        )

    def treated(self) -> frozenset[str]:
        """Groups that may lose channels, and are read by a layer that can be compensated. The others are named."""
        coupling = self.subject.coupling
        seen = np.zeros(coupling.channels + 1, bool)
        for layer in self.layers:
            seen[layer.call.reads] = True
        allowed = self.subject.prunable()
        found = frozenset(group.name for group in coupling.groups if seen[group.start] and group.name in allowed)
        if allowed - found:
            warnings.warn(f"compensation leaves {', '.join(sorted(allowed - found))} whole: {UNREAD}", stacklevel=2)
        return found


UNREAD = "no layer with a weight of its own reads these channels"


def choose(subject: Subject, budget: Budget) -> Plan:
    """Which channels stay: see CompensationOptions.widths. Raises BudgetUnreachable."""
    coupling, batches = subject.coupling, _calibration(subject)
    wanted = _channels(coupling, subject.prunable())
    if subject.options.widths == "greedy":
        study = Study.of(subject, wanted, batches)
        return _greedy(study, budget, study.treated(), places(coupling, study.treated(), _readings(study)))
    seen, held = halves(batches)
    study = Study.of(subject, wanted, seen)
    names = study.treated()
    order = places(coupling, names, _readings(study))
    _greedy(study, budget, names, order)  # says so where no widths can meet the budget
    compensation = study.compensation

    def accuracy(widths: Widths) -> float:
        plan = widths_plan(coupling, widths, order)
        small = cut(subject.model, coupling, plan)
        compensation.apply_(small, plan)
        return right_share(small, held)

    search = StructuralSearch(
        allowed=allowed_widths(coupling, budget, names), accuracy=accuracy, flops=flops_of(coupling)
    )
    widths, drop = search.under(budget.flops)
    worth = {name: np.sort(order[coupling.by_name[name].channels])[::-1] for name in widths}
    return widths_plan(coupling, search.spent(widths, drop, budget.flops, worth), order)


def repair_(small: nn.Module, subject: Subject, plan: Plan) -> None:
    """Compensate every layer that lost inputs, on all calibration pictures."""
    study = Study.of(subject, ~plan.mask(subject.coupling), _calibration(subject))
    if subject.options.inputs == "cut":
        study.compensation.apply_forward_(small, plan, study.sampling)
    else:
        study.compensation.apply_(small, plan)


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


def _channels(coupling: Coupling, names: frozenset[str]) -> Bools:
    mask = np.zeros(coupling.channels, bool)
    for group in coupling.groups:
        mask[group.channels] = group.name in names
    return mask


def _readings(study: Study) -> list:
    return [reading for layer in study.layers for reading in layer.readings]


def _greedy(study: Study, budget: Budget, names: frozenset[str], order: Floats) -> Plan:
    return greedy(
        study.subject.coupling,
        order,
        budget.flops,
        group_cap=budget.group_cap,
        groups=names,
        round_to=budget.round_to,
    )


COMPENSATION = Method(
    name="compensation",
    source="Xie et al. 2021, Pruning with Compensation, arXiv:2108.13728",
    version=1,
    options=CompensationOptions,
    choose=choose,
    repair_=repair_,
)
