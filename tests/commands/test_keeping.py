"""ls, gc, rm and merge: what they print, what they refuse, in a folder and on object storage."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator import Study, cli
from orchestrator.collector import frontier
from orchestrator.collector.keeping import Extent, collect, collectable, iterations_of, resumable
from orchestrator.collector.merging import merge, place_of
from orchestrator.collector.shelf import studies
from orchestrator.collector.trials import trials_of
from orchestrator.files import Place, Uri, open_files
from orchestrator.record import (
    Arm,
    ArmRecord,
    ArmSpec,
    Cost,
    Failure,
    InvalidInput,
    Measured,
    Point,
    Schedule,
    Stage,
    TrialRecord,
    TrialSpec,
    now,
    stage_key,
    whereabouts,
)
from orchestrator.search.binding import bind
from orchestrator.search.space import SearchSpace
from orchestrator.stage_files import write_record
from orchestrator.store import CONFIRMED, SOUND, Occupied, StageStore

SCHEDULE = Schedule(epochs=1, learning_rate=0.1)
DIGITS = {"name": "digits", "fingerprint": "d" * 64}
GRID = {"kind": "grid", "values": [0.2, 0.3]}
Make = Callable[..., StageStore]


def spec_of(ratio: float, iterations: int) -> TrialSpec:
    settings: dict[str, Any] = {"regularization_weight": 1e-3, "pruning_ratio": ratio, "iterations": iterations}
    return TrialSpec(model="net", dataset="digits", dense=SCHEDULE, sparse=SCHEDULE, recovery=SCHEDULE, **settings)


def publish(store: StageStore, parent: str | None, kind: Any, parameters: dict[str, Any], **point: Any) -> str:
    """A stage of 1,000 bytes of weights."""
    key = stage_key(parent, kind, parameters)
    stage = Stage(key=key, parent=parent, kind=kind, parameters=parameters, cost=Cost(train_flops=7), **whereabouts())

    def compute(staging: Path) -> None:
        write_record(staging / "stage.json", stage)
        (staging / "weights.safetensors").write_bytes(key[:10].encode() * 100)
        if point:
            figures = {"model": "net", "dataset": "digits", "seed": 0, "cost": Cost(), "path_cost": Cost(), **point}
            write_record(
                staging / "point.json", Point(key=key, parent=parent, kind=kind, created=stage.created, **figures)
            )

    store.obtain(key, compute)
    return key


def passed(store: StageStore, index: int, ratio: float, at: int, of: int = 3, **end: Any) -> list[str]:
    """A trial of `of` iterations that got as far as iteration `at`; a larger ratio costs more accuracy."""
    data = end.pop("data", DIGITS)
    flops = end.pop("flops", 1000)
    dense: dict[str, Any] = {"data": data, "model": end.pop("model", "net")}
    figures = {"iteration": 0, "flops": flops, "params": 10, "flops_kept": 1.0, "accuracy": 0.9}
    keys = [publish(store, None, "dense", dense, **figures, **({"model": dense["model"]}))]
    for iteration in range(1, at + 1):
        kept = (1 - ratio) ** iteration
        figures = {"iteration": iteration, "flops": round(flops * kept), "params": 10, "flops_kept": kept}
        keys.append(publish(store, keys[-1], "sparse", {"weight": 1e-3}))
        accuracy = 0.9 - iteration * ratio**2 - end.get("worse", 0.0)
        keys.append(
            publish(store, keys[-1], "cut", {"ratio": ratio}, **figures, accuracy=accuracy, model=dense["model"])
        )
    named = {name: end[name] for name in ("failure", "stopped") if name in end}
    spec = spec_of(ratio, of)
    store.record_trial(TrialRecord(index=index, spec=spec, stages=tuple(keys), created=now(), **named))
    return keys


def confirm(study: StageStore, point: str, seed: int, test_accuracy: float, *, arm: Arm = "pruned", at: str) -> str:
    """A made-up arm of a confirmation, of 1,000 bytes of weights; returns the key of its model."""
    store, cost = StageStore(study.root / CONFIRMED), Cost(train_flops=7)
    parameters = {"point": point, "seed": seed, "arm": arm}
    key = stage_key(None, "cut", parameters)
    stage = Stage(key=key, parent=None, kind="cut", parameters=parameters, cost=cost, **whereabouts())
    counted: dict[str, Any] = {"iteration": 1, "flops": 500, "params": 5, "flops_kept": 0.5, "epochs": 3}
    known: dict[str, Any] = {"model": "net", "dataset": "digits", "seed": seed, "accuracy": None, **counted}

    def compute(staging: Path) -> None:
        write_record(staging / "stage.json", stage)
        (staging / "weights.safetensors").write_bytes(key[:10].encode() * 100)
        record = Measured(key=key, parent=None, kind="cut", cost=cost, path_cost=cost, created=at, **known,
                          test_accuracy=test_accuracy)  # fmt: skip
        write_record(staging / "tested.json", record)

    store.obtain(key, compute)
    path = stage_key(None, "cut", {"point": point, "seed": seed})
    spec = ArmSpec(**{**spec_of(0.2, 1).model_dump(), "seed": seed}, point=point, path=path, arm=arm)
    store.record_arm(ArmRecord(spec=spec, stages=(key,), created=at))
    return key


def beside(store: StageStore) -> dict[str, bytes]:
    """What searches, reruns and trackers leave in a study's folder besides its stages."""
    files = {name: name.encode() for name in ("settings.json", "prior.json", f"{store.root.name}.toml")}
    files["trackers/wandb-mine.json"] = b"{}"
    for name, content in files.items():
        store.write_bytes(name, content)
    return files


