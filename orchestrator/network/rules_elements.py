"""Rules for operators that work element by element, and for those that shrink or widen dimensions without channels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from orchestrator.network import labels as lb
from orchestrator.network.recording import Op, tensors_in
from orchestrator.network.trace import Trace, unknown

aten = torch.ops.aten


SUMS = {aten.add, aten.add_, aten.sub, aten.sub_}


def pointwise(trace: Trace, op: Op) -> None:
    """Operands meet element by element: the same position is the same channel."""
    outs, operands = op.outs, op.operands
    shape = outs[0].shape
    aligned = [aligned_to(trace.labels(t), len(shape)) for t in operands]
    merged = aligned[0].expand(shape) if len(operands) == 1 else _merged(trace, op, operands, aligned)
    if op.func._schema.is_mutable and op.args[0]._is_view() and not lb.core(trace.labels(op.args[0])).any():
        trace.freeze(merged, f"written in place into a part of another tensor by {op.name}")
    for out in outs:
        trace.set(out, merged)


def _merged(trace: Trace, op: Op, operands: Sequence[Tensor], aligned: Sequence[Tensor]) -> Tensor:
    shape = op.outs[0].shape
    aligned = [_without_broadcast(trace, op, i, aligned) for i in range(len(aligned))]
    activations = [i for i, operand in enumerate(operands) if not trace.is_parameter(operand)]
    if op.func.overloadpacket in SUMS and len(activations) > 1:
        _note_sum(trace, [aligned[i] for i in activations])
    # the labels of an activation go on, rather than those of a parameter, which may follow more dimensions
    merged = lb.blank(shape)
    for i in sorted(range(len(operands)), key=lambda i: i not in activations):
        trace.unify(merged, aligned[i])
        merged = first_known(merged, aligned[i], shape)
    return merged


def aligned_to(labels: Tensor, ndim: int) -> Tensor:
    return labels.reshape((1,) * (ndim - labels.ndim) + tuple(labels.shape)) if labels.ndim < ndim else labels


def _without_broadcast(trace: Trace, op: Op, index: int, operands: Sequence[Tensor]) -> Tensor:
    """An operand of one channel that meets many (a spatial gate, a scalar weight) must stay, and names no channel."""
    mine = operands[index]
    if not lb.core(mine).any():
        return mine
    for dim in range(mine.ndim):
        if mine.size(dim) > 1:
            continue
        if any(other.size(dim) > 1 and lb.varies(other, dim) for other in operands):
            trace.freeze(mine, f"one channel meets many at {op.name}")
            return lb.blank(mine.shape)
    return mine


def first_known(a: Tensor, b: Tensor, shape: Sequence[int]) -> Tensor:
    """Labels of `a`, and where it has none those of `b`."""
    mine, other = torch.broadcast_tensors(lb.core(a), lb.core(b))
    merged: Tensor = mine if (mine != 0).all() or not other.any() else torch.where(mine != 0, mine, other)
    return merged.expand(tuple(shape))


def _note_sum(trace: Trace, operands: Sequence[Tensor]) -> None:
    """Remember the channels of a residual stream: activations of different layers that are added."""
    known = [labels for labels in operands if lb.varying(labels)]
    if len(known) > 1 and not torch.equal(*torch.broadcast_tensors(lb.core(known[0]), lb.core(known[1]))):
        trace.recording.summed.extend(lb.core(labels).unique() for labels in known)


def passed(trace: Trace, op: Op) -> None:
    """The result carries what the first operand carries: dropout, clone, detach."""
    source = op.args[0]
    for out in tensors_in(op.out):
        if out.shape == source.shape:
            trace.set(out, trace.value(source))


def nothing(trace: Trace, op: Op) -> None:
    """A result without channels: new constants, shapes, random numbers."""


def softmax(trace: Trace, op: Op) -> None:
    dim = op.arg(1, "dim")
    labels = trace.labels(op.args[0])
    if labels.ndim and lb.varies(labels, dim % labels.ndim):
        trace.inexact(labels, f"{op.name} over channels")
    trace.set(op.out, labels)


# -- places -----------------------------------------------------------------------------------------------------------


def spatial(first: int) -> Callable[[Trace, Op], None]:
    """Pooling, upsampling, padding of places: dimensions from `first` on change size and must carry no channels."""

    def rule(trace: Trace, op: Op) -> None:
        labels = trace.labels(op.args[0])
        outs = tensors_in(op.out)
        if any(lb.varies(labels, dim) for dim in range(first, labels.ndim)):
            unknown(trace, op)
            return
        for dim in range(first, labels.ndim):
            labels = labels.narrow(dim, 0, 1)
        for out in outs:
            trace.set(out, labels.expand(out.shape))

    return rule


def reduction(*, over_channels: str) -> Callable[[Trace, Op], None]:
    """mean, sum, max, ...: over places it passes channels on; over channels only a sum of zeros is exact."""

    def rule(trace: Trace, op: Op) -> None:
        x = op.args[0]
        labels = trace.labels(x)
        dims = reduced_dims(op, x.ndim)
        mixed = [dim for dim in dims if lb.varies(labels, dim)]
        others = [dim for dim in lb.varying(labels) if dim not in dims]
        if mixed and others:
            unknown(trace, op)
            return
        if mixed:
            if over_channels == "inexact" or trace.is_alive(x):
                trace.inexact(labels, f"{op.name} over channels")
            return
        for dim in dims:
            labels = labels.narrow(dim, 0, 1)
        for out in tensors_in(op.out):
            smaller = out.ndim < x.ndim
            kept = labels.reshape([s for d, s in enumerate(labels.shape) if d not in dims]) if smaller else labels
            trace.set(out, kept.expand(out.shape))

    return rule


def reduced_dims(op: Op, ndim: int) -> list[int]:
    """The dimensions that a mean, a sum or the like takes away, ascending."""
    names = [argument.name for argument in op.func._schema.arguments]
    where = next((i for i, name in enumerate(names) if name in ("dim", "dims")), None)
    found = None if where is None else op.arg(where, names[where])
    if found is None or found == []:
        return list(range(ndim))
    return sorted(d % ndim for d in ([found] if isinstance(found, int) else found))
