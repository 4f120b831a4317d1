"""cut: a network with fewer channels; masked: the same network with these channels zeroed; verify: they agree."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from orchestrator.network.copying import copied
from orchestrator.network.coupling import Coupling
from orchestrator.network.meta import Example, UnsupportedModel, loose_tensors
from orchestrator.network.plan import Plan
from orchestrator.network.recording import tensors_in


def cut(model: nn.Module, coupling: Coupling, plan: Plan) -> nn.Module:
    """A new network of the same class and mode with only the plan's channels; the given one is untouched.

    Tied parameters stay tied; no tensor is shared with the given network.
    Raises UnsupportedModel if the coupling was made from a model of another structure, PlanMismatch if the plan was.
    """
    small = _rebuilt(model, coupling, shrink(coupling, plan))
    named = dict([*model.named_parameters(), *model.named_buffers()])
    depthwise = {id(named[name]) for name in coupling.depthwise}
    for module, whole in zip(small.modules(), model.modules(), strict=True):
        if isinstance(module, nn.modules.conv._ConvNd):
            own = {id(tensor) for tensor in (*whole.parameters(), *whole.buffers())}
            _fit_convolution_(module, _weight(module), depthwise=bool(own & depthwise))
        else:
            _fit_attributes_(module)
    return small


def shrink(coupling: Coupling, plan: Plan) -> Callable[[str, Tensor], Tensor]:
    """A function that takes a parameter's name and a tensor of its shape, and copies of it what the plan keeps.

    Raises PlanMismatch if the plan does not fit.
    """
    mask = np.append(plan.mask(coupling), True)

    def kept(name: str, tensor: Tensor) -> Tensor:
        small = tensor
        for dim in range(tensor.ndim):
            channels = coupling.dims.get((name, dim))
            if channels is not None:
                index = torch.from_numpy(np.flatnonzero(mask[channels])).to(tensor.device)
                small = small.index_select(dim, index)
        return small.clone() if small is tensor else small

    return kept


def masked(model: nn.Module, coupling: Coupling, plan: Plan) -> nn.Module:
    """A copy of full size with the channels that leave zeroed wherever they are made, read or acted on."""
    mask = np.append(plan.mask(coupling), True)

    def zero(name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        for dim in range(tensor.ndim):
            channels = coupling.dims.get((name, dim))
            if channels is not None and (name, dim) not in coupling.bare:
                index = torch.from_numpy(np.flatnonzero(~mask[channels])).to(tensor.device)
                tensor.index_fill_(dim, index, 0)
        return tensor

    return _rebuilt(model, coupling, zero)


def _rebuilt(model: nn.Module, coupling: Coupling, change: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A deep copy in which every parameter and buffer went through `change`, once however often it is shared."""
    memo: dict[int, Any] = {}
    named = dict([*model.named_parameters(), *model.named_buffers()])
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    if shapes != dict(coupling.shapes):
        different = sorted(
            name for name in {*shapes, *coupling.shapes} if shapes.get(name) != coupling.shapes.get(name)
        )
        raise UnsupportedModel(
            f"{different[0]} is {shapes.get(different[0])} in this model and {coupling.shapes.get(different[0])} "
            "in the coupling; use the coupling of this very network (Coupling.restrict gives that of a cut one)"
        )
    for name, tensor in named.items():
        changed = change(name, tensor.detach())
        if isinstance(tensor, nn.Parameter):
            changed = nn.Parameter(changed, tensor.requires_grad)
        memo[id(tensor)] = changed.contiguous() if not isinstance(changed, nn.Parameter) else changed
    for tensor in loose_tensors(model):
        memo.setdefault(id(tensor), tensor.detach().clone())  # one that was computed cannot be copied otherwise
    return copied(model, memo)


