"""The model of a confirmed point: of the first seed, whatever the others have reached, with the recorded figures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from short_study import SPEC, searched
from typer.testing import CliRunner

from orchestrator import Study, cli, trial
from orchestrator.record import (
    Arm,
    ArmRecord,
    ArmSpec,
    Cost,
    InvalidInput,
    Measured,
    Stage,
    TrialRecord,
    TrialSpec,
    now,
    stage_key,
    whereabouts,
)
from orchestrator.search import SearchSpace
from orchestrator.search.binding import bind
from orchestrator.search.chosen import paths_of, spread
from orchestrator.search.prior import Prior, prior_of
from orchestrator.search.rerun import space_after
from orchestrator.stage_files import write_record
from orchestrator.store import CONFIRMED, StageStore
from orchestrator.takeout import take_out

SPACE = """
[trial]
model = "own_things:network"
dataset = "digits"
dense = { epochs = 1, learning_rate = 0.1 }
sparse = { epochs = 1, learning_rate = 0.1 }
recovery = { epochs = 1, learning_rate = 0.1 }

[search]
regularization_weight = { low = 0.01, high = 0.1, log = true }
pruning_ratio = { low = 0.2, high = 0.4 }
iterations = { low = 1, high = 2 }

[budget]
trials = 1
"""
TEST_ACCURACY = {3: 0.75, 7: 0.875}  # by seed: the second one is better
ARMS: tuple[Arm, ...] = ("pruned", "dense", "scratch")


def stores(study: Study) -> StageStore:
    return StageStore(study.path / CONFIRMED)


def add(
    study: Study, point: str, seed: int, test_accuracy: float, *, moment: str, arm: Arm = "pruned", **how: object
) -> str:
    """A made-up arm of a confirmation, whose model is a copy of the point's own; returns the key of its stage."""
    store, source, own = stores(study), study.store.folder(point), study.store.point(point)
    assert source is not None
    failure = how.pop("failure", None)
    parameters = {"seed": seed, "arm": arm, "recovery": {"epochs": 9}, **how}
    key, cost = stage_key(None, "cut", parameters), Cost(train_flops=5, seconds=1.0)
    stage = Stage(key=key, parent=None, kind="cut", parameters=parameters, cost=cost, **whereabouts())
    tested = Measured(
        key=key,
        parent=None,
        kind="cut",
        seed=seed,
        test_accuracy=test_accuracy,
        accuracy=None,
        epochs=14,
        cost=cost,
        path_cost=cost,
        created=moment,
        **own.model_dump(include={"iteration", "model", "dataset", "flops", "params", "flops_kept"}),
    )

    def compute(staging: Path) -> None:
        for name in ("weights.safetensors", "model.json", "plan.json"):
            shutil.copyfile(source / name, staging / name)
        write_record(staging / "stage.json", stage)
        write_record(staging / "tested.json", tested)

    store.obtain(key, compute)
    spec = ArmSpec.model_validate({**SPEC, "point": point, "path": key, "arm": arm, "seed": seed, **how})
    store.record_arm(ArmRecord(spec=spec, stages=(key,), failure=failure, created=moment))
    return key


def confirm(study: Study, point: str) -> dict[int, str]:
    """Two seeds, a control, and what came before: a shorter confirmation, of a lower seed. Keys by seed."""
    add(study, point, 1, 0.5, moment="2025-01-01", length=0.5)
    at = {"with_validation": True}
    keys = {seed: add(study, point, seed, t, moment=f"2026-01-0{seed}", **at) for seed, t in TEST_ACCURACY.items()}
    add(study, point, 3, 0.5, moment="2027-01-01", arm="dense", **at)
    return keys


@pytest.fixture
def study(copied: Callable[[str], Study]) -> Study:
    return copied("small")


