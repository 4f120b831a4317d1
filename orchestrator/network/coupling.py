"""couple(model, example): which channels a network has, where each of them lives, and which must stay and why."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from orchestrator.network.meta import Example, UnsupportedModel, as_meta, watching_training
from orchestrator.network.recording import Call, ParameterDim, Recording, SiteKey, layer_of
from orchestrator.network.solve import Fixed, Ints, Solution, solve
from orchestrator.network.trace import record

if TYPE_CHECKING:
    from orchestrator.network.plan import Plan

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels that run over the same parameter dimensions: a layer's width, and all that is coupled to it."""

    name: str  # of the first layer that makes it
    start: int  # its channels are numbered start .. start + size - 1 in the coupling
    size: int
    members: tuple[ParameterDim, ...]  # in the order of their first use
    made: tuple[ParameterDim, ...]  # the members that make its channels; the others read them or act on them
    exact: bool  # cutting a channel equals zeroing it
    inexact_reason: str | None
    summed: bool  # a residual stream: several layers' results are added in it

    @property
    def channels(self) -> slice:
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Channels that cannot leave, with the reader's reason and a layer that makes or reads them."""

    layer: str
    channels: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """The channels of one network. Immutable; `restrict` gives the coupling of a network that was cut."""

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    dims: Mapping[ParameterDim, Ints]  # channel of every position along a parameter's dimension; -1: fixed
    shapes: Mapping[str, tuple[int, ...]]  # of every parameter, tied ones once
    buffers: frozenset[str]  # the names in `shapes` that are no parameters
    bare: frozenset[ParameterDim] = frozenset()  # what masking leaves as it is: a weight is divided by it
    depthwise: frozenset[str] = frozenset()  # weights of convolutions whose conv_groups are channels
    calls: tuple[Call, ...]
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return sum(group.size for group in self.groups)

    @cached_property
    def by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    @cached_property
    def group_of(self) -> Ints:
        """[channels] the number of each channel's group."""
        return np.repeat(np.arange(len(self.groups)), [group.size for group in self.groups])

    def without(self, names: Iterable[str], reason: str) -> "Coupling":
        """The same coupling with some groups frozen."""
        gone = set(names)
        unknown = gone - set(self.by_name)
        if unknown:
            raise KeyError(f"no group {sorted(unknown)[0]!r}")
        kept = np.concatenate([np.full(g.size, g.name not in gone) for g in self.groups])
        added = tuple(Frozen(layer=g.name, channels=g.size, reason=reason) for g in self.groups if g.name in gone)
        return self._renumbered(kept, frozen=self.frozen + added, drop=False)

    def restrict(self, plan: "Plan") -> "Coupling":
        """The coupling of the network that `cut(model, self, plan)` returns: no new trace is needed."""
        return self._renumbered(plan.mask(self), frozen=self.frozen, drop=True)

    def _renumbered(self, kept: Bools, *, frozen: tuple[Frozen, ...], drop: bool) -> "Coupling":
        number = np.where(kept, np.cumsum(kept) - 1, -1)
        dims, shapes = {}, {name: list(shape) for name, shape in self.shapes.items()}
        for (name, dim), channels in self.dims.items():
            moved = np.where(channels >= 0, number[channels], -1)
            if drop:
                moved = moved[(channels < 0) | (moved >= 0)]
                shapes[name][dim] = len(moved)
            if (moved >= 0).any():
                dims[name, dim] = moved
        groups, start = [], 0
        calls = tuple(_renumbered(call, number, drop=drop) for call in self.calls)
        for group in self.groups:
            size = int(kept[group.channels].sum())
            if size:
                groups.append(replace(group, start=start, size=size))
                start += size
        return replace(
            self,
            groups=tuple(groups),
            frozen=frozen,
            dims=dims,
            shapes={n: tuple(s) for n, s in shapes.items()},
            calls=calls,
        )


def _renumbered(call: Call, number: Ints, *, drop: bool) -> Call:
    if call.along is None:
        return call
    moved = [-1 if channel < 0 else int(number[channel]) for channel in call.along]
    kept = (new for old, new in zip(call.along, moved, strict=True) if old < 0 or new >= 0 or not drop)
    return replace(call, along=tuple(kept))


def couple(model: nn.Module, example: Example) -> Coupling:
    """Find a network's channels by following one pass in evaluation mode and one in training mode.

    example: a tensor with a batch dimension, or a tuple of a forward's arguments; only its shapes matter. The model
    is not touched and not computed: everything runs on meta tensors. Where code takes a channel axis apart (chunk, a
    view into blocks), a cut on meta tensors shows whether the code follows; where it does not, the channels are
    frozen with the operator and its module as the reason.
    Raises UnsupportedModel if the model does not run on the example.
    """
    from orchestrator.network.hypotheses import settle_hypotheses

    return settle_hypotheses(as_meta(model), example)


