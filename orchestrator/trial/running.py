"""run(spec, store): a trial's stages in order, each looked up or computed; a failure ends the trial as a record."""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from orchestrator.files import StorageFault
from orchestrator.network import BudgetUnreachable, CostTable
from orchestrator.network.artifact import Architecture, describe, write_description
from orchestrator.network.weights import save_weights
from orchestrator.record import (
    Cost,
    Failure,
    FailureReason,
    InvalidInput,
    Outcome,
    Point,
    Stage,
    TrialSpec,
    now,
    stage_key,
    whereabouts,
)
from orchestrator.stage_files import PLAN_FILE, POINT_FILE, STAGE_FILE, WEIGHTS_FILE, write_record
from orchestrator.store import StageStore
from orchestrator.training.batches import preprocessing_of
from orchestrator.training.loop import Diverged
from orchestrator.trial.networks import Collected, Network, Networks, devices_of
from orchestrator.trial.path import Setting, Step, steps
from orchestrator.trial.provenance import commit
from orchestrator.trial.time_limit import TimeLimit, watched

TrialT = TypeVar("TrialT", bound="Trial")
OUT_OF_MEMORY = ("can't allocate memory", "ALLOC_FAILED")  # PyTorch on a CPU, cuBLAS and cuDNN: plain RuntimeErrors
CHANCES = 3  # how often weights may be collected between being found and being loaded


