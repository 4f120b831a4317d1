"""What trackers are told and write: everything, once, whatever was cut short; and how they fail."""

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import fake_trial
import pytest
from tracker_files import Run, from_mlflow, from_tensorboard, from_wandb
from tracking_driver import Broken

from orchestrator.collector import Study
from orchestrator.files import Uri
from orchestrator.record import InvalidInput, Point, TrialRecord, TrialSpec, now
from orchestrator.search import make_trackers
from orchestrator.search.space import SearchSpace
from orchestrator.search.tracking import About, Following, Known, following
from orchestrator.search.tracking.interface import Ended, Standing, settings_of
from orchestrator.search.tracking.to_mlflow import tracking_uri
from orchestrator.search.tracking.to_wandb import WandB
from orchestrator.store import StageStore

SETTINGS = ("method", "regularization_weight", "pruning_ratio", "iterations", "model", "dataset", "seed")
FIGURES = ("accuracy", "accuracy_after_cut", "flops", "flops_kept", "params", "latency_ms")
FATES: tuple[Mapping[str, str], ...] = ({}, {"stopped": "after iteration 2 of 3"}, {"failure": "diverged: NaN"}, {})
# MLflow 3.17 with SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))


class Trials:
    """Runs fake trials of a study, here, and tells trackers of them as a search would."""

    def __init__(self, store: StageStore, space: SearchSpace) -> None:
        self.store = store
        self.about = About.of("small", {"created": str(store.root)}, tuple(space.dimensions))
        self._space = space

    def spec(self, index: int) -> TrialSpec:
        return self._space.spec({"regularization_weight": 0.01, "pruning_ratio": 0.2 + 0.05 * index, "iterations": 3})

    def begin(self, index: int, told: Following) -> None:
        """Runs a trial whose end is not recorded."""
        fake_trial.run(self.spec(index), self.store, lambda point: told.point(index, self.spec(index), point))

    def end(self, index: int, told: Following, **fate: str) -> None:
        spec = self.spec(index)
        outcome = fake_trial.run(spec, self.store, lambda point: told.point(index, spec, point))
        record = TrialRecord(index=index, spec=spec, stages=outcome.stages, created=now(), **fate)
        self.store.record_trial(record)
        told.ended(record, outcome.points, {key: fake_trial.TRAIN_FLOPS for key in outcome.stages})


@pytest.fixture
def trials(tmp_path: Path, space: SearchSpace) -> Trials:
    return Trials(StageStore(tmp_path / "small"), space)


def expected(store: StageStore, trial: TrialRecord) -> Run:
    points = [store.point(key) for key in trial.stages if store.has_point(key)]
    run = Run(keys=[point.key for point in points])
    run.params = {name: str(getattr(trial.spec, name)) for name in SETTINGS}
    run.status = "failed" if trial.failure else "stopped" if trial.stopped else "finished"
    run.reason = trial.failure or trial.stopped
    for point in points:
        for name in FIGURES:
            if getattr(point, name) is not None:
                run.add(name, point.iteration, getattr(point, name))
        run.add("train_flops", point.iteration, point.path_cost.train_flops)
    return run


def check(runs: dict[str, Run], store: StageStore, *, digits: float = 1e-15, twice: int | None = 0) -> None:
    """All that the store holds is there, once but for `twice` figures (None: some), and nothing else."""
    records = {str(trial.index): trial for trial in store.trials()}
    assert runs.keys() == {*records, "study"}
    for index, record in records.items():
        found, wanted = runs[index], expected(store, record)
        assert {name: text.removesuffix(".0") for name, text in found.params.items() if name[0] != "_"} == wanted.params
        assert (found.status, found.reason) == (wanted.status, wanted.reason)
        assert list(dict.fromkeys(found.keys)) == wanted.keys
        assert found.figures.keys() == wanted.figures.keys()
        for name, values in wanted.figures.items():
            assert found.figures[name] == pytest.approx(values, rel=digits), name
    more = sum(runs[index].logged - expected(store, record).logged for index, record in records.items())
    assert more == twice or (twice is None and more >= 0)
    curve = runs["study"].figures
    count, study = len(records), Study(store.root)
    assert list(curve["hypervolume"]) == list(range(1, count + 1))
    assert curve["hypervolume"][count] == pytest.approx(study.status().hypervolume, rel=max(digits, 1e-12))
    assert curve["train_flops"][count] == sum(stage.cost.train_flops for stage in store.stages())
    assert curve["frontier_size"][count] == len(study.front())


