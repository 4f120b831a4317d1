"""Does the model's own code follow when channels leave? A cut on meta tensors, replayed with known labels, tells.

The replay runs the cut model with every parameter labelled by the channels that it has left. If an operator raises,
two different channels meet, or an operator's result carries other channels than before, the code fixes a width: the
next alternative of the operator that took the channels apart is tried, and when there is none they are frozen.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from orchestrator.network.coupling import Coupling, Passes, coupling_of
from orchestrator.network.plan import Plan, random_plan
from orchestrator.network.solve import Ints, Solution
from orchestrator.network.surgery import cut
from orchestrator.network.trace import WILD, Example, PassFailed, Recording, Step, UnsupportedModel, record

ROUNDS = 1000  # every round settles at least one hypothesis or freezes at least one channel


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A replay that went wrong: in which mode, at which operator, and the components that met there."""

    training: bool
    index: int
    step: Step
    components: Ints


def settle_hypotheses(meta: nn.Module, example: Example) -> Coupling:
    """Follow the model, cut it on meta tensors, and mend the hypotheses until the model's code follows the cut."""
    passes = Passes()
    for _ in range(ROUNDS):
        solution = passes.follow(meta, example)
        coupling, channel = coupling_of(solution, meta, passes.notes)
        failure = _first_failure(meta, example, passes, solution, coupling, channel)
        if failure is None:
            return coupling
        _mend(passes, solution, failure, channel)
    raise UnsupportedModel(f"{type(meta).__name__}: its widths could not be settled in {ROUNDS} rounds")


def _first_failure(
    meta: nn.Module, example: Example, passes: Passes, solution: Solution, coupling: Coupling, channel: Ints
) -> Failure | None:
    plan = random_plan(coupling, keep=0.7, seed=0, exact_only=False)
    if not plan.kept:
        return None
    failure = _replay(meta, example, passes, solution, coupling, channel, plan)
    if failure is None or _cut_here(failure, coupling, channel).size:
        return failure
    for group in coupling.groups:  # the operator that failed carries no channels: find the group by itself
        alone = Plan(kept={group.name: plan.kept[group.name]}) if group.name in plan.kept else Plan(kept={})
        found = _replay(meta, example, passes, solution, coupling, channel, alone) if alone.kept else None
        if found is not None:
            mine = np.flatnonzero((channel >= group.start) & (channel < group.start + group.size))
            return Failure(training=found.training, index=found.index, step=found.step, components=mine)
    raise UnsupportedModel(f"{type(meta).__name__} does not run when several widths change: {failure.step.place}")


def _cut_here(failure: Failure, coupling: Coupling, channel: Ints) -> Ints:
    found: Ints = failure.components[channel[failure.components] >= 0]
    return found


def _replay(
    meta: nn.Module,
    example: Example,
    passes: Passes,
    solution: Solution,
    coupling: Coupling,
    channel: Ints,
    plan: Plan,
) -> Failure | None:
    small = cut(meta, coupling, plan)
    kept = np.append(plan.mask(coupling), True)[channel]  # [components]; those without a channel stay
    for which, training in enumerate(passes.modes):
        seeds = _seeds(solution, which, coupling, channel, plan)
        try:
            replayed = record(small.train(training), example, passes.choices[training], seeds)
        except PassFailed as error:
            return Failure(
                training=training,
                index=_index_of(solution.recordings[which], error.step),
                step=error.step,
                components=_components(error.step.labels.numpy()),
            )
        failure = _compare(solution, which, replayed, channel, kept)
        if failure is not None:
            return failure
    return None


def _seeds(solution: Solution, which: int, coupling: Coupling, channel: Ints, plan: Plan) -> Recording:
    """Labels of the cut model's parameters: component + 1, positions that left taken out."""
    mask = np.append(plan.mask(coupling), True)
    recording = solution.recordings[which]
    seeds = Recording(batch=recording.batch)
    for name, vectors in recording.axes.items():
        found = [None if v is None else solution.of(v, which) for v in vectors]
        seeds.axes[name] = [None if c is None else torch.from_numpy(c[mask[channel[c]]] + 1) for c in found]
    for name, labels in recording.elements.items():
        components = solution.of(labels, which)
        for dim in range(components.ndim):
            if (name, dim) in coupling.dims:
                components = components.take(np.flatnonzero(mask[coupling.dims[name, dim]]), axis=dim)
        seeds.elements[name] = torch.from_numpy(np.asarray(components + 1))
    return seeds


def _components(labels: Ints) -> Ints:
    found: Ints = labels[labels > 0] - 1
    return found


def _index_of(recording: Recording, step: Step) -> int:
    """The last operator of this kind in this module: the replay's own count is lost when it raises."""
    operator = step.operator.rsplit(".", 1)[0] if step.operator.count(".") > 1 else step.operator
    found = [i for i, s in enumerate(recording.steps) if s.module == step.module and s.operator == operator]
    return found[-1] if found else len(recording.steps)


def _compare(solution: Solution, which: int, replayed: Recording, channel: Ints, kept: np.ndarray) -> Failure | None:
    """The replay must unify nothing that was different, and carry what was left of the channels, step by step."""
    training = bool(which)
    problems: list[tuple[int, Ints]] = []
    for index, (a, b) in zip(replayed.pair_steps, replayed.pairs, strict=True):
        met = _strangers(a.numpy(), b.numpy(), channel)
        if met.size:
            problems.append((index, met))
            break
    for index, (before, after) in enumerate(zip(solution.recordings[which].steps, replayed.steps, strict=False)):
        if before.operator != after.operator:
            break
        expected = np.unique(solution.of(before.labels, which))
        expected = expected[(channel[expected] >= 0) & kept[expected]]
        found = np.unique(_components(after.labels.numpy()))
        difference = np.setxor1d(expected, found[channel[found] >= 0])
        if difference.size:
            problems.append((index, difference))
            break
    if not problems:
        return None
    index, components = min(problems, key=lambda problem: problem[0])
    steps = replayed.steps
    return Failure(training=training, index=index, step=steps[min(index, len(steps) - 1)], components=components)


def _strangers(a: Ints, b: Ints, channel: Ints) -> Ints:
    """Components of pairs that are not the same channel; what no parameter makes may meet any frozen channel."""
    free_a = np.where(a == WILD, -1, channel[np.maximum(a - 1, 0)])
    free_b = np.where(b == WILD, -1, channel[np.maximum(b - 1, 0)])
    bad = (free_a >= 0) | (free_b >= 0)
    return _components(np.unique(np.concatenate([a[bad], b[bad]])))


def _mend(passes: Passes, solution: Solution, failure: Failure, channel: Ints) -> None:
    """Try the next alternative of a hypothesis that these channels passed; freeze them where there is none."""
    mine = failure.components[channel[failure.components] >= 0]
    which = passes.modes.index(failure.training)
    choices = passes.choices[failure.training]
    sites = [
        site
        for site in solution.recordings[which].sites.values()
        if site.step <= failure.index
        and choices.get(site.step, 0) < site.alternatives - 1
        and np.isin(solution.of(site.labels, which), mine).any()
    ]
    if sites:
        nearest = max(sites, key=lambda site: site.step)
        choices[nearest.step] = choices.get(nearest.step, 0) + 1
        return
    assert mine.size, failure.step.place
    reason = f"width fixed in code at {failure.step.place}"
    weights = {key for recording in solution.recordings for key in recording.roles}
    for key in weights & set(solution.dims):
        components = solution.dims[key]
        positions = np.flatnonzero(np.isin(components, mine))
        if positions.size:
            passes.fixed.positions.append((key, positions, reason))
