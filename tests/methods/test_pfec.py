"""PFEC layer by layer: greedy and independent norms by hand, and the published widths to the last multiplication."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import built, conv, subject_of
from torch import Tensor, nn

from orchestrator.methods import METHODS, Ahead, Budget, Subject
from orchestrator.methods.filter_norm import filter_norm
from orchestrator.methods.pfec import PfecOptions, layer_norms
from orchestrator.methods.pfec_recipes import RECIPES, UnfitRecipe, published_plan, published_widths
from orchestrator.network import BudgetUnreachable, CostTable, Coupling, Plan, couple, cut, measure
from orchestrator.network.architectures import build

PFEC, FILTER_NORM = METHODS["pfec"], METHODS["filter_norm"]
CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


def chain() -> nn.Module:
    """Three layers of 1 x 1 kernels: 2 -> 3 -> 2 channels, then a classifier."""
    model = nn.Sequential(conv(3, 2, 1), conv(2, 3, 1), conv(3, 2, 1), nn.Flatten(), nn.Linear(128, 5))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1, 1], [3, 3, 3]]).view(2, 3, 1, 1))
        model[1].weight.copy_(torch.tensor([[5.0, 1], [0, 2], [0, -3]]).view(3, 2, 1, 1))
        model[2].weight.copy_(torch.tensor([[9.0, 1, 1], [0, 2, 3]]).view(2, 3, 1, 1))
    return model


WIDTHS = {"0": 1, "1": 2, "2": 1}


def test_independent_norms_count_all_kernels() -> None:
    subject = subject_of(chain(), PFEC)
    assert layer_norms(subject, WIDTHS).tolist() == [3, 9, 6, 2, 3, 11, 5]
    np.testing.assert_allclose(layer_norms(subject, WIDTHS), filter_norm(subject_of(chain(), FILTER_NORM)))


def test_greedy_norms_leave_out_what_was_pruned_before() -> None:
    """Channel 0 of the first layer leaves (3 < 9); without what reads it the second layer's norms are 1, 2 and 3, so
    its channel 0 leaves, which counted alone was its largest; then the third layer's are 2 and 5."""
    subject = subject_of(chain(), PFEC, scoring="greedy")
    assert layer_norms(subject, WIDTHS).tolist() == [3, 9, 1, 2, 3, 2, 5]


@pytest.mark.parametrize(
    ("scoring", "kept"),
    [("independent", {"0": (1,), "1": (0, 2), "2": (0,)}), ("greedy", {"0": (1,), "1": (1, 2), "2": (1,)})],
)
def test_what_stays_by_either(scoring: str, kept: dict[str, tuple[int, ...]]) -> None:
    subject = subject_of(chain(), PFEC, scoring=scoring)
    mask = Plan(kept=kept).mask(subject.coupling)
    plan = PFEC.choose(subject, Budget(flops=CostTable(subject.coupling).flops(mask), group_cap=0.5))
    assert plan.kept == kept


@pytest.mark.parametrize("network", ["plain", "residual", "grouped", "dense", "transposed_grouped", "flattened"])
def test_both_are_one_where_nothing_was_pruned(network: str) -> None:
    model = built(network)
    independent = subject_of(model, PFEC)
    greedy = subject_of(model, PFEC, independent.coupling, scoring="greedy")
    np.testing.assert_allclose(layer_norms(greedy, {}), layer_norms(independent, {}), rtol=1e-12)
    every_layer = filter_norm(subject_of(model, FILTER_NORM, independent.coupling))
    np.testing.assert_allclose(layer_norms(independent, {}), every_layer, rtol=1e-5)


