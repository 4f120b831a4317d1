"""What every convolution and linear layer reads and makes on real pictures, for any model, whatever its modules.

A forward pass runs under a dispatch mode, which sees each convolution and matrix product with its tensors; which layer
it is tells the memory that its weight lies in. No hook is set on any module, so none can be left behind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.network import Coupling
from orchestrator.network.recording import layer_of

Ints = npt.NDArray[np.int64]
Kind = Literal["convolution", "transposed", "linear"]
aten = torch.ops.aten

TWICE = "its weight is used more than once"
SHARED = "its bias is used more than once"
COMPUTED = "its weight is computed before it is used, or used in another shape"
ALONG = "it runs along channels"


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCall:
    """One layer as it runs: where its weights are, its numbers, and the channels of its coupling that it treats.

    Numbers have an entry for each spatial dimension, none in a linear layer, whose inputs are [rows, channels].
    depthwise: its conv_groups are channels, each of which makes its own.
    """

    weight: str
    bias: str | None
    kind: Kind
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    conv_groups: int = 1
    swapped: bool = False  # a linear layer's weight that lies as [read, made]
    reads: Ints  # [conv_groups, read in each] the channel at each position; -1: fixed
    makes: Ints  # [conv_groups, made in each]
    depthwise: bool = False

    @property
    def layer(self) -> str:
        """The module that holds the weight; the weight's own name where that is the model itself."""
        return layer_of(self.weight) or self.weight

    @property
    def places(self) -> int:
        """How many places of each channel one output element reads."""
        return int(np.prod(self.kernel, dtype=np.int64))

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [conv_groups, made in each, read in each, places], of which `tensor` is the inverse."""
        if self.kind == "linear":
            return (weight.t() if self.swapped else weight)[None, :, :, None]
        blocks = weight.reshape(self.conv_groups, -1, weight.shape[1], self.places)
        return blocks.transpose(1, 2) if self.kind == "transposed" else blocks

    def tensor(self, matrix: Tensor) -> Tensor:
        """A weight in the layer's own shape, from [conv_groups, made in each, read in each, places]."""
        if self.kind == "linear":
            flat = matrix[0, :, :, 0]
            return (flat.t() if self.swapped else flat).contiguous()
        blocks = matrix.transpose(1, 2) if self.kind == "transposed" else matrix
        return blocks.flatten(0, 1).reshape(-1, blocks.shape[2], *self.kernel).contiguous()


See = Callable[[LayerCall, Tensor, Tensor], None]


def calls(model: nn.Module, coupling: Coupling, example: Tensor) -> list[LayerCall]:
    """The layers whose weight is a parameter that is used as it is, once a pass, in forward order.

    example: pictures [N, C, H, W] on the model's device, of which the first is looked at, in evaluation mode.
    """
    return _look(model, coupling, example)[0]


def left_out(model: nn.Module, coupling: Coupling, example: Tensor) -> dict[str, str]:
    """The layers that `calls` does not tell of, each with the reason."""
    return _look(model, coupling, example)[1]


