"""OICSR is what its formulas say: gradients against autograd of the slow sum, energies against plain loops."""

import numpy as np
import pytest
import torch
from small_networks import EXAMPLE, NETWORKS, built, conv, subject_of
from torch import Tensor, nn

from orchestrator.methods import METHODS, Budget, Method, Subject, channel_sums
from orchestrator.methods.channel_sums import ChannelSums
from orchestrator.methods.oicsr import energy, penalty_value
from orchestrator.network import CostTable, Plan, UnsupportedModel, couple, cut

WEIGHT = 0.03
OICSR, SEPARATED = METHODS["oicsr"], METHODS["separated_group_lasso"]
OPTIONS = (
    {},
    {"residual_streams": True},
    {"norm_parameters": True},
    {"size_normalization": True},
    {"norm_parameters": True, "size_normalization": True, "residual_streams": True},
)

every_network = pytest.mark.parametrize("network", NETWORKS)


def parts_of(subject: Subject, channel: int, *, made_only: bool = False) -> list[Tensor]:
    """Every row that makes a channel and every column that reads it, as they lie in the network; by plain loops."""
    coupling = subject.coupling
    layers = {call.weight for call in coupling.calls}
    made = {key for group in coupling.groups for key in group.made}
    norm_parameters = not made_only and subject.options.norm_parameters
    parts = []
    for (name, dim), channels in coupling.dims.items():
        if name in coupling.buffers or (name not in layers and not norm_parameters):
            continue
        if made_only and (name, dim) not in made:
            continue
        for position, owner in enumerate(channels.tolist()):
            if owner == channel:
                parts.append(subject.model.get_parameter(name).select(dim, position))
    return parts


def joined(parts: list[Tensor]) -> Tensor:
    """Of layers that run in training alone there are none: they count for nothing."""
    return torch.cat([torch.zeros(0), *(part.flatten() for part in parts)])


def prunable_channels(subject: Subject) -> list[int]:
    names = subject.prunable()
    return [
        c for group in subject.coupling.groups if group.name in names for c in range(*group.channels.indices(10**6))
    ]


def written_out(subject: Subject) -> Tensor:
    """The paper's formula: the sum over channels of the norm of all of a channel's weights, concatenated."""
    total = torch.zeros((), dtype=torch.float64)
    for channel in prunable_channels(subject):
        weights = joined(parts_of(subject, channel))
        size = weights.numel() ** 0.5 if subject.options.size_normalization else 1.0
        total = total + WEIGHT * size * weights.square().sum().sqrt()
    return total


def written_out_separately(subject: Subject) -> Tensor:
    """The paper's baseline: the sum over layers and their out-channels of the norm of the weights that make one."""
    allowed = set(prunable_channels(subject))
    total = torch.zeros((), dtype=torch.float64)
    for name, dim in {key for group in subject.coupling.groups for key in group.made}:
        weight = subject.model.get_parameter(name)
        for position, channel in enumerate(subject.coupling.dims[name, dim].tolist()):
            row = weight.select(dim, position)
            size = row.numel() ** 0.5 if subject.options.size_normalization else 1.0
            total = total + (WEIGHT * size * row.square().sum().sqrt() if channel in allowed else 0.0)
    return total


def by_autograd(subject: Subject, value: Tensor) -> dict[str, Tensor]:
    named = dict(subject.model.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}


def by_penalty(subject: Subject, method: Method = OICSR, before: float = 0.25) -> dict[str, Tensor]:
    """What the penalty adds to gradients that are `before` everywhere."""
    named = dict(subject.model.named_parameters())
    for parameter in named.values():
        parameter.grad = torch.full_like(parameter, before)
    after_backward(method, subject)
    added = {name: parameter.grad - before for name, parameter in named.items()}
    subject.model.zero_grad()
    return added


def after_backward(method: Method, subject: Subject) -> None:
    """What fit does with these penalties in each step."""
    assert method.penalty is not None
    with method.penalty(subject, WEIGHT) as penalty:
        assert penalty.extra_loss is None
        assert penalty.after_backward is not None
        penalty.after_backward()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(tensor.abs().max().item() for tensor in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6 * largest)


@every_network
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "defaults")
def test_gradient_is_that_of_the_written_formula(network: str, options: dict[str, bool]) -> None:
    subject = subject_of(built(network).double(), OICSR, **options)
    assert_same(by_penalty(subject), by_autograd(subject, written_out(subject)))
    assert penalty_value(subject, WEIGHT) == pytest.approx(written_out(subject).item(), rel=1e-6)


