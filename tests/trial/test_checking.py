"""check: what every trial of a kind would fail at is said in one line before any of them starts."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import trial
from orchestrator.network.architectures import build
from orchestrator.record import InvalidInput, TrialSpec

SpecOf = Callable[..., TrialSpec]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "resnet20", "method": "filter_norm", "method_options": {"scale": "group_mean"}},
        {"model": "own_models:small", "method": "separated_group_lasso"},
        {"iterations": 5},
    ],
    ids=str,
)
def test_a_trial_that_can_be_run_passes(spec_of: SpecOf, changes: dict[str, Any]) -> None:
    assert trial.check(spec_of(**changes)) == ()


def test_what_will_stay_whole_is_said(spec_of: SpecOf) -> None:
    (note,) = trial.check(spec_of(model="own_models:deceitful"))
    assert re.fullmatch(
        r"own_models:deceitful: group a \(8 channels\) stays whole: cut and masked network differ by \S+", note
    )


def test_what_the_method_leaves_whole_is_said(spec_of: SpecOf) -> None:
    (note,) = trial.check(spec_of(model="own_models:weight_normed", method="compensation"))
    assert note == (
        "own_models:weight_normed: group a (8 channels) stays whole: "
        "compensation can treat no layer that reads these channels"
    )
    with pytest.raises(InvalidInput, match="own_models:weight_normed has at least"):  # without group a
        trial.check(spec_of(model="own_models:weight_normed", method="compensation", pruning_ratio=0.6))


def test_what_runs_in_training_alone_is_said_to_stay(spec_of: SpecOf) -> None:
    (note,) = trial.check(spec_of(model="own_models:auxiliary_head"))
    assert note == (
        "own_models:auxiliary_head: group aside (6 channels) stays whole: its layers run in training alone: nothing "
        "would be saved"
    )


def test_a_model_whose_answers_change_is_refused(spec_of: SpecOf) -> None:
    with pytest.raises(InvalidInput, match="in evaluation mode the model gives another output for the same input"):
        trial.check(spec_of(model="own_models:noisy"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet57"}, r"unknown model 'resnet57'; did you mean resnet56"),
        ({"model": "own_models:large"}, r"own_models has no function large; it has .*small"),
        ({"model": "no_such_module:small"}, r"no_such_module cannot be imported: No module named"),
        ({"dataset": "digit"}, r"unknown data set 'digit'; did you mean digits\?"),
        (
            {"dataset": "mnist", "data_root": "nowhere"},
            r"data set mnist: nowhere/MNIST/raw/.*: no such file; get it by",
        ),
        ({"method": "oicrs"}, r"method is 'oicrs' \(did you mean 'oicsr'\?\); it must be one of"),
        ({"method_options": {"norms": True}}, r"method_options\.norms: oicsr has no such option; it has"),
        (
            {"method_options": {"norm_parameters": 3}},
            r"method_options\.norm_parameters of oicsr is 3; input should be a val",
        ),
        ({"model": "torchvision:alexnet"}, r"the model does not run on 1x8x8 pictures: "),
        ({"model": "own_models:two_outputs"}, r"the model must return one tensor \[N, classes\]; it returned tuple"),
        (
            {"model": "own_models:eleven_classes"},
            r"the model must return \[2, 10\] for two pictures; it returned \[2, 11\]",
        ),
        ({"weights": "none.pt"}, r"weights: none\.pt: no such file"),
        (
            {"model": "own_models:one_feature", "method": "feature_flow"},
            r"feature_flow: this network's path has no two features to compare \(it has 8\)",
        ),
        (
            {"method": "feature_flow", "method_options": {"shape_change": "skip"}},
            r"no two features to compare \(it has .*\); method_options\.shape_change: 'project' compares",
        ),
        (
            {"model": "own_models:weight_normed", "method": "fisher"},
            r"b\.\S+: what this layer reads cannot be seen",
        ),
        (
            {"model": "own_models:weight_normed", "method": "taylor", "method_options": {"importance": "gate"}},
            r"b\.\S+: what this layer reads cannot be seen: its weight is computed before it is used, or",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named(spec_of: SpecOf, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        trial.check(spec_of(**changes))
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_named(spec_of: SpecOf, tmp_path: Path) -> None:
    other = build("cifarnet", classes=7, input_shape=(1, 8, 8), seed=0)
    torch.save(other.state_dict(), tmp_path / "seven.pt")
    with pytest.raises(InvalidInput, match=r"seven\.pt: classifier\.weight is \(7, 64\); the network needs \(10, 64\)"):
        trial.check(spec_of(weights=str(tmp_path / "seven.pt")))


def test_pruning_below_one_channel_a_group_is_refused(spec_of: SpecOf) -> None:
    with pytest.raises(InvalidInput, match=r"pruning_ratio 0\.5 asks for .* flops in iteration 9; with group_cap 0\.9"):
        trial.check(spec_of(pruning_ratio=0.5, iterations=50, group_cap=0.9))


def test_pruning_faster_than_the_cap_allows_is_refused(spec_of: SpecOf) -> None:
    message = (
        r"pruning_ratio 0\.9 asks for 66,624 flops in iteration 1; with group_cap 0\.5 and a channel left in every "
        r"group, cifarnet has at least [\d,]+ of its 666,240 then"
    )
    with pytest.raises(InvalidInput, match=message):
        trial.check(spec_of(pruning_ratio=0.9))


def test_pruning_that_only_rounding_forbids_is_refused_with_the_reason(spec_of: SpecOf) -> None:
    with pytest.raises(InvalidInput, match=r"in iteration 1; .* round_to 8, .*; round_to is the reason: without it 44"):
        trial.check(spec_of(pruning_ratio=0.3, group_cap=0.2, round_to=8))
    with pytest.raises(
        InvalidInput, match=r"group_cap 0\.2 and round_to 8, cifarnet has at least [\d,]+ of its \S+ then$"
    ):
        trial.check(spec_of(pruning_ratio=0.5, group_cap=0.2, round_to=8))


def test_a_model_without_a_channel_to_prune_is_refused(spec_of: SpecOf) -> None:
    with pytest.raises(InvalidInput, match=r"own_models:rigid has at least 640 of its 640"):
        trial.check(spec_of(model="own_models:rigid"))


@pytest.mark.parametrize(
    ("ratio", "cap", "round_to"),
    [
        *[(0.7, 0.5, 1), (0.75, 0.5, 1), (0.8, 0.5, 1), (0.4, 0.2, 1), (0.3, 0.2, 1), (0.9, 0.9, 1)],
        *[(0.03, 0.2, 8), (0.05, 0.2, 8), (0.01, 0.2, 16), (0.7, 0.5, 16), (0.15, 0.5, 32), (0.16, 0.5, 32)],
        *[(0.93, 0.9, 8), (0.94, 0.9, 8)],
    ],
)
def test_check_refuses_what_the_first_iteration_cannot_do_and_nothing_else(
    spec_of: SpecOf, ratio: float, cap: float, round_to: int, tmp_path: Path
) -> None:
    from orchestrator.store import StageStore

    still = {"epochs": 0, "learning_rate": 0.1}
    schedules = {"dense": still, "sparse": still, "recovery": still}
    spec = spec_of(pruning_ratio=ratio, group_cap=cap, round_to=round_to, iterations=1, **schedules)
    failure = trial.run(spec, StageStore(tmp_path / "study")).failure
    if failure is None:
        assert trial.check(spec) == ()
    else:
        assert failure.reason == "budget"
        with pytest.raises(InvalidInput, match="pruning_ratio"):
            trial.check(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "own_models:small", "method": "slimming", "method_options": {"without_norm": "refuse"}},
            "slimming: no norm scales the 8 channels of a",
        ),
        (
            {"method": "pfec", "method_options": {"recipe": "resnet56-b"}},
            "recipe resnet56-b is for ResNet-56, of 55 convolutions larger than 1 x 1; this network has 3",
        ),
    ],
)
def test_what_a_methods_options_cannot_do(spec_of: SpecOf, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        trial.check(spec_of(**changes))
