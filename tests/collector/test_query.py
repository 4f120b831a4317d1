"""What a study answers: points, frontiers, the best model within a budget, and what it says when there is none."""

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import orchestrator
from orchestrator import Study
from orchestrator.collector import EmptyStudy, as_csv, as_json, frontier, hypervolume, parse_flops
from orchestrator.collector.amounts import format_flops
from orchestrator.collector.index import INDEX_FILE, SCHEMA
from orchestrator.collector.query import CONFIRMED_COLUMNS, FAILURE_COLUMNS
from orchestrator.files import Uri, open_files
from orchestrator.record import Failure, InvalidInput, Point, Schedule, Stage, TrialSpec, whereabouts
from orchestrator.stage_files import DamagedRecord, DamagedStage
from orchestrator.store import CONFIRMED, SOUND, StageStore

AddTrial = Callable[..., None]


@pytest.fixture
def asked(study: StageStore) -> Study:
    return Study(study.root)


def failure(key: str) -> Failure:
    schedule = Schedule(epochs=1, learning_rate=0.1)
    spec = TrialSpec(
        model="cifarnet",
        dataset="digits",
        regularization_weight=1e-3,
        pruning_ratio=0.3,
        iterations=1,
        dense=schedule,
        sparse=schedule,
        recovery=schedule,
    )
    return Failure(key=key, spec=spec, reason="diverged", message="NaN", traceback="t", **whereabouts())


def test_a_study_is_found_by_name_or_by_path(
    study: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Study("small", results=tmp_path / "results").path == study.root
    assert Study(study.root).path == study.root
    assert Study(study.root).name == "small"
    monkeypatch.chdir(tmp_path)
    assert Study("small").path == Path("results/small")
    assert Study("results/small").path == Path("results/small")
    assert repr(Study("small")) == "Study('results/small')"


def test_points_hold_what_the_store_holds(asked: Study, study: StageStore) -> None:
    points = asked.points()
    assert list(points.columns) == SCHEMA.names
    assert len(points) == 13
    assert points["created"].is_monotonic_increasing
    for row in points.to_dict(orient="records"):
        point = study.point(row["key"])
        for name in ("parent", "kind", "iteration", "flops", "params", "flops_kept", "accuracy", "seed", "created"):
            assert row[name] == getattr(point, name), name
        assert row["train_flops"] == point.cost.train_flops
        assert row["path_seconds"] == point.path_cost.seconds
    dense = points.iloc[0]
    assert dense[["method", "regularization_weight", "accuracy_after_cut", "test_accuracy"]].isna().all()


def test_the_front_is_the_frontier_of_the_points(asked: Study, study: StageStore) -> None:
    expected = [point.key for point in frontier(list(study.points()))]
    assert len(expected) >= 4
    assert asked.front()["key"].tolist() == expected


def test_of_equal_points_the_front_has_the_one_with_the_fewest_params(study: StageStore) -> None:
    first, second, third = [point.key for point in frontier(list(study.points()))][:3]
    for key, params in ((first, 7), (second, 5), (third, 5)):
        path = study.root / "stages" / key / "point.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "flops": 9, "accuracy": 0.99, "params": params}))
    assert Study(study.root).front()["key"].tolist() == [min(second, third)]


def test_the_front_within_limits(asked: Study) -> None:
    front = asked.front()
    limited = asked.front(max_flops="9M", min_accuracy=0.9)
    assert 0 < len(limited) < len(front)
    within = front[(front["flops"] <= 9_000_000) & (front["accuracy"] >= 0.9)]
    assert limited["key"].tolist() == within["key"].tolist()
    assert asked.front(max_flops=1).empty
    assert list(asked.front(max_flops=1).columns) == [*SCHEMA.names, *CONFIRMED_COLUMNS]


def test_the_best_within_a_budget(asked: Study, study: StageStore) -> None:
    points = list(study.points())
    for budget in (2.1e6, 4e6, 9e6, 2e7):
        fitting = [point for point in points if point.flops <= budget]
        assert asked.best(max_flops=budget).accuracy == max(point.accuracy for point in fitting)
    for accuracy in (0.9, 0.93, 0.96):
        good = [point for point in points if point.accuracy >= accuracy]
        assert asked.best(min_accuracy=accuracy).flops == min(point.flops for point in good)
    both = asked.best(max_flops="9M", min_accuracy=0.9)
    assert both == asked.best(max_flops="9M")
    assert isinstance(both, Point)
    assert asked.best(max_flops=both.flops) == both  # a budget is met exactly
    assert asked.best(min_accuracy=both.accuracy) == both


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ({}, "give a limit: max_flops, min_accuracy or both"),
        (
            {"max_flops": "1M"},
            r"small: no point has at most 1 M flops; the smallest has 2\.054 M flops and accuracy 0\.8",
        ),
        ({"min_accuracy": 0.99}, r"no point reaches accuracy 0\.99; the best has 12\.35 M flops and accuracy 0\.9700"),
        (
            {"max_flops": "4M", "min_accuracy": 0.95},
            r"no point with at most 4 M flops reaches accuracy 0\.95; the best",
        ),
        ({"max_flops": "1M", "min_accuracy": 0.5}, r"no point has at most 1 M flops"),
        ({"min_accuracy": 90}, "min_accuracy is 90; give a share from 0 to 1"),
        ({"max_flops": "sixty"}, "max_flops is 'sixty'; give a number above 0, such as 2500000, 60M"),
    ],
)
def test_a_limit_that_cannot_be_met(asked: Study, limits: dict[str, float], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as caught:
        asked.best(**limits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "flops"),
    [
        ("60M", 60_000_000),
        ("4.09 G", 4_090_000_000),
        ("2500000", 2_500_000),
        ("1.5k", 1500),
        ("3e9", 3 * 10**9),
        (" 2t ", 2 * 10**12),
        (".5m", 500_000),
    ],
)
def test_flops_are_read_as_people_write_them(text: str, flops: int) -> None:
    assert parse_flops(text) == flops