@pytest.mark.parametrize("network", ["plain", "residual", "grouped", "dense", "transposed_grouped", "flattened"])
def test_greedy_norms_are_those_of_the_network_cut_so_far(network: str) -> None:
    """The paper's own words: a layer is scored when those before it are pruned, with their kernels."""
    model = built(network)
    subject = subject_of(model, PFEC, scoring="greedy", residual_streams=True)
    coupling = subject.coupling
    widths = {group.name: -(-group.size // 2) for group in coupling.groups}
    found = layer_norms(subject, widths)
    kept: dict[str, tuple[int, ...]] = {}
    for group in coupling.groups:
        plan = Plan(kept=kept)
        small = subject_of(cut(model, coupling, plan), FILTER_NORM, coupling.restrict(plan))
        here = small.coupling.by_name[group.name].channels
        np.testing.assert_allclose(found[group.channels], filter_norm(small)[here], rtol=1e-5)
        order = np.argsort(found[group.channels], kind="stable")[group.size - widths[group.name] :]
        kept[group.name] = tuple(sorted(order.tolist()))


def test_every_layer_loses_the_same_share() -> None:
    model = nn.Sequential(conv(3, 20), nn.ReLU(), conv(20, 40), nn.ReLU(), nn.Flatten(), nn.Linear(40 * 64, 5))
    subject = subject_of(model, PFEC)
    mask = np.ones(60, bool)
    mask[[*range(5), *range(20, 30)]] = False
    plan = PFEC.choose(subject, Budget(flops=CostTable(subject.coupling).flops(mask), group_cap=0.5))
    assert {name: len(kept) for name, kept in plan.kept.items()} == {"0": 15, "2": 30}


# -- recipes -------------------------------------------------------------------------------------------------------

# flops after and before, in the paper's digits, and the share of parameters that is cut
PUBLISHED = {
    "vgg16-a": ("2.06e+08", "3.13e+08", 64.0),
    "resnet56-a": ("1.12e+08", "1.25e+08", 9.4),
    "resnet56-b": ("9.09e+07", "1.25e+08", 13.7),
    "resnet110-a": ("2.13e+08", "2.53e+08", 2.3),
    "resnet110-b": ("1.55e+08", "2.53e+08", 32.4),
    "resnet34-a": ("3.08e+09", "3.64e+09", 7.6),
    "resnet34-b": ("2.76e+09", "3.64e+09", 10.8),
}
FLOPS = {
    "vgg16-a": 206_146_048,
    "resnet56-a": 112_435_840,
    "resnet56-b": 90_907_264,
    "resnet110-a": 212_779_648,
    "resnet110-b": 155_124_352,
    "resnet34-a": 3_100_184_576,
    "resnet34-b": 2_782_269_440,
}


@cache
def network_of(name: str) -> tuple[nn.Module, Tensor, Coupling]:
    """One of the zoo, or torchvision's ResNet-34, on meta tensors: only widths matter here."""
    reference, classes, shape = ("torchvision:resnet34", 1000, IMAGENET) if name == "resnet34" else (name, 10, CIFAR)
    with torch.device("meta"):
        model, example = build(reference, classes=classes, input_shape=shape, seed=0), torch.zeros(1, *shape)
    return model, example, couple(model, example)


def cut_by(recipe: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """The network, what a recipe leaves of it, and a picture."""
    model, example, coupling = network_of(recipe.partition("-")[0])
    plan = published_plan(coupling, recipe, np.arange(coupling.channels, dtype=np.float64))
    return model, cut(model, coupling, plan), example


def papers_flops(model: nn.Module, example: Tensor) -> int:
    """As the paper counts ResNet-34: without the three projections of 1 x 1 and the classifier, 19.8 M. Elsewhere
    there are no projections, and the classifier is too small to be seen."""
    return sum(flops for name, flops in measure(model, example).layers if "downsample" not in name and name != "fc")


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_widths_and_flops(recipe: str) -> None:
    model, small, example = cut_by(recipe)
    before, after = measure(model, example), measure(small, example)
    assert after.flops == FLOPS[recipe]
    flops_after, flops_before, params_cut = PUBLISHED[recipe]
    assert f"{papers_flops(small, example):.2e}" == flops_after
    assert papers_flops(model, example) == pytest.approx(float(flops_before), rel=0.005)
    # the paper cuts its VGG-16 down from one linear layer more, and leaves projections out of ResNet-34
    assert 100 * (1 - after.params / before.params) == pytest.approx(params_cut, abs=0.3)


def widths_in(model: nn.Module, names: Iterable[str]) -> list[int]:
    return [model.get_parameter(f"{name}.weight").shape[0] for name in names]


def test_widths_of_vgg16_a() -> None:
    _, small, _ = cut_by("vgg16-a")
    names = [name for name, module in small.named_modules() if isinstance(module, nn.Conv2d)]
    assert widths_in(small, names) == [32, 64, 128, 128, 256, 256, 256, *[256] * 6]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("resnet56-a", [14] * 7 + [16, 14] + [32] + [28] * 8 + [64] + [57] * 7 + [64]),
        ("resnet56-b", [6] * 7 + [16, 16] + [32] + [22] * 6 + [32, 22] + [64] + [57] * 7 + [64]),
        ("resnet110-a", [8] * 17 + [16] + [32] * 18 + [64] * 18),
        ("resnet110-b", [8] * 17 + [16] + [32] + [19] * 17 + [64] + [44] * 17),
    ],
)
def test_widths_of_small_resnets(recipe: str, expected: list[int]) -> None:
    _, small, _ = cut_by(recipe)
    names = [f"stage{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(len(expected) // 3)]
    assert widths_in(small, names) == expected


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("resnet34-a", [64, 44, 44] + [128, 89, 89, 128] + [256, 179, 179, 179, 179, 256] + [512] * 3),
        ("resnet34-b", [64, 32, 32] + [128, 51, 51, 128] + [256, 153, 153, 153, 153, 256] + [512] * 3),
    ],
)
def test_widths_of_resnet34(recipe: str, expected: list[int]) -> None:
    _, small, _ = cut_by(recipe)
    blocks = [(1, 3), (2, 4), (3, 6), (4, 3)]
    names = [f"layer{stage}.{block}.conv1" for stage, count in blocks for block in range(count)]
    assert widths_in(small, names) == expected


