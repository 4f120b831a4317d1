"""Rules for operators with weights: convolutions, matrix products, embeddings, norms."""

import torch
from torch import Tensor

from orchestrator.network import labels as lb
from orchestrator.network.grids import Grid, freeze
from orchestrator.network.recording import Axes, Op, tensors_in
from orchestrator.network.rules_elements import aligned_to, first_known
from orchestrator.network.trace import Trace, unknown

aten = torch.ops.aten


def convolution(trace: Trace, op: Op) -> None:
    x, weight, bias = op.args[:3]
    transposed, groups = op.args[6], op.args[8]
    axes, labels = trace.weight(weight, (0, 1)), trace.labels(x)
    if axes is None:
        origin = "from the pictures" if trace.sources_of(weight) is None else "before it is used"
        _freeze_call(trace, op, f"the weight is computed {origin}")
        trace.fixed_call((x if transposed else op.out).numel() * weight[0].numel())
        return
    kernel = weight[0, 0].numel()
    channels = lb.vector(labels, 1)
    if channels is None:
        _mixing_convolution(trace, op, axes, labels)
        return
    trace.call(axes, lb.blank((x if transposed else op.out)[:, 0].shape), kernel)
    if groups > 1 and trace.is_depthwise(axes, groups, channels.numel()):
        trace.recording.depthwise.add(axes.name)
    flow = _transposed_flow if transposed else _flow
    made = flow(trace, axes, channels, groups)
    if bias is not None:
        trace.acts_on(bias, made)
    trace.set(op.out, lb.along(made, 1, op.out.shape))


