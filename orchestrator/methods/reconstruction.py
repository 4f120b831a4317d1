"""Layers of a pruned network fitted to the original's outputs, front to back, by least squares.

Source: He, Zhang, Sun 2017, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV, arXiv:1707.06168, second
step: what a layer reads comes from the pruned network, what it is to make from the original one, so that errors do not
add up. The authors' code samples ten places a picture, of many more pictures than there are here; where that gives
less than SAMPLES_PER_UNKNOWN samples for each weight of an output, more places are taken, as far as there are any.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.methods.branches import Joins
from orchestrator.methods.layers import LayerCall, calls, evaluating, left_out, outputs, patches, places_of, watching
from orchestrator.methods.least_squares import Moments, Shrinkage, least_squares
from orchestrator.methods.method import Subject
from orchestrator.network import Coupling, Plan
from orchestrator.network.coupling import Bools
from orchestrator.network.recording import layer_of
from orchestrator.network.solve import Ints
from orchestrator.record import InvalidInput

SAMPLES_PER_UNKNOWN = 20
FLAT = 1e-2  # of a norm's steepest slope: through a flatter one no layer makes up for its shortcut


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How layers are fitted. places: of each picture, at least. residual: see Reconstruction."""

    places: int = 10
    shrinkage: Shrinkage = "cross_validated"
    residual: bool = True


def reconstruct_(small: nn.Module, subject: Subject, plan: Plan, fitting: Fitting) -> dict[str, str]:
    """Fit every layer of a cut network that has lost something that it read, front to back. In place.

    Returns those that have lost and cannot be fitted, each with the reason (see layers.left_out): they stay as cut.
    """
    kept = plan.mask(subject.coupling)
    if kept.all():
        return {}
    work = Reconstruction(subject, fitting)
    own = {call.weight: call for call in calls(small, subject.coupling.restrict(plan), work.batches[0])}
    for call in work.calls:
        if reads_lost(call, kept):
            mine = own[call.weight]
            work.fit_(small, mine, work.moments(small, [mine], kept)[call.weight])
    reasons = left_out(subject.model, subject.coupling, work.batches[0])
    return {layer: reason for layer, reason in reasons.items() if layer in _losing(subject.coupling, kept)}


def reads_lost(call: LayerCall, kept: Bools) -> bool:
    """Whether a layer of the original reads channels that are not kept."""
    return not _stays(call.reads, kept).all()


