"""Small networks, one a pattern that a coupling must get right, each with the widths that must come out prunable."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Forward = Callable[..., Tensor]


class Net(nn.Module):
    """A forward function with its parts: modules, parameters; plain tensors become buffers."""

    def __init__(self, forward: Forward, parts: Mapping[str, nn.Module | Tensor]) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """free: how many prunable channels each layer makes, for all layers that make any; frozen: layer -> why not."""

    forward: Forward
    parts: Mapping[str, nn.Module | Tensor]
    shapes: tuple[tuple[int, ...], ...]
    free: Mapping[str, int]
    frozen: Mapping[str, str] = field(default_factory=dict)
    inexact: tuple[str, ...] = ()

    def build(self) -> nn.Module:
        return Net(self.forward, copy.deepcopy(dict(self.parts)))

    @property
    def example(self) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(shape) for shape in self.shapes)


PATTERNS: dict[str, Pattern] = {}


def pattern(
    free: Mapping[str, int],
    *,
    shape: tuple[int, ...] | tuple[tuple[int, ...], ...] = (1, 3, 8, 8),
    frozen: Mapping[str, str] | None = None,
    inexact: tuple[str, ...] = (),
    **parts: nn.Module | Tensor,
) -> Callable[[Forward], Forward]:
    shapes = shape if isinstance(shape[0], tuple) else (shape,)

    def add(forward: Forward) -> Forward:
        PATTERNS[forward.__name__] = Pattern(
            forward=forward, parts=parts, shapes=shapes, free=free, frozen=frozen or {}, inexact=inexact
        )
        return forward

    return add


def conv(read: int, made: int, size: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(read, made, size, padding=size // 2, **options)


def linear(read: int, made: int) -> nn.Linear:
    return nn.Linear(read, made)


def norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


# -- layers ----------------------------------------------------------------------------------------------------------


@pattern({"a": 8, "b": 12}, a=conv(3, 8), n=norm(8), b=conv(8, 12), head=linear(12, 5))
def plain(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.n(m.a(x)))))))


@pattern(
    {"a": 8, "b": 6},
    shape=(1, 3, 16),
    a=nn.Conv1d(3, 8, 3),
    n=nn.BatchNorm1d(8),
    b=nn.Conv1d(8, 6, 3),
    head=linear(6, 5),
)
def conv_1d(m, x):
    return m.head(F.max_pool1d(F.relu(m.b(F.relu(m.n(m.a(x))))), 2).mean(2))


@pattern(
    {"a": 8, "b": 6},
    shape=(1, 2, 6, 6, 6),
    a=nn.Conv3d(2, 8, 3),
    n=nn.BatchNorm3d(8),
    b=nn.Conv3d(8, 6, 3),
    head=linear(6, 5),
)
def conv_3d(m, x):
    return m.head(F.adaptive_avg_pool3d(F.relu(m.b(F.relu(m.n(m.a(x))))), 1).flatten(1))


@pattern({"a": 4, "b": 4, "c": 6}, a=conv(3, 16), b=conv(16, 16, groups=4), c=conv(16, 6), head=linear(6, 5))
def grouped_equal(m, x):
    return m.head(pooled(F.relu(m.c(F.relu(m.b(F.relu(m.a(x))))))))


@pattern({"a": 4, "b": 6, "c": 5}, a=conv(3, 8), b=conv(8, 12, groups=2), c=conv(12, 5), head=linear(5, 5))
def grouped_unequal(m, x):
    return m.head(pooled(F.relu(m.c(F.relu(m.b(F.relu(m.a(x))))))))


@pattern(
    {"a": 8, "b": 3, "c": 3}, a=conv(3, 16), b=conv(16, 12, groups=2), c=conv(12, 12, groups=4), head=linear(12, 5)
)
def grouped_chained(m, x):
    return m.head(pooled(F.relu(m.c(F.relu(m.b(F.relu(m.a(x))))))))


@pattern({"a": 8, "d": 8, "b": 6}, a=conv(3, 8), d=conv(8, 8, groups=8), n=norm(8), b=conv(8, 6, 1), head=linear(6, 5))
def depthwise(m, x):
    return m.head(pooled(F.relu(m.b(F.relu6(m.n(m.d(F.relu6(m.a(x)))))))))


@pattern({"a": 8, "d": 8, "b": 6}, a=conv(3, 8), d=conv(8, 16, groups=8), b=conv(16, 6, 1), head=linear(6, 5))
def depthwise_multiplier_2(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.d(F.relu(m.a(x))))))))


@pattern(
    {"a": 8, "t": 6, "b": 4}, a=conv(3, 8), t=nn.ConvTranspose2d(8, 6, 2, 2), n=norm(6), b=conv(6, 4), head=linear(4, 5)
)
def transposed(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.n(m.t(F.relu(m.a(x)))))))))


@pattern({"a": 8, "t": 8}, a=conv(3, 8), t=nn.ConvTranspose2d(8, 8, 2, 2, groups=8), head=linear(8, 5))
def transposed_depthwise(m, x):
    return m.head(pooled(F.relu(m.t(F.relu(m.a(x))))))


@pattern({"a": 8, "t": 8}, a=conv(3, 8), t=nn.ConvTranspose2d(8, 16, 2, 2, groups=8), head=linear(16, 5))
def transposed_depthwise_multiplier_2(m, x):
    return m.head(pooled(F.relu(m.t(F.relu(m.a(x))))))


@pattern({"a": 4, "t": 3}, a=conv(3, 8), t=nn.ConvTranspose2d(8, 6, 2, 2, groups=2), head=linear(6, 5))
def transposed_grouped(m, x):
    return m.head(pooled(F.relu(m.t(F.relu(m.a(x))))))


@pattern({"a": 16, "b": 12}, shape=(1, 6), a=linear(6, 16), b=linear(16, 12), head=linear(12, 5))
def linears(m, x):
    return m.head(F.gelu(m.b(F.gelu(m.a(x)))))


@pattern({"a": 16, "b": 12}, shape=(1, 7, 6), a=linear(6, 16), b=linear(16, 12), head=nn.Linear(12, 5, bias=False))
def linears_on_tokens(m, x):
    return m.head(F.gelu(m.b(F.gelu(m.a(x))))).mean(1)


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), slope=nn.PReLU(8), head=linear(6, 5))
def prelu(m, x):
    return m.head(pooled(m.b(m.slope(m.a(x)))))


# -- norms -----------------------------------------------------------------------------------------------------------


@pattern({"a": 4}, a=conv(3, 8), n=nn.GroupNorm(2, 8), head=linear(8, 5), inexact=("a",))
def group_norm(m, x):
    return m.head(pooled(F.relu(m.n(m.a(x)))))


@pattern({"a": 8}, a=conv(3, 8), n=nn.GroupNorm(8, 8), head=linear(8, 5))
def group_norm_a_channel(m, x):
    return m.head(pooled(F.relu(m.n(m.a(x)))))


@pattern({"a": 8}, a=conv(3, 8), n=nn.InstanceNorm2d(8, affine=True, track_running_stats=True), head=linear(8, 5))
def instance_norm_tracking(m, x):
    return m.head(pooled(F.relu(m.n(m.a(x)))))


@pattern({"a": 8}, a=conv(3, 8), n=nn.InstanceNorm2d(8, affine=True), head=linear(8, 5))
def instance_norm_affine(m, x):
    return m.head(pooled(F.relu(m.n(m.a(x)))))


@pattern({"a": 8}, a=conv(3, 8), n=nn.InstanceNorm2d(8), head=linear(8, 5))
def instance_norm(m, x):
    return m.head(pooled(F.relu(m.n(m.a(x)))))


@pattern({"a": 8}, a=conv(3, 8), n=nn.LayerNorm(8), head=linear(8, 5), inexact=("a",))
def layer_norm_nhwc(m, x):
    return m.head(pooled(m.n(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))


@pattern({"a": 8}, a=conv(3, 8), n=nn.LayerNorm((8, 8, 8)), head=linear(8, 5), inexact=("a",))
def layer_norm_chw(m, x):
    return m.head(pooled(m.n(m.a(x))))


@pattern({"a": 8}, a=conv(3, 8), n=nn.BatchNorm2d(8, affine=False), head=linear(8, 5))
def batch_norm_plain(m, x):
    return m.head(pooled(F.relu(m.n(m.a(x)))))


@pattern(
    {"a": 8},
    a=conv(3, 8),
    scale=torch.rand(8),
    shift=torch.rand(8),
    mean=torch.rand(8),
    var=torch.rand(8) + 0.5,
    head=linear(8, 5),
)
def frozen_batch_norm(m, x):
    scale = m.scale.view(1, -1, 1, 1) * (m.var.view(1, -1, 1, 1) + 1e-5).rsqrt()
    return m.head(pooled(m.a(x) * scale + (m.shift.view(1, -1, 1, 1) - m.mean.view(1, -1, 1, 1) * scale)))


# -- sums, gates, concatenations -------------------------------------------------------------------------------------


@pattern({"stem": 8, "a": 6, "b": 8}, stem=conv(3, 8), a=conv(8, 6), b=conv(6, 8), head=linear(8, 5))
def residual(m, x):
    x = F.relu(m.stem(x))
    return m.head(pooled(F.relu(x + m.b(F.relu(m.a(x))))))


@pattern({"stem": 8, "a": 8}, stem=conv(3, 8), a=conv(8, 8), relu=nn.ReLU(inplace=True), head=linear(8, 5))
def residual_in_place(m, x):
    x = m.relu(m.stem(x))
    out = m.a(x)
    out += x
    return m.head(pooled(m.relu(out)))


@pattern({"b": 6}, a=conv(3, 3), b=conv(3, 6), head=linear(6, 5), frozen={"a": "input"})
def residual_on_input(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(x + m.a(x))))))


@pattern({"a": 8, "down": 4, "up": 8}, a=conv(3, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), head=linear(8, 5))
def squeeze_excitation(m, x):
    x = F.relu(m.a(x))
    gate = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))
    return m.head(pooled(x * gate))


@pattern({"a": 8, "down": 4, "up": 8}, a=conv(3, 8), down=linear(8, 4), up=linear(4, 8), head=linear(8, 5))
def squeeze_excitation_linear(m, x):
    x = F.relu(m.a(x))
    gate = torch.sigmoid(m.up(F.relu(m.down(pooled(x)))))
    return m.head(pooled(x * gate[:, :, None, None]))


@pattern({"a": 8}, a=conv(3, 8), gate=conv(8, 1), head=linear(8, 5), frozen={"gate": "one channel meets many"})
def one_channel_gate(m, x):
    x = F.relu(m.a(x))
    return m.head(pooled(x * torch.sigmoid(m.gate(x))))


@pattern({"a": 8}, a=conv(3, 8), gate=conv(2, 1), head=linear(8, 5), inexact=("a",), frozen={"gate": "one channel"})
def cbam_gate(m, x):
    x = F.relu(m.a(x))
    seen = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
    return m.head(pooled(x * torch.sigmoid(m.gate(seen))))


@pattern({"a": 8, "b": 8}, a=conv(3, 8), b=conv(3, 8), weights=parameter(2), head=linear(8, 5))
def scalar_fusion_weights(m, x):
    w = F.relu(m.weights)
    w = w / (w.sum() + 1e-4)
    return m.head(pooled(F.relu(w[0] * m.a(x) + w[1] * m.b(x))))


@pattern({"a": 8, "b": 6, "c": 4}, a=conv(3, 8), b=conv(3, 6), c=conv(14, 4), head=linear(4, 5))
def concatenation(m, x):
    return m.head(pooled(F.relu(m.c(F.relu(torch.cat((m.a(x), m.b(x)), 1))))))


@pattern({"a": 8, "c": 4}, a=conv(3, 8), c=conv(16, 4), head=linear(4, 5))
def concatenation_twice_the_same(m, x):
    x = F.relu(m.a(x))
    return m.head(pooled(F.relu(m.c(torch.cat((x, x), 1)))))


@pattern({"a": 8, "c": 4}, a=conv(3, 8), c=conv(11, 4), head=linear(4, 5))
def concatenation_with_input(m, x):
    return m.head(pooled(F.relu(m.c(torch.cat((x, F.relu(m.a(x))), 1)))))


@pattern({"a": 8, "c": 4}, a=conv(3, 8), c=conv(10, 4), head=linear(4, 5))
def concatenation_with_coordinates(m, x):
    x = F.relu(m.a(x))
    rows = torch.linspace(0, 1, x.shape[2], device=x.device, dtype=x.dtype)[None, None, :, None].expand(
        x.shape[0], 1, -1, x.shape[3]
    )
    return m.head(pooled(F.relu(m.c(torch.cat((rows, rows.transpose(2, 3), x), 1)))))


@pattern({"a": 8, "b": 8, "c": 4}, a=conv(3, 8), b=conv(3, 8), c=conv(8, 4), head=linear(4, 5))
def concatenation_of_places(m, x):
    return m.head(pooled(F.relu(m.c(torch.cat((m.a(x), m.b(x)), 2)))))


@pattern({"a": 4, "b": 6}, a=conv(3, 4), b=conv(3, 6, 1), head=linear(4 * 64 + 6 * 16, 5))
def branches_flattened_then_concatenated(m, x):
    left, right = F.relu(m.a(x)), F.max_pool2d(F.relu(m.b(x)), 2)
    return m.head(torch.cat((left.flatten(1), right.flatten(1)), 1))


@pattern({"a": 4, "b": 6}, a=conv(3, 4), b=conv(3, 6, 1), head=linear(10 * 64, 5))
def concatenated_then_flattened(m, x):
    return m.head(torch.cat((F.relu(m.a(x)), F.relu(m.b(x))), 1).flatten(1))


@pattern(
    {"stem": 4, "a": 4, "b": 4, "c": 6},
    stem=conv(3, 4),
    a=conv(4, 4),
    b=conv(8, 4),
    c=conv(12, 6),
    n=norm(12),
    head=linear(6, 5),
)
def dense_block(m, x):
    x = F.relu(m.stem(x))
    x = torch.cat((x, F.relu(m.a(x))), 1)
    x = torch.cat((x, F.relu(m.b(x))), 1)
    return m.head(pooled(F.relu(m.c(F.relu(m.n(x))))))


@pattern({"a": 8, "b": 8, "c": 6}, a=conv(3, 8), b=conv(3, 8), c=nn.Conv3d(8, 6, (2, 3, 3)), head=linear(6, 5))
def stacked_as_depth(m, x):
    return m.head(m.c(torch.stack((F.relu(m.a(x)), F.relu(m.b(x))), 2)).mean((2, 3, 4)))


@pattern({"a": 2, "b": 2}, a=conv(3, 8), b=conv(8, 8, groups=4), head=linear(8, 5))
def grouped_with_two_channels_each(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x))))))


# -- shapes ----------------------------------------------------------------------------------------------------------


@pattern(
    {"a": 8, "b": 6},
    a=conv(3, 8),
    b=conv(8, 6),
    pool=nn.AdaptiveAvgPool2d((2, 2)),
    drop=nn.Dropout(),
    head=linear(6 * 4, 5),
)
def pooling_and_flatten(m, x):
    x = F.avg_pool2d(F.max_pool2d(F.relu(m.a(x)), 3, 2, 1), 2)
    x = F.interpolate(F.relu(m.b(x)), scale_factor=2, mode="bilinear")
    return m.head(m.drop(m.pool(x).flatten(1)))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=linear(8, 6), head=linear(6, 5))
def nhwc_linear_and_back(m, x):
    x = F.relu(m.a(x)).permute(0, 2, 3, 1)
    return m.head(pooled(F.relu(m.b(x)).permute(0, 3, 1, 2)))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=linear(8 * 64, 6), head=linear(6, 5))
def view_into_linear(m, x):
    x = F.relu(m.a(x)).permute(0, 2, 3, 1).contiguous()
    return m.head(F.relu(m.b(x.view(x.size(0), -1))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=linear(8, 6), head=linear(6, 5))
def tokens(m, x):
    x = F.relu(m.a(x)).flatten(2).transpose(1, 2)
    return m.head(F.relu(m.b(x)).mean(1))


@pattern({"a": 4, "b": 6, "c": 4}, a=conv(3, 8), b=conv(4, 6), c=conv(10, 4), head=linear(4, 5))
def chunk_half_around(m, x):
    left, right = F.relu(m.a(x)).chunk(2, 1)
    return m.head(pooled(F.relu(m.c(torch.cat((left, F.relu(m.b(right))), 1)))))


@pattern({"a": 4, "b": 4, "c": 4}, a=conv(3, 8), b=conv(4, 4), c=conv(8, 4), head=linear(4, 5))
def split_by_computed_sizes(m, x):
    x = F.relu(m.a(x))
    left, right = x.split(x.shape[1] // 2, 1)
    return m.head(pooled(F.relu(m.c(torch.cat((left, F.relu(m.b(right))), 1)))))


@pattern(
    {"b": 6, "c": 4},
    a=conv(3, 8),
    b=conv(4, 6),
    c=conv(10, 4),
    head=linear(4, 5),
    frozen={"a": "width fixed in code at aten.split"},
)
def split_by_literal_sizes(m, x):
    left, right = F.relu(m.a(x)).split((4, 4), 1)
    return m.head(pooled(F.relu(m.c(torch.cat((left, F.relu(m.b(right))), 1)))))


@pattern(
    {"b": 4, "c": 4, "d": 5},
    a=conv(3, 8, 1),
    b=conv(4, 4),
    c=conv(4, 4),
    d=conv(16, 5, 1),
    head=linear(5, 5),
    frozen={"a": "width fixed"},
)
def c2f_literal(m, x):
    parts = list(m.a(x).split((4, 4), 1))
    parts.append(F.silu(m.b(parts[-1])))
    parts.append(F.silu(m.c(parts[-1])))
    return m.head(pooled(m.d(torch.cat(parts, 1))))


@pattern(
    {"a": 4, "b": 6, "c": 4, "d": 5}, a=conv(3, 8, 1), b=conv(4, 6), c=conv(6, 4), d=conv(12, 5, 1), head=linear(5, 5)
)
def c2f_chunked(m, x):
    parts = list(m.a(x).chunk(2, 1))
    parts.append(parts[-1] + F.silu(m.c(F.silu(m.b(parts[-1])))))
    return m.head(pooled(m.d(torch.cat(parts, 1))))


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


@pattern({"a": 4, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5))
def channel_shuffle_by_view(m, x):
    return m.head(pooled(F.relu(m.b(shuffled(F.relu(m.a(x)), 2)))))


@pattern({"a": 4, "b": 6}, a=conv(3, 8), shuffle=nn.ChannelShuffle(2), b=conv(8, 6), head=linear(6, 5))
def channel_shuffle_module(m, x):
    return m.head(pooled(F.relu(m.b(m.shuffle(F.relu(m.a(x)))))))


@pattern({"a": 8, "b": 8, "c": 6}, a=conv(3, 32), b=conv(32, 32, groups=2), c=conv(32, 6), head=linear(6, 5))
def shuffle_between_grouped(m, x):
    return m.head(pooled(F.relu(m.c(shuffled(F.relu(m.b(shuffled(F.relu(m.a(x)), 2))), 4)))))


@pattern({"a": 4, "b": 4, "c": 4, "d": 4}, a=conv(3, 8), b=conv(4, 4), c=conv(8, 4), d=conv(8, 4), head=linear(4, 5))
def shufflenet_unit(m, x):
    x = F.relu(m.a(x))
    left, right = x.chunk(2, 1)
    x = shuffled(torch.cat((left, F.relu(m.b(right))), 1), 2)
    return m.head(pooled(m.d(torch.cat((m.c(x), m.c(x)), 1))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5))
def flip(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x)).flip(1)))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5))
def roll(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x)).roll(8 // 2, 3)))))


@pattern({"b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), frozen={"a": "."})
def roll_along_channels(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x)).roll(3, 1)))))


@pattern({"a": 3, "b": 6}, a=conv(3, 12), shuffle=nn.PixelShuffle(2), b=conv(3, 6), head=linear(6, 5))
def pixel_shuffle(m, x):
    return m.head(pooled(F.relu(m.b(m.shuffle(F.relu(m.a(x)))))))


@pattern({"a": 3, "b": 6}, a=conv(3, 3), shuffle=nn.PixelUnshuffle(2), b=conv(12, 6), head=linear(6, 5))
def pixel_unshuffle(m, x):
    return m.head(pooled(F.relu(m.b(m.shuffle(F.relu(m.a(x)))))))


@pattern({"a": 4, "b": 6}, a=conv(3, 8), b=conv(4, 6), head=linear(6, 5))
def glu(m, x):
    return m.head(pooled(F.relu(m.b(F.glu(m.a(x), 1)))))


@pattern(
    {"a": 5, "b": 6}, a=conv(3, 8), b=conv(3, 6), head=linear(6, 5), frozen={"a": "width fixed in code at aten.slice"}
)
def constant_slice(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x))[:, :3]))))


@pattern(
    {"a": 5, "b": 6, "c": 4}, a=conv(3, 8), b=conv(3, 6), c=conv(11, 4), head=linear(4, 5), frozen={"a": "width fixed"}
)
def partial_convolution(m, x):
    x = F.relu(m.a(x))
    return m.head(pooled(F.relu(m.c(torch.cat((m.b(x[:, :3]), x[:, 3:]), 1)))))


@pattern({"a": 4, "b": 6}, a=conv(3, 8), b=conv(4, 6), head=linear(6, 5))
def strided_slice(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x))[:, ::2]))))


@pattern(
    {"b": 6},
    a=conv(3, 8),
    b=conv(8, 6),
    order=torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]),
    head=linear(6, 5),
    frozen={"a": "index"},
)
def permutation_by_index(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x))[:, m.order]))))


@pattern(
    {"a": 4, "b": 4, "c": 4, "d": 6},
    a=conv(3, 4),
    b=conv(4, 4),
    c=conv(4, 8, stride=2),
    d=conv(8, 6),
    head=linear(6, 5),
    frozen={"c": "padding"},
)
def option_a_shortcut(m, x):
    x = F.relu(m.a(x))
    x = F.relu(x + m.b(x))
    x = F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + m.c(x))
    return m.head(pooled(F.relu(m.d(x))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), place=parameter(1, 8, 8, 8), b=conv(8, 6), head=linear(6, 5))
def position_parameter(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x) + m.place)))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), scale=parameter(8, 1, 1), b=conv(8, 6), head=linear(6, 5))
def layer_scale(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x) * m.scale)))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), mean=torch.rand(1, 8, 1, 1), b=conv(8, 6), head=linear(6, 5))
def buffer_a_channel(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x) - m.mean)))))


@pattern({"b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), frozen={"a": "width fixed in code at aten.view"})
def hard_coded_view(m, x):
    return m.head(F.relu(m.b(F.relu(m.a(x)).view(-1, 8, 8, 8))).mean((2, 3)))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(16, 6), head=linear(6, 5))
def repeat(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x)).repeat(1, 2, 1, 1)))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(16, 6), head=linear(6, 5))
def repeat_interleave(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x)).repeat_interleave(2, 1)))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), inexact=("a",))
def sum_over_channels(m, x):
    x = torch.sigmoid(m.a(x))
    return m.head(pooled(F.relu(m.b(x / x.sum(1, keepdim=True)))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), inexact=("a",))
def softmax_over_channels(m, x):
    return m.head(pooled(F.relu(m.b(F.softmax(m.a(x), 1)))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5))
def normalised_over_channels(m, x):
    return m.head(pooled(F.relu(m.b(F.normalize(F.relu(m.a(x)), dim=1)))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), inexact=("a",))
def logarithm_of_zero(m, x):
    x = F.relu(m.a(x))
    return m.head(pooled(F.relu(m.b(torch.log(x * x) * 0.1))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), inexact=("a",))
def padded_with_ones_then_summed(m, x):
    x = torch.sigmoid(m.a(x))
    return m.head(pooled(F.relu(m.b(x) * F.pad(x, (1, 0, 1, 0), value=1.0).sum(1, keepdim=True)[:, :, 1:, 1:].tanh())))


@pattern({"b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), frozen={"a": "the width itself is computed with"})
def mean_by_hand(m, x):
    x = F.relu(m.a(x))
    return m.head(pooled(F.relu(m.b(x / (1 + x.sum(1, keepdim=True) / x.shape[1])))))


@pattern(
    {"b": 6},
    a=conv(3, 8),
    b=conv(8, 6),
    head=linear(6, 5),
    frozen={"a": "width fixed in code"},
)
def written_into_zeros(m, x):
    out = torch.zeros(x.shape[0], 8, 8, 8, device=x.device, dtype=x.dtype)
    out[:, :8] = F.relu(m.a(x))
    return m.head(pooled(F.relu(m.b(out))))


@pattern({"b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), frozen={"a": "written in place into a part"})
def shifted_by_writing_in_place(m, x):
    x = F.relu(m.a(x))
    out = torch.zeros_like(x)
    out[:, :, 1:] = x[:, :, :-1]
    return m.head(pooled(F.relu(m.b(out))))


@pattern({"b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), frozen={"a": "width fixed in code at"})
def width_checked_by_the_model(m, x):
    x = m.a(x)
    if x.shape[1] != 8:
        raise ValueError("eight channels are needed")
    return m.head(pooled(F.relu(m.b(F.relu(x)))))


@pattern(
    {"a": 8}, shape=(1, 4, 6), a=linear(6, 8), places=linear(4, 4), head=linear(8, 5), frozen={"places": "over places"}
)
def linear_over_places(m, x):
    x = F.gelu(m.a(x)).transpose(1, 2)
    return m.head((x + m.places(x)).mean(2))


@pattern({"a": 8, "weight": 6}, a=conv(3, 8), weight=parameter(6, 8), head=linear(6, 5))
def weight_from_the_left(m, x):
    return m.head(F.relu(m.weight @ F.relu(m.a(x)).flatten(2)).mean(2))


@pattern({"a": 8, "table": 8}, shape=(1, 4, 6), a=linear(6, 8), table=nn.Embedding(4, 8), head=linear(8, 5))
def embedding(m, x):
    places = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
    return m.head((m.a(x) * m.table(places)).mean(1))


@pattern({"a": 8}, a=conv(3, 8), table=parameter(20, 8), places=torch.arange(64) % 20, head=linear(8, 5))
def position_biases_picked_from_a_table(m, x):
    x = F.relu(m.a(x)).flatten(2).transpose(1, 2)
    return m.head((x + m.table[m.places]).mean(1))


@pattern({"a": 8}, a=conv(3, 8), head=linear(8, 5))
def pooled_in_another_memory_format(m, x):
    x = F.relu(m.a(x)).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return m.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pattern({"qkv": 8, "out": 8}, shape=(1, 4, 6), qkv=linear(6, 24), out=linear(8, 8), head=linear(8, 5))
def attention_unbound(m, x):
    q, k, v = m.qkv(x).reshape(x.shape[0], x.shape[1], 3, -1).unbind(2)
    return m.head(F.gelu(m.out(torch.softmax(q @ k.transpose(1, 2), -1) @ v)).mean(1))


@pattern(
    {"q": 4, "k": 4, "v": 4, "out": 8},
    shape=(1, 4, 6),
    q=linear(6, 8),
    k=linear(6, 8),
    v=linear(6, 8),
    out=linear(8, 8),
    head=linear(8, 5),
)
def attention_of_two_heads(m, x):
    n, t, _ = x.shape
    q, k, v = (layer(x).view(n, t, 2, -1).transpose(1, 2) for layer in (m.q, m.k, m.v))
    mixed = torch.softmax(q @ k.transpose(2, 3), -1) @ v
    return m.head(F.gelu(m.out(mixed.transpose(1, 2).reshape(n, t, -1))).mean(1))


@pattern(
    {"out": 8},
    shape=(1, 4, 6),
    q=linear(6, 8),
    v=linear(6, 8),
    out=linear(8, 8),
    head=linear(8, 5),
    frozen={"q": "aten.bmm|width fixed", "v": "aten.bmm|width fixed"},
)
def heads_by_the_dozen(m, x):
    """As many heads as the width allows, of two channels each: no head may leave without its values."""
    n, t, _ = x.shape
    q, v = (layer(x).view(n, t, -1, 2).transpose(1, 2) for layer in (m.q, m.v))
    mixed = torch.sigmoid(q @ v.transpose(2, 3)) @ v
    return m.head(F.gelu(m.out(mixed.transpose(1, 2).reshape(n, t, -1))).mean(1))


@pattern({"b": 6}, a=conv(3, 8), b=conv(1, 6), head=linear(6, 5), frozen={"a": "width fixed in code at aten.select"})
def one_channel_selected(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x))[:, 3, None]))))


@pattern({"b": 6}, a=conv(3, 8), order=torch.tensor([3, 1]), b=conv(2, 6), head=linear(6, 5), frozen={"a": "by index"})
def channels_selected(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x)).index_select(1, m.order)))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), order=torch.tensor([3, 1]), b=conv(8, 6), head=linear(6, 5))
def places_selected(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x)).index_select(2, m.order)[:, :, :, m.order]))))


@pattern({"b": 6}, a=conv(3, 8), b=conv(4, 6), head=linear(6, 5), frozen={"a": "no rule for aten"})
def pooled_over_channels(m, x):
    x = F.relu(m.a(x)).flatten(2).transpose(1, 2)
    return m.head(pooled(F.relu(m.b(F.max_pool1d(x, 2).transpose(1, 2).unflatten(2, (8, 8))))))


@pattern(
    {"b": 6}, a=conv(3, 8), b=conv(6, 6), head=linear(6, 5), frozen={"a": "width fixed in code at aten.constant_pad"}
)
def channels_cropped(m, x):
    return m.head(pooled(F.relu(m.b(F.pad(F.relu(m.a(x)), (0, 0, 0, 0, -1, -1))))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5))
def sum_of_zeros_over_channels(m, x):
    x = F.relu(m.a(x))
    return m.head(pooled(F.relu(m.b(x / (1 + x.sum(1, keepdim=True))))))


@pattern(
    {"b": 5}, a=conv(3, 8), mix=nn.Conv2d(8, 4, 1), b=linear(8, 5), head=linear(5, 5), frozen={"a": "mixes channels"}
)
def convolution_over_places(m, x):
    x = F.relu(m.a(x)).permute(0, 2, 1, 3)  # [N, rows, channels, columns]: the next layer mixes rows
    return m.head(F.relu(m.b(F.relu(m.mix(x)).mean((1, 3)))))


@pattern({}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), frozen={"a": "mixes channels of different places"})
def places_viewed_as_channels(m, x):
    x = F.relu(m.a(x)).permute(0, 2, 3, 1).reshape(x.shape[0], 8 * 8 * 8)
    return m.head(pooled(F.relu(m.b(x.view(-1, 8, 64).view(-1, 8, 8, 8)))))


# -- sharing and modes -----------------------------------------------------------------------------------------------


@pattern({"a": 8, "b": 8}, a=conv(3, 8), b=conv(8, 8), head=linear(8, 5))
def module_used_twice(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.b(F.relu(m.a(x))))))))


def tied() -> dict[str, nn.Module]:
    first, second = conv(8, 8), conv(8, 8)
    second.weight = first.weight
    return {"b": first, "c": second}


@pattern({"a": 8, "b": 8}, a=conv(3, 8), **tied(), head=linear(8, 5))
def tied_weights(m, x):
    return m.head(pooled(F.relu(m.c(F.relu(m.b(F.relu(m.a(x))))))))


@pattern({"a": 8, "b": 6}, shape=((1, 3, 8, 8), (1, 3, 8, 8)), a=conv(3, 8), b=conv(8, 6), head=linear(12, 5))
def siamese(m, x, y):
    left, right = (pooled(F.relu(m.b(F.relu(m.a(z))))) for z in (x, y))
    return m.head(torch.cat((left, right), 1))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), left=linear(6, 5), right=linear(6, 4))
def two_heads(m, x):
    x = pooled(F.relu(m.b(F.relu(m.a(x)))))
    return m.left(x), m.right(x)


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), aux=linear(8, 5))
def training_only_head(m, x):
    x = F.relu(m.a(x))
    y = m.head(pooled(F.relu(m.b(x))))
    return (y, m.aux(pooled(x))) if m.training else y


@pattern(
    {"b": 6},
    a=conv(3, 8),
    b=conv(8, 6),
    aux=linear(8, 5),
    head=linear(6, 5),
    frozen={"a": "width fixed in code at aten.view"},
)
def width_fixed_only_in_training(m, x):
    x = F.relu(m.a(x))
    y = m.head(pooled(F.relu(m.b(x))))
    return (y, m.aux(x.view(-1, 8, 64).mean(2))) if m.training else y


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5))
def custom_autograd_function(m, x):
    return m.head(pooled(F.relu(m.b(Squared.apply(m.a(x))))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5))
def detached_branch(m, x):
    x = F.relu(m.a(x))
    return m.head(pooled(F.relu(m.b(x * torch.sigmoid(x.detach().mean((2, 3), keepdim=True))))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5))
def constants_made_on_the_cpu(m, x):
    mask = torch.ones(8, 8).tril()
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x)) * mask.to(x.dtype)))))


@pattern({"b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), frozen={"a": "no rule for aten.cumsum"})
def operator_without_a_rule(m, x):
    return m.head(pooled(F.relu(m.b(torch.cumsum(m.a(x), 1)))))


# -- weights that are computed before they are used --------------------------------------------------------------------


weight_norm, spectral_norm = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm


@pattern({"a": 8, "b": 6}, a=weight_norm(conv(3, 8)), b=weight_norm(conv(8, 6)), head=weight_norm(linear(6, 5)))
def weight_normalised(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x))))))


@pattern(
    {"a": 8, "d": 8, "b": 6},
    a=weight_norm(conv(3, 8)),
    d=weight_norm(conv(8, 8, groups=8)),
    b=weight_norm(nn.ConvTranspose2d(8, 6, 2), dim=1),
    head=linear(6, 5),
)
def weight_normalised_depthwise_and_transposed(m, x):
    return m.head(pooled(F.relu(m.b(m.d(F.relu(m.a(x)))))))


@pattern({"a": 8, "b": 6}, a=spectral_norm(conv(3, 8)), b=spectral_norm(conv(8, 6)), head=spectral_norm(linear(6, 5)))
def spectrally_normalised(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x))))))


def standardised(x: Tensor, weight: Tensor, gain: Tensor | None = None) -> Tensor:
    """As in timm's ResNetV2 and NFNets: each filter is normalised over what it reads."""
    flat = weight.reshape(1, weight.shape[0], -1)
    weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6).reshape_as(weight)
    return F.conv2d(x, weight, padding=1)


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=parameter(6, 8, 3, 3), n=norm(6), head=linear(6, 5), inexact=("a",))
def weight_standardised(m, x):
    return m.head(pooled(F.relu(m.n(standardised(F.relu(m.a(x)), m.b)))))


