"""check(spec): what would end every trial of this kind at once, found before any work is started."""

from pathlib import Path

import numpy as np
from torch import nn

from orchestrator.methods import Subject
from orchestrator.network import CostTable, Coupling, Plan, couple, random_plan
from orchestrator.network.architectures import build, check_runs
from orchestrator.network.plan import removal_order
from orchestrator.network.weights import load_weights_
from orchestrator.record import InvalidInput, TrialSpec
from orchestrator.trial.networks import example_of
from orchestrator.trial.path import Setting
from orchestrator.trial.verified import verified


def check(spec: TrialSpec) -> tuple[str, ...]:
    """Raise InvalidInput for whatever would end every trial of this kind at once; returns what else is to be said.

    An unknown model, data set, method or option; data that is missing or damaged; a model that does not run on it;
    weights that do not fit; more pruning than the groups, their cap and one channel in each allow.
    """
    setting = Setting.of(spec)
    data = setting.data
    model = build(spec.model, classes=data.classes, input_shape=data.input_shape, seed=0)
    check_runs(model, data.input_shape, classes=data.classes)
    if spec.weights is not None:
        load_weights_(model, Path(spec.weights))
    example = example_of(data)
    found = verified(model, couple(model, example), random_plan, example)
    coupling = found.coupling
    subject = Subject(
        model=nn.Identity(), coupling=coupling, options=setting.options, calibration=lambda: (), seed=spec.seed
    )
    _check_budget(spec, coupling, subject.prunable())
    whole = (f"group {one.group} ({one.channels} channels) stays whole: {one.reason}" for one in found.frozen)
    return tuple(f"{spec.model}: {note}" for note in (*coupling.notes, *whole))


def _check_budget(spec: TrialSpec, coupling: Coupling, prunable: frozenset[str]) -> None:
    dense_flops = CostTable(coupling).flops()
    for iteration in range(1, spec.iterations + 1):
        coupling = _as_narrow_as_allowed(coupling, spec.group_cap, prunable)
        least, wanted = CostTable(coupling).flops(), (1 - spec.pruning_ratio) ** iteration * dense_flops
        if least > wanted:
            raise InvalidInput(
                f"pruning_ratio {spec.pruning_ratio:g} asks for {wanted:,.0f} flops in iteration {iteration}; "
                f"with group_cap {spec.group_cap:g} and a channel left in every group, {spec.model} has at least "
                f"{least:,} of its {dense_flops:,} then"
            )


def _as_narrow_as_allowed(coupling: Coupling, cap: float, prunable: frozenset[str]) -> Coupling:
    """The coupling after an iteration that takes all it may."""
    mask = np.ones(coupling.channels, bool)
    mask[removal_order(coupling, np.zeros(coupling.channels), cap, prunable)] = False
    return coupling.restrict(Plan.from_mask(coupling, mask))