class FailedStage(Exception):
    """A stage that fails whoever computes it; its failure is in the store."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def run(
    spec: TrialSpec,
    store: StageStore,
    report: Callable[[Point], None] = lambda point: None,
    *,
    device: str | Sequence[str] = "cpu",
    stop: Callable[[Sequence[Point]], str | None] = lambda points: None,
    time_limit: TimeLimit | None = None,
) -> Outcome:
    """Run a trial's stages in order; `report` gets each point as soon as its stage is published.

    Several devices, such as ("cuda:0", "cuda:1"), train every network together, a process each.
    After each point but the last, `stop` is asked with all so far; its reason, if it gives one, ends the trial well.
    A stage that takes longer than the time limit is recorded as failed, and this process ended: see time_limit.py.

    A trial that diverges, runs out of memory or raises ends as a recorded failure in the Outcome, with the points it
    had passed; it never raises for that. A stage that once diverged is not tried again: its key gives its result; one
    that timed out is not tried again while its record counts (TimeLimit.forgiven).
    KeyboardInterrupt and SystemExit pass through, and leave nothing half done.
    """
    points: list[Point] = []

    def walk(trial: Trial) -> str | None:
        for point in trial.points():
            points.append(point)
            report(point)
            stopped = stop(points) if point.iteration < spec.iterations else None
            if stopped is not None:
                return stopped
        return None

    def begin() -> Trial:
        return Trial(Setting.of(spec), store, device, time_limit)

    return outcome_of(spec, store, begin, walk, points=points, time_limit=time_limit)


def outcome_of(
    spec: TrialSpec,
    store: StageStore,
    begin: Callable[[], TrialT],
    walk: Callable[[TrialT], str | None],
    *,
    points: list[Point],
    time_limit: TimeLimit | None,
) -> Outcome:
    """What becomes of a trial that `begin` prepares and `walk` goes through, failures included: see run.

    points: those that `walk` has passed. What it returns is why it stopped before the end.
    """
    trial: TrialT | None = None
    failure: Failure | None = None
    stopped: str | None = None
    try:
        trial = _prepared(spec, store, begin, time_limit)
        stopped = walk(trial)
    except FailedStage as error:
        failure = error.failure
    except Exception as error:  # the one broad except: whatever the user's model or data does ends this trial alone
        failure = _failure(spec, trial.at.key if trial and trial.at else None, error)
        with suppress(StorageFault):  # the storage may be what failed; the driver hears of it all the same
            store.record_failure(failure)
    return Outcome(
        points=tuple(points),
        failure=failure,
        stopped=stopped,
        stages=tuple(trial.passed) if trial else (),
        computed=tuple(trial.computed) if trial else (),
        reused=tuple(trial.reused) if trial else (),
    )


def restore(spec: TrialSpec, store: StageStore, key: str, *, device: str | Sequence[str] = "cpu") -> Path:
    """The folder with the weights of a finished stage of this trial; where they were collected, computes them again.

    What the study has recorded of the stage stays: its plan, so that flops and params hold exactly, its accuracy and
    its cost. The weights are the same bytes on the same machine; on another one they may differ by rounding, and
    the records beside them, in restored/, tell the accuracy that these weights have.
    Raises InvalidInput if the trial has no such stage, or if none was finished; FailedStage if it diverges this time.
    """
    trial = Trial(Setting.of(spec), store, device, None)
    if key not in trial.keys or not store.has(key):
        raise InvalidInput(f"{store.root}: stage {key[:12]} is no finished one of this trial")
    trial.bring_back(key)
    folder = store.weights(key)
    assert folder is not None, key
    return folder


def _prepared(spec: TrialSpec, store: StageStore, begin: Callable[[], TrialT], time_limit: TimeLimit | None) -> TrialT:
    """The trial with its data loaded, which may hang as well as a stage may."""
    key = _own_key(spec)
    _not_again(store, key, spec, time_limit)
    with watched(time_limit, _recorder(spec, store, key, "loading the data")):
        return begin()


class Trial:
    """The state of one trial as it goes: which stages it passed, and what they cost."""

    def __init__(
        self, setting: Setting, store: StageStore, device: str | Sequence[str], time_limit: TimeLimit | None
    ) -> None:
        self.setting, self.store, self.time_limit = setting, store, time_limit
        self.study = store.root.resolve().name
        self.steps = tuple(steps(self.setting))
        self.keys = [step.key for step in self.steps]
        self.networks = Networks(self.setting, self.steps[0].key, store, devices_of(device))
        self.passed: list[str] = []
        self.computed: list[str] = []
        self.reused: list[str] = []
        self.at: Step | None = None  # the stage under way

    def points(self) -> Iterator[Point]:
        """The points of the trial, each as soon as its stage is there."""
        for step in self.steps:
            self.pass_(step)
            if step.kind != "sparse":
                yield self.store.point(step.key)

    def pass_(self, step: Step) -> None:
        """Look a stage up, or compute it."""
        self.at = step
        _, computed = self.store.obtain(step.key, partial(self._compute, step))
        self.passed.append(step.key)
        (self.computed if computed else self.reused).append(step.key)

    def _compute(self, step: Step, folder: Path) -> None:
        for chance in range(1, CHANCES + 1):
            try:
                return self._compute_once(step, folder)
            except Collected:  # found, and gone before they were loaded: nothing was trained yet
                if chance == CHANCES:
                    raise

    def _compute_once(self, step: Step, folder: Path) -> None:
        spec = self.setting.spec
        _not_again(self.store, step.key, spec, self.time_limit)
        expired = _recorder(spec, self.store, step.key, f"the {step.kind} stage {step.key[:12]}")
        try:
            self.bring_back(step.parent)
            with watched(self.time_limit, expired):
                self.make(step, folder)
        except Diverged as error:  # recorded while the stage is claimed, so that whoever waits for it need not try
            failure = _failure(spec, step.key, error)
            self.store.record_failure(failure)
            raise FailedStage(failure) from error

    def bring_back(self, key: str | None) -> None:
        """Make sure of the weights of a finished stage: where they were collected, compute them again.

        So are those of the stages before it, as far as they must. A claim is only ever waited for by who holds those of
        later stages: nobody waits in a circle.
        """
        if key is None or self.store.weights(key) is not None:
            return
        step = next(step for step in self.steps if step.key == key)
        if step.kind == "dense":  # trained in place: begin with a network that was not
            self.networks = self.networks.anew()
        self.store.restore(key, partial(self._compute, step))

    def cost_before(self, step: Step) -> Cost:
        """What the stages that come before this one have cost."""
        return self.cost_of(self.keys[: self.keys.index(step.key)])

    def cost_of(self, keys: Iterable[str]) -> Cost:
        """What finished stages have cost."""
        return sum((self.store.stage(key).cost for key in keys), Cost())

    def make(self, step: Step, folder: Path) -> None:
        """Do the work of a stage, and write its files."""
        {"dense": self._dense, "sparse": self._sparse, "cut": self._cut}[step.kind](step, folder)

    # -- the three kinds of stages -------------------------------------------------------------------------------

    def _dense(self, step: Step, folder: Path) -> None:
        started, spec = time.perf_counter(), self.setting.spec
        if spec.weights is not None:
            network, train_flops = self.networks.given(Path(spec.weights)), 0
        else:
            network = self.networks.dense
            train_flops = self.networks.fit_(network, spec.dense, step.key)
        measured = self.measured(network)
        cost = Cost(train_flops=train_flops, seconds=time.perf_counter() - started)
        self.write_model(step, folder, network, cost, measured)

    def _sparse(self, step: Step, folder: Path) -> None:
        started = time.perf_counter()
        assert step.parent is not None
        network = self.networks.of(step.parent)
        penalised = self.setting.penalised
        train_flops = self.networks.fit_(network, self.setting.spec.sparse, step.key, penalised=penalised)
        self._write(step, folder, network, Cost(train_flops=train_flops, seconds=time.perf_counter() - started))

    def _cut(self, step: Step, folder: Path) -> None:
        started = time.perf_counter()
        assert step.parent is not None
        network = self.networks.just_cut(step.parent, step.key)
        after_cut = self.measured(network)["accuracy"]
        train_flops = self.networks.fit_(network, self.setting.spec.recovery, step.key)
        measured = {**self.measured(network), "accuracy_after_cut": after_cut}
        cost = Cost(train_flops=train_flops, seconds=time.perf_counter() - started)
        self.write_model(step, folder, network, cost, measured)

    def measured(self, network: Network) -> dict[str, Any]:
        """How well a network does."""
        return {"accuracy": self.networks.accuracy(network)}

    def write_model(self, step: Step, folder: Path, network: Network, cost: Cost, measured: dict[str, Any]) -> None:
        """The files of a stage whose network was measured."""
        self._write(step, folder, network, cost)
        self.write_point(step, folder, network, cost, measured)
        self._write_description(step, folder, network, measured)

    def _write(self, step: Step, folder: Path, network: Network, cost: Cost) -> None:
        save_weights(network.model, folder / WEIGHTS_FILE)
        (folder / PLAN_FILE).write_text(network.plan.to_json(), encoding="utf-8")
        stage = Stage(
            key=step.key,
            parent=step.parent,
            kind=step.kind,
            parameters=step.parameters,
            frozen=network.frozen,
            unrepaired=dict(network.unrepaired),
            cost=cost,
            **whereabouts(),
        )
        write_record(folder / STAGE_FILE, stage)

    def _write_description(self, step: Step, folder: Path, network: Network, measured: dict[str, Any]) -> None:
        """With it the stage's folder is a model that `orchestrator.load` reads."""
        spec, data = self.setting.spec, self.setting.data
        architecture = Architecture(reference=spec.model, classes=data.classes, input_shape=data.input_shape)
        card = describe(
            folder / WEIGHTS_FILE,
            self.networks.dense.coupling,
            architecture=architecture,
            plans=[network.plan],
            preprocessing=preprocessing_of(data),
            dataset=spec.dataset,
            study=self.study,
            stage=step.key,
            commit=commit(),
            **measured,
        )
        write_description(folder, card)

    def write_point(self, step: Step, folder: Path, network: Network, cost: Cost, measured: dict[str, Any]) -> None:
        """The record of what was measured."""
        table, spec = CostTable(network.coupling), self.setting.spec
        flops = table.flops()
        settings: dict[str, Any] = {}
        if spec.latency_batch:
            found = self.networks.latency(network)
            settings = {"latency_ms": found.latency_ms, "latency_batch": found.batch}
        if step.kind == "cut":
            settings |= {
                "method": spec.method,
                "regularization_weight": spec.regularization_weight if self.setting.penalised else 0.0,
                "pruning_ratio": spec.pruning_ratio,
            }
        point = Point(
            key=step.key,
            parent=step.parent,
            kind="dense" if step.kind == "dense" else "cut",
            iteration=step.iteration,
            model=spec.model,
            dataset=spec.dataset,
            seed=spec.seed,
            flops=flops,
            params=table.params(),
            flops_kept=flops / self.networks.dense_flops,
            cost=cost,
            path_cost=self.cost_before(step) + cost,
            created=now(),
            **settings,
            **measured,
        )
        write_record(folder / POINT_FILE, point)


