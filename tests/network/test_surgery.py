"""cut, masked and verify: what they do to a network's tensors and attributes, and what verify blames."""

import pytest
import torch
from patterns import PATTERNS, Net, conv, linear, pooled
from torch import Tensor, nn

from orchestrator.network import Plan, PlanMismatch, UnsupportedModel, couple, cut, masked, random_plan, verify
from orchestrator.network.lively import lively_

EXAMPLE = torch.zeros(1, 3, 8, 8)
KEPT = Plan(kept={"a": (0, 2, 5)})


def test_cut_takes_rows_columns_and_norm_entries() -> None:
    model = PATTERNS["plain"].build()
    lively_(model, EXAMPLE)
    small = cut(model, couple(model, EXAMPLE), KEPT)
    index = [0, 2, 5]
    assert torch.equal(small.a.weight, model.a.weight[index])
    assert torch.equal(small.b.weight, model.b.weight[:, index])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(small.n, name), getattr(model.n, name)[index])
    assert torch.equal(small.b.bias, model.b.bias)
    assert (small.a.out_channels, small.n.num_features, small.b.in_channels) == (3, 3, 3)
    assert small.a.weight.data_ptr() != model.a.weight.data_ptr()
    assert small.b.bias.data_ptr() != model.b.bias.data_ptr()


@pytest.mark.parametrize("pattern", ["plain", "buffer_a_channel", "tied_weights"])
def test_nothing_is_shared_with_the_given_network(pattern: str) -> None:
    """Training the small network must not change the large one: not even in what the plan leaves whole."""
    model = PATTERNS[pattern].build()
    coupling = couple(model, PATTERNS[pattern].example)
    mine = {tensor.data_ptr() for tensor in model.state_dict().values()}
    for plan in (Plan(kept={}), random_plan(coupling)):
        for changed in (cut(model, coupling, plan), masked(model, coupling, plan)):
            assert mine.isdisjoint(tensor.data_ptr() for tensor in changed.state_dict().values())


def test_masked_zeroes_the_same_entries() -> None:
    model = PATTERNS["plain"].build()
    lively_(model, EXAMPLE)
    full = masked(model, couple(model, EXAMPLE), KEPT)
    gone = [1, 3, 4, 6, 7]
    assert not full.a.weight[gone].any()
    assert not full.b.weight[:, gone].any()
    assert not full.n.running_mean[gone].any()
    assert torch.equal(full.a.weight[[0, 2, 5]], model.a.weight[[0, 2, 5]])


def test_keeping_everything_is_the_identity() -> None:
    model = PATTERNS["plain"].build()
    coupling = couple(model, EXAMPLE)
    for changed in (cut(model, coupling, Plan(kept={})), masked(model, coupling, Plan(kept={}))):
        for name, tensor in model.state_dict().items():
            assert torch.equal(changed.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("layer", "attributes"),
    [
        (conv(6, 6, groups=6), {"groups": 4, "in_channels": 4, "out_channels": 4}),
        (conv(6, 12, groups=6), {"groups": 4, "in_channels": 4, "out_channels": 8}),
        (nn.ConvTranspose2d(6, 6, 2, groups=6), {"groups": 4, "in_channels": 4, "out_channels": 4}),
        (nn.ConvTranspose2d(6, 6, 2, groups=1), {"in_channels": 4, "out_channels": 6}),
        (nn.BatchNorm2d(6), {"num_features": 4}),
        (nn.GroupNorm(6, 6), {"num_groups": 4, "num_channels": 4}),
        (nn.PReLU(6), {"num_parameters": 4}),
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(6 * 64), nn.Unflatten(1, (-1, 8, 8))), {}),
    ],
)
def test_layers_say_their_new_sizes(layer: nn.Module, attributes: dict[str, int]) -> None:
    model = nn.Sequential(conv(3, 6), layer, nn.Flatten(), nn.LazyLinear(2))
    model(EXAMPLE)
    coupling = couple(model, EXAMPLE)
    small = cut(model, coupling, Plan(kept={"0": (0, 1, 2, 4)}))
    assert {name: getattr(small[1], name) for name in attributes} == attributes
    assert small(EXAMPLE).shape == (1, 2)


def test_linear_and_layer_norm_say_their_new_sizes() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    small = cut(model, couple(model, torch.zeros(1, 4)), Plan(kept={"0": (0, 5)}))
    assert small[0].out_features == small[2].in_features == 2
    assert small[1].normalized_shape == (2,)


def test_a_coupling_of_another_network_is_refused() -> None:
    model, other = PATTERNS["plain"].build(), PATTERNS["residual"].build()
    coupling = couple(model, EXAMPLE)
    with pytest.raises(UnsupportedModel, match=r"in this model and .* in the coupling"):
        cut(other, coupling, KEPT)
    with pytest.raises(PlanMismatch, match="is no group"):
        cut(model, coupling, Plan(kept={"z": (0,)}))
    with pytest.raises(UnsupportedModel, match="use the coupling of this very network"):
        cut(cut(model, coupling, KEPT), coupling, KEPT)


def test_verify_passes_on_what_holds() -> None:
    model = PATTERNS["group_norm"].build()
    coupling = couple(model, EXAMPLE)
    found = verify(model, coupling, random_plan(coupling, exact_only=False), torch.rand(2, 3, 8, 8))
    assert found.passed
    assert found.failing == ()
    assert found.difference <= 1e-9


def hidden_width(m: nn.Module, x: Tensor) -> Tensor:
    """The first convolution's width enters through a tensor, where no trace sees what it is for."""
    x = torch.relu(m.a(x))
    return m.head(pooled(torch.relu(m.b(x * torch.ones(x.shape[1]).sum().to(x)))))


def fixed_by_data(m: nn.Module, x: Tensor) -> Tensor:
    """With real data, code that meta tensors never run demands eight channels."""
    x = m.a(x)
    if x.device.type != "meta":
        x = x.view(-1, 8, 8, 8)
    return m.head(pooled(torch.relu(m.b(torch.relu(x)))))


@pytest.mark.parametrize("forward", [hidden_width, fixed_by_data])
def test_verify_names_the_group_that_fails(forward: object) -> None:
    model = Net(forward, {"a": conv(3, 8), "b": conv(8, 6), "head": linear(6, 5)}).train()
    coupling = couple(model, EXAMPLE)
    assert [group.name for group in coupling.groups] == ["a", "b"]
    plan = random_plan(coupling)
    found = verify(model, coupling, plan, torch.rand(2, 3, 8, 8))
    assert not found.passed
    assert found.failing == ("a",)
    assert found.difference > 1e-5
    assert model.training
    mended = coupling.without(found.failing, "width fixed in code")
    assert verify(model, mended, random_plan(mended), torch.rand(2, 3, 8, 8)).passed


def test_a_broken_rule_is_not_taken_for_the_models_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.network import rules
    from orchestrator.network.trace import BrokenRule

    def broken(trace: object, op: object) -> None:
        raise RuntimeError("oops")

    monkeypatch.setitem(rules.RULES, torch.ops.aten.convolution, broken)
    with pytest.raises(BrokenRule, match=r"the rule for aten\.convolution\.default, called from a: oops"):
        couple(PATTERNS["plain"].build(), EXAMPLE)
