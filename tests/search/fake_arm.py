"""An arm of a confirmation that trains nothing: its figures follow from its settings. Workers import it by name.

Every stage that it computes leaves a line in computed.txt. What can go wrong is asked for in method_options, by the
seed: `seconds` a stage takes; an arm with the seed `diverges` fails at its path's end, one with `kills` kills its
worker, always, one with `kills_once` only the first time. A test holds the arms of a confirmation by holding.hold.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from holding import wait_while_held

from orchestrator.record import (
    ArmSpec,
    Cost,
    Failure,
    InvalidInput,
    Measured,
    Outcome,
    Point,
    Stage,
    StageKind,
    TrialSpec,
    now,
    stage_key,
    whereabouts,
)
from orchestrator.stage_files import write_record
from orchestrator.store import StageStore

Place = tuple[str | None, StageKind, dict[str, object]]


def paths(specs: Sequence[TrialSpec], *, with_validation: bool) -> list[str]:
    """What trial.paths gives."""
    if any(spec.dataset == "missing" for spec in specs):
        raise InvalidInput("data set missing: no such file")
    return [stage_key(*_path(spec, with_validation)[-1]) for spec in specs]


def run(
    spec: ArmSpec,
    store: StageStore,
    report: Callable[[Measured], None] = lambda tested: None,
    *,
    device: str = "cpu",
    stop: Callable[[Sequence[Point]], str | None] = lambda points: None,
) -> Outcome:
    """What trial.run_arm does, as seen from outside, in no time."""
    _misbehave(spec, store)
    stages, computed = [], []
    for place in [*_path(spec, spec.with_validation), *_control(spec)]:
        key = stage_key(*place)
        if spec.method_options.get("diverges") == spec.seed and key == spec.path:
            failure = Failure(
                key=key, spec=spec, reason="diverged", message="the loss is NaN", traceback="", **whereabouts()
            )
            store.record_failure(failure)
            return Outcome(points=(), failure=failure, stages=tuple(stages), computed=tuple(computed))
        _, new = store.obtain(key, _computation(store, spec, place, key))
        stages.append(key)
        if new:
            computed.append(key)
            assert isinstance(store.root, Path)
            with (store.root / "computed.txt").open("a") as log:
                log.write(f"{key}\n")
        if place[1] != "sparse":
            report(store.tested(key))
    return Outcome(points=(), stages=tuple(stages), computed=tuple(computed))


def accuracy_of(spec: ArmSpec) -> float:
    """On the test split: the more seeds the more of it, and pruned is best."""
    return 0.9 + (spec.seed % 1000) / 100 + {"pruned": 0.003, "dense": 0.002, "scratch": 0.001}[spec.arm]


def _path(spec: TrialSpec, with_validation: bool) -> list[Place]:
    data = {"seed": spec.seed, "with_validation": with_validation, "epochs": spec.dense.epochs}
    places: list[Place] = [(None, "dense", {"model": spec.model, **data})]
    for _ in range(spec.iterations):
        places.append((stage_key(*places[-1]), "sparse", {"weight": spec.regularization_weight}))
        places.append((stage_key(*places[-1]), "cut", {"ratio": spec.pruning_ratio}))
    return places


def _control(spec: ArmSpec) -> list[Place]:
    return [] if spec.arm == "pruned" else [(spec.path, "cut", {"arm": spec.arm})]


def _computation(store: StageStore, spec: ArmSpec, place: Place, key: str) -> Callable[[Path], None]:
    parent, kind, parameters = place
    cost = Cost(train_flops=1000)

    def compute(folder: Path) -> None:
        wait_while_held(store)
        time.sleep(float(spec.method_options.get("seconds", 0)))
        stage = Stage(key=key, parent=parent, kind=kind, parameters=parameters, cost=cost, **whereabouts())
        write_record(folder / "stage.json", stage)
        if kind == "sparse":
            return
        tested = Measured(
            key=key,
            parent=parent,
            kind="dense" if kind == "dense" else "cut",
            iteration=spec.iterations,
            model=spec.model,
            dataset=spec.dataset,
            seed=spec.seed,
            flops=1_000_000 if spec.arm == "dense" else 250_000 + spec.seed,
            params=10_000,
            flops_kept=1.0 if spec.arm == "dense" else 0.25,
            test_accuracy=accuracy_of(spec),
            accuracy=None if spec.with_validation else 0.95,
            epochs=spec.dense.epochs,
            cost=cost,
            path_cost=Cost(train_flops=5000 if spec.arm == "pruned" else 4900),
            created=now(),
        )
        write_record(folder / "tested.json", tested)

    return compute


def _misbehave(spec: ArmSpec, store: StageStore) -> None:
    if spec.method_options.get("kills") == spec.seed and spec.arm == "pruned":
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.method_options.get("kills_once") == spec.seed and store.read_json("killed_once.json") is None:
        store.write_json("killed_once.json", True)
        os.kill(os.getpid(), signal.SIGKILL)