def test_each_tracker_has_everything_once_after_a_launch_that_was_cut_short(
    object_storage: Uri, space: SearchSpace, tmp_path: Path
) -> None:
    """Three launches: trials end in each way and one is cut short; it goes on; nothing is new. On object storage."""
    trials = Trials(StageStore(object_storage / tmp_path.name / "small"), space)
    said: list[str] = []

    def launch(act: Callable[[Following], None]) -> None:
        made = make_trackers(tensorboard=tmp_path / "tb", mlflow=str(tmp_path / "ml.db"), wandb="some/project")
        with Following(made, said.append) as told:
            told.begin(trials.about, trials.store)
            act(told)

    def first(told: Following) -> None:
        for index in (0, 2, 1):
            trials.end(index, told, **FATES[index])
        trials.begin(3, told)

    launch(first)
    launch(lambda told: trials.end(3, told))
    launch(lambda told: None)
    assert len(said) == 9
    assert said[0] == f"TensorBoard in {tmp_path}/tb; look: tensorboard --logdir {tmp_path}/tb"
    assert said[1].startswith(f"MLflow at sqlite:///{tmp_path}/ml.db; look: mlflow server --backend-store-uri sqlite:")
    assert said[2] == f"W&B project some/project; offline; send with: wandb sync {tmp_path}/wandb/offline-run-*"
    check(from_tensorboard(tmp_path / "tb" / f"small-{trials.about.identity[:6]}"), trials.store, digits=1e-7)
    check(from_mlflow(f"sqlite:///{tmp_path}/ml.db", "small"), trials.store)
    runs = from_wandb(tmp_path)
    check(runs, trials.store, twice=4 * 5)  # what W&B has of a run cannot be asked; it drops steps that it has
    assert {path.suffix for path in tmp_path.glob("wandb/*/run-*")} == {".wandb"}
    assert trials.store.read_json("trackers/wandb-some%2Fproject.json") == {
        "passed": [0, 1, 3],
        "failed": [2],
        "standings": 4,
    }


