"""Feature flow: the path that features take through a network is kept short and straight; then small filters leave.

Source of the idea: Wu et al., Feature Flow Regularization, Neural Networks 161 (2023), arXiv:2106.02914, whose
abstracts speak of the length and the total absolute curvature of the trajectories that connect the features of
adjacent hidden layers. Their formula, weights and choice of layers were not found: what stands here is OUR
reconstruction, every choice in it a switch, and no figure of it may be quoted as the paper's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from orchestrator.methods.filter_norm import filter_norm
from orchestrator.methods.method import Method, Options, Penalty, Subject, by_score
from orchestrator.network import Coupling
from orchestrator.record import InvalidInput

CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
POOLED: dict[int, Callable[[Tensor, Any], Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


class FeatureFlowOptions(Options):
    """What the paper leaves open, or we could not find: all defaults are our choice.

    length_weight, bend_weight: what multiplies the path's length and its bend, before regularization_weight does.
    path: "streams": what layers read from residual streams, which in a ResNet are the blocks' results, where at least
        two such features come by, else as "layers"; "layers": what every convolution and linear layer reads. Where the
        classifier reads a feature pooled or flattened, the path ends with the feature as it was before.
    bend: of three neighbours, the norm of their second difference, or the angle by which the path turns.
    norm: of differences.
    size_normalization: a norm is divided by its vector's size (l1) or the root of it (l2), so that a
        regularization_weight means the same at any width and picture size; off, it is the plain norm.
    shape_change: where neighbours differ in shape, both are projected to what they have in common (places pooled to
        the smaller side, channels averaged over), or that difference is skipped.
    scale: as filter_norm's, of the norms that channels leave by.
    """

    length_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    bend_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    path: Literal["streams", "layers"] = "streams"
    bend: Literal["second_difference", "angle"] = "second_difference"
    norm: Literal["l1", "l2"] = "l1"
    size_normalization: bool = True
    shape_change: Literal["project", "skip"] = "project"
    scale: Literal["none", "group_mean"] = "none"


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What a layer reads, [N, C, places ...], and whether it is a residual stream.

    whole: where a layer reads a feature pooled to one place, or flattened, the feature as it was before.
    """

    value: Tensor
    stream: bool
    whole: Tensor | None = None

    @property
    def single(self) -> bool:
        """Whether it has one place alone."""
        return _places(self.value) == 1


class _Watch(TorchFunctionMode):
    """While open, notes what convolutions and linear layers read, each tensor once, in the order of the calls."""

    def __init__(self, streams: frozenset[int], along: frozenset[int]) -> None:
        super().__init__()
        self._streams, self._along = streams, along
        self._seen: dict[int, Tensor] = {}  # tensors are kept, so that no other gets their id
        self._pooled: dict[int, tuple[Tensor, Tensor]] = {}  # what has one place, and what it was pooled from
        self.features: list[Feature] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CONVOLUTIONS or func is F.linear:
            names = dict(zip(("input", "weight"), args, strict=False)) | kwargs
            self._note(names["input"], names["weight"], linear=func is F.linear)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
            self._follow_pooling(args[0], out)
        return out

    def _note(self, read: Tensor, weight: Tensor, *, linear: bool) -> None:
        """A feature that no trained parameter has made is no part of the path, such as the pictures themselves."""
        if id(weight) in self._along or id(read) in self._seen or not (read.requires_grad and torch.is_grad_enabled()):
            return
        self._seen[id(read)] = read
        value = read.movedim(-1, 1) if linear and read.ndim > 2 else read
        _, whole = self._pooled.get(id(read), (None, None))
        self.features.append(Feature(value=value, stream=id(weight) in self._streams, whole=whole))

    def _follow_pooling(self, x: Tensor, out: Tensor) -> None:
        """From many places to one; views, dropout and other functions of each element on the way are followed."""
        flat = out.ndim == 2 and out.numel() == x.numel() and len(out) == len(x)
        if out.ndim < 2 or _places(out) != 1 or not (flat or out.shape[:2] == x.shape[:2]):
            return
        if x.ndim > 3 and _places(x) > 1:
            self._pooled[id(out)] = out, x
        elif id(x) in self._pooled:
            self._pooled[id(out)] = out, self._pooled[id(x)][1]

    def path(self) -> list[Feature]:
        """Without gates' features, the last one before the classifier at full size.

        What is read at one place alone, though larger features come after it, is a gate's (SE and the like).
        """
        large = [number for number, feature in enumerate(self.features) if not feature.single]
        found, last = [self.features[number] for number in large], self.features[large[-1] + 1 if large else 0 :]
        pooled = [number for number, feature in enumerate(last) if feature.whole is not None]
        for feature in last[pooled[-1] if pooled else 0 :]:
            if feature.whole is None:
                found.append(feature)
            elif id(feature.whole) not in self._seen:
                found.append(Feature(value=feature.whole, stream=feature.stream))
        return found