@dataclass(kw_only=True)
class Passes:
    """The passes of one model that a coupling is made from, with the hypotheses that they follow."""

    choices: dict[SiteKey, str] = field(default_factory=dict)
    fixed: Fixed = field(default_factory=Fixed)
    modes: tuple[bool, ...] = (False, True)
    notes: tuple[str, ...] = ()
    recordings: dict[bool, Recording] = field(default_factory=dict)
    weights: frozenset[str] = frozenset()

    def follow(self, meta: nn.Module, example: Example) -> Solution:
        for training in (False, True):
            if training in self.modes and training not in self.recordings:
                self._record(meta, example, training)
        weights = frozenset().union(*(found.weights for found in self.recordings.values()))
        if weights != self.weights:  # what one mode computes weights from is no weight in the other: follow both alike
            self.weights, self.recordings = weights, {}
            return self.follow(meta, example)
        return solve([self.recordings[training] for training in self.modes], self.fixed)

    def _record(self, meta: nn.Module, example: Example, training: bool) -> None:
        try:
            with watching_training() as readers:
                self.recordings[training] = record(meta.train(training), example, self.choices, self.weights)
            if not training and not readers:
                self.modes = (False,)
        except UnsupportedModel as error:
            if not training:
                raise
            self.modes = (False,)
            self.notes = (f"not followed in training mode: {error}",)

    def choose(self, site: SiteKey, alternative: str) -> None:
        """Follow another hypothesis from now on: the passes that met this operator are out of date."""
        self.choices[site] = alternative
        self.recordings = {mode: found for mode, found in self.recordings.items() if site not in found.sites}


def coupling_of(solution: Solution, meta: nn.Module, notes: tuple[str, ...] = ()) -> tuple[Coupling, Ints]:
    """Name and number the channels. Also returns each component's channel: [components], -1 if it has none."""
    order = {name: i for i, name in enumerate(solution.order)}
    keys = sorted(solution.dims, key=lambda key: (order[key[0]], key[1]))
    wanted = _wanted(solution)
    signature, holders = _signatures(solution, keys, wanted)
    channel = np.full(len(wanted), -1, np.int64)
    groups: list[Group] = []
    names: Counter[str] = Counter()
    start = 0
    for mark, members in holders.items():
        makers = tuple(key for key in members if key in solution.made)
        lead = solution.dims[makers[0]]
        mine = _in_order(lead[signature[lead] == mark])
        channel[mine] = np.arange(start, start + len(mine))
        name = layer_of(makers[0][0]) or makers[0][0]
        names[name] += 1
        inexact = mine[solution.inexact.marked[mine]]
        groups.append(
            Group(
                name=name if names[name] == 1 else f"{name}#{names[name]}",
                start=start,
                size=len(mine),
                members=tuple(members),
                made=makers,
                exact=not inexact.size,
                inexact_reason=solution.inexact.of(inexact[0]) if inexact.size else None,
                summed=bool(solution.summed[mine].any()),
            )
        )
        start += len(mine)
    dims = {key: channel[solution.dims[key]] for key in keys}
    coupling = Coupling(
        groups=tuple(groups),
        frozen=_frozen(solution, wanted),
        dims={key: found for key, found in dims.items() if (found >= 0).any()},
        shapes={name: tuple(t.shape) for name, t in [*meta.named_parameters(), *meta.named_buffers()]},
        buffers=frozenset(name for name, _ in meta.named_buffers()),
        bare=frozenset().union(*(recording.bare for recording in solution.recordings)),
        depthwise=frozenset().union(*(recording.depthwise for recording in solution.recordings)),
        calls=tuple(_with_channels(call, solution, channel) for call in solution.recordings[0].calls),
        notes=notes,
    )
    return coupling, channel


def _with_channels(call: Call, solution: Solution, channel: Ints) -> Call:
    """A recorded call with channels in place of labels."""
    if call.along is None:
        return call
    return replace(call, along=tuple(channel[solution.of(torch.tensor(call.along), 0)].tolist()))


def _wanted(solution: Solution) -> Bools:
    """[components] True for channels: not frozen, and made by some layer."""
    wanted = np.zeros(len(solution.summed), bool)
    for key in solution.made:
        if key in solution.dims:
            wanted[solution.dims[key]] = True
    wanted[solution.frozen.marked] = False
    wanted[solution.component[0]] = False
    return wanted


def _signatures(
    solution: Solution, keys: list[ParameterDim], wanted: Bools
) -> tuple[Ints, dict[int, list[ParameterDim]]]:
    """[components] a number that is equal for those with the same members, as often; and each number's members.

    Numbers come in the order of their first member, and members in the order of `keys`.
    """
    signature = np.zeros(len(wanted), np.int64)
    generator = np.random.default_rng(0)
    for key in keys:
        weight = generator.integers(1, 2**62)
        np.add.at(signature, solution.dims[key], weight)  # wraps around, on purpose: a hash
    signature[~wanted] = 0
    holders: dict[int, list[ParameterDim]] = {}
    for key in keys:
        for mark in np.unique(signature[solution.dims[key]]).tolist():
            if mark:
                holders.setdefault(mark, []).append(key)
    return signature, holders


def _in_order(values: Ints) -> Ints:
    """Distinct values in the order of their first occurrence."""
    unique, index = np.unique(values, return_index=True)
    result: Ints = unique[np.argsort(index)]
    return result


def _frozen(solution: Solution, wanted: Bools) -> tuple[Frozen, ...]:
    """Frozen channels counted where they are made (or read, for those that no layer makes), by reason."""
    seen = np.zeros(len(wanted), bool)
    counts: dict[tuple[str, str], int] = {}
    for role in (True, False):
        for key, components in solution.dims.items():
            if (key in solution.made) is not role:
                continue
            layer = layer_of(key[0]) or key[0]
            for component in components[~wanted[components] & ~seen[components]].tolist():
                reason = solution.frozen.of(component) or "no layer makes it"
                counts[layer, reason] = counts.get((layer, reason), 0) + 1
            seen[components] = True
    return tuple(Frozen(layer=layer, channels=n, reason=reason) for (layer, reason), n in counts.items())
