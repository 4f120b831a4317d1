"""Real trials on digits, a second each: what they yield, what is reused, how they fail, what a kill leaves."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from short_trials import Finished
from torch import nn

import orchestrator
from orchestrator import trial
from orchestrator.files import StorageFault
from orchestrator.methods import METHODS, Budget, Subject
from orchestrator.methods.channel_sums import ChannelSums
from orchestrator.network import CostTable, Plan
from orchestrator.network.artifact import read
from orchestrator.network.latency import Latency
from orchestrator.record import Failure, InvalidInput, Outcome, Point, TrialSpec, seed_of
from orchestrator.store import StageStore
from orchestrator.training.batches import preprocessing_of
from orchestrator.training.datasets import load
from orchestrator.training.loop import evaluate
from orchestrator.trial import networks, verified
from orchestrator.trial.provenance import commit

SpecOf = Callable[..., TrialSpec]
ABSURD = {"epochs": 1, "learning_rate": 1e25, "batch_size": 64}  # a schedule that ends in NaN


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "study")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trains after this fails the test."""

    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("nothing was to be trained")

    monkeypatch.setattr(networks, "fit", refuse)


def fit_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException, *, after: int) -> None:
    """The given number of training runs go well, the next raises."""
    real, left = networks.fit, iter(range(after))

    def fit(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is None:
            raise error
        return real(*arguments, **named)

    monkeypatch.setattr(networks, "fit", fit)


def kinds(store: StageStore) -> list[str]:
    return sorted(stage.kind for stage in store.stages())


def figures(outcome: Outcome) -> list[dict[str, Any]]:
    """All of the points but times."""
    assert outcome.failure is None
    return [point.model_dump(exclude={"cost", "path_cost", "created"}) for point in outcome.points]


def plan_of(store: StageStore, point: Point) -> Plan:
    folder = store.folder(point.key)
    assert folder is not None
    return Plan.from_json((folder / "plan.json").read_text())


# -- what a trial yields ---------------------------------------------------------------------------------------------


def test_a_trial_yields_the_dense_point_and_one_an_iteration(finished: Finished) -> None:
    points = finished.outcome.points
    assert finished.outcome.failure is None
    assert [(point.kind, point.iteration) for point in points] == [("dense", 0), ("cut", 1), ("cut", 2)]
    assert len(finished.outcome.computed) == 5
    assert finished.outcome.reused == ()
    assert kinds(finished.store) == ["cut", "cut", "dense", "sparse", "sparse"]
    assert finished.store.failures() == []
    assert points[0].method is points[0].regularization_weight is points[0].pruning_ratio is None
    assert {(p.method, p.regularization_weight, p.pruning_ratio) for p in points[1:]} == {("oicsr", 0.01, 0.3)}
    assert points[0].accuracy > 0.85
    assert points[1].accuracy > 0.5


def test_points_are_reported_as_they_come(finished: Finished) -> None:
    reported: list[Point] = []
    outcome = trial.run(finished.spec, finished.store, reported.append)
    assert tuple(reported) == outcome.points


def test_each_iteration_meets_its_budget_to_within_one_channel(finished: Finished) -> None:
    points, ratio = finished.outcome.points, finished.spec.pruning_ratio
    dense = trial.rebuild(finished.spec, finished.store, points[0].key)
    table = CostTable(dense.coupling)
    before, budget = np.ones(dense.coupling.channels, bool), points[0].flops
    for iteration, point in enumerate(points[1:], start=1):
        budget = int(budget * (1 - ratio))
        kept = plan_of(finished.store, point).mask(dense.coupling)
        assert point.flops == table.flops(kept) <= budget
        with_one_more = [table.flops(kept | (np.arange(len(kept)) == c)) for c in np.flatnonzero(before & ~kept)]
        assert max(with_one_more) > budget
        assert point.flops_kept == pytest.approx((1 - ratio) ** iteration, abs=0.03)
        assert point.params == table.params(kept)
        before, budget = kept, point.flops


def test_no_iteration_takes_more_of_a_group_than_the_cap(store: StageStore, spec_of: SpecOf) -> None:
    spec = spec_of(group_cap=0.26, pruning_ratio=0.4, iterations=1)
    point = trial.run(spec, store).points[-1]
    kept = plan_of(store, point).kept
    assert len(kept["conv1"]) == 24
    assert len(kept["conv2"]) >= 24
    assert len(kept["conv3"]) == 48


def test_costs_are_counted(finished: Finished) -> None:
    points, spec = finished.outcome.points, finished.spec
    steps = 1078 // 64
    assert points[0].cost.train_flops == 3 * points[0].flops * steps * 64 * spec.dense.epochs
    recovered = 3 * points[1].flops * steps * 64 * spec.recovery.epochs
    assert points[1].cost.train_flops == recovered
    sparse = 3 * points[0].flops * steps * 64 * spec.sparse.epochs
    assert points[1].path_cost.train_flops == points[0].cost.train_flops + sparse + recovered
    assert points[2].path_cost.seconds > points[1].path_cost.seconds > points[0].cost.seconds > 0


def test_a_stored_stage_holds_what_its_key_was_made_from(finished: Finished) -> None:
    stages = {stage.key: stage for stage in finished.store.stages()}
    cut = stages[finished.outcome.points[1].key]
    assert cut.parameters["pruning_ratio"] == 0.3
    assert cut.parent is not None
    assert stages[cut.parent].parameters["penalty"]["regularization_weight"] == 0.01
    assert seed_of(cut.key) != seed_of(cut.parent)


def test_the_same_trial_elsewhere_gives_the_same_figures_and_weights(finished: Finished, store: StageStore) -> None:
    torch.manual_seed(99)  # the caller's random state is of no account
    outcome = trial.run(finished.spec, store)
    assert figures(outcome) == figures(finished.outcome)
    for key in outcome.computed:
        one, other = (
            load_file(str(each.root / f"stages/{key}/weights.safetensors")) for each in (store, finished.store)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


# -- what is reused --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_training")
def test_a_second_run_computes_nothing(finished: Finished) -> None:
    outcome = trial.run(finished.spec, finished.store)
    assert outcome.computed == ()
    assert outcome.reused == finished.outcome.computed
    assert outcome.points == finished.outcome.points


@pytest.mark.usefixtures("no_training")
def test_a_shorter_trial_is_a_prefix(finished: Finished, spec_of: SpecOf) -> None:
    outcome = trial.run(spec_of(iterations=1), finished.store)
    assert outcome.points == finished.outcome.points[:2]


def test_a_longer_trial_goes_on_where_the_shorter_ended(store: StageStore, spec_of: SpecOf) -> None:
    short = trial.run(spec_of(iterations=1), store)
    long = trial.run(spec_of(iterations=2), store)
    assert long.reused == short.computed
    assert len(long.computed) == 2
    assert long.points[:2] == short.points


def test_another_weight_shares_the_dense_stage_alone(store: StageStore, spec_of: SpecOf) -> None:
    first = trial.run(spec_of(iterations=1), store)
    second = trial.run(spec_of(iterations=1, regularization_weight=0.02), store)
    assert second.reused == first.computed[:1]


def test_another_ratio_shares_the_sparse_stage(store: StageStore, spec_of: SpecOf) -> None:
    first = trial.run(spec_of(iterations=1), store)
    second = trial.run(spec_of(iterations=1, pruning_ratio=0.4), store)
    assert second.reused == first.computed[:2]


def test_methods_that_add_no_penalty_share_sparse_stages(store: StageStore, spec_of: SpecOf) -> None:
    first = trial.run(spec_of(iterations=1, method="filter_norm", regularization_weight=0.5), store)
    second = trial.run(spec_of(iterations=1, method="oicsr", regularization_weight=0.0), store)
    assert second.reused == first.computed[:2]
    assert [outcome.points[-1].regularization_weight for outcome in (first, second)] == [0.0, 0.0]
    assert [outcome.points[-1].method for outcome in (first, second)] == ["filter_norm", "oicsr"]


def test_the_penalty_acts_in_sparse_stages(store: StageStore, spec_of: SpecOf) -> None:
    """The sum over channels of their norms is smaller with it than without."""
    norms = []
    for weight in (0.0, 0.1):
        spec = spec_of(iterations=1, regularization_weight=weight)
        network = trial.rebuild(spec, store, trial.run(spec, store).computed[-2])
        squares = ChannelSums(network.model, network.coupling).squares()
        norms.append(squares.sqrt().sum().item())
    assert norms[1] < 0.9 * norms[0]


# -- weights from a file ---------------------------------------------------------------------------------------------


@pytest.fixture
def weights(finished: Finished, tmp_path: Path) -> Path:
    """The weights of the finished trial's dense model, as a user would have saved them."""
    model = trial.rebuild(finished.spec, finished.store, finished.outcome.points[0].key).model
    torch.save(model.state_dict(), tmp_path / "trained.pt")
    return tmp_path / "trained.pt"


def test_a_trial_starts_from_the_users_weights(
    finished: Finished, weights: Path, store: StageStore, spec_of: SpecOf
) -> None:
    spec = spec_of(weights=str(weights), iterations=1)
    outcome = trial.run(spec, store)
    assert outcome.failure is None
    dense = outcome.points[0]
    assert dense.cost.train_flops == 0
    assert dense.accuracy == finished.outcome.points[0].accuracy
    assert dense.key != finished.outcome.points[0].key
    model = trial.rebuild(spec, store, dense.key).model
    assert evaluate(model, load("digits"), "validation").accuracy == dense.accuracy


@pytest.mark.usefixtures("no_training")
def test_other_weights_are_another_trial(weights: Path, store: StageStore, spec_of: SpecOf) -> None:
    spec = spec_of(weights=str(weights), iterations=1)
    first = trial.run(spec, store).points[0]
    state = torch.load(weights, weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, weights)
    assert trial.run(spec, store).points[0].key != first.key


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "points"), [("dense", 0), ("sparse", 1), ("recovery", 1)])
def test_a_trial_that_diverges_ends_as_a_record(store: StageStore, spec_of: SpecOf, stage: str, points: int) -> None:
    spec = spec_of(**{stage: ABSURD})
    outcome = trial.run(spec, store)
    assert outcome.failure is not None
    assert outcome.failure.reason == "diverged"
    assert outcome.failure.spec == spec
    assert "Diverged" in outcome.failure.traceback
    assert len(outcome.points) == points
    assert store.failures() == [outcome.failure]
    assert len(kinds(store)) == len(outcome.computed)


