"""Models and inputs without data: tensors on the meta device have shapes, and operators on them compute only shapes."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from orchestrator.network.recording import tensors_in
from orchestrator.record import InvalidInput

Example = Tensor | tuple[Any, ...]
aten = torch.ops.aten


class UnsupportedModel(InvalidInput):
    """A model that cannot be followed at all: it does not run, or not on meta tensors."""


def as_meta(model: nn.Module) -> nn.Module:
    """A copy of a model whose tensors have shapes but no data; ties are kept, memory is not touched."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    loose = (tensors_in(value) for module in model.modules() for value in vars(module).values() if not _is_part(value))
    for tensor in [*model.buffers(), *(t for found in loose for t in found)]:
        memo.setdefault(id(tensor), torch.empty_like(tensor, device="meta"))
    return copy.deepcopy(model, memo)


def _is_part(value: Any) -> bool:
    return isinstance(value, (nn.Module, str, int, float, bool, type(None)))


def meta_inputs(model: nn.Module, example: Example) -> tuple[tuple[Any, ...], int]:
    """The example without data, in the model's own precision, with a batch of at least two (training needs two)."""
    inputs = example if isinstance(example, tuple) else (example,)
    sizes = [t.shape[0] for t in tensors_in(inputs) if t.ndim]
    if not sizes:
        raise UnsupportedModel("the example holds no tensor with a batch dimension")
    batch = sizes[0]
    wanted = max(2, batch)
    precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def empty(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        shape = (wanted, *leaf.shape[1:]) if leaf.ndim and leaf.shape[0] == batch else tuple(leaf.shape)
        return torch.empty(shape, dtype=precision if leaf.is_floating_point() else leaf.dtype, device="meta")

    return tree_map(empty, inputs), wanted


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on meta tensors; tensors that the model's code made elsewhere (torch.ones(8)) are followed."""
    shapes = SHAPES.get(func.overloadpacket)
    try:
        if shapes is not None:
            return shapes(*args, **kwargs)
    except NotImplementedError:
        pass
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError):
        if len({tensor.device for tensor in tensors_in((args, kwargs))}) < 2:
            raise
    args, kwargs = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    return func(*args, **kwargs)


def _batch_norm(x: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    for parameter in given[:4]:
        if parameter is not None and parameter.numel() != x.shape[1]:
            raise RuntimeError(f"a batch norm of {parameter.numel()} channels meets {x.shape[1]}")
    saved = x.new_empty(x.shape[1])
    return torch.empty_like(x), saved, saved


def _layer_norm(x: Tensor, shape: list[int], *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    places = x.ndim - len(shape)
    sizes = [tuple(shape), *(tuple(parameter.shape) for parameter in given[:2] if parameter is not None)]
    for size in sizes:
        if tuple(x.shape[places:]) != size:
            raise RuntimeError(f"a layer norm of {list(size)} meets {list(x.shape)}")
    saved = x.new_empty(*x.shape[:places], *[1] * len(shape))
    return x.new_empty(x.shape), saved, saved


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
    return first.new_empty(together)


# Operators whose shapes are plain to see. PyTorch's meta kernels of these are Python, and most of a pass's time.
SHAPES: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm: _batch_norm,
    aten.native_layer_norm: _layer_norm,
    aten.cat: _concatenated,
}
