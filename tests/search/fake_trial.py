"""A trial that trains nothing: its points follow from its settings by formula. Workers import it by name.

Every stage that it computes leaves a line in computed.txt. What can go wrong is asked for in method_options:
`seconds` a stage takes; `freezes` a group in every cut; a trial with the pruning_ratio `diverges` fails at its second
cut, one with `raises` raises where no trial should, one with `kills` kills its worker, always, one with `kills_once`
only the first time, one with `kills_in_turn` the first time at each of its points, and one with `kills_after` kills the
worker right after it has ended; one with `fills_once` finds the disk full, the first time; one with `loses_storage`
raises that it is away, always. A test holds the trials of a study by holding.hold.
"""

import math
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from holding import wait_while_held

from orchestrator.files import StorageFault
from orchestrator.record import (
    Cost,
    Failure,
    FrozenGroup,
    InvalidInput,
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

TRAIN_FLOPS = 1000  # of every stage
UNREPAIRED = {"conv2": "its weight is used more than once"}
FROZEN = FrozenGroup(group="conv1", channels=32, reason="cut and masked network differ by 1.0e-01")


def points_of(spec: TrialSpec) -> list[Point]:
    """The dense point and one for every iteration; a larger weight helps late, a larger ratio hurts."""
    keys = [stage_key(*stage) for stage in _path(spec) if stage[1] != "sparse"]
    return [_point(spec, iteration, key) for iteration, key in enumerate(keys)]


def stages_of(spec: TrialSpec) -> list[str]:
    """The keys of the stages of a trial, in order."""
    return [stage_key(*stage) for stage in _path(spec)]


def run(
    spec: TrialSpec,
    store: StageStore,
    report: Callable[[Point], None] = lambda point: None,
    *,
    device: str = "cpu",
    stop: Callable[[Sequence[Point]], str | None] = lambda points: None,
) -> Outcome:
    """What trial.run does, as seen from outside, in no time."""
    _misbehave(spec, store)
    if _asked(spec, "fills_once") and store.read_json("filled_once.json") is None:
        store.write_json("filled_once.json", True)
        full = Failure(
            key="0" * 64, spec=spec, reason="storage", message="/disk: no space", traceback="", **whereabouts()
        )
        return Outcome(points=(), failure=full)
    if _asked(spec, "loses_storage"):
        raise StorageFault("/disk: away")
    points: list[Point] = []
    stages: list[str] = []
    computed: list[str] = []
    reused: list[str] = []
    stopped: str | None = None

    def outcome(*, failure: Failure | None = None, stopped: str | None = None) -> Outcome:
        keys = {"stages": tuple(stages), "computed": tuple(computed), "reused": tuple(reused)}
        return Outcome(points=tuple(points), failure=failure, stopped=stopped, **keys)

    for parent, kind, parameters in _path(spec):
        key = stage_key(parent, kind, parameters)
        if kind == "cut" and len(points) == 2 and _asked(spec, "diverges"):
            failure = Failure(
                key=key, spec=spec, reason="diverged", message="the loss is NaN", traceback="", **whereabouts()
            )
            store.record_failure(failure)
            return outcome(failure=failure)
        _, new = store.obtain(
            key,
            _computation(
                store,
                spec,
                len(points),
                Stage(
                    key=key,
                    parent=parent,
                    kind=kind,
                    parameters=parameters,
                    frozen=(FROZEN,) if kind == "cut" and "freezes" in spec.method_options else (),
                    unrepaired=UNREPAIRED if kind == "cut" and "freezes" in spec.method_options else {},
                    cost=Cost(train_flops=TRAIN_FLOPS),
                    **whereabouts(),
                ),
            ),
        )
        stages.append(key)
        (computed if new else reused).append(key)
        if new:
            _note(store, key)
        if kind != "sparse":
            points.append(store.point(key))
            report(points[-1])
            _misbehave_at(spec, store, points)
            stopped = stop(points) if len(points) <= spec.iterations else None
            if stopped is not None:
                break
    _misbehave_after(spec, store)
    return outcome(stopped=stopped)


def check(spec: TrialSpec) -> tuple[str, ...]:
    """Refuses what trial.check would, and says what it would."""
    if spec.model == "unknown":
        raise InvalidInput("unknown is no model; allowed: fake")
    return ("fake: followed in one mode alone",) if "freezes" in spec.method_options else ()


def _path(spec: TrialSpec) -> list[tuple[str | None, StageKind, dict[str, object]]]:
    stages: list[tuple[str | None, StageKind, dict[str, object]]] = [(None, "dense", {"model": spec.model})]
    method = {} if spec.method == "oicsr" else {"method": spec.method}
    for _ in range(spec.iterations):
        stages.append((stage_key(*stages[-1]), "sparse", {"weight": spec.regularization_weight}))
        stages.append((stage_key(*stages[-1]), "cut", {"ratio": spec.pruning_ratio, **method}))
    return stages


def _computation(store: StageStore, spec: TrialSpec, iteration: int, stage: Stage) -> Callable[[Path], None]:
    def compute(folder: Path) -> None:
        wait_while_held(store)
        time.sleep(float(spec.method_options.get("seconds", 0)))
        write_record(folder / "stage.json", stage)
        if stage.kind != "sparse":
            write_record(folder / "point.json", _point(spec, iteration, stage.key))

    return compute


def _note(store: StageStore, key: str) -> None:
    if isinstance(store.root, Path):
        with (store.root / "computed.txt").open("a") as log:
            log.write(f"{key}\n")
    else:  # where nothing can be appended to
        store.write_json(f"computed/{key}.{uuid.uuid4().hex}.json", {})


def _misbehave(spec: TrialSpec, store: StageStore) -> None:
    if _asked(spec, "raises"):
        raise RuntimeError("a worker that cannot go on")
    if _asked(spec, "kills"):
        os.kill(os.getpid(), signal.SIGKILL)
    if _asked(spec, "kills_once"):
        _kill_once(store, "killed_once")


def _misbehave_at(spec: TrialSpec, store: StageStore, points: Sequence[Point]) -> None:
    name = f"killed_at_{len(points)}"
    if _asked(spec, "kills_in_turn") and store.read_json(f"{name}.json") is None:
        with store.exclusive(points[-1].key):  # as in the moment after publishing it
            _kill_once(store, name)


def _misbehave_after(spec: TrialSpec, store: StageStore) -> None:
    if _asked(spec, "kills_after"):
        threading.Timer(0.1, _kill_once, [store, "killed_after"]).start()


def _kill_once(store: StageStore, name: str) -> None:
    if store.read_json(f"{name}.json") is None:
        store.write_json(f"{name}.json", True)
        os.kill(os.getpid(), signal.SIGKILL)


def _asked(spec: TrialSpec, option: str) -> bool:
    return spec.method_options.get(option) == spec.pruning_ratio


def _point(spec: TrialSpec, iteration: int, key: str) -> Point:
    kept = (1 - spec.pruning_ratio) ** iteration
    peak = math.exp(-((math.log10(spec.regularization_weight or 1e-4) + 2) ** 2))
    settings = {"regularization_weight": spec.regularization_weight, "pruning_ratio": spec.pruning_ratio}
    return Point(
        key=key,
        method=spec.method if iteration else None,
        **(settings if iteration else {}),
        parent=None,
        kind="cut" if iteration else "dense",
        iteration=iteration,
        model=spec.model,
        dataset=spec.dataset,
        seed=spec.seed,
        flops=max(1, round(1_000_000 * kept)),
        params=round(10_000 * kept),
        flops_kept=kept,
        accuracy=0.98 - 0.3 * (1 - kept) ** 4 * (1.2 - peak),
        cost=Cost(),
        path_cost=Cost(),
        created=now(),
    )
