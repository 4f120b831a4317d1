"""check(spec): what would end every trial of this kind at once, found before any work is started."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from orchestrator.methods import Ahead, Budget, Method, Subject
from orchestrator.network import CostTable, Coupling, Plan, couple, random_plan
from orchestrator.network.architectures import build, check_runs
from orchestrator.network.plan import removal_order
from orchestrator.network.weights import load_weights_
from orchestrator.record import InvalidInput, TrialSpec
from orchestrator.trial.networks import example_of, left_whole
from orchestrator.trial.path import Setting
from orchestrator.trial.verified import verified


def check(spec: TrialSpec) -> tuple[str, ...]:
    """Raise InvalidInput for whatever would end every trial of this kind at once; returns what else is to be said.

    An unknown model, data set, method or option; data that is missing or damaged; a model that does not run on it;
    weights that do not fit; more pruning than the groups, their cap, round_to and one channel in each allow; a penalty
    that finds nothing to act on.
    """
    setting = Setting.of(spec)
    model, example = _dense(setting), example_of(setting.data)
    found = verified(model, couple(model, example), random_plan, example)
    coupling = found.coupling
    subject = Subject(model=model, coupling=coupling, options=setting.options, calibration=lambda: (), seed=spec.seed)
    untreated = left_whole(setting.method, subject, example)
    _check_budget(spec, coupling, subject.prunable() - {one.group for one in untreated})
    flops = int(CostTable(coupling).flops() * (1 - spec.pruning_ratio))
    budget = Budget(flops=flops, group_cap=spec.group_cap, round_to=spec.round_to)
    ahead = Ahead(subject=subject, budget=budget, iterations=spec.iterations, example=example)
    if setting.method.check is not None:
        setting.method.check(ahead)
    if spec.regularization_weight > 0:
        _try_penalty(setting.method, subject, spec.regularization_weight, example)
    frozen = (*found.frozen, *untreated)
    whole = (f"group {one.group} ({one.channels} channels) stays whole: {one.reason}" for one in frozen)
    own = setting.method.notes(ahead) if setting.method.notes is not None else ()
    of_method = (f"{spec.method}: {note}" for note in own)
    return (*(f"{spec.model}: {note}" for note in (*coupling.notes, *whole)), *of_method)


def check_dense(spec: TrialSpec) -> None:
    """Raise InvalidInput for what keeps a trial's dense network from being made: its model, data or weights.

    For what looks at this network alone: the spec's method is not looked at, nor what it prunes.
    """
    _dense(Setting.of(spec.model_copy(update={"method": "filter_norm", "method_options": {}})))


def _dense(setting: Setting) -> nn.Module:
    """The network, untrained unless the spec names weights."""
    spec, data = setting.spec, setting.data
    model = build(spec.model, classes=data.classes, input_shape=data.input_shape, seed=0)
    check_runs(model, data.input_shape, classes=data.classes)
    if spec.weights is not None:
        load_weights_(model, Path(spec.weights))
    return model


def _try_penalty(method: Method, subject: Subject, regularization_weight: float, example: Tensor) -> None:
    """One pass as in training, but for the norms' statistics. Raises InvalidInput as the method's penalty does."""
    if method.penalty is None:
        return
    with method.penalty(subject, regularization_weight) as penalty:
        subject.model.eval()(example)
        if penalty.extra_loss is not None:
            penalty.extra_loss()


def _check_budget(spec: TrialSpec, coupling: Coupling, prunable: frozenset[str]) -> None:
    dense_flops = CostTable(coupling).flops()
    for iteration, least in enumerate(_least_flops(spec, coupling, prunable, spec.round_to), start=1):
        wanted = (1 - spec.pruning_ratio) ** iteration * dense_flops
        if least > wanted:
            (unrounded,) = islice(_least_flops(spec, coupling, prunable, round_to=1), iteration - 1, iteration)
            left = "a channel left in every group" if spec.round_to == 1 else f"round_to {spec.round_to}"
            reason = f"; round_to is the reason: without it {unrounded:,}" if unrounded <= wanted else ""
            raise InvalidInput(
                f"pruning_ratio {spec.pruning_ratio:g} asks for {wanted:,.0f} flops in iteration {iteration}; "
                f"with group_cap {spec.group_cap:g} and {left}, {spec.model} has at least "
                f"{least:,} of its {dense_flops:,} then{reason}"
            )


def _least_flops(spec: TrialSpec, coupling: Coupling, prunable: frozenset[str], round_to: int) -> Iterator[int]:
    """Flops after each iteration if all of them take all they may."""
    for _ in range(spec.iterations):
        mask = np.ones(coupling.channels, bool)
        scores = np.zeros(coupling.channels)
        mask[removal_order(coupling, scores, spec.group_cap, prunable, round_to=round_to)] = False
        coupling = coupling.restrict(Plan.from_mask(coupling, mask))
        yield CostTable(coupling).flops()
