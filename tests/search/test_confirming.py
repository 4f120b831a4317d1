"""Confirmations through Ray, of arms that take no time: what is trained, when, what is repeated, what is said."""

import io
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_arm
import fake_trial
import pytest
from holding import hold, is_held, release
from rich.console import Console
from typer.testing import CliRunner

from orchestrator import cli, trial
from orchestrator.collector import Study
from orchestrator.record import ArmSpec, InvalidInput, TrialRecord, TrialSpec, now
from orchestrator.search import Confirmed, SearchSpace, confirm, runner
from orchestrator.search.arms import Arms
from orchestrator.search.binding import bind
from orchestrator.search.chosen import paths_of, spread, within
from orchestrator.search.confirming import ArmsProgress
from orchestrator.search.progress import Counts
from orchestrator.search.proposals import Result
from orchestrator.search.space import Resources
from orchestrator.store import Occupied, StageStore

Write = Callable[..., Path]
DRIVER = Path(__file__).with_name("confirm_driver.py")
SETTINGS = [(0.01, 0.2, 4), (0.01, 0.5, 3), (0.1, 0.35, 2)]  # weight, ratio, iterations


@pytest.fixture(scope="module")
def ray_on_loopback() -> Iterator[None]:
    runner._set_environment(None)
    from orchestrator.search import session

    with session.connected(None, Resources()):
        yield


@pytest.fixture
def searched(space_file: Write, tmp_path: Path) -> Callable[..., Study]:
    """Makes a study that a search has left, without Ray; `options` are method_options of all its trials."""

    def make(options: str = "", confirm: str = "", records: bool = True) -> Study:
        text = {"[trial]": f"[trial]\nmethod_options = {{ {options} }}", "[budget]": f"[confirm]\n{confirm}\n[budget]"}
        space = SearchSpace.read(space_file("small", **text))
        store = StageStore(tmp_path / "results" / "small")
        bind(store, space, None)
        for index, (weight, ratio, iterations) in enumerate(SETTINGS):
            values = {"regularization_weight": weight, "pruning_ratio": ratio, "iterations": iterations}
            spec = space.spec(values)
            plain = spec.model_copy(update={"method_options": {}})
            outcome = fake_trial.run(plain, store)
            if records:
                record = TrialRecord(index=index, spec=spec, stages=outcome.stages, created=now())
                store.record_trial(record)
        return Study(store.root)

    return make


class Confirm:
    """Calls of confirm with fake arms, and what was printed."""

    printed: tuple[str, ...] = ()

    def __call__(self, study: Study, **changes: Any) -> Confirmed:
        console = Console(file=io.StringIO(), width=100)
        given = {"run_arm": fake_arm.run, "paths": fake_arm.paths, **changes}
        try:
            return confirm(study.path, console=console, **given)
        finally:
            assert isinstance(console.file, io.StringIO)
            self.printed = tuple(console.file.getvalue().splitlines())


@pytest.fixture
def confirmed() -> Confirm:
    return Confirm()


def computed(study: Study) -> list[str]:
    return (Path(str(study.path)) / "confirmed" / "computed.txt").read_text().split()


# -- which points, which paths ---------------------------------------------------------------------------------------


def test_points_are_spread_over_the_pruned_part_of_the_frontier(searched: Callable[..., Study]) -> None:
    study = searched()
    front = study.front()
    pruned = front[front["kind"] == "cut"]
    assert len(pruned) >= 5
    chosen = spread(study, 3)
    assert [point.key for point in (chosen[0], chosen[-1])] == [pruned["key"].iloc[0], pruned["key"].iloc[-1]]
    middle = math.sqrt(chosen[0].flops * chosen[-1].flops)
    assert chosen[1].flops == min(pruned["flops"], key=lambda flops: abs(math.log(flops / middle)))
    assert len(spread(study, 1)) == 1
    assert [point.key for point in spread(study, 99)] == pruned["key"].tolist()


def test_points_within_budgets(searched: Callable[..., Study]) -> None:
    study = searched()
    front = study.front()
    pruned = front[front["kind"] == "cut"]
    found = within(study, "700k, 300k,0.7M")
    assert [point.key for point in found] == [
        pruned[pruned["flops"] <= budget]["key"].iloc[-1] for budget in (300_000, 700_000)
    ]
    assert within(study, "1G")[0].kind == "cut"


