"""From a frontier to results: chosen points trained anew, measured once on the test split, beside two controls.

confirm("digits_cifarnet", points=3, seeds=3)
"""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from orchestrator.collector import Study
from orchestrator.collector.confirmed import ARMS
from orchestrator.files import Uri
from orchestrator.record import ArmRecord, ArmSpec, InvalidInput, Measured, Outcome, now
from orchestrator.search.arms import Arms, name_of, names_of
from orchestrator.search.binding import SETTINGS_FILE, STUDY_FILE
from orchestrator.search.chosen import paths_of, spread, within
from orchestrator.search.daemons import RayLost, outliving
from orchestrator.search.interrupts import Interrupts, interruptible
from orchestrator.search.progress import Counts, Progress, duration, say
from orchestrator.search.runner import attended, check_address, references
from orchestrator.search.space import Confirmation, Resources, Stopping, check_section
from orchestrator.stage_files import DamagedStage
from orchestrator.store import CONFIRMED, StageStore

RunArm = Callable[..., Outcome]
Paths = Callable[..., list[str]]


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """How a confirmation ended: `table` holds the rows of Study.confirmed() for the points that were asked for."""

    study: Study
    table: pd.DataFrame
    notes: tuple[str, ...]  # how long the controls were trained
    failures: Mapping[str, str]  # by arm
    computed: int  # stages, by this call
    measured: int  # models that are measured, all calls together


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What does not change during one call."""

    study: Study
    store: StageStore
    specs: tuple[ArmSpec, ...]
    resources: Resources
    console: Console
    address: str | None
    run_arm: RunArm


def confirm(
    study: str | Path | Uri,
    *,
    points: int | None = None,
    at: str | None = None,
    seeds: int | None = None,
    length: float | None = None,
    with_validation: bool = False,
    storage: str | Path | Uri = "results",
    data_root: str | Path | None = None,
    address: str | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    console: Console | None = None,
    run_arm: RunArm | None = None,
    paths: Paths | None = None,
) -> Confirmed:
    """Train frontier points of a study anew, with their controls, and measure each model once on the test split.

    points: so many, spread over the frontier; or at: the best within each budget, such as "50M,100M". What is not given
    is as the study's last search had it in [confirm] and [resources]. All of it lies in the study's folder `confirmed`;
    the same call goes on where one was stopped, and repeats nothing that is finished. Runs, fails and stops as
    `launch` does. `run_arm` and `paths` are those of orchestrator.trial unless simulations give their own.
    """
    found = Study(study, results=storage)
    settings = _section(found, Confirmation, "confirm", points=points, seeds=seeds, length=length)
    resources = _section(found, Resources, "resources", cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial)
    check_address(address)
    if points is not None and at is not None:
        raise InvalidInput("give either --points or --at")
    chosen = spread(found, settings.points) if at is None else within(found, at)
    root = None if data_root is None else str(data_root)
    pairs = list(paths_of(found, chosen, seeds=settings.seeds, length=settings.length, data_root=root))
    console = console or Console()

    def on_interrupt(number: signal.Signals) -> None:
        say(console, f"stopped by {number.name}; the same command goes on from here")

    with interruptible(on_interrupt) as interrupts:
        if run_arm is None or paths is None:
            from orchestrator import trial

            run_arm, paths = run_arm or trial.run_arm, paths or trial.paths
        keys = paths([spec for _, spec in pairs], with_validation=with_validation)
        shared = {"with_validation": with_validation, "length": settings.length}
        specs = tuple(
            ArmSpec(**spec.model_dump(), point=point.key, path=path, arm=arm, **shared)
            for arm in ARMS
            for (point, spec), path in zip(pairs, keys, strict=True)
        )
        call = _Call(
            study=found,
            store=StageStore(found.path / CONFIRMED),
            specs=specs,
            resources=resources,
            console=console,
            address=address,
            run_arm=run_arm,
        )
        return _drive(call, interrupts)


def _section(study: Study, section: type[Any], name: str, **given: Any) -> Any:
    """A section as the study's last search had it, with what was given in its place."""
    there = study.store.read_json(SETTINGS_FILE)
    kept = there.get(name, {}) if isinstance(there, dict) else {}
    return check_section(
        section, {**kept, **{field: value for field, value in given.items() if value is not None}}, name
    )


def _drive(call: _Call, interrupts: Interrupts) -> Confirmed:
    with call.store.exclusive("driver"):
        if call.store.read_json(STUDY_FILE) is None:  # by it workers know that they see the folder
            call.store.write_json(STUDY_FILE, {"name": f"{call.study.name}/{CONFIRMED}", "created": now()})
        forgiven = frozenset(one.created for one in call.store.failures() if one.reason == "timed_out")
        computed: set[str] = set()
        try:
            arms = outliving(lambda: _attempt(call, forgiven, computed, interrupts), lambda: len(call.store.keys()))
        except RayLost as lost:
            say(call.console, f"{lost}; the same command goes on from here")
            raise SystemExit(1) from None
        call.store.sweep()
    return _conclude(call, arms, len(computed))


def _attempt(call: _Call, forgiven: frozenset[str], computed: set[str], interrupts: Interrupts) -> Arms:
    """Up to the end of the confirmation, or of Ray: what is recorded by then is not done again."""
    done = _done(call)
    left = [spec for spec in call.specs if _identity(spec) not in done]
    arms = Arms(left, call.store, [spec.path for spec in call.specs if spec.arm == "pruned" and spec not in left])
    _announce(call, len(left))
    if left:
        _run(call, arms, Counts(target=len(left), left=arms.left, computed=computed), forgiven, interrupts)
    return arms


