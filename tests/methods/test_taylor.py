"""Taylor and Fisher importance against gates that are written into the networks, and against autograd by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import NETWORKS, built, subject_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from orchestrator.methods import METHODS, Subject
from orchestrator.methods.fisher import fisher, saved_flops
from orchestrator.methods.gradients import by_channel, gate_gradients, products, readers
from orchestrator.methods.random_scores import random_scores
from orchestrator.methods.taylor import taylor
from orchestrator.network import CostTable, UnsupportedModel
from orchestrator.record import InvalidInput

TAYLOR, FISHER, RANDOM = (METHODS[name] for name in ("taylor", "fisher", "random"))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Two of six pictures each."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        pictures = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
        yield pictures, torch.randint(0, 5, (6,), generator=generator)


def subject(network: str | nn.Module, method: Any, **options: Any) -> Subject:
    model = built(network) if isinstance(network, str) else network
    return replace(subject_of(model.double(), method, **options), calibration=batches)


@contextmanager
def gated(model: nn.Module) -> Iterator[Tensor]:
    """The plain network with a gate of 1 on each channel that a and b make, where it is read."""
    gates = torch.ones(20, dtype=torch.float64, requires_grad=True)
    hooks = [
        model.b.register_forward_pre_hook(lambda module, x: (x[0] * gates[:8].view(1, 8, 1, 1),)),
        model.head.register_forward_pre_hook(lambda module, x: (x[0] * gates[8:],)),
    ]
    yield gates
    for hook in hooks:
        hook.remove()


def by_gates(model: nn.Module, pictures: Tensor, labels: Tensor) -> Tensor:
    """[pictures, channels] the derivative of each picture's loss, one picture after the other."""
    model.eval()
    with gated(model) as gates:
        losses = (F.cross_entropy(model(x[None]), y[None]) for x, y in zip(pictures, labels, strict=True))
        return torch.stack([torch.autograd.grad(loss, gates)[0] for loss in losses])