@pattern({"a": 8, "b": 6}, a=parameter(8, 3, 3, 3), gain=parameter(8), b=conv(8, 6), head=linear(6, 5))
def weight_standardised_with_gain(m, x):
    return m.head(pooled(F.relu(m.b(F.relu(standardised(x, m.a, m.gain))))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), inexact=("a",))
def weight_standardised_by_hand(m, x):
    w = m.b.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    return m.head(pooled(F.relu(F.conv2d(F.relu(m.a(x)), w, m.b.bias, padding=1))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), s=conv(8, 6, 1), head=linear(6, 5))
def kernels_added_up(m, x):
    """A re-parameterised convolution: a small kernel is padded and added to a large one."""
    w = m.b.weight + F.pad(m.s.weight, (1, 1, 1, 1))
    return m.head(pooled(F.relu(F.conv2d(F.relu(m.a(x)), w, m.b.bias + m.s.bias, padding=1))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), n=norm(8), b=conv(8, 6), head=linear(6, 5))
def norm_folded_into_the_weight(m, x):
    scale = m.n.weight / torch.sqrt(m.n.running_var + m.n.eps)
    shift = m.n.bias - m.n.running_mean * scale
    x = F.conv2d(x, m.a.weight * scale.view(-1, 1, 1, 1), m.a.bias * scale + shift, padding=1)
    return m.head(pooled(F.relu(m.b(F.relu(x)))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), keep=torch.ones(6, 8, 3, 3), head=linear(6, 5))