@every_network
@pytest.mark.parametrize("options", [{}, {"size_normalization": True, "residual_streams": True}])
def test_separated_gradient_is_that_of_its_formula(network: str, options: dict[str, bool]) -> None:
    subject = subject_of(built(network).double(), SEPARATED, **options)
    assert_same(by_penalty(subject, SEPARATED), by_autograd(subject, written_out_separately(subject)))


def test_gradient_in_float32() -> None:
    subject = subject_of(built("dense"), OICSR)
    assert_same(by_penalty(subject, before=0.0), by_autograd(subject, written_out(subject)))


def test_penalty_of_two_layers_by_hand() -> None:
    """As the paper has it, without a coupling: || row i of the first layer, column i of the second ||."""
    model = built("plain").double()
    first, second, head = model.a.weight, model.b.weight, model.head.weight
    value = sum((first[i].square().sum() + second[:, i].square().sum()).sqrt() for i in range(8))
    value = value + sum((second[i].square().sum() + head[:, i].square().sum()).sqrt() for i in range(12))
    subject = subject_of(model, OICSR)
    assert_same(by_penalty(subject), by_autograd(subject, WEIGHT * value))


def test_penalty_after_flatten_by_hand() -> None:
    """Each channel is read by a block of 16 columns; with norm_parameters its scale and biases count too."""
    model = built("flattened").double()
    a, hidden, head = model.a, model.hidden, model.head
    blocks = hidden.weight.view(10, 6, 16)
    value = sum(
        (
            a.weight[i].square().sum()
            + a.bias[i].square()
            + model.scale[0, i, 0, 0].square()
            + blocks[:, i].square().sum()
        ).sqrt()
        for i in range(6)
    )
    rest = hidden.weight.square().sum(1) + hidden.bias.square() + head.weight.square().sum(0)
    subject = subject_of(model, OICSR, norm_parameters=True)
    assert_same(by_penalty(subject), by_autograd(subject, WEIGHT * (value + rest.sqrt().sum())))


def test_penalty_of_a_grouped_convolution_by_hand() -> None:
    """Equal positions of all four blocks are one channel, made and read."""
    model = built("grouped").double()
    a, b, c, head = model.a.weight, model.b.weight, model.c.weight, model.head.weight
    first = a.reshape(4, 4, -1).square().sum((0, 2)) + b.square().sum((0, 2, 3))
    second = b.reshape(4, 6, -1).square().sum((0, 2)) + c.reshape(6, 4, 6, 9).square().sum((0, 1, 3))
    third = c.square().sum((1, 2, 3)) + head.square().sum(0)
    subject = subject_of(model, OICSR)
    value = sum(each.sqrt().sum() for each in (first, second, third))
    assert_same(by_penalty(subject), by_autograd(subject, WEIGHT * value))


@every_network
def test_equally_important_channels(network: str) -> None:
    """In one-channel groups, grouped, transposed, depthwise layers too: where other regularisers give NaN or fail."""
    model = built(network).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    subject = subject_of(model, OICSR)
    found = by_penalty(subject)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert_same(found, by_autograd(subject, written_out(subject)))
    names, energies = subject.prunable(), energy(subject)
    for group in subject.coupling.groups:
        assert np.ptp(energies[group.channels]) <= 1e-6 * energies[group.channels].max()
    budget = Budget(flops=int(CostTable(subject.coupling).flops() * 0.8), group_cap=0.5)
    assert set(OICSR.choose(subject, budget).kept) <= names


@pytest.mark.parametrize("method", [OICSR, SEPARATED], ids=lambda method: method.name)
def test_a_channel_of_norm_zero_gets_no_gradient_and_no_nan(method: Method) -> None:
    model = built("plain")
    with torch.no_grad():
        model.a.weight[2] = 0
        model.b.weight[:, 2] = 0
    found = by_penalty(subject_of(model, method), method)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["a.weight"][2].eq(0).all()
    assert found["a.weight"][3].ne(0).all()


@every_network
@pytest.mark.parametrize("method", [OICSR, SEPARATED], ids=lambda method: method.name)
def test_channels_last_weights_give_the_same(network: str, method: Method) -> None:
    """fit lays the weights out anew after the penalty's context was opened, by replacing their data."""
    plain = by_penalty(subject_of(built(network).double(), method), method)
    subject = subject_of(built(network).double(), method)
    named = dict(subject.model.named_parameters())
    with method.penalty(subject, WEIGHT) as penalty:
        for parameter in named.values():
            if parameter.ndim == 4:
                parameter.data = parameter.data.clone(memory_format=torch.channels_last)
            parameter.grad = torch.full_like(parameter, 0.25)
        penalty.after_backward()
    assert_same({name: parameter.grad - 0.25 for name, parameter in named.items()}, plain)


