"""Does the model's own code follow when channels leave? A cut on meta tensors, replayed with known labels, tells.

The replay runs the cut model with every parameter labelled by the channels that it has left. If an operator raises,
two different channels meet, or an operator's result carries other channels than before, the code fixes a width: the
next alternative of the operator that took the channels apart is tried, and when there is none they are frozen.
"""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from orchestrator.network.coupling import Bools, Coupling, Passes, coupling_of
from orchestrator.network.meta import Example, UnsupportedModel
from orchestrator.network.plan import Plan, random_plan
from orchestrator.network.recording import Recording, Site, Step
from orchestrator.network.solve import Ints, Solution
from orchestrator.network.surgery import cut
from orchestrator.network.trace import WILD, PassFailed, record

ROUNDS = 1000  # every round settles at least one hypothesis or freezes at least one channel


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A replay that went wrong: in which mode, at which operator, and the components that met there."""

    training: bool
    index: int
    step: Step
    components: Ints
    reason: str


@dataclass(frozen=True)
class Round:
    """One state of the hypotheses: the passes, their solution, and the coupling that comes out of it."""

    meta: nn.Module
    example: Example
    passes: Passes
    solution: Solution
    coupling: Coupling
    channel: Ints  # [components], -1 if it has none

    @property
    def group_of(self) -> Ints:
        """[components] the number of its channel's group, -1 if it has none."""
        found: Ints = np.append(self.coupling.group_of, -1)[self.channel]
        return found

    def channels_of(self, components: Ints) -> Ints:
        """Those components that are channels."""
        found: Ints = components[self.channel[components] >= 0]
        return found


def settle_hypotheses(meta: nn.Module, example: Example) -> Coupling:
    """Follow the model, cut it on meta tensors, and mend the hypotheses until the model's code follows the cut."""
    passes = Passes()
    for _ in range(ROUNDS):
        solution = passes.follow(meta, example)
        coupling, channel = coupling_of(solution, meta, passes.notes)
        now = Round(meta, example, passes, solution, coupling, channel)
        failure = _first_failure(now)
        if failure is None:
            return coupling
        _mend(now, failure)
    raise UnsupportedModel(f"{type(meta).__name__}: its widths could not be settled in {ROUNDS} rounds")


def _first_failure(now: Round) -> Failure | None:
    plan = random_plan(now.coupling, keep=0.7, seed=0, exact_only=False)
    failure = _replay(now, plan) if plan.kept else None
    if failure is None or now.channels_of(failure.components).size:
        return failure
    return _failing_group(now, plan)


def _failing_group(now: Round, plan: Plan) -> Failure:
    """The operator that failed carries no channels: find the group whose cut makes the difference, by bisection."""
    names = list(plan.kept)

    def failure_of(count: int) -> Failure | None:
        return _replay(now, Plan(kept={name: plan.kept[name] for name in names[:count]}))

    low, high = 0, len(names)  # the first `low` groups together do not fail, the first `high` do
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if failure_of(middle) is None else (low, middle)
    found, group = failure_of(high), now.coupling.by_name[names[high - 1]]
    assert found is not None
    mine = np.flatnonzero((now.channel >= group.start) & (now.channel < group.start + group.size))
    return replace(found, components=mine)


def _replay(now: Round, plan: Plan) -> Failure | None:
    small = cut(now.meta, now.coupling, plan)
    kept = np.append(plan.mask(now.coupling), True)[now.channel]  # [components]; those without a channel stay
    for which, training in enumerate(now.passes.modes):
        seeds = _seeds(now, which, plan)
        try:
            with warnings.catch_warnings(action="ignore"):  # what a trial cut gives rise to is not the user's concern
                replayed = record(small.train(training), now.example, now.passes.choices, seeds=seeds)
        except PassFailed as error:
            components = np.unique(_components(error.step.labels.numpy()))
            reason = f"width fixed in code at {error.step.place}"
            index = error.index
            return Failure(training=training, index=index, step=error.step, components=components, reason=reason)
        failure = _compare(now, which, replayed, kept)
        if failure is not None:
            return failure
    return None