@cache
def small_resnet() -> tuple[nn.Module, Coupling]:
    model = build("resnet56", classes=10, input_shape=(3, 8, 8), seed=0)
    return model, couple(model, torch.zeros(1, 3, 8, 8))


def asked(coupling: Coupling, model: nn.Module | None = None, **options: Any) -> Subject:
    return Subject(
        model=model or nn.Identity(), coupling=coupling, options=PfecOptions(**options), calibration=tuple, seed=0
    )


def budget(coupling: Coupling, flops_kept: float, **other: Any) -> Budget:
    return Budget(flops=int(CostTable(coupling).flops() * flops_kept), **{"group_cap": 0.625, **other})


def check(subject: Subject, limits: Budget, iterations: int = 1) -> None:
    assert PFEC.check is not None
    PFEC.check(Ahead(subject=subject, budget=limits, iterations=iterations, example=torch.zeros(1, 3, 8, 8)))


@pytest.mark.parametrize("scoring", ["independent", "greedy"])
def test_a_recipe_is_chosen_by_the_method(scoring: str) -> None:
    model, coupling = small_resnet()
    subject = asked(coupling, model, recipe="resnet56-b", scoring=scoring)
    check(subject, budget(coupling, 0.73))
    with pytest.raises(UnfitRecipe, match="recipe resnet56-b is for one cut; iterations is 2 and must be 1"):
        check(subject, budget(coupling, 0.73), iterations=2)
    plan = PFEC.choose(subject, budget(coupling, 0.73))
    widths = published_widths(coupling, "resnet56-b")
    assert {name: len(kept) for name, kept in plan.kept.items()} == widths
    assert widths["stage1.0.conv1"] == 6
    assert plan == published_plan(coupling, "resnet56-b", layer_norms(subject, widths))


@pytest.mark.parametrize(
    ("error", "message", "limits"),
    [
        (
            BudgetUnreachable,
            r"leaves 5,\d+,\d+ of 7,\d+,\d+ flops; the budget, by pruning_ratio, is 4,.*: set pruning_ratio bet",
            {"flops_kept": 0.6},
        ),
        (UnfitRecipe, r"leaves 5,.* flops; the budget, by pruning_ratio, is 7,.*: set pruning_r", {"flops_kept": 0.9}),
        (
            UnfitRecipe,
            r"resnet56-b takes 10 of 16 channels of stage1.0.conv1; group_cap is 0\.5, and must be at least 0\.625",
            {"flops_kept": 0.73, "group_cap": 0.5},
        ),
        (
            UnfitRecipe,
            r"keeps 6 channels of stage1.0.conv1, no multiple of round_to",
            {"flops_kept": 0.73, "round_to": 4},
        ),
    ],
)
def test_no_setting_is_passed_over(error: type[Exception], message: str, limits: dict[str, Any]) -> None:
    _, coupling = small_resnet()
    subject = asked(coupling, recipe="resnet56-b")
    for act in (PFEC.choose, check):
        with pytest.raises(error, match=message):
            act(subject, budget(coupling, **{"group_cap": 0.625, **limits}))


def test_a_recipe_is_for_its_network() -> None:
    coupling = couple(built("plain"), torch.zeros(1, 3, 8, 8))
    with pytest.raises(UnfitRecipe, match=r"is for ResNet-56, of 55 convolutions larger than 1 x 1; this network h"):
        published_widths(coupling, "resnet56-a")
    with pytest.raises(UnfitRecipe, match=r"recipe is 'resnet56-c'; it must be one of vgg16-a, resnet56-a, "):
        published_widths(coupling, "resnet56-c")


def test_a_recipe_is_for_the_whole_network() -> None:
    _, coupling = small_resnet()
    pruned = coupling.restrict(published_plan(coupling, "resnet56-b", np.zeros(coupling.channels)))
    with pytest.raises(UnfitRecipe, match=r"convolution 2 is to have 16 filters, and has 6; .* in one iteration"):
        published_widths(pruned, "resnet56-b")
    frozen = coupling.without(["stage1.0.conv1"], "for the test")
    with pytest.raises(UnfitRecipe, match=r"filters of convolution 2, stage1\.0\.conv1\.weight, cannot leave by them"):
        published_widths(frozen, "resnet56-b")
