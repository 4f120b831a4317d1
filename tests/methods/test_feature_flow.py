"""Feature flow: the penalty against its formula written out, on a chain and on residual networks; and what it watches.

The formula is this project's reconstruction: these tests say that it is what its documentation says, not that it is
the paper's.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import EXAMPLE, built, conv, subject_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from orchestrator.methods import METHODS, Budget
from orchestrator.methods.feature_flow import Feature, FeatureFlowOptions, path_value
from orchestrator.methods.filter_norm import filter_norm
from orchestrator.network import CostTable, couple, greedy
from orchestrator.record import InvalidInput

METHOD = METHODS["feature_flow"]
WEIGHT = 0.3
PICTURES = EXAMPLE.double()


class Chain(nn.Module):
    """Layers of one width, from the third on at half the side, the last at one place; `features` is what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(3, 6), *(conv(6, 6) for _ in range(4))])
        self.hidden, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

    def features(self, x: Tensor) -> list[Tensor]:
        found = []
        for number, layer in enumerate(self.layers):
            x = torch.tanh(layer(x))
            x = F.avg_pool2d(x, 2) if number == 1 else x
            found.append(x)
        return [*found, torch.tanh(self.hidden(x.mean((2, 3))))]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x)[-1])
        return out


def chain() -> Chain:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return Chain().double()


def streams(model: nn.Module) -> list[Tensor]:
    """What the layers of the small residual network read from its stream; the classifier reads means of the last."""
    found = [F.relu(model.stem(PICTURES))]
    for into, norm, back in zip(model.into, model.norms, model.back, strict=True):
        found.append(F.relu(found[-1] + back(F.relu(norm(into(found[-1]))))))
    return [*found, found[-1] + model.again(found[-1])]


def pooled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two features of one width, the larger averaged over the squares that the smaller has as one place."""
    if x.ndim == 4 and y.ndim == 2:
        return x.mean((2, 3)), y
    if x.ndim == 4 and x.shape[-1] == 2 * y.shape[-1]:
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4, y
    return x, y


def written_out(features: list[Tensor], norm: Callable[[Tensor], Tensor], *, skip: bool = False) -> Tensor:
    """length + bend of a path whose features have one width, the mean over pictures."""
    total = torch.zeros((), dtype=torch.float64)
    for pair in pairwise(features):
        if pair[0].shape == pair[1].shape or not skip:
            x, y = pooled(*pair)
            total = total + norm(y - x)
    for first, second, z in zip(features, features[1:], features[2:], strict=False):
        if first.shape == second.shape == z.shape or not skip:
            x, y = pooled(first, z)[0], pooled(second, z)[0]
            total = total + norm(z - 2 * y + x)
    return total


def mean_l1(v: Tensor) -> Tensor:
    return v.abs().mean()


def sum_l1(v: Tensor) -> Tensor:
    return v.abs().flatten(1).sum(1).mean()


def root_mean_square(v: Tensor) -> Tensor:
    return v.square().flatten(1).mean(1).sqrt().mean()


def sum_l2(v: Tensor) -> Tensor:
    return v.square().flatten(1).sum(1).sqrt().mean()


NORMS: list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = [
    ({}, mean_l1),
    ({"size_normalization": False}, sum_l1),
    ({"norm": "l2"}, root_mean_square),
    ({"norm": "l2", "size_normalization": False}, sum_l2),
]
every_norm = pytest.mark.parametrize(("options", "norm"), NORMS, ids=["l1", "l1 sum", "l2", "l2 sum"])


def by_penalty(model: nn.Module, *, passes: tuple[Tensor, ...] = (PICTURES,), **options: Any) -> dict[str, Tensor]:
    """Its value, and its gradient at every parameter."""
    subject = subject_of(model, METHOD, couple(model, EXAMPLE), **options)
    with METHOD.penalty(subject, WEIGHT) as penalty:
        assert penalty.after_backward is None
        for pictures in passes:
            model(pictures)
        value = penalty.extra_loss()
    return {"": value.detach(), **by_autograd(model, value)}


def hooks(model: nn.Module) -> list[str]:
    """All hooks on a model and its parts."""
    found = []
    for name, module in model.named_modules():
        found += [f"{name}: {key}" for key, value in vars(module).items() if "hooks" in key and value]
    return found


def by_autograd(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}


def expected(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    return {"": WEIGHT * value.detach(), **by_autograd(model, WEIGHT * value)}


@every_norm
@pytest.mark.parametrize("shape_change", ["project", "skip"])
def test_the_term_of_a_chain_is_the_written_formula(
    options: dict[str, Any], norm: Callable[[Tensor], Tensor], shape_change: str
) -> None:
    model = chain()
    value = written_out(model.features(PICTURES), norm, skip=shape_change == "skip")
    found = by_penalty(model, shape_change=shape_change, **options)
    torch.testing.assert_close(found, expected(model, value), rtol=1e-9, atol=1e-12)


@every_norm
def test_the_term_of_a_residual_network_is_the_written_formula(
    options: dict[str, Any], norm: Callable[[Tensor], Tensor]
) -> None:
    """From block to block; what the blocks are made of inside is no part of the path."""
    model = built("residual").double().eval()
    value = written_out(streams(model), norm)
    found = by_penalty(model, **options)
    torch.testing.assert_close(found, expected(model, value), rtol=1e-9, atol=1e-12)


def test_length_and_bend_are_weighed() -> None:
    model = chain()
    one, two, both = (
        by_penalty(model, length_weight=length, bend_weight=bend)
        for length, bend in [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)]
    )
    torch.testing.assert_close(both, {name: 2 * one[name] + 0.5 * two[name] for name in both})
    length = sum(mean_l1(y - x) for x, y in (pooled(*pair) for pair in pairwise(model.features(PICTURES))))
    torch.testing.assert_close(one[""], WEIGHT * length.detach())


def test_every_layer_of_a_residual_network_where_that_is_asked_for() -> None:
    """Path "layers": 6 channels inside the blocks beside the stream's 8, so their means over channels are compared."""
    model = built("residual").double().eval()
    x, *rest = streams(model)
    inner = F.relu(model.norms[0](model.into[0](x)))
    first = mean_l1(inner.mean(1) - x.mean(1))
    path = [Feature(value=value, stream=True) for value in (x, inner)]
    options = FeatureFlowOptions(bend_weight=0.0)
    torch.testing.assert_close(path_value(path, options), first)
    values = [x, inner, rest[0], F.relu(model.norms[1](model.into[1](rest[0]))), *rest[1:]]
    whole = path_value([Feature(value=value, stream=False) for value in values], options)
    found = by_penalty(model, path="layers", bend_weight=0.0)
    torch.testing.assert_close(found[""], WEIGHT * whole.detach())


