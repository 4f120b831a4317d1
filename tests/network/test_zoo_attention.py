"""Networks with channel attention: the published figures, what couples with what, gates of a cut network by hand."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from orchestrator.network import CostTable, Coupling, Plan, couple, cut, measure, random_plan, verify
from orchestrator.network.lively import lively_
from orchestrator.network.zoo import NETWORKS, SqueezeExcite
from orchestrator.network.zoo_attention import EfficientChannelAttention, kernel_size

CIFAR, IMAGENET = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 224, 224)
STREAM = "conv"  # the group of a CIFAR ResNet's residual stream
KEPT = (0, 1, 4, 5, 6, 9, 10, 13, 15)


def gates_of(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_kernels_are_those_of_the_formula() -> None:
    found = {channels: kernel_size(channels) for channels in (16, 32, 64, 128, 256, 512, 1024, 2048)}
    assert found == {16: 3, 32: 3, 64: 3, 128: 5, 256: 5, 512: 5, 1024: 5, 2048: 7}


@pytest.mark.parametrize(
    ("name", "kernels", "params", "gigaflops"),
    [
        ("eca_resnet18", (3, 5, 7, 7), 11.15, 1.70),
        ("eca_resnet34", (3, 3, 5, 7), 20.79, 3.43),
        ("eca_resnet50", (3, 5, 5, 7), 24.37, 3.86),
    ],
)
def test_the_published_figures(name: str, kernels: tuple[int, ...], params: float, gigaflops: float) -> None:
    """The table's M and G are 2^20 and 2^30. Its flops count more than convolutions and linear layers: up to 1.5 %."""
    with torch.device("meta"):
        model, without = NETWORKS[name](1000, (3, 224, 224)), torchvision.models.get_model(name.removeprefix("eca_"))
    found, plain = measure(model, IMAGENET), measure(without, IMAGENET)
    assert round(found.params / 2**20, 2) == params
    assert 0.985 * gigaflops <= found.flops / 2**30 <= gigaflops
    widths, blocks = [64, 128, 256, 512], [len(model.get_submodule(f"layer{stage}")) for stage in range(1, 5)]
    expansion = 4 if name == "eca_resnet50" else 1
    gates = list(zip(kernels, widths, blocks, strict=True))
    assert found.params - plain.params == sum(kernel * count for kernel, _, count in gates)
    assert found.flops - plain.flops == sum(kernel * expansion * width * count for kernel, width, count in gates)