def _fit_attributes_(module: nn.Module) -> None:
    """Bring the sizes that PyTorch's own layers note, and read in forward, in line with their tensors."""
    weight = _weight(module)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sizes = [t.shape[0] for t in (weight, module.running_mean) if isinstance(t, Tensor)]
        module.num_features = sizes[0] if sizes else module.num_features
    elif isinstance(module, nn.GroupNorm) and isinstance(weight, Tensor):
        if module.num_groups == module.num_channels:
            module.num_groups = weight.shape[0]
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.LayerNorm) and isinstance(weight, Tensor):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]


def _weight(module: nn.Module) -> Any:
    """A layer's weight; if a hook computes it at each call, what it is computed from, for what lies there is older."""
    held = getattr(module, "weight", None)
    if isinstance(held, Tensor) and "weight" in vars(module):
        own = module.named_parameters(recurse=False)
        sources = [part for name, part in own if name.startswith("weight_") and part.ndim == held.ndim]
        return max(sources, key=Tensor.numel, default=held)
    return held


def _fit_convolution_(module: nn.modules.conv._ConvNd, weight: Tensor, *, depthwise: bool) -> None:
    """The same for a convolution. depthwise: whether its conv_groups leave with its channels.

    Sizes do not tell: one that reads a single channel in each of its conv_groups, after a cut, keeps them all.
    """
    rows, columns = weight.shape[:2]
    made, read = (columns, rows) if module.transposed else (rows, columns)
    if depthwise:
        each = module.out_channels // module.groups
        module.groups = rows if module.transposed else rows // each
    if module.transposed:
        module.in_channels, module.out_channels = read, made * module.groups
    else:
        module.in_channels, module.out_channels = read * module.groups, made


@dataclass(frozen=True, kw_only=True)
class Verification:
    """difference: the worst |cut - masked| relative to the largest |masked| output; failing: groups to blame."""

    difference: float
    failing: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failing


def verify(model: nn.Module, coupling: Coupling, plan: Plan, example: Example, tolerance: float = 1e-5) -> Verification:
    """Compare the cut network with the masked one on the model's real weights, inexact groups left whole.

    One pair of forward passes in float64 on the example; only if they differ by more than `tolerance` (relative),
    one pair for each group of the plan, to name those that fail.
    Raises UnsupportedModel if the model gives another output each time, which no cut could be compared with.
    """
    exact = plan.exact_only(coupling)
    double = _rebuilt(model, coupling, lambda name, tensor: tensor.clone()).double().eval()
    inputs = _as_double(example, next((p.device for p in model.parameters()), torch.device("cpu")))
    difference = _difference(double, coupling, exact, inputs)
    if difference <= tolerance:
        return Verification(difference=difference, failing=())
    if not _difference(double, coupling, Plan(kept={}), inputs) <= tolerance:
        raise UnsupportedModel("in evaluation mode the model gives another output for the same input each time")
    alone = {n: _difference(double, coupling, Plan(kept={n: p}), inputs) for n, p in exact.kept.items()}
    failing = tuple(name for name, found in alone.items() if not found <= tolerance)
    return Verification(difference=difference, failing=failing or tuple(exact.kept))


def _difference(model: nn.Module, coupling: Coupling, plan: Plan, inputs: tuple[Any, ...]) -> float:
    with torch.no_grad():
        full = tensors_in(masked(model, coupling, plan)(*inputs))
        try:
            small = tensors_in(cut(model, coupling, plan)(*inputs))
        except RuntimeError:  # the code does not follow the new widths: as wrong as can be
            return float("inf")
    worst = 0.0
    for a, b in zip(small, full, strict=True):
        if a.shape != b.shape:
            return float("inf")
        scale = b.abs().max().item() if b.numel() else 0.0
        worst = max(worst, (a - b).abs().max().item() / max(scale, 1e-12) if b.numel() else 0.0)
    return worst if np.isfinite(worst) else float("inf")


def _as_double(example: Example, device: torch.device) -> tuple[Any, ...]:
    inputs = example if isinstance(example, tuple) else (example,)

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device, torch.float64) if leaf.is_floating_point() else leaf.to(device)

    return tuple(tree_map(convert, inputs))
