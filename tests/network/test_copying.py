"""Copies of networks are what copy.deepcopy gives: nothing shared but what cannot change, ties and classes kept."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from patterns import PATTERNS, conv, linear
from torch import Tensor, nn

from orchestrator.network.copying import copied
from orchestrator.network.zoo import NETWORKS


class Odd(nn.Module):
    """A module in a plain list, a tensor among the attributes, a tuple, a function, a child under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = conv(3, 4)
        self.again = self.kept
        self.listed = [conv(4, 4)]
        self.loose = torch.ones(4, 1, 1)
        self.sizes, self.names, self.act = (1, (2, 3)), ["a", "b"], torch.relu
        self.register_buffer("temporary", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.listed[0](self.kept(x) + self.loose))


def hooked() -> nn.Module:
    model = nn.Sequential(conv(3, 4), nn.ReLU())
    model[0].register_forward_hook(lambda module, given, out: out * 2)
    return model


class Own(nn.Linear):
    """Copies itself in its own way."""

    def __deepcopy__(self, memo: dict[int, object]) -> "Own":
        found = Own(self.in_features, self.out_features)
        found.load_state_dict(self.state_dict())
        found.marked = True
        return found


MODELS: dict[str, Callable[[], nn.Module]] = {
    "odd": Odd,
    "hooked": hooked,
    "parametrized": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv(3, 4))),
    "tied": PATTERNS["tied_weights"].build,
    "resnet20": lambda: NETWORKS["resnet20"](10, (3, 8, 8)),
    "mobilenet": partial(torchvision.models.mobilenet_v3_small, num_classes=10),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_what_deepcopy_gives(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    found, wanted = copied(model, {}), copy.deepcopy(model)
    assert repr(found) == repr(wanted)
    assert [(n, type(m)) for n, m in found.named_modules()] == [(n, type(m)) for n, m in wanted.named_modules()]
    assert [vars(m).keys() for m in found.modules()] == [vars(m).keys() for m in wanted.modules()]
    assert found.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(tensor, wanted.state_dict()[n]) for n, tensor in found.state_dict().items())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(found(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_shares_nothing_that_can_change(name: str) -> None:
    model = MODELS[name]()
    found = copied(model, {})
    mine = {id(m) for m in model.modules()} | {id(v) for m in model.modules() for v in vars(m).values() if _changes(v)}
    others = [m for m in found.modules()] + [v for m in found.modules() for v in vars(m).values() if _changes(v)]
    assert mine.isdisjoint(map(id, others))
    tensors = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert tensors.isdisjoint(tensor.data_ptr() for tensor in found.state_dict().values())


def _changes(value: object) -> bool:
    return isinstance(value, (list, dict, set, Tensor))


def test_parts_are_the_same_where_they_were_the_same() -> None:
    found = copied(Odd(), {})
    assert found.kept is found.again
    assert isinstance(found.listed[0], nn.Conv2d)
    assert "temporary" not in found.state_dict()
    tied = copied(PATTERNS["tied_weights"].build(), {})
    assert tied.b.weight is tied.c.weight


def test_what_the_memo_names_takes_the_originals_place() -> None:
    model = nn.Sequential(linear(3, 4), nn.ReLU())
    weight = nn.Parameter(torch.zeros(2, 3))
    memo = {id(model[0].weight): weight}
    assert copied(model, memo)[0].weight is weight


def test_a_module_that_copies_itself_is_asked_to() -> None:
    assert copied(nn.Sequential(Own(2, 3)), {})[0].marked
