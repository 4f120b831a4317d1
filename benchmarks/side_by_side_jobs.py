"""What the worker processes of side_by_side.py do: walk trials, measure them on the test split, train scratch controls.

Every function takes a Setup and a Job, looks up what is there, and says whether it had to compute anything.
"""

import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from orchestrator import network, trial
from orchestrator.network.architectures import build
from orchestrator.record import ArmSpec, Measured, Option, Outcome, Point, Schedule, TrialSpec
from orchestrator.stage_files import POINT_FILE, TESTED_FILE, write_record
from orchestrator.store import StageStore
from orchestrator.training.datasets import load
from orchestrator.training.loop import evaluate, fit
from orchestrator.training.splits import DataSet, Split
from orchestrator.trial.networks import CALIBRATION_BATCH, CALIBRATION_BATCHES, example_of

NARROW_COST = 0.45  # of a step, what does not shrink with flops_kept: measured on CifarNet and ResNet-20
RATES = (0.1, 0.05, 0.02)  # peaks of dense, sparse and recovery training
AGENT_FILE = "agent.safetensors"
TIMED = 512  # pictures that an epoch's seconds are estimated from


@dataclass(frozen=True, kw_only=True)
class Arena:
    """A network with its data, and how long it is trained there; `title` says what is not the full thing."""

    name: str
    title: str
    model: str
    dataset: str
    epochs: tuple[int, int, int]  # dense, sparse in each iteration, recovery in each iteration
    episodes: int = 0  # of a teaching, for the method that is taught
    batch_size: int = 64
    augmentation: str = "none"
    group_cap: float = 0.75  # largest share of a group that a cut may take: what two of OICSR's 0.5 take together


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where an arena's trials lie and run, and the switches that its methods were given."""

    arena: Arena
    work: Path
    data_root: str
    device: str
    iterations: int
    group_cap: float
    kept: tuple[float, ...]
    options: Mapping[str, Mapping[str, Option]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.work / self.arena.name

    @property
    def store(self) -> StageStore:
        return StageStore(self.folder / "trials")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One trial: a method with its weight, at one flops_kept, under one seed."""

    method: str
    weight: float
    kept: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Walked:
    """How a job's trial ended: its stages and validation accuracies, or why there are none."""

    stages: tuple[str, ...] = ()
    before: float = 0.0
    after: float = 0.0
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A model on the test split; `before` is right after the last cut, None where nothing was cut."""

    before: float | None
    after: float
    flops_kept: float
    train_flops: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a method needs before its trials: its options, and the train_flops that this took beside the budget."""

    options: Mapping[str, Option]
    train_flops: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a worker answers: a value, whether it had to be computed, and the seconds that this took."""

    value: Any
    computed: bool
    seconds: float


def taught_agent(setup: Setup, folder: Path) -> Prepared:
    """One agent for all trials of an arena, taught on the dense network of its first seed, for all rates at once.

    Counted are forward passes alone, as nothing is trained but the agent: in each episode the cut network sees the
    pictures that its reward is measured on, and the calibration pictures of its repair and of its norms' statistics.
    """
    from orchestrator.training.held_out import held_out
    from orchestrator.trial.teaching import Lesson, teach

    rates = tuple(sorted(kept ** (1 / setup.iterations) for kept in setup.kept))
    lesson = Lesson(rates=rates, episodes=setup.arena.episodes, group_cap=setup.group_cap)
    spec, file = spec_of(setup, Job(method="filter_norm", weight=0.0, kept=setup.kept[0], seed=0)), folder / AGENT_FILE
    teach(spec, setup.store, file, lesson, device=setup.device)
    data = load(spec.dataset, root=spec.data_root)
    pictures = len(held_out(data).validation) + 2 * CALIBRATION_BATCH * CALIBRATION_BATCHES
    forward = dense_flops(setup, data) * statistics.mean(rates) * pictures
    return Prepared(options={"agent": str(file)}, train_flops=round(forward * setup.arena.episodes))


# What must be made before a method's first trial: a function of the setup and a folder that stays.
PREPARATIONS: dict[str, Callable[[Setup, Path], Prepared]] = {"conditional_agent": taught_agent}


def end_with_parent() -> None:
    """A worker whose benchmark was killed ends at once, whatever it does: its claims are then free."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def timed(function: Callable[..., tuple[Any, bool]], *arguments: Any) -> Done:
    """Call in a worker, on one thread."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    value, computed = function(*arguments)
    return Done(value=value, computed=computed, seconds=time.perf_counter() - started)


def spec_of(setup: Setup, job: Job) -> TrialSpec:
    """The trial of a job. Whatever the method, it trains for the same number of epochs on the same schedules."""
    arena = setup.arena
    dense, sparse, recovery = (
        Schedule(
            epochs=epochs,
            learning_rate=rate,
            batch_size=arena.batch_size,
            augmentation=arena.augmentation,  # type: ignore[arg-type]
        )
        for epochs, rate in zip(arena.epochs, RATES, strict=True)
    )
    return TrialSpec(
        model=arena.model,
        dataset=arena.dataset,
        data_root=setup.data_root,
        method=job.method,
        method_options=dict(setup.options.get(job.method, {})),
        regularization_weight=job.weight,
        pruning_ratio=1 - job.kept ** (1 / setup.iterations),
        iterations=setup.iterations,
        group_cap=setup.group_cap,
        seed=job.seed,
        dense=dense,
        sparse=sparse,
        recovery=recovery,
    )


def begin(setup: Setup, job: Job) -> tuple[Tested | str, bool]:
    """Train the dense network of a seed, which all its trials share, and measure it."""

    def stop(points: Sequence[Point]) -> str:
        return "the dense network is all that is asked for"

    outcome = trial.run(spec_of(setup, job), setup.store, device=setup.device, stop=stop)
    if outcome.failure is not None:
        return f"{outcome.failure.reason}: {outcome.failure.message}", bool(outcome.computed)
    tested, computed = measure(setup, job, outcome.stages[-1])
    return tested, computed or bool(outcome.computed)


def prepare(setup: Setup, method: str) -> tuple[Prepared | str, bool]:
    """What a method needs before its trials, looked up or made; or why there is none, for the table to say."""
    folder = setup.folder / "prepared" / method
    file = folder / "prepared.json"
    with suppress(FileNotFoundError):
        return Prepared(**json.loads(file.read_text(encoding="utf-8"))), False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        prepared = PREPARATIONS[method](setup, folder)
    except Exception as error:  # whatever it is, the other methods go on and the table shows it
        return f"its preparation: {error}", True
    _write(file, prepared)
    return prepared, True


def walk(setup: Setup, jobs: list[Job]) -> tuple[list[Walked], bool]:
    """Run some trials, one after the other, so that what they share is computed once and nobody waits for it."""
    outcomes = [trial.run(spec_of(setup, job), setup.store, device=setup.device) for job in jobs]
    return [_walked(outcome) for outcome in outcomes], any(outcome.computed for outcome in outcomes)


def _walked(outcome: Outcome) -> Walked:
    if outcome.failure is not None:
        return Walked(failure=f"{outcome.failure.reason}: {outcome.failure.message}")
    last = outcome.points[-1]
    assert last.accuracy_after_cut is not None
    return Walked(stages=outcome.stages, before=last.accuracy_after_cut, after=last.accuracy)


# -- the test split ---------------------------------------------------------------------------------------------------


def measure(setup: Setup, job: Job, key: str) -> tuple[Tested, bool]:
    """A finished stage's model on the test split. It is looked at once: what was found is kept in a file."""
    file = setup.folder / "tested" / f"{key}.json"
    with suppress(FileNotFoundError):
        return Tested(**json.loads(file.read_text(encoding="utf-8"))), False
    tested = _measured(setup, spec_of(setup, job), key)
    _write(file, tested)
    return tested, True


def _write(file: Path, record: Tested | Prepared) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(asdict(record)), encoding="utf-8")
    aside.replace(file)


