"""The arms of a confirmation, trained for real on digits, a second each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator
from orchestrator import trial
from orchestrator.network.weights import fingerprint
from orchestrator.record import ArmSpec, InvalidInput, Measured, Outcome, Schedule, TrialSpec
from orchestrator.stage_files import WEIGHTS_FILE
from orchestrator.store import StageStore
from orchestrator.training.datasets import load
from orchestrator.training.loop import evaluate
from orchestrator.trial import confirming, networks

SpecOf = Callable[..., TrialSpec]
POINT = "b" * 64
STEPS = 1078 // 64 * 64  # pictures in an epoch
ARMS = ("pruned", "dense", "scratch")


def arm_of(spec: TrialSpec, arm: str, *, with_validation: bool = False) -> ArmSpec:
    (path,) = trial.paths([spec], with_validation=with_validation)
    return ArmSpec(**spec.model_dump(), point=POINT, path=path, arm=arm, with_validation=with_validation)


@dataclass(frozen=True, kw_only=True)
class Walked:
    """The three arms of one path, each run to its end."""

    store: StageStore
    spec: TrialSpec
    outcomes: dict[str, Outcome]

    def tested(self, arm: str) -> Measured:
        return self.store.tested(self.outcomes[arm].stages[-1])


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, spec_of: SpecOf) -> Walked:
    torch.set_num_threads(1)
    spec = spec_of(seed=1000, iterations=1)
    store = StageStore(tmp_path_factory.mktemp("confirmed") / "small" / "confirmed")
    outcomes = {arm: trial.run_arm(arm_of(spec, arm), store) for arm in ARMS}
    assert [outcome.failure for outcome in outcomes.values()] == [None] * 3
    return Walked(store=store, spec=spec, outcomes=outcomes)


def test_the_path_is_the_trials_own(walked: Walked, tmp_path: Path) -> None:
    """Same keys, same weights as a trial of this spec; but it is measured on the test split, and is no point."""
    outcome = trial.run(walked.spec, StageStore(tmp_path / "study"))
    assert walked.outcomes["pruned"].stages == outcome.stages
    assert walked.outcomes["pruned"].points == ()
    tested = walked.tested("pruned")
    point = outcome.points[-1]
    shared = ("key", "parent", "kind", "iteration", "flops", "params", "flops_kept", "accuracy", "seed")
    assert {name: getattr(tested, name) for name in shared} == {name: getattr(point, name) for name in shared}
    assert tested.path_cost.train_flops == point.path_cost.train_flops
    assert tested.epochs == 4
    assert list(walked.store.points()) == []


@pytest.mark.parametrize("arm", ARMS)
def test_the_figure_is_that_of_the_models_on_the_test_split(walked: Walked, arm: str) -> None:
    tested = walked.tested(arm)
    folder = walked.store.folder(tested.key)
    assert folder is not None
    model = orchestrator.load(folder)
    data = load("digits")
    assert evaluate(model, data, "test").accuracy == tested.test_accuracy
    assert evaluate(model, data, "validation").accuracy == tested.accuracy


def test_controls_have_the_train_flops_of_the_path_to_half_an_epoch(walked: Walked) -> None:
    budget = walked.tested("pruned").path_cost.train_flops
    for arm in ("dense", "scratch"):
        tested = walked.tested(arm)
        epoch = 3 * tested.flops * STEPS
        assert tested.path_cost.train_flops == tested.cost.train_flops == tested.epochs * epoch
        assert abs(tested.path_cost.train_flops - budget) <= epoch / 2
    assert walked.tested("dense").kind == "dense"
    assert walked.tested("dense").flops_kept == 1.0


def test_scratch_has_the_widths_of_the_path_and_weights_of_its_own(walked: Walked) -> None:
    pruned, scratch = walked.tested("pruned"), walked.tested("scratch")
    assert (scratch.flops, scratch.params, scratch.parent) == (pruned.flops, pruned.params, pruned.key)
    weights = [walked.store.folder(tested.key) for tested in (pruned, scratch)]
    assert fingerprint(weights[0] / WEIGHTS_FILE) != fingerprint(weights[1] / WEIGHTS_FILE)  # type: ignore[operator]


def test_what_is_measured_is_not_trained_or_measured_again(walked: Walked, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("nothing was to be done")

    monkeypatch.setattr(networks, "fit", refuse)
    monkeypatch.setattr(networks, "evaluate", refuse)
    for arm in ARMS:
        again = trial.run_arm(arm_of(walked.spec, arm), walked.store)
        assert again.stages == walked.outcomes[arm].stages
        assert again.computed == ()


def test_with_validation_there_is_no_accuracy_but_that_of_the_test_split(tmp_path: Path, spec_of: SpecOf) -> None:
    spec = spec_of(seed=1000, iterations=1)
    store = StageStore(tmp_path / "confirmed")
    arm = arm_of(spec, "pruned", with_validation=True)
    assert arm.path != arm_of(spec, "pruned").path
    seen: list[Measured] = []
    outcome = trial.run_arm(arm, store, seen.append)
    assert outcome.failure is None
    assert [tested.accuracy for tested in seen] == [None, None]
    assert seen[-1].test_accuracy > 0.5
    assert seen[0].cost.train_flops == 3 * seen[0].flops * (1438 // 64 * 64) * spec.dense.epochs
    folder = store.folder(seen[-1].key)
    assert folder is not None
    assert '"accuracy":null' in (folder / "model.json").read_text().replace(" ", "")
    assert '"validation' not in (folder / "tested.json").read_text()


def test_weights_that_were_brought_along_are_where_path_and_dense_control_start(
    walked: Walked, tmp_path: Path, spec_of: SpecOf
) -> None:
    trained = walked.store.folder(walked.outcomes["pruned"].stages[0])
    assert trained is not None
    spec = spec_of(seed=1001, iterations=1, weights=str(trained / WEIGHTS_FILE))
    store = StageStore(tmp_path / "confirmed")
    pruned = trial.run_arm(arm_of(spec, "pruned"), store)
    dense = trial.run_arm(arm_of(spec, "dense"), store)
    assert (pruned.failure, dense.failure) == (None, None)
    given, end = store.tested(pruned.stages[0]), store.tested(dense.stages[-1])
    assert given.epochs == 0
    assert (end.parent, end.kind) == (given.key, "dense")
    assert store.stage(end.key).parameters["schedule"]["learning_rate"] == spec.recovery.learning_rate
    assert end.path_cost.train_flops == end.cost.train_flops > 0


def test_data_that_differ_from_the_callers_are_no_result(tmp_path: Path, spec_of: SpecOf) -> None:
    arm = arm_of(spec_of(iterations=1), "pruned").model_copy(update={"path": "c" * 64})
    outcome = trial.run_arm(arm, StageStore(tmp_path / "confirmed"))
    assert outcome.failure is not None
    assert outcome.failure.message.startswith("data set digits or the code is another one here than where")
    assert outcome.stages == ()


def test_an_arm_that_diverges_is_a_recorded_failure(tmp_path: Path, spec_of: SpecOf) -> None:
    store = StageStore(tmp_path / "confirmed")
    spec = spec_of(iterations=1, dense=Schedule(epochs=1, learning_rate=1e25, batch_size=64))
    outcome = trial.run_arm(arm_of(spec, "pruned"), store)
    assert outcome.failure is not None
    assert outcome.failure.reason == "diverged"
    assert [failure.key for failure in store.failures()] == [outcome.failure.key]


def test_paths_refuse_what_no_arm_could_run(spec_of: SpecOf) -> None:
    with pytest.raises(InvalidInput, match="unknown data set 'digit'; did you mean digits"):
        trial.paths([spec_of(dataset="digit")], with_validation=False)


def test_random_weights_of_a_cut_network_are_as_wide_as_it_would_draw_them() -> None:
    whole, small = (
        nn.Sequential(nn.Conv2d(64, 8, 3), nn.Linear(400, 50)),
        nn.Sequential(nn.Conv2d(16, 8, 3), nn.Linear(100, 50)),
    )
    with torch.no_grad():
        for part, source in zip(small, whole, strict=True):
            part.weight.copy_(source.weight[:, : part.weight.shape[1]])
            part.bias.copy_(source.bias)
    scaled = nn.Parameter(torch.ones(1, 4))
    small.scale, whole.scale = scaled, nn.Parameter(torch.ones(1, 8))
    confirming.spread_(small, whole, {"0.weight", "1.weight"})
    assert scaled.eq(1).all()  # nobody draws it for a number of inputs
    for part in (small[0], small[1]):
        bound = part.weight[0].numel() ** -0.5  # PyTorch draws evenly from -bound to bound
        assert part.weight.abs().max() <= bound
        assert part.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert part.bias.equal(whole[0 if isinstance(part, nn.Conv2d) else 1].bias)