def test_a_path_has_the_settings_of_its_point_and_fresh_seeds(searched: Callable[..., Study]) -> None:
    study = searched("seconds = 0.5")
    points = spread(study, 2)
    pairs = list(paths_of(study, points, seeds=2, length=2.5, data_root="elsewhere"))
    assert [point.key for point, _ in pairs] == [points[0].key] * 2 + [points[1].key] * 2
    assert [spec.seed for _, spec in pairs] == [1000, 1001] * 2
    for point, spec in pairs:
        assert (spec.regularization_weight, spec.pruning_ratio) == (point.regularization_weight, point.pruning_ratio)
        assert spec.iterations == point.iteration
        assert spec.method_options == {"seconds": 0.5}
        assert spec.data_root == "elsewhere"
        assert (spec.dense.epochs, spec.sparse.epochs, spec.recovery.epochs) == (2, 2, 2)


def test_seeds_that_the_search_had_are_left_out(searched: Callable[..., Study]) -> None:
    study = searched()
    (first, *_) = study.store.trials()
    used = first.spec.model_copy(update={"seed": 1001})
    study.store.record_trial(first.model_copy(update={"index": 9, "spec": used, "stages": ()}))
    pairs = paths_of(study, spread(study, 1), seeds=3, length=1.0, data_root=None)
    assert [spec.seed for _, spec in pairs] == [1000, 1002, 1003]


def test_without_records_of_trials_the_study_says_what_they_had(searched: Callable[..., Study]) -> None:
    study = searched(records=False)
    (point,) = spread(study, 1)
    ((_, spec),) = paths_of(study, [point], seeds=1, length=1.0, data_root=None)
    assert (spec.model, spec.dataset, spec.iterations) == ("fake", "digits", point.iteration)
    assert spec.pruning_ratio == point.pruning_ratio


def test_a_point_whose_settings_nothing_tells_is_named(searched: Callable[..., Study]) -> None:
    study = searched(records=False)
    there = study.store.read_json("study.json")
    paths = {"seeds": 1, "length": 1.0, "data_root": None}
    there["definition"]["search"]["group_cap"] = {}
    study.store.write_json("study.json", there)
    with pytest.raises(
        InvalidInput, match=r"has no record of its trial in trials/, and study\.json does not tell its group_cap"
    ):
        list(paths_of(study, spread(study, 1), **paths))
    study.store.write_json("study.json", {"name": "small"})
    with pytest.raises(InvalidInput, match=r"study\.json does not tell its settings"):
        list(paths_of(study, spread(study, 1), **paths))
    del there["definition"]["search"]["group_cap"]
    there["definition"]["trial"]["dense"] = {}
    study.store.write_json("study.json", there)
    with pytest.raises(InvalidInput, match=r"study\.json: damaged \(definition\.trial: Field required\)"):
        list(paths_of(study, spread(study, 1), **paths))


def test_each_launch_leaves_word_of_how_to_confirm(searched: Callable[..., Study], space_file: Write) -> None:
    study = searched(confirm="seeds = 5")
    before = study.store.read_json("settings.json")
    assert before["confirm"] == {"points": 3, "seeds": 5, "length": 1.0}
    assert before["resources"]["cpus_per_trial"] == 1.0
    space = SearchSpace.read(space_file("small", **{"[budget]": "[confirm]\nlength = 2\n[budget]"}))
    assert space.definition() == SearchSpace.read(space_file("small")).definition()
    bind(study.store, space.model_copy(update={"resources": Resources(cpus_per_trial=2.0)}), None)
    after = study.store.read_json("settings.json")
    assert after["confirm"] == {"points": 3, "seeds": 3, "length": 2.0}
    assert after["resources"]["cpus_per_trial"] == 2.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"points": 3, "at": "1M"}, "give either --points or --at"),
        ({"at": "much"}, "--at is 'much'; give a number above 0"),
        ({"at": "10"}, r"no pruned point of the frontier has at most 10 flops; the smallest has \d"),
        ({"points": 0}, r"confirm\.points is 0; it must be at least 1"),
        ({"seeds": 0}, r"confirm\.seeds is 0; it must be at least 1"),
        ({"length": 0.0}, r"confirm\.length is 0\.0; it must be above 0"),
        ({"cpus_per_trial": 0.0}, r"resources\.cpus_per_trial is 0\.0; it must be above 0"),
        ({"address": "ray://head:10001"}, r"--address is ray://head:10001; it must be host:port or auto"),
    ],
)
def test_what_is_given_is_checked(
    searched: Callable[..., Study], confirmed: Confirm, given: dict[str, Any], message: str
) -> None:
    study = searched()
    with pytest.raises(InvalidInput, match=message):
        confirmed(study, **given)
    assert not (Path(str(study.path)) / "confirmed").exists()