def weight_masked_by_a_buffer(m, x):
    return m.head(pooled(F.relu(F.conv2d(F.relu(m.a(x)), m.b.weight * m.keep, m.b.bias, padding=1))))


@pattern(
    {"a": 8, "b": 6},
    a=linear(3, 8),
    b=linear(8, 6),
    up=parameter(6, 2),
    down=parameter(2, 8),
    head=linear(6, 5),
    shape=(1, 3),
)
def low_rank_update(m, x):
    return m.head(F.relu(F.linear(F.relu(m.a(x)), m.b.weight + m.up @ m.down, m.b.bias)))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), inexact=("a", "b"))
def weight_of_exponentials(m, x):
    """Where the parameter is zero the weight is not."""
    return m.head(pooled(F.relu(F.conv2d(F.relu(m.a(x)), m.b.weight.exp(), m.b.bias, padding=1))))


@pattern({"a": 8, "b": 6}, a=conv(3, 8), b=conv(8, 6), head=linear(6, 5), inexact=("b",))
def weight_divided_by_its_length(m, x):
    w = m.b.weight
    w = w / w.flatten(1).norm(dim=1)[:, None, None, None]
    return m.head(pooled(F.relu(F.conv2d(F.relu(m.a(x)), w, m.b.bias, padding=1))))


