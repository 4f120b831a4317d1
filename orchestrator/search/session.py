"""The Ray Tune session of one launch: workers, placement, retries. Imports Ray, so the environment must stand first.

Each launch is a new session: what is to be kept lies in the stage store and in the journal, not in Tune's folder.
"""

import importlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.stopper import FunctionStopper

from orchestrator.files import Place, Uri
from orchestrator.record import FailureReason, InvalidInput, Outcome, Point, TrialRecord, TrialSpec
from orchestrator.search.attempts import Attempts
from orchestrator.search.binding import STUDY_FILE
from orchestrator.search.daemons import shut_down
from orchestrator.search.placement import check_cluster, check_here, check_machines
from orchestrator.search.progress import Progress
from orchestrator.search.proposer import ENDED, FRONTIER, INDEX, SPEC, Proposer, Source, last_row
from orchestrator.search.space import Resources, SearchSpace, Stopping
from orchestrator.search.stopping import reason_to_stop
from orchestrator.search.tracking import Following
from orchestrator.store import StageStore

TOKEN_HINT = "; one that runs lets in whoever has its token: RAY_AUTH_MODE=token, RAY_AUTH_TOKEN[_PATH]"
DASHBOARD = "--dashboard needs packages that are not installed ({}): pip install 'pruning-orchestrator[dashboard]'"
HINT = "a larger --cpus-per-trial runs fewer trials side by side"
SAMPLES = 10**9  # Tune's own limit; the proposals know when to end