def made_in(place: Place) -> Make:
    def made(name: str = "one", **search: Any) -> StageStore:
        store = StageStore(place / name)
        definition = {"trial": {"iterations": 3}, "search": search or {"pruning_ratio": GRID}}
        store.write_json("study.json", {"name": name, "definition": definition, "created": "2026-01-01T00:00:00Z"})
        return store

    return made


@pytest.fixture
def make(place: Place) -> Make:
    """make(name, **search): the store of a new study of 3 iterations, whose space varies what `search` says."""
    return made_in(place)


@pytest.fixture
def make_here(tmp_path: Path) -> Make:
    """The same, in a folder alone, where nothing depends on the storage."""
    return made_in(tmp_path)


@pytest.fixture
def run(place: Place) -> Callable[..., Result]:
    def invoke(*arguments: str, typed: str = "") -> Result:
        return CliRunner().invoke(cli.app, [*arguments, "--storage", str(place)], input=typed)

    return invoke


def complaint(result: Result) -> str:
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def with_weights(store: StageStore) -> set[str]:
    """Seen past the store and its copies."""
    names = store.sizes("stages")
    return {name.partition("/")[0] for name in names if name.endswith("weights.safetensors")}


# --- what is resumable ---


def resumables(store: StageStore) -> set[str]:
    extent = Extent.of(store.read_json("study.json"))
    return resumable(Study(store.root).index(), extent, trials_of(store))


def test_a_trajectory_goes_on_after_its_last_stage_alone(make_here: Make) -> None:
    store = make_here()
    keys = passed(store, 0, 0.2, at=2)
    assert resumables(store) == {keys[1], keys[4]}  # another ratio may follow the first sparse stage
    assert iterations_of(Study(store.root).index()) == dict(zip(keys, [0, 1, 1, 2, 2], strict=True))


def test_after_the_most_iterations_nothing_comes(make_here: Make) -> None:
    store = make_here()
    keys = passed(store, 0, 0.2, at=3)
    assert resumables(store) == {keys[1]}
    passed(store, 1, 0.3, at=3)
    assert resumables(store) == set()  # all ratios of the grid have been cut


def test_a_sparse_stage_without_its_cut_is_resumable(make_here: Make) -> None:
    store = make_here()
    keys = passed(store, 0, 0.2, at=1)
    sparse = publish(store, keys[-1], "sparse", {"weight": 1e-3})
    assert resumables(store) == {keys[1], sparse}


@pytest.mark.parametrize(
    ("search", "resumable_at_all"),
    [
        ({"pruning_ratio": {"kind": "range", "low": 0.1, "high": 0.4, "log": False, "whole": False}}, True),
        ({"pruning_ratio": GRID, "method": {"kind": "choice", "choices": ["oicsr", "filter_norm"]}}, True),
        ({"round_to": {"kind": "range", "low": 1, "high": 2, "log": False, "whole": True}}, False),
        ({"regularization_weight": GRID, "pruning_ratio": GRID, "sparse.epochs": GRID}, False),
    ],
)
def test_how_many_cuts_may_follow_a_first_sparse_stage(
    make_here: Make, search: dict[str, Any], resumable_at_all: bool
) -> None:
    store = make_here(**search)
    passed(store, 0, 0.2, at=3)
    keys = passed(store, 1, 0.3, at=3)
    assert resumables(store) == ({keys[1]} if resumable_at_all else set())


