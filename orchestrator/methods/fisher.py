"""Fisher pruning: how much the loss would change without a channel, to second order, by the Fisher information.

Source: Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018, arXiv:1801.05787: the change
is 1 / (2N) x the sum over pictures of the squared gradient of each one's loss for the channel's gate. Coupled channels
share a gate, so their gradients are added before they are squared, as in Liu et al., Group Fisher Pruning, ICML 2021,
arXiv:2108.00708. Both papers remove one channel at a time and estimate on; here all are ranked at once.
"""

import numpy as np

from orchestrator.methods.gradients import check_gates, gate_gradients
from orchestrator.methods.method import Floats, Method, Options, Subject, by_score
from orchestrator.network import CostTable, Coupling


class FisherOptions(Options):
    """per_flops: the change of the loss for each multiply-accumulate that a channel saves, as long as no other is gone.

    Theis et al. weigh the change against the cost, Group Fisher divides it by the memory that is saved.
    """

    per_flops: bool = False


def fisher(subject: Subject) -> Floats:
    """[channels] 1 / (2N) x the sum over N pictures of the squared derivative of a picture's loss for each gate."""
    total, count = np.zeros(subject.coupling.channels), 0
    for gates in gate_gradients(subject):
        total += gates.square().sum(0).numpy()
        count += len(gates)
    result: Floats = total / (2 * count)
    return result / saved_flops(subject.coupling) if subject.options.per_flops else result


def saved_flops(coupling: Coupling) -> Floats:
    """[channels] by how much the flops fall when this channel leaves alone."""
    table = CostTable(coupling)
    whole, saved = table.flops(), np.ones(coupling.channels)
    for group in coupling.groups:
        kept = np.ones(coupling.channels, bool)
        kept[group.start] = False
        saved[group.channels] = max(whole - table.flops(kept), 1)
    return saved


FISHER = Method(
    name="fisher",
    source="Theis et al. 2018, Fisher pruning, arXiv:1801.05787; Liu et al. 2021, Group Fisher, arXiv:2108.00708",
    version=1,
    options=FisherOptions,
    choose=by_score(fisher),
    check=check_gates,
)
