"""Uniform widths: every group loses the same share of its channels. The reference that other methods have to beat.

Source: the uniform baseline of the pruning papers, such as He et al. 2018, AMC, arXiv:1802.03494. Inside a group the
filters of largest L1 norm stay, as in PFEC (Li et al. 2017, arXiv:1608.08710); the flops budget is met as closely as by
greedy, so that the last channel's worth of it is not left to rounding.
"""

from orchestrator.methods.channel_sums import ChannelSums
from orchestrator.methods.method import Budget, Floats, Method, Subject
from orchestrator.methods.widths import uniform_widths, widths_plan
from orchestrator.network import Plan


def choose(subject: Subject, budget: Budget) -> Plan:
    """The same share of every group, and of each the filters of largest L1 norm. Raises BudgetUnreachable."""
    norms: Floats = ChannelSums(subject.model, subject.coupling, made_only=True).magnitudes().double().cpu().numpy()
    return widths_plan(subject.coupling, uniform_widths(subject.coupling, budget, subject.prunable()), norms)


UNIFORM = Method(
    name="uniform",
    source="the uniform baseline of the pruning papers, such as He et al. 2018, AMC, arXiv:1802.03494",
    version=1,
    choose=choose,
)