def _flow(trace: Trace, axes: Axes | Grid, channels: Tensor, groups: int) -> Tensor:
    """[out] labels made by a convolution that reads `channels` [in]."""
    made = trace.axis(axes, 0, "made")
    blocks = channels.reshape(groups, -1)
    if groups == 1:
        trace.reads(axes, 1, channels)
    elif trace.is_depthwise(axes, groups, channels.numel()):  # a channel leaves with its own filters
        trace.unify(made.reshape(groups, -1), blocks)
        trace.freeze(made[(blocks == 0).expand(groups, made.numel() // groups).flatten()], "reads a constant")
    else:  # equal positions of all conv_groups leave together, so that these keep one width
        for block in blocks:
            trace.reads(axes, 1, block)
        trace.unify(made.reshape(groups, -1), made.reshape(groups, -1)[:1])
    return made


def _transposed_flow(trace: Trace, axes: Axes | Grid, channels: Tensor, groups: int) -> Tensor:
    depthwise = trace.is_depthwise(axes, groups, channels.numel())
    if depthwise:  # one dimension both makes and reads
        trace.axis(axes, 0, "made")
    trace.reads(axes, 0, channels)
    read = trace.axis(axes, 0, "read")
    if depthwise:
        return read.repeat_interleave(trace.parameters[axes.name].shape[axes.own(1)])
    made = trace.axis(axes, 1, "made")
    if groups > 1:
        blocks = read.reshape(groups, -1)
        trace.unify(blocks, blocks[:1])
    return made.repeat(groups)


def _mixing_convolution(trace: Trace, op: Op, axes: Axes | Grid, labels: Tensor) -> None:
    """A kernel that runs along channels, as in ECA: prunable, but neighbours change when a channel leaves."""
    x, weight = op.args[:2]
    single = x.shape[1] == 1 and op.out.shape == x.shape
    trace.call(axes, (labels if single else lb.blank(op.out.shape))[:, 0], weight[0, 0].numel())
    if not single:
        _freeze_call(trace, op, f"{op.name} mixes channels of different places")
        return
    trace.inexact(labels, "a convolution along channels")
    trace.set(op.out, labels)


def _freeze_call(trace: Trace, op: Op, reason: str) -> None:
    for tensor in tensors_in(op.args):
        value = trace.value(tensor)
        if isinstance(value, Axes):
            for dim in range(value.ndim):
                trace.freeze(trace.axis(value, dim, "read"), reason)
        elif isinstance(value, Grid):
            freeze(trace, tensor, reason)
        else:
            trace.freeze(value, reason)
    for out in tensors_in(op.out):
        label = trace.fresh(1)
        trace.freeze(label, reason)
        trace.set(out, label.reshape((1,) * out.ndim).expand(out.shape))


def matrix_product(trace: Trace, op: Op) -> None:
    """mm, addmm, bmm, baddbmm: a linear layer if one side is a weight, attention and the like if none is."""
    first, second = op.args[-2:]
    left, right = _matrix(trace, first, second), _matrix(trace, second, first)
    if isinstance(left, Tensor) and isinstance(right, (Axes, Grid)):
        _linear(trace, op, left, right)
    elif isinstance(left, (Axes, Grid)) and isinstance(right, Tensor):
        _linear(trace, op, right.transpose(-1, -2), _mirrored(left), flipped=True)
    elif isinstance(left, Tensor) and isinstance(right, Tensor):
        if not _is_weight(trace, first, second) and not _is_weight(trace, second, first):
            _product(trace, op, left, right)
            return
        trace.fixed_call(op.out.numel() * first.shape[-1])
        _freeze_call(trace, op, "the weight is computed before it is used")
    else:
        _freeze_call(trace, op, "a product of two parameters")


def _matrix(trace: Trace, tensor: Tensor, other: Tensor) -> Tensor | Axes | Grid:
    """What one side of a product is: a weight, given or computed, or an activation's labels."""
    value = trace.value(tensor)
    if isinstance(value, Axes):
        return value
    weight = trace.weight(tensor, (-2, -1)) if _is_weight(trace, tensor, other) else None
    return weight or trace.labels(tensor)


def _is_weight(trace: Trace, tensor: Tensor, other: Tensor) -> bool:
    """Whether pictures are multiplied with what is computed from parameters, in the shape of one of them."""
    sources = trace.sources_of(tensor)
    shapes = {tuple(sorted(trace.parameters[name].shape)) for name in sources or ()}
    return trace.sources_of(other) is None and tuple(sorted(tensor.shape[-2:])) in shapes


def _mirrored(axes: Axes | Grid) -> Axes | Grid:
    order = [*range(axes.ndim - 2), axes.ndim - 1, axes.ndim - 2]
    if isinstance(axes, Grid):
        return axes.moved(order)
    return Axes(name=axes.name, dims=tuple(axes.dims[dim] for dim in order))


def _linear(trace: Trace, op: Op, x: Tensor, axes: Axes | Grid, *, flipped: bool = False) -> None:
    """x [..., in] times weight [..., in, out]."""
    if isinstance(axes, Axes) and (-1 in axes.dims[-2:] or set(axes.dims[:-2]) - {-1}):
        _freeze_call(trace, op, "a weight of another kind than [out, in]")
        return
    trace.call(axes, x[..., 0])
    last = x.ndim - 1
    made = trace.axis(axes, last, "made")
    shape = (*x.shape[:-1], made.numel())
    channels = lb.vector(x, last)
    if channels is not None:
        trace.reads(axes, last - 1, channels)
        result = lb.along(made, last, shape)
    else:  # the layer mixes places (tokens), not channels: its own sizes are those of the picture
        reason = "a linear layer over places, not channels"
        if lb.varies(x, last):
            trace.freeze(x, reason)
        trace.freeze(trace.axis(axes, last - 1, "read"), reason)
        trace.freeze(made, reason)
        result = x[..., :1].expand(shape)
    result = result.transpose(-1, -2) if flipped else result
    if len(op.args) == 3:
        trace.unify(aligned_to(trace.labels(op.args[0]), result.ndim), result)
    trace.set(op.out, result)


# where the channels of a product may lie: rows of a, shared in a, columns of b, shared in b, any dimension before
PRODUCTS = {
    (True, False, False, False, False),
    (False, False, True, False, False),
    (False, True, False, True, False),
    (False, True, False, False, False),
    (False, False, False, True, False),
    (True, False, False, True, False),
    (False, True, True, False, False),
    (False, False, False, False, True),
    (False, False, False, False, False),
}


def _product(trace: Trace, op: Op, a: Tensor, b: Tensor) -> None:
    """a [..., i, k] times b [..., k, j]: the shared dimension is the same channels on both sides."""
    rows, columns = lb.varies(a, a.ndim - 2), lb.varies(b, b.ndim - 1)
    shared_a, shared_b = lb.varies(a, a.ndim - 1), lb.varies(b, b.ndim - 2)
    heads = any(lb.varies(t, dim) for t in (a, b) for dim in range(t.ndim - 2))
    if (rows, shared_a, columns, shared_b, heads) not in PRODUCTS:
        _freeze_call(trace, op, f"{op.name} mixes two channel dimensions")
        return
    if shared_a and shared_b:
        trace.unify(a[..., :1, :].transpose(-1, -2), b[..., :, :1])
        if trace.is_alive(op.args[-2]) and trace.is_alive(op.args[-1]):
            trace.inexact(a[..., :1, :], f"{op.name} over channels")
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
        result = first_known(a[..., :1, :1], b[..., :1, :1], shape)
    if len(op.args) == 3:
        trace.unify(aligned_to(trace.labels(op.args[0]), len(shape)), result)
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
            trace.acts_on(parameter, channels)
    trace.set(op.outs[0], labels)


def layer_norm(trace: Trace, op: Op) -> None:
    x, shape = op.args[0], op.args[1]
    labels = trace.labels(x)
    if any(lb.varies(labels, x.ndim - 1 - i) for i in range(len(shape))):
        trace.inexact(labels, "a layer norm across channels")
    for parameter in op.args[2:4]:
        if isinstance(parameter, Tensor):
            trace.unify(aligned_to(trace.labels(parameter), x.ndim), labels)
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
