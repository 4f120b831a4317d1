"""explain: every number by hand for a small network, and words for what stays."""

import json

import pytest
import torch
from patterns import PATTERNS

from orchestrator.network.inspect import explain
from orchestrator.network.zoo import NETWORKS


def test_a_small_network_by_hand() -> None:
    pattern = PATTERNS["plain"]
    found = explain(pattern.build(), pattern.example)
    a, b, head = 64 * 9 * 3 * 8, 64 * 9 * 8 * 12, 12 * 5
    assert found["flops"] == a + b + head
    assert found["params"] == (3 * 9 + 1) * 8 + 2 * 8 + (8 * 9 + 1) * 12 + 13 * 5
    assert found["layers"] == [
        {"name": "a", "flops": a, "params": 28 * 8},
        {"name": "b", "flops": b, "params": 73 * 12},
        {"name": "head", "flops": head, "params": 65},
        {"name": "n", "flops": 0, "params": 16},
    ]
    assert found["groups"][0] == {
        "name": "a",
        "channels": 8,
        "exact": True,
        "inexact_reason": None,
        "residual": False,
        "flops_share": pytest.approx((a + b) * 7 / 8 / found["flops"]),
        "members": [
            "a.weight:0",
            "a.bias:0",
            "n.weight:0",
            "n.bias:0",
            "n.running_mean:0",
            "n.running_var:0",
            "b.weight:1",
        ],
    }
    assert {"layer": "head", "channels": 5, "reason": "the model's output"} in found["frozen"]
    assert found["notes"] == []


def test_a_shared_layer_has_the_flops_of_both_runs() -> None:
    pattern = PATTERNS["module_used_twice"]
    layers = {layer["name"]: layer["flops"] for layer in explain(pattern.build(), pattern.example)["layers"]}
    assert layers["b"] == 2 * 64 * 9 * 8 * 8


def test_inexact_groups_say_why() -> None:
    pattern = PATTERNS["layer_norm_nhwc"]
    group = explain(pattern.build(), pattern.example)["groups"][0]
    assert not group["exact"]
    assert group["inexact_reason"] == "n: a layer norm across channels"


@pytest.mark.parametrize("name", ["resnet20", "densenet40"])
def test_it_is_json_and_the_shares_are_shares(name: str) -> None:
    found = explain(NETWORKS[name](10, (3, 32, 32)), torch.zeros(1, 3, 32, 32))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert sum(layer["flops"] for layer in found["layers"]) == found["flops"]
    assert sum(layer["params"] for layer in found["layers"]) == found["params"]
    assert all(0 < group["flops_share"] < found["prunable_share"] <= 1 for group in found["groups"])
    assert any(group["residual"] for group in found["groups"]) == (name == "resnet20")