def test_the_first_seed_is_taken_with_its_recorded_figures(study: Study, pruned_key: str, tmp_path: Path) -> None:
    keys = confirm(study, pruned_key)
    figures = take_out(study, pruned_key, tmp_path / "out", formats=["safetensors"], confirmed=True)
    assert (figures.origin.key, figures.origin.seed) == (keys[3], 3)
    assert (figures.test_accuracy, figures.test_accuracy_by) == (0.75, "confirm")
    assert (figures.accuracy, figures.dense_accuracy, figures.search_latency) == (None, None, None)
    assert (figures.accuracy_after_cut, figures.origin.train_flops) == (None, 5)
    assert figures.confirmation is not None
    assert (figures.confirmation.point, figures.confirmation.seeds) == (pruned_key, 2)
    optimism = study.point(pruned_key).accuracy - 0.8125
    card = (tmp_path / "out" / "README.md").read_text()
    for stated in (
        "| test_accuracy (test split, 359 pictures) | 0.7500 |  |",
        "| test_accuracy over 2 seeds | 0.8125 ± 0.0884 |  |",
        "| accuracy (validation split, 360 pictures) | - |  |",
        "this is the model of the first of them, not of the best",
        "It was trained on the validation split, too.",
        f"The search was optimistic by {optimism:+.4f}",
        f"--key {pruned_key} --output DIR --confirmed",
        "the mean over all of them is what to expect",
    ):
        assert stated in card


def test_one_seed_has_no_deviation(study: Study, pruned_key: str, tmp_path: Path) -> None:
    add(study, pruned_key, 5, 0.8125, moment="2026-01-01")
    figures = take_out(study, pruned_key, tmp_path / "out", formats=["safetensors"], confirmed=True)
    assert figures.confirmation is not None
    assert figures.confirmation.test_accuracy_deviation is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| test_accuracy over 1 seeds | 0.8125 |  |" in card
    assert "trained on the validation split, too" not in card


def test_a_point_that_was_not_confirmed(study: Study, pruned_key: str, tmp_path: Path) -> None:
    confirm(study, pruned_key)
    other = str(study.points()["key"][0])
    with pytest.raises(InvalidInput, match=rf"the point {other[:12]} is not confirmed; `orchestrator confirm` does it"):
        take_out(study, other, tmp_path / "out", confirmed=True)


def test_a_confirmation_that_failed(study: Study, pruned_key: str, tmp_path: Path) -> None:
    add(study, pruned_key, 3, 0.75, moment="2026-01-01", failure="diverged: the loss is NaN")
    with pytest.raises(InvalidInput, match=rf"the point {pruned_key[:12]} is not confirmed"):
        take_out(study, pruned_key, tmp_path / "out", confirmed=True)


def test_a_seed_whose_figures_are_damaged_counts_nowhere(study: Study, pruned_key: str, tmp_path: Path) -> None:
    keys = confirm(study, pruned_key)
    (stores(study).root / "stages" / keys[3] / "tested.json").write_text("{")
    figures = take_out(study, pruned_key, tmp_path / "out", formats=["safetensors"], confirmed=True)
    assert (figures.origin.seed, figures.test_accuracy) == (7, 0.875)
    assert figures.confirmation is not None
    assert (figures.confirmation.seeds, figures.confirmation.test_accuracy_mean) == (1, 0.875)


def test_a_damaged_record_is_named(study: Study, pruned_key: str, tmp_path: Path) -> None:
    confirm(study, pruned_key)
    stores(study).write_json("arms/3.json", {"stages": []})
    with pytest.raises(InvalidInput, match=r"confirmed/arms/3.json: damaged \(spec: Field required\)"):
        take_out(study, pruned_key, tmp_path / "out", confirmed=True)


def confirm_for_real(study: Study, seeds: int) -> str:
    """Three arms of one point, as `orchestrator confirm` has them trained, without Ray; its key."""
    (point,) = spread(study, 1)
    pairs = list(paths_of(study, [point], seeds=seeds, length=1.0, data_root=None))
    for (_, spec), path in zip(pairs, trial.paths([s for _, s in pairs], with_validation=False), strict=True):
        for arm in ARMS:
            arm_spec = ArmSpec(**spec.model_dump(), point=point.key, path=path, arm=arm)
            outcome = trial.run_arm(arm_spec, stores(study))
            assert outcome.failure is None
            stores(study).record_arm(ArmRecord(spec=arm_spec, stages=outcome.stages, created=now()))
    return point.key