def dense_flops(setup: Setup, data: DataSet) -> int:
    """Of the whole network."""
    model = build(setup.arena.model, classes=data.classes, input_shape=data.input_shape, seed=0)
    return network.measure(model, example_of(data)).flops


def _measured(setup: Setup, spec: TrialSpec, key: str) -> Tested:
    point = setup.store.point(key)
    data = load(spec.dataset, root=spec.data_root)

    def on_test(found: trial.Network) -> float:
        return evaluate(found.model, data, "test", device=setup.device).accuracy

    before = on_test(trial.replay_cut(spec, setup.store, key, device=setup.device)) if point.kind == "cut" else None
    return Tested(
        before=before,
        after=on_test(trial.rebuild(spec, setup.store, key, device=setup.device)),
        flops_kept=point.flops_kept,
        train_flops=point.path_cost.train_flops,
    )


# -- the scratch control ----------------------------------------------------------------------------------------------


def scratch(setup: Setup, job: Job, stages: tuple[str, ...]) -> tuple[Tested | str, bool]:
    """The widths that a job's trial ended with, trained from random weights for the train_flops of its whole path.

    This is the control of `orchestrator confirm`; its store gets the path's stages, so that none is trained again.
    Returns why it failed, if it did.
    """
    spec, controls = spec_of(setup, job), StageStore(setup.folder / "controls")
    for key in stages:
        controls.obtain(key, partial(_publish, setup, job, key))
    given = {"point": stages[-1], "path": stages[-1], "arm": "scratch"}
    arm = ArmSpec.model_validate(spec.model_dump() | given)
    outcome = trial.run_arm(arm, controls, device=setup.device)
    if outcome.failure is not None:
        return f"{outcome.failure.reason}: {outcome.failure.message}", bool(outcome.computed)
    found = controls.tested(outcome.stages[-1])
    tested = Tested(
        before=None,
        after=found.test_accuracy,
        flops_kept=found.flops_kept,
        train_flops=found.cost.train_flops,
    )
    return tested, bool(outcome.computed)