@pytest.mark.parametrize(
    ("search", "most"),
    [
        ({"iterations": {"kind": "range", "low": 2, "high": 4, "log": False, "whole": True}}, 4),
        ({"iterations": {"kind": "choice", "choices": [5, 2]}}, 5),
        ({"iterations": {"kind": "grid", "values": [2, 6]}}, 6),
        ({"pruning_ratio": GRID}, 3),
    ],
)
def test_the_most_iterations(make_here: Make, search: dict[str, Any], most: int) -> None:
    assert Extent.of(make_here(**search).read_json("study.json")).iterations == most


def test_trials_that_ended_for_good(make_here: Make) -> None:
    """Stopped before the most iterations, or diverged: nobody goes on there. Of a shorter trial, somebody may."""
    store = make_here()
    stopped = passed(store, 0, 0.2, at=1, stopped="dominated")
    assert stopped[-1] not in resumables(store)
    passed(store, 0, 0.2, at=1, of=2, stopped="dominated")  # the file of a trial may be written again
    assert stopped[-1] in resumables(store)
    diverged = passed(store, 1, 0.3, at=1, failure="diverged: NaN")
    assert diverged[-1] not in resumables(store)
    passed(store, 1, 0.3, at=1, failure="out_of_memory: no space")
    assert diverged[-1] in resumables(store)


def test_without_a_definition_all_last_stages_are_resumable(make_here: Make) -> None:
    store = make_here()
    keys = passed(store, 0, 0.2, at=3)
    store.write_json("study.json", {"name": "one"})
    assert resumables(store) == {keys[1], keys[-1]}
    store.write_json("study.json", {"name": "one", "merged": {}})
    assert resumables(store) == set()


def test_a_stage_whose_parent_cannot_be_read_is_kept(make_here: Make) -> None:
    store = make_here()
    orphan = publish(store, "0" * 64, "sparse", {"weight": 1})
    assert orphan in resumables(store)


# --- gc ---


def test_gc_keeps_the_frontier_and_what_is_resumable(make: Make, run: Callable[..., Result]) -> None:
    store = make()
    long, beaten = passed(store, 0, 0.2, at=3), passed(store, 1, 0.25, at=2, worse=0.5)
    front = Study(store.root).front()["key"].tolist()
    records = {name: size for name, size in store.sizes("stages").items() if name.endswith(".json")}
    before = Study(store.root).status().disk.weights
    asked = run("gc", "one", "--dry-run")
    assert "would free 5 kB" in asked.stdout
    assert with_weights(store) == {*long, *beaten}
    answer = run("gc", "one")
    assert answer.exit_code == 0, answer.output
    kept = {*front, long[0], beaten[-1]}
    assert with_weights(store) == kept
    lines = [line.split() for line in answer.stdout.splitlines()]
    assert lines[2:6] == [["cut", "1", "1", "1", "kB"], *[["sparse", str(at), n, size, "kB"] for at, n, size in
                          ((1, "1", "1"), (2, "2", "2"), (3, "1", "1"))]]  # fmt: skip
    assert "freed 5 kB" in answer.stdout
    assert "weights kept: 4 frontier, 1 resumable; records: all" in answer.stdout
    assert {n: s for n, s in store.sizes("stages").items() if n.endswith(".json")} == records
    after = Study(store.root).status()
    assert after.disk.weights == before - 5000
    assert after.disk.collected == 5
    assert Study(store.root).front()["key"].tolist() == front
    assert after.damaged == ()
    again = run("gc", "one")
    assert again.stdout.strip() == f"{store.root}: nothing to collect; weights kept: 4 frontier, 1 resumable"
    assert "5 stages; they are computed again where they are needed" in run("status", "one").stdout
    as_another_process(store)
    with pytest.raises(InvalidInput, match="the weights of this point were not kept"):
        Study(store.root).export(beaten[2], "nowhere")


