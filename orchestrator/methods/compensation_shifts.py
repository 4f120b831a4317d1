"""What takes up a shift of a layer's outputs: its bias, or the statistics of a batch norm that alone reads them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.methods.layers import LayerCall, evaluating, watching
from orchestrator.network.recording import tensors_in


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Where a shift of a layer's outputs goes: added to this bias, or taken from this running mean.

    Both None: the batch norm behind it keeps no statistics and takes each batch's own, which hold the shift already.
    """

    bias: str | None = None
    running_mean: str | None = None

    @property
    def places(self) -> list[str]:
        return [name for name in (self.bias, self.running_mean) if name is not None]


def shifts(model: nn.Module, layers: Sequence[LayerCall], example: Tensor) -> dict[str, Shift]:
    """By the name of its weight, where the outputs of each layer can be shifted; layers where they cannot are left out.

    A bias or a running mean that two layers share is no place for the shift of one.
    """
    found = {call.weight: Shift(bias=call.bias) for call in layers if call.bias is not None}
    consumers = _Consumers(model)
    with evaluating(model), consumers, watching(model, layers, lambda call, _, y: consumers.note(call.weight, y)):
        consumers.returned(model(example[:1]))
    for call in layers:
        norm = consumers.alone(call.weight)
        if call.weight not in found and norm is not None:
            found[call.weight] = norm
    uses = Counter(place for shift in found.values() for place in shift.places)
    return {name: shift for name, shift in found.items() if all(uses[place] == 1 for place in shift.places)}


class _Consumers(TorchDispatchMode):
    """While it is open, follows what reads the tensors that `note` is given: batch norms, and anything else."""

    def __init__(self, model: nn.Module) -> None:
        TorchDispatchMode.__init__(self)
        self.buffers = {_memory(buffer): name for name, buffer in model.named_buffers() if buffer.numel()}
        self.norms: dict[str, list[Shift]] = {}
        self.others: set[str] = set()
        self._held: dict[int, tuple[str, Tensor]] = {}

    def note(self, name: str, output: Tensor) -> None:
        self.norms[name] = []
        self._held[id(output)] = (name, output)  # held, so that no other tensor gets its id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = self._among([args, kwargs])
        if read and "batch_norm" in str(func):  # all of PyTorch's have the running mean as their fourth argument
            mean = args[3] if len(args) > 3 and isinstance(args[3], Tensor) else None
            self.norms[read[0]].append(Shift(running_mean=None if mean is None else self.buffers.get(_memory(mean))))
            self.others.update(self._among([args[1:], kwargs]))
        else:
            self.others.update(read)
        return func(*args, **(kwargs or {}))

    def returned(self, outputs: Any) -> None:
        """What the model gives back is read by whoever called it."""
        self.others.update(self._among(outputs))

    def alone(self, name: str) -> Shift | None:
        """Of the one norm that reads this tensor, if nothing else does."""
        norms = self.norms.get(name, [])
        return norms[0] if len(norms) == 1 and name not in self.others else None

    def _among(self, tree: Any) -> list[str]:
        return [self._held[id(tensor)][0] for tensor in tensors_in(tree) if id(tensor) in self._held]


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
