"""Rules for operators that move, split and join dimensions: mostly the operator itself, applied to the labels."""

import math
from typing import Any

import torch
from torch import Tensor

from orchestrator.network import labels as lb
from orchestrator.network.recording import Axes, Op, tensors_in
from orchestrator.network.trace import Trace, freeze_through, unknown

aten = torch.ops.aten


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
    """Weights keep their own dimensions through t, transpose, permute, unsqueeze and expand."""
    dims, packet = list(axes.dims), op.func.overloadpacket
    if packet == aten.t:
        dims = dims[::-1]
    elif packet == aten.transpose:
        i, j = op.args[1], op.args[2]
        dims[i], dims[j] = dims[j], dims[i]
    elif packet == aten.permute:
        dims = [dims[d] for d in op.args[1]]
    elif packet == aten.unsqueeze:
        dims.insert(op.args[1] % op.out.ndim, -1)
    elif packet == aten.expand and _only_new_sizes(op, dims):
        dims = [-1] * (op.out.ndim - len(dims)) + dims
    else:
        return None
    return Axes(name=axes.name, dims=tuple(dims))


def _only_new_sizes(op: Op, dims: list[int]) -> bool:
    before, after = op.args[0].shape, op.out.shape[op.out.ndim - len(dims) :]
    return all(own < 0 or old == new for own, old, new in zip(dims, before, after, strict=True))


def _set_all(trace: Trace, out: Any, labels: Any) -> None:
    for tensor, found in zip(tensors_in(out), tensors_in(labels), strict=True):
        trace.set(tensor, lb.settle(found))


def view(trace: Trace, op: Op) -> None:
    """A dimension of channels that is split into blocks: a hypothesis about which of the parts the code fixes."""
    if isinstance(op.args[1], torch.dtype):
        unknown(trace, op)
        return
    old, new = op.args[0].shape, op.out.shape
    value = trace.value(op.args[0])
    if isinstance(value, Axes) and old[-2:] == new[-2:] and len(old) > 2 and set(value.dims[:-2]) == {-1}:
        trace.set(op.out, Axes(name=value.name, dims=(-1,) * (len(new) - 2) + value.dims[-2:]))
        return
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
    """One factor of a channel dimension may change size; equal positions along the others are one channel."""
    order = axes[::-1]  # the last factor first: view(N, blocks, -1)
    names = tuple(f"factor {i}" for i in range(len(order)))
    chosen = trace.choice(op, labels, (*names, "all"))
    if chosen == "all":
        trace.freeze(labels, f"width fixed in code at {op.name}")
        return labels
    for axis, name in zip(order, names, strict=True):
        if name != chosen:
            first = labels.narrow(axis, 0, 1)
            trace.unify(labels, first)
            labels = first.expand(labels.shape)
    return labels


def parts(trace: Trace, op: Op) -> None:
    """split, chunk, slice along channels: are the sizes computed from the width, or written in the code?"""
    labels = trace.labels(op.args[0])
    dim = _dim(op)
    if lb.varies(labels, dim):
        labels = _every(trace, op, labels, dim) if _stride(op) > 1 else _cut_points(trace, op, labels, dim)
        _set_all(trace, op.out, op.func(labels, *op.args[1:], **op.kwargs))
        return
    for out in tensors_in(op.out):
        trace.set(out, labels.narrow(dim, 0, 1).expand(out.shape))


def pick(trace: Trace, op: Op) -> None:
    """x[:, 3] or unbind: the number of positions is fixed, whatever they carry."""
    labels = trace.labels(op.args[0])
    dim = _dim(op)
    if lb.varies(labels, dim):
        if len(lb.varying(labels)) > 1:  # [3, C] and the like: every position carries the same channels
            trace.unify(labels, labels.narrow(dim, 0, 1))
        else:
            trace.freeze(labels, f"width fixed in code at {op.name}")
    _set_all(trace, op.out, op.func(labels, *op.args[1:], **op.kwargs))


def _dim(op: Op) -> int:
    position = next(i for i, argument in enumerate(op.func._schema.arguments) if argument.name == "dim")
    found: int = op.arg(position, "dim", 0) % op.args[0].ndim
    return found


def _stride(op: Op) -> int:
    found: int = op.arg(4, "step", 1) if op.func.overloadpacket == aten.slice else 1
    return found


