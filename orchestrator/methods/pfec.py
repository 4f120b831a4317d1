"""PFEC layer by layer: in each layer the filters of small L1 norm leave, as many as its width says.

Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710. `filter_norm` is the same norm
with all layers ranked together. The paper finds the shares of the layers by looking at their sensitivity
(`orchestrator sensitivity`) and sets them by hand: those it published are recipes here. Without a recipe every layer
loses the same share, as little as the budget allows: our choice. In a residual stream, which stays whole unless asked
for, the norms of all layers that make a channel are added; the paper goes by the projection of the shortcut alone.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from orchestrator.methods.gradients import by_channel, makers
from orchestrator.methods.method import Ahead, Budget, Floats, Method, Options, Subject
from orchestrator.methods.pfec_recipes import UnfitRecipe, check_recipe
from orchestrator.methods.widths import uniform_widths, widths_plan
from orchestrator.network import Coupling, Group, Plan
from orchestrator.network.coupling import Bools


class PfecOptions(Options):
    """scoring: which kernels count in a filter's norm. "independent": all; "greedy": layers are pruned front to back,
    and kernels that read channels already pruned do not count. Both are the paper's.

    recipe: published widths, for one iteration; "" gives every layer the same share. pruning_ratio must be the
    recipe's own, to 0.01 below, and group_cap at least its largest share: nothing that is set is passed over.
    """

    scoring: Literal["independent", "greedy"] = "independent"
    recipe: Literal[
        "", "vgg16-a", "resnet56-a", "resnet56-b", "resnet110-a", "resnet110-b", "resnet34-a", "resnet34-b"
    ] = ""


def layer_norms(subject: Subject, widths: Mapping[str, int]) -> Floats:
    """[channels] the L1 norm of the filters that make each channel, by the scoring of the options.

    widths: how many channels each group keeps, which tells greedy scoring what was pruned in earlier layers.
    """
    weights = _weights(subject)
    coupling = subject.coupling
    if subject.options.scoring == "independent":
        result: Floats = by_channel(coupling, makers(coupling), weights).numpy()
        return result
    scores, stays = np.zeros(coupling.channels), np.ones(coupling.channels, bool)
    for group in coupling.groups:  # in the order in which they are first made
        counted = {name: _counted(coupling, name, dim, weights[name], stays) for name, dim in group.made}
        norms = by_channel(coupling, group.made, counted).numpy()[group.channels]
        scores[group.channels] = norms
        stays[group.channels] = _stay(group, norms, widths.get(group.name, group.size))
    return scores


def _weights(subject: Subject) -> dict[str, Tensor]:
    """|weight| of every layer that makes channels."""
    names = dict.fromkeys(name for name, _ in makers(subject.coupling))
    return {name: subject.model.get_parameter(name).detach().abs() for name in names}


def _counted(coupling: Coupling, name: str, made: int, weight: Tensor, stays: Bools) -> Tensor:
    """The weights without those that read a channel which was pruned."""
    for dim in range(weight.ndim):
        channels = coupling.dims.get((name, dim))
        if dim != made and channels is not None:
            counts = torch.from_numpy(np.append(stays, True)[channels]).to(weight)
            weight = weight * counts.view([-1 if other == dim else 1 for other in range(weight.ndim)])
    return weight


def _stay(group: Group, norms: Floats, width: int) -> Bools:
    """[size] True for the channels of largest norm; ties leave in channel order."""
    stay = np.ones(group.size, bool)
    stay[np.argsort(norms, kind="stable")[: group.size - width]] = False
    return stay


def choose(subject: Subject, budget: Budget) -> Plan:
    """The recipe's widths, or one share for all layers; in each layer the filters of largest norm stay."""
    widths = _widths(subject, budget)
    return widths_plan(subject.coupling, widths, layer_norms(subject, widths))


def _widths(subject: Subject, budget: Budget) -> dict[str, int]:
    recipe = subject.options.recipe
    if recipe:
        return check_recipe(subject.coupling, recipe, budget, subject.prunable())
    return uniform_widths(subject.coupling, budget, subject.prunable())


def check(ahead: Ahead) -> None:
    """Raises InvalidInput where a recipe is for another network, or goes against the other settings."""
    subject, recipe = ahead.subject, ahead.subject.options.recipe
    if recipe:
        check_recipe(subject.coupling, recipe, ahead.budget, subject.prunable())
        if ahead.iterations > 1:
            raise UnfitRecipe(f"recipe {recipe} is for one cut; iterations is {ahead.iterations} and must be 1")


PFEC = Method(
    name="pfec",
    source="Li et al. 2017, PFEC, arXiv:1608.08710, layer by layer",
    version=1,
    options=PfecOptions,
    choose=choose,
    check=check,
)