def test_a_study_without_a_pruned_point_is_named(tmp_path: Path, searched: Callable[..., Study]) -> None:
    study = searched()
    for stage in list(study.store.stages()):
        if stage.kind == "cut":
            folder = study.store.folder(stage.key)
            assert folder is not None
            folder.rename(tmp_path / stage.key)
    with pytest.raises(
        InvalidInput, match=r"small: no pruned point on the frontier so far; there is nothing to confirm"
    ):
        spread(study, 3)


def test_what_no_arm_could_run_is_refused_before_anything_is_written(
    searched: Callable[..., Study], confirmed: Confirm
) -> None:
    study = searched()
    for one in study.store.trials():
        missing = one.spec.model_copy(update={"dataset": "missing"})
        study.store.record_trial(one.model_copy(update={"spec": missing}))
    with pytest.raises(InvalidInput, match="data set missing: no such file"):
        confirmed(study)
    assert not (Path(str(study.path)) / "confirmed").exists()


def test_another_driver_is_kept_out(searched: Callable[..., Study], confirmed: Confirm) -> None:
    study = searched()
    store = StageStore(Path(str(study.path)) / "confirmed")
    message = f"process {os.getpid()} on .* is its driver"
    with store.exclusive("driver"), pytest.raises(Occupied, match=message):
        confirmed(study)


# -- the order of the arms ---------------------------------------------------------------------------------------------


def arm(spec: TrialSpec, kind: str, path: str = "p") -> ArmSpec:
    return ArmSpec(**spec.model_dump(), point="b" * 64, path=path, arm=kind)


def test_controls_wait_for_their_path_and_fail_with_it(space: SearchSpace, tmp_path: Path) -> None:
    spec = space.spec({"regularization_weight": 0.01, "pruning_ratio": 0.3, "iterations": 2})
    kinds = [("pruned", "p"), ("pruned", "q"), ("dense", "p"), ("scratch", "p"), ("dense", "q"), ("dense", "r")]
    store = StageStore(tmp_path)
    arms = Arms([arm(spec, *kind) for kind in kinds], store, paths_done=["r"])
    handed = [arms.next(), arms.next(), arms.next()]
    assert [proposal.index for proposal in handed if proposal] == [0, 1, 5]
    assert arms.next() is None
    assert not arms.over
    arms.complete(0, Result())
    assert [proposal.index for proposal in (arms.next(), arms.next()) if proposal] == [2, 3]
    arms.complete(1, Result(failure="diverged: the loss is NaN"))
    assert arms.next() is None
    assert arms.over
    failure = "not trained: its path failed (diverged: the loss is NaN)"
    assert arms.failures == {1: "diverged: the loss is NaN", 4: failure}
    (record,) = store.arms()
    assert (record.spec.path, record.spec.arm, record.failure) == ("q", "dense", failure)
    assert (arms.finished, arms.left) == (3, "3 arms")


def test_the_display_names_arms(space: SearchSpace) -> None:
    spec = space.spec({"regularization_weight": 0.01, "pruning_ratio": 0.3, "iterations": 2})
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    shown = ArmsProgress(console, "confirm small", Counts(target=2), [arm(spec, "pruned"), arm(spec, "dense")])
    with shown:
        shown.started(0)
        console.print(shown.table())
        shown.ended(0, target=2, computed=["a"])
        console.print(shown.table())
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "pruned of bbbbbbbbbbbb, seed 0" in printed
    assert "0 of 2 measured, 0 failed" in printed
    assert "1 of 2 measured, 0 failed" in printed


