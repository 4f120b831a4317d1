"""Network slimming: scales and gradients by hand, several norms on a channel, groups without a norm."""

from typing import Any

import numpy as np
import pytest
import torch
from small_networks import built, subject_of
from torch import Tensor, nn

from orchestrator.methods import METHODS, Ahead, Budget, Subject
from orchestrator.methods.slimming import channel_scales, scales
from orchestrator.network import CostTable
from orchestrator.record import InvalidInput

SLIMMING = METHODS["slimming"]
WEIGHT = 0.1


def by_penalty(subject: Subject) -> dict[str, Tensor]:
    """What the penalty adds to gradients of 0.25."""
    named = dict(subject.model.named_parameters())
    for parameter in named.values():
        parameter.grad = torch.full_like(parameter, 0.25)
    with SLIMMING.penalty(subject, WEIGHT) as penalty:
        assert penalty.extra_loss is None
        penalty.after_backward()
    return {name: parameter.grad - 0.25 for name, parameter in named.items()}


def by_autograd(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(WEIGHT * value, list(named.values()), materialize_grads=True)
    return dict(zip(named, found, strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def filter_norms(weight: Tensor) -> Tensor:
    return weight.square().sum((1, 2, 3)).sqrt()


def test_the_gradient_is_that_of_the_formula() -> None:
    """The sum of |scale| over norms, as the paper has it; a layer without one: of the L2 norm of its filters."""
    model = built("plain").double()
    value = model.norm.weight.abs().sum() + filter_norms(model.b.weight).sum()
    assert_same(by_penalty(subject_of(model, SLIMMING)), by_autograd(model, value))


def test_signs_of_scales_count_and_zero_gets_none() -> None:
    model = built("plain")
    with torch.no_grad():
        model.norm.weight[:3] = torch.tensor([-2.0, 0.0, 3.0])
        model.b.weight[1] = 0
    found = by_penalty(subject_of(model, SLIMMING))
    torch.testing.assert_close(found["norm.weight"][:3], torch.tensor([-WEIGHT, 0.0, WEIGHT]))
    assert found["b.weight"][1].eq(0).all()
    assert found["norm.bias"].eq(0).all()
    assert found["a.weight"].eq(0).all()


def test_scores_are_the_scales() -> None:
    model = built("plain")
    with torch.no_grad():
        model.norm.weight[2] *= -1
    found = channel_scales(subject_of(model, SLIMMING))
    expected = torch.cat([model.norm.weight.abs(), filter_norms(model.b.weight)])
    np.testing.assert_allclose(found, expected.tolist(), rtol=1e-6)


def test_the_smallest_scales_leave_first() -> None:
    model = built("plain")
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([0.8, 0.1, 0.9, 0.2, 0.7, 0.3, 0.6, 0.5]))
        model.b.weight *= 1000
    subject = subject_of(model, SLIMMING)
    mask = np.ones(20, bool)
    mask[[1, 3, 5]] = False
    plan = SLIMMING.choose(subject, Budget(flops=CostTable(subject.coupling).flops(mask), group_cap=0.5))
    assert plan.kept == {"a": (0, 2, 4, 6, 7)}


class Stream(nn.Module):
    """Pre-activation: two norms scale the stream that the stem and the first block make; one has no scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1)
        self.middle, self.conv2 = nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 4, 1)
        self.norm2, self.head = nn.GroupNorm(1, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(self.middle(self.conv1(self.norm1(x))).relu())
        return self.head(self.norm2(x).mean((2, 3)))


@pytest.mark.parametrize(("several", "expected"), [("mean", 2.0), ("max", 3.0), ("sum", 4.0)])
def test_several_norms_on_a_channel(several: str, expected: float) -> None:
    torch.manual_seed(0)
    model = Stream()
    with torch.no_grad():
        model.norm1.weight.fill_(1.0)
        model.norm2.weight.fill_(-3.0)
    subject = subject_of(model, SLIMMING, several=several, residual_streams=True)
    found = channel_scales(subject)
    np.testing.assert_allclose(found[subject.coupling.by_name["stem"].channels], expected)
    assert len(scales(model, subject.coupling)) == 2
    gradients = by_penalty(subject)
    assert gradients["norm1.weight"].allclose(torch.tensor(WEIGHT))
    assert gradients["norm2.weight"].allclose(torch.tensor(-WEIGHT))


def test_a_stream_that_must_stay_is_not_penalised() -> None:
    torch.manual_seed(0)
    gradients = by_penalty(subject_of(Stream(), SLIMMING))
    changed = {name for name, gradient in gradients.items() if gradient.any()}
    assert changed == {"conv1.weight"}


def test_a_scale_that_is_not_trained_ranks_and_gets_no_gradient() -> None:
    model = built("plain")
    model.norm.weight.requires_grad_(False)
    subject = subject_of(model, SLIMMING)
    np.testing.assert_allclose(channel_scales(subject)[:8], model.norm.weight.tolist())
    with SLIMMING.penalty(subject, WEIGHT) as penalty:
        penalty.after_backward()
    assert model.norm.weight.grad is None
    assert model.b.weight.grad is not None


class Shaped(nn.Module):
    """A layer norm over channels and places, whose scale has three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 8, 8]), nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(x))).mean((2, 3)))


def test_a_scale_of_several_dimensions_counts_by_its_mean() -> None:
    torch.manual_seed(0)
    model = Shaped()
    with torch.no_grad():
        model.norm.weight.normal_()
    subject = subject_of(model, SLIMMING)
    found = channel_scales(subject)[subject.coupling.by_name["a"].channels]
    np.testing.assert_allclose(found, model.norm.weight.abs().mean((1, 2)).tolist(), rtol=1e-6)
    gradients = by_penalty(subject)
    torch.testing.assert_close(gradients["norm.weight"], WEIGHT * model.norm.weight.sign())


def test_a_scale_that_two_norms_share_counts_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(512, 5))
    model[2].weight = model[1].weight
    nn.init.uniform_(model[1].weight, -1, 1)
    subject = subject_of(model.eval(), SLIMMING, several="sum")
    scale = model[1].weight.detach().clone()
    np.testing.assert_allclose(channel_scales(subject), scale.abs().tolist(), rtol=1e-6)
    torch.testing.assert_close(by_penalty(subject)["1.weight"], WEIGHT * scale.sign())


def choose(subject: Subject) -> Any:
    return SLIMMING.choose(subject, Budget(flops=1, group_cap=0.5))


def open_penalty(subject: Subject) -> None:
    with SLIMMING.penalty(subject, WEIGHT):
        pass


def check(subject: Subject) -> None:
    assert SLIMMING.check is not None
    SLIMMING.check(
        Ahead(subject=subject, budget=Budget(flops=1, group_cap=0.5), iterations=1, example=torch.zeros(1, 3, 8, 8))
    )


@pytest.mark.parametrize("act", [choose, open_penalty, check])
def test_groups_without_norms_can_be_refused(act: Any) -> None:
    subject = subject_of(built("plain"), SLIMMING, without_norm="refuse")
    with pytest.raises(InvalidInput, match=r"slimming: no norm scales the 12 channels of b; with .*\"filter_norm\""):
        act(subject)


def test_a_group_without_a_norm_that_stays_anyway_is_not_refused() -> None:
    """The stream of the residual network has none; it stays whole unless asked for. Its blocks have norms."""
    model = built("residual")
    check(subject_of(model, SLIMMING, without_norm="refuse"))
    with pytest.raises(InvalidInput, match="no norm scales the 8 channels of stem"):
        check(subject_of(model, SLIMMING, without_norm="refuse", residual_streams=True))
