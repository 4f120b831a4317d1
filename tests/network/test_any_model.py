"""Models of all kinds: segmentation, several inputs and outputs, half precision, hooks that compute weights."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from patterns import conv, linear, norm, pooled
from torch import Tensor, nn

from orchestrator.network import CostTable, Plan, couple, cut, masked, random_plan, verify
from orchestrator.network.lively import difference, lively_

EXACT = 1e-9
PICTURES = torch.zeros(2, 3, 8, 8)


def assert_law(model: nn.Module, example: Tensor | tuple[object, ...], *, share: float) -> None:
    """Cut equals masked, and at least this share of the flops can go."""
    inputs = lively_(model, example)
    coupling = couple(model, example)
    assert CostTable(coupling).prunable_share() >= share
    for seed in range(2):
        plan = random_plan(coupling, seed=seed)
        assert difference(cut(model, coupling, plan), masked(model, coupling, plan), inputs) <= EXACT


@pytest.mark.parametrize(
    "name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50"]
)
def test_segmentation_networks(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
    assert_law(model.eval(), torch.zeros(2, 3, 32, 32), share=0.95)


class Named(nn.Module):
    """Takes a dict of pictures and numbers, gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), linear(4, 8)
        self.head, self.other = linear(8, 5), linear(8, 2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        both = pooled(F.relu(self.a(batch["pictures"]))) + F.relu(self.b(batch["numbers"]))
        return {"classes": self.head(both), "other": self.other(both)}


@dataclass
class Answer:
    """As libraries of large models give it."""

    classes: Tensor
    hidden: list[Tensor]


class Told(nn.Module):
    """Gives an object, one of whose tensors shows channels: these must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 6), linear(6, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Answer:
        shown = F.relu(self.a(x)) * scale
        return Answer(classes=self.head(pooled(F.relu(self.b(shown)))), hidden=[shown])


def test_dicts_in_and_out() -> None:
    model = Named()
    batch = {"pictures": PICTURES, "numbers": torch.zeros(2, 4)}
    coupling = couple(model, (batch,))
    assert [(group.name, group.size, group.summed) for group in coupling.groups] == [("a", 8, True)]
    assert verify(model, coupling, random_plan(coupling), (batch,)).passed


def test_objects_out_and_numbers_in() -> None:
    model = Told()
    coupling = couple(model, (PICTURES, 0.5))
    assert [group.name for group in coupling.groups] == ["b"]
    assert any(frozen.layer == "a" and frozen.reason == "the model's output" for frozen in coupling.frozen)
    assert verify(model, coupling, random_plan(coupling), (PICTURES, 0.5)).passed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = nn.Sequential(conv(3, 8), norm(8), nn.ReLU(), nn.Flatten(), linear(8 * 64, 5)).to(dtype).eval()
    coupling = couple(model, PICTURES)
    small = cut(model, coupling, random_plan(coupling))
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small(PICTURES.to(dtype)).shape == (2, 5)
    assert verify(model, coupling, random_plan(coupling), PICTURES).passed


def with_hooks(normalise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # these ways are old, and in many models
        return nn.Sequential(normalise(conv(3, 8)), nn.ReLU(), conv(8, 6), nn.Flatten(), linear(6 * 64, 5))


@pytest.mark.parametrize("normalise", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=lambda f: f.__name__)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_weights_computed_by_hooks(normalise: Callable[[nn.Module], nn.Module], used: bool) -> None:
    model = with_hooks(normalise).eval()
    if used:
        model(PICTURES).sum().backward()
    coupling = couple(model, PICTURES)
    assert [(group.name, group.size) for group in coupling.groups] == [("0", 8), ("2", 6)]
    small = cut(model, coupling, Plan(kept={"0": (1, 4, 7)}))
    assert (small[0].out_channels, small[2].in_channels) == (3, 3)
    assert small(PICTURES).shape == (2, 5)
    assert verify(model, coupling, Plan(kept={"0": (1, 4, 7)}), torch.randn(2, 3, 8, 8)).passed


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch 2.11's own
def test_a_model_under_compile_is_followed_by_its_original() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), nn.Flatten(), linear(8 * 64, 5))
    before = copy.deepcopy(model.state_dict())
    assert couple(torch.compile(model)._orig_mod, PICTURES).channels == 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_a_gpu() -> None:
    model = nn.Sequential(conv(3, 8), norm(8), nn.ReLU(), nn.Flatten(), linear(8 * 64, 5)).cuda().eval()
    coupling = couple(model, PICTURES)
    small = cut(model, coupling, random_plan(coupling))
    assert {p.device.type for p in small.parameters()} == {"cuda"}
    assert verify(model, coupling, random_plan(coupling), PICTURES).passed


@pytest.mark.parametrize("build", [partial(nn.LSTM, 8, 4, batch_first=True), partial(nn.GRU, 8, 4, batch_first=True)])
def test_recurrent_layers_keep_what_they_read(build: Callable[[], nn.Module]) -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.rnn, self.b, self.head = conv(3, 8), build(), linear(4, 6), linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            found, _ = self.rnn(F.relu(self.a(x)).flatten(2).transpose(1, 2))
            return self.head(F.relu(self.b(found[:, -1])))

    model = Read()
    coupling = couple(model, PICTURES)
    assert [group.name for group in coupling.groups] == ["b"]
    assert verify(model, coupling, random_plan(coupling), PICTURES).passed