def test_a_trial_that_once_diverged_is_not_tried_again(
    store: StageStore, spec_of: SpecOf, request: pytest.FixtureRequest
) -> None:
    first = trial.run(spec_of(recovery=ABSURD), store)
    request.getfixturevalue("no_training")
    again = trial.run(spec_of(recovery=ABSURD), store)
    assert again.failure == first.failure
    assert again.points == first.points
    assert again.computed == ()
    longer = trial.run(spec_of(recovery=ABSURD, iterations=5), store).failure
    assert longer is not None
    assert (longer.key, longer.spec.iterations) == (first.failure.key if first.failure else None, 5)
    assert store.failures() == [first.failure]


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (MemoryError(), "out_of_memory: MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "out_of_memory: CUDA out of memory."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory: DefaultCPUAllocator: can't"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), "out_of_memory: CUBLAS_STATUS_ALLOC_FAILED"),
        (ZeroDivisionError("\n by zero\n"), "error: by zero"),
    ],
)
def test_a_trial_that_raises_keeps_what_it_had(
    store: StageStore, spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch, error: Exception, recorded: str
) -> None:
    fit_raises(monkeypatch, error, after=2)
    outcome = trial.run(spec_of(), store)
    assert outcome.failure is not None
    assert f"{outcome.failure.reason}: {outcome.failure.message}".startswith(recorded)
    assert [point.kind for point in outcome.points] == ["dense"]
    assert kinds(store) == ["dense", "sparse"]
    monkeypatch.undo()
    assert len(trial.run(spec_of(), store).computed) == 3  # nothing says that it would fail again