def _publish(setup: Setup, job: Job, key: str, folder: Path) -> None:
    """A stage of the trials as a stage of a confirmation: the same but for its point, which was measured on test."""
    source = setup.store.weights(key)
    assert source is not None, key
    for file in source.iterdir():
        if file.name != POINT_FILE:
            (folder / file.name).write_bytes(file.read_bytes())
    if not setup.store.has_point(key):
        return
    point = setup.store.point(key)
    tested, _ = measure(setup, job, key)
    dense, sparse, recovery = setup.arena.epochs
    shared = point.model_dump(include=Measured.model_fields.keys() - {"test_accuracy"})
    epochs = dense + point.iteration * (sparse + recovery)
    record = Measured.model_validate(shared | {"test_accuracy": tested.after, "epochs": epochs})
    write_record(folder / TESTED_FILE, record)


# -- what it will take ------------------------------------------------------------------------------------------------


def step_share(kept: float) -> float:
    """How long a step of a network with this flops_kept takes, beside one of the dense network."""
    return NARROW_COST + (1 - NARROW_COST) * kept


def control_epochs(epochs: tuple[int, int, int], kept: float) -> float:
    """How long a control from random weights takes, in epochs of the dense network: its path's train_flops."""
    dense, sparse, recovery = epochs
    return (dense + sparse + recovery * kept) / kept * step_share(kept)


def epoch_seconds(setup: Setup) -> float:
    """Seconds of an epoch of the whole network on one core, from a few steps: of this process, not of the wall.

    A GPU's work is no process's: there it is the wall.
    """
    torch.set_num_threads(1)
    data = load(setup.arena.dataset, root=setup.data_root)
    assert isinstance(data.train, Split)
    part = data.train.part(torch.arange(min(TIMED, len(data.train))))
    few = type(data)(**{**vars(data), "train": part})
    model = build(setup.arena.model, classes=data.classes, input_shape=data.input_shape, seed=0)
    schedule = spec_of(setup, Job(method="oicsr", weight=0.0, kept=0.5, seed=0)).dense.model_copy(update={"epochs": 1})
    clock = time.process_time if setup.device == "cpu" else time.perf_counter
    taken = []
    for _ in range(2):
        started = clock()
        fit(model, few, schedule, seed=0, device=setup.device)
        taken.append(clock() - started)
    return min(taken) * len(data.train) / len(part)