def _not_again(store: StageStore, key: str, spec: TrialSpec, time_limit: TimeLimit | None) -> None:
    """Raise FailedStage for what is known to fail whoever tries it."""
    known = store.failure(key)
    if known is None:
        return
    hung = known.reason == "timed_out" and time_limit is not None and time_limit.stands(known)
    if known.reason == "diverged" or hung:
        raise FailedStage(known.model_copy(update={"spec": spec}))


def _recorder(spec: TrialSpec, store: StageStore, key: str, what: str) -> Callable[[str, str], None]:
    """Records that `what` took too long, and where it hangs."""

    def record(took: str, stack: str) -> None:
        message = f"{what} {took}"
        text = f"{stack}\n{message}\n"
        failure = Failure(key=key, spec=spec, reason="timed_out", message=message, traceback=text, **whereabouts())
        store.record_failure(failure)

    return record


def _own_key(spec: TrialSpec) -> str:
    """Of what fails before the first stage, where nothing but the spec tells trials apart."""
    return stage_key(None, "dense", {"spec": spec.model_dump()})


def _failure(spec: TrialSpec, key: str | None, error: Exception) -> Failure:
    """key: of the stage under way; None before the first."""
    return Failure(
        key=key or _own_key(spec),
        spec=spec,
        reason=_reason(error),
        message=next(iter(str(error).strip().splitlines()), type(error).__name__),
        traceback="".join(traceback.format_exception(error)),
        **whereabouts(),
    )


def _reason(error: Exception) -> FailureReason:
    if isinstance(error, StorageFault):
        return "storage"
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, BudgetUnreachable):
        return "budget"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in OUT_OF_MEMORY):
        return "out_of_memory"
    return "error"
