"""The example networks are pruned exactly, nearly whole, and by the search like any other."""

import pytest
import torch

from orchestrator import trial
from orchestrator.network import CostTable, couple, cut, masked, random_plan
from orchestrator.network.architectures import build
from orchestrator.network.lively import difference, lively_
from orchestrator.search.space import SearchSpace

UNUSUAL = "examples.unusual:network"


def test_six_constructs_at_once_are_followed() -> None:
    model, example = build(UNUSUAL, classes=10, input_shape=(1, 8, 8), seed=0), torch.zeros(1, 1, 8, 8)
    inputs = lively_(model, example)
    coupling = couple(model, example)
    assert {frozen.reason for frozen in coupling.frozen} == {"the model's input", "the model's output"}
    assert [group.inexact_reason for group in coupling.groups if not group.exact] == [
        "join: aten.mean over channels of a weight"
    ]
    assert CostTable(coupling).prunable_share() > 0.95
    for seed in range(3):
        plan = random_plan(coupling, seed=seed)
        assert difference(cut(model, coupling, plan), masked(model, coupling, plan), inputs) <= 1e-9


def test_weights_that_are_shared_stay_shared() -> None:
    model = build(UNUSUAL, classes=10, input_shape=(1, 8, 8), seed=0)
    coupling = couple(model, torch.zeros(1, 1, 8, 8))
    small = cut(model, coupling, random_plan(coupling, exact_only=False))
    assert small.stem.weight is small.mirrored.weight
    assert small.stem.weight.shape[0] < model.stem.weight.shape[0]


@pytest.mark.parametrize("end", ["first", "last"])
def test_its_search_space_can_be_run(end: str) -> None:
    corners = list(SearchSpace.read("search_spaces/unusual.toml").corners())
    assert trial.check(corners[0 if end == "first" else -1]) == ()