# -- through Ray -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_on_loopback")
def test_a_confirmation_runs_and_repeats_nothing(searched: Callable[..., Study], confirmed: Confirm) -> None:
    study = searched(confirm="seeds = 2\npoints = 2")
    found = confirmed(study)
    assert confirmed.printed[0].endswith("2 points, 3 arms, seeds 1000, 1001 (the search had none of them): 12 models")
    assert confirmed.printed[1] == "trained on train, schedules 1 times as long as the search's"
    assert "[12/12]" in confirmed.printed[-1]
    assert (found.measured, found.failures) == (12, {})
    assert found.computed == len(set(computed(study))) == len(computed(study))

    table = found.table
    points = spread(study, 2)
    assert table["key"].tolist() == [point.key for point in points for _ in range(3)]
    assert table["arm"].tolist() == ["pruned", "dense", "scratch"] * 2
    assert table["seeds"].tolist() == [2] * 6
    assert table["test_accuracy_mean"].tolist() == pytest.approx([0.908, 0.907, 0.906] * 2)
    assert table["test_accuracy_deviation"].tolist() == pytest.approx([0.01 / math.sqrt(2)] * 6)
    assert table["optimism"].tolist()[::3] == pytest.approx([point.accuracy - 0.908 for point in points])
    assert table["optimism"].isna().sum() == 4
    assert found.notes[0] == f"dense of {points[0].key[:12]}: 1 epochs, 0.980 of the train_flops of pruned"

    front = study.front()
    marked = front[front["confirmed_test_accuracy"].notna()]
    assert sorted(marked["key"]) == sorted(point.key for point in points)
    assert len(study.points()) == len(list(study.store.points()))

    again = confirmed(study)
    assert (again.computed, again.measured) == (0, 12)
    assert confirmed.printed == (f"nothing to train for small in {study.path}/confirmed: all 12 models are measured",)
    assert again.table.equals(found.table)

    more = confirmed(study, seeds=3)
    assert confirmed.printed[0].endswith("18 models, 12 of them measured")
    assert more.table["seeds"].tolist() == [3] * 6
    assert len(computed(study)) == len(set(computed(study)))

    other = confirmed(study, points=1, seeds=1, length=3, with_validation=True)
    assert confirmed.printed[1] == "trained on train and validation, schedules 3 times as long as the search's"
    assert other.table["with_validation"].all()
    assert other.table["test_accuracy_deviation"].isna().all()


@pytest.mark.usefixtures("ray_on_loopback")
def test_arms_fail_alone_and_are_tried_again(searched: Callable[..., Study], confirmed: Confirm) -> None:
    study = searched("diverges = 1001, kills = 1002, kills_once = 1003")
    found = confirmed(study, points=1, seeds=4)
    (point,) = spread(study, 1)
    name = point.key[:12]
    lost = "error: its worker process was killed or crashed, 3 times"
    reasons = {1001: "diverged: the loss is NaN", 1002: lost}
    expected = {f"pruned of {name}, seed {seed}": reason for seed, reason in reasons.items()} | {
        f"{control} of {name}, seed {seed}": f"not trained: its path failed ({reason})"
        for control in ("dense", "scratch")
        for seed, reason in reasons.items()
    }
    assert found.failures == expected
    assert all(f"{arm} failed: {reason}" in confirmed.printed for arm, reason in expected.items())
    assert found.table["seeds"].tolist() == [2, 2, 2]
    assert found.measured == 6
    store = StageStore(Path(str(study.path)) / "confirmed")
    assert {failure.spec.seed for failure in store.failures()} == {1001, 1002}
    assert len(computed(study)) == len(set(computed(study)))
    again = confirmed(study, points=1, seeds=4)
    assert confirmed.printed[0].endswith("12 models, 6 of them measured")
    assert again.failures == expected