def _seeds(now: Round, which: int, plan: Plan) -> Recording:
    """Labels of the cut model's parameters: component + 1, positions that left taken out."""
    mask = np.append(plan.mask(now.coupling), True)
    recording = now.solution.recordings[which]
    seeds = Recording(batch=recording.batch, sites=recording.sites, weights=recording.weights)
    for name, vectors in recording.axes.items():
        found = [None if v is None else now.solution.of(v, which) for v in vectors]
        seeds.axes[name] = [None if c is None else torch.from_numpy(c[mask[now.channel[c]]] + 1) for c in found]
    for name, labels in recording.elements.items():
        components = now.solution.of(labels, which)
        for dim in range(components.ndim):
            if (name, dim) in now.coupling.dims:
                components = components.take(np.flatnonzero(mask[now.coupling.dims[name, dim]]), axis=dim)
        seeds.elements[name] = torch.from_numpy(np.asarray(components + 1))
    return seeds


def _components(labels: Ints) -> Ints:
    found: Ints = labels[labels > 0] - 1
    return found


def _compare(now: Round, which: int, replayed: Recording, kept: Bools) -> Failure | None:
    """The replay must unify nothing that was different, and carry what was left of the channels, step by step."""
    problems = [found for found in (_first_meeting(now, replayed), _first_change(now, which, replayed, kept)) if found]
    if not problems:
        return None
    index, components, what = min(problems, key=lambda problem: problem[0])
    step = replayed.steps[min(index, len(replayed.steps) - 1)]
    reason = f"{what} at {step.place}"
    training = now.passes.modes[which]
    return Failure(training=training, index=index, step=step, components=components, reason=reason)


def _first_meeting(now: Round, replayed: Recording) -> tuple[int, Ints, str] | None:
    """Where two different channels meet; what no parameter makes may meet any frozen channel."""
    for index, (a, b) in zip(replayed.pair_steps, replayed.pairs, strict=True):
        left, right = a.numpy(), b.numpy()
        free = (now.channel[np.maximum(left - 1, 0)] >= 0) & (left != WILD)
        free |= (now.channel[np.maximum(right - 1, 0)] >= 0) & (right != WILD)
        if free.any():
            met = np.unique(_components(np.concatenate([left[free], right[free]])))
            return index, met, "width fixed in code"
    return None


def _first_change(now: Round, which: int, replayed: Recording, kept: Bools) -> tuple[int, Ints, str] | None:
    """Where an operator's result carries other channels than those that are left of what it carried before."""
    free = now.channel >= 0
    left = free & kept
    for index, (before, after) in enumerate(zip(now.solution.recordings[which].steps, replayed.steps, strict=False)):
        if before.operator != after.operator:
            return None  # the code took another way: no comparison is possible from here on
        expected, found = now.solution.of(before.labels, which), _components(after.labels.numpy())
        expected, found = expected[left[expected]], found[free[found]]
        if not np.array_equal(expected, found):
            different = np.setxor1d(expected, found)
            if different.size:
                return index, different, "width fixed in code"
        if before.numbers != after.numbers:
            return index, np.unique(found), "the width itself is computed with"
    return None


def _mend(now: Round, failure: Failure) -> None:
    """Try the next alternative of a hypothesis that these channels passed; freeze them where there is none."""
    mine = now.channels_of(failure.components)
    site = _last_open_site(now, failure, mine)
    if site is not None:
        for each in _of_the_same_code(now, failure, site):
            now.passes.choose(each.key, site.open[0])
        return
    assert mine.size, failure.step.place
    mine = np.flatnonzero(np.isin(now.group_of, now.group_of[mine]))
    makers = {key for recording in now.solution.recordings for key in recording.roles}
    for key in sorted(makers & set(now.solution.dims)):
        positions = np.flatnonzero(np.isin(now.solution.dims[key], mine))
        if positions.size:
            now.passes.fixed.positions.append((key, positions, failure.reason))


def _last_open_site(now: Round, failure: Failure, mine: Ints) -> Site | None:
    """The last operator that took some of these channels apart, and has an alternative left."""
    which = now.passes.modes.index(failure.training)
    sites = [
        site
        for site in now.solution.recordings[which].sites.values()
        if site.step <= failure.index
        and site.open
        and np.isin(now.solution.of(site.labels.flatten(), which), mine).any()
    ]
    return max(sites, key=lambda site: site.step, default=None)


def _of_the_same_code(now: Round, failure: Failure, site: Site) -> list[Site]:
    """The operator's counterparts in other modules of its class, if the failure lies in its own module.

    They run the same code, so they will fail in the same way; to find that out one by one takes as many rounds.
    """
    if failure.step.module != site.key[0]:
        return [site]
    alike = {
        each.key: each
        for recording in now.solution.recordings
        for each in recording.sites.values()
        if (each.code, each.alternatives, each.chosen) == (site.code, site.alternatives, site.chosen)
    }
    return list(alike.values())
