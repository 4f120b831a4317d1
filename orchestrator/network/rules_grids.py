"""Rules for operators between parameters and the layer whose weight is computed from them: vectors in, vectors out."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orchestrator.network import labels as lb
from orchestrator.network.grids import Grid, NoRule, Rule
from orchestrator.network.recording import Op, ParameterDim, tensors_in
from orchestrator.network.rules_elements import reduced_dims
from orchestrator.network.zeros import finite_at_zero, zero_at_zero

if TYPE_CHECKING:
    from orchestrator.network.trace import Trace

aten = torch.ops.aten
Factor = tuple[Tensor | None, tuple[ParameterDim, ...]]  # the labels along a dimension, and what they are of


def pointwise(trace: "Trace", op: Op, grids: list[Grid | None]) -> Grid:
    out = tensors_in(op.out)[0]
    vectors: list[Tensor | None] = [None] * out.ndim
    origins: list[dict[ParameterDim, None]] = [{} for _ in vectors]
    for tensor, grid in zip(op.operands, grids, strict=True):
        if grid is None:
            continue
        first = out.ndim - grid.ndim
        for dim, (vector, origin) in enumerate(zip(grid.vectors, grid.origins, strict=True), start=first):
            if tensor.shape[dim - first] != out.shape[dim]:
                continue  # repeated along this dimension: it says nothing of its channels
            origins[dim].update(dict.fromkeys(origin))
            known = vectors[dim]
            if vector is not None and known is not None:
                trace.unify(vector, known)
            vectors[dim] = vector if known is None else known
    zero = _zero(trace, op, grids)
    return Grid(vectors=tuple(vectors), origins=tuple(map(tuple, origins)), zero=zero)


def _zero(trace: "Trace", op: Op, grids: list[Grid | None]) -> bool:
    """Whether the result is zero where parameters are. A division by such a zero is told from there on.

    What would have to be divided by keeps its values in the masked network: it is zeroed by other parameters.
    """
    zero = [grid is not None and grid.zero and bool(grid.labelled) for grid in grids]
    for i, grid in enumerate(grids):
        if zero[i] and not finite_at_zero(op, [j == i for j in range(len(grids))]):
            assert grid is not None
            trace.recording.bare.update(key for dim in grid.labelled for key in grid.origins[dim])
            zero[i] = False
    return zero_at_zero(op, zero) if any(zero) else False


def _same(trace: "Trace", op: Op, grids: list[Grid | None]) -> Grid | None:
    return grids[0]


def _permuted(trace: "Trace", op: Op, grids: list[Grid | None]) -> Grid | None:
    grid = grids[0]
    if grid is None:
        return None
    dims: list[int | None] = list(range(grid.ndim))
    packet = op.func.overloadpacket
    if packet == aten.t:
        dims = dims[::-1]
    elif packet == aten.transpose:
        i, j = op.args[1], op.args[2]
        dims[i], dims[j] = dims[j], dims[i]
    else:
        dims = [d % grid.ndim for d in op.args[1]]
    return grid.moved(dims)


def _unsqueezed(trace: "Trace", op: Op, grids: list[Grid | None]) -> Grid | None:
    if grids[0] is None:
        return None
    dims: list[int | None] = list(range(grids[0].ndim))
    dims.insert(op.args[1] % op.out.ndim, None)
    return grids[0].moved(dims)


def _viewed(trace: "Trace", op: Op, grids: list[Grid | None]) -> Grid | None:
    """A dimension may be merged with others that carry no channels, and split from them again."""
    grid, old, new = grids[0], op.args[0].shape, op.out.shape
    if grid is None:
        return None
    refined = lb.refinement(old, new)
    if refined is None:
        raise NoRule(f"{op.name} splits channels unevenly")
    factors: list[Factor] = [(None, ())] * len(refined)
    for dim, axes in enumerate(lb.factors_of(old, refined)):
        for axis, factor in zip(axes, _split(grid, dim, [refined[a] for a in axes], op.name), strict=True):
            factors[axis] = factor
    joined = [
        _joined([factors[a] for a in axes], [refined[a] for a in axes], op.name) for axes in lb.factors_of(new, refined)
    ]
    return Grid(vectors=tuple(v for v, _ in joined), origins=tuple(o for _, o in joined), zero=grid.zero)


def _split(grid: Grid, dim: int, sizes: list[int], operator: str) -> list[Factor]:
    """A dimension as factors of these sizes; its channels may run along one of them."""
    vector, origin = grid.vectors[dim], grid.origins[dim]
    if vector is None:
        return [(None, origin)] if len(sizes) == 1 else [(None, ())] * len(sizes)
    spread = vector.reshape(sizes)
    along = lb.varying(spread)
    if len(along) > 1:
        raise NoRule(f"{operator} splits channels into blocks")
    at = along[0] if along else 0  # labels may be the same everywhere: those of a picture's own channels in a replay
    return [(lb.vector(spread, axis), origin) if axis == at else (None, ()) for axis in range(len(sizes))]


def _joined(factors: list[Factor], sizes: list[int], operator: str) -> Factor:
    """One dimension out of factors, of which one may carry channels."""
    labelled = [i for i, (vector, _) in enumerate(factors) if vector is not None]
    if len(labelled) > 1:
        raise NoRule(f"{operator} joins two channel dimensions")
    if not labelled:
        return (None, factors[0][1]) if len(factors) == 1 else (None, ())
    vector, origin = factors[labelled[0]]
    assert vector is not None
    return lb.along(vector, labelled[0], sizes).reshape(-1), origin


def _expanded(trace: "Trace", op: Op, grids: list[Grid | None]) -> Grid | None:
    grid = grids[0]
    if grid is None:
        return None
    first = op.out.ndim - grid.ndim
    dims = [None if d < first or op.args[0].shape[d - first] != n else d - first for d, n in enumerate(op.out.shape)]
    return grid.moved(dims)


def _kernel_only(trace: "Trace", op: Op, grids: list[Grid | None]) -> Grid | None:
    """Padding, slicing and flipping of a kernel's places: dimensions with channels must stay as they are."""
    grid = grids[0]
    if grid is None:
        return None
    if op.func.overloadpacket == aten.flip and set(grid.labelled) & {d % grid.ndim for d in op.args[1]}:
        raise NoRule(f"{op.name} of a weight's channels")
    if any(op.out.shape[dim] != op.args[0].shape[dim] for dim in grid.labelled):
        raise NoRule(f"{op.name} takes the channels of a weight apart")
    changed = [op.out.shape[d] != op.args[0].shape[d] for d in range(grid.ndim)]
    return replace(grid, origins=tuple(() if c else o for c, o in zip(changed, grid.origins, strict=True)))