def test_a_model_that_breaks_in_training_ends_with_its_traceback(store: StageStore, spec_of: SpecOf) -> None:
    outcome = trial.run(spec_of(model="own_models:breaks_in_training"), store)
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.message) == ("error", "the user's own bug")
    assert "own_models.py" in outcome.failure.traceback
    assert outcome.points == ()


def test_a_full_disk_is_the_storages_fault(store: StageStore, spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the failure itself cannot be recorded."""
    fit_raises(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), after=1)
    outcome = trial.run(spec_of(), store)
    assert outcome.failure is not None
    assert outcome.failure.reason == "storage"
    assert re.search(r"/study/staging/.*: no space is left there", outcome.failure.message)
    assert [point.kind for point in outcome.points] == ["dense"]
    (recorded,) = store.failures()
    assert recorded == outcome.failure

    def refuse(failure: Failure) -> None:
        raise StorageFault("/study: no space is left there")

    monkeypatch.setattr(store, "record_failure", refuse)
    again = trial.run(spec_of(), store)
    assert again.failure is not None
    assert again.failure.reason == "storage"


def test_a_budget_out_of_reach_is_a_record(store: StageStore, spec_of: SpecOf) -> None:
    outcome = trial.run(spec_of(pruning_ratio=0.9), store)
    assert outcome.failure is not None
    assert outcome.failure.reason == "budget"
    assert outcome.failure.message.startswith("flops budget 66,623 cannot be met: with a cap of 0.5 a group")
    assert [point.kind for point in outcome.points] == ["dense"]


def test_what_there_is_not_is_a_record_too(store: StageStore, spec_of: SpecOf) -> None:
    outcome = trial.run(spec_of(dataset="didgets"), store)
    assert outcome.failure is not None
    assert "unknown data set 'didgets'" in outcome.failure.message
    assert (outcome.points, outcome.computed, outcome.reused) == ((), (), ())
    assert [failure.key for failure in store.failures()] == [outcome.failure.key]


def frozen_in(store: StageStore) -> list[tuple[str, list[str]]]:
    """What verification froze in which stages, in the order of their paths."""
    stages = sorted(store.stages(), key=lambda stage: stage.created)
    return [(stage.kind, [frozen.group for frozen in stage.frozen]) for stage in stages]


def test_a_group_whose_cut_is_wrong_stays_whole(store: StageStore, spec_of: SpecOf) -> None:
    gentle = {"epochs": 1, "learning_rate": 0.01, "batch_size": 64}
    spec = spec_of(model="own_models:deceitful", dense=gentle, sparse=gentle, recovery=gentle)
    outcome = trial.run(spec, store)
    assert outcome.failure is None
    assert [set(plan_of(store, point).kept) for point in outcome.points[1:]] == [{"b"}, {"b"}]
    assert frozen_in(store) == [("dense", ["a"]), ("sparse", []), ("cut", []), ("sparse", []), ("cut", [])]
    (frozen,) = store.stage(outcome.points[0].key).frozen
    assert (frozen.channels, frozen.reason[:33]) == (8, "cut and masked network differ by ")


def test_a_group_whose_cut_turns_out_wrong_on_trained_weights_stays_whole(store: StageStore, spec_of: SpecOf) -> None:
    gentle = {"epochs": 1, "learning_rate": 0.01, "batch_size": 64}
    spec = spec_of(model="own_models:deceitful_later", dense=gentle, sparse=gentle, recovery=gentle)
    outcome = trial.run(spec, store)
    assert outcome.failure is None
    assert [set(plan_of(store, point).kept) for point in outcome.points[1:]] == [{"b"}, {"b"}]
    assert frozen_in(store) == [("dense", []), ("sparse", []), ("cut", ["a"]), ("sparse", []), ("cut", ["a"])]


def test_a_group_that_the_method_leaves_whole_is_recorded(store: StageStore, spec_of: SpecOf) -> None:
    gentle = {"epochs": 1, "learning_rate": 0.01, "batch_size": 64}
    model = "own_models:weight_normed"
    spec = spec_of(model=model, method="compensation", dense=gentle, sparse=gentle, recovery=gentle)
    outcome = trial.run(spec, store)
    assert outcome.failure is None
    assert frozen_in(store) == [("dense", []), ("sparse", []), ("cut", ["a"]), ("sparse", []), ("cut", ["a"])]
    (frozen,) = store.stage(outcome.points[-1].key).frozen
    assert frozen.reason == "compensation can treat no layer that reads these channels"


def test_a_model_that_cannot_be_cut_correctly_ends_as_a_record(
    finished: Finished, store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "verify", lambda model, coupling, plan, example: Failing(failing=tuple(plan.kept)))
    outcome = trial.run(finished.spec, store)
    assert outcome.failure is not None
    assert re.match("budget: flops budget .* cannot be met", f"{outcome.failure.reason}: {outcome.failure.message}")
    assert [point.kind for point in outcome.points] == ["dense"]


@dataclass(frozen=True)
class Failing:
    """A verification that found the cut wrong, and whom to blame."""

    failing: tuple[str, ...]
    difference: float = 1.0

    @property
    def passed(self) -> bool:
        return not self.failing


def test_a_method_may_look_at_training_data_and_repair_what_is_cut(
    store: StageStore, spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    filter_norm, seen = METHODS["filter_norm"], dict[str, Any]()

    def choose(subject: Subject, budget: Budget) -> Plan:
        seen["batches"], seen["again"] = list(subject.calibration()), list(subject.calibration())
        return filter_norm.choose(subject, budget)

    def repair_(model: nn.Module, subject: Subject, plan: Plan) -> dict[str, str]:
        seen["widths"] = model.conv1.out_channels, subject.model.conv1.out_channels, len(plan.kept["conv1"])
        with torch.no_grad():
            model.classifier.weight.zero_()  # what it does is what is measured: a constant answer
        return {"conv2": "it is made up"}

    made_up = replace(filter_norm, name="made_up", choose=choose, repair_=repair_)
    monkeypatch.setitem(METHODS, "made_up", made_up)
    outcome = trial.run(spec_of(method="made_up", iterations=1), store)
    assert outcome.failure is None
    assert outcome.points[1].accuracy_after_cut == pytest.approx(0.1, abs=0.02)
    assert [store.stage(key).unrepaired for key in outcome.stages] == [{}, {}, {"conv2": "it is made up"}]
    cut, full, kept = seen["widths"]
    assert cut == kept < full == 32
    assert [tuple(pictures.shape) for pictures, _ in seen["batches"]] == [(128, 1, 8, 8)] * 8
    for one, other in zip(seen["batches"], seen["again"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupt_passes_through_and_leaves_no_half_stage(
    store: StageStore, spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    fit_raises(monkeypatch, error, after=1)
    with pytest.raises(type(error)):
        trial.run(spec_of(), store)
    monkeypatch.undo()
    assert kinds(store) == ["dense"]
    assert list((store.root / "staging").iterdir()) == []
    assert store.failures() == []
    assert len(trial.run(spec_of(), store).computed) == 4


STALLS = """
import sys, time
from pathlib import Path
from orchestrator import trial
from orchestrator.record import TrialSpec
from orchestrator.store import StageStore
from orchestrator.trial import networks, verified

def stall(*arguments, **named):
    Path(sys.argv[3]).touch()
    time.sleep(600)

networks.fit = stall
trial.run(TrialSpec.model_validate_json(sys.argv[1]), StageStore(sys.argv[2]))
"""


def test_a_stage_killed_in_the_middle_is_computed_by_the_next_run(
    finished: Finished, store: StageStore, spec_of: SpecOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_raises(monkeypatch, KeyboardInterrupt(), after=1)
    with pytest.raises(KeyboardInterrupt):
        trial.run(finished.spec, store)
    monkeypatch.undo()
    mark = tmp_path / "training"
    arguments = [sys.executable, "-c", STALLS, finished.spec.model_dump_json(), str(store.root), str(mark)]
    paths = os.pathsep.join(sys.path)
    with subprocess.Popen(arguments, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while not mark.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        _, complaint = process.communicate()
    assert mark.exists(), complaint
    assert kinds(store) == ["dense"]
    assert store.failures() == []
    outcome = trial.run(finished.spec, store)
    assert len(outcome.reused) == 1
    assert figures(outcome) == figures(finished.outcome)
    assert list((store.root / "staging").iterdir()) == []
    assert store.duplicates() == 0


# -- models out of the store -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_training")
def test_a_rebuilt_model_has_its_points_accuracy(finished: Finished) -> None:
    data = load("digits")
    for point in finished.outcome.points:
        network = trial.rebuild(finished.spec, finished.store, point.key)
        assert evaluate(network.model, data, "validation").accuracy == point.accuracy
        assert CostTable(network.coupling).flops() == point.flops


@pytest.mark.usefixtures("no_training")
def test_a_replayed_cut_has_its_points_accuracy_after_the_cut(finished: Finished) -> None:
    data = load("digits")
    for point in finished.outcome.points[1:]:
        network = trial.replay_cut(finished.spec, finished.store, point.key)
        assert evaluate(network.model, data, "validation").accuracy == point.accuracy_after_cut


def test_a_stage_that_is_not_there_is_no_model(finished: Finished) -> None:
    with pytest.raises(KeyError, match="0000"):
        trial.rebuild(finished.spec, finished.store, "0" * 64)
    with pytest.raises(KeyError):
        trial.replay_cut(finished.spec, finished.store, finished.outcome.points[0].key)


def test_points_carry_a_latency_if_asked(store: StageStore, spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def latency(model: nn.Module, input_shape: tuple[int, ...], **options: Any) -> Latency:
        asked.append({"widths": sum(p.numel() for p in model.parameters()), "shape": input_shape, **options})
        facts = {"p10_ms": 1.0, "p90_ms": 1.0, "throughput": 1.0, "threads": 1, "device": "cpu", "repeats": 1}
        return Latency(latency_ms=1.5, batch=options["batch"], **facts)

    monkeypatch.setattr(networks, "latency", latency)
    still = {"epochs": 0, "learning_rate": 0.1}
    spec = spec_of(dense=still, sparse=still, recovery=still, latency_batch=4)
    outcome = trial.run(spec, store)
    assert outcome.failure is None
    assert [(point.latency_ms, point.latency_batch) for point in outcome.points] == [(1.5, 4)] * 3
    assert [each["widths"] for each in asked] == [point.params for point in outcome.points]
    assert {(each["shape"], each["batch"]) for each in asked} == {((1, 8, 8), 4)}
    plain = trial.run(spec.model_copy(update={"latency_batch": 0}), store)
    assert len(plain.computed) == 5  # other stages: a point without a latency is none with one
    assert all(point.latency_ms is None for point in plain.points)


# -- what a stage leaves ---------------------------------------------------------------------------------------------


def test_a_points_folder_is_a_model(finished: Finished) -> None:
    data = load("digits")
    for point in finished.outcome.points:
        folder = finished.store.folder(point.key)
        model = orchestrator.load(folder)
        assert evaluate(model, data, "validation").accuracy == pytest.approx(point.accuracy, abs=1e-6)
        card = read(folder)
        assert (card.flops, card.params, card.accuracy) == (point.flops, point.params, point.accuracy)
        assert (card.accuracy_after_cut, card.dataset) == (point.accuracy_after_cut, "digits")
        assert (card.provenance.stage, card.provenance.study) == (point.key, finished.store.root.name)
        assert card.provenance.commit == commit()
        assert card.preprocessing == preprocessing_of(data)


def test_a_model_of_the_users_own_code_is_loaded_by_leave(store: StageStore, spec_of: SpecOf) -> None:
    still = {"epochs": 0, "learning_rate": 0.1}
    spec = spec_of(model="own_models:small", iterations=1, dense=still, sparse=still, recovery=still)
    (*_, point) = trial.run(spec, store).points
    with pytest.raises(InvalidInput, match=r"architecture\.reference is own_models:small, code that loading would run"):
        orchestrator.load(store.folder(point.key))
    assert orchestrator.load(store.folder(point.key), allow_code=["own_models:small"]) is not None
