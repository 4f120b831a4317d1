"""The Ray Tune session of one launch: workers, placement, retries. Imports Ray, so the environment must stand first.

Each launch is a new session: what is to be kept lies in the stage store and in the journal, not in Tune's folder.
"""

import importlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune

from orchestrator.record import FailureReason, InvalidInput, Outcome, Point, TrialSpec
from orchestrator.search.progress import Progress
from orchestrator.search.proposals import Proposals
from orchestrator.search.proposer import ENDED, INDEX, SPEC, Proposer, last_row
from orchestrator.search.space import Resources
from orchestrator.store import StageStore

RETRIES = 2  # of a trial whose worker was killed; what it had published is looked up
SAMPLES = 10**9  # Tune's own limit; the proposals know when to end

RunTrial = Callable[..., Outcome]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the workers need to know."""

    root: Path
    function: str  # "module:name" of the trial function
    resources: Resources
    folder: Path = field(default_factory=Path.cwd)
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))

    @classmethod
    def of(cls, run_trial: RunTrial, root: Path, resources: Resources) -> "Job":
        return cls(root=root, function=f"{run_trial.__module__}:{run_trial.__qualname__}", resources=resources)

    @property
    def device(self) -> str | tuple[str, ...]:
        gpus = self.resources.gpus_per_trial
        if gpus > 1:
            return tuple(f"cuda:{number}" for number in range(int(gpus)))  # of those that Ray shows to the worker
        return "cuda" if gpus > 0 else "cpu"

    @property
    def threads(self) -> int:
        return max(1, int(self.resources.cpus_per_trial))


@contextmanager
def connected(address: str | None, resources: Resources) -> Iterator[None]:
    """Ray, started on this machine or joined at `address`, and left again; one that already runs is used as it is."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=address or "local",  # "local" even where RAY_ADDRESS says otherwise
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "on this machine" if address is None else f"at --address {address}"
        raise InvalidInput(f"no Ray {where}: {str(error).strip().splitlines()[0]}") from error
    with _hushed():
        try:
            if address is None:
                _check_capacity(resources)
            yield
        finally:
            ray.shutdown()


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


def run(proposals: Proposals, store: StageStore, job: Job, progress: Progress) -> None:
    """Run proposals until there are no more."""
    proposer = Proposer(proposals, store)
    folder = store.root / "tune"  # where every machine of a cluster can see it
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
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[Watcher(proposer, proposals, store, progress)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def work(config: dict[str, Any], job: Job) -> None:
    """What a worker does with one proposal: run it, report each point as it comes, and last how it ended."""
    run_trial = _find(job)

    def report(point: Point) -> None:
        tune.report({"key": point.key, "accuracy": point.accuracy, "flops_kept": point.flops_kept})

    spec = TrialSpec.model_validate_json(config[SPEC])
    tune.report(last_row(run_trial(spec, StageStore(job.root), report, device=job.device)))


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


class Watcher(tune.Callback):
    """Passes on to the display what happens to the trials, and to the proposer which workers died."""

    def __init__(self, proposer: Proposer, proposals: Proposals, store: StageStore, progress: Progress) -> None:
        self._proposer = proposer
        self._proposals = proposals
        self._store = store
        self._progress = progress

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled by Tune for a restore that is never made

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.started(trial.config[INDEX])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get(ENDED):
            self._ended(trial, result["failure"], result["computed"], result["reused"])
        else:
            self._progress.found(trial.config[INDEX], self._store.point(result["key"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        traceback = Path(trial.error_file).read_text() if trial.error_file else ""
        failed = self._proposer.give_up(trial.trial_id, *_cause(traceback), traceback)
        self._ended(trial, failed)

    def _ended(self, trial: Any, failure: str | None, computed: Sequence[str] = (), reused: Sequence[str] = ()) -> None:
        self._progress.ended(
            trial.config[INDEX],
            failure=failure,
            computed=computed,
            reused=len(reused),
            target=self._proposals.target,
        )


def _cause(traceback: str) -> tuple[FailureReason, str]:
    """Why a trial's workers gave up, in one line, from what Ray tells at length."""
    if "OutOfMemory" in traceback or "low on memory" in traceback:
        return "out_of_memory", f"Ray ended its worker for want of memory, {RETRIES + 1} times"
    if "worker process has died" in traceback:
        return "error", f"its worker process was killed or crashed, {RETRIES + 1} times"
    *_, line = traceback.strip().splitlines() or ["its worker was lost"]
    return "error", line


def _check_capacity(resources: Resources) -> None:
    """A trial that fits nowhere would wait for ever."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wanted = {"CPU": ("cpus", resources.cpus_per_trial), "GPU": ("gpus", resources.gpus_per_trial)}
    for unit, (name, share) in wanted.items():
        there = have.get(unit, 0.0)
        if share > there:
            hint = f"give --{name}-per-trial {there:g} or less"
            raise InvalidInput(f"resources.{name}_per_trial is {share:g}; this machine has {there:g} {unit}s: {hint}")