def test_turning_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    steps = [(b - a).flatten(1) for a, b in pairwise(values)]
    cosines = [F.cosine_similarity(u, v) for u, v in pairwise(steps)]
    by_hand = sum(torch.acos(cosine).mean() for cosine in cosines)
    options = FeatureFlowOptions(length_weight=0.0, bend="angle")
    found = path_value([Feature(value=value, stream=False) for value in values], options)
    torch.testing.assert_close(found, by_hand)
    torch.testing.assert_close(torch.autograd.grad(found, values), torch.autograd.grad(by_hand, values))


@pytest.mark.parametrize(("last", "angle"), [(2.0, 0.0), (0.0, torch.pi), (1.0, 0.0)])
def test_straight_reversed_and_resting_paths_have_finite_gradients(last: float, angle: float) -> None:
    """On along the line, back to where it came from, and no step at all."""
    direction = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = [(direction * at).requires_grad_() for at in (0.0, 1.0, last)]
    for norm in ("l1", "l2"):
        options = FeatureFlowOptions(bend="angle", norm=norm)
        path = [Feature(value=value, stream=False) for value in values]
        gradients = torch.autograd.grad(path_value(path, options), values)
        assert all(gradient.isfinite().all() for gradient in gradients)
    turn = path_value(path, FeatureFlowOptions(length_weight=0.0, bend="angle"))
    assert turn.item() == pytest.approx(angle, abs=1e-7)