def test_gates_by_hand() -> None:
    asked = subject("plain", FISHER)
    expected = [by_gates(asked.model, *batch) for batch in batches()]
    for found, wanted in zip(gate_gradients(asked), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_fisher_by_hand() -> None:
    """Theis et al.: 1 / (2N) x the sum over pictures of the squared derivative."""
    asked = subject("plain", FISHER)
    each = torch.cat([by_gates(asked.model, *batch) for batch in batches()])
    np.testing.assert_allclose(fisher(asked), (each.square().sum(0) / (2 * 12)).tolist(), rtol=1e-9)


def test_taylor_of_gates_by_hand() -> None:
    """The authors square the derivative of a batch's mean loss, and average over batches."""
    asked = subject("plain", TAYLOR, importance="gate")
    each = torch.stack([by_gates(asked.model, *batch).mean(0).square() for batch in batches()])
    np.testing.assert_allclose(taylor(asked), each.mean(0).tolist(), rtol=1e-9)


def test_taylor_of_weights_by_hand() -> None:
    asked = subject("plain", TAYLOR)
    model = asked.model.eval()
    expected = torch.zeros(20, dtype=torch.float64)
    for pictures, labels in batches():
        loss = F.cross_entropy(model(pictures), labels)
        weights = model.a.weight, model.b.weight
        gradients = torch.autograd.grad(loss, weights)
        each = [(w * g).square().sum((1, 2, 3)) for w, g in zip(weights, gradients, strict=True)]
        expected += torch.cat(each).detach() / 2
    np.testing.assert_allclose(taylor(asked), expected.tolist(), rtol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_readers_read_tells_what_their_weights_tell(network: str) -> None:
    """Two ways to one derivative, in streams, dense, grouped and transposed layers too: a gate before a reader changes
    the loss as its weights do when all of them grow."""
    asked = subject(network, FISHER)
    keys = readers(asked.coupling)
    by_weights = [by_channel(asked.coupling, keys, each) for each in products(asked, {name for name, _ in keys})]
    for found, expected in zip(gate_gradients(asked), by_weights, strict=True):
        torch.testing.assert_close(found.mean(0), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("network", ["plain", "grouped", "dense", "flattened"])
def test_a_channel_that_nobody_reads_does_not_matter(network: str) -> None:
    asked = subject(network, FISHER)
    channel = asked.coupling.groups[0].start + 1
    with torch.no_grad():
        for name, dim in readers(asked.coupling):
            places = np.flatnonzero(asked.coupling.dims[name, dim] == channel)
            asked.model.get_parameter(name).index_fill_(dim, torch.from_numpy(places), 0)
    assert fisher(asked)[channel] == 0
    assert (np.delete(fisher(asked)[asked.coupling.groups[0].channels], 1) > 0).all()


def test_flops_that_a_channel_saves() -> None:
    """One of a: its 3 x 3 kernels over 3 channels, and those by which 12 filters read it, at 64 places."""
    asked = subject("plain", FISHER, per_flops=True)
    saved = saved_flops(asked.coupling)
    assert set(saved[:8]) == {64 * 9 * (3 + 12)}
    assert set(saved[8:]) == {64 * 9 * 8 + 5}
    np.testing.assert_allclose(fisher(asked), fisher(subject("plain", FISHER)) / saved)
    assert CostTable(asked.coupling).flops() == 64 * 9 * (3 * 8 + 8 * 12) + 60


@pytest.mark.parametrize("score", [taylor, fisher])
def test_nothing_is_left_on_the_model(score: Callable[[Subject], Any]) -> None:
    method = TAYLOR if score is taylor else FISHER
    asked = subject("depthwise_gated", method)
    asked.model.train()
    asked.model.widen.weight.requires_grad_(False)  # scored all the same
    before = {name: tensor.clone() for name, tensor in asked.model.state_dict().items()}
    found = score(asked)
    assert np.isfinite(found).all()
    assert asked.model.training
    assert all(parameter.grad is None for parameter in asked.model.parameters())
    assert not asked.model.widen.weight.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in asked.model.state_dict().items())
    np.testing.assert_array_equal(score(asked), found)


class Windows(nn.Module):
    """The second layer reads each picture in four pieces."""

    def __init__(self, fold: bool) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Linear(6, 5)
        self.fold = fold

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()  # [N, 4, 8, 8]
        n = len(x)
        if self.fold:  # the batch in one picture, which no longer tells whose is what
            x = x.permute(1, 0, 2, 3).reshape(1, x.shape[1], n * 8, 8)
            return self.head(self.b(x).relu().reshape(-1, n, 64).mean(2).t())
        x = x.reshape(n, -1, 4, 16).permute(0, 2, 1, 3).reshape(4 * n, -1, 4, 4)  # [N * 4, 4, 4, 4]
        return self.head(self.b(x).relu().mean((2, 3)).reshape(n, 4, -1).mean(1))


def test_pieces_of_a_picture_are_added() -> None:
    torch.manual_seed(0)
    asked = subject(Windows(fold=False), FISHER)
    keys = readers(asked.coupling)
    for found, each in zip(gate_gradients(asked), products(asked, {name for name, _ in keys}), strict=True):
        assert len(found) == 6
        torch.testing.assert_close(found.mean(0), by_channel(asked.coupling, keys, each))


def test_pictures_that_cannot_be_told_apart_are_refused() -> None:
    torch.manual_seed(0)
    asked = subject(Windows(fold=True), FISHER)
    assert readers(asked.coupling)
    with pytest.raises(UnsupportedModel, match=r"b\.weight: reads 1 pieces of 6 pictures, which cannot be told apart"):
        fisher(asked)


def test_a_weight_that_is_computed_is_named() -> None:
    model = built("plain")
    parametrizations.weight_norm(model.b)
    asked = subject(model, FISHER)
    with pytest.raises(UnsupportedModel, match=r"b\.param.*: what this layer reads cannot be seen: its weight is comp"):
        fisher(asked)
    assert np.isfinite(taylor(subject(model, TAYLOR))).all()


def test_without_calibration_data_there_is_nothing_to_say() -> None:
    asked = replace(subject("plain", TAYLOR), calibration=lambda: iter(()))
    with pytest.raises(InvalidInput, match="the method looks at calibration data, and there is none"):
        taylor(asked)


def test_random_scores_are_those_of_the_seed() -> None:
    asked = subject("plain", RANDOM)
    first, again, other = (random_scores(replace(asked, seed=seed)) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(set(first)) == asked.coupling.channels