RunTrial = Callable[..., Outcome]
Found = Callable[[Mapping[str, Any], str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the workers need to know."""

    root: Place
    function: str  # "module:name" of the trial function
    kind: type[TrialSpec] = TrialSpec  # of what it is given
    resources: Resources
    stopping: Stopping = field(default_factory=Stopping)
    references: tuple[str, ...] = ()  # "module:function" of the user's own networks and data sets
    folder: Path = field(default_factory=Path.cwd)
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    forgiven: frozenset[str] = frozenset()  # timeouts of earlier launches: their stages are tried again

    @classmethod
    def of(
        cls,
        run_trial: RunTrial,
        root: Place,
        space: SearchSpace,
        references: tuple[str, ...] = (),
        forgiven: frozenset[str] = frozenset(),
    ) -> "Job":
        return cls(
            root=root,
            function=f"{run_trial.__module__}:{run_trial.__qualname__}",
            resources=space.resources,
            stopping=space.stopping,
            references=references,
            forgiven=forgiven,
        )

    @property
    def device(self) -> str | tuple[str, ...]:
        gpus = self.resources.gpus_per_trial
        if gpus > 1:
            return tuple(f"cuda:{number}" for number in range(int(gpus)))  # of those that Ray shows to the worker
        return "cuda" if gpus > 0 else "cpu"

    @property
    def threads(self) -> int:
        return max(1, int(self.resources.cpus_per_trial))

    @property
    def limits(self) -> dict[str, Any]:
        """The time limit as an argument of the trial function, if there is one."""
        minutes = self.resources.stage_minutes
        if minutes is None:
            return {}
        from orchestrator.trial import TimeLimit  # with all of torch, which a trial function need not want

        return {"time_limit": TimeLimit(seconds=60 * minutes, forgiven=self.forgiven, hard=True)}


@contextmanager
def connected(
    address: str | None,
    resources: Resources,
    say: Callable[[str], None] = lambda text: None,
    *,
    dashboard: bool = False,
) -> Iterator[None]:
    """Ray, started on this machine or joined at `address`, and left again; one that already runs is used as it is.

    `say` gets what the user should know of the cluster. With `dashboard` a Ray that is started here has one, on the
    loopback interface as all of it. Raises InvalidInput where there is no Ray, where it does not let this process in,
    where a trial fits no machine, and where the dashboard's packages are missing.
    """
    if ray.is_initialized():
        yield
        return
    missing = ray._private.utils.get_dashboard_dependency_error()  # ray.init would only leave it out
    if dashboard and address is None and missing is not None:
        raise InvalidInput(DASHBOARD.format(missing))
    try:
        context = ray.init(
            address=address or "local",  # "local" even where RAY_ADDRESS says otherwise
            include_dashboard=None if address else dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises a plain Exception where one of its processes dies while it starts
        where, hint = ("on this machine", "") if address is None else (f"at --address {address}", TOKEN_HINT)
        reason = str(next(iter(error.args), error)).strip().splitlines()[0]
        raise InvalidInput(f"no Ray {where}: {reason}{hint}") from error
    with _hushed():
        try:
            if context.dashboard_url or dashboard:
                say(_dashboard(context.dashboard_url))
            if address is None:
                check_here(resources)
            else:
                check_cluster(resources, say)
            yield
        finally:
            shut_down()


def _dashboard(address: str | None) -> str:
    if not address:
        return "Ray has no dashboard: this cluster was started without one"
    return f"Ray's dashboard: http://{address} (it asks for the token that `ray get-auth-token` prints)"


@contextmanager
def _hushed() -> Iterator[None]:
    """Ray without its prints about lost workers and unfinished trials: the search says it in its own words."""
    logger, switch = logging.getLogger("ray"), "_worker_logs_enabled"  # no public switch covers these prints
    level, was_on = logger.level, getattr(ray._private.worker, switch, True)
    logger.setLevel(logging.CRITICAL)
    setattr(ray._private.worker, switch, False)
    try:
        yield
    finally:
        setattr(ray._private.worker, switch, was_on)
        logger.setLevel(level)


def run(
    proposals: Source,
    store: StageStore,
    job: Job,
    progress: Progress,
    *,
    following: Following | None = None,
    found: Found | None = None,
    keep: Callable[[TrialRecord], None] | None = None,
) -> None:
    """Run proposals until there are no more. Raises InvalidInput where a machine of the cluster cannot run trials.

    found: told which model a trial, known by its config, has just measured, by its key; else points are counted, and
    `following` told of them. keep: writes down how a trial ended; else the store does.
    """
    check_machines(_complaint, job)
    following = following or Following()
    proposer = Proposer(proposals, store, following.ended, keep=keep)

    def counted(config: Mapping[str, Any], key: str) -> None:
        index, point = config[INDEX], store.point(key)
        if point.iteration:
            proposals.passed(index)
        progress.found(index, point)
        following.point(index, job.kind.model_validate_json(config[SPEC]), point)

    folder = _tune_folder(store.root)
    shutil.rmtree(folder, ignore_errors=True)
    trainable = tune.with_parameters(work, job=job)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": job.resources.cpus_per_trial, "gpu": job.resources.gpus_per_trial}),
        tune_config=tune.TuneConfig(
            search_alg=proposer,
            num_samples=SAMPLES,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"proposal-{trial.config[INDEX]}",
        ),
        run_config=tune.RunConfig(
            name="session",
            storage_path=str(folder.absolute()),
            failure_config=tune.FailureConfig(max_failures=0),  # the watcher has trials proposed again
            callbacks=[Watcher(proposer, proposals, found or counted, progress, Attempts(proposals.parallel))],
            stop=FunctionStopper(lambda trial_id, result: proposals.time_is_up),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        proposals.close()
        shutil.rmtree(folder, ignore_errors=True)
    if proposer.fault is not None:
        raise proposer.fault


def _tune_folder(root: Place) -> Path:
    """Tune's disposable folder: beside the stages, or in a temporary folder of the driver's machine.

    Workers on other machines need not see it: trials report figures, never checkpoints.
    """
    return Path(tempfile.mkdtemp(prefix="orchestrator-tune-")) if isinstance(root, Uri) else root / "tune"


def work(config: dict[str, Any], job: Job) -> None:
    """What a worker does with one proposal: run it, report each point as it comes, and last how it ended."""
    run_trial = _find(job)

    def report(point: Point) -> None:
        tune.report({"key": point.key, "accuracy": point.accuracy, "flops_kept": point.flops_kept})

    def stop(points: Sequence[Point]) -> str | None:
        return reason_to_stop(spec, points, frontier, job.stopping)

    spec = job.kind.model_validate_json(config[SPEC])
    frontier = [(flops_kept, accuracy) for flops_kept, accuracy in json.loads(config[FRONTIER])]
    store = StageStore(job.root)
    tune.report(last_row(run_trial(spec, store, report, device=job.device, stop=stop, **job.limits)))


def _find(job: Job) -> RunTrial:
    """The trial function, in a process that imports and opens files as the driver does."""
    if job.folder.is_dir():  # Tune has moved to a folder of its own
        os.chdir(job.folder)
    sys.path.extend(folder for folder in job.path if folder not in sys.path)
    module, _, name = job.function.partition(":")
    function: RunTrial = getattr(importlib.import_module(module), name)
    torch = sys.modules.get("torch")  # loaded with the trial function, unless that one needs no torch
    if torch is not None:
        torch.set_num_threads(job.threads)
    return function


def _complaint(job: Job) -> str | None:
    """What keeps this process from running trials."""
    try:
        _find(job)
        if job.references:
            from orchestrator.network.user_function import find

            for reference in job.references:
                find(reference)
    except (ImportError, InvalidInput) as error:
        return f"{error}; install it there, or send it along: deploy/README.md"
    if StageStore(job.root).read_json(STUDY_FILE) is None:
        return f"it does not see {job.root}; give a --storage that every machine sees"
    return None


class Watcher(tune.Callback):
    """Passes on to the display and the trackers what happens to the trials, to the proposer which workers died."""

    def __init__(
        self,
        proposer: Proposer,
        proposals: Source,
        found: Found,
        progress: Progress,
        attempts: Attempts,
    ) -> None:
        self._proposer = proposer
        self._proposals = proposals
        self._found = found
        self._progress = progress
        self._attempts = attempts
        self._begun = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled by Tune for a restore that is never made

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._proposals.spend(time.monotonic() - self._begun)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._attempts.began(trial.config[INDEX])
        self._progress.started(trial.config[INDEX], trial.config[SPEC])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get(ENDED):
            self._ended(trial, result["failure"], result["stopped"], result["computed"], result["reused"])
        else:
            self._found(trial.config, result["key"])
            self._attempts.reached(trial.config[INDEX], result["key"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        times = self._attempts.died(trial.config[INDEX])
        if times is None:
            self._proposer.again(trial.trial_id)
            return
        traceback = Path(trial.error_file).read_text() if trial.error_file else ""
        failed = self._proposer.give_up(trial.trial_id, *_cause(traceback, times), traceback)
        self._ended(trial, failed)

    def _ended(
        self,
        trial: Any,
        failure: str | None,
        stopped: str | None = None,
        computed: Sequence[str] = (),
        reused: Sequence[str] = (),
    ) -> None:
        self._progress.ended(
            trial.config[INDEX],
            failure=failure,
            stopped=stopped,
            computed=computed,
            reused=len(reused),
            target=self._proposals.target,
            left=self._proposals.left,
        )


def _cause(traceback: str, times: int) -> tuple[FailureReason, str]:
    """Why a trial's workers gave up, in one line, from what Ray tells at length."""
    if "OutOfMemory" in traceback or "low on memory" in traceback:
        return "out_of_memory", f"Ray ended its worker for want of memory, {times} times; {HINT}"
    if "worker process has died" in traceback:
        return "error", f"its worker process was killed or crashed, {times} times"
    *_, line = traceback.strip().splitlines() or ["its worker was lost"]
    return "error", line