def _places(value: Tensor) -> int:
    return value.shape[2:].numel()


class _Passes:
    """Follows a model's forward passes between two hooks on the model itself, and keeps the path of each."""

    def __init__(self, subject: Subject) -> None:
        named = dict(subject.model.named_parameters())
        along = {call.weight for call in subject.coupling.calls if call.along is not None}
        self._streams = frozenset(id(named[name]) for name in _stream_readers(subject.coupling) if name in named)
        self._along = frozenset(id(named[name]) for name in along if name in named)
        self._open: list[tuple[_Watch, ExitStack]] = []
        self.paths: list[list[Feature]] = []

    def enter(self, module: nn.Module, inputs: Any) -> None:
        stack = ExitStack()
        watch = stack.enter_context(_Watch(self._streams, self._along))
        self._open.append((watch, stack))

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Also called where the pass raised: its features are then dropped, for there is no output."""
        if not self._open:
            return
        watch, stack = self._open.pop()
        stack.close()
        if output is not None and torch.is_grad_enabled():
            self.paths.append(watch.path())

    def taken(self) -> list[list[Feature]]:
        found, self.paths = self.paths, []
        return found

    def close(self) -> None:
        """Ends what a pass left open that was interrupted: hooks are not called for a KeyboardInterrupt."""
        while self._open:
            self._open.pop()[1].close()
        self.paths = []


def _stream_readers(coupling: Coupling) -> set[str]:
    """Weights of the layers that read a residual stream; a depthwise one reads what it makes."""
    made = {key for group in coupling.groups for key in group.made}
    found = set()
    for group in coupling.groups if any(group.summed for group in coupling.groups) else ():
        for name, dim in group.members if group.summed else ():
            if (name, dim) not in made or name in coupling.depthwise:
                found.add(name)
    return found & {call.weight for call in coupling.calls}


@contextmanager
def feature_flow(subject: Subject, regularization_weight: float) -> Iterator[Penalty]:
    """regularization_weight x (length_weight x length + bend_weight x bend) of the features' path, as extra_loss.

    The path is that of the forward passes since the term was last asked for; it is the mean over their pictures, which
    lie along the first dimension of every feature. Passes without gradients are not looked at. Only convolutions and
    linear layers that are called as such count (torch.nn.functional), not other products of matrices.
    extra_loss raises InvalidInput if no pass came before it, or if its path has nothing to compare.
    """
    passes = _Passes(subject)
    handles = (
        subject.model.register_forward_pre_hook(passes.enter),
        subject.model.register_forward_hook(passes.leave, always_call=True),
    )

    def extra_loss() -> Tensor:
        paths = passes.taken()
        if not paths:
            raise InvalidInput("feature_flow: its term was asked for, but no forward pass with gradients came before")
        pictures = [path[0].value.shape[0] if path else 0 for path in paths]
        terms = [n * path_value(path, subject.options) for path, n in zip(paths, pictures, strict=True)]
        return torch.stack(terms).sum() * (regularization_weight / sum(pictures))

    try:
        yield Penalty(extra_loss=extra_loss)
    finally:
        for handle in handles:
            handle.remove()
        passes.close()


def path_value(path: Sequence[Feature], options: FeatureFlowOptions) -> Tensor:
    """length_weight x length + bend_weight x bend of one path, the mean over its pictures.

    With x_0 .. x_L the features: length = sum |x_(l+1) - x_l|, bend = sum |x_(l+1) - 2 x_l + x_(l-1)|, or the sum of
    the angles between x_l - x_(l-1) and x_(l+1) - x_l. Raises InvalidInput if no two neighbours can be compared.
    """
    streams = [feature for feature in path if feature.stream]
    chosen = streams if options.path == "streams" and len(streams) > 1 else list(path)
    values = [_plain(feature.value) for feature in chosen]
    steps = [_step(pair, options) for pair in pairwise(values)]
    taken = [step for step in steps if step is not None]
    if not taken:
        shapes = ", ".join("x".join(map(str, value.shape[1:])) for value in values) or "none"
        skipped = options.shape_change == "skip" and len(values) > 1
        hint = "; method_options.shape_change: 'project' compares features of different shapes" if skipped else ""
        raise InvalidInput(f"feature_flow: this network's path has no two features to compare (it has {shapes}){hint}")
    length = torch.stack([_norm(step, options) for step in taken]).sum()
    turns = [_steps(three, steps[number : number + 2], options) for number, three in enumerate(_triples(values))]
    bend = _angle if options.bend == "angle" else _second_difference
    bends = [bend(*turn, options) for turn in turns if turn is not None]
    return options.length_weight * length + options.bend_weight * sum(bends, start=length.new_zeros(()))


def _triples(values: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    return zip(values, values[1:], values[2:], strict=False)


def _step(pair: Sequence[Tensor], options: FeatureFlowOptions) -> Tensor | None:
    """From one feature to the next; None if they cannot be compared."""
    met = _met(pair, options)
    return met[1] - met[0] if met else None


def _steps(
    three: Sequence[Tensor], known: Sequence[Tensor | None], options: FeatureFlowOptions
) -> tuple[Tensor, Tensor] | None:
    """The two steps along three features, in one shape; None if they cannot be compared."""
    first, second = known
    if first is not None and second is not None and len({value.shape for value in three}) == 1:
        return first, second
    met = _met(three, options)
    return (met[1] - met[0], met[2] - met[1]) if met else None


def _plain(value: Tensor) -> Tensor:
    """In float32 at least: autocast makes features of less."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _met(features: Sequence[Tensor], options: FeatureFlowOptions) -> list[Tensor]:
    """Neighbours in one shape [N, C, places ...]; empty if they differ and are not to be projected."""
    if len({feature.shape for feature in features}) == 1:
        return list(features)
    if options.shape_change == "skip" or len({len(feature) for feature in features}) > 1:
        return []
    if len({feature.shape[1] for feature in features}) > 1:  # first, for then there is less to pool
        features = [feature.mean(1, keepdim=True) for feature in features]
    places = [feature.shape[2:] for feature in features]
    if len({len(each) for each in places}) == 1 and len(places[0]) in POOLED:
        side = tuple(map(min, *places))
        features = [f if f.shape[2:] == side else POOLED[len(side)](f, side) for f in features]
    elif len(set(places)) > 1:
        features = [f if f.ndim == 2 else f.flatten(2).mean(2) for f in features]
    return list(features)