@pytest.mark.parametrize(
    ("first", "second", "meets"),
    [
        ((4, 6, 6), (8, 3, 3), lambda a, b: F.avg_pool2d(a, 2).mean(1) - b.mean(1)),
        ((4, 2, 6), (4, 3, 3), lambda a, b: F.avg_pool2d(a, (1, 2)) - F.adaptive_avg_pool2d(b, (2, 3))),
        ((4, 6, 6), (4,), lambda a, b: a.mean((2, 3)) - b),
        ((4, 6, 6), (9,), lambda a, b: a.mean((1, 2, 3)) - b.mean(1)),
        ((4, 6), (4, 3, 3), lambda a, b: a.mean(2) - b.mean((2, 3))),
        ((4, 6), (4, 2), lambda a, b: F.avg_pool1d(a, 3) - b),
        ((5,), (7,), lambda a, b: a.mean(1) - b.mean(1)),
    ],
)
def test_features_of_different_shapes_meet(
    first: tuple[int, ...], second: tuple[int, ...], meets: Callable[[Tensor, Tensor], Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, *shape, generator=generator) for shape in (first, second))
    path = [Feature(value=value, stream=False) for value in (a, b)]
    torch.testing.assert_close(path_value(path, FeatureFlowOptions()), meets(a, b).abs().mean())


def test_several_passes_count_by_their_pictures() -> None:
    """As in data-parallel training, where each member has a part of the batch: the mean of means is the whole's."""
    model = chain()
    pictures = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = by_penalty(model, passes=(pictures,))
    torch.testing.assert_close(by_penalty(model, passes=(pictures[:3], pictures[3:])), whole)
    parts = [by_penalty(model, passes=(part,)) for part in (pictures[:3], pictures[3:])]
    torch.testing.assert_close({name: (3 * parts[0][name] + 2 * parts[1][name]) / 5 for name in whole}, whole)


def test_every_term_is_that_of_its_own_passes() -> None:
    model = chain()
    with METHOD.penalty(subject_of(model, METHOD), WEIGHT) as penalty:
        found = []
        for pictures in (PICTURES, 2 * PICTURES, PICTURES):
            model(pictures)
            with torch.no_grad():
                model(5 * PICTURES)  # a look at the accuracy in between is no part of the term
            found.append(penalty.extra_loss().item())
    assert found[0] == found[2] != found[1]


def test_gates_are_no_part_of_the_path() -> None:
    """Squeeze-and-excitation reads at one place, in the midst of larger features."""
    model = built("depthwise_gated").double().eval()
    a = F.relu(model.widen(PICTURES))
    b = F.relu(model.norm(model.depthwise(a)))
    gate = torch.sigmoid(model.excite(F.relu(model.squeeze(b.mean((2, 3), keepdim=True)))))
    c = F.relu(model.narrow(b * gate))
    values = [a, b * gate, c]
    path = [Feature(value=value, stream=False) for value in values]
    torch.testing.assert_close(by_penalty(model)[""], WEIGHT * path_value(path, FeatureFlowOptions()).detach())


class Attention(nn.Module):
    """Gates along channels and by squeeze-and-excitation, one of them behind the last convolution."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(6, 6), conv(6, 6), nn.Linear(384 if flat else 6, 5)
        self.eca, self.squeeze, self.excite = nn.Conv1d(1, 1, 3, padding=1), conv(6, 2, 1), conv(2, 6, 1)
        self.flat = flat

    def features(self, x: Tensor) -> list[Tensor]:
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        b = b * torch.sigmoid(self.eca(b.mean((2, 3))[:, None]))[:, 0, :, None, None]
        c = F.relu(self.c(b))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(c, 1))))
        return [a, b, c * torch.sigmoid(gate)]

    def forward(self, x: Tensor) -> Tensor:
        last = self.features(x)[-1]
        out: Tensor = self.head(F.dropout(last.flatten(1), 0.1, self.training) if self.flat else last.mean((2, 3)))
        return out


@pytest.mark.parametrize("flat", [False, True])
def test_neither_are_those_along_channels_and_behind_the_last_layer(flat: bool) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Attention(flat=flat).double().eval()
    value = written_out(model.features(PICTURES), mean_l1)
    torch.testing.assert_close(by_penalty(model), expected(model, value))


class Reused(nn.Module):
    """One layer called three times, functional calls, a layer under parametrisation, tokens, checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = conv(3, 6), conv(6, 6)
        self.normed = nn.utils.parametrizations.weight_norm(conv(6, 6))
        self.kernel = nn.Parameter(torch.randn(6, 6, 1, 1) / 3)
        self.tokens, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

    def features(self, x: Tensor) -> list[Tensor]:
        found = [torch.tanh(self.stem(x))]
        for _ in range(3):
            found.append(torch.tanh(self.again(found[-1])))
        found.append(torch.tanh(self.normed(found[-1])))
        found.append(torch.tanh(F.conv2d(input=found[-1], weight=self.kernel)))
        tokens = self.tokens(found[-1].flatten(2).transpose(1, 2))  # [N, 64, 6]
        return [*found, tokens.mean(1)]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(checkpoint(lambda x: self.features(x)[-1], x, use_reentrant=False))
        return out


