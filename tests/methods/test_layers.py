"""Patches by matrix product against PyTorch's own layers, and which layers are told of."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_networks import EXAMPLE, NETWORKS, built, conv
from test_laws import same, state, traces
from torch import Tensor, nn

from orchestrator.methods.layers import LayerCall, calls, left_out, outputs, patches, places_of, watching
from orchestrator.network import couple, cut, random_plan

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 6)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 7, 8)),
    "dilated": (lambda: nn.Conv2d(4, 6, (3, 2), padding=(2, 0), dilation=(2, 3), bias=False), (4, 9, 8)),
    "same": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same", padding_mode="reflect"), (4, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), (4, 7, 7)),
    "widening_depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 7, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 4, 5)),
    "transposed_dilated": (lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(1, 3), dilation=(2, 1)), (4, 4, 5)),
    "transposed_grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 4, 4)),
    "transposed_depthwise": (lambda: nn.ConvTranspose2d(4, 8, 2, stride=2, groups=4, bias=False), (4, 4, 4)),
    "one_dimension": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (4, 11)),
    "three_dimensions": (lambda: nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 1), stride=(1, 2, 1)), (4, 3, 4, 5)),
    "linear": (lambda: nn.Linear(5, 6), (5,)),
    "linear_without_bias": (lambda: nn.Linear(5, 6, bias=False), (5,)),
    "linear_of_one": (lambda: nn.Linear(1, 1), (1,)),
    "linear_of_tokens": (lambda: nn.Linear(5, 6), (3, 5)),
}


class Between(nn.Module):
    """The layer between two others, so that its channels are none of the model's inputs and outputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.sin()).cos()


def seen(model: nn.Module, layers: list[LayerCall], x: Tensor) -> list[tuple[LayerCall, Tensor, Tensor]]:
    found: list[tuple[LayerCall, Tensor, Tensor]] = []
    with torch.no_grad(), watching(model, layers, lambda call, x, y: found.append((call, x, y))):
        model(x)
    return found


def product(call: LayerCall, model: nn.Module, x: Tensor, at: Tensor | None = None) -> Tensor:
    weight = call.matrix(model.get_parameter(call.weight))
    made = torch.einsum("sgip,goip->sgo", patches(call, x, at), weight)
    return made if call.bias is None else made + model.get_parameter(call.bias).view(call.conv_groups, -1)


