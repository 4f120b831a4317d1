"""Where a layer's output joins a shortcut: what it is added to, and the slope of a batch norm on the way."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.network.recording import tensors_in

aten = torch.ops.aten
NORMS = {
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit_no_training.default,
    aten._batch_norm_no_update.default,
    aten.cudnn_batch_norm.default,
    aten.miopen_batch_norm.default,
}
SUMS = {aten.add.Tensor, aten.add_.Tensor}
Join = Callable[[str, Tensor, Tensor | None], None]


class Joins(TorchDispatchMode):
    """Tells `join` of every tensor that one which it follows is added to, before that happens.

    join gets the name that the tensor is followed by, the other summand, and by what each channel of the followed one
    is multiplied before, [C]: the slope of a batch norm in evaluation mode, None where there is none. After any other
    operator a tensor is followed no longer.
    """

    def __init__(self, join: Join) -> None:
        TorchDispatchMode.__init__(self)
        self.join = join
        self.followed: dict[int, tuple[weakref.ref[Tensor], str, Tensor | None]] = {}

    def follow(self, tensor: Tensor, name: str, slope: Tensor | None = None) -> None:
        """No reference is held: a large output goes when the model lets it go."""
        self.followed[id(tensor)] = weakref.ref(tensor), name, slope

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SUMS and not kwargs and all(isinstance(each, Tensor) for each in args[:2]):
            self._summed(*args[:2])
        out = func(*args, **(kwargs or {}))
        if func in NORMS and args[4] is not None:
            name, slope = self._known(args[0])
            if name is not None and slope is None:
                self.follow(out[0], name, _slope(args))
        elif func._schema.is_mutable:
            for tensor in tensors_in(args):
                self.followed.pop(id(tensor), None)
        return out

    def _summed(self, left: Tensor, right: Tensor) -> None:
        for this, other in ((left, right), (right, left)):
            name, slope = self._known(this)
            if name is not None and this.shape == other.shape:
                self.join(name, other, slope)

    def _known(self, tensor: Tensor) -> tuple[str | None, Tensor | None]:
        held, name, slope = self.followed.get(id(tensor), (None, None, None))
        return (name, slope) if held is not None and held() is tensor else (None, None)


def _slope(args: Any) -> Tensor:
    """scale / sqrt(variance + eps) of a batch norm in evaluation mode."""
    scale, variance, eps = args[1], args[4], args[-1]
    slope: Tensor = torch.rsqrt(variance + eps)
    return slope if scale is None else slope * scale