class Reconstruction:
    """What the original makes of the calibration pictures, and the fitting of a pruned network's layers to it.

    With `residual`, a layer whose output is added to a shortcut (through a batch norm, or directly) is fitted to
    Y1 - Y1' + Y2: its own original output, and what the pruned network's shortcut lacks of the original one.
    """

    def __init__(self, subject: Subject, fitting: Fitting) -> None:
        self.subject, self.fitting = subject, fitting
        self.batches = [pictures for pictures, _ in subject.calibration()]
        if not self.batches:
            raise InvalidInput("there are no calibration pictures to fit layers on; at least a batch of them is needed")
        self.calls = calls(subject.model, subject.coupling, self.batches[0])
        self._number = {call.weight: number for number, call in enumerate(self.calls)}
        numbers = range(len(self.batches))
        self._wanted = [self._pass(subject.model, self.calls, number, original=True) for number in numbers]

    def moments(self, model: nn.Module, layers: Sequence[LayerCall], kept: Bools) -> dict[str, Moments]:
        """By weight: sums over what these layers of a pruned network read, and over what they should make of it.

        model: a masked network, with layers out of `calls`, or a cut one, with its own. kept: [channels] of the
        original.
        """
        found: dict[str, Moments] = {}
        by_weight = {call.weight: call for call in layers}
        for number in range(len(self.batches)):
            for weight, seen in self._pass(model, layers, number).items():
                read, wanted = self._samples(by_weight[weight], seen, self._wanted[number][weight], kept)
                here = Moments.of(read, wanted)
                found[weight] = found[weight] + here if weight in found else here
        return found

    def fit_(self, model: nn.Module, call: LayerCall, moments: Moments) -> None:
        """Give a layer the weights, and where it has one the bias, that least squares finds. In place.

        A layer without bias stays so: a norm after it, whose statistics are re-estimated after the cut, has one.
        """
        weight = model.get_parameter(call.weight)
        start = call.matrix(weight.detach()).flatten(2)
        shrinkage = self.fitting.shrinkage
        found, bias = least_squares(moments, start, intercept=call.bias is not None, shrinkage=shrinkage)
        with torch.no_grad():
            weight.copy_(call.tensor(found.unflatten(2, (-1, call.places))))
            if call.bias is not None and bias is not None:
                model.get_parameter(call.bias).copy_(bias.flatten())

    def _samples(self, call: LayerCall, seen: "_Seen", wanted: "_Seen", kept: Bools) -> tuple[Tensor, Tensor]:
        """What a layer reads [samples, conv_groups, read] and should make [samples, conv_groups, made]."""
        whole = self.calls[self._number[call.weight]]
        assert seen.read is not None
        assert wanted.made is not None
        stays = torch.from_numpy(_stays(whole.makes, kept).reshape(-1)).to(wanted.made.device)
        read, target = seen.read.double(), wanted.made.double()
        if call is whole:  # masked: what has left reads nothing and makes nothing
            read = read * torch.from_numpy(_stays(call.reads, kept)).to(read)[:, :, None]
            target = target * stays
        else:
            target = target[:, stays]
        if seen.shortcut is not None and wanted.shortcut is not None:
            before = wanted.shortcut.double() if call is whole else wanted.shortcut[:, stays].double()
            target = target + _through(seen.slope, before - seen.shortcut.double()) * (stays if call is whole else 1)
        return read.flatten(2), target.unflatten(1, (call.conv_groups, -1))

    def _pass(
        self, model: nn.Module, layers: Sequence[LayerCall], number: int, *, original: bool = False
    ) -> dict[str, "_Seen"]:
        """What one batch shows of these layers: of the original what they make, of a pruned network what they read.

        The pass of a pruned network goes no further than needed.
        """
        joined: set[str] | None = None
        if not original:
            joined = {call.weight for call in layers if self._wanted[number][call.weight].shortcut is not None}
        watch = _Pass(layers, lambda call, y: self._places(call, y, number), joined)
        joins = Joins(watch.join)
        watch.follow = joins.follow if self.fitting.residual else None
        with evaluating(model), joins, watching(model, layers, watch.see), suppress(_Enough):
            model(self.batches[number])
        return watch.seen

    def _places(self, call: LayerCall, y: Tensor, number: int) -> Tensor:
        """The same places in every network."""
        whole = self.calls[self._number[call.weight]]
        unknowns, pictures = whole.reads.shape[1] * whole.places, sum(map(len, self.batches))
        each = max(self.fitting.places, -(-SAMPLES_PER_UNKNOWN * unknowns // pictures))
        return places_of(
            call, y, len(self.batches[number]), each, (self.subject.seed, self._number[call.weight], number)
        )


class _Enough(BaseException):
    """All that was asked for has been seen: the rest of the pass is not needed. No model's own code may catch it."""


@dataclass(kw_only=True)
class _Seen:
    """A layer at its sampled places. A linear layer's rows count as places."""

    read: Tensor | None = None  # [samples, conv_groups, read in each, places]
    made: Tensor | None = None  # [samples, made]
    shortcut: Tensor | None = None  # [samples, made] what it was added to
    slope: Tensor | None = None  # [made] of the batch norm before that


class _Pass:
    """Gathers what a pass shows. joined: weights of layers that meet a shortcut, in a pass that ends when all did."""

    def __init__(
        self, layers: Sequence[LayerCall], at: Callable[[LayerCall, Tensor], Tensor], joined: set[str] | None
    ) -> None:
        self.layers, self.at, self.joined = {call.weight: call for call in layers}, at, joined
        self.follow: Callable[[Tensor, str], None] | None = None
        self.seen: dict[str, _Seen] = {}
        self.chosen: dict[str, Tensor] = {}

    def see(self, call: LayerCall, x: Tensor, y: Tensor) -> None:
        at = self.chosen[call.weight] = self.at(call, y)
        if self.joined is None:
            self.seen[call.weight] = _Seen(made=outputs(call, y, at).flatten(1))
        else:
            self.seen[call.weight] = _Seen(read=patches(call, x, at))
        if self.follow is not None:
            self.follow(y, call.weight)
        self._end()

    def join(self, weight: str, other: Tensor, slope: Tensor | None) -> None:
        """The first sum counts."""
        seen = self.seen[weight]
        if seen.shortcut is None:
            seen.shortcut = outputs(self.layers[weight], other, self.chosen[weight]).flatten(1)
            seen.slope = slope
        self._end()

    def _end(self) -> None:
        if self.joined is None or self.seen.keys() != self.layers.keys():
            return
        if all(self.seen[weight].shortcut is not None for weight in self.joined):
            raise _Enough


def _losing(coupling: Coupling, kept: Bools) -> set[str]:
    """The layers, followed or not, that have lost something that they read."""
    made = {key for group in coupling.groups for key in group.made}
    read = {
        key: channels for key, channels in coupling.dims.items() if key not in made and len(coupling.shapes[key[0]]) > 1
    }
    return {layer_of(name) or name for (name, _), channels in read.items() if not _stays(channels, kept).all()}


def _stays(channels: Ints, kept: Bools) -> Bools:
    """Where channels (-1: fixed) stay."""
    stays: Bools = np.append(kept, True)[channels]
    return stays


def _through(slope: Tensor | None, difference: Tensor) -> Tensor:
    """What must be added before a norm of this slope for a difference [samples, made] after it."""
    if slope is None:
        return difference
    steep = slope.abs() > FLAT * slope.abs().max()
    return difference * torch.where(steep, 1 / slope.double(), 0.0)