def as_another_process(store: StageStore) -> None:
    SOUND.clear()
    if isinstance(store.root, Uri):
        shutil.rmtree(open_files(store.root).staging("").parent, ignore_errors=True)


def test_what_was_collected_is_whole_to_another_process(make: Make) -> None:
    store = make()
    keys = passed(store, 0, 0.2, at=3)
    collect(Study(store.root), "frontier")
    as_another_process(store)
    other = StageStore(store.root)
    for key in keys:
        assert other.folder(key) is not None
        assert (other.weights(key) is None) == (key not in with_weights(store))
    never: Callable[[Path], None] = lambda staging: pytest.fail("computed again")  # noqa: E731
    assert not any(other.obtain(key, never)[1] for key in keys)
    assert other.damaged() == []


def test_the_frontier_alone_is_not_kept_while_a_search_runs(make: Make, run: Callable[..., Result]) -> None:
    store = make()
    passed(store, 0, 0.2, at=2)
    with store.exclusive("driver"):
        assert f"process {os.getpid()} on" in complaint(run("gc", "one", "--keep", "frontier"))
        assert run("gc", "one").exit_code == 0
    with store.exclusive("collector"), pytest.raises(Occupied, match="is its collector; one at a time"):
        collect(Study(store.root))


def test_gc_of_a_study_without_points(make_here: Make) -> None:
    assert collectable(Study(make_here().root)).bytes == {}


def test_restored_weights_go_too(make: Make) -> None:
    store = make()
    keys = passed(store, 0, 0.2, at=3)
    collect(Study(store.root), "frontier")
    stage = store.stage(keys[1])
    as_another_process(store)

    def compute(staging: Path) -> None:
        write_record(staging / "stage.json", stage)
        (staging / "weights.safetensors").write_bytes(b"again" * 100)

    folder = store.restore(keys[1], compute)
    assert (folder / "weights.safetensors").read_bytes() == b"again" * 100
    assert store.restore(keys[1], compute) == folder
    assert Study(store.root).status().disk.collected == 2
    assert keys[1] in collect(Study(store.root), "frontier").bytes
    assert store.sizes("restored") == {}
    assert Study(store.root).status().disk.collected == 3


# --- what else a study holds ---


def test_confirmed_models_stay_and_count(make: Make, run: Callable[..., Result], place: Place) -> None:
    store = make()
    keys = passed(store, 0, 0.2, at=3)
    before = Study(store.root).status().disk
    models = [confirm(store, keys[2], seed, 0.8, at="2026-01-02") for seed in (1000, 1001)]
    files = beside(store)
    asked = Study(store.root)
    confirmed, disk = asked.confirmed(), asked.status().disk
    beside_weights = {name: size for folder in (CONFIRMED, "trackers") for name, size in store.sizes(folder).items()}
    assert disk.weights == before.weights + 2000
    assert disk.records > before.records + sum(size.bytes for size in beside_weights.values()) - 2000
    assert [one.disk.weights for one in studies(place) if one.disk is not None] == [disk.weights]
    said = "4 frontier; 2 kB of confirmed models, which gc leaves alone"
    assert said in run("gc", "one", "--keep", "frontier", "--dry-run").stdout
    assert said in run("gc", "one", "--keep", "frontier").stdout
    assert said in run("gc", "one", "--keep", "frontier").stdout  # nothing more to collect
    as_another_process(store)
    inner = StageStore(store.root / CONFIRMED)
    as_another_process(inner)
    assert all(inner.weights(key) is not None for key in models)
    assert Study(store.root).confirmed().equals(confirmed)
    assert {name: store.read_bytes(name) for name in files} == files
    with inner.exclusive("driver"):
        assert "confirmed: process" in complaint(run("rm", "one", "--yes"))
    assert run("rm", "one", "--yes").exit_code == 0
    assert open_files(place).names("") == []


