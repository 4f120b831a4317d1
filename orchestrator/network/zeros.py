"""Does an operator keep zeros? Where a channel's parameters are zero, is what it carries zero too?

Only then is a sum or a product over channels the same with and without the channel. Element-wise operators are
simply tried on numbers.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from orchestrator.network.recording import Op, tensors_in

aten = torch.ops.aten
TRIED = (0.7, -1.3)  # in place of operands that are not zero

# layers: what they make is zero where their weights and biases are
LAYERS = {aten.convolution, aten.mm, aten.addmm, aten.embedding}
NORMS = {aten.native_batch_norm, aten.native_layer_norm, aten.native_group_norm}
SOFTMAX = {aten._softmax, aten._safe_softmax, aten._log_softmax}


def makes_zero(op: Op) -> bool:
    """Whether a layer's result is zero where its parameters are, whatever it reads."""
    packet = op.func.overloadpacket
    if packet in LAYERS:
        return True
    position = 2 if packet == aten.native_layer_norm else 1
    return packet in NORMS and isinstance(op.args[position], Tensor)


def keeps_zero(op: Op) -> bool:
    """Whether an operator that is not element-wise passes zeros on: a softmax does not, nor padding with ones."""
    packet = op.func.overloadpacket
    return packet not in SOFTMAX and not (packet == aten.constant_pad_nd and op.arg(2, "value", 0) != 0)


def zero_at_zero(op: Op, zero: list[bool]) -> bool:
    """Whether an element-wise operator gives 0 where the operands marked True are 0, whatever the others are."""
    return all(result == 0 for result in _tried(op, zero))


def finite_at_zero(op: Op, zero: list[bool]) -> bool:
    return not any(zero) or all(result - result == 0 for result in _tried(op, zero))


def _tried(op: Op, zero: list[bool]) -> tuple[float, ...]:
    flat = not op.kwargs and not any(isinstance(arg, (list, tuple, dict)) for arg in op.args)
    leaves, form = (op.args, None) if flat else tree_flatten((op.args, op.kwargs))
    plain = tuple(leaf.dtype if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    where = tuple(isinstance(leaf, Tensor) for leaf in leaves)
    try:
        return _results(op.func, plain, where, tuple(zero), form)
    except TypeError:  # an argument that cannot be hashed: a list inside is a leaf of its own, so this is rare
        return (float("nan"),)


@lru_cache(maxsize=4096)
def _results(
    func: Any, leaves: tuple[Any, ...], is_tensor: tuple[bool, ...], zero: tuple[bool, ...], form: Any
) -> tuple[float, ...]:
    results = []
    for value in TRIED:
        marks = iter(zero)
        filled = [
            _operand(leaf, 0.0 if next(marks) else value) if t else leaf
            for leaf, t in zip(leaves, is_tensor, strict=True)
        ]
        filled = [torch.device("cpu") if isinstance(leaf, torch.device) else leaf for leaf in filled]
        args, kwargs = (filled, {}) if form is None else tree_unflatten(filled, form)
        try:
            results += [float(out.flatten()[0]) for out in tensors_in(func(*args, **kwargs))]
        except (RuntimeError, IndexError):
            results.append(1.0)
    return tuple(results)


def _operand(dtype: torch.dtype, value: float) -> Tensor:
    number = torch.tensor([value], dtype=torch.float64)
    if dtype.is_floating_point:
        return number
    return number > 0 if dtype == torch.bool else number.ceil().to(dtype)
