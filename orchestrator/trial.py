"""One trial: dense -> (sparse -> cut) x iterations, a stage after the other. No Ray, no Optuna.

Every stage is a folder of the stage store, found by a key that holds all that determines its result; a stage that is
there already is read, whichever trial made it. Every `dense` and every `cut` stage yields a point.
"""

import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.methods import Budget, Method, Options, Penalty, Subject, method_named, options_of
from orchestrator.network import BudgetUnreachable, CostTable, Coupling, Plan, couple, cut, verify
from orchestrator.network.architectures import build, check_runs
from orchestrator.network.weights import fingerprint, load_weights_, save_weights
from orchestrator.record import (
    Cost,
    Failure,
    FailureReason,
    InvalidInput,
    Outcome,
    Point,
    Schedule,
    Stage,
    StageKind,
    TrialSpec,
    now,
    seed_of,
    stage_key,
    whereabouts,
)
from orchestrator.store import PLAN_FILE, POINT_FILE, STAGE_FILE, WEIGHTS_FILE, StageStore, write_record
from orchestrator.training.batches import Batches
from orchestrator.training.datasets import load
from orchestrator.training.loop import Diverged, evaluate, fit, reestimate_norm_statistics_
from orchestrator.training.splits import DataSet

# The version of the code that computes each kind of stage; raise it when results change, and old stages stay apart.
VERSIONS: dict[StageKind, int] = {"dense": 1, "sparse": 1, "cut": 1}
CALIBRATION_BATCHES, CALIBRATION_BATCH = 8, 128