def test_a_merge_takes_confirmations_over(make: Make, run: Callable[..., Result], place: Place) -> None:
    one, two = make("one"), make("two")
    shared = passed(one, 0, 0.2, at=2)[2]
    own = passed(two, 0, 0.2, at=3)[6]
    beside(one)
    confirm(one, shared, 1000, 0.80, at="2026-01-02")
    confirm(one, shared, 1000, 0.85, arm="dense", at="2026-01-02")
    confirm(two, shared, 1001, 0.90, at="2026-01-03")
    confirm(two, shared, 1000, 0.80, at="2026-01-04")  # both have it
    confirm(two, own, 1000, 0.60, at="2026-01-05")
    torn = confirm(two, own, 1001, 0.70, at="2026-01-05")
    inner = StageStore(two.root / CONFIRMED)
    open_files(inner.root).write(f"stages/{torn}/weights.safetensors", b"torn")
    as_another_process(inner)
    answer = run("merge", "one", "two", "--into", "both")
    assert answer.exit_code == 0, answer.output
    assert "confirmed  4 models measured on the test split" in answer.stdout
    assert "damaged    1 stages, left out" in answer.stdout
    both = Study(place / "both")
    rows = both.confirmed()[["key", "arm", "seeds", "test_accuracy_mean"]].values.tolist()
    assert sorted(rows) == sorted(
        [[shared, "pruned", 2, pytest.approx(0.85)], [shared, "dense", 1, 0.85], [own, "pruned", 1, 0.60]]
    )
    assert both.front()["confirmed_test_accuracy"].notna().sum() == 2
    store = StageStore(both.path / CONFIRMED)
    assert None not in map(store.weights, store.keys())
    assert set(both.store.names()) <= {"claims", "collected", "confirmed", "duplicates", "failures", "index.parquet",
                                       "stages", "staging", "study.json", "trials"}  # fmt: skip


def test_an_arm_that_failed_in_one_study_is_taken_from_the_other(make_here: Make, tmp_path: Path) -> None:
    one, two = make_here("one"), make_here("two")
    point = passed(one, 0, 0.2, at=1)[2]
    passed(two, 0, 0.2, at=1)
    confirm(one, point, 1000, 0.80, at="2026-01-02")
    (arm,) = StageStore(one.root / CONFIRMED).arms()
    other = StageStore(two.root / CONFIRMED)
    other.record_arm(arm.model_copy(update={"failure": "timed_out: late", "stages": (), "created": "2026-01-09"}))
    assert merge([Study(one.root), Study(two.root)], tmp_path / "both").confirmed == 1
    assert Study(tmp_path / "both").confirmed()["seeds"].tolist() == [1]


# --- ls ---


def test_studies_side_by_side(make: Make, run: Callable[..., Result], place: Place) -> None:
    assert run("ls").stdout.strip() == f"no study in {place}; `orchestrator search` makes one"
    passed(make("one"), 0, 0.2, at=3)
    empty = make("two")
    open_files(place).write("broken/study.json", b"{")
    open_files(place).write("other/readme", b"")
    with empty.exclusive("driver"):
        answer = run("ls")
    header, one, two = [line.split("  ") for line in answer.stdout.splitlines()]
    assert header[0] == "study"
    cells = [cell.strip() for cell in one if cell.strip()]
    assert cells[:7] == ["one", "net", "digits", "1", "4", f"{Study(place / 'one').status().hypervolume:.4f}", "7 kB"]
    assert cells[-1] == "-"
    assert "2026-01-01 00:00Z" in " ".join(two)
    assert f"process {os.getpid()} on" in " ".join(two)
    assert "broken/study.json: damaged" in answer.stderr
    assert [entry.name for entry in studies(place)] == ["broken", "one", "two"]


# --- rm ---


def test_a_study_is_removed_when_its_name_is_typed(make: Make, run: Callable[..., Result], place: Place) -> None:
    store = make()
    passed(store, 0, 0.2, at=1)
    assert "not removed; two was typed, its name is one" in complaint(run("rm", "one", typed="two\n"))
    with store.exclusive("driver"):
        assert "is its driver; one at a time" in complaint(run("rm", "one", "--yes"))
    assert store.keys()
    answer = run("rm", "one", typed="one\n")
    assert answer.exit_code == 0, answer.output
    assert "1 trials, 2 points" in answer.stdout
    assert open_files(place).names("") == []
    make("two")
    assert run("rm", "two", "--yes").stdout.strip() == f"removed {place / 'two'}"
    assert "no study in" in complaint(run("rm", "two", "--yes"))