def test_a_point_that_was_written_in_part_is_written_again(trials: Trials, tmp_path: Path) -> None:
    """As a kill leaves it: the last event is torn, the last tag is missing."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/ml.db"

    def launch(act: Callable[[Following], None]) -> None:
        with Following(make_trackers(tensorboard=tmp_path / "tb", mlflow=uri)) as told:
            told.begin(trials.about, trials.store)
            act(told)

    launch(lambda told: trials.begin(0, told))
    (events,) = tmp_path.glob("tb/*/trial-0000/*")
    os.truncate(events, events.stat().st_size - 10)
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])  # type: ignore[union-attr]
    client.delete_tag(run.info.run_id, "key.3")
    launch(lambda told: trials.end(0, told))
    check(from_tensorboard(tmp_path / "tb" / f"small-{trials.about.identity[:6]}"), trials.store, digits=1e-7)
    check(from_mlflow(uri, "small"), trials.store)


def test_what_wandb_was_told_last_is_told_again_after_a_kill(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [0.0]
    first = WandB("project", clock=lambda: moments[0])
    first.begin(trials.about, trials.store)
    monkeypatch.setattr(first, "_open", lambda name, *rest: first._runs.setdefault(name, MagicMock()))

    def noted_after(count: int, moment: float) -> int:
        moments[0] = moment
        first.standing(Standing(trials=count, train_flops=1, hypervolume=0.5, frontier_size=1, created=now()))
        return WandB("project").begin(trials.about, trials.store).standings

    assert [noted_after(1, 0.0), noted_after(2, 30.0), noted_after(3, 70.0), noted_after(4, 71.0)] == [0, 0, 1, 1]
    study = first._runs["study"]
    assert [call.kwargs for call in study.log.call_args_list] == [{"step": n, "commit": True} for n in range(1, 5)]
    first.close()
    assert WandB("project").begin(trials.about, trials.store).standings == 4


def test_a_finished_study_is_told_to_a_tracker_that_comes_later(trials: Trials) -> None:
    seen = Recorder()
    for index in range(2):
        trials.end(index, Following())
    with Following([seen]) as told:
        told.begin(trials.about, trials.store)
    assert seen.calls == [
        "begin",
        *["point"] * 4,
        "ended 0",
        "standing 1",
        *["point"] * 4,
        "ended 1",
        "standing 2",
        "close",
    ]


def test_a_trial_that_ends_otherwise_than_before_is_told_again(trials: Trials) -> None:
    seen = Recorder(Known(failed={0: True, 1: False}, standings=2))
    with Following([seen]) as told:
        told.begin(trials.about, trials.store)
        trials.end(0, told)
        trials.end(1, told)
    assert [call for call in seen.calls if call != "point"] == ["begin", "ended 0", "close"]


class Recorder:
    """A tracker that keeps what it was told."""

    name = "the recorder"
    look = "look here"

    def __init__(self, known: Known | None = None) -> None:
        self.calls: list[str] = []
        self._known = known or Known()

    def begin(self, about: About, store: StageStore) -> Known:
        self.calls.append("begin")
        return self._known

    def point(self, index: int, spec: TrialSpec, point: Point) -> None:
        self.calls.append("point")

    def ended(self, ended: Ended) -> None:
        self.calls.append(f"ended {ended.index}")

    def standing(self, standing: Any) -> None:
        self.calls.append(f"standing {standing.trials}")

    def close(self) -> None:
        self.calls.append("close")


def test_a_tracker_that_fails_is_said_once_and_at_the_end(trials: Trials) -> None:
    said: list[str] = []
    good = Recorder()
    with Following([Broken(), good], said.append) as told:
        told.begin(trials.about, trials.store)
        for index in range(2):
            trials.end(index, told)
    assert [line for line in said if "broken" in line] == [
        "the broken one; no use to look",
        "the broken one: nobody answers; the search goes on without it",
        "the broken one: stopped after an error (nobody answers); the next launch with it adds what is missing",
    ]
    assert good.calls[-2:] == ["standing 2", "close"]


def test_a_tracker_that_hangs_holds_nothing_up(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(following, "HASTE_SECONDS", 0.1)
    said: list[str] = []
    over = threading.Event()

    class Hanging(Recorder):
        def point(self, index: int, spec: TrialSpec, point: Point) -> None:
            over.wait()

    message = (
        "the recorder: has not written everything: 6 things were left; the next launch with it adds what is missing"
    )
    with Following([Hanging()], said.append) as told:
        told.begin(trials.about, trials.store)
        trials.end(0, told)
    assert said[1:] == [message]

    def interrupted() -> None:
        with Following([Hanging()], said.append) as told:
            told.begin(trials.about, trials.store)
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        interrupted()
    assert len(said) == 4
    over.set()


def test_everything_that_varies_is_a_parameter(space: SearchSpace) -> None:
    spec = space.spec({"regularization_weight": 0.01, "pruning_ratio": 0.3, "iterations": 3})
    spec = spec.model_copy(update={"method_options": {"norm": "l1"}})
    about = About(
        name="small", identity="0", varied=("iterations", "recovery.epochs", "method_options.norm", "weights")
    )
    assert settings_of(spec, about) == {
        **{name: getattr(spec, name) for name in SETTINGS},
        "recovery.epochs": 1,
        "method_options.norm": "l1",
    }


def test_studies_of_one_name_are_told_apart() -> None:
    one, other = (About.of("small", {"created": moment}) for moment in ("monday", "tuesday"))
    assert one.identity != other.identity
    assert one == About.of("small", {"created": "monday"})


@pytest.mark.parametrize(
    ("module", "asked", "extra"),
    [
        ("tensorboard", {"tensorboard": "tb"}, "tensorboard"),
        ("mlflow", {"mlflow": "http://127.0.0.1:1"}, "mlflow"),
        ("wandb", {"wandb": "project"}, "wandb"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str, asked: Any, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    message = rf"--{extra} needs packages that are not installed \(.*{module}.*\): pip install '.*\[{extra}\]'"
    with pytest.raises(InvalidInput, match=message):
        make_trackers(**asked)


def test_places_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    refused = {
        r"--tensorboard is s3://runs; it must be a folder of this machine": {"tensorboard": "s3://runs"},
        r"--tensorboard is .*/file/tb: cannot be written \(Not a directory\)": {"tensorboard": tmp_path / "file/tb"},
        r"--mlflow is .*: is a folder, to which MLflow no longer writes; give .* mlflow\.db": {"mlflow": str(tmp_path)},
        r"--mlflow is file:///mlruns: is a folder": {"mlflow": "file:///mlruns"},
        r"--mlflow is .*/file/ml\.db: cannot be written \(File exists\)": {"mlflow": f"{tmp_path}/file/ml.db"},
        r"--wandb is 'a/b/c'; give the name of a project, or entity/project": {"wandb": "a/b/c"},
    }
    for message, asked in refused.items():
        with pytest.raises(InvalidInput, match=message):
            make_trackers(**asked)  # type: ignore[arg-type]


def test_wandb_that_is_disabled_or_has_no_login_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb
    from wandb.sdk.lib import wbauth

    settings = wandb.setup().settings.model_copy()
    monkeypatch.setattr(wandb, "setup", lambda: type("Setup", (), {"settings": settings}))
    settings.mode = "disabled"
    with pytest.raises(InvalidInput, match=r"--wandb writes nothing: W&B is disabled here"):
        make_trackers(wandb="project")
    settings.mode = "online"
    monkeypatch.setattr(wbauth, "authenticate_session", lambda **given: None)
    with pytest.raises(InvalidInput, match=r"--wandb needs a login: run `wandb login`, or set WANDB_MODE=offline"):
        make_trackers(wandb="project")


def test_a_path_is_a_database_and_a_password_is_not_said(tmp_path: Path) -> None:
    assert tracking_uri(f"{tmp_path}/new/ml.db") == f"sqlite:///{tmp_path}/new/ml.db"
    assert (tmp_path / "new").is_dir()
    assert tracking_uri("postgresql://me:secret@host/db") == "postgresql://me:secret@host/db"
    (tracker,) = make_trackers(mlflow="https://me:secret@host/path")
    assert (tracker.name, tracker.look) == ("MLflow at https://host/path", "look there")


def test_the_libraries_are_told_to_tell_nobody() -> None:
    make_trackers(mlflow="http://127.0.0.1:1", wandb="project")
    from mlflow.telemetry.utils import is_telemetry_disabled
    from wandb.env import error_reporting_enabled

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert is_telemetry_disabled()
    assert not error_reporting_enabled()


def test_a_server_that_is_away_is_said(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    with Following(make_trackers(mlflow="http://127.0.0.1:1"), said.append) as told:
        told.begin(trials.about, trials.store)
    _, failed, summary = said
    assert failed.startswith("MLflow at http://127.0.0.1:1: API request to http://127.0.0.1:1/api/2.0/mlflow/exp")
    assert failed.endswith("...; the search goes on without it")
    assert summary.endswith("the next launch with it adds what is missing")
