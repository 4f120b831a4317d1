"""Models and inputs without data: tensors on the meta device have shapes, and operators on them compute only shapes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from orchestrator.network.copying import copied
from orchestrator.network.recording import PLAIN, tensors_in
from orchestrator.network.shapes import shapes_of
from orchestrator.record import InvalidInput

ALIKE = {
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
}
# Pictures leave out a whole branch, whatever its width. By name, as their packages are slow to import.
ALIKE_BY_NAME = {"timm.layers.drop.DropPath", "torchvision.ops.stochastic_depth.StochasticDepth"}
USUAL = vars(nn.Module()).keys()  # what every module has: parameters, buffers, hooks and other modules
ONE_AT_A_TIME = threading.Lock()  # watchers, among the threads of a process
Example = Tensor | tuple[Any, ...]


class UnsupportedModel(InvalidInput):
    """A model that cannot be followed at all: it does not run, or not on meta tensors."""


def as_meta(model: nn.Module) -> nn.Module:
    """A copy of a model whose tensors have shapes but no data; ties are kept, memory is not touched."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for tensor in [*model.buffers(), *loose_tensors(model)]:
        memo.setdefault(id(tensor), torch.empty_like(tensor, device="meta"))
    return copied(model, memo)


def loose_tensors(model: nn.Module) -> list[Tensor]:
    """Tensors among the modules' attributes that are neither parameters nor buffers; hooks leave such."""
    return [
        tensor
        for module in model.modules()
        for name in vars(module).keys() - USUAL
        if type(value := vars(module)[name]) not in PLAIN
        for tensor in tensors_in(value)
    ]


@contextmanager
def watching_training() -> Iterator[set[str]]:
    """Which classes' `training` was read meanwhile, well-known norms and dropouts apart.

    If none is, a model runs the same code in both modes: channels flow alike through what those layers do in each.
    """
    found: set[str] = set()

    def read(module: nn.Module) -> bool:
        if "training" not in vars(module):
            raise AttributeError(f"{type(module).__name__!r} object has no attribute 'training'")
        kind = type(module)
        if kind not in ALIKE and f"{kind.__module__}.{kind.__qualname__}" not in ALIKE_BY_NAME:
            found.add(kind.__name__)
        mode: bool = vars(module)["training"]
        return mode

    def write(module: nn.Module, mode: bool) -> None:
        vars(module)["training"] = mode

    with ONE_AT_A_TIME:
        nn.Module.training = property(read, write)  # type: ignore[assignment]  # in its instances' place for a while
        try:
            yield found
        finally:
            del nn.Module.training


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
    try:
        return shapes_of(func, args, kwargs)
    except NotImplementedError:
        pass
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError):
        if len({tensor.device for tensor in tensors_in((args, kwargs))}) < 2:
            raise
    args, kwargs = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    return func(*args, **kwargs)