def _reduced(*, over_channels: str) -> Rule:
    """A sum or norm of zeros is exact; a mean or a variance changes when channels leave."""

    def rule(trace: "Trace", op: Op, grids: list[Grid | None]) -> Grid | None:
        grid = grids[0]
        if grid is None:
            return None
        dims = reduced_dims(op, grid.ndim)
        for dim in dims:
            vector = grid.vectors[dim]
            if vector is not None and (over_channels == "inexact" or not grid.zero):
                trace.inexact(vector, f"{op.name} over channels of a weight")
        outs = tensors_in(op.out)
        kept = [None if d in dims else d for d in range(grid.ndim)]
        return grid.moved(kept if outs[0].ndim == grid.ndim else [d for d in kept if d is not None])

    return rule


def _multiplied(trace: "Trace", op: Op, grids: list[Grid | None]) -> Grid:
    """mm, mv, dot of two weights: the shared dimension is the same channels on both sides."""
    if len(grids) != 2 or grids[0] is None or grids[1] is None:
        raise NoRule(f"no rule for {op.name} on a weight")
    left, right = grids[0], grids[1]
    shared = left.vectors[-1], right.vectors[0]
    if shared[0] is not None and shared[1] is not None:
        trace.unify(shared[0], shared[1])
    for vector in shared:
        if vector is not None and not (left.zero or right.zero):
            trace.inexact(vector, f"{op.name} over channels of a weight")
    return Grid(
        vectors=(*left.vectors[:-1], *right.vectors[1:]),
        origins=(*left.origins[:-1], *right.origins[1:]),
        zero=left.zero and right.zero,
    )


def _standardised(trace: "Trace", op: Op, grids: list[Grid | None]) -> Grid:
    """A batch norm over a weight: each of its rows is normalised over what it reads."""
    grid = grids[0]
    if grid is None:
        raise NoRule(f"no rule for {op.name} on a weight")
    made = grid.vectors[1]
    for parameter in grids[1:]:
        if parameter is not None and parameter.vectors[0] is not None and made is not None:
            trace.unify(parameter.vectors[0], made)
    for dim in grid.labelled:
        vector = grid.vectors[dim]
        if dim != 1 and vector is not None:
            trace.inexact(vector, "a weight standardised over the channels that it reads")
    return grid


def _weight_normalised(trace: "Trace", op: Op, grids: list[Grid | None]) -> Grid:
    """weight = direction / its length x length, along one dimension: what is zeroed there is the length alone."""
    direction, length = grids[0], grids[1]
    if direction is None or length is None:
        raise NoRule("a weight norm of constants")
    dim = op.arg(2, "dim", 0) % direction.ndim
    trace.recording.bare.update(direction.origins[dim])
    left, right = direction.vectors[dim], length.vectors[dim]
    if left is not None and right is not None:
        trace.unify(left, right)
    origins = [own + other for own, other in zip(direction.origins, length.origins, strict=True)]
    return replace(direction, origins=tuple(origins), zero=direction.zero and length.zero)


GRID_RULES: dict[Any, Rule] = {
    **dict.fromkeys([aten.clone, aten.detach, aten.alias, aten._to_copy, aten.lift_fresh], _same),
    **dict.fromkeys([aten.t, aten.transpose, aten.permute], _permuted),
    **dict.fromkeys([aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.squeeze], _viewed),
    aten.unsqueeze: _unsqueezed,
    aten.expand: _expanded,
    **dict.fromkeys([aten.constant_pad_nd, aten.slice, aten.flip], _kernel_only),
    **dict.fromkeys([aten.sum, aten.linalg_vector_norm, aten.norm], _reduced(over_channels="exact")),
    **dict.fromkeys(
        [aten.mean, aten.var, aten.std, aten.var_mean, aten.std_mean, aten.amax, aten.amin],
        _reduced(over_channels="inexact"),
    ),
    **dict.fromkeys([aten.mm, aten.mv, aten.dot, aten.vdot], _multiplied),
    aten._weight_norm_interface: _weight_normalised,
    **dict.fromkeys([aten.native_batch_norm, aten._native_batch_norm_legit], _standardised),
}
