"""What a study has found, as frames and objects: `Study("digits_cifarnet").best(max_flops="2M")`.

All of it is read from the stage store, by its index. A study of a million points is a table of columns all the way:
Python objects are made of the rows that are asked for, and of no others.
"""

import difflib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.claim import Owner
from orchestrator.collector.amounts import format_flops, parse_flops
from orchestrator.collector.confirmed import confirmed_frame, confirming
from orchestrator.collector.disk import Disk, disk_of
from orchestrator.collector.frontier import best_at, frontier_mask, hypervolume
from orchestrator.collector.index import SCHEMA, Row, indexed
from orchestrator.collector.remarks import frozen_in, unrepaired_in
from orchestrator.collector.trials import stopped_of, trials_of
from orchestrator.files import Place, Uri, located, open_files, reason_of
from orchestrator.record import Failure, InvalidInput, Point, StageKind
from orchestrator.stage_files import MODEL_FILE, PLAN_FILE, POINT_FILE, STAGE_FILE, WEIGHTS_FILE, DamagedStage
from orchestrator.store import CONFIRMED, StageStore

DTYPES = {field.name: {"int64": "int64", "double": "float64"}.get(str(field.type), "object") for field in SCHEMA}
CONFIRMED_COLUMNS = {
    "confirmed_test_accuracy": "test_accuracy_mean",
    "confirmed_deviation": "test_accuracy_deviation",
}  # of a frontier, after those of SCHEMA
FAILURE_COLUMNS = [
    "key",
    "reason",
    "message",
    "model",
    "dataset",
    "method",
    "regularization_weight",
    "pruning_ratio",
    "seed",
    "created",
    "host",
    "pid",
]


class EmptyStudy(InvalidInput):
    """A study without a single point so far."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a study is. `best_at` has the best accuracy for budgets of flops_kept."""

    path: Place
    driver: Owner | None  # the process that runs the search, if one is known to
    confirming: Owner | None  # the process that confirms points of it
    stages: dict[StageKind, int]
    points: int
    failures: int
    duplicates: int  # stages computed twice
    trials: int  # that have ended
    stopped: Mapping[int, str]  # why trials ended before their last iteration, by their number
    reused: int  # stages that a trial found finished
    train_flops_saved: float  # what these would have cost
    damaged: tuple[str, ...]  # what is wrong with stages that cannot be read, and with those that were moved aside
    hypervolume: float
    best_at: dict[float, float | None]
    train_flops: float
    seconds: float
    disk: Disk
    models: tuple[str, ...]  # with several, flops_kept is of each one's own dense network