def _norm(step: Tensor, options: FeatureFlowOptions) -> Tensor:
    """The mean over pictures of the norm of [N, ...]; where it is 0, so is its gradient."""
    power = 1 if options.norm == "l1" else 2
    dims = tuple(range(1, step.ndim))  # not flattened: in the channels_last layout that is a copy
    norms: Tensor = torch.linalg.vector_norm(step, power, dims).mean()
    return norms / step[0].numel() ** (1 / power) if options.size_normalization else norms


def _second_difference(first: Tensor, second: Tensor, options: FeatureFlowOptions) -> Tensor:
    return _norm(second - first, options)


def _angle(first: Tensor, second: Tensor, options: FeatureFlowOptions) -> Tensor:
    """Mean over pictures of the angle in [0, pi] between two steps; 0 where one of them has no length.

    Source of the formula: Kahan, 2 atan2(|u - v|, |u + v|) of the two directions: exact near 0 and pi, unlike acos.
    """
    u, v = first.flatten(1), second.flatten(1)
    lengths = [torch.linalg.vector_norm(step, 2, 1, keepdim=True) for step in (u, v)]
    moves = (lengths[0] > 0) & (lengths[1] > 0)
    u, v = (step / torch.where(moves, length, 1) for step, length in zip((u, v), lengths, strict=True))
    u, v = torch.where(moves, u, 1), torch.where(moves, v, 1)
    halves = torch.atan2(torch.linalg.vector_norm(u - v, 2, 1), torch.linalg.vector_norm(u + v, 2, 1))
    return 2 * halves.mean()


FEATURE_FLOW = Method(
    name="feature_flow",
    source="our reconstruction of the idea of Wu et al. 2021, Feature Flow Regularization, arXiv:2106.02914",
    version=1,
    options=FeatureFlowOptions,
    penalty=feature_flow,
    choose=by_score(filter_norm),
)
