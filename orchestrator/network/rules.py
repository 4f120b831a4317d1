"""Operator -> how channels flow through it: plain functions, and one visible dict at the end.

A rule sees an operator as it ran (trace.Op) and says what its result carries (`trace.set`), what is the same channel
(`trace.unify`), what must stay (`trace.freeze`) and where cutting is not the same as zeroing (`trace.inexact`).
Operators with PyTorch's own `pointwise` tag share one rule; any other operator that is not listed freezes what it
touches. A shape operator is simply applied to the label tensor, so there is no index arithmetic to get wrong.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator.network import labels as lb
from orchestrator.network.trace import Axes, Op, Trace, tensors_in, unknown

aten = torch.ops.aten
Rule = Callable[[Trace, Op], None]


# -- element by element ----------------------------------------------------------------------------------------------


def pointwise(trace: Trace, op: Op) -> None:
    """Operands meet element by element: the same position is the same channel."""
    outs = tensors_in(op.out)
    operands = [t for t in tensors_in((op.args, op.kwargs)) if not any(t is out for out in outs)]
    if op.func._schema.is_mutable and not any(t is op.args[0] for t in operands):
        operands.insert(0, op.args[0])
    shape = outs[0].shape
    aligned = [_aligned(trace.labels(t), len(shape)) for t in operands]
    aligned = [_without_broadcast(trace, op, i, aligned) for i in range(len(aligned))]
    # the labels of an activation go on, rather than those of a parameter, which may follow more dimensions
    ranked = sorted(range(len(operands)), key=lambda i: trace.is_parameter(operands[i]))
    merged = lb.blank(shape)
    activations = [i for i in ranked if not trace.is_parameter(operands[i])]
    if op.func.overloadpacket in SUMS and len(activations) > 1:
        _note_sum(trace, [aligned[i] for i in activations])
    for i in ranked:
        trace.unify(merged, aligned[i])
        merged = _first_known(merged, aligned[i], shape)
    if op.func._schema.is_mutable and op.args[0]._is_view() and not lb.core(trace.labels(op.args[0])).any():
        trace.freeze(merged, f"written in place into a part of another tensor by {op.name}")
    for out in outs:
        trace.set(out, merged)


def _aligned(labels: Tensor, ndim: int) -> Tensor:
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


def _first_known(a: Tensor, b: Tensor, shape: Sequence[int]) -> Tensor:
    small_a, small_b = torch.broadcast_tensors(lb.core(a), lb.core(b))
    if (small_a != 0).all() or not (small_b != 0).any():
        return small_a.expand(tuple(shape))
    return torch.where(small_a != 0, small_a, small_b).expand(tuple(shape))


def _note_sum(trace: Trace, operands: Sequence[Tensor]) -> None:
    """Remember the channels of a residual stream: activations of different layers that are added."""
    known = [labels for labels in operands if lb.varying(labels)]
    if len(known) > 1 and not torch.equal(*torch.broadcast_tensors(lb.core(known[0]), lb.core(known[1]))):
        trace.recording.summed.extend(lb.core(labels).unique() for labels in known)


def passed(trace: Trace, op: Op) -> None:
    """The result carries what the first operand carries: dropout, clone, detach, softmax over another dimension."""
    source = op.args[0]
    for out in tensors_in(op.out):
        if out.shape == source.shape:
            trace.set(out, trace.value(source))


def copied(trace: Trace, op: Op) -> None:
    """a.copy_(b): as if both were added."""
    pointwise(trace, op)


def nothing(trace: Trace, op: Op) -> None:
    """A result without channels: new constants, shapes, random numbers."""


def softmax(trace: Trace, op: Op) -> None:
    dim = op.arg(1, "dim")
    labels = trace.labels(op.args[0])
    if labels.ndim and lb.varies(labels, dim % labels.ndim):
        trace.inexact(labels, f"{op.name} over channels")
    trace.set(op.out, labels)


# -- layers with weights ---------------------------------------------------------------------------------------------


def convolution(trace: Trace, op: Op) -> None:
    x, weight, bias = op.args[:3]
    transposed, groups = op.args[6], op.args[8]
    axes, labels = trace.value(weight), trace.labels(x)
    if not isinstance(axes, Axes):
        trace.freeze(trace.labels(weight), "the weight is computed before it is used")
        _freeze_call(trace, op, "the weight is computed before it is used")
        return
    kernel = weight[0, 0].numel()
    trace.call(axes, kernel * (x if transposed else op.out)[:, 0].numel())
    channels = lb.vector(labels, 1)
    if channels is None:
        _mixing_convolution(trace, op, labels)
        return
    flow = _transposed_flow if transposed else _flow
    made = flow(trace, axes, channels, groups)
    if bias is not None:
        trace.unify(trace.labels(bias), made)
    trace.set(op.out, lb.along(made, 1, op.out.shape))


def _read(trace: Trace, weight_in: Tensor, channels: Tensor) -> None:
    trace.unify(weight_in, channels)
    trace.freeze(weight_in[(channels == 0).expand_as(weight_in)], "reads a constant")


def _flow(trace: Trace, axes: Axes, channels: Tensor, groups: int) -> Tensor:
    """[out] labels made by a convolution that reads `channels` [in]."""
    made = trace.axis(axes, 0, "made")
    blocks = channels.reshape(groups, -1)
    if groups == 1:
        _read(trace, trace.axis(axes, 1, "read"), channels)
    elif blocks.shape[1] == 1:  # depthwise: a channel leaves with its own filters
        trace.unify(made.reshape(groups, -1), blocks)
        trace.freeze(made[(blocks == 0).expand(groups, made.numel() // groups).flatten()], "reads a constant")
    else:  # equal positions of all conv_groups leave together, so that these keep one width
        read = trace.axis(axes, 1, "read")
        for block in blocks:
            _read(trace, read, block)
        trace.unify(made.reshape(groups, -1), made.reshape(groups, -1)[:1])
    return made


def _transposed_flow(trace: Trace, axes: Axes, channels: Tensor, groups: int) -> Tensor:
    read = trace.axis(axes, 0, "read")
    _read(trace, read, channels)
    if groups == 1:
        return trace.axis(axes, 1, "made")
    blocks = read.reshape(groups, -1)
    if blocks.shape[1] == 1:
        each = trace.parameters[axes.name].shape[axes.dims[1]]
        return read.repeat_interleave(each)
    trace.unify(blocks, blocks[:1])
    return trace.axis(axes, 1, "made").repeat(groups)


def _mixing_convolution(trace: Trace, op: Op, labels: Tensor) -> None:
    """A kernel that runs along channels, as in ECA: prunable, but neighbours change when a channel leaves."""
    single = op.args[0].shape[1] == 1 and op.out.shape == op.args[0].shape
    if not single:
        _freeze_call(trace, op, f"{op.name} mixes channels of different places")
        return
    trace.inexact(labels, "a convolution along channels")
    trace.set(op.out, labels)


def _freeze_call(trace: Trace, op: Op, reason: str) -> None:
    for tensor in tensors_in(op.args):
        value = trace.value(tensor)
        if isinstance(value, Axes):
            for dim in range(len(value.dims)):
                trace.freeze(trace.axis(value, dim, "read"), reason)
        else:
            trace.freeze(value, reason)
    for out in tensors_in(op.out):
        label = trace.fresh(1)
        trace.freeze(label, reason)
        trace.set(out, label.reshape((1,) * out.ndim).expand(out.shape))


def matrix_product(trace: Trace, op: Op) -> None:
    """mm, addmm, bmm, baddbmm: a linear layer if one side is a weight, attention and the like if none is."""
    a, b = op.args[-2:]
    left, right = trace.value(a), trace.value(b)
    if isinstance(left, Tensor) and isinstance(right, Axes) and a.ndim == 2:
        _linear(trace, op, left, right)
    elif isinstance(left, Axes) and isinstance(right, Tensor) and a.ndim == 2:
        _linear(trace, op, right.t(), Axes(name=left.name, dims=left.dims[::-1]), flipped=True)
    elif isinstance(left, Tensor) and isinstance(right, Tensor):
        _product(trace, op, left, right)
    else:
        _freeze_call(trace, op, "a product of two parameters")


def _linear(trace: Trace, op: Op, x: Tensor, axes: Axes, *, flipped: bool = False) -> None:
    """x [rows, in] times weight [in, out]."""
    trace.call(axes, x.shape[0])
    read, made = trace.axis(axes, 0, "read"), trace.axis(axes, 1, "made")
    channels = lb.vector(x, 1)
    if channels is not None:
        _read(trace, read, channels)
        result = lb.along(made, 1, (x.shape[0], made.numel()))
    else:  # the layer mixes places (tokens), not channels: its own sizes are those of the picture
        reason = "a linear layer over places, not channels"
        if lb.varies(x, 1):
            trace.freeze(x, reason)
        trace.freeze(read, reason)
        trace.freeze(made, reason)
        result = x[:, :1].expand(x.shape[0], made.numel())
    result = result.t() if flipped else result
    if len(op.args) == 3:
        trace.unify(trace.labels(op.args[0]), result)
    trace.set(op.out, result)


def _product(trace: Trace, op: Op, a: Tensor, b: Tensor) -> None:
    """a [..., i, k] times b [..., k, j]: the shared dimension is the same channels on both sides."""
    rows, columns = lb.varies(a, a.ndim - 2), lb.varies(b, b.ndim - 1)
    shared_a, shared_b = lb.varies(a, a.ndim - 1), lb.varies(b, b.ndim - 2)
    if (rows and shared_a) or (columns and shared_b) or (rows and columns):
        _freeze_call(trace, op, f"{op.name} mixes two channel dimensions")
        return
    if shared_a and shared_b:
        trace.unify(a[..., :1, :].transpose(-1, -2), b[..., :, :1])
    elif shared_a or shared_b:
        trace.freeze(a if shared_a else b, f"{op.name} multiplies channels with constants")
    shape = op.out.shape
    result = lb.blank(shape)
    if rows:
        result = a[..., :1].expand(shape)
    elif columns:
        result = b[..., :1, :].expand(shape)
    elif not (shared_a or shared_b):  # heads and the like: labels that follow neither matrix dimension
        trace.unify(a[..., :1, :1], b[..., :1, :1])
        result = _first_known(a[..., :1, :1], b[..., :1, :1], shape)
    if len(op.args) == 3:
        trace.unify(_aligned(trace.labels(op.args[0]), len(shape)), result)
    trace.set(op.out, result)


def embedding(trace: Trace, op: Op) -> None:
    axes = trace.value(op.args[0])
    if not isinstance(axes, Axes):
        unknown(trace, op)
        return
    trace.set(op.out, lb.along(trace.axis(axes, 1, "made"), op.out.ndim - 1, op.out.shape))


# -- norms -----------------------------------------------------------------------------------------------------------


def batch_norm(trace: Trace, op: Op) -> None:
    x = op.args[0]
    labels = trace.labels(x)
    channels = lb.vector(labels, 1)
    if channels is None:
        unknown(trace, op)
        return
    for parameter in op.args[1:5]:
        if isinstance(parameter, Tensor):
            trace.unify(trace.labels(parameter), channels)
    trace.set(tensors_in(op.out)[0], labels)


def layer_norm(trace: Trace, op: Op) -> None:
    x, shape = op.args[0], op.args[1]
    labels = trace.labels(x)
    if any(lb.varies(labels, x.ndim - 1 - i) for i in range(len(shape))):
        trace.inexact(labels, "a layer norm across channels")
    for parameter in op.args[2:4]:
        if isinstance(parameter, Tensor):
            trace.unify(_aligned(trace.labels(parameter), x.ndim), labels)
    trace.set(tensors_in(op.out)[0], labels)


def group_norm(trace: Trace, op: Op) -> None:
    x, weight, bias, groups = op.args[0], op.args[1], op.args[2], op.args[6]
    labels = trace.labels(x)
    channels = lb.vector(labels, 1)
    if channels is None:
        unknown(trace, op)
        return
    blocks = channels.reshape(groups, -1)
    if blocks.shape[1] > 1:
        trace.unify(blocks, blocks[:1])
        trace.inexact(labels, "a group norm across channels")
    for parameter in (weight, bias):
        if isinstance(parameter, Tensor):
            trace.unify(trace.labels(parameter), channels)
    trace.set(tensors_in(op.out)[0], labels)


# -- places ----------------------------------------------------------------------------------------------------------


def spatial(first: int) -> Rule:
    """Pooling, upsampling, padding of places: dimensions from `first` on change size and must carry no channels."""

    def rule(trace: Trace, op: Op) -> None:
        labels = trace.labels(op.args[0])
        outs = tensors_in(op.out)
        leading = labels.ndim - outs[0].ndim
        assert leading == 0
        if any(lb.varies(labels, dim) for dim in range(first, labels.ndim)):
            unknown(trace, op)
            return
        for dim in range(first, labels.ndim):
            labels = labels.narrow(dim, 0, 1)
        for out in outs:
            trace.set(out, labels.expand(out.shape))

    return rule


def reduction(kind: str) -> Rule:
    """mean, sum, max, ...: over places it passes channels on; over channels only a sum or a norm is exact."""

    def rule(trace: Trace, op: Op) -> None:
        x = op.args[0]
        labels = trace.labels(x)
        dims = _reduced(op, x.ndim)
        mixed = [dim for dim in dims if lb.varies(labels, dim)]
        others = [dim for dim in lb.varying(labels) if dim not in dims]
        if mixed and others:
            unknown(trace, op)
            return
        if mixed:
            if kind != "exact":
                trace.inexact(labels, f"{op.name} over channels")
            return
        for dim in dims:
            labels = labels.narrow(dim, 0, 1)
        for out in tensors_in(op.out):
            kept = (
                labels
                if out.ndim == x.ndim
                else labels.reshape([s for d, s in enumerate(labels.shape) if d not in dims])
            )
            trace.set(out, kept.expand(out.shape))

    return rule


def _reduced(op: Op, ndim: int) -> list[int]:
    names = [argument.name for argument in op.func._schema.arguments]
    where = next((i for i, name in enumerate(names) if name in ("dim", "dims")), None)
    found = None if where is None else op.arg(where, names[where])
    if found is None or found == []:
        return list(range(ndim))
    return sorted(d % ndim for d in ([found] if isinstance(found, int) else found))


# -- shapes ----------------------------------------------------------------------------------------------------------


def same_on_labels(trace: Trace, op: Op) -> None:
    """The operator itself, applied to the labels."""
    tensor = op.args[0]
    value = trace.value(tensor)
    moved = _permuted(op, value) if isinstance(value, Axes) else None
    if moved is not None:
        trace.set(op.out, moved)
        return
    labels = trace.labels(tensor)
    kwargs = {
        k: v for k, v in op.kwargs.items() if k not in ("dtype", "device", "layout", "pin_memory", "memory_format")
    }
    _set_all(trace, op.out, op.func(labels, *op.args[1:], **kwargs))


def _permuted(op: Op, axes: Axes) -> Axes | None:
    """Weights keep their own dimensions through t, transpose and permute."""
    ndim = len(axes.dims)
    order = list(range(ndim))
    if op.func.overloadpacket == aten.t:
        order = order[::-1]
    elif op.func.overloadpacket == aten.transpose:
        i, j = op.args[1] % ndim, op.args[2] % ndim
        order[i], order[j] = order[j], order[i]
    elif op.func.overloadpacket == aten.permute:
        order = [d % ndim for d in op.args[1]]
    else:
        return None
    return Axes(name=axes.name, dims=tuple(axes.dims[d] for d in order))


def _set_all(trace: Trace, out: Any, labels: Any) -> None:
    for tensor, found in zip(tensors_in(out), tensors_in(labels), strict=True):
        trace.set(tensor, lb.settle(found))


def view(trace: Trace, op: Op) -> None:
    """A dimension of channels that is split into blocks: a hypothesis about which of the parts the code fixes."""
    if isinstance(op.args[1], torch.dtype):
        passed(trace, op)
        return
    old, new = op.args[0].shape, op.out.shape
    labels = trace.labels(op.args[0])
    if not lb.core(labels).any():
        return
    refined = lb.refinement(old, new)
    if refined is None:
        if lb.varying(labels):
            trace.freeze(labels, f"{op.name} splits channels unevenly")
        trace.set(op.out, lb.settle(labels.reshape(new)))
        return
    labels = lb.settle(labels.reshape(refined))
    for axes in lb.factors_of(old, refined):
        found = [axis for axis in axes if lb.varies(labels, axis)]
        if len(found) > 1:
            labels = _one_flexible(trace, op, labels, found)
    trace.set(op.out, lb.settle(labels.reshape(new)))


def _one_flexible(trace: Trace, op: Op, labels: Tensor, axes: list[int]) -> Tensor:
    """Of several factors of a channel dimension one may change size; equal positions along the others leave together."""
    order = axes[::-1]  # the last factor first: view(N, blocks, -1)
    chosen = trace.choice(labels, len(order) + 1)
    if chosen == len(order):
        trace.freeze(labels, f"width fixed in code at {op.name}")
        return labels
    for axis in axes:
        if axis != order[chosen]:
            first = labels.narrow(axis, 0, 1)
            trace.unify(labels, first)
            labels = first.expand(labels.shape)
    return labels


def parts(trace: Trace, op: Op) -> None:
    """split, chunk, unbind, slice, select, narrow along channels: are the sizes computed, or written in the code?"""
    tensor = op.args[0]
    labels = trace.labels(tensor)
    dim = op.arg(_dim_position(op), "dim", 0) % max(tensor.ndim, 1)
    if not lb.varies(labels, dim):
        narrow = labels.narrow(dim, 0, 1)
        for out in tensors_in(op.out):
            kept = narrow if out.ndim == labels.ndim else narrow.squeeze(dim)
            trace.set(out, kept.expand(out.shape))
        return
    if op.func.overloadpacket in ONE_OF:
        _pick(trace, op, labels, dim)
        return
    bounds = _bounds(op, labels.size(dim), dim)
    if bounds == [(0, labels.size(dim))]:
        _set_all(trace, op.out, [labels])
        return
    labels = _cut_points(trace, op, labels, dim, bounds)
    _set_all(trace, op.out, op.func(labels, *op.args[1:], **op.kwargs))


ONE_OF = {aten.select, aten.unbind}


def _dim_position(op: Op) -> int:
    return next(i for i, argument in enumerate(op.func._schema.arguments) if argument.name == "dim")


def _pick(trace: Trace, op: Op, labels: Tensor, dim: int) -> None:
    """x[:, 3] or unbind: the number of positions is fixed, whatever they carry."""
    others = [d for d in lb.varying(labels) if d != dim]
    if others:  # [3, C] and the like: every position carries the same channels of the other dimension
        first = labels.narrow(dim, 0, 1)
        trace.unify(labels, first)
        labels = first.expand(labels.shape)
    else:
        trace.freeze(labels, f"width fixed in code at {op.name}")
    _set_all(trace, op.out, op.func(labels, *op.args[1:], **op.kwargs))


def _bounds(op: Op, size: int, dim: int) -> list[tuple[int, int]]:
    if op.func.overloadpacket == aten.slice:
        start, end, step = op.arg(2, "start"), op.arg(3, "end"), op.arg(4, "step", 1)
        low, high, stride = slice(start, end, step).indices(size)
        return [(low, high)] if stride == 1 else []
    widths = [t.shape[dim] for t in tensors_in(op.out)]
    edges = [0]
    for width in widths:
        edges.append(edges[-1] + width)
    return list(zip(edges, edges[1:], strict=False))


def _cut_points(trace: Trace, op: Op, labels: Tensor, dim: int, bounds: list[tuple[int, int]]) -> Tensor:
    """Alternatives: equal blocks that shrink together; only what lies before the last cut point fixed; all fixed."""
    size = labels.size(dim)
    edges = sorted({edge for pair in bounds for edge in pair} | {0, size})
    block = 0
    for edge in edges:
        block = _gcd(block, edge)
    alternatives = ["blocks"] * (bool(bounds) and block < size) + ["head", "tail"] * bool(bounds) + ["all"]
    kind = alternatives[trace.choice(labels, len(alternatives))]
    if kind == "blocks":
        view = labels.unflatten(dim, (size // block, block))
        first = view.narrow(dim, 0, 1)
        trace.unify(view, first)
        return first.expand(view.shape).flatten(dim, dim + 1)
    fixed = labels
    if kind == "head":
        last = max(edge for edge in edges if edge < size) if len(edges) > 2 else size
        fixed = labels.narrow(dim, 0, last)
    elif kind == "tail":
        first_edge = min(edge for edge in edges if edge > 0) if len(edges) > 2 else 0
        fixed = labels.narrow(dim, first_edge, size - first_edge)
    trace.freeze(fixed, f"width fixed in code at {op.name}")
    return labels


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


def shuffle(trace: Trace, op: Op) -> None:
    """channel_shuffle(x, groups): equal positions of all blocks leave together."""
    tensor, groups = op.args[0], op.args[1]
    labels = trace.labels(tensor).unflatten(1, (groups, -1))
    first = labels.narrow(1, 0, 1)
    trace.unify(labels, first)
    moved = first.expand(labels.shape).transpose(1, 2).flatten(1, 2)
    trace.set(op.out, lb.settle(moved))


def pixel_shuffle(trace: Trace, op: Op) -> None:
    """r x r consecutive channels become places of one: they leave together."""
    labels = trace.labels(op.args[0])
    channels = lb.vector(labels, 1)
    if channels is None or op.args[0].ndim != 4:
        unknown(trace, op)
        return
    blocks = channels.reshape(-1, op.args[1] ** 2)
    trace.unify(blocks, blocks[:, :1])
    trace.set(op.out, lb.along(blocks[:, 0], 1, op.out.shape))


def pixel_unshuffle(trace: Trace, op: Op) -> None:
    labels = trace.labels(op.args[0])
    channels = lb.vector(labels, 1)
    if channels is None or op.args[0].ndim != 4:
        unknown(trace, op)
        return
    trace.set(op.out, lb.along(channels.repeat_interleave(op.args[1] ** 2), 1, op.out.shape))


def glu(trace: Trace, op: Op) -> None:
    """The second half of a dimension gates the first."""
    tensor = op.args[0]
    dim = op.arg(1, "dim", -1) % tensor.ndim
    halves = trace.labels(tensor).unflatten(dim, (2, -1))
    first, second = halves.select(dim, 0), halves.select(dim, 1)
    trace.unify(first, second)
    trace.set(op.out, lb.settle(first))


def concatenate(trace: Trace, op: Op) -> None:
    """cat and stack. Along the other dimensions all parts carry the same channels, or the result has no shape."""
    given = [t for t in op.args[0] if t.numel()]
    stacked = op.func.overloadpacket == aten.stack
    out = op.out
    dim = op.arg(1, "dim", 0) % out.ndim
    found = [trace.labels(t).unsqueeze(dim) if stacked else trace.labels(t) for t in given]
    if not any(lb.core(labels).any() for labels in found):
        return
    across = {d for labels in found for d in lb.varying(labels) if d != dim}
    found = [_fixed_if_blank(trace, op, labels, across) for labels in found]
    if across:
        for labels in found[1:]:
            trace.unify(found[0].narrow(dim, 0, 1), labels)
    shape = [max(labels.size(d) if labels.stride(d) else 1 for labels in found) for d in range(out.ndim)]
    pieces = []
    for labels in found:
        small = lb.core(labels, keep=[dim])
        pieces.append(small.expand([small.size(d) if d == dim else shape[d] for d in range(out.ndim)]))
    trace.set(out, torch.cat(pieces, dim).expand(out.shape))


def _fixed_if_blank(trace: Trace, op: Op, labels: Tensor, across: set[int]) -> Tensor:
    """Constants take part in a concatenation with as many positions as the code gives them: these stay."""
    if lb.core(labels).any() and not (lb.core(labels) == 0).any():
        return labels
    label = trace.fresh(1)
    trace.freeze(label, f"constants at {op.name}")
    return (
        torch.where(labels == 0, label, labels)
        if lb.core(labels).any()
        else label.reshape((1,) * labels.ndim).expand(labels.shape)
    )


def constant_pad(trace: Trace, op: Op) -> None:
    """Padding of places carries nothing; padding of channels adds positions that the code fixes."""
    tensor, pads = op.args[0], list(op.args[1])
    labels = trace.labels(tensor)
    label = None
    for i in range(0, len(pads), 2):
        dim = tensor.ndim - 1 - i // 2
        low, high = pads[i], pads[i + 1]
        if not low and not high:
            continue
        if not lb.varies(labels, dim):
            labels = labels.narrow(dim, 0, 1).expand(
                [labels.size(d) + (low + high) * (d == dim) for d in range(labels.ndim)]
            )
            continue
        if label is None:
            label = trace.fresh(1)
            trace.freeze(label, "constant channels added by padding")
        start = max(0, -low)
        labels = labels.narrow(dim, start, labels.size(dim) - start - max(0, -high))
        if min(low, high) < 0:
            trace.freeze(labels, f"width fixed in code at {op.name}")
        pieces = [labels]
        for amount, front in ((low, True), (high, False)):
            if amount > 0:
                shape = [amount if d == dim else labels.size(d) for d in range(labels.ndim)]
                pieces.insert(0 if front else len(pieces), label.reshape((1,) * labels.ndim).expand(shape))
        labels = torch.cat(pieces, dim)
    trace.set(op.out, lb.settle(labels).expand(op.out.shape))


def indexed(trace: Trace, op: Op) -> None:
    """index, index_select, gather with tensors: places may be picked; picked channels stay."""
    tensor = op.args[0]
    labels = trace.labels(tensor)
    if not lb.core(labels).any():
        return
    if op.func.overloadpacket == aten.index:
        indices = op.args[1]
        touched = [d for d, index in enumerate(indices) if index is not None]
        if any(lb.varies(labels, d) for d in touched):
            unknown(trace, op)
            return
        for d in touched:
            labels = labels.narrow(d, 0, 1)
        zeros = [None if i is None else torch.zeros(i.shape, dtype=torch.int64) for i in indices]
        trace.set(op.out, lb.settle(aten.index(labels, zeros)))
        return
    dim = op.args[1] % tensor.ndim
    if lb.varies(labels, dim):
        unknown(trace, op)
        return
    trace.set(op.out, labels.narrow(dim, 0, 1).expand(op.out.shape))


RULES: dict[Any, Rule] = {
    # layers
    aten.convolution: convolution,
    aten.mm: matrix_product,
    aten.addmm: matrix_product,
    aten.bmm: matrix_product,
    aten.baddbmm: matrix_product,
    aten.embedding: embedding,
    # norms
    aten.native_batch_norm: batch_norm,
    aten._native_batch_norm_legit: batch_norm,
    aten._native_batch_norm_legit_no_training: batch_norm,
    aten.cudnn_batch_norm: batch_norm,
    aten.native_layer_norm: layer_norm,
    aten.native_group_norm: group_norm,
    # element by element (most have PyTorch's pointwise tag)
    aten.copy_: copied,
    **dict.fromkeys(
        [
            aten._prelu_kernel,
            aten.hardswish,
            aten.hardswish_,
            aten.hardsigmoid,
            aten.hardsigmoid_,
            aten.hardtanh,
            aten.hardtanh_,
            aten.leaky_relu_,
            aten.elu_,
            aten.silu_,
            aten.mish_,
            aten.threshold_,
            aten.gelu_,
            aten.relu_,
            aten.sigmoid_,
            aten.tanh_,
            aten.clamp_,
            aten.celu_,
            aten.selu_,
        ],
        pointwise,
    ),
    aten.native_dropout: passed,
    aten.rrelu_with_noise: passed,
    aten.clone: passed,
    aten.detach: passed,
    aten.alias: passed,
    aten._to_copy: passed,
    aten.lift_fresh: passed,
    aten._softmax: softmax,
    aten._safe_softmax: softmax,
    aten._log_softmax: softmax,
    # no channels in the result
    **dict.fromkeys(
        [
            aten.empty,
            aten.zeros,
            aten.ones,
            aten.full,
            aten.arange,
            aten.linspace,
            aten.eye,
            aten.scalar_tensor,
            aten.new_zeros,
            aten.new_ones,
            aten.new_full,
            aten.new_empty,
            aten.empty_like,
            aten.zeros_like,
            aten.ones_like,
            aten.full_like,
            aten.rand,
            aten.randn,
            aten.rand_like,
            aten.randn_like,
            aten.bernoulli_,
            aten.randint,
            aten.randperm,
            aten.uniform_,
            aten.normal_,
            aten.zero_,
            aten.fill_,
            aten.as_strided_,
        ],
        nothing,
    ),
    # places
    **dict.fromkeys(
        [
            aten.max_pool2d_with_indices,
            aten.avg_pool2d,
            aten._adaptive_avg_pool2d,
            aten.adaptive_max_pool2d,
            aten.upsample_nearest2d,
            aten.upsample_bilinear2d,
            aten.upsample_bicubic2d,
            aten._upsample_bilinear2d_aa,
            aten._upsample_nearest_exact2d,
            aten.reflection_pad2d,
            aten.replication_pad2d,
        ],
        spatial(2),
    ),
    **dict.fromkeys(
        [
            aten.max_pool3d_with_indices,
            aten.avg_pool3d,
            aten._adaptive_avg_pool3d,
            aten.adaptive_max_pool3d,
            aten.upsample_nearest3d,
            aten.upsample_trilinear3d,
            aten.reflection_pad3d,
            aten.replication_pad3d,
            aten.upsample_nearest1d,
            aten.upsample_linear1d,
            aten.reflection_pad1d,
            aten.replication_pad1d,
            aten.avg_pool1d,
            aten.adaptive_avg_pool1d,
            aten.max_pool1d,
        ],
        spatial(2),
    ),
    aten.mean: reduction("inexact"),
    aten.amax: reduction("inexact"),
    aten.amin: reduction("inexact"),
    aten.max.dim: reduction("inexact"),
    aten.max.default: reduction("inexact"),
    aten.min.dim: reduction("inexact"),
    aten.min.default: reduction("inexact"),
    aten.var: reduction("inexact"),
    aten.std: reduction("inexact"),
    aten.var_mean: reduction("inexact"),
    aten.std_mean: reduction("inexact"),
    aten.sum: reduction("exact"),
    aten.linalg_vector_norm: reduction("exact"),
    # shapes
    **dict.fromkeys(
        [
            aten.t,
            aten.transpose,
            aten.permute,
            aten.expand,
            aten.unsqueeze,
            aten.squeeze,
            aten.flip,
            aten.roll,
            aten.repeat,
        ],
        same_on_labels,
    ),
    aten.view: view,
    aten._unsafe_view: view,
    aten.reshape: view,
    aten._reshape_alias: view,
    **dict.fromkeys(
        [
            aten.split,
            aten.split_with_sizes,
            aten.unsafe_split,
            aten.slice,
            aten.select,
            aten.unbind,
            aten.narrow,
        ],
        parts,
    ),
    aten.channel_shuffle: shuffle,
    aten.native_channel_shuffle: shuffle,
    aten.pixel_shuffle: pixel_shuffle,
    aten.pixel_unshuffle: pixel_unshuffle,
    aten.glu: glu,
    aten.cat: concatenate,
    aten.stack: concatenate,
    aten.constant_pad_nd: constant_pad,
    aten.index: indexed,
    aten.index_select: indexed,
}

SUMS = {aten.add, aten.add_, aten.sub, aten.sub_}