@pytest.mark.parametrize("kind", LAYERS)
def test_patches_times_weights_are_outputs(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    model = Between(make()).double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    layers = calls(model, couple(model, x), x)
    [(call, read, made)] = seen(model, layers, x)
    assert call.layer == "layer"
    assert (call.bias is None) is (model.layer.bias is None)
    expected = outputs(call, made)
    torch.testing.assert_close(product(call, model, read), expected)
    at = torch.tensor([0, 2, len(expected) - 1])
    torch.testing.assert_close(product(call, model, read, at), expected[at])
    torch.testing.assert_close(outputs(call, made, at), expected[at])
    weight = model.layer.weight
    assert torch.equal(call.tensor(call.matrix(weight)), weight)
    assert call.reads.size * call.makes.shape[1] * call.places == weight.numel()


@pytest.mark.parametrize("network", NETWORKS)
def test_every_layer_is_found_with_its_channels(network: str) -> None:
    """Also in a cut network: what it reads and makes has the shape of its weights, and channels stay channels."""
    model = built(network).eval()
    coupling = couple(model, EXAMPLE)
    plan = random_plan(coupling)
    for this, its in ((model, coupling), (cut(model, coupling, plan), coupling.restrict(plan))):
        before, was = state(this), traces(this)
        found = calls(this, its, EXAMPLE)
        assert [call.weight for call in found] == [call.weight for call in its.calls]
        assert left_out(this, its, EXAMPLE) == {}
        for call, x, y in seen(this, found, EXAMPLE):
            assert call.matrix(this.get_parameter(call.weight)).shape[:3] == (*call.makes.shape, call.reads.shape[1])
            torch.testing.assert_close(product(call, this, x), outputs(call, y))
        assert same(state(this), before)
        assert traces(this) == was


def test_channels_of_a_flattened_layer_are_read_at_each_of_their_places() -> None:
    model = built("flattened")
    found = {call.layer: call for call in calls(model, couple(model, EXAMPLE), EXAMPLE)}
    assert found["hidden"].reads.tolist() == [[channel for channel in range(6) for _ in range(16)]]
    assert found["hidden"].makes.tolist() == [list(range(6, 16))]
    assert found["head"].makes.tolist() == [[-1] * 5]
    assert found["a"].reads.tolist() == [[-1] * 3]


def test_depthwise_layers_read_what_they_make() -> None:
    model = built("depthwise_gated")
    [call] = [call for call in calls(model, couple(model, EXAMPLE), EXAMPLE) if call.depthwise]
    assert call.layer == "depthwise"
    assert call.reads.tolist() == call.makes.tolist() == [[channel] for channel in range(12)]
    model = built("transposed_grouped")
    [call] = [call for call in calls(model, couple(model, EXAMPLE), EXAMPLE) if call.depthwise]
    assert (call.layer, call.reads.tolist()) == ("each", call.makes.tolist())


class Special(nn.Module):
    """A weight used twice, one that is computed, a matrix without a module, a kernel along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = conv(3, 4), conv(4, 4)
        self.normed = nn.utils.parametrizations.weight_norm(conv(4, 6))
        self.attention = nn.Conv1d(1, 1, 3, padding=1)
        self.matrix, self.bare = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.again(self.stem(x)).relu()).relu()
        x = self.normed(x)
        gates = self.attention(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return F.linear((x * gates[..., None, None]).mean((2, 3)) @ self.matrix, self.bare)


def test_layers_that_cannot_be_told_of_are_named() -> None:
    model = Special()
    coupling = couple(model, EXAMPLE)
    found = calls(model, coupling, EXAMPLE)
    assert [call.layer for call in found] == ["stem", "matrix", "bare"]
    assert [call.swapped for call in found[1:]] == [True, False]
    assert left_out(model, coupling, EXAMPLE) == {
        "again": "its weight is used more than once",
        "normed": "its weight is computed before it is used, or used in another shape",
        "attention": "it runs along channels",
    }
    for call, x, y in seen(model, found, EXAMPLE):
        torch.testing.assert_close(product(call, model, x), outputs(call, y))


def test_layers_that_share_a_bias_are_named() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 5))
    model[2].bias = model[0].bias
    coupling = couple(model, EXAMPLE)
    assert [call.layer for call in calls(model, coupling, EXAMPLE)] == ["4"]
    assert left_out(model, coupling, EXAMPLE) == dict.fromkeys(["0", "2"], "its bias is used more than once")


def test_a_pass_changes_no_mode_and_no_statistics() -> None:
    model = built("plain")
    model.norm.eval()
    before, was = state(model), traces(model)
    calls(model, couple(model, EXAMPLE), EXAMPLE)
    assert model.training
    assert not model.norm.training
    assert same(state(model), before)
    assert traces(model) == was


def test_places_are_drawn_for_each_picture() -> None:
    model = Between(nn.Conv2d(2, 4, 3))
    x = torch.randn(6, 2, 7, 7)
    [call] = calls(model, couple(model, x), x)
    y = model(x)
    found = places_of(call, y, 6, 10, seed=3)
    assert torch.equal(found, places_of(call, y, 6, 10, seed=3))
    assert not torch.equal(found, places_of(call, y, 6, 10, seed=4))
    assert (found // 25).tolist() == [picture for picture in range(6) for _ in range(10)]
    assert len(found.unique()) == 60
    for each in (25, 26):
        assert places_of(call, y, 6, each, seed=3).tolist() == list(range(150))
    assert len(places_of(call, y, 4, 10, seed=3)) == 150  # rows that are no pictures' are all taken