class Study:
    """Everything one search-space file has produced. Reads only; may be asked while the search runs.

    `name_or_path` is a folder under `results`, any folder, or a URI. Raises InvalidInput where there is no study.
    Stages that cannot be read are left out of all answers; `damaged` tells what is wrong with them, by key.
    """

    def __init__(
        self, name_or_path: str | os.PathLike[str] | Uri, results: str | os.PathLike[str] | Uri = "results"
    ) -> None:
        self.path = _find(name_or_path, located(results))
        self.store = StageStore(self.path)
        self.damaged: dict[str, str] = {}
        self.store.read_json("study.json")  # says so if it is damaged

    def __repr__(self) -> str:
        return f"Study({str(self.path)!r})"

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that made its points."""
        return tuple(sorted(pc.unique(self._table()["method"]).drop_null().to_pylist()))

    def index(self) -> pa.Table:
        """One row for each published stage that can be read, in the order of their keys: the columns of SCHEMA."""
        return self._table()

    def points(self) -> pd.DataFrame:
        """All points, the oldest first: one row each, with the columns of SCHEMA."""
        return _frame(_oldest_first(_points(self._table())))

    def stages(self) -> pd.DataFrame:
        """All published stages, the oldest first: as points(), and what only a point has is missing in the others."""
        return _oldest_first(self._table()).to_pandas()

    def front(self, max_flops: float | str | None = None, min_accuracy: float | None = None) -> pd.DataFrame:
        """The frontier within the limits, in ascending order of flops; the columns are those of points(), and two more.

        confirmed_test_accuracy and confirmed_deviation are those of the pruned arm in confirmed(), NaN elsewhere.
        Raises EmptyStudy while there is no point at all.
        """
        points = self._some_points()
        tidy = np.argsort(points["params"].to_numpy(), kind="stable")  # of equal params, in the order of the keys
        accuracy, flops = (points[name].to_numpy()[tidy] for name in ("accuracy", "flops"))
        front = _frame(points.take(tidy[frontier_mask(accuracy, flops)])).sort_values("flops", ignore_index=True)
        within = _within(front, _flops_limit(max_flops), _accuracy_limit(min_accuracy)).reset_index(drop=True)
        return _marked(within, self.confirmed())

    def confirmed(self) -> pd.DataFrame:
        """What was measured on the test split, after training anew from fresh seeds: a row a point and arm.

        The arms are "pruned", and the controls of the same train_flops, "dense" and "scratch". Columns: key of the
        point, arm, seeds, test_accuracy_mean, test_accuracy_deviation (of the sample), flops, params, train_flops_mean,
        optimism (the search's accuracy less the mean; pruned arm), with_validation. Empty where nothing was confirmed.
        """
        return confirmed_frame(StageStore(self.path / CONFIRMED), self._accuracy_of)

    def best(self, max_flops: float | str | None = None, min_accuracy: float | None = None) -> Point:
        """The most accurate point within a budget of flops; or, given only an accuracy, the cheapest that has it.

        Raises InvalidInput, naming the closest point, if none satisfies both limits.
        """
        flops, accuracy = _flops_limit(max_flops), _accuracy_limit(min_accuracy)
        if flops is None and accuracy is None:
            raise InvalidInput("give a limit: max_flops, min_accuracy or both")
        front = self.front()
        fitting = _within(front, flops, accuracy)
        if fitting.empty:
            raise InvalidInput(f"{self.path}: {_closest(front, flops, accuracy)}")
        return self.store.point(str(fitting["key"].iloc[0 if flops is None else -1]))

    def point(self, key: str) -> Point:
        """The point with this key, which may be cut short while it is unmistakable. Raises InvalidInput."""
        return self.store.point(self._full_key(key))

    def failures(self) -> pd.DataFrame:
        """The trials that ended early and whose stage no later trial has finished, the oldest first."""
        found = [failure for failure in self.store.failures() if not self.store.has(failure.key)]
        return pd.DataFrame([_failure_row(failure) for failure in found], columns=FAILURE_COLUMNS)

    def frozen(self) -> pd.DataFrame:
        """The groups that verification or their method left whole: group, channels, in how many stages, reason."""
        return frozen_in(self.store, self._table())

    def unrepaired(self) -> pd.DataFrame:
        """The layers that no repair could treat: layer, in how many stages, reason."""
        return unrepaired_in(self.store, self._table())

    def status(self) -> Status:
        """How far the study is; answers from the first minute on."""
        table, trials = self._table(), trials_of(self.store)
        points = _points(table)
        accuracy, flops_kept = points["accuracy"].to_numpy(), points["flops_kept"].to_numpy()
        costs = table["train_flops"].to_numpy()
        again = _uses_again(table, trials)
        return Status(
            path=self.path,
            driver=self.store.occupant("driver"),
            confirming=confirming(self.path),
            stages={kind: pc.sum(pc.equal(table["kind"], kind)).as_py() or 0 for kind in get_args(StageKind)},
            points=len(points),
            failures=len(self.failures()),
            duplicates=self.store.duplicates(),
            trials=len(trials),
            stopped=stopped_of(trials),
            reused=int(again.sum()),
            train_flops_saved=math.fsum((costs * again).tolist()),
            damaged=(*self.damaged.values(), *map(str, self.store.damaged())),
            hypervolume=hypervolume(accuracy, flops_kept),
            best_at=best_at(accuracy, flops_kept),
            train_flops=math.fsum(costs.tolist()),
            seconds=math.fsum(table["seconds"].to_numpy().tolist()),
            disk=disk_of(self.store, table["key"].combine_chunks()),
            models=tuple(sorted(pc.unique(points["model"]).to_pylist())),
        )

    def export(self, key: str, output_dir: str | os.PathLike[str]) -> list[Path]:
        """Copies a point's model and records into a folder, which `orchestrator.load` reads.

        `key` may be cut short while it is unmistakable.
        Raises InvalidInput if the weights were not kept, or if the folder holds anything else.
        """
        full_key = self._full_key(key)
        folder, point = self.store.weights(full_key), self.store.point(full_key)
        if folder is None:
            place = self.path / "stages" / full_key / WEIGHTS_FILE
            raise InvalidInput(f"{place}: the weights of this point were not kept; trial.restore computes them again")
        sources = [folder / name for name in (WEIGHTS_FILE, MODEL_FILE, PLAN_FILE, POINT_FILE, STAGE_FILE)]
        try:
            return _copy([source for source in sources if source.is_file()], Path(output_dir), point.key)
        except OSError as error:
            raise InvalidInput(f"{output_dir}: cannot be written ({error.strerror or error})") from error

    def _accuracy_of(self, key: str) -> float:
        """What the search measured; NaN where its point is gone."""
        try:
            return self.store.point(key).accuracy if self.store.has(key) else math.nan
        except DamagedStage:
            return math.nan

    def _some_points(self) -> pa.Table:
        points = _points(self._table())
        if len(points) == 0:
            failed = len(self.failures())
            why = f"; {failed} failed: see `orchestrator status`" if failed else "; the dense model's comes first"
            raise EmptyStudy(f"{self.path}: no point so far{why}")
        return points

    def _full_key(self, key: str) -> str:
        keys = _points(self._table())["key"]
        found = keys.filter(pc.starts_with(keys, key)).to_pylist()
        if len(found) != 1:
            raise InvalidInput(f"{self.path}: {len(found) or 'no'} points have a key that starts with {key!r}")
        return str(found[0])

    def _table(self) -> pa.Table:
        """One row for each published stage that can be read, in the order of their keys."""
        table, self.damaged = indexed(self.store)
        return table


def as_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV with a header; floats in full."""
    return str(frame.to_csv(index=False, lineterminator="\n"))


def as_json(frame: pd.DataFrame) -> str:
    """A frame as a JSON list of objects; floats in full, what is missing as null."""
    records = [
        {str(column): None if _is_missing(value) else value for column, value in row.items()}
        for row in frame.to_dict(orient="records")
    ]
    return json.dumps(records, indent=2, allow_nan=False, ensure_ascii=False)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _find(given: str | os.PathLike[str] | Uri, results: Place) -> Place:
    name = located(given)
    places = [name] if isinstance(name, Uri) else list(dict.fromkeys((results / name, name)))
    found = next((place for place in places if _holds_study(place)), None)
    if found is not None:
        return found
    parent = open_files(results if name.parent == Path() else name.parent)
    try:
        there = [one for one in parent.names("") if parent.exists(f"{one}/study.json")]
    except OSError:
        there = []
    close = difflib.get_close_matches(name.name, there) or there[:8]
    hint = f"there is {', '.join(close)}" if close else f"`orchestrator search` makes one under {results}"
    raise InvalidInput(f"{name}: no study in {' or '.join(map(str, places))}; {hint}")


def _holds_study(place: Place) -> bool:
    files = open_files(place)
    try:
        return files.exists("study.json") or "stages" in files.names("")
    except NotADirectoryError:
        return False
    except OSError as error:
        raise InvalidInput(f"{place}: cannot be read ({reason_of(error)})") from error


def _flops_limit(limit: float | str | None) -> float | None:
    return parse_flops(limit) if isinstance(limit, str) else limit


def _accuracy_limit(limit: float | None) -> float | None:
    if limit is not None and not 0 <= limit <= 1:
        raise InvalidInput(f"min_accuracy is {limit:g}; give a share from 0 to 1")
    return limit


def _within(front: pd.DataFrame, max_flops: float | None, min_accuracy: float | None) -> pd.DataFrame:
    if max_flops is not None:
        front = front[front["flops"] <= max_flops]
    if min_accuracy is not None:
        front = front[front["accuracy"] >= min_accuracy]
    return front


def _closest(front: pd.DataFrame, max_flops: float | None, min_accuracy: float | None) -> str:
    """Why nothing on the frontier is within the limits, and what comes closest."""
    cheap = _within(front, max_flops, None)
    if cheap.empty:
        assert max_flops is not None
        return f"no point has at most {format_flops(max_flops)} flops; the smallest has {_figures(front.iloc[0])}"
    among = "" if max_flops is None else f" with at most {format_flops(max_flops)} flops"
    return f"no point{among} reaches accuracy {min_accuracy}; the best has {_figures(cheap.iloc[-1])}"


def _figures(row: Mapping[str, Any]) -> str:
    return f"{format_flops(row['flops'])} flops and accuracy {row['accuracy']:.4f}"


def _marked(front: pd.DataFrame, confirmed: pd.DataFrame) -> pd.DataFrame:
    """A frontier with the confirmed figures of its points beside the search's."""
    pruned = confirmed[confirmed["arm"] == "pruned"].set_index("key")
    return front.assign(
        **{name: front["key"].map(pruned[column]).astype("float64") for name, column in CONFIRMED_COLUMNS.items()}
    )


def _failure_row(failure: Failure) -> Row:
    row = {**failure.spec.model_dump(), **failure.model_dump()}
    return {name: row[name] for name in FAILURE_COLUMNS}


def _points(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_valid(table["flops"]))


def _uses_again(table: pa.Table, trials: pa.Table) -> Any:
    """[stages] int64: how many trials found each stage of the table finished."""
    passed = pc.list_flatten(trials["stages"])
    at = pc.index_in(passed, value_set=table["key"].combine_chunks()).drop_null().to_numpy()
    return np.maximum(np.bincount(at, minlength=len(table)) - 1, 0)


def _oldest_first(table: pa.Table) -> pa.Table:
    """Ordered by `created`; of the same moment, in the order that the table has, which is that of the keys."""
    return table.take(pc.sort_indices(table["created"]))


def _frame(table: pa.Table) -> pd.DataFrame:
    columns = {name: table[name].to_numpy().astype(kind) for name, kind in DTYPES.items()}
    return pd.DataFrame({name: pd.Series(values, dtype=values.dtype) for name, values in columns.items()})


def _copy(sources: list[Path], output: Path, key: str) -> list[Path]:
    output.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in output.iterdir()}
    same = POINT_FILE in there and key in (output / POINT_FILE).read_text(errors="replace")
    if there and not same:
        raise InvalidInput(f"{output}: is not empty; give a folder that is new")
    for source in sources:
        aside = output / f"{source.name}.part"
        shutil.copyfile(source, aside)
        aside.replace(output / source.name)
    return [output / source.name for source in sources]
