"""The law of the cut, pattern by pattern: what must be prunable is, what must stay has its reason, cut = masked."""

import copy
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from patterns import PATTERNS, Net, Pattern, conv, linear, pooled
from torch import Tensor, nn

from orchestrator.network import CostTable, Coupling, Plan, UnsupportedModel, couple, cut, masked, random_plan
from orchestrator.network import coupling as coupling_module
from orchestrator.network.lively import difference, lively_
from orchestrator.network.meta import watching_training
from orchestrator.network.recording import layer_of, tensors_in
from orchestrator.network.trace import record
from orchestrator.network.zoo import NETWORKS

EXACT = 1e-9

# Cut to one channel a conv_group, a grouped convolution is a depthwise one, and more of it could leave than before.
BECOMES_DEPTHWISE = "grouped_with_two_channels_each"

every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


def free_widths(coupling: Coupling) -> dict[str, int]:
    """How many prunable channels each layer makes."""
    found: dict[str, set[int]] = {}
    for group in coupling.groups:
        for name, dim in group.made:
            channels = coupling.dims[name, dim]
            found.setdefault(layer_of(name) or name, set()).update(channels[channels >= 0].tolist())
    return {name: len(channels) for name, channels in found.items()}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def partition(coupling: Coupling) -> dict[tuple[str, int], list[int]]:
    """Which positions of which parameter dimensions are the same channel, numbered by first occurrence."""
    numbers: dict[int, int] = {-1: -1}
    return {
        key: [numbers.setdefault(c, len(numbers)) for c in coupling.dims[key].tolist()] for key in sorted(coupling.dims)
    }


@every_pattern
def test_pattern_is_pruned_where_it_can_be(pattern: Pattern) -> None:
    coupling = couple(pattern.build(), pattern.example)
    assert free_widths(coupling) == dict(pattern.free)
    assert {group.name for group in coupling.groups if not group.exact} == set(pattern.inexact)
    for group in coupling.groups:
        assert (group.inexact_reason is None) == group.exact


@every_pattern
def test_pattern_names_the_reason_of_what_stays(pattern: Pattern) -> None:
    coupling = couple(pattern.build(), pattern.example)
    for layer, reason in pattern.frozen.items():
        found = [frozen.reason for frozen in coupling.frozen if frozen.layer == layer]
        assert any(re.search(reason, each) for each in found), found


@every_pattern
@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")  # a norm without parameters
def test_pattern_cut_equals_masked(pattern: Pattern) -> None:
    model = pattern.build()
    inputs = lively_(model, pattern.example)
    coupling = couple(model, pattern.example)
    before = state(model)
    for seed in range(3):
        plan = random_plan(coupling, seed=seed)
        small, full = cut(model, coupling, plan), masked(model, coupling, plan)
        assert type(small) is type(model)
        assert not small.training
        assert difference(small, full, inputs) <= EXACT
        assert cut(model.train(), coupling, plan).training
        model.eval()
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters()) or not plan.kept
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@every_pattern
@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
def test_pattern_trains_after_the_cut(pattern: Pattern) -> None:
    model = pattern.build()
    coupling = couple(model, pattern.example)
    small = cut(model, coupling, random_plan(coupling, exact_only=False)).train()
    inputs = [torch.rand(4, *shape[1:]) for shape in pattern.shapes]
    out = small(*inputs)
    sum(o.square().mean() for o in (out if isinstance(out, tuple) else (out,))).backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in small.parameters())


@pytest.mark.parametrize("name", [name for name in PATTERNS if name != BECOMES_DEPTHWISE])
@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
def test_pattern_restricted_equals_a_fresh_coupling(name: str) -> None:
    pattern = PATTERNS[name]
    model = pattern.build()
    coupling = couple(model, pattern.example)
    plan = random_plan(coupling, keep=0.8, exact_only=False)
    small = cut(model, coupling, plan)
    restricted, fresh = coupling.restrict(plan), couple(small, pattern.example)
    assert (
        restricted.shapes
        == fresh.shapes
        == {name: tuple(t.shape) for name, t in [*small.named_parameters(), *small.named_buffers()]}
    )
    assert restricted.channels == coupling.channels - sum(
        coupling.by_name[n].size - len(p) for n, p in plan.kept.items()
    )
    assert partition(restricted) == partition(fresh)
    assert CostTable(restricted).layer_flops() == CostTable(fresh).layer_flops()