@pytest.mark.parametrize("text", ["0.5", "1.5"])
def test_a_share_is_not_taken_for_flops(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"--max-flops is '.*'; give flops, such as .*, not a share of them"):
        parse_flops(text, "--max-flops")


@pytest.mark.parametrize("text", ["", "M", "60 MB", "-3M", "0", "nan", "inf", "1e999", "6OM", "60M flops"])
def test_flops_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"--max-flops is '.*'; give a number above 0"):
        parse_flops(text, "--max-flops")


@pytest.mark.parametrize(
    ("flops", "text"), [(12_345_678, "12.35 M"), (4_089_000_000, "4.089 G"), (999, "999"), (1500, "1.5 k"), (0, "0")]
)
def test_flops_are_shown_with_a_unit(flops: int, text: str) -> None:
    assert format_flops(flops) == text


# --- the index ---


def test_a_finished_stage_is_read_once(study: StageStore, add_trial: AddTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    stage = StageStore.stage

    def counted(store: StageStore, key: str) -> Stage:
        read.append(key)
        return stage(store, key)

    monkeypatch.setattr(StageStore, "stage", counted)
    before = Study(study.root).points()
    assert len(read) == 23
    read.clear()
    pd.testing.assert_frame_equal(Study(study.root).points(), before)
    assert read == []
    add_trial(study, 1e-2, 0.3, iterations=1)
    after = Study(study.root).points()
    assert len(read) == 2
    assert len(after) == 14
    pd.testing.assert_frame_equal(after[after["key"].isin(before["key"])].reset_index(drop=True), before)


@pytest.mark.parametrize("content", [b"", b"PAR1 torn", None])
def test_a_damaged_index_is_made_anew(study: StageStore, content: bytes | None) -> None:
    before = Study(study.root).points()
    index = study.root / INDEX_FILE
    good = index.read_bytes()
    if content is None:  # whole, and of another version of this program
        before[["key", "flops"]].to_parquet(index)
    else:
        index.write_bytes(content)
    pd.testing.assert_frame_equal(Study(study.root).points(), before)
    assert index.read_bytes() == good


def test_a_stage_that_was_removed_leaves_the_index(study: StageStore) -> None:
    key = str(Study(study.root).points()["key"].iloc[-1])
    (study.root / "stages" / key).rename(study.root / "staging" / key)
    assert key not in Study(study.root).points()["key"].tolist()


def test_a_study_that_may_only_be_read_is_read(study: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(store: StageStore, name: str, content: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(StageStore, "write_bytes", refuse)
    assert len(Study(study.root).points()) == 13
    assert not (study.root / INDEX_FILE).exists()


def test_more_train_flops_than_an_int64_holds(study: StageStore) -> None:
    key = next(study.points()).key
    path = study.root / "stages" / key / "point.json"
    point = json.loads(path.read_text())
    point["path_cost"]["train_flops"] = 10**20
    path.write_text(json.dumps(point))
    assert Study(study.root).points()["path_train_flops"].max() == 1e20


# --- tables ---


def test_csv_and_json_give_back_what_they_were_given(asked: Study) -> None:
    front = asked.front()
    records = front.astype(object).where(front.notna(), None).to_dict(orient="records")
    assert json.loads(as_json(front)) == records
    from_csv = list(csv.DictReader(io.StringIO(as_csv(front))))
    for read, record in zip(from_csv, records, strict=True):
        for name, value in record.items():
            assert (type(value)(read[name]) if value is not None else read[name] or None) == value, name
    assert json.loads(as_json(front))[-1]["regularization_weight"] is None


def test_nothing_as_csv_and_json(asked: Study) -> None:
    nothing = asked.front(max_flops=1)
    assert as_csv(nothing) == ",".join([*SCHEMA.names, *CONFIRMED_COLUMNS]) + "\n"
    assert json.loads(as_json(nothing)) == []


# --- status and failures ---


def test_status(asked: Study, study: StageStore) -> None:
    points = list(study.points())
    status = asked.status()
    assert status.stages == {"dense": 1, "sparse": 10, "cut": 12}
    assert (status.points, status.failures, status.duplicates) == (13, 0, 0)
    assert status.train_flops == 23 * 3_000_000
    assert status.seconds == 23 * 1.5
    assert status.hypervolume == hypervolume(
        [point.accuracy for point in points], [point.flops_kept for point in points]
    )
    assert status.best_at[1.0] == 0.97
    assert status.best_at[0.15] is None
    assert status.driver is None
    with study.exclusive("driver"):
        assert asked.status().driver is not None
    with StageStore(study.root / CONFIRMED).exclusive("driver"):
        assert asked.status().driver is None
        assert str(asked.status().confirming) == f"process {os.getpid()} on {socket.gethostname()}"


def test_failures_count_until_somebody_succeeds(asked: Study, study: StageStore) -> None:
    assert list(asked.failures().columns) == FAILURE_COLUMNS
    study.record_failure(failure("0" * 64))
    study.record_failure(failure(next(study.stages()).key))  # out of memory once, and finished later
    found = asked.failures()
    assert found["key"].tolist() == ["0" * 64]
    assert found["reason"].tolist() == ["diverged"]
    assert found["model"].tolist() == ["cifarnet"]
    assert asked.status().failures == 1


# --- taking a model out ---


def test_export(asked: Study, tmp_path: Path) -> None:
    best = asked.best(max_flops="5M")
    files = asked.export(best.key[:12], tmp_path / "new" / "out")
    assert [file.name for file in files] == ["weights.safetensors", "plan.json", "point.json", "stage.json"]
    assert files[0].read_bytes() == best.key.encode()
    assert Point.model_validate_json(files[2].read_text()) == best
    assert asked.export(best.key, tmp_path / "new" / "out") == files  # again is fine
    with pytest.raises(InvalidInput, match="out: is not empty; give a folder that is new"):
        asked.export(asked.best(max_flops="20M").key, tmp_path / "new" / "out")


def test_the_dense_model_has_no_plan(asked: Study, tmp_path: Path) -> None:
    files = asked.export(asked.best(max_flops="20M").key, tmp_path / "out")
    assert [file.name for file in files] == ["weights.safetensors", "point.json", "stage.json"]


def test_what_cannot_be_exported(asked: Study, study: StageStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    best = asked.best(max_flops="5M")
    with pytest.raises(InvalidInput, match=r"file: cannot be written \("):
        asked.export(best.key, tmp_path / "file")
    with pytest.raises(InvalidInput, match="small: 13 points have a key that starts with ''"):
        asked.export("", tmp_path / "out")
    with pytest.raises(InvalidInput, match="small: no points have a key that starts with 'xyz'"):
        asked.export("xyz", tmp_path / "out")
    (study.root / "stages" / best.key / "weights.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"weights\.safetensors: the weights of this point were not kept"):
        asked.export(best.key, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- studies that cannot answer ---


def test_a_study_that_is_missing(study: StageStore, tmp_path: Path) -> None:
    results = tmp_path / "results"
    with pytest.raises(InvalidInput, match=r"^smal: no study in .*results/smal or smal; there is small$"):
        Study("smal", results=results)
    with pytest.raises(InvalidInput, match="there is small"):
        Study("another", results=results)
    with pytest.raises(InvalidInput, match=r"`orchestrator search` makes one under .*none"):
        Study("small", results=tmp_path / "none")
    (results / "hollow").mkdir()
    with pytest.raises(InvalidInput, match=r"hollow: no study in .*results/hollow; there is small"):
        Study(results / "hollow")


def test_a_study_without_points(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "young")
    store.prepare()
    young = Study(store.root)
    assert young.points().empty
    assert young.failures().empty
    status = young.status()
    assert (status.points, status.hypervolume, status.best_at[1.0]) == (0, 0.0, None)
    for ask in (young.front, lambda: young.best(max_flops=1)):
        with pytest.raises(EmptyStudy, match="young: no point so far; the dense model's comes first"):
            ask()
    store.record_failure(failure("0" * 64))
    with pytest.raises(EmptyStudy, match="young: no point so far; 1 failed: see `orchestrator status`"):
        young.front()


@pytest.mark.parametrize("name", ["stage.json", "point.json"])
def test_a_study_with_a_damaged_stage_answers_without_it(study: StageStore, name: str) -> None:
    best = Study(study.root).best(max_flops="20M")
    (study.root / INDEX_FILE).unlink()
    (study.root / "stages" / best.key / name).write_text("{")
    asked = Study(study.root)
    assert best.key not in asked.points()["key"].tolist()
    assert best.key not in asked.front()["key"].tolist()
    complaint = (
        rf"stages/{best.key}/{name}: damaged \(no JSON.*; the next search that needs it moves it aside and computes"
    )
    assert re.search(complaint, asked.damaged[best.key])
    status = asked.status()
    assert status.points == 12
    assert status.damaged == (asked.damaged[best.key],)
    assert asked.points()["key"].tolist() == Study(study.root).points()["key"].tolist()
    with pytest.raises(DamagedStage, match=f"{name}"):
        study.folder(best.key)


def test_a_stage_that_was_computed_again_is_read_again(study: StageStore, add_trial: AddTrial) -> None:
    before = Study(study.root).points()
    dense = before.iloc[0]["key"]
    (study.root / "stages" / dense / "weights.safetensors").write_bytes(b"torn")
    SOUND.clear()
    add_trial(study, 1e-4, 0.3)
    asked = Study(study.root)
    after = asked.points()
    assert sorted(after["key"]) == sorted(before["key"])
    assert after.set_index("key").loc[dense, "created"] > before["created"].max()
    (moved,) = asked.status().damaged
    assert re.search(r"weights\.safetensors is not what was published; now in .*/damaged/", moved)
    assert asked.damaged == {}


def test_a_damaged_study(study: StageStore) -> None:
    (study.root / "study.json").write_text("not JSON")
    with pytest.raises(DamagedRecord, match=r"small/study\.json: damaged \(no JSON"):
        Study(study.root)


# --- on object storage ---


@pytest.fixture
def remote(study: StageStore, object_storage: Uri, tmp_path: Path) -> Uri:
    """The small made-up study, on object storage."""
    there = object_storage / tmp_path.name / "small"
    files = open_files(there)
    for path in sorted(study.root.rglob("*"), key=lambda path: path.name == "stage.json"):
        if path.is_file():
            files.write(path.relative_to(study.root).as_posix(), path.read_bytes())
    return there


def test_a_study_on_object_storage_answers_the_same(study: StageStore, remote: Uri, tmp_path: Path) -> None:
    asked, here = Study(remote), Study(study.root)
    assert str(asked.path) == str(remote)
    assert asked.name == "small"
    assert repr(asked) == f"Study('{remote}')"
    for _ in range(2):  # without an index, and with one
        pd.testing.assert_frame_equal(asked.points(), here.points())
        pd.testing.assert_frame_equal(asked.front(), here.front())
    assert open_files(remote).exists(INDEX_FILE)
    best = asked.best(max_flops="5M")
    assert best == here.best(max_flops="5M")
    assert asked.status().stages == here.status().stages
    assert asked.failures().empty
    files = asked.export(best.key, tmp_path / "out")
    assert [file.name for file in files] == ["weights.safetensors", "plan.json", "point.json", "stage.json"]
    assert Study("small", results=str(remote.parent)).path == remote
    assert list(asked.store.points()) == list(study.points())


def test_a_study_that_is_missing_on_object_storage(remote: Uri) -> None:
    with pytest.raises(
        InvalidInput, match=rf"^{remote.parent}/smal: no study in {remote.parent}/smal; there is small$"
    ):
        Study(remote.parent / "smal")
    with pytest.raises(
        InvalidInput, match=rf"^another: no study in {remote.parent}/another or another; there is small$"
    ):
        Study("another", results=remote.parent)
    with pytest.raises(InvalidInput, match=r"^s3://nobodys-bucket/small: cannot be read \(.*bucket does not exist\)$"):
        Study("s3://nobodys-bucket/small")


# --- the package ---


def test_a_study_is_read_without_torch_or_ray() -> None:
    code = (
        "import sys, orchestrator\n"
        "assert 'pandas' not in sys.modules\n"
        "from orchestrator import Study\n"
        "assert Study.__name__ == 'Study'\n"
        "heavy = {'torch', 'ray', 'optuna', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(orchestrator.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_the_package_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Studi'"):
        _ = orchestrator.Studi