def test_the_imagenet_networks_are_torchvisions_with_gates_in_between() -> None:
    """Gates that pass half of everything, and a norm of twice the scale before them: the plain network."""
    plain = torchvision.models.resnet18(num_classes=10)
    model = NETWORKS["eca_resnet18"](10, (3, 64, 64))
    state = plain.state_dict()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing == [f"layer{stage}.{block}.eca.conv.weight" for stage in range(1, 5) for block in range(2)]
    with torch.no_grad():
        for gate in gates_of(model, EfficientChannelAttention):
            gate.conv.weight.zero_()
        for stage in range(1, 5):
            for block in model.get_submodule(f"layer{stage}"):
                block.bn2.weight *= 2
                block.bn2.bias *= 2
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(("name", "blocks", "flops"), [("20", 3, 40_551_040), ("56", 9, 125_485_696)])
def test_the_cifar_networks_cost_little_more(name: str, blocks: int, flops: int) -> None:
    """ECA: 3 weights a gate, 3 products a channel. SE: two 1 x 1 convolutions with biases, of widths 1, 2 and 4."""
    plain = measure(NETWORKS[f"resnet{name}"](10, (3, 32, 32)), CIFAR)
    eca, se = (measure(NETWORKS[f"{kind}_resnet{name}"](10, (3, 32, 32)), CIFAR) for kind in ("eca", "se"))
    assert plain.flops == flops
    assert (eca.params - plain.params, eca.flops - plain.flops) == (3 * 3 * blocks, 3 * (16 + 32 + 64) * blocks)
    weights = sum(2 * width * width // 16 for width in (16, 32, 64))
    biases = sum(width + width // 16 for width in (16, 32, 64))
    assert (se.params - plain.params, se.flops - plain.flops) == ((weights + biases) * blocks, weights * blocks)


def eca_and_coupling(name: str) -> tuple[nn.Module, Coupling]:
    model = NETWORKS[name](10, (3, 32, 32))
    lively_(model, CIFAR)
    return model, couple(model, CIFAR)


def test_streams_with_eca_are_inexact_and_say_why() -> None:
    _, coupling = eca_and_coupling("eca_resnet20")
    inexact = {group.name: group.inexact_reason for group in coupling.groups if not group.exact}
    assert inexact == {STREAM: "stage1.0.gate.conv: a convolution along channels"}
    assert coupling.by_name[STREAM].summed
    assert coupling.by_name["stage1.0.conv1"].exact  # inside a block no gate comes by
    assert not any("gate" in frozen.layer for frozen in coupling.frozen)


def test_gates_of_a_cut_eca_network_are_the_module_applied_to_the_gathered_channels() -> None:
    """By hand, on the full network's weights: stem and first block with the channels that stay, in their order."""
    model, coupling = eca_and_coupling("eca_resnet20")
    small = cut(model, coupling, Plan(kept={STREAM: KEPT, "stage1.0.conv1": (2, 3, 11)}))
    stays, inner = torch.tensor(KEPT), torch.tensor((2, 3, 11))

    def normed(x: Tensor, norm: nn.BatchNorm2d, kept: Tensor) -> Tensor:
        numbers = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return F.batch_norm(x, *(each[kept] for each in numbers), training=False, eps=norm.eps)

    block = model.stage1[0]
    with torch.no_grad():
        pictures = torch.randn(3, 3, 32, 32, dtype=torch.float64)
        stem = F.relu(normed(F.conv2d(pictures, model.conv.weight[stays], padding=1), model.norm, stays))
        x = F.conv2d(stem, block.conv1.weight[inner][:, stays], padding=1)
        x = F.conv2d(F.relu(normed(x, block.norm1, inner)), block.conv2.weight[stays][:, inner], padding=1)
        x = normed(x, block.norm2, stays)
        means = F.pad(x.mean((2, 3)), (1, 1))  # each channel's, with its new neighbours'
        left, own, right = block.gate.conv.weight.flatten()
        gates = torch.sigmoid(left * means[:, :-2] + own * means[:, 1:-1] + right * means[:, 2:])
        expected = F.relu(x * gates[:, :, None, None] + stem)
        torch.testing.assert_close(small.stage1[0](stem), expected)
        torch.testing.assert_close(block.gate(x), x * gates[:, :, None, None])


@pytest.mark.parametrize("name", ["eca_resnet20", "eca_resnet18"])
def test_kernels_are_kept_and_the_cut_is_verified(name: str) -> None:
    side = 32 if name == "eca_resnet20" else 64
    model, example = NETWORKS[name](10, (3, side, side)).eval(), torch.randn(2, 3, side, side)
    coupling = couple(model, example)
    plan = random_plan(coupling, keep=0.4, exact_only=False)
    assert any(not coupling.by_name[name].exact for name in plan.kept)
    assert verify(model, coupling, plan, example).passed
    small = cut(model, coupling, plan)
    for before, after in zip(*(gates_of(each, EfficientChannelAttention) for each in (model, small)), strict=True):
        assert torch.equal(before.conv.weight, after.conv.weight)
        assert before.conv.kernel_size == after.conv.kernel_size
    found, table, mask = measure(small, example), CostTable(coupling), plan.mask(coupling)
    assert (found.flops, found.params) == (table.flops(mask), table.params(mask))


def test_a_gate_along_channels_depends_on_their_order() -> None:
    """So a cut that gathered channels in another order would be another network."""
    torch.manual_seed(0)
    gate, x = EfficientChannelAttention(3), torch.randn(2, 8, 4, 4)
    order = torch.tensor([3, 0, 7, 1, 5, 2, 6, 4])
    assert not torch.allclose(gate(x[:, order]), gate(x)[:, order], atol=1e-3)


def test_squeeze_and_excite_couples_with_its_stream_and_its_hidden_width_is_free() -> None:
    model, coupling = eca_and_coupling("se_resnet20")
    stream = coupling.by_name[STREAM]
    for block in range(3):
        gate = f"stage1.{block}.gate"
        assert {(f"{gate}.squeeze.weight", 1), (f"{gate}.excite.weight", 0), (f"{gate}.excite.bias", 0)} <= {
            *stream.members
        }
        hidden = coupling.by_name[f"{gate}.squeeze"]
        assert hidden.size == 1
        assert set(hidden.members) == {
            (f"{gate}.squeeze.weight", 0),
            (f"{gate}.squeeze.bias", 0),
            (f"{gate}.excite.weight", 1),
        }
    assert all(group.exact for group in coupling.groups)
    small = cut(model, coupling, Plan(kept={STREAM: KEPT, "stage3.0.gate.squeeze": (0, 3)}))
    before, after = model.stage3[0].gate, small.stage3[0].gate
    x = torch.randn(2, 64, 4, 4, dtype=torch.float64)
    stays = coupling.dims["stage3.0.gate.excite.weight", 0]
    index = torch.tensor([at for at, channel in enumerate(stays) if channel < 0 or channel - stream.start in KEPT])
    hidden = torch.tensor([0, 3])
    with torch.no_grad():
        seen = x[:, index].mean((2, 3)) @ before.squeeze.weight[hidden][:, index, 0, 0].T + before.squeeze.bias[hidden]
        gates = F.relu(seen) @ before.excite.weight[index][:, hidden, 0, 0].T + before.excite.bias[index]
        torch.testing.assert_close(after(x[:, index]), x[:, index] * gates.sigmoid()[:, :, None, None])
    assert len(gates_of(model, SqueezeExcite)) == 9


def test_timms_attention_along_channels_freezes_nothing() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model, example = timm.create_model("ecaresnet26t", num_classes=10).eval(), torch.randn(1, 3, 64, 64)
    coupling = couple(model, example)
    assert {frozen.reason for frozen in coupling.frozen} == {"the model's input", "the model's output"}
    assert any("a convolution along channels" in (group.inexact_reason or "") for group in coupling.groups)
    plan = random_plan(coupling, exact_only=False)
    assert measure(cut(model, coupling, plan), example).flops == CostTable(coupling).flops(plan.mask(coupling))
