"""Weights that are computed before they are used: normalised, standardised, masked, added up from parts.

Such a tensor follows channels along several dimensions at once, so it carries a vector of labels for each, a Grid.
The rules here say how the operators between a parameter and the layer that uses it move these vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orchestrator.network import labels as lb
from orchestrator.network.recording import Axes, Op, ParameterDim, Role, tensors_in

if TYPE_CHECKING:
    from orchestrator.network.trace import Trace

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.embedding}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """For each dimension: the labels along it (None: no channels), and the parameters' dimensions that they are of.

    zero: the tensor is zero at channels whose parameters are. name: the parameter that stands for a weight.
    """

    vectors: tuple[Tensor | None, ...]
    origins: tuple[tuple[ParameterDim, ...], ...]
    zero: bool = True
    name: str = ""

    @property
    def ndim(self) -> int:
        return len(self.vectors)

    @property
    def labelled(self) -> list[int]:
        return [dim for dim, vector in enumerate(self.vectors) if vector is not None]

    def own(self, dim: int) -> int:
        """The named parameter's dimension that runs along `dim`."""
        return next(own for name, own in self.origins[dim] if name == self.name)

    def moved(self, dims: Sequence[int | None]) -> "Grid":
        """New dimensions, each an old one or (None) one without channels."""
        vectors = tuple(None if dim is None else self.vectors[dim] for dim in dims)
        origins = tuple(() if dim is None else self.origins[dim] for dim in dims)
        return replace(self, vectors=vectors, origins=origins)


Rule = Callable[["Trace", Op, list[Grid | None]], Grid | None]


class NoRule(Exception):
    """The vectors cannot be followed through this operator."""


def grid_of(trace: "Trace", tensor: Tensor) -> Grid | None:
    """The grid of a computed weight or of a parameter; None for a constant. Raises NoRule for an activation."""
    value = trace.value(tensor)
    if isinstance(value, Grid):
        return value
    if isinstance(value, Axes):
        origins = tuple(() if own < 0 else ((value.name, own),) for own in value.dims)
        return Grid(vectors=tuple(_vector(trace, value.name, own) for own in value.dims), origins=origins)
    if lb.core(value).any():
        raise NoRule("meets an activation")
    return None


def _vector(trace: "Trace", name: str, own: int) -> Tensor | None:
    """Labels along a parameter's dimension, if it may follow channels: kernels' places do not."""
    if own < 0 or own > 1:
        return None
    known = trace.seeds.axes.get(name) if trace.seeds is not None else None
    wanted = known[own] is not None if known else trace.parameters[name].shape[own] > 1
    return trace.along(name, own) if wanted else None


def follow(trace: "Trace", op: Op) -> None:
    """Apply the operator's rule to the vectors; where there is none, the channels stay."""
    from orchestrator.network.rules_grids import GRID_RULES, pointwise

    try:
        given = [grid_of(trace, tensor) for tensor in op.operands]
        rule = GRID_RULES.get(op.func.overloadpacket)
        if rule is None and (torch.Tag.pointwise in op.func.tags or op.func.overloadpacket == aten.copy_):
            rule = pointwise
        if rule is None:
            raise NoRule(f"no rule for {op.name} on a weight")
        found = rule(trace, op, given)
    except NoRule as error:
        give_up(trace, op, f"the weight is computed before it is used: {error}")
        return
    for out in tensors_in(op.out):
        if found is not None and out.ndim == found.ndim:
            trace.set(out, found)


def give_up(trace: "Trace", op: Op, reason: str) -> None:
    """Freeze all that an operator on a weight touches."""
    for tensor in op.operands:
        value = trace.value(tensor)
        if isinstance(value, Tensor):
            trace.freeze(value, reason)
        else:
            freeze(trace, tensor, reason)
    for out in tensors_in(op.out):
        trace.set(out, lb.blank(out.shape))


def freeze(trace: "Trace", tensor: Tensor, reason: str) -> None:
    """Freeze the channels of a parameter or a computed weight."""
    grid = grid_of(trace, tensor)
    for vector in () if grid is None else grid.vectors:
        if vector is not None:
            trace.freeze(vector, reason)


def spread(trace: "Trace", tensor: Tensor) -> Tensor:
    """Labels of a computed weight by element: possible if it follows channels along one dimension at most."""
    grid = grid_of(trace, tensor)
    assert grid is not None
    if len(grid.labelled) > 1:
        freeze(trace, tensor, "a computed weight is used by element too")
    if len(grid.labelled) != 1:
        return lb.blank(tensor.shape)
    (dim,) = grid.labelled
    labels = grid.vectors[dim]
    assert labels is not None
    return lb.along(labels, dim, tensor.shape)


def concerns(trace: "Trace", op: Op) -> bool:
    """Whether an operator works on what a weight is computed from, rather than being the layer that uses it."""
    if not trace.weights or op.func.overloadpacket == aten.convolution:
        return False
    values = [trace.value(tensor) for tensor in op.operands]
    marked = any(isinstance(v, Grid) or (isinstance(v, Axes) and v.name in trace.weights) for v in values)
    layer = op.func.overloadpacket in PRODUCTS and any(trace.sources_of(tensor) is None for tensor in op.operands)
    return marked and not layer


def weight_of(trace: "Trace", grid: Grid, tensor: Tensor, dims: tuple[int, int]) -> Grid | None:
    """The grid with the name of the parameter that runs along both dimensions of a weight; None if none does.

    A dimension of size 1 may have lost its origin on the way; a parameter of the weight's own shape has it.
    """
    origins = list(grid.origins)
    names = dict.fromkeys(name for origin in origins for name, _ in origin)
    for name in sorted(names, key=lambda name: -trace.parameters[name].numel()):
        same = trace.parameters[name].shape == tensor.shape
        for dim in dims:
            if not origins[dim] and tensor.shape[dim] == 1 and same:
                origins[dim] = ((name, dim % tensor.ndim),)
        if all(any(name == other for other, _ in origins[dim]) for dim in dims):
            return replace(grid, origins=tuple(origins), name=name)
    return None


def axis(trace: "Trace", grid: Grid, dim: int, role: Role) -> Tensor:
    """[n] labels along one dimension of a computed weight, which makes or reads these channels."""
    own = grid.own(dim)
    trace.recording.roles.setdefault((grid.name, own), role)
    labels = grid.vectors[dim]
    if labels is None:
        labels = trace.along(grid.name, own)
    bare = [origin in trace.recording.bare for origin in grid.origins[dim]]
    if not grid.zero or (bare and all(bare)):
        trace.inexact(labels, "a computed weight that is not zero where its parameters are")
    return labels