@contextmanager
def watching(model: nn.Module, layers: Sequence[LayerCall], see: See) -> Iterator[None]:
    """While this is open, whatever runs hands `see` each of these layers with its input and its output.

    What is seen must not be changed in place, nor kept without a copy where memory matters. Of a linear layer the
    input is [rows, read], the output [rows, made]; a convolution's input is padded already where the model pads it by
    an operator of its own. The output has its bias in it where the layer has one; no gradient is seen.
    """
    by_weight = {call.weight: call for call in layers}

    def forward(found: _Found) -> None:
        if found.weight in by_weight:
            see(by_weight[found.weight], found.x, found.y)

    with _Watch(model, forward):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def places_of(call: LayerCall, y: Tensor, pictures: int, each: int, seed: int | Sequence[int]) -> Tensor:
    """[samples] numbers of output places, `each` of every picture at random, all where there are no more.

    Samples are numbered over pictures and places: [N, places] flattened; a linear layer's rows.
    """
    total = y.numel() // call.makes.size
    per_picture = max(1, total // pictures)
    if each >= per_picture or total % pictures:
        return torch.arange(total, device=y.device)
    generator = np.random.default_rng(seed)
    order = generator.random((pictures, per_picture)).argsort(1)[:, :each]
    numbers = np.sort(order, 1) + np.arange(pictures)[:, None] * per_picture
    return torch.from_numpy(numbers.reshape(-1)).to(y.device)


def patches(call: LayerCall, x: Tensor, at: Tensor | None = None) -> Tensor:
    """[samples, conv_groups, read in each, places]: what the output elements at these places are computed from.

    x: the layer's input as `watching` gives it. at: as from places_of; all places in their order if None. With
    `outputs` at the same places: outputs = einsum("sgip,goip->sgo", patches, matrix(weight)) + bias.
    """
    if call.kind == "linear":
        rows = x if at is None else x[at]
        return rows[:, None, :, None]
    shape = _made_shape(call, x.shape[2:])
    at = torch.arange(len(x) * int(np.prod(shape)), device=x.device) if at is None else at
    number, *coordinates = torch.unravel_index(at, (len(x), *shape))
    index, valid = [], torch.ones(len(at), call.places, dtype=torch.bool, device=x.device)
    kernel = torch.unravel_index(torch.arange(call.places, device=x.device), call.kernel)
    for dim, (coordinate, offset) in enumerate(zip(coordinates, kernel, strict=True)):
        source, inside = _source(call, dim, coordinate[:, None], offset[None], x.shape[2 + dim])
        index.append(source)
        valid &= inside
    found = x.movedim(1, -1)[(number[:, None], *index)] * valid[..., None]  # [samples, places, channels]
    return found.reshape(*found.shape[:2], call.conv_groups, -1).movedim(1, -1)


def outputs(call: LayerCall, y: Tensor, at: Tensor | None = None) -> Tensor:
    """[samples, conv_groups, made in each]: a layer's output at these places; all in their order if None."""
    flat = y.movedim(1, -1).reshape(-1, y.shape[1])
    wanted = flat if at is None else flat[at]
    return wanted.reshape(len(wanted), call.conv_groups, -1)


def _made_shape(call: LayerCall, read: Sequence[int]) -> tuple[int, ...]:
    sizes = zip(read, call.kernel, call.stride, call.padding, call.dilation, call.output_padding, strict=True)
    if call.kind == "transposed":
        return tuple((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in sizes)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in sizes)


def _source(call: LayerCall, dim: int, made: Tensor, offset: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """[samples, places] where along `dim` the places lie that are read, and whether they are inside, not padding."""
    stride, padding, dilation = call.stride[dim], call.padding[dim], call.dilation[dim]
    if call.kind == "transposed":
        ahead = made + padding - offset * dilation
        source, hit = ahead // stride, ahead % stride == 0
    else:
        source = made * stride - padding + offset * dilation
        hit = torch.ones_like(source, dtype=torch.bool)
    return source.clamp(0, size - 1), hit & (source >= 0) & (source < size)


# -- the pass that is watched ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """A convolution or matrix product with a parameter, as it ran."""

    weight: str
    bias: str | None
    kind: Kind
    x: Tensor
    y: Tensor
    numbers: Mapping[str, Any]


class _Watch(TorchDispatchMode):
    """Tells `forward` of every layer that runs."""

    def __init__(self, model: nn.Module, forward: Callable[[_Found], None]) -> None:
        TorchDispatchMode.__init__(self)
        self.forward = forward
        self.parameters = {_memory(p): (name, p) for name, p in model.named_parameters() if p.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        found = None
        if func is aten.convolution.default:
            found = self._convolution(args, out)
        elif func in {aten.mm.default, aten.addmm.default} and not kwargs:
            found = self._linear(args, out)
        if found is not None:
            self.forward(found)
        return out

    def _convolution(self, args: Any, out: Tensor) -> _Found | None:
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
        name, swapped = self._named(weight)
        if name is None or swapped:
            return None
        numbers = {
            "kernel": tuple(weight.shape[2:]),
            "stride": tuple(stride),
            "padding": tuple(padding),
            "dilation": tuple(dilation),
            "output_padding": tuple(output_padding),
            "conv_groups": groups,
        }
        kind: Kind = "transposed" if transposed else "convolution"
        return _Found(weight=name, bias=self._bias(bias), kind=kind, x=x, y=out, numbers=numbers)

    def _linear(self, args: Any, out: Tensor) -> _Found | None:
        x, weight = args[-2:]
        name, swapped = self._named(weight)
        if name is None:
            return None
        bias = self._bias(args[0]) if len(args) == 3 else None
        return _Found(weight=name, bias=bias, kind="linear", x=x, y=out, numbers={"swapped": not swapped})

    def _bias(self, bias: Tensor | None) -> str | None:
        return None if bias is None else self._named(bias)[0]

    def _named(self, tensor: Tensor) -> tuple[str | None, bool]:
        """The parameter that this tensor is, and whether it is transposed."""
        name, parameter = self.parameters.get(_memory(tensor), (None, tensor))
        shape, stride = tuple(tensor.shape), tensor.stride()
        if (shape, stride) == (tuple(parameter.shape), parameter.stride()):
            return name, False
        if tensor.ndim == 2 and (shape[::-1], stride[::-1]) == (tuple(parameter.shape), parameter.stride()):
            return name, True
        return None, False


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


def _look(model: nn.Module, coupling: Coupling, example: Tensor) -> tuple[list[LayerCall], dict[str, str]]:
    found: list[_Found] = []
    with evaluating(model), _Watch(model, found.append):
        model(example[:1])
    seen, biases = [each.weight for each in found], [each.bias for each in found]
    shared = {bias for bias in biases if bias is not None and biases.count(bias) > 1}
    reasons = {layer_of(each.weight) or each.weight: SHARED for each in found if each.bias in shared}
    for call in coupling.calls:
        uses = seen.count(call.weight)
        if uses != 1 or call.along is not None:
            name = layer_of(call.weight) or call.weight or call.module
            reasons[name] = ALONG if call.along is not None else TWICE if uses else COMPUTED
    fit = [_layer_call(each, coupling) for each in found if seen.count(each.weight) == 1]
    return [call for call in fit if call.layer not in reasons], reasons


def _layer_call(found: _Found, coupling: Coupling) -> LayerCall:
    shape, groups = coupling.shapes[found.weight], found.numbers.get("conv_groups", 1)
    depthwise = found.weight in coupling.depthwise

    def along(dim: int) -> Ints:
        fixed = np.full(shape[dim], -1, np.int64)
        return np.asarray(coupling.dims.get((found.weight, dim), fixed), np.int64)

    if found.kind == "linear":
        dims = (0, 1) if found.numbers["swapped"] else (1, 0)
        reads, makes = along(dims[0])[None], along(dims[1])[None]
    elif found.kind == "transposed":
        reads, makes = along(0).reshape(groups, -1), np.tile(along(1), (groups, 1))
        if depthwise:  # one dimension both makes and reads
            makes = np.tile(reads, (1, shape[1]))
    else:
        makes, reads = along(0).reshape(groups, -1), np.tile(along(1), (groups, 1))
        if depthwise:
            reads = makes[:, :1]
    kind, bias = found.kind, found.bias
    return LayerCall(
        weight=found.weight, bias=bias, kind=kind, reads=reads, makes=makes, depthwise=depthwise, **found.numbers
    )
