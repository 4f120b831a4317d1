"""A trial's path: its stages in order, and keys that hold what determines a stage's result and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.record import TrialSpec
from orchestrator.trial.path import Setting, steps

SpecOf = Callable[..., TrialSpec]
OTHER = {"epochs": 3, "learning_rate": 0.3}


def keys(spec: TrialSpec) -> list[str]:
    return [step.key for step in steps(Setting.of(spec))]


def test_stages_come_in_order(spec_of: SpecOf) -> None:
    path = list(steps(Setting.of(spec_of(iterations=3))))
    assert [step.kind for step in path] == ["dense", *["sparse", "cut"] * 3]
    assert [step.iteration for step in path] == [0, 1, 1, 2, 2, 3, 3]
    assert [step.parent for step in path] == [None, *(step.key for step in path[:-1])]
    assert len({step.key for step in path}) == 7


def test_keys_are_made_from_exactly_this(spec_of: SpecOf) -> None:
    """Whatever is added here parts new studies from all that were computed before."""
    setting = Setting.of(spec_of(method_options={"norm_parameters": True}))
    dense, sparse, cut, *_ = steps(setting)
    common = {"batch_size": 64, "decay": "one_cycle", "momentum": 0.9, "weight_decay": 5e-4}
    common |= {"label_smoothing": 0.0, "augmentation": "none"}
    options = {"norm_parameters": True, "residual_streams": False, "size_normalization": False}
    assert dense.parameters == {
        "version": 1,
        "model": "cifarnet",
        "data": {"name": "digits", "fingerprint": setting.data.fingerprint},
        "seed": 0,
        "schedule": {"epochs": 2, "learning_rate": 0.1, **common},
    }
    assert sparse.parameters == {
        "version": 2,
        "schedule": {"epochs": 1, "learning_rate": 0.05, **common},
        "penalty": {"method": "oicsr", "version": 1, "options": options, "regularization_weight": 0.01},
    }
    assert cut.parameters == {
        "version": 2,
        "method": {"name": "oicsr", "version": 1, "options": options},
        "pruning_ratio": 0.3,
        "group_cap": 0.5,
        "recovery": {"epochs": 1, "learning_rate": 0.02, **common},
    }


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({}, 5),
        ({"data_root": "elsewhere"}, 5),
        ({"iterations": 4}, 5),
        ({"method_options": {"size_normalization": False}}, 5),  # the default
        ({"recovery": OTHER}, 2),
        ({"pruning_ratio": 0.31}, 2),
        ({"group_cap": 0.4}, 2),
        ({"round_to": 1}, 5),  # the default
        ({"round_to": 8}, 2),
        ({"latency_batch": 0}, 5),
        ({"latency_batch": 8}, 0),
        ({"sparse": OTHER}, 1),
        ({"regularization_weight": 0.011}, 1),
        ({"method_options": {"size_normalization": True}}, 1),
        ({"method": "filter_norm"}, 1),
        ({"dense": OTHER}, 0),
        ({"seed": 1}, 0),
        ({"model": "resnet20"}, 0),
    ],
    ids=str,
)
def test_trials_share_stages_up_to_where_they_differ(spec_of: SpecOf, changes: dict[str, Any], shared: int) -> None:
    one, other = keys(spec_of()), keys(spec_of(**changes))
    same = [a == b for a, b in zip(one, other, strict=False)]
    assert same == [True] * shared + [False] * (len(same) - shared)


def test_rounding_is_in_a_cut_stages_key_only_where_there_is_any(spec_of: SpecOf) -> None:
    """What was computed before there was round_to is found again."""
    dense, sparse, cut, *_ = steps(Setting.of(spec_of(round_to=8)))
    assert "round_to" not in dense.parameters | sparse.parameters
    assert cut.parameters["round_to"] == 8
    for spec in (spec_of(), spec_of(round_to=1)):
        assert all("round_to" not in step.parameters for step in steps(Setting.of(spec)))


def test_options_of_the_choice_do_not_split_sparse_stages_without_a_penalty(spec_of: SpecOf) -> None:
    plain = spec_of(method="filter_norm")
    scaled = spec_of(method="filter_norm", method_options={"scale": "group_mean"})
    assert [a == b for a, b in zip(keys(plain), keys(scaled), strict=True)] == [True, True, False, False, False]
