"""From recordings of a model's passes to its channels: one connected-components call, then names and indices."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from orchestrator.network import labels as lb
from orchestrator.network.recording import ParameterDim, Recording

Ints = npt.NDArray[np.int64]


@dataclass(kw_only=True)
class Fixed:
    """What replays have shown to be fixed in code: parameter positions, with the reason."""

    positions: list[tuple[ParameterDim, Ints, str]] = field(default_factory=list)


class Marks:
    """A reason for some of the components: the first that was given."""

    def __init__(self, components: int) -> None:
        self.which: Ints = np.full(components, -1, np.int64)  # [components] -> position in `reasons`, -1 if none
        self.reasons: list[str] = []

    def add(self, components: Ints, reason: str) -> None:
        self.which[components[self.which[components] < 0]] = len(self.reasons)
        self.reasons.append(reason)

    def of(self, component: int) -> str | None:
        found = int(self.which[component])
        return self.reasons[found] if found >= 0 else None

    @property
    def marked(self) -> npt.NDArray[np.bool_]:
        """[components] True for those that have a reason."""
        found: npt.NDArray[np.bool_] = self.which >= 0
        return found


@dataclass(kw_only=True)
class Solution:
    """Every label's component, and what is known of each component. Component 0 is that of the blank label."""

    component: Ints  # [labels + 1]
    frozen: "Marks"
    inexact: "Marks"
    summed: npt.NDArray[np.bool_]  # [components]
    dims: dict[ParameterDim, Ints]  # component of every position along a parameter's dimension
    made: set[ParameterDim]
    order: list[str]
    recordings: Sequence[Recording]
    offsets: list[int]

    def of(self, labels: Tensor, which: int) -> Ints:
        """Components of labels of recording number `which`; 0 for blank."""
        array = labels.numpy()
        shifted: Ints = np.where(array > 0, array + self.offsets[which], 0)
        return self.component[shifted]


def solve(recordings: Sequence[Recording], fixed: Fixed) -> Solution:
    """Unify what was seen in all passes (evaluation and training mode) of one model."""
    offsets = [sum(r.count for r in recordings[:i]) for i in range(len(recordings))]
    component = _components(recordings, offsets)
    components = int(component.max()) + 1
    solution = Solution(
        component=component,
        frozen=Marks(components),
        inexact=Marks(components),
        summed=np.zeros(components, bool),
        dims={},
        made=set(),
        order=[],
        recordings=recordings,
        offsets=offsets,
    )
    for which, recording in enumerate(recordings):
        for note in recording.frozen:
            solution.frozen.add(solution.of(note.labels, which), note.reason)
        for note in recording.inexact:
            solution.inexact.add(solution.of(note.labels, which), note.reason)
        for labels in recording.summed:
            solution.summed[solution.of(labels, which)] = True
        solution.made.update(key for key, role in recording.roles.items() if role == "made")
        solution.order += [name for name in recording.order if name not in solution.order]
    for which, recording in enumerate(recordings):
        _axes(solution, which, recording)
    for (name, dim), indices, reason in fixed.positions:
        solution.frozen.add(solution.dims[name, dim][indices], reason)
    weights = dict(solution.dims)
    while _elements(solution):  # freezing the channels of one parameter can change what another follows
        solution.dims = dict(weights)
    return solution


def _components(recordings: Sequence[Recording], offsets: list[int]) -> Ints:
    """[labels + 1]: connected components of all equalities; parameters are the same in every pass."""
    left: list[Ints] = []
    right: list[Ints] = []

    def tie(a: Tensor, i: int, b: Tensor, j: int) -> None:
        left.append(a.numpy().ravel() + offsets[i])
        right.append(b.numpy().ravel() + offsets[j])

    for which, recording in enumerate(recordings):
        for a, b in recording.pairs:
            tie(a, which, b, which)
        first = recordings[0]
        for name, vectors in recording.axes.items() if which else ():
            for own, earlier in zip(vectors, first.axes.get(name, [None] * len(vectors)), strict=True):
                if own is not None and earlier is not None:
                    tie(own, which, earlier, 0)
        for name, found in recording.elements.items() if which else ():
            if name in first.elements:
                tie(found, which, first.elements[name], 0)
    count = 1 + sum(r.count for r in recordings)
    rows = np.concatenate([np.zeros(0, np.int64), *left])
    columns = np.concatenate([np.zeros(0, np.int64), *right])
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    component: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return component


def _axes(solution: Solution, which: int, recording: Recording) -> None:
    for name, vectors in recording.axes.items():
        for dim, vector in enumerate(vectors):
            if vector is not None:
                solution.dims.setdefault((name, dim), solution.of(vector, which))


def _elements(solution: Solution) -> bool:
    """Which dimension of each element-wise parameter follows channels. True if something had to be frozen."""
    changed = False
    for which, recording in enumerate(solution.recordings):
        for name, labels in recording.elements.items():
            found = solution.of(labels, which)
            free = np.where(solution.frozen.which[found] >= 0, -1, found)
            if not (free >= 0).any():
                continue
            dims = _following(free)
            if len(dims) > 1:
                reason = f"{name} follows channels along {len(dims)} dimensions"
                solution.frozen.add(free[free >= 0], reason)
                changed = True
                continue
            dim = dims[0] if dims else 0
            index = tuple(slice(None) if d == dim else 0 for d in range(free.ndim))
            if free.ndim and (dims or free.ndim == 1):
                solution.dims[name, dim] = found[index]
    return changed


def _following(components: Ints) -> list[int]:
    return lb.varying(torch.from_numpy(components))