def test_what_is_no_study_of_its_own_is_not_removed(make: Make, run: Callable[..., Result], place: Place) -> None:
    files = open_files(place)
    files.write("made/stages/note", b"")
    assert "has no study.json" in complaint(run("rm", "made", "--yes"))
    make("outer")
    files.write("outer/inner/study.json", b"{}")
    assert "has the study inner in it; remove that first" in complaint(run("rm", "outer", "--yes"))
    if isinstance(place, Path):
        make("real")
        (place / "link").symlink_to(place / "real")
        assert "is a link; give the folder that it leads to" in complaint(run("rm", "link", "--yes"))
        assert (place / "real" / "study.json").exists()


# --- merge ---


def test_two_studies_become_one_frontier(make: Make, run: Callable[..., Result], place: Place) -> None:
    one, two = make("one"), make("two")
    passed(one, 0, 0.2, at=2)
    passed(two, 0, 0.3, at=3)
    passed(two, 1, 0.2, at=3)
    two.record_failure(
        Failure(key="f" * 64, spec=spec_of(0.4, 3), reason="diverged", message="NaN", traceback="", **whereabouts())
    )
    answer = run("merge", "one", "two", "--into", "both")
    assert answer.exit_code == 0, answer.output
    both = StageStore(place / "both")
    assert both.keys() == sorted({*one.keys(), *two.keys()})
    points = {point.key: point for store in (one, two) for point in store.points()}
    assert Study(place / "both").front()["key"].tolist() == [p.key for p in frontier(list(points.values()))]
    assert [(trial.index, trial.spec.pruning_ratio) for trial in both.trials()] == [(0, 0.2), (1, 0.3), (2, 0.2)]
    assert [failure.key for failure in both.failures()] == ["f" * 64]
    merged = both.read_json("study.json")["merged"]
    assert [source["name"] for source in merged["sources"]] == ["one", "two"]
    assert merged["sources"][1]["trials"] == 2
    assert "definition" in merged["sources"][0]
    assert f"{len(both.keys())}; 5 of them more than one study has" in answer.stdout
    if isinstance(place, Path):
        shared = os.stat(place / "both" / "stages" / both.keys()[0] / "weights.safetensors")
        assert shared.st_nlink > 1  # no byte twice
        found = collectable(Study(both.root), "frontier")
        assert found.bytes
        assert found.freed == 0
        assert "more are shared with another study by hard links" in run("gc", "both", "--keep", "frontier").stdout
        assert with_weights(one) == set(one.keys())
    assert "is there already; give a new name" in complaint(run("merge", "one", "two", "--into", "both"))


def test_a_merge_across_storages(object_storage: Uri, tmp_path: Path) -> None:
    there, here = StageStore(object_storage / tmp_path.name / "one"), StageStore(tmp_path / "two")
    for store, ratio in ((there, 0.2), (here, 0.3)):
        store.write_json("study.json", {"name": store.root.name})
        passed(store, 0, ratio, at=2)
    for target in (tmp_path / "both", object_storage / tmp_path.name / "both"):
        done = merge([Study(there.root), Study(here.root)], target)
        both = StageStore(target)
        assert done.stages == len(both.keys()) == 8
        as_another_process(both)
        assert None not in map(both.weights, both.keys())
    assert place_of("s3://a/b", "results") == Uri("s3", "a/b")
    assert place_of("name", "results") == Path("results/name")
    assert place_of("some/where", "results") == Path("some/where")


def test_weights_come_from_whoever_has_them(make: Make, place: Place) -> None:
    one, two = make("one"), make("two")
    keys = passed(one, 0, 0.2, at=3)
    passed(two, 0, 0.2, at=3)
    collect(Study(one.root), "frontier")
    merge([Study(one.root), Study(two.root)], place / "both")
    assert with_weights(StageStore(place / "both")) == set(keys)
    collect(Study(two.root), "frontier")
    as_another_process(one)
    as_another_process(two)
    merge([Study(one.root), Study(two.root)], place / "less")
    as_another_process(StageStore(place / "less"))
    less = Study(place / "less")
    assert with_weights(less.store) == with_weights(two)
    assert all(less.store.folder(key) for key in keys)
    assert less.status().disk.collected == 3


def test_a_damaged_stage_is_left_out_unless_another_study_has_it(make: Make, place: Place) -> None:
    one, two = make("one"), make("two")
    keys = passed(one, 0, 0.2, at=2)
    passed(two, 0, 0.2, at=1)
    for key in (keys[1], keys[3]):
        open_files(one.root).write(f"stages/{key}/weights.safetensors", b"torn")
    as_another_process(one)
    done = merge([Study(one.root), Study(two.root)], place / "both")
    assert done.damaged == (keys[3],)
    assert StageStore(place / "both").keys() == sorted({*keys} - {keys[3]})


