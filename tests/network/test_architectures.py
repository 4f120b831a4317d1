"""Networks by name: seeds, every form of a name, and what a bad one is told."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.network import user_function
from orchestrator.network.architectures import FORMS, ModelDoesNotRun, UnknownModel, build, check_runs, names
from orchestrator.network.seeding import seeded
from orchestrator.record import InvalidInput

USERS = """
import torch
from torch import nn

sides = []

def small(classes, input_shape):
    sides.append(input_shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], classes))

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def anything(**told):
    return nn.Linear(1, told["classes"])

def with_default(width=3):
    return nn.Linear(1, width)

def needs_width(width):
    return nn.Linear(1, width)

def no_module(classes):
    return "a network"

def raises(classes):
    raise KeyError("of the user")

not_a_function = 3
"""


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_networks.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return "my_networks"


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", [*names(), "torchvision:resnet18", "torchvision:squeezenet1_1", "timm:resnet10t"])
def test_a_seed_fixes_the_weights_and_touches_nothing_else(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(11)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    one, two, other = (build(name, classes=4, input_shape=(3, 32, 32), seed=seed) for seed in (5, 5, 6))
    assert same(one, two)
    assert not same(one, other)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist())
    check_runs(one, (3, 32, 32), classes=4)


def test_seeded_puts_the_states_back_after_an_exception_too() -> None:
    before = torch.get_rng_state(), random.getstate()

    def draw_and_fail() -> None:
        with seeded(2**62 + 1):
            torch.rand(3)
            random.random()
            raise KeyError

    with pytest.raises(KeyError):
        draw_and_fail()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:googlenet", (3, 64, 64)),
        ("torchvision:inception_v3", (3, 96, 96)),
        ("torchvision:vit_b_32", (3, 64, 64)),
        ("torchvision:mobilenet_v3_small", (1, 28, 28)),
        ("torchvision:shufflenet_v2_x0_5", (4, 32, 32)),
    ],
)
def test_torchvision_networks_fit_the_data(name: str, shape: tuple[int, int, int]) -> None:
    model = build(name, classes=6, input_shape=shape, seed=0)
    check_runs(model, shape, classes=6)
    assert isinstance(model.train()(torch.randn(2, *shape)), Tensor)  # no auxiliary outputs


def test_one_channel_is_seen_as_the_same_picture_in_all_three() -> None:
    colour, grey = (
        build("torchvision:resnet18", classes=3, input_shape=(channels, 32, 32), seed=1).eval() for channels in (3, 1)
    )
    picture = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(grey(picture), colour(picture.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_more_channels_repeat_the_three_in_turn() -> None:
    colour, five = (
        build("torchvision:resnet18", classes=3, input_shape=(channels, 32, 32), seed=1) for channels in (3, 5)
    )
    expected = colour.get_parameter("conv1.weight")[:, [0, 1, 2, 0, 1]] * 0.6
    torch.testing.assert_close(five.get_parameter("conv1.weight"), expected)


def test_timm_networks_fit_the_data() -> None:
    pytest.importorskip("timm")
    check_runs(build("timm:resnet10t", classes=6, input_shape=(1, 28, 28), seed=0), (1, 28, 28), classes=6)
    check_runs(build("timm:vit_tiny_patch16_224", classes=6, input_shape=(3, 32, 32), seed=0), (3, 32, 32), classes=6)


def test_timm_missing_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InvalidInput, match=r"timm:resnet18 needs timm: pip install 'pruning-orchestrator\[timm\]'"):
        build("timm:resnet18", classes=2, input_shape=(3, 32, 32), seed=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet65", "unknown model 'resnet65'; did you mean resnet56"),
        ("zzz", f"unknown model 'zzz'; allowed are cifarnet, .*{FORMS[0]}, {FORMS[1]}, {FORMS[2]}"),
        ("torchvision:resnet5", "unknown model 'torchvision:resnet5'; did you mean torchvision:resnet50"),
        ("torchvision:fcn_resnet50", "allowed is a classifier of torchvision.models"),
        ("my.module:", "unknown model 'my.module:'"),
        ("", "unknown model ''"),
    ],
)
def test_an_unknown_name_is_told_what_is_allowed(name: str, message: str) -> None:
    with pytest.raises(UnknownModel, match=message):
        build(name, classes=10, input_shape=(3, 32, 32), seed=0)


def test_an_unknown_timm_name_is_told_what_is_allowed() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UnknownModel, match=r"unknown model 'timm:resnet1'; did you mean .*timm:resnet"):
        build("timm:resnet1", classes=10, input_shape=(3, 32, 32), seed=0)


def test_a_users_function_is_told_what_its_signature_takes(users_module: str) -> None:
    model = build(f"{users_module}:small", classes=4, input_shape=(1, 8, 8), seed=0)
    check_runs(model, (1, 8, 8), classes=4)
    assert sys.modules[users_module].sides == [(1, 8, 8)]
    assert build(f"{users_module}:anything", classes=4, input_shape=(1, 8, 8), seed=0).out_features == 4
    assert build(f"{users_module}:with_default", classes=4, input_shape=(1, 8, 8), seed=0).out_features == 3
    check_runs(build(f"{users_module}:fixed", classes=4, input_shape=(1, 8, 8), seed=0), (1, 8, 8))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "my_networks has no function nothing; it has small, fixed, "),
        ("not_a_function", "my_networks has no function not_a_function"),
        ("no_module", "model my_networks:no_module must return a torch.nn.Module; it returned str"),
        ("needs_width", "argument width is not offered; offered are classes, input_shape"),
    ],
)
def test_a_users_mistake_is_named(users_module: str, function: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        build(f"{users_module}:{function}", classes=10, input_shape=(1, 8, 8), seed=0)


def test_what_a_users_function_raises_passes_through(users_module: str) -> None:
    with pytest.raises(KeyError, match="of the user"):
        build(f"{users_module}:raises", classes=10, input_shape=(1, 8, 8), seed=0)


def test_a_module_that_cannot_be_imported_is_named(users_module: str) -> None:
    Path("broken_networks.py").write_text("def (")
    with pytest.raises(InvalidInput, match="no_such_module cannot be imported: No module named 'no_such_module'"):
        user_function.find("no_such_module:build")
    with pytest.raises(InvalidInput, match="broken_networks cannot be imported"):
        user_function.find("broken_networks:build")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), "does not run on 1x8x8 pictures: RuntimeError: mat1 and"),
        (nn.Conv2d(1, 10, 1), r"must return \[2, 10\] for two pictures; it returned \[2, 10, 8, 8\]"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 7)),
            r"must return \[2, 10\] for two pictures; it returned \[2, 7\]",
        ),
        (nn.LSTM(8, 10), "does not run on 1x8x8 pictures"),
        (nn.MultiheadAttention(8, 1), "does not run on 1x8x8 pictures: TypeError"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_told_why(model: nn.Module, message: str) -> None:
    with pytest.raises(ModelDoesNotRun, match=message):
        check_runs(model, (1, 8, 8), classes=10)


def test_a_model_with_several_outputs_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ModelDoesNotRun, match=r"must return one tensor .*; it returned tuple"):
        check_runs(Two(), (1, 8, 8))


def test_a_picture_size_a_network_cannot_have_is_refused() -> None:
    with pytest.raises(ModelDoesNotRun, match="does not run on 3x8x8 pictures"):
        check_runs(build("torchvision:alexnet", classes=10, input_shape=(3, 8, 8), seed=0), (3, 8, 8))
    for name in ("maxvit_t", "vit_b_32"):
        with pytest.raises(ModelDoesNotRun, match=f"torchvision:{name} cannot be built for 3x40x40 pictures"):
            build(f"torchvision:{name}", classes=10, input_shape=(3, 40, 40), seed=0)


def test_check_runs_leaves_the_model_as_it_was() -> None:
    model = build("resnet20", classes=10, input_shape=(3, 32, 32), seed=0)
    model.get_submodule("norm").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_runs(model, (3, 32, 32), classes=10)
    assert model.training
    assert not model.get_submodule("norm").training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
