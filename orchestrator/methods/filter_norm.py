"""PFEC: filters of small L1 norm leave.

Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710. The paper ranks inside a layer
and sets each layer's share by hand; here all layers are ranked together, up to a flops budget.
"""

from typing import Literal

import numpy as np

from orchestrator.methods.channel_sums import ChannelSums
from orchestrator.methods.method import Floats, Method, Options, Subject, by_score


class FilterNormOptions(Options):
    """scale: what a channel's norm is divided by before all are ranked together: nothing, or its group's mean."""

    scale: Literal["none", "group_mean"] = "none"


def filter_norm(subject: Subject) -> Floats:
    """[channels] the sum of absolute weights of the filters that make each channel."""
    sums = ChannelSums(subject.model, subject.coupling, made_only=True)
    norms: Floats = sums.magnitudes().double().cpu().numpy()
    if subject.options.scale == "group_mean":
        for group in subject.coupling.groups:
            norms[group.channels] /= max(norms[group.channels].mean(), np.finfo(np.float64).tiny)
    return norms


FILTER_NORM = Method(
    name="filter_norm",
    source="Li et al. 2017, PFEC, arXiv:1608.08710",
    version=1,
    options=FilterNormOptions,
    choose=by_score(filter_norm),
)