@every_pattern
@pytest.mark.parametrize("narrowed", [0, 1])
@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
def test_pattern_cut_twice_is_cut_once(pattern: Pattern, narrowed: int) -> None:
    """Every other group goes down to one channel first: a convolution may then read one in each of its conv_groups."""
    model = pattern.build()
    inputs = lively_(model, pattern.example)
    coupling = couple(model, pattern.example)
    groups = [group for group in coupling.groups if group.exact]
    first = Plan(kept={group.name: (group.size - 1,) for group in groups[narrowed::2]})
    restricted = coupling.restrict(first)
    second = random_plan(restricted)
    twice, once = cut(cut(model, coupling, first), restricted, second), cut(model, coupling, first.then(second))
    assert [str(module) for module in twice.modules()] == [str(module) for module in once.modules()]
    full = masked(model, coupling, first.then(second))
    with torch.no_grad():  # the one channel may be dead: outputs need not depend on the picture
        outputs = [tensors_in(network.double().eval()(*inputs)) for network in (twice, once, full)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=EXACT, atol=EXACT, equal_nan=True)
    torch.testing.assert_close(outputs[0], outputs[2], rtol=EXACT, atol=EXACT, equal_nan=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_zoo_cut_equals_masked(name: str) -> None:
    model, example = NETWORKS[name](10, (3, 32, 32)), torch.zeros(1, 3, 32, 32)
    inputs = lively_(model, example)
    coupling = couple(model, example)
    assert all(group.exact for group in coupling.groups) == (not name.startswith("eca_"))
    plan = random_plan(coupling)
    assert difference(cut(model, coupling, plan), masked(model, coupling, plan), inputs) <= EXACT


@pytest.mark.parametrize(
    ("name", "side", "groups"),
    [("resnet18", 64, 12), ("mobilenet_v3_small", 64, 27), ("shufflenet_v2_x0_5", 64, 21), ("squeezenet1_1", 64, 25)],
)
def test_torchvision_cut_equals_masked(name: str, side: int, groups: int) -> None:
    model, example = torchvision.models.get_model(name, num_classes=10), torch.zeros(1, 3, side, side)
    inputs = lively_(model, example)
    coupling = couple(model, example)
    assert len(coupling.groups) == groups
    plan = random_plan(coupling)
    assert difference(cut(model, coupling, plan), masked(model, coupling, plan), inputs) <= EXACT


def test_residual_streams_are_marked() -> None:
    coupling = couple(NETWORKS["resnet20"](10, (3, 32, 32)), torch.zeros(1, 3, 32, 32))
    summed = {group.name for group in coupling.groups if group.summed}
    assert "conv" in summed
    assert "stage1.0.conv1" not in summed


def test_ties_are_kept() -> None:
    model = PATTERNS["tied_weights"].build()
    coupling = couple(model, torch.zeros(1, 3, 8, 8))
    plan = random_plan(coupling)
    for changed in (cut(model, coupling, plan), masked(model, coupling, plan)):
        assert changed.b.weight is changed.c.weight
        assert changed.b.bias is not changed.c.bias


def test_given_modes_and_gradients_are_kept() -> None:
    model = PATTERNS["plain"].build()
    model.n.eval()
    model.a.weight.requires_grad_(False)
    coupling = couple(model, torch.zeros(1, 3, 8, 8))
    assert model.training
    assert not model.n.training
    small = cut(model, coupling, random_plan(coupling))
    assert small.training
    assert not small.n.training
    assert not small.a.weight.requires_grad
    assert small.b.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_precision_of_the_model_and_the_example(dtype: torch.dtype) -> None:
    model = PATTERNS["squeeze_excitation"].build()
    expected = couple(model, torch.zeros(1, 3, 8, 8))
    found = couple(model.to(dtype), torch.zeros(5, 3, 8, 8))
    assert partition(found) == partition(expected)
    assert found.calls == expected.calls


def test_without_freezes_groups_with_a_reason() -> None:
    coupling = couple(PATTERNS["plain"].build(), torch.zeros(1, 3, 8, 8))
    left = coupling.without(["a"], "because")
    assert [group.name for group in left.groups] == ["b"]
    assert left.groups[0].start == 0
    assert ("a.weight", 0) not in left.dims
    assert any(frozen.layer == "a" and frozen.channels == 8 and frozen.reason == "because" for frozen in left.frozen)
    with pytest.raises(KeyError, match="no group 'c'"):
        coupling.without(["c"], "because")


def test_every_channel_is_numbered_once() -> None:
    coupling = couple(NETWORKS["densenet40"](10, (3, 32, 32)), torch.zeros(1, 3, 32, 32))
    seen = np.unique(np.concatenate([channels[channels >= 0] for channels in coupling.dims.values()]))
    assert seen.tolist() == list(range(coupling.channels))
    assert [group.start for group in coupling.groups[1:]] == [group.channels.stop for group in coupling.groups[:-1]]
    assert len({group.name for group in coupling.groups}) == len(coupling.groups)


def test_a_model_that_does_not_run_is_unsupported() -> None:
    with pytest.raises(UnsupportedModel, match=r"^Net does not run on the example: aten\.convolution, called from a: "):
        couple(PATTERNS["plain"].build(), torch.zeros(1, 4, 8, 8))
    with pytest.raises(UnsupportedModel, match="no tensor with a batch dimension"):
        couple(PATTERNS["plain"].build(), torch.zeros(()))


def test_a_model_that_looks_at_its_data_is_unsupported() -> None:
    def branching(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.head(pooled(x if x.mean() > 0 else -x))

    with pytest.raises(UnsupportedModel, match=r"does not run on the example: .*meta"):
        couple(Net(branching, {"a": conv(3, 8), "head": linear(8, 5)}), torch.zeros(1, 3, 8, 8))


def test_a_model_that_only_evaluates_is_coupled_with_a_note() -> None:
    def evaluating(m: nn.Module, x: Tensor) -> Tensor:
        if m.training:
            raise NotImplementedError("no training here")
        return m.head(pooled(m.a(x)))

    coupling = couple(Net(evaluating, {"a": conv(3, 8), "head": linear(8, 5)}), torch.zeros(1, 3, 8, 8))
    assert coupling.channels == 8
    assert coupling.notes == ("not followed in training mode: Net does not run on the example: no training here",)


def test_tensors_that_no_module_lists_are_followed() -> None:
    def shifted(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(pooled(m.a(x) + m.loose[0]))

    model = Net(shifted, {"a": conv(3, 8), "head": linear(8, 5)})
    model.loose = [torch.ones(8, 1, 1)]  # no parameter, no buffer: cannot be cut, so what it meets must stay
    coupling = couple(model, torch.zeros(1, 3, 8, 8))
    assert coupling.channels == 0
    assert any("width fixed in code at aten.add" in frozen.reason for frozen in coupling.frozen)


def test_counterparts_of_failing_code_are_settled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.network import hypotheses

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(8, 8), conv(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            left, _ = self.a(x).split((4, 4), 1)
            return x + self.b(left)

    rounds = []
    mend = hypotheses._mend
    monkeypatch.setattr(hypotheses, "_mend", lambda *args: (rounds.append(1), mend(*args)))
    model = nn.Sequential(conv(3, 8), *(Block() for _ in range(6)), nn.Flatten(), linear(8 * 64, 5))
    coupling = couple(model, torch.zeros(1, 3, 8, 8))
    assert len(rounds) <= 3
    assert free_widths(coupling)["0"] == 8


def test_couple_does_not_touch_the_model() -> None:
    model = NETWORKS["preact_senet18"](10, (3, 32, 32))
    before, random_state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    couple(model, torch.zeros(1, 3, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert model.training


def modes_followed(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """In which modes a model is followed, replays apart."""
    followed: list[bool] = []

    def watched(meta: nn.Module, *arguments: object, **named: object) -> object:
        followed.append(vars(meta)["training"])  # reading it openly would be watched
        return record(meta, *arguments, **named)

    monkeypatch.setattr(coupling_module, "record", watched)
    couple(model, torch.zeros(1, 3, 8, 8))
    return followed


def test_a_model_that_does_not_ask_for_its_mode_is_followed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dropouts = nn.Sequential(nn.Dropout2d(), torchvision.ops.StochasticDepth(0.5, "row"))
    plain = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), dropouts, nn.ReLU(), nn.Flatten(), linear(8 * 64, 5))
    assert modes_followed(plain, monkeypatch) == [False]
    assert modes_followed(PATTERNS["training_only_head"].build(), monkeypatch) == [False, True]
    assert modes_followed(PATTERNS["spectrally_normalised"].build(), monkeypatch)[-1] is True


def test_asking_for_the_mode_is_watched_for_a_while_only() -> None:
    class Asking(nn.Module):
        def forward(self) -> bool:
            return self.training

    model = Asking().eval()
    with watching_training() as readers:
        assert not model()
        assert model.train()()
        with pytest.raises(AttributeError, match="'Asking' object has no attribute 'training'"):
            _ = object.__new__(Asking).training
    assert readers == {"Asking"}
    assert model.training
    assert "training" not in vars(nn.Module)
    with pytest.raises(KeyError), watching_training():
        raise KeyError
    assert "training" not in vars(nn.Module)


def test_threads_may_couple_at_once() -> None:
    models = [PATTERNS[name].build() for name in ("plain", "residual", "training_only_head", "dense_block")] * 2
    alone = [couple(model, torch.zeros(1, 3, 8, 8)) for model in models]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda model: couple(model, torch.zeros(1, 3, 8, 8)), models))
    assert [partition(coupling) for coupling in together] == [partition(coupling) for coupling in alone]
    assert "training" not in vars(nn.Module)
