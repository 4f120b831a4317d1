"""OICSR: group lasso over out-in-channels, energies from both layers; and the paper's own one-sided baseline.

Source: Li et al., OICSR: Out-In-Channel Sparsity Regularization for Compact Deep Neural Networks, CVPR 2019,
arXiv:1905.11664. What the paper leaves open is a switch below; the defaults are our choice, except that residual
streams stay whole, as in the authors' pruned ResNet-50.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from orchestrator.methods.channel_sums import ChannelSums
from orchestrator.methods.method import Floats, Method, Options, Penalty, Subject, by_score


class GroupLassoOptions(Options):
    """size_normalization: the penalty of a group of p weights is multiplied by sqrt(p), its energy divided by p.

    So the classic group lasso has it (Yuan & Lin 2006); wide layers' channels are then not kept for being wide.
    """

    size_normalization: bool = False


class OicsrOptions(GroupLassoOptions):
    """norm_parameters: norms' scales and shifts and layers' biases belong to the channel."""

    norm_parameters: bool = False


def energy(subject: Subject, *, made_only: bool = False) -> Floats:
    """How much each channel carries: the sum of squares of its weights, in and out of its layers together.

    Returns [channels] float64. A channel of energy 0 in an exact group can be cut without changing the output.
    made_only: out-channels alone; a norm's shift can then make a channel of energy 0 matter.
    """
    sums = _sums(subject, made_only=made_only)
    squares = sums.squares()
    if subject.options.size_normalization:
        squares = squares / sums.weights_of.clamp(min=1)
    result: Floats = squares.double().cpu().numpy()
    return result


def penalty_value(subject: Subject, regularization_weight: float) -> float:
    """regularization_weight x the sum over channels of the norm of all their weights, as the paper writes it."""
    sums = _sums(subject)
    return float((_strength(subject, sums, regularization_weight) * sums.squares().sqrt()).sum())


@contextmanager
def group_lasso(subject: Subject, regularization_weight: float) -> Iterator[Penalty]:
    """Group lasso over out-in-channels: after backward, gradient += weight x strength / norm of its channel.

    The analytic gradient of `penalty_value`, in two passes over the weights; a channel of norm 0 gets the
    subgradient 0.
    """
    sums = _sums(subject, only=subject.prunable())
    strength = _strength(subject, sums, regularization_weight)

    def after_backward() -> None:
        norms = sums.squares().sqrt_()
        sums.add_scaled_(torch.where(norms > 0, strength / norms, 0.0))

    yield Penalty(after_backward=after_backward)


@contextmanager
def separated_group_lasso(subject: Subject, regularization_weight: float) -> Iterator[Penalty]:
    """Group lasso over out-channels alone: every row of every layer that makes prunable channels is its own group.

    Those of a transposed convolution lie along its second dimension, where its conv_groups share them.
    """
    rows = _separate_rows(subject)

    def after_backward() -> None:
        with torch.no_grad():
            for weight, dim, wanted in rows:
                norms = torch.linalg.vector_norm(weight, dim=[d for d in range(weight.ndim) if d != dim], keepdim=True)
                size = (weight.numel() / weight.shape[dim]) ** 0.5 if subject.options.size_normalization else 1.0
                scale = torch.where(norms > 0, regularization_weight * size * wanted.view_as(norms) / norms, 0.0)
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                weight.grad.addcmul_(weight, scale)

    yield Penalty(after_backward=after_backward)


def _separate_rows(subject: Subject) -> list[tuple[Tensor, int, Tensor]]:
    """(weight, dimension of its out-channels, [n] 1 where the channel may leave) of every layer that makes channels."""
    trained = {name: parameter for name, parameter in subject.model.named_parameters() if parameter.requires_grad}
    allowed = np.append(_allowed(subject), 0.0)
    makers = dict.fromkeys(key for group in subject.coupling.groups for key in group.made if key[0] in trained)
    found: list[tuple[Tensor, int, Tensor]] = []
    for name, dim in makers:
        weight = trained[name]
        wanted = torch.from_numpy(allowed[subject.coupling.dims[name, dim]])
        found.append((weight, dim, wanted.to(weight.device, weight.dtype)))
    return found


def _sums(subject: Subject, *, made_only: bool = False, only: frozenset[str] | None = None) -> ChannelSums:
    norms = not made_only and subject.options.norm_parameters
    return ChannelSums(subject.model, subject.coupling, made_only=made_only, norm_parameters=norms, only=only)


def _strength(subject: Subject, sums: ChannelSums, regularization_weight: float) -> Tensor:
    """[channels] what multiplies each channel's norm: 0 for those that may not leave."""
    allowed = torch.from_numpy(_allowed(subject)).to(sums.weights_of)
    size = sums.weights_of.sqrt() if subject.options.size_normalization else 1.0
    return regularization_weight * allowed * size


def _allowed(subject: Subject) -> Floats:
    """[channels] 1 where the options allow a channel to leave, else 0."""
    names = subject.prunable()
    return np.concatenate([np.zeros(0), *(np.full(g.size, float(g.name in names)) for g in subject.coupling.groups)])


def _energy_of_rows(subject: Subject) -> Floats:
    return energy(subject, made_only=True)


OICSR = Method(
    name="oicsr",
    source="Li et al. 2019, OICSR, arXiv:1905.11664",
    version=1,
    options=OicsrOptions,
    penalty=group_lasso,
    choose=by_score(energy),
)

SEPARATED = Method(
    name="separated_group_lasso",
    source="the baseline of Li et al. 2019: group lasso and statistics over separate out-channels",
    version=1,
    options=GroupLassoOptions,
    penalty=separated_group_lasso,
    choose=by_score(_energy_of_rows),
)
