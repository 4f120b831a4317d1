"""Taylor importance: how much the loss would change without a channel, to first order, on calibration data.

Source: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv:1906.10771; what the paper
calls which was checked against the authors' code. They accumulate the importance while the network is fine-tuned and
remove a few neurons every so many steps; here it is measured at once, on the network as it is evaluated.
"""

from typing import Literal

import torch

from orchestrator.methods.gradients import by_channel, check_gates, gate_gradients, makers, products
from orchestrator.methods.method import Ahead, Floats, Method, Options, Subject, by_score


class TaylorOptions(Options):
    """importance: what is taken away. A mean over batches of the square of the first-order change of their mean loss.

    "weights" (the paper's "Taylor FO" on convolutions): each weight of the filters that make the channel by itself, the
    squares of weight x gradient summed. "gate" (its "Taylor FO", gates after batch norm): all of the channel together,
    the square of the sum. That with each picture's own gradient in place of a batch's ("full gradient") is `fisher`.
    """

    importance: Literal["weights", "gate"] = "weights"


def taylor(subject: Subject) -> Floats:
    """[channels] the first-order estimate of the squared change of the loss without each channel."""
    coupling = subject.coupling
    if subject.options.importance == "gate":
        per_batch = [gates.mean(0).square() for gates in gate_gradients(subject)]
    else:
        keys = makers(coupling)
        names = dict.fromkeys(name for name, _ in keys)
        changes = ({name: change.square() for name, change in each.items()} for each in products(subject, names))
        per_batch = [by_channel(coupling, keys, each) for each in changes]
    result: Floats = torch.stack(per_batch).mean(0).numpy()
    return result


def check(ahead: Ahead) -> None:
    """Raises UnsupportedModel where gates are wanted, and a layer's reading cannot be seen."""
    if ahead.subject.options.importance == "gate":
        check_gates(ahead)


TAYLOR = Method(
    name="taylor",
    source="Molchanov et al. 2019, importance estimation, arXiv:1906.10771",
    version=1,
    options=TaylorOptions,
    choose=by_score(taylor),
    check=check,
)
