"""MLflow: an experiment named like the study, a run for each trial and one for the whole, in a database or on a server.

By its client alone (mlflow-skinny): nothing is taken from the machine but what is told here.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

from orchestrator.record import InvalidInput, Point, TrialSpec
from orchestrator.search.tracking.interface import (
    MILLION,
    About,
    Ended,
    Known,
    Standing,
    figures_of,
    seconds_of,
    settings_of,
    study_figures,
)
from orchestrator.store import StageStore

STUDY_TAG, TRIAL_TAG = "orchestrator.study", "orchestrator.trial"  # a run's identity
KEY_TAG = "key."  # and a point's iteration
STUDY = "study"  # in TRIAL_TAG, of the run of the whole study
ENDED = {"FINISHED": False, "FAILED": True}
PAGE = 1000
# What a user does not set otherwise: a server that is away is found out in seconds, not in a quarter of an hour.
DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
FOLDER = "is a folder, to which MLflow no longer writes; give the file of a database, such as mlflow.db"


class MLflow:
    """Writes to the tracking URI, such as http://host:5000 or sqlite:///mlflow.db; a path is a SQLite file's."""

    def __init__(self, uri: str) -> None:
        """Raises InvalidInput for a place that MLflow cannot write to, and ImportError without MLflow."""
        self._uri = tracking_uri(uri)
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when MLflow is imported
        os.environ.update({name: value for name, value in DEFAULTS.items() if name not in os.environ})
        import mlflow

        for name in ("mlflow", "alembic"):  # which tell of every table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client: Any = None
        self._make = mlflow.MlflowClient
        self._runs: dict[str, str] = {}  # trial -> run id
        self._described: set[str] = set()  # trials whose settings are written

    @property
    def name(self) -> str:
        return f"MLflow at {re.sub(r'//[^/@]*@', '//', self._uri)}"  # without a password

    @property
    def look(self) -> str:
        is_server = self._uri.startswith("http")
        return (
            "look there" if is_server else f"look: mlflow server --backend-store-uri {self._uri} (the package mlflow)"
        )

    def begin(self, about: About, store: StageStore) -> Known:
        self._about = about
        self._client = self._make(tracking_uri=self._uri)
        found = self._client.get_experiment_by_name(about.name)
        self._experiment = self._client.create_experiment(about.name) if found is None else found.experiment_id
        known = Known()
        for run in self._there():
            trial = run.data.tags[TRIAL_TAG]
            self._runs[trial] = run.info.run_id
            if run.data.params:
                self._described.add(trial)
            if trial == STUDY:
                known.standings = max(self._steps(run, "hypervolume"), default=0)
            elif run.info.status in ENDED:
                known.failed[int(trial)] = ENDED[run.info.status]
            else:
                known.iterations[int(trial)] = {
                    int(tag.removeprefix(KEY_TAG)) for tag in run.data.tags if tag.startswith(KEY_TAG)
                }
        return known

    def point(self, index: int, spec: TrialSpec, point: Point) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(f"{KEY_TAG}{point.iteration}", point.key)]  # written last: by it a point is known to be whole
        self._log(self._run(index, spec), figures_of(point), point.iteration, point.created, tags)

    def ended(self, ended: Ended) -> None:
        run = self._run(ended.index, ended.spec, started=ended.points[0].created if ended.points else ended.created)
        for name, value in {"status": ended.status, "reason": ended.reason}.items():
            if value is not None:
                self._client.set_tag(run, name, value)
        status = "FAILED" if ended.status == "failed" else "FINISHED"
        self._client.set_terminated(run, status, end_time=_milliseconds(ended.created))

    def standing(self, standing: Standing) -> None:
        run = self._runs.get(STUDY) or self._create(STUDY, f"study {self._about.name}")
        figures = study_figures(standing)
        by_cost = {f"{name}_over_train_Mflops": figures[name] for name in ("hypervolume", "frontier_size")}
        self._log(run, by_cost, standing.train_flops // MILLION, standing.created)
        self._log(run, figures, standing.trials, standing.created)  # last: by these it is known what is there

    def close(self) -> None:
        if STUDY in self._runs:
            self._client.set_terminated(self._runs[STUDY], "FINISHED")

    def _run(self, index: int, spec: TrialSpec, started: str | None = None) -> str:
        from mlflow.entities import Param

        name = str(index)
        if name not in self._runs:
            self._create(name, f"trial {index}", started)
        if name not in self._described:
            settings = settings_of(spec, self._about)
            params = [Param(key, str(value)) for key, value in settings.items()]
            self._client.log_batch(self._runs[name], params=params)
            self._described.add(name)
        return self._runs[name]

    def _create(self, trial: str, title: str, started: str | None = None) -> str:
        tags = {STUDY_TAG: self._about.identity, TRIAL_TAG: trial}
        start_time = None if started is None else _milliseconds(started)
        run = self._client.create_run(self._experiment, start_time=start_time, tags=tags, run_name=title)
        self._runs[trial] = str(run.info.run_id)
        return self._runs[trial]

    def _log(self, run: str, figures: Any, step: int, created: str, tags: Any = ()) -> None:
        from mlflow.entities import Metric

        moment = _milliseconds(created)
        metrics = [Metric(name, value, moment, step) for name, value in figures.items()]
        self._client.log_batch(run, metrics=metrics, tags=list(tags))

    def _there(self) -> list[Any]:
        """The study's runs of earlier launches."""
        wanted = f"tags.`{STUDY_TAG}` = '{self._about.identity}'"
        page = self._client.search_runs([self._experiment], wanted, max_results=PAGE)
        found = list(page)
        while page.token:
            page = self._client.search_runs([self._experiment], wanted, max_results=PAGE, page_token=page.token)
            found += page
        return found

    def _steps(self, run: Any, name: str) -> set[int]:
        if name not in run.data.metrics:
            return set()
        return {metric.step for metric in self._client.get_metric_history(run.info.run_id, name)}


def tracking_uri(text: str) -> str:
    """The URI that MLflow is given for what a user typed. Raises InvalidInput for a folder, and for no place at all."""
    if re.match(r"[a-z][a-z0-9+.-]*://", text) and not text.startswith("file:"):
        return text
    path = Path(text.removeprefix("file://").removeprefix("file:"))
    if path.is_dir() or text.startswith("file:"):
        raise InvalidInput(f"--mlflow is {text}: {FOLDER}, or the address of a server")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"--mlflow is {text}: cannot be written ({error.strerror})") from None
    return f"sqlite:///{path.absolute()}"


def _milliseconds(created: str) -> int:
    return round(1000 * seconds_of(created))