@pattern(
    {},
    a=conv(3, 8),
    b=nn.utils.parametrizations.orthogonal(nn.Linear(8, 8, bias=False), orthogonal_map="matrix_exp"),
    head=linear(8, 5),
    frozen={"a": "computed before it is used", "b": "computed before it is used: no rule for aten.tril"},
)
def orthogonal_weight(m, x):
    return m.head(F.relu(m.b(pooled(F.relu(m.a(x))))))


@pattern(
    {},
    a=conv(3, 8),
    b=conv(8, 6),
    route=linear(8, 1),
    head=linear(6, 5),
    frozen={"b": "computed from the pictures"},
)
def weight_computed_from_pictures(m, x):
    x = F.relu(m.a(x))
    w = m.b.weight * torch.sigmoid(m.route(pooled(x))).mean()
    return m.head(pooled(F.relu(F.conv2d(x, w, m.b.bias, padding=1))))


@pattern(
    {"a": 8, "q": 6, "k": 6, "v": 6}, a=conv(3, 8), q=linear(8, 6), k=linear(8, 6), v=linear(8, 6), head=linear(6, 5)
)
def one_head_attention(m, x):
    x = F.relu(m.a(x)).flatten(2).transpose(1, 2)
    weights = torch.softmax(m.q(x) @ m.k(x).transpose(1, 2) / 6**0.5, -1)
    return m.head((weights @ m.v(x)).mean(1))