@every_network
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "defaults")
def test_energy_is_the_plain_sum_of_squares(network: str, options: dict[str, bool]) -> None:
    subject = subject_of(built(network), OICSR, **options)
    expected = []
    for channel in range(subject.coupling.channels):
        weights = joined(parts_of(subject, channel)).double()
        squares = weights.square().sum().item()
        expected.append(squares / max(weights.numel(), 1) if subject.options.size_normalization else squares)
    np.testing.assert_allclose(energy(subject), expected, rtol=1e-5)


@every_network
def test_energy_of_the_baseline_leaves_the_readers_out(network: str) -> None:
    subject = subject_of(built(network), SEPARATED)
    parts = [joined(parts_of(subject, c, made_only=True)) for c in range(subject.coupling.channels)]
    expected = [part.double().square().sum().item() for part in parts]
    np.testing.assert_allclose(energy(subject, made_only=True), expected, rtol=1e-5)


@every_network
def test_a_channel_of_energy_zero_is_missed_by_nobody(network: str) -> None:
    model = built(network).double().eval()
    subject = subject_of(model, OICSR)
    group = next(group for group in subject.coupling.groups if group.name in subject.prunable())
    channel = group.start + 1
    with torch.no_grad():
        for part in parts_of(subject, channel):
            part.zero_()  # views of the parameters
    assert energy(subject)[channel] == 0
    kept = tuple(position for position in range(group.size) if position != 1)
    small = cut(model, subject.coupling, Plan(kept={group.name: kept}))
    with torch.no_grad():
        torch.testing.assert_close(small(EXAMPLE.double()), model(EXAMPLE.double()))


class Positions(nn.Module):
    """An embedding of positions [1, C, D] acts on channels along two dimensions, neither of them the first."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mixed = nn.Linear(3, 6), nn.Linear(6, 4)
        self.table, self.head = nn.Parameter(torch.rand(1, 8, 6)), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x[:, :, :, 0].transpose(1, 2)) + self.table  # [N, 8, 6]
        return self.head(torch.relu(self.mixed(torch.relu(x))).mean(1))


def test_an_element_wise_parameter_follows_channels_along_its_last_dimension() -> None:
    torch.manual_seed(0)
    model = Positions().double()
    subject = subject_of(model, OICSR, norm_parameters=True)
    assert ("table", 2) in subject.coupling.dims
    assert_same(by_penalty(subject), by_autograd(subject, written_out(subject)))


def test_a_coupling_of_another_network_is_refused() -> None:
    coupling = couple(built("plain"), EXAMPLE)
    with pytest.raises(UnsupportedModel, match=r"a\.weight is not in this model, or has another shape"):
        ChannelSums(conv(3, 8), coupling)
    with pytest.raises(UnsupportedModel, match=r"a\.weight is not in this model, or has another shape"):
        ChannelSums(built("grouped"), coupling)


def test_weights_of_a_channel_are_counted() -> None:
    subject = subject_of(built("plain"), OICSR)
    sums = ChannelSums(subject.model, subject.coupling)
    assert sums.weights_of.tolist() == [3 * 9 + 12 * 9] * 8 + [8 * 9 + 5] * 12


def test_sums_of_some_groups_alone_are_those_of_all() -> None:
    subject = subject_of(built("residual"), OICSR)
    group = subject.coupling.groups[-1]
    every = ChannelSums(subject.model, subject.coupling)
    some = ChannelSums(subject.model, subject.coupling, only=frozenset([group.name]))
    torch.testing.assert_close(some.squares()[group.channels], every.squares()[group.channels])
    assert torch.equal(some.weights_of[group.channels], every.weights_of[group.channels])
    assert some.squares().sum() < every.squares().sum()


@every_network
@pytest.mark.parametrize("block", [40, 100, 1000])
def test_sums_block_by_block_are_the_same(network: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(built(network), OICSR)
    everything = energy(subject)
    monkeypatch.setattr(channel_sums, "BLOCK", block)
    np.testing.assert_allclose(energy(subject), everything, rtol=1e-5)


def test_a_network_without_channels_has_no_sums() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    subject = subject_of(model, OICSR)
    assert energy(subject).shape == (0,)
    after_backward(OICSR, subject)
    assert model[1].weight.grad is None
