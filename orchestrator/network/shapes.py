"""Results on the meta device of the operators that a network mostly consists of, without PyTorch's own detours.

PyTorch's meta kernels of these are Python, and would be most of the time of a symbolic pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

aten = torch.ops.aten
META = torch.device("meta")


def shapes_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operator on meta tensors gives. Raises NotImplementedError for all that is left to PyTorch."""
    packet = func.overloadpacket
    rule = SHAPES.get(packet)
    if rule is not None:
        return rule(*args, **kwargs)
    if packet in ELEMENTWISE:
        return _elementwise(func, args, kwargs)
    raise NotImplementedError


def _batch_norm(x: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    for parameter in given[:4]:
        if parameter is not None and parameter.numel() != x.shape[1]:
            raise RuntimeError(f"a batch norm of {parameter.numel()} channels meets {x.shape[1]}")
    saved = _empty([x.shape[1]], x.dtype)
    return _like(x), saved, saved


def _layer_norm(x: Tensor, shape: list[int], *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    places = x.ndim - len(shape)
    sizes = [tuple(shape), *(tuple(parameter.shape) for parameter in given[:2] if parameter is not None)]
    for size in sizes:
        if tuple(x.shape[places:]) != size:
            raise RuntimeError(f"a layer norm of {list(size)} meets {list(x.shape)}")
    saved = _empty([*x.shape[:places], *[1] * len(shape)], x.dtype)
    return _empty(x.shape, x.dtype), saved, saved


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *given: Any) -> Tensor:
    transposed, groups = given[3], given[5]
    settings = [_each(sizes, x.ndim - 2) for sizes in (*given[:3], given[4])]
    if x.ndim != weight.ndim or x.dtype != weight.dtype or not x.is_contiguous() or not (x.is_meta and weight.is_meta):
        raise NotImplementedError  # left to PyTorch
    rows, columns = weight.shape[0], weight.shape[1] * groups
    read, made = (rows, columns) if transposed else (columns, rows)
    if x.shape[1] != read or rows % groups or (bias is not None and bias.numel() != made):
        raise RuntimeError(f"a convolution of {list(weight.shape)}, groups={groups}, meets {list(x.shape)}")
    reach = _reach_transposed if transposed else _reach
    places = [reach(*each) for each in zip(x.shape[2:], weight.shape[2:], *settings, strict=True)]
    if min(places) < 1:
        raise RuntimeError(f"a kernel of {list(weight.shape[2:])} is larger than a picture of {list(x.shape[2:])}")
    return _empty([x.shape[0], made, *places], x.dtype)


def _each(given: list[int], dims: int) -> list[int]:
    return given if len(given) == dims else given * dims


def _reach(*sizes: int) -> int:
    """The size of a result along one dimension."""
    size, kernel, stride, padding, dilation, _ = sizes
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _reach_transposed(*sizes: int) -> int:
    size, kernel, stride, padding, dilation, more = sizes
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1


def _concatenated(parts: list[Tensor], dim: int = 0) -> Tensor:
    first, shapes = parts[0], [list(part.shape) for part in parts]
    plain = first.ndim and all(part.dtype == first.dtype and part.ndim == first.ndim for part in parts)
    if not plain or any(part.device != first.device for part in parts):
        raise NotImplementedError  # left to PyTorch
    together = [*shapes[0]]
    together[dim] = sum(shape[dim] for shape in shapes)
    for shape in shapes:
        shape[dim] = together[dim]
        if shape != together:
            raise RuntimeError(f"tensors to concatenate differ: {list(first.shape)} and {shape}")
    return _empty(together, first.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[m, k] times [k, n]."""
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype or not (a.is_meta and b.is_meta):
        raise NotImplementedError  # left to PyTorch
    if a.shape[1] != b.shape[0]:
        raise RuntimeError(f"a product of {list(a.shape)} and {list(b.shape)}")
    return _empty([a.shape[0], b.shape[1]], a.dtype)


def _product_added(bias: Tensor, a: Tensor, b: Tensor, **given: Any) -> Tensor:
    result = _product(a, b)
    if bias.ndim != 1 or bias.dtype != a.dtype or not bias.is_meta:
        raise NotImplementedError  # left to PyTorch
    if bias.shape[0] not in (1, result.shape[1]):
        raise RuntimeError(f"a bias of {list(bias.shape)} meets {list(result.shape)}")
    return result


def _elementwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The result of an operator on numbers and tensors of one precision: laid out as its first operand of full size."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    first = tensors[0]
    alike = all(t.dtype == first.dtype and t.device == first.device for t in tensors)
    plain = not any(isinstance(value, (Tensor, torch.dtype, torch.device)) for value in kwargs.values())
    if not (alike and plain and first.is_floating_point() and first.is_meta):
        raise NotImplementedError  # left to PyTorch
    same = all(t.shape == first.shape for t in tensors)
    shape = first.shape if same else np.broadcast_shapes(*(t.shape for t in tensors))
    if func._schema.is_mutable:
        if shape != first.shape:
            raise RuntimeError(f"a result of {list(shape)} does not fit into {list(first.shape)}")
        return first
    like = next((t for t in tensors if t.shape == shape), None)
    return _empty(shape, first.dtype) if like is None else _like(like)


def _like(tensor: Tensor) -> Tensor:
    """PyTorch's empty_like, which takes its time on the meta device."""
    return _empty(tensor.shape, tensor.dtype) if tensor.is_contiguous() else torch.empty_like(tensor)


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)  # new_empty is Python on the meta device


# Operators whose shapes are plain to see. PyTorch's meta kernels of these are Python, and most of a pass's time.
SHAPES: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm: _batch_norm,
    aten.native_layer_norm: _layer_norm,
    aten.cat: _concatenated,
    aten.convolution: _convolution,
    aten.mm: _product,
    aten.addmm: _product_added,
}

# Operators that give numbers of their operands' precision, element by element; likewise slow on meta tensors.
ELEMENTWISE = {
    aten.add, aten.sub, aten.mul, aten.div, aten.relu, aten.sigmoid, aten.tanh, aten.silu, aten.gelu, aten.exp,
    aten.sqrt, aten.rsqrt, aten.neg, aten.abs, aten.pow, aten.clamp, aten.clamp_min, aten.clamp_max, aten.hardtanh,
    aten.hardswish, aten.hardsigmoid, aten.leaky_relu, aten.elu, aten.mish, aten.maximum, aten.minimum,
    aten.add_, aten.sub_, aten.mul_, aten.div_, aten.relu_, aten.sigmoid_, aten.tanh_, aten.silu_, aten.gelu_,
    aten.clamp_, aten.clamp_min_, aten.clamp_max_, aten.hardtanh_, aten.hardswish_, aten.hardsigmoid_,
    aten.leaky_relu_, aten.elu_, aten.mish_,
}  # fmt: skip