@pytest.mark.usefixtures("ray_on_loopback")
def test_a_model_that_was_damaged_is_trained_again(searched: Callable[..., Study], confirmed: Confirm) -> None:
    study = searched()
    found = confirmed(study, points=1, seeds=1)
    store = StageStore(Path(str(study.path)) / "confirmed")
    (record,) = [one for one in store.arms() if one.spec.arm == "scratch"]
    (store.root / "stages" / record.stages[-1] / "tested.json").unlink()  # type: ignore[operator]
    from orchestrator import store as module

    module.SOUND.clear()
    assert study.confirmed()["arm"].tolist() == ["pruned", "dense"]
    again = confirmed(study, points=1, seeds=1)
    assert again.computed == 1
    assert again.table.equals(found.table)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(study: Study, number: signal.Signals) -> tuple[int, str]:
    """Start a driver, send it a signal when it has trained some stages; its exit code and what it printed."""
    store = StageStore(Path(str(study.path)) / "confirmed")
    hold(store, stages=4)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [DRIVER.parents[2], *sys.path]))}
    command = [sys.executable, str(DRIVER), str(study.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    wait_for(lambda: is_held(store), process)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=120)
    release(store)
    return process.returncode, printed


def figures(study: Study) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in study.confirmed().sort_values(["key", "arm"]).drop(columns="optimism").values]


@pytest.mark.usefixtures("ray_on_loopback")
def test_a_stopped_confirmation_ends_as_if_left_alone(searched: Callable[..., Study], confirmed: Confirm) -> None:
    study = searched()
    code, printed = stop(study, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the same command goes on from here" in printed
    assert "Traceback" not in printed
    code, _ = stop(study, signal.SIGKILL)
    assert code == -signal.SIGKILL
    found = confirmed(study, points=2, seeds=2)
    assert found.measured == 12
    assert found.computed < len(computed(study)) == len(set(computed(study)))
    store = StageStore(Path(str(study.path)) / "confirmed")
    assert store.duplicates() == 0
    assert not (Path(str(store.root)) / "tune").exists()
    assert [figure[2] for figure in figures(study)] == [2] * 6
    assert re.search(r"12 models(, \d+ of them measured)?$", confirmed.printed[0])


@pytest.mark.usefixtures("ray_on_loopback")
def test_the_command_with_real_training(space_file: Write, tmp_path: Path) -> None:
    """One point, one seed, on train and validation: three models, each measured, and a table that says so."""
    space = SearchSpace.read(space_file("small", **{'model = "fake"': 'model = "cifarnet"'}))
    store = StageStore(tmp_path / "results" / "small")
    bind(store, space, None)
    spec = space.spec({"regularization_weight": 0.01, "pruning_ratio": 0.3, "iterations": 2})
    outcome = trial.run(spec.model_copy(update={"iterations": 1}), store)
    store.record_trial(TrialRecord(index=0, spec=spec, stages=outcome.stages, created=now()))
    point = outcome.points[-1]

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["confirm", "small", "--storage", str(tmp_path / "results"), *arguments])

    result = run("--at", "10M", "--seeds", "1", "--with-validation")
    assert result.exit_code == 0, result.output
    table = Study(store.root).confirmed()
    assert table["arm"].tolist() == ["pruned", "dense", "scratch"]
    assert table["with_validation"].all()
    printed = [line.rstrip() for line in result.stdout.splitlines()]
    heading = printed.index(f"Confirmed points of {store.root}")
    assert printed[heading + 4] == "trained on train and validation: those with_validation"
    rows = [line.split() for line in printed[heading + 6 : heading + 9]]
    assert [row[:3] for row in rows] == [[point.key[:12], arm, "1"] for arm in ("pruned", "dense", "scratch")]
    optimism = point.accuracy - table["test_accuracy_mean"].iloc[0]
    assert rows[0][3:5] == [f"{table['test_accuracy_mean'].iloc[0]:.4f}", f"{optimism:+.4f}"]
    assert [row[-1] for row in rows] == ["yes"] * 3
    assert re.match(
        rf"dense of {point.key[:12]}: \d+ epochs, \d\.\d+ of the train_flops of pruned", printed[heading + 9]
    )

    wrong = run("--at", "much")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: --at is 'much'; give a number above 0")