def test_a_merge_that_was_killed_goes_on(make: Make, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = make("one"), make("two"), make("three")
    for store, ratio in ((one, 0.2), (two, 0.3), (three, 0.4)):
        passed(store, 0, ratio, at=2)
    sources = [Study(one.root), Study(two.root)]

    def kill(done: int, of: int) -> None:
        if done == of // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(sources, place / "both", kill)
    with pytest.raises(InvalidInput, match="holds an unfinished merge of other studies"):
        merge([sources[0], Study(three.root)], place / "both")
    assert merge(sources, place / "both").stages == len(StageStore(place / "both").keys()) == 8


def test_what_does_not_compare_is_refused(make: Make, run: Callable[..., Result], place: Place) -> None:
    passed(make("digits"), 0, 0.2, at=1)
    passed(make("fashion"), 0, 0.2, at=1, data={"name": "fashion_mnist", "fingerprint": "f" * 64})
    passed(make("changed"), 0, 0.2, at=1, flops=2000)
    passed(make("nameless"), 0, 0.2, at=1, data={})
    make("empty")

    def refused(*names: str, into: str = "both") -> str:
        return complaint(run("merge", *names, "--into", into))

    assert (
        f"{place / 'fashion'}: is of fashion_mnist (fingerprint ffffffffffff), {place / 'digits'} of digits "
        "(fingerprint dddddddddddd); accuracies compare on the same pictures and the same split alone"
    ) in refused("digits", "fashion")
    assert "its dense net has 2 k flops, that of" in refused("digits", "changed")
    assert "has no fingerprint of the data" in refused("digits", "nameless")
    assert "has no dense network so far" in refused("digits", "empty")
    assert "merge joins two studies or more" in refused("digits")
    assert "is named twice" in refused("digits", "digits")
    passed(make("more"), 0, 0.3, at=1)
    assert "is one of the studies to be joined" in refused("digits", "more", into="digits")
    assert "both" not in open_files(place).names("")


def test_models_may_differ(make: Make, run: Callable[..., Result], place: Place) -> None:
    passed(make("one"), 0, 0.2, at=1)
    passed(make("two"), 0, 0.2, at=1, model="other", flops=5000)
    assert "net, other; flops_kept of each one's own dense network" in run(
        "merge", "one", "two", "--into", "both"
    ).stdout  # fmt: skip
    assert "flops_kept of each model's own dense network" in run("status", "both").stdout


def test_a_merged_study_is_not_searched(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "both")
    store.write_json("study.json", {"name": "both", "merged": {}})
    space = SearchSpace.read(Path(cli.__file__).parents[1] / "search_spaces" / "digits_cifarnet.toml")
    with pytest.raises(InvalidInput, match="was merged of several studies, and is not searched"):
        bind(store, space, None)


# --- the index of trials ---


def test_the_index_of_trials_follows_the_files(make: Make) -> None:
    store = make()
    assert len(trials_of(store)) == 0
    passed(store, 0, 0.2, at=1)
    passed(store, 2, 0.3, at=1, stopped="dominated")
    first = trials_of(store)
    assert first["index"].to_pylist() == [0, 2]
    assert first["stopped"].to_pylist() == [None, "dominated"]
    assert trials_of(store).equals(first)
    store.write_bytes("trials.parquet", b"torn")
    assert trials_of(store).equals(first)
    passed(store, 2, 0.3, at=1, failure="diverged: NaN")
    assert trials_of(store)["failure"].to_pylist() == [None, "diverged: NaN"]


def test_the_disk_file_is_a_copy_that_may_be_thrown_away(make: Make) -> None:
    store = make()
    passed(store, 0, 0.2, at=2)
    found = Study(store.root).status().disk
    assert found.weights == 5000
    total = sum(size.bytes for size in store.sizes().values())
    assert json.loads(json.dumps(found.total)) == pytest.approx(total, rel=0.5)  # derived files came in between
    store.write_bytes("disk.parquet", b"torn")
    assert Study(store.root).status().disk.weights == 5000
