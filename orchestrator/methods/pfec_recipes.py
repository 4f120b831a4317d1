"""The widths that Li et al. 2017 published: which first convolutions lose how many filters, found in any network.

Source: Pruning Filters for Efficient ConvNets, arXiv:1608.08710, tables 1 and 2. The layers that are left whole and the
rounding (down) are those of the re-implementation by Liu et al. 2019 (rethinking-network-pruning). ResNet-34-C is
missing: what it leaves whole was not found.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.methods.method import Budget, Floats
from orchestrator.methods.widths import widths_plan
from orchestrator.network import BudgetUnreachable, CostTable, Coupling, Group, Plan
from orchestrator.record import InvalidInput

SLACK = 0.01  # of the dense flops: by how much a recipe may prune more than the budget asks for


class UnfitRecipe(InvalidInput):
    """A recipe for another network, or one that goes against the other settings."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Published widths. Convolutions are numbered from 1 in the order in which they run, those of 1 x 1 left out.

    kept: for each numbered convolution that is pruned its full width, and the filters that stay.
    """

    network: str
    convolutions: int
    kept: Mapping[int, tuple[int, int]]


def _vgg16(shares: Mapping[int, float]) -> Recipe:
    widths = [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    kept = {number: (widths[number - 1], int(widths[number - 1] * (1 - share))) for number, share in shares.items()}
    return Recipe(network="VGG-16", convolutions=13, kept=kept)


def _resnet(
    network: str, widths: Sequence[int], blocks: Sequence[int], *, shares: Sequence[float], whole: Iterable[int]
) -> Recipe:
    """The first convolution of each basic block, whose numbers are even, by one share for each stage."""
    stages = np.repeat(np.arange(len(widths)), blocks).tolist()
    kept = {
        number: (widths[stage], int(widths[stage] * (1 - shares[stage])))
        for number, stage in zip(range(2, 2 * len(stages) + 1, 2), stages, strict=True)
        if shares[stage] and number not in whole
    }
    return Recipe(network=network, convolutions=2 * len(stages) + 1, kept=kept)


_CIFAR, _IMAGENET = (16, 32, 64), (64, 128, 256, 512)
_WHOLE34 = (2, 8, 14, 16, 26, 28, 30, 32)

RECIPES: dict[str, Recipe] = {
    "vgg16-a": _vgg16({1: 0.5, **dict.fromkeys(range(8, 14), 0.5)}),
    "resnet56-a": _resnet("ResNet-56", _CIFAR, (9, 9, 9), shares=(0.1, 0.1, 0.1), whole=(16, 20, 38, 54)),
    "resnet56-b": _resnet("ResNet-56", _CIFAR, (9, 9, 9), shares=(0.6, 0.3, 0.1), whole=(16, 18, 20, 34, 38, 54)),
    "resnet110-a": _resnet("ResNet-110", _CIFAR, (18, 18, 18), shares=(0.5, 0.0, 0.0), whole=(36,)),
    "resnet110-b": _resnet("ResNet-110", _CIFAR, (18, 18, 18), shares=(0.5, 0.4, 0.3), whole=(36, 38, 74)),
    "resnet34-a": _resnet("ResNet-34", _IMAGENET, (3, 4, 6, 3), shares=(0.3, 0.3, 0.3, 0.0), whole=_WHOLE34),
    "resnet34-b": _resnet("ResNet-34", _IMAGENET, (3, 4, 6, 3), shares=(0.5, 0.6, 0.4, 0.0), whole=_WHOLE34),
}


def published_widths(coupling: Coupling, name: str) -> dict[str, int]:
    """How many channels each pruned group keeps by a recipe. Any network of these convolutions has it, however named.

    Raises UnfitRecipe for a name that there is not, and for a network that is not the recipe's.
    """
    recipe = RECIPES.get(name)
    if recipe is None:
        raise UnfitRecipe(f"recipe is {name!r}; it must be one of {', '.join(RECIPES)}")
    weights = list(_convolutions(coupling))
    if len(weights) != recipe.convolutions:
        raise UnfitRecipe(
            f"recipe {name} is for {recipe.network}, of {recipe.convolutions} convolutions larger than 1 x 1; "
            f"this network has {len(weights)}"
        )
    found = {}
    for number, (full, kept) in recipe.kept.items():
        found[_group_of(coupling, weights[number - 1], name, number, full).name] = kept
    return found


def published_plan(coupling: Coupling, name: str, score: Floats) -> Plan:
    """A recipe's widths, with the channels of highest score in each group. Raises as published_widths does."""
    return widths_plan(coupling, published_widths(coupling, name), score)


def check_recipe(coupling: Coupling, name: str, budget: Budget, prunable: frozenset[str]) -> dict[str, int]:
    """A recipe's widths, if no other setting says something else: flops, group_cap, round_to.

    Raises BudgetUnreachable where the recipe leaves more flops than the budget, and UnfitRecipe where it leaves far
    fewer, or loses more of a group than may leave, or keeps no multiple of round_to.
    """
    widths = published_widths(coupling, name)
    for group_name, width in widths.items():
        _check_width(coupling.by_name[group_name], name, width, budget, group_name in prunable)
    table = CostTable(coupling)
    whole, left = table.flops(), table.flops(widths_plan(coupling, widths, np.zeros(coupling.channels)).mask(coupling))
    share = 1 - left / whole
    said = (
        f"recipe {name} leaves {left:,} of {whole:,} flops; the budget, by pruning_ratio, is {budget.flops:,}: "
        f"set pruning_ratio between {max(share - SLACK, 0):.4f} and {share:.4f}"
    )
    if left > budget.flops:
        raise BudgetUnreachable(said)
    if budget.flops - left > SLACK * whole + 1:
        raise UnfitRecipe(said)
    return widths


def _convolutions(coupling: Coupling) -> Iterator[str]:
    """The weights of the convolutions with kernels larger than 1 x 1, in the order in which they run."""
    for call in coupling.calls:
        shape = coupling.shapes.get(call.weight, ())
        if len(shape) == 4 and shape[2:] != (1, 1):
            yield call.weight


def _group_of(coupling: Coupling, weight: str, name: str, number: int, full: int) -> Group:
    """The group that the filters of a recipe's convolution make."""
    there = coupling.shapes[weight][0]
    if there != full:
        raise UnfitRecipe(
            f"recipe {name}: convolution {number} is to have {full} filters, and has {there}; a recipe is for the "
            "whole network, in one iteration"
        )
    alone = (group for group in coupling.groups if group.made == ((weight, 0),) and group.size == full)
    group = next(alone, None)
    if group is None:
        raise UnfitRecipe(f"recipe {name}: the filters of convolution {number}, {weight}, cannot leave by themselves")
    return group


def _check_width(group: Group, name: str, width: int, budget: Budget, may: bool) -> None:
    if not may:
        raise UnfitRecipe(f"recipe {name}: {group.name} may lose no channels")
    if group.size - width > int(group.size * budget.group_cap + 1e-9):
        share = 1 - width / group.size
        raise UnfitRecipe(
            f"recipe {name} takes {group.size - width} of {group.size} channels of {group.name}; group_cap is "
            f"{budget.group_cap:g}, and must be at least {share:g}"
        )
    if width % budget.round_to:
        raise UnfitRecipe(f"recipe {name} keeps {width} channels of {group.name}, no multiple of round_to")
