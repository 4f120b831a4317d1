"""The agent's walk, state by state; its clamp; its file; and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_networks import EXAMPLE, NETWORKS, Plain, built, subject_of, untaught_agent
from torch import nn

from orchestrator.methods import METHODS, Ahead, Budget, Subject
from orchestrator.methods.agent import check, ground_of, importance
from orchestrator.methods.agent_file import HEADER, UnfitAgent, load_agent, signature
from orchestrator.methods.agent_walk import FEATURES, Ground, Walk, walked
from orchestrator.network import CostTable, Plan, cut, measure

AGENT = METHODS["conditional_agent"]
BUDGET = Budget(flops=1, group_cap=0.5)


def ahead(subject: Subject) -> Ahead:
    return Ahead(subject=subject, budget=BUDGET, iterations=1, example=EXAMPLE)


GROUNDS: dict[str, Ground] = {}


def ground(network: str) -> Ground:
    if network not in GROUNDS:
        GROUNDS[network] = ground_of(subject_of(built(network), AGENT))
    return GROUNDS[network]


def least(found: Ground, cap: float, round_to: int) -> int:
    """flops where every group has as few channels as it may."""
    walk = Walk(found, Budget(flops=found.flops, group_cap=cap, round_to=round_to), spend_budget=False)
    walked(walk, lambda state: 0.0)
    return found.table.flops(walk.mask)


@settings(max_examples=60)
@given(
    network=st.sampled_from(sorted(NETWORKS)),
    share=st.floats(0, 1),
    limits=st.tuples(st.floats(0.2, 0.95), st.sampled_from([1, 2, 3])),
    spend=st.booleans(),
    actions=st.lists(st.floats(-0.5, 1.5), min_size=8, max_size=8),
)
def test_every_budget_is_met_whatever_the_actions(
    network: str, share: float, limits: tuple[float, int], spend: bool, actions: list[float]
) -> None:
    found, (cap, round_to) = ground(network), limits
    low = least(found, cap, round_to)
    budget = Budget(flops=int(low + share * (found.flops - low)), group_cap=cap, round_to=round_to)
    walk, answers = Walk(found, budget, spend_budget=spend), iter(actions)
    widths = walked(walk, lambda state: next(answers))
    assert found.table.flops(walk.mask) <= budget.flops
    for group in found.groups:
        width = widths[group.name]
        assert width == group.size or (width % round_to == 0 and width >= group.size - int(cap * group.size + 1e-9))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_budget_that_was_granted_is_used(network: str) -> None:
    """With the lower clamp the last group that could be wider would be above the budget; without it, none need be."""
    found = ground(network)
    low = least(found, 0.5, 1)
    budget = Budget(flops=(low + found.flops) // 2, group_cap=0.5)
    spent, wasted = Walk(found, budget), Walk(found, budget, spend_budget=False)
    widths = walked(spent, lambda state: 0.0)
    walked(wasted, lambda state: 0.0)
    assert found.table.flops(wasted.mask) == low < found.table.flops(spent.mask)
    mask, last = spent.mask, found.groups[-1]
    if widths[last.name] < last.size:
        mask[last.channels] = found.rank[last.channels] <= widths[last.name]
        assert found.table.flops(mask) > budget.flops


def test_states_by_hand() -> None:
    """Plain: 3 -> 8 channels by 3 x 3, then 8 -> 12, each at 8 x 8 places, then 12 -> 5 linear."""
    model = built("plain")
    found = ground_of(subject_of(model, AGENT))
    a, b, head = 64 * 9 * 3 * 8, 64 * 9 * 8 * 12, 12 * 5
    flops = a + b + head
    params = sum(parameter.numel() for parameter in model.parameters())
    assert found.flops == flops
    walk = Walk(found, Budget(flops=flops // 2, group_cap=0.5))
    first = walk.state()
    least_flops = a // 2 + b // 4 + head // 2
    weights = [3 * 8 * 9 + 8 * 12 * 9, 8 * 12 * 9 + 12 * 5]
    expected = dict(
        rate=(flops // 2) / flops,
        position=0,
        kind=1,
        made=8 / 12,
        read=3 / 8,
        side=1,
        kernel=1,
        stride=0,
        flops=(a + b) / flops,
        params=weights[0] / params,
        reduced=0,
        rest=(flops - least_flops) / flops,
        previous=1,
    )
    assert tuple(expected) == FEATURES
    np.testing.assert_allclose(first, list(expected.values()), rtol=1e-6)
    walk.step(0.76)  # of 8: 6; b then has at most 12 x (flops // 2 - a x 6/8) / (b x 6/8 + head) channels
    assert walk.widths == {"a": 6}
    after = a * 6 // 8 + b * 6 // 8 + head
    expected |= dict(position=1, made=1, read=1, flops=(b + head) / flops, params=weights[1] / params)
    expected |= dict(reduced=1 - after / flops, rest=(b * 6 // 16 + head // 2) / flops, previous=0.75)
    np.testing.assert_allclose(walk.state(), list(expected.values()), rtol=1e-6)
    walk.step(1.0)
    assert walk.group is None
    assert walk.widths["b"] == int(12 * (flops // 2 - a * 6 // 8) / (b * 6 // 8 + head))
    assert not walk.state().any()


def test_a_stride_and_a_linear_layer_are_seen() -> None:
    rows = ground("flattened").features
    assert rows[:, FEATURES.index("kind") - 1].tolist() == [1, 0]
    assert rows[0, FEATURES.index("stride") - 1] == 0
    assert rows[1, FEATURES.index("stride") - 1] == 1 - 1 / 8  # 8 x 8 places before, one after
    assert (rows >= 0).all()
    assert (rows <= 1).all()


@pytest.mark.parametrize("channels", ["filter_norm", "energy"])
def test_the_channels_that_matter_most_stay(channels: str) -> None:
    model = built("plain")
    with torch.no_grad():
        model.a.weight[[1, 4]] *= 100
        model.b.weight[:, 6] *= 100  # read by the next layer
    subject = subject_of(model, AGENT, channels=channels)
    plan = AGENT.choose(subject, Budget(flops=int(0.6 * ground("plain").flops), group_cap=0.9))
    best = {1, 4} if channels == "filter_norm" else {1, 4, 6}
    assert best <= set(plan.kept["a"])
    score = importance(subject)[:8]
    assert set(plan.kept["a"]) == set(np.argsort(score)[-len(plan.kept["a"]) :])


def test_the_same_agent_answers_every_rate() -> None:
    model = built("plain")
    subject, found = subject_of(model, AGENT), ground("plain")
    for rate in (0.9, 0.6, 0.35):
        plan = AGENT.choose(subject, Budget(flops=int(rate * found.flops), group_cap=0.8))
        assert measure(cut(model, subject.coupling, plan), EXAMPLE).flops <= rate * found.flops


def test_repair_lowers_the_error_and_can_be_left_out() -> None:
    model = built("plain").eval()
    pictures = next(iter(subject_of(model, AGENT).calibration()))[0]
    errors = []
    for repair in (True, False):
        subject = subject_of(model, AGENT, repair=repair)
        plan = AGENT.choose(subject, Budget(flops=int(0.5 * ground("plain").flops), group_cap=0.8))
        small = cut(model, subject.coupling, plan)
        before = {name: value.clone() for name, value in small.state_dict().items()}
        assert AGENT.repair_ is not None
        assert AGENT.repair_(small, subject, plan) == {}
        with torch.no_grad():
            errors.append((small(pictures) - model(pictures)).square().mean().item())
    assert errors[0] < errors[1]
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_layers_that_repair_cannot_treat_are_named() -> None:
    model = built("plain").eval()
    name = next(name for name, module in list(model.named_modules())[::-1] if isinstance(module, nn.Conv2d))
    nn.utils.parametrizations.weight_norm(model.get_submodule(name))
    subject = subject_of(model, AGENT)
    plan = Plan(kept={group.name: tuple(range(group.size // 2)) for group in subject.coupling.groups})
    assert AGENT.repair_ is not None
    said = AGENT.repair_(cut(model, subject.coupling, plan), subject, plan)
    assert said == {name: "its weight is computed before it is used, or used in another shape"}


def test_a_file_gives_the_agent_back(tmp_path: Path) -> None:
    path = untaught_agent(tmp_path, rates=(0.3, 0.7), groups={"a": ("a.weight:0",)}, any_network=False)
    actor, card = load_agent(path)
    assert (card.rates, card.groups, card.any_network) == ((0.3, 0.7), {"a": ("a.weight:0",)}, False)
    again, _ = load_agent(untaught_agent(tmp_path))
    state = np.linspace(0, 1, len(FEATURES), dtype=np.float32)
    assert 0.1 <= actor.share(state) == again.share(state) <= 1
    assert not actor.training


def test_an_agent_knows_the_network_it_was_taught_on(tmp_path: Path) -> None:
    groups = {group.name: signature(group) for group in ground("plain").groups}
    taught = {"any_network": False, "groups": groups, "taught": {"model": "plain"}}
    path = untaught_agent(tmp_path, **taught)
    budget = Budget(flops=int(0.6 * ground("plain").flops), group_cap=0.8)
    model = Plain()
    subject = subject_of(model, AGENT, agent=str(path))
    small = cut(model, subject.coupling, plan := AGENT.choose(subject, budget))
    restricted = subject.coupling.restrict(plan)  # in a later iteration its widths are others
    check(ahead(subject_of(small, AGENT, restricted, agent=str(path))))
    check(ahead(subject_of(model, AGENT, subject.coupling.without(["a"], "its cut was wrong"), agent=str(path))))
    with pytest.raises(UnfitAgent, match="was taught on plain, which has no group widen such as this network has; tea"):
        check(ahead(subject_of(built("depthwise_gated"), AGENT, agent=str(path))))
    with pytest.raises(UnfitAgent, match="teach one on this network, or one with --any-network"):
        AGENT.choose(subject_of(built("dense"), AGENT, agent=str(path)), budget)


def test_an_agent_is_asked_with_the_options_it_was_taught_with(tmp_path: Path) -> None:
    groups = {group.name: signature(group) for group in ground("plain").groups}
    options = {"channels": "filter_norm", "repair": True}
    path = untaught_agent(tmp_path, any_network=False, groups=groups, options=options)
    check(ahead(subject_of(built("plain"), AGENT, agent=str(path))))
    with pytest.raises(UnfitAgent, match=r"was taught with repair = True; here it is False"):
        check(ahead(subject_of(built("plain"), AGENT, agent=str(path), repair=False)))


@pytest.mark.parametrize(
    ("share", "budget", "taught", "notes"),
    [
        (0.3, {}, {}, []),
        (0.4, {}, {}, []),
        (0.5, {}, {}, []),
        (0.9, {}, {}, ["was taught on flops_kept 0.3 to 0.5; here it is asked for 0.9"]),
        (0.25, {}, {"rates": (0.3,)}, ["was taught on flops_kept 0.3; here it is asked for 0.25"]),
        (0.4, {"group_cap": 0.5}, {}, ["was taught with group_cap 0.8; here it is 0.5"]),
        (0.4, {"round_to": 8}, {}, ["was taught with round_to 1; here it is 8"]),
        (0.4, {"group_cap": 0.5, "round_to": 8}, {"group_cap": None, "round_to": None}, []),  # an older file
    ],
)
def test_what_it_was_not_taught_is_said(
    tmp_path: Path, share: float, budget: dict[str, Any], taught: dict[str, Any], notes: list[str]
) -> None:
    path = untaught_agent(tmp_path, **{"rates": (0.5, 0.3), "group_cap": 0.8, "round_to": 1, **taught})
    asked = Budget(flops=int(share * ground("plain").flops), **{"group_cap": 0.8, **budget})
    subject = subject_of(built("plain"), AGENT, agent=str(path))
    assert AGENT.notes is not None
    found = AGENT.notes(Ahead(subject=subject, budget=asked, iterations=1, example=EXAMPLE))
    assert [note.removeprefix(f"{path} ") for note in found] == notes


def test_an_agent_that_is_not_there_is_named() -> None:
    subject = subject_of(built("plain"), AGENT, agent="")
    with pytest.raises(
        UnfitAgent, match=r"agent is empty; it must name .* `orchestrator teach SPACE\.toml --out FILE`"
    ):
        AGENT.choose(subject, Budget(flops=1, group_cap=0.5))
    subject = subject_of(built("plain"), AGENT, agent="nowhere.safetensors")
    with pytest.raises(UnfitAgent, match=r"nowhere\.safetensors: there is no such file; `orchestrator teach"):
        check(ahead(subject))
    assert AGENT.fingerprint is not None
    with pytest.raises(UnfitAgent, match="there is no such file"):
        AGENT.fingerprint(subject.options)


HEADERS: list[tuple[dict[str, str] | None, str]] = [
    (None, r"holds weights, but of no agent; `orchestrator teach"),
    ({HEADER: "{"}, r"header: Expecting property name"),
    ({HEADER: '{"version": 2}'}, r"version: Input should be 1; teach it again with this version"),
]


@pytest.mark.parametrize(("header", "message"), HEADERS)
def test_files_that_are_no_agent(tmp_path: Path, header: dict[str, str] | None, message: str) -> None:
    path = tmp_path / "agent.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata=header)
    with pytest.raises(UnfitAgent, match=message):
        load_agent(path)


def test_damaged_files(tmp_path: Path) -> None:
    path = untaught_agent(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(UnfitAgent, match=r"agent\.safetensors is no safetensors file: "):
        load_agent(path)
    path.write_bytes(b"PK")
    with pytest.raises(UnfitAgent, match="is no safetensors file"):
        load_agent(path)


def test_weights_of_another_agent(tmp_path: Path) -> None:
    path = untaught_agent(tmp_path)
    actor, card = load_agent(path)
    tensors: dict[str, Any] = dict(actor.state_dict())
    header = {HEADER: card.model_dump_json()}
    save_file(tensors | {"mu.0.bias": torch.full((300,), torch.nan)}, path, metadata=header)
    with pytest.raises(UnfitAgent, match="holds weights that are no finite numbers"):
        load_agent(path)
    save_file(tensors | {"mu.0.bias": torch.zeros(3)}, path, metadata=header)
    with pytest.raises(UnfitAgent, match=r"mu\.0\.bias is \(3,\); an agent has \(300,\)"):
        load_agent(path)


def test_flops_of_a_walk_are_those_of_the_cut_network() -> None:
    model = built("grouped")
    subject = subject_of(model, AGENT)
    plan = AGENT.choose(subject, Budget(flops=int(0.5 * ground("grouped").flops), group_cap=0.8))
    table = CostTable(subject.coupling)
    assert table.flops(plan.mask(subject.coupling)) == measure(cut(model, subject.coupling, plan), EXAMPLE).flops