class BrokenCut(RuntimeError):
    """No plan was found whose cut network computes what the masked one does."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model on its device, with the coupling of its present widths and the plan that led to them."""

    model: nn.Module
    coupling: Coupling
    plan: Plan  # from the dense network to this one


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage to be looked up or computed."""

    kind: StageKind
    parent: str | None
    parameters: dict[str, Any]
    iteration: int

    @property
    def key(self) -> str:
        return stage_key(self.parent, self.kind, self.parameters)


def run(
    spec: TrialSpec,
    store: StageStore,
    report: Callable[[Point], None] = lambda point: None,
    *,
    device: str = "cpu",
) -> Outcome:
    """Run a trial's stages in order; `report` gets each point as soon as its stage is published.

    A trial that diverges, runs out of memory or raises ends as a recorded failure in the Outcome, with the points it
    had passed; it never raises for that. KeyboardInterrupt and SystemExit pass through, and leave nothing half done.
    """
    trial: _Trial | None = None
    points: list[Point] = []

    def reported(point: Point) -> None:
        points.append(point)
        report(point)

    try:
        trial = _Trial(spec, store, device)
        trial.run(reported)
        failure = None
    except Exception as error:  # the one broad except: whatever the user's model or data does ends this trial alone
        failure = _failure(spec, trial, error)
        store.record_failure(failure)
    computed = tuple(trial.computed) if trial else ()
    reused = tuple(trial.reused) if trial else ()
    return Outcome(points=tuple(points), failure=failure, computed=computed, reused=reused)


def check(spec: TrialSpec) -> None:
    """Raise InvalidInput for whatever would end every trial of this kind at once.

    An unknown model, data set, method or option; data that is missing or damaged; a model that does not run on it;
    weights that do not fit; pruning that asks for less than one channel in every group.
    """
    method = method_named(spec.method)
    options = options_of(method, spec.method_options)
    data = load(spec.dataset, root=spec.data_root)
    model = build(spec.model, classes=data.classes, input_shape=data.input_shape, seed=0)
    check_runs(model, data.input_shape)
    if spec.weights is not None:
        load_weights_(model, Path(spec.weights))
    coupling = couple(model, _example(data))
    _check_budget(spec, coupling, options)


def _check_budget(spec: TrialSpec, coupling: Coupling, options: Options) -> None:
    table = CostTable(coupling)
    subject = Subject(model=nn.Identity(), coupling=coupling, options=options, calibration=lambda: (), seed=0)
    least = table.flops(_one_channel_each(coupling, subject.prunable()))
    wanted = (1 - spec.pruning_ratio) ** spec.iterations * table.flops()
    if wanted < least:
        raise InvalidInput(
            f"pruning_ratio {spec.pruning_ratio:g} over {spec.iterations} iterations asks for {wanted:,.0f} flops; "
            f"with one channel in every prunable group {spec.model} still has {least:,} of its {table.flops():,}"
        )


def _one_channel_each(coupling: Coupling, prunable: Iterable[str]) -> Any:
    kept = {name: (0,) for name in prunable}
    return Plan(kept=kept).mask(coupling)


def rebuild(spec: TrialSpec, store: StageStore, key: str, *, device: str = "cpu") -> Network:
    """The network of a finished stage on the path of this spec: architecture, plan and weights put together.

    Raises KeyError if the stage is not in the store.
    """
    if store.folder(key) is None:
        raise KeyError(key)
    return _Trial(spec, store, device).network_of(key)


def replay_cut(spec: TrialSpec, store: StageStore, key: str, *, device: str = "cpu") -> Network:
    """The network that a finished cut stage had right after its cut: statistics re-estimated, no weight trained."""
    parent = store.stage(key).parent
    assert parent is not None, key
    return _Trial(spec, store, device).just_cut(parent, key)


class _Trial:
    """The state of one trial as it goes: which stages it passed, and the network it has in hand."""

    def __init__(self, spec: TrialSpec, store: StageStore, device: str) -> None:
        self.spec, self.store, self.device = spec, store, torch.device(device)
        self.method: Method = method_named(spec.method)
        self.options = options_of(self.method, spec.method_options)
        self.data: DataSet = load(spec.dataset, root=spec.data_root)
        self.computed: list[str] = []
        self.reused: list[str] = []
        self.at: Step | None = None  # the stage under way
        self.path_cost = Cost()

    def run(self, report: Callable[[Point], None]) -> None:
        dense = Step(kind="dense", parent=None, parameters=self._dense_parameters(), iteration=0)
        report(self._stage(dense, self._compute_dense))
        parent = dense.key
        for iteration in range(1, self.spec.iterations + 1):
            sparse = Step(kind="sparse", parent=parent, parameters=self._sparse_parameters(), iteration=iteration)
            self._stage(sparse, self._compute_sparse)
            pruned = Step(kind="cut", parent=sparse.key, parameters=self._cut_parameters(), iteration=iteration)
            report(self._stage(pruned, self._compute_cut))
            parent = pruned.key

    def _stage(self, step: Step, compute: Callable[[Step, Path], None]) -> Any:
        """The stage's point (None for sparse), computed if nobody has."""
        self.at = step
        known = self.store.failure(step.key)
        if known is not None and known.reason == "diverged":  # the same key gives the same result
            raise Diverged(f"{known.message} (recorded by an earlier trial)")
        _, computed = self.store.obtain(step.key, lambda folder: compute(step, folder))
        (self.computed if computed else self.reused).append(step.key)
        self.path_cost = self.path_cost + self.store.stage(step.key).cost
        return self.store.point(step.key) if step.kind != "sparse" else None

    # -- what determines each stage's result ---------------------------------------------------------------------

    def _dense_parameters(self) -> dict[str, Any]:
        spec, weights = self.spec, self.spec.weights
        source = {"weights": fingerprint(Path(weights))} if weights else {"schedule": spec.dense.model_dump()}
        data = {"name": spec.dataset, "fingerprint": self.data.fingerprint}
        return {"version": VERSIONS["dense"], "model": spec.model, "data": data, "seed": spec.seed, **source}

    def _sparse_parameters(self) -> dict[str, Any]:
        parameters = {"version": VERSIONS["sparse"], "schedule": self.spec.sparse.model_dump(), "penalty": None}
        if self._penalised:
            parameters["penalty"] = {
                "method": self.method.name,
                "version": self.method.version,
                "options": self.options.model_dump(),
                "regularization_weight": self.spec.regularization_weight,
            }
        return parameters

    def _cut_parameters(self) -> dict[str, Any]:
        return {
            "version": VERSIONS["cut"],
            "method": {
                "name": self.method.name,
                "version": self.method.version,
                "options": self.options.model_dump(),
            },
            "pruning_ratio": self.spec.pruning_ratio,
            "group_cap": self.spec.group_cap,
            "recovery": self.spec.recovery.model_dump(),
        }

    @property
    def _penalised(self) -> bool:
        return self.method.penalty is not None and self.spec.regularization_weight > 0

    # -- computing stages ----------------------------------------------------------------------------------------

    @cached_property
    def _dense(self) -> Network:
        """The dense network with the weights that its seed gives, and its coupling."""
        # the dense stage's own key gives the seed, so that the same stage starts from the same weights everywhere
        key = stage_key(None, "dense", self._dense_parameters())
        model = build(self.spec.model, classes=self.data.classes, input_shape=self.data.input_shape, seed=seed_of(key))
        coupling = couple(model, _example(self.data))
        return Network(model=model.to(self.device), coupling=coupling, plan=Plan(kept={}))

    @cached_property
    def _dense_flops(self) -> int:
        return CostTable(self._dense.coupling).flops()

    def network_of(self, key: str) -> Network:
        """A finished stage's network, rebuilt: architecture, plan, weights."""
        folder = self.store.folder(key)
        assert folder is not None, key
        plan = Plan.from_json((folder / PLAN_FILE).read_text())
        model = cut(self._dense.model, self._dense.coupling, plan)
        load_weights_(model, folder / WEIGHTS_FILE)
        return Network(model=model, coupling=self._dense.coupling.restrict(plan), plan=plan)

    def _compute_dense(self, step: Step, folder: Path) -> None:
        started = time.perf_counter()
        network, train_flops = self._dense, 0
        if self.spec.weights is not None:
            load_weights_(network.model, Path(self.spec.weights))
        else:
            train_flops = self._fit(network, self.spec.dense, step.key)
        accuracy = evaluate(network.model, self.data, "validation", device=self.device).accuracy
        cost = Cost(train_flops=train_flops, seconds=time.perf_counter() - started)
        self._write(step, folder, network, cost)
        self._write_point(step, folder, network, cost, accuracy=accuracy)

    def _compute_sparse(self, step: Step, folder: Path) -> None:
        started = time.perf_counter()
        assert step.parent is not None
        network = self.network_of(step.parent)
        train_flops = self._fit(network, self.spec.sparse, step.key, penalised=self._penalised)
        self._write(step, folder, network, Cost(train_flops=train_flops, seconds=time.perf_counter() - started))

    def _compute_cut(self, step: Step, folder: Path) -> None:
        started = time.perf_counter()
        assert step.parent is not None
        network = self.just_cut(step.parent, step.key)
        after_cut = evaluate(network.model, self.data, "validation", device=self.device).accuracy
        train_flops = self._fit(network, self.spec.recovery, step.key)
        accuracy = evaluate(network.model, self.data, "validation", device=self.device).accuracy
        cost = Cost(train_flops=train_flops, seconds=time.perf_counter() - started)
        self._write(step, folder, network, cost)
        self._write_point(step, folder, network, cost, accuracy=accuracy, accuracy_after_cut=after_cut)

    def just_cut(self, parent: str, key: str) -> Network:
        """Cut the network of the finished stage `parent` as the stage `key` does, and re-estimate its statistics."""
        network = self._pruned(self.network_of(parent), key)
        reestimate_norm_statistics_(network.model, self.data, seed=seed_of(key), device=self.device)
        return network

    def _subject(self, network: Network, key: str) -> Subject:
        def calibration() -> Iterable[tuple[Tensor, Tensor]]:
            batches = Batches(self.data, self.data.train, CALIBRATION_BATCH, self.device)
            return islice(batches.shuffled(seed_of(key)), CALIBRATION_BATCHES)

        return Subject(
            model=network.model,
            coupling=network.coupling,
            options=self.options,
            calibration=calibration,
            seed=seed_of(key),
        )

    def _pruned(self, network: Network, key: str) -> Network:
        """Choose, verify on the real weights, cut, repair. A group that fails is frozen, and the choice made again."""
        flops = CostTable(network.coupling).flops()
        budget = Budget(flops=int(flops * (1 - self.spec.pruning_ratio)), group_cap=self.spec.group_cap)
        example = _example(self.data)
        for _ in range(len(network.coupling.groups) + 1):
            subject = self._subject(network, key)
            plan = self.method.choose(subject, budget)
            found = verify(network.model, network.coupling, plan, example)
            if found.passed:
                model = cut(network.model, network.coupling, plan)
                if self.method.repair_ is not None:
                    self.method.repair_(model, subject, plan)
                return Network(model=model, coupling=network.coupling.restrict(plan), plan=network.plan.then(plan))
            reason = f"cut and masked differ by {found.difference:.1e} on the trained weights"
            network = replace(network, coupling=network.coupling.without(found.failing, reason))
        raise BrokenCut(f"{self.spec.model}: no group of it can be cut correctly")

    def _fit(self, network: Network, schedule: Schedule, key: str, *, penalised: bool = False) -> int:
        """Train in place; returns train_flops."""
        context: Any = nullcontext(Penalty())
        if penalised:
            assert self.method.penalty is not None
            context = self.method.penalty(self._subject(network, key), self.spec.regularization_weight)
        with context as penalty:
            done = fit(
                network.model,
                self.data,
                schedule,
                seed=seed_of(key),
                device=self.device,
                extra_loss=penalty.extra_loss,
                after_backward=penalty.after_backward,
            )
        return 3 * CostTable(network.coupling).flops() * done.samples

    # -- publishing ----------------------------------------------------------------------------------------------

    def _write(self, step: Step, folder: Path, network: Network, cost: Cost) -> None:
        save_weights(network.model, folder / WEIGHTS_FILE)
        (folder / PLAN_FILE).write_text(network.plan.to_json())
        stage = Stage(
            key=step.key, parent=step.parent, kind=step.kind, parameters=step.parameters, cost=cost, **whereabouts()
        )
        write_record(folder / STAGE_FILE, stage)

    def _write_point(self, step: Step, folder: Path, network: Network, cost: Cost, **measured: Any) -> None:
        table = CostTable(network.coupling)
        flops, spec = table.flops(), self.spec
        settings: dict[str, Any] = {}
        if step.kind == "cut":
            settings = {
                "method": spec.method,
                "regularization_weight": spec.regularization_weight if self._penalised else 0.0,
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
            flops_kept=flops / self._dense_flops,
            cost=cost,
            path_cost=self.path_cost + cost,
            created=now(),
            **settings,
            **measured,
        )
        write_record(folder / POINT_FILE, point)


def _example(data: DataSet) -> Tensor:
    """[2, C, H, W] fixed noise in the data's shape: what a network is traced with and verified on."""
    return torch.randn(2, *data.input_shape, generator=torch.Generator().manual_seed(0))


def _failure(spec: TrialSpec, trial: _Trial | None, error: Exception) -> Failure:
    key = (
        trial.at.key
        if trial is not None and trial.at is not None
        else stage_key(None, "dense", {"spec": spec.model_dump()})
    )
    return Failure(
        key=key,
        spec=spec,
        reason=_reason(error),
        message=str(error).splitlines()[0] if str(error) else type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
        **whereabouts(),
    )


def _reason(error: Exception) -> FailureReason:
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, BudgetUnreachable):
        return "budget"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return "out_of_memory"
    return "error"
