"""What the loss says of channels: gradients on calibration data, taken on a copy, so that none is left on the model.

Both functions look at the network as it is evaluated: norms use their running statistics, dropout is off. The loss is
cross-entropy, each picture's own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from orchestrator.methods.method import Ahead, Subject
from orchestrator.network import Coupling, Plan, UnsupportedModel, cut
from orchestrator.network.recording import ParameterDim
from orchestrator.network.seeding import seeded
from orchestrator.record import InvalidInput

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
LAYERS: frozenset[Callable[..., Any]] = frozenset((F.linear, *CONVOLUTIONS, *TRANSPOSED))


def readers(coupling: Coupling) -> list[ParameterDim]:
    """The dimensions of layers' weights along which these read channels."""
    weights = {call.weight for call in coupling.calls}
    made = {key for group in coupling.groups for key in group.made}
    return [key for key in coupling.dims if key[0] in weights and key not in made]


def makers(coupling: Coupling) -> list[ParameterDim]:
    """The dimensions of layers' weights along which these make channels."""
    return list(dict.fromkeys(key for group in coupling.groups for key in group.made))


def by_channel(coupling: Coupling, keys: Iterable[ParameterDim], values: Mapping[str, Tensor]) -> Tensor:
    """[channels] float64: the sum of what `values` has for the weights of each channel, along each of the keys.

    values: tensors in the shape of the parameters they are named after.
    """
    total = torch.zeros(coupling.channels + 1, dtype=torch.float64)  # the last for fixed places
    for name, dim in keys:
        value = values[name]
        sums = value.double().sum([other for other in range(value.ndim) if other != dim])
        total.index_add_(0, torch.from_numpy(coupling.dims[name, dim] % len(total)), sums.cpu())
    return total[:-1]


def products(subject: Subject, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """For each batch of calibration data, weight x gradient of its mean loss, of each named parameter.

    Raises InvalidInput where there is no calibration data.
    """
    model = _copy(subject)
    weights = {name: model.get_parameter(name) for name in names}
    for pictures, labels in _batches(subject):
        loss = F.cross_entropy(model(pictures), labels)
        found = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True) if weights else ()
        yield {name: weights[name].detach() * gradient for name, gradient in zip(weights, found, strict=True)}


def gate_gradients(subject: Subject) -> Iterator[Tensor]:
    """For each batch of calibration data, [pictures, channels]: how each picture's own loss changes with each gate.

    A channel's gate multiplies all that its readers read of it, and is 1: at 0 the channel is cut. The derivative is
    the sum over what they read of value x gradient; nothing has to be put into the network for it. Where a layer reads
    each picture in several pieces (windows), they are taken to lie one picture after the other.
    Raises UnsupportedModel for a layer whose reading cannot be seen: its weight is computed before it is used, or it
    is no call of a convolution or of torch.nn.functional.linear; InvalidInput where there is no calibration data.
    """
    model, coupling = _copy(subject), subject.coupling
    wanted = readers(coupling)
    names = {id(model.get_parameter(name)): (name, dim) for name, dim in wanted}
    for pictures, labels in _batches(subject):
        with _Reading(names) as reading:
            loss = F.cross_entropy(model(pictures), labels, reduction="sum")
        _check_seen(wanted, reading)
        inputs = [read for _, _, read in reading.found]
        found = torch.autograd.grad(loss, inputs, materialize_grads=True) if inputs else ()
        yield _summed(coupling, reading.found, found, len(pictures))


@torch.no_grad()
def check_gates(ahead: Ahead) -> None:
    """Raises UnsupportedModel as gate_gradients does for a layer whose reading cannot be seen."""
    model, wanted = _copy(ahead.subject), readers(ahead.subject.coupling)
    with _Reading({id(model.get_parameter(name)): (name, dim) for name, dim in wanted}) as reading:
        model(ahead.example)
    _check_seen(wanted, reading)


def _check_seen(wanted: Iterable[ParameterDim], reading: "_Reading") -> None:
    unseen = set(wanted) - {key for key, _, _ in reading.found}
    if unseen:
        name, _ = min(unseen)
        raise UnsupportedModel(
            f"{name}: what this layer reads cannot be seen: its weight is computed before it is used, or it is no call "
            "of a convolution or of torch.nn.functional.linear"
        )


class _Reading(TorchFunctionMode):
    """While open, collects what named layers read: (dimension, axis of its channels, tensor), each read of its own."""

    def __init__(self, names: Mapping[int, ParameterDim]) -> None:
        super().__init__()
        self.names = names
        self.found: list[tuple[ParameterDim, int, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        key = self.names.get(id(weight)) if func in LAYERS else None
        if key is not None:
            read = args[0] if args else kwargs.pop("input")
            read = read.view_as(read)  # so that its gradient is this reader's alone
            self.found.append((key, read.ndim - 1 if func is F.linear else 1, read))
            args = (read, *args[1:])
        return func(*args, **kwargs)


def _summed(
    coupling: Coupling, reads: list[tuple[ParameterDim, int, Tensor]], gradients: tuple[Tensor, ...], count: int
) -> Tensor:
    """[pictures, channels] value x gradient of all that was read, summed over readers and places."""
    total = torch.zeros(count, coupling.channels + 1, dtype=torch.float64)  # the last for fixed places
    for (key, axis, read), gradient in zip(reads, gradients, strict=True):
        if read.shape[0] % count:
            pieces = f"reads {read.shape[0]} pieces of {count} pictures"
            raise UnsupportedModel(f"{key[0]}: {pieces}, which cannot be told apart")
        change = (read.detach() * gradient).double().movedim(axis, 1)
        change = change.reshape(count, read.shape[0] // count, read.shape[axis], -1).sum((1, 3)).cpu()
        channels = torch.from_numpy(coupling.dims[key] % total.shape[1])
        total.index_add_(1, channels.repeat(change.shape[1] // len(channels)), change)  # one block a conv_group
    return total[:, :-1]


def _copy(subject: Subject) -> nn.Module:
    """A copy that is evaluated, with gradients for all its parameters."""
    whole = cut(subject.model, subject.coupling, Plan(kept={}))
    return whole.eval().requires_grad_(True)


def _batches(subject: Subject) -> Iterator[tuple[Tensor, Tensor]]:
    device = next((parameter.device for parameter in subject.model.parameters()), torch.device("cpu"))
    empty = True
    for batch in subject.calibration():
        with seeded(subject.seed, device):
            yield batch
        empty = False
    if empty:
        raise InvalidInput("the method looks at calibration data, and there is none")