def _every(trace: Trace, op: Op, labels: Tensor, dim: int) -> Tensor:
    """x[:, ::2]: neighbours leave together, so that every second channel stays every second."""
    size, stride = labels.size(dim), _stride(op)
    if size % stride or trace.choice(op, labels, ("neighbours", "all")) == "all":
        trace.freeze(labels, f"width fixed in code at {op.name}")
        return labels
    return _tied(trace, labels, dim, (size // stride, stride), dim + 1)


def _edges(op: Op, size: int, dim: int) -> list[int]:
    """Where a split or slice cuts a dimension, both ends included."""
    if op.func.overloadpacket == aten.slice:
        low, high, _ = slice(op.arg(2, "start"), op.arg(3, "end")).indices(size)
        return sorted({0, low, high, size})
    edges = [0]
    for part in tensors_in(op.out):
        edges.append(edges[-1] + part.shape[dim])
    return sorted({*edges, size})


def _cut_points(trace: Trace, op: Op, labels: Tensor, dim: int) -> Tensor:
    """Alternatives: equal blocks that shrink together; what lies before the last or behind the first cut; all."""
    size = labels.size(dim)
    edges = _edges(op, size, dim)
    if len(edges) == 2:
        return labels  # nothing is cut off
    block = math.gcd(*edges)
    kind = trace.choice(op, labels, (*("blocks",) * (block > 1 or trace.seeds is not None), "head", "tail", "all"))
    if kind == "blocks":
        return _tied(trace, labels, dim, (size // block, block), dim)
    first, last = {"head": (0, edges[-2]), "tail": (edges[1], size), "all": (0, size)}[kind]
    trace.freeze(labels.narrow(dim, first, last - first), f"width fixed in code at {op.name}")
    return labels


def _tied(trace: Trace, labels: Tensor, dim: int, sizes: tuple[int, int], along: int) -> Tensor:
    """Take a dimension as `sizes` and let equal positions along one of the two leave together."""
    blocks = labels.unflatten(dim, sizes)
    first = blocks.narrow(along, 0, 1)
    trace.unify(blocks, first)
    tied: Tensor = first.expand(blocks.shape).flatten(dim, dim + 1)
    return tied


def shuffle(trace: Trace, op: Op) -> None:
    """channel_shuffle(x, groups): equal positions of all blocks leave together."""
    tensor, groups = op.args[0], op.args[1]
    labels = trace.labels(tensor)
    tied = _tied(trace, labels, 1, (groups, labels.size(1) // groups), 1)
    moved = tied.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
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
    trace.unify(halves.select(dim, 0), halves.select(dim, 1))
    trace.set(op.out, lb.settle(halves.select(dim, 0)))


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
        if not any(lb.varies(labels, dim) for labels in found):
            trace.set(out, found[0].narrow(dim, 0, 1).expand(out.shape))
            return
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
    """x[..., index]: places may be picked, and a table's entries; picked channels of activations stay."""
    labels = _table(trace, op.args[0], [d for d, index in enumerate(op.args[1]) if index is not None])
    indices = op.args[1]
    touched = [d for d, index in enumerate(indices) if index is not None]
    if any(lb.varies(labels, d) for d in touched):
        freeze_through(trace, op, f"channels picked by index at {op.name}")
        return
    zeros = [None if index is None else torch.zeros(index.shape, dtype=torch.int64) for index in indices]
    trace.set(op.out, lb.settle(aten.index(labels, zeros)))


def _table(trace: Trace, tensor: Tensor, picked: list[int]) -> Tensor:
    """Labels of what entries are picked from. A parameter's entries, such as position biases, are no channels."""
    labels = trace.labels(tensor)
    if trace.is_parameter(tensor) and any(d not in picked for d in lb.varying(labels)):
        for dim in picked:
            first = labels.narrow(dim, 0, 1)
            trace.unify(labels, first)
            labels = first.expand(labels.shape)
    return labels


def restrided(trace: Trace, op: Op) -> None:
    """as_strided, where it leaves every element in its place, as pooling to one place does."""
    labels = trace.labels(op.args[0])
    strides: list[int] = []
    dense = 1
    for size in reversed(labels.shape):
        strides.insert(0, dense)
        dense *= size
    same = all(n == 1 or own == given for n, own, given in zip(labels.shape, strides, op.args[2], strict=False))
    if tuple(op.args[1]) != tuple(labels.shape) or not same or op.arg(3, "storage_offset"):
        unknown(trace, op)
        return
    trace.set(op.out, labels)


def index_select(trace: Trace, op: Op) -> None:
    dim = op.args[1] % op.args[0].ndim
    labels = _table(trace, op.args[0], [dim])
    if lb.varies(labels, dim):
        freeze_through(trace, op, f"channels picked by index at {op.name}")
        return
    trace.set(op.out, labels.narrow(dim, 0, 1).expand(op.out.shape))