def test_the_path_is_found_however_layers_are_called() -> None:
    """And computing activations again in backward, as checkpointing does, adds nothing to it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Reused().double()
    *pictures, last = model.features(PICTURES)
    values = [*pictures[:-1], pictures[-1].flatten(2), last]
    path = [Feature(value=value, stream=False) for value in values]
    value = path_value(path, FeatureFlowOptions())
    torch.testing.assert_close(by_penalty(model), expected(model, value))
    with METHOD.penalty(subject_of(model, METHOD), WEIGHT) as penalty:
        model(PICTURES).sum().backward()
        torch.testing.assert_close(penalty.extra_loss(), WEIGHT * value)


def test_lower_precision_is_compared_in_float32() -> None:
    model = chain().float()
    whole = written_out(model.features(EXAMPLE), mean_l1).item()
    with METHOD.penalty(subject_of(model, METHOD), 1.0) as penalty:
        with torch.autocast("cpu", torch.bfloat16):
            model(EXAMPLE)
        value = penalty.extra_loss()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(whole, rel=0.02)


def test_nothing_is_left_after_an_exception_in_a_pass() -> None:
    model = chain()
    with METHOD.penalty(subject_of(model, METHOD), WEIGHT) as penalty:
        with pytest.raises(RuntimeError, match="expected input"):
            model(torch.zeros(2, 4, 8, 8, dtype=torch.float64))
        assert torch.overrides._len_torch_function_stack() == 0
        model(PICTURES)  # what failed is no part of the next term
        found = penalty.extra_loss().item()
    assert found == by_penalty(model)[""].item()
    assert not hooks(model)


def test_nothing_is_left_after_a_pass_was_interrupted() -> None:
    """PyTorch calls hooks for exceptions, and for Ctrl-C it does not."""
    model = built("plain").double()

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    handle = model.b.register_forward_hook(interrupted)

    def train() -> None:
        with METHOD.penalty(subject_of(model, METHOD), WEIGHT):
            model(PICTURES)

    with pytest.raises(KeyboardInterrupt):
        train()
    handle.remove()
    assert torch.overrides._len_torch_function_stack() == 0
    assert not hooks(model)


def test_nothing_is_left_after_an_exception_between_passes() -> None:
    model = chain()

    def train() -> None:
        with METHOD.penalty(subject_of(model, METHOD), WEIGHT):
            model(PICTURES)
            raise KeyError

    with pytest.raises(KeyError):
        train()
    assert not hooks(model)
    assert torch.overrides._len_torch_function_stack() == 0


def test_a_path_without_two_comparable_features_is_named() -> None:
    with pytest.raises(
        InvalidInput,
        match=r"feature_flow: this network's path has no two features to compare \(it has 8x8x8, 12x8x8\); "
        r"method_options\.shape_change: 'project' compares features of different shapes",
    ):
        by_penalty(built("plain").double(), shape_change="skip")
    with pytest.raises(InvalidInput, match=r"has no two features to compare \(it has 6\)$"):
        by_penalty(nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Linear(6, 5)).double())


def test_a_term_without_a_pass_is_refused() -> None:
    model = chain()
    with METHOD.penalty(subject_of(model, METHOD), WEIGHT) as penalty:
        with torch.no_grad():
            model(PICTURES)
        with pytest.raises(InvalidInput, match="no forward pass with gradients came before"):
            penalty.extra_loss()


def test_training_under_it_shortens_the_path() -> None:
    model = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    values = []
    with METHOD.penalty(subject_of(model, METHOD), 1.0) as penalty:
        for _ in range(20):
            optimizer.zero_grad()
            model(PICTURES)
            term = penalty.extra_loss()
            term.backward()
            optimizer.step()
            values.append(term.item())
    assert values[-1] < 0.9 * values[0]


def test_small_filters_leave() -> None:
    subject = subject_of(built("plain"), METHOD, scale="group_mean")
    budget = Budget(flops=int(0.7 * CostTable(subject.coupling).flops()), group_cap=0.5)
    scores = filter_norm(subject)
    assert METHOD.choose(subject, budget) == greedy(
        subject.coupling, scores, budget.flops, group_cap=0.5, groups=subject.prunable()
    )
