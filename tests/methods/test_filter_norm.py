"""PFEC's norms by hand, and its choice inside one layer."""

import numpy as np
import torch
from small_networks import EXAMPLE, built, subject_of

from orchestrator.methods import METHODS, Budget
from orchestrator.methods.filter_norm import filter_norm
from orchestrator.network import CostTable, couple, cut

FILTER_NORM = METHODS["filter_norm"]


def test_norms_are_sums_of_absolute_weights() -> None:
    model = built("plain")
    with torch.no_grad():
        model.a.weight[0] = -2.0  # 3 x 3 x 3 of them
    found = filter_norm(subject_of(model, FILTER_NORM))
    assert found[0] == 54.0
    expected = torch.cat([model.a.weight.abs().sum((1, 2, 3)), model.b.weight.abs().sum((1, 2, 3))])
    np.testing.assert_allclose(found, expected.tolist(), rtol=1e-6)


def test_every_layer_that_makes_a_channel_counts() -> None:
    """A stream's channel is made by the stem, by each block's last layer and by the layer after them."""
    model = built("residual")
    subject = subject_of(model, FILTER_NORM)
    stream = next(group for group in subject.coupling.groups if group.summed)
    makers = [model.stem, *model.back, model.again]
    expected = sum(layer.weight.abs().sum((1, 2, 3)) for layer in makers)
    np.testing.assert_allclose(filter_norm(subject)[stream.channels], expected.tolist(), rtol=1e-6)


def test_group_mean_makes_layers_comparable() -> None:
    model = built("plain")
    with torch.no_grad():
        model.b.weight *= 1000
    subject = subject_of(model, FILTER_NORM, scale="group_mean")
    found = filter_norm(subject)
    for group in subject.coupling.groups:
        assert np.isclose(found[group.channels].mean(), 1.0)
    plain = filter_norm(subject_of(model, FILTER_NORM))
    first = subject.coupling.groups[0].channels
    np.testing.assert_allclose(found[first], plain[first] / plain[first].mean())


def test_group_mean_of_an_empty_layer_is_no_division_by_zero() -> None:
    model = built("plain")
    with torch.no_grad():
        model.a.weight.zero_()
    assert filter_norm(subject_of(model, FILTER_NORM, scale="group_mean"))[:8].tolist() == [0.0] * 8


def test_one_layer_is_pruned_as_the_paper_does() -> None:
    """Sort a layer's filters by their norms, drop the m smallest with the kernels that read them, keep the rest."""
    model = built("plain")
    coupling = couple(model, EXAMPLE).without(["b"], "this layer alone")
    subject = subject_of(model, FILTER_NORM, coupling)
    norms = model.a.weight.abs().sum((1, 2, 3))
    for dropped in (1, 3, 5):
        expected = norms.argsort(descending=True)[: 8 - dropped].sort().values
        mask = np.ones(8, bool)
        mask[:dropped] = False
        budget = Budget(flops=CostTable(coupling).flops(mask), group_cap=0.9)
        plan = FILTER_NORM.choose(subject, budget)
        assert plan.kept == {"a": tuple(expected.tolist())}
        small = cut(model, coupling, plan)
        assert torch.equal(small.a.weight, model.a.weight[expected])
        assert torch.equal(small.b.weight, model.b.weight[:, expected])
        assert torch.equal(small.norm.running_mean, model.norm.running_mean[expected])