@pattern(
    {"a": 8, "b": 6},
    a=conv(3, 8),
    b=conv(8, 6),
    eca=nn.Conv1d(1, 1, 3, padding=1, bias=False),
    head=linear(6, 5),
    inexact=("a",),
)
def eca_gate(m, x):
    x = F.relu(m.a(x))
    gate = torch.sigmoid(m.eca(pooled(x)[:, None])).transpose(1, 2)[..., None]
    return m.head(pooled(F.relu(m.b(x * gate))))


# -- what ends in PyTorch's own large operators, or runs twice ---------------------------------------------------------


@pattern(
    {"b": 6},
    a=conv(3, 8),
    b=linear(8, 6),
    lstm=nn.LSTM(8, 8, batch_first=True),
    head=linear(6, 5),
    frozen={"a": "no rule for aten.lstm|no rule for aten.mkldnn_rnn_layer|lstm"},
)
def lstm_behind_convolutions(m, x):
    sequence, _ = m.lstm(F.relu(m.a(x)).flatten(2).transpose(1, 2))
    return m.head(F.relu(m.b(sequence[:, -1])))


@pattern(
    {"b": 6},
    a=conv(3, 8),
    two=nn.Bilinear(8, 8, 8),
    b=linear(8, 6),
    head=linear(6, 5),
    frozen={"a": "aten._trilinear"},
)
def bilinear_layer(m, x):
    x = pooled(F.relu(m.a(x)))
    return m.head(F.relu(m.b(m.two(x, x))))


@pattern({"a": 8, "b": 8, "c": 6}, a=conv(3, 8), b=conv(8, 8), c=conv(8, 6), head=linear(6, 5))
def checkpointed(m, x):
    def block(x):
        return F.relu(m.c(F.relu(m.b(x))))

    return m.head(pooled(checkpoint(block, F.relu(m.a(x)), use_reentrant=False)))


@pattern(
    {"b": 6},
    a=conv(3, 8),
    attention=nn.MultiheadAttention(8, 2, batch_first=True),
    b=linear(8, 6),
    head=linear(6, 5),
    frozen={"a": "width fixed in code at aten"},
)
def multihead_attention(m, x):
    x = F.relu(m.a(x)).flatten(2).transpose(1, 2)
    x = x + m.attention(x, x, x, need_weights=False)[0]
    return m.head(F.relu(m.b(x)).mean(1))