def _run(call: _Call, arms: Arms, counts: Counts, forgiven: frozenset[str], interrupts: Interrupts) -> None:
    with attended(call.address, call.resources, call.console, interrupts, parallel=arms.parallel):
        from orchestrator.search import session

        job = session.Job(
            root=call.store.root.absolute(),
            function=f"{call.run_arm.__module__}:{call.run_arm.__qualname__}",
            kind=ArmSpec,
            resources=call.resources,
            stopping=Stopping(rule="none"),
            references=tuple(sorted(references(call.specs))),
            forgiven=forgiven,
        )
        with ArmsProgress(call.console, f"confirm {call.study.name}", counts, arms.specs) as progress:
            session.run(arms, call.store, job, progress, found=lambda config, key: None, keep=arms.keep)
    if arms.finished < arms.target:  # Tune ends early, and well, at SIGUSR1
        say(call.console, "stopped early; the same command goes on from here")
        raise SystemExit(1)


def _identity(spec: ArmSpec) -> tuple[str, str, str]:
    return spec.point, spec.path, spec.arm


def _done(call: _Call) -> dict[tuple[str, str, str], ArmRecord]:
    """The arms whose model is there, whole, and measured."""
    asked = {_identity(spec) for spec in call.specs}
    ended = {_identity(record.spec): record for record in call.store.arms() if record.failure is None}
    return {name: record for name, record in ended.items() if name in asked and _is_sound(call.store, record)}


def _is_sound(store: StageStore, record: ArmRecord) -> bool:
    try:
        return store.folder(record.stages[-1]) is not None
    except DamagedStage:
        return False


def _announce(call: _Call, left: int) -> None:
    points = len({spec.point for spec in call.specs})
    seeds = sorted({spec.seed for spec in call.specs})
    first = call.specs[0]
    data = "train and validation" if first.with_validation else "train"
    place = f"{call.study.name} in {call.store.root}"
    if not left:
        say(call.console, f"nothing to train for {place}: all {len(call.specs)} models are measured")
        return
    done = len(call.specs) - left
    say(
        call.console,
        f"confirm {place}: {points} points, {len(ARMS)} arms, seeds {', '.join(map(str, seeds))} (the search had none "
        f"of them): {len(call.specs)} models" + (f", {done} of them measured" if done else ""),
    )
    say(call.console, f"trained on {data}, schedules {first.length:g} times as long as the search's")


def _conclude(call: _Call, arms: Arms, computed: int) -> Confirmed:
    failures = names_of(arms.specs, arms.failures)
    for name, reason in failures.items():
        say(call.console, f"{name} failed: {reason}")
    measured = _done(call)
    asked = {spec.point for spec in call.specs}
    table = call.study.confirmed()
    return Confirmed(
        study=call.study,
        table=table[table["key"].isin(asked)].reset_index(drop=True),
        notes=tuple(_notes(call, measured)),
        failures=failures,
        computed=computed,
        measured=len(measured),
    )


def _notes(call: _Call, measured: Mapping[tuple[str, str, str], ArmRecord]) -> list[str]:
    """How long the controls were trained, and what that is of their paths' train_flops."""
    notes = []
    for point in dict.fromkeys(spec.point for spec in call.specs):
        found: dict[str, list[Measured]] = {arm: [] for arm in ARMS}
        for (key, _, arm), record in measured.items():
            if key == point:
                found[arm].append(call.store.tested(record.stages[-1]))
        for arm in ARMS[1:]:
            if found[arm] and found["pruned"]:
                share = _mean_cost(found[arm]) / max(_mean_cost(found["pruned"]), 1)
                notes.append(
                    f"{arm} of {point[:12]}: {_epochs(found[arm])} epochs, {share:.3f} of the train_flops of pruned"
                )
    return notes


def _mean_cost(found: Sequence[Measured]) -> float:
    return fmean(tested.path_cost.train_flops for tested in found)


def _epochs(found: Sequence[Measured]) -> str:
    epochs = [tested.epochs for tested in found]
    return str(min(epochs)) if min(epochs) == max(epochs) else f"{min(epochs)} to {max(epochs)}"


class ArmsProgress(Progress):
    """Shows a confirmation while it is entered."""

    def __init__(self, console: Console, name: str, counts: Counts, specs: Sequence[ArmSpec]) -> None:
        super().__init__(console, name, counts)
        self._specs = specs

    def table(self) -> Table:
        with self._lock:
            counts, left = self.counts, self.seconds_left()
            running = ", ".join(name_of(self._specs[index]) for index in sorted(counts.running))
        table = Table(title=self._name, show_header=False, title_justify="left", min_width=48)
        table.add_row("models", f"{counts.done} of {counts.target} measured, {counts.failed} failed")
        table.add_row("running", running or "-")
        table.add_row("elapsed", duration(self._clock() - self._begun))
        table.add_row("left", "-" if left is None else f"about {duration(left)}")
        return table

    def _line(self, index: int, failure: str | None, computed: int) -> str:
        now_at = self._clock()
        place = f"[{self.counts.done}/{self.counts.target}] {duration(now_at - self._begun)}"
        name = name_of(self._specs[index])
        if failure is not None:
            return f"{place}  {name} failed: {failure}"
        took = now_at - self._started_at.get(index, self._begun)
        return f"{place}  {name}: measured, {computed} new stages, {took:.1f} s"