def run(*typed: str) -> str:
    done = CliRunner().invoke(cli.app, typed)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_card_states_what_the_study_says(tmp_path: Path) -> None:
    """A search and its confirmation, of two seeds and three arms; then the command."""
    study = searched(tmp_path / "small")
    spec = TrialSpec.model_validate(SPEC)
    study.store.record_trial(TrialRecord(index=0, spec=spec, stages=tuple(study.stages()["key"]), created=now()))
    key = confirm_for_real(study, 2)
    confirmed = study.confirmed().set_index("arm")
    assert confirmed["seeds"].to_dict() == dict.fromkeys(ARMS, 2)
    row = confirmed.loc["pruned"]
    output = str(tmp_path / "out")
    typed = ("--key", key[:12], "--confirmed", "--formats", "safetensors", "--output", output)
    printed = run("export", str(study.path), *typed)
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    said = figures["confirmation"]
    columns = ("seeds", "test_accuracy_mean", "test_accuracy_deviation", "optimism", "with_validation")
    assert [said[name] for name in columns] == [row[name] for name in columns]
    assert (figures["origin"]["seed"], figures["test_accuracy_by"]) == (1000, "confirm")
    mean = f"{row['test_accuracy_mean']:.4f} ± {row['test_accuracy_deviation']:.4f}"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| test_accuracy over 2 seeds | {mean} |  |" in card
    assert f"The search was optimistic by {row['optimism']:+.4f}" in card
    assert f"over its seeds  {mean} (2)" in printed
    (file,) = figures["files"]
    assert file["test_accuracy"] == figures["test_accuracy"]  # measured again, it is what was recorded


def test_a_rerun_is_confirmed_merged_and_exported(tmp_path: Path) -> None:
    """A small network of the user's own; the rerun has other data by name alone, so that the two compare."""
    (tmp_path / "old.toml").write_text(SPACE)
    storage = ("--storage", str(tmp_path))

    def made(space: SearchSpace, prior: Prior | None = None) -> Study:
        store = StageStore(tmp_path / space.name)
        store.prepare()
        bind(store, space, prior)
        spec = space.spec({"regularization_weight": 0.01, "pruning_ratio": 0.4, "iterations": 1})
        outcome = trial.run(spec, store)
        assert outcome.failure is None
        store.record_trial(TrialRecord(index=0, spec=spec, stages=outcome.stages, created=now()))
        return Study(store.root)

    old = made(SearchSpace.read(tmp_path / "old.toml"))
    space = space_after(old, "new", model=None, dataset="own_things:data")
    new = made(space, prior_of(old, space))
    new.store.write_json("trackers/wandb-mine.json", {})
    key = confirm_for_real(new, 1)
    confirmed = new.confirmed()
    run("gc", "new", "--keep", "frontier", *storage)
    run("merge", "old", "new", "--into", "both", *storage)
    run("rm", "new", "--yes", *storage)
    both = Study(tmp_path / "both")
    assert both.confirmed().equals(confirmed)
    code = ("--allow-code", "own_things:network", "--allow-code", "own_things:data")
    output = str(tmp_path / "out")
    typed = ("--key", key, "--confirmed", "--formats", "safetensors", "--output", output, *code)
    assert f"over its seeds  {confirmed['test_accuracy_mean'][0]:.4f} (1)" in run("export", "both", *typed, *storage)
    assert "confirmed    1 points, 3 models measured on the test split" in run("status", "both", *storage)
    refused = CliRunner().invoke(cli.app, ["rerun", "both", "--model", "cifarnet", *storage])
    assert refused.stderr == f"error: {both.path}: was merged of several studies; give rerun one of these\n"
