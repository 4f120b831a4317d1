"""In which order a group's channels are worth keeping when the others make up for them; and that of all groups.

Source: Xie et al. 2021, arXiv:2108.13728, for one layer: forward selection by the variance explained. Ours: a group
that several layers read is ranked by the sum over them, each relative to its outputs' variance; and groups are compared
by what a channel explains for each multiply-accumulate that it costs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from orchestrator.methods.compensation_readings import Reading
from orchestrator.methods.layers import Ints
from orchestrator.methods.method import Floats
from orchestrator.network import CostTable, Coupling
from orchestrator.network.coupling import Group


def ranked(group: Group, readings: Sequence[Reading]) -> tuple[Ints, Floats]:
    """The group's channels, best first, and what each adds when it is taken: [size] positions, [size] gains.

    A gain is explained variance relative to all of a layer's outputs, summed over the layers that read the group; of
    equal ones the lowest number comes first.
    """
    inputs = [(reading, reading.inputs_of(group)) for reading in readings]
    problems = [(reading.selection(at), at, reading.power) for reading, at in inputs if at is not None]
    problems = [(selection, torch.arange(at.numel()).view_as(at), power) for selection, at, power in problems]
    left = torch.ones(group.size, dtype=torch.bool)
    order, gains = np.zeros(group.size, np.int64), np.zeros(group.size)
    for rank in range(group.size):
        gain = torch.zeros(group.size, dtype=torch.float64)
        gain[~left] = -torch.inf
        candidates = left.nonzero().squeeze(1)
        for selection, blocks, power in problems:
            if power > 0:
                gain[candidates] += selection.gains(blocks[candidates]) / power
        best = int(gain.argmax())
        order[rank], gains[rank], left[best] = best, gain[best], False
        for selection, blocks, _ in problems:
            selection.take_(blocks[best])
    return order, gains


def places(coupling: Coupling, names: frozenset[str], readings: Sequence[Reading]) -> Floats:
    """[channels] each channel's place among all, 0 for the first to leave: what `greedy` and `widths_plan` ask for.

    A channel's worth is its gain, evened out so that it never rises along its group's order (a pair that explains only
    together shares what it explains), over the flops that it costs while the others are there. Channels of groups that
    are not named come last.
    """
    worth, rank = np.full(coupling.channels, np.inf), np.zeros(coupling.channels, np.int64)
    for group, flops in channel_flops(coupling).items():
        if group in names:
            own = coupling.by_name[group]
            order, gains = ranked(own, readings)
            worth[own.start + order] = isotonic_regression(gains, increasing=False).x / max(flops, 1)
            rank[own.start + order] = np.arange(own.size)
    found = np.zeros(coupling.channels)
    found[np.lexsort((-rank, worth))] = np.arange(coupling.channels)
    return found


def channel_flops(coupling: Coupling) -> Mapping[str, int]:
    """What a channel of each group costs in a network that has all others."""
    table = CostTable(coupling)
    full, found = table.flops(), {}
    for group in coupling.groups:
        mask = np.ones(coupling.channels, bool)
        mask[group.start] = False
        found[group.name] = full - table.flops(mask)
    return found
