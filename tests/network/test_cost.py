"""flops and params: closed forms by hand, and the table against a measurement of what was cut."""

import pytest
import torch
import torchvision
from patterns import PATTERNS
from torch import nn

from orchestrator.network import CostTable, Plan, UnsupportedModel, couple, cut, measure, random_plan
from orchestrator.network.zoo import NETWORKS

PICTURE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("layer", "shape", "flops"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8), 8 * 3 * 9 * 64),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), (3, 8, 8), 8 * 3 * 9 * 16),
        (nn.Conv2d(8, 12, 5, padding=2, groups=4), (8, 8, 8), 12 * 2 * 25 * 64),
        (nn.Conv2d(8, 16, 3, padding=1, groups=8), (8, 8, 8), 16 * 9 * 64),
        (nn.Conv2d(3, 8, 3, dilation=2), (3, 8, 8), 8 * 3 * 9 * 16),
        (nn.Conv1d(3, 8, 5), (3, 16), 8 * 3 * 5 * 12),
        (nn.Conv3d(2, 4, 3), (2, 5, 5, 5), 4 * 2 * 27 * 27),
        (nn.ConvTranspose2d(8, 6, 2, 2), (8, 4, 4), 8 * 6 * 4 * 16),
        (nn.ConvTranspose2d(8, 6, 2, 2, groups=2), (8, 4, 4), 8 * 3 * 4 * 16),
        (nn.Linear(6, 5), (6,), 30),
        (nn.Linear(6, 5, bias=False), (7, 6), 7 * 30),
    ],
)
def test_flops_of_one_layer(layer: nn.Module, shape: tuple[int, ...], flops: int) -> None:
    for batch in (1, 3):
        found = measure(layer, torch.zeros(batch, *shape))
        assert found.flops == flops
    assert found.params == sum(parameter.numel() for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("name", "flops"), [("resnet56", 125_485_696), ("densenet40", 282_917_328), ("vgg16", 313_201_664)]
)
def test_flops_of_the_papers_networks(name: str, flops: int) -> None:
    assert measure(NETWORKS[name](10, (3, 32, 32)), PICTURE).flops == flops


def test_flops_of_resnet50() -> None:
    found = measure(torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224))
    assert found.flops == 4_089_184_256
    assert found.params == 25_557_032
    assert found.layers[0] == ("conv1", 64 * 3 * 49 * 112 * 112)
    assert found.layers[-1] == ("fc", 2048 * 1000)


def test_tied_weights_are_counted_once_and_run_twice() -> None:
    pattern = PATTERNS["tied_weights"]
    model = pattern.build()
    found = measure(model, pattern.example)
    assert found.params == sum(parameter.numel() for parameter in model.parameters())
    assert found.flops == 64 * 9 * (3 * 8 + 8 * 8 + 8 * 8) + 8 * 5


@pytest.mark.parametrize(
    "name", ["cifarnet", "resnet20", "densenet40", "preact_senet18", "shufflenet", "every pattern"]
)
@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")  # a norm without parameters
def test_table_equals_measure_of_the_cut(name: str) -> None:
    if name == "every pattern":
        cases = [(pattern.build(), pattern.example, 1) for pattern in PATTERNS.values()]
    elif name == "shufflenet":
        cases = [(torchvision.models.shufflenet_v2_x0_5(num_classes=10), torch.zeros(1, 3, 64, 64), 20)]
    else:
        cases = [(NETWORKS[name](10, (3, 32, 32)), PICTURE, 20)]
    for model, example, plans in cases:
        coupling = couple(model, example)
        table = CostTable(coupling)
        full = measure(model, example)
        assert (table.flops(), table.params()) == (full.flops, full.params)
        for seed in range(plans):
            plan = random_plan(coupling, keep=0.4 + seed / 40, seed=seed, exact_only=False)
            found = measure(cut(model, coupling, plan), example)
            mask = plan.mask(coupling)
            assert (table.flops(mask), table.params(mask)) == (found.flops, found.params)
            assert table.layer_flops(mask) == [flops for _, flops in found.layers]


def test_a_layer_that_runs_along_channels_costs_less_when_they_leave() -> None:
    pattern = PATTERNS["linear_over_places"]
    model = pattern.build()
    coupling = couple(model, pattern.example)
    whole, plan = 4 * 6 * 8 + 8 * 4 * 4 + 8 * 5, Plan(kept={"a": (1, 4, 6)})
    assert CostTable(coupling).flops() == whole
    assert CostTable(coupling).flops(plan.mask(coupling)) == 4 * 6 * 3 + 3 * 4 * 4 + 3 * 5
    assert CostTable(coupling.restrict(plan)).flops() == 4 * 6 * 3 + 3 * 4 * 4 + 3 * 5
    assert CostTable(coupling.without(["a"], "because")).flops() == whole


def test_prunable_share_is_what_one_channel_a_group_saves() -> None:
    pattern = PATTERNS["plain"]
    coupling = couple(pattern.build(), pattern.example)
    full = 64 * 9 * (3 * 8 + 8 * 12) + 12 * 5
    least = 64 * 9 * (3 * 1 + 1 * 1) + 1 * 5
    assert CostTable(coupling).prunable_share() == pytest.approx(1 - least / full)


def test_a_network_without_layers_costs_nothing() -> None:
    coupling = couple(nn.ReLU(), torch.zeros(1, 3))
    assert CostTable(coupling).flops() == 0
    assert CostTable(coupling).prunable_share() == 0.0
    assert measure(nn.ReLU(), torch.zeros(1, 3)).params == 0


def test_measure_of_a_model_that_does_not_run() -> None:
    with pytest.raises(UnsupportedModel, match="Conv2d does not run on the example"):
        measure(nn.Conv2d(3, 8, 3), torch.zeros(1, 4, 8, 8))
