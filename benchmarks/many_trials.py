"""What a search of thousands of trials on hundreds of slots costs besides its training, with nothing trained.

    python benchmarks/many_trials.py [--trials 2000] [--slots 256] [--parallel 256] [--points 1000000]

The proposals, their journal, Optuna's sampler, the stage store and the display are the real ones; the stages are not:
each takes simulated seconds, its train_flops over a fixed speed, and its accuracy follows from its settings by formula.
An event queue stands for the slots: a slot takes a proposal, passes its stages in order, waits where another slot has
the same stage under way, publishes it with a file each (fsynced as ever), and reports its points. One trial in a
hundred diverges. Simulated: time and what happens in it. Measured: CPU seconds of this process for asking and telling,
reports, display, look-ups and publishing; its memory; then how long the questions to the finished study take, and the
frontier of a study of `--points` points, whose folder has a name for every stage and whose index has all of them.
Ray's own share is measured by overhead.py.
"""

import argparse
import cProfile
import heapq
import io
import math
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from orchestrator.collector import Study
from orchestrator.collector.index import INDEX_FILE, REPEATED, SCHEMA
from orchestrator.record import (
    Cost,
    Failure,
    Point,
    Stage,
    StageKind,
    TrialSpec,
    now,
    seed_of,
    stage_key,
    whereabouts,
)
from orchestrator.search.progress import Counts, Progress
from orchestrator.search.proposals import Proposal, Proposals, Result
from orchestrator.search.space import SearchSpace
from orchestrator.search.stopping import reason_to_stop
from orchestrator.stage_files import write_record
from orchestrator.store import StageStore

# ResNet-56 on CIFAR-10 with the schedules of search_spaces/cifar10_resnet56.toml.
FLOPS, PARAMS, PICTURES, SPEED = 125_500_000, 850_000, 45_000, 1e12  # train_flops a second on one slot
DIVERGES = 100  # one trial in so many
ROWS = 4  # parts of the study, a row of the table each
SPACE = """
[trial]
model = "resnet56"
dataset = "cifar10"
[trial.dense]
epochs = 200
learning_rate = 0.1
[trial.sparse]
epochs = 25
learning_rate = 0.01
[trial.recovery]
epochs = 25
learning_rate = 0.01
[search]
regularization_weight = {{ low = 1e-4, high = 1e-2, log = true, grid = 9 }}
pruning_ratio = {{ low = 0.1, high = 0.4 }}
iterations = {{ low = 2, high = 5 }}
[budget]
trials = {trials}
[proposals]
parallel = {parallel}
startup = {startup}
"""


@dataclass
class Meter:
    """CPU and wall seconds of what was done, and how often, by name."""

    cpu: Counter[str] = field(default_factory=Counter)
    wall: Counter[str] = field(default_factory=Counter)
    times: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu[name] += time.process_time() - cpu
        self.wall[name] += time.perf_counter() - wall
        self.times[name] += 1

    def since(self, before: "Meter", name: str, times: str = "") -> float:
        """CPU milliseconds of each time `name` (or another thing, `times`) was done since."""
        done = self.times[times or name] - before.times[times or name]
        return 1e3 * (self.cpu[name] - before.cpu[name]) / max(1, done)

    def copy(self) -> "Meter":
        return Meter(self.cpu.copy(), self.wall.copy(), self.times.copy())


def proposals_of(space: SearchSpace, journal: Path) -> Proposals:
    """The proposals of a space, up to its own budget."""
    return Proposals(space, journal)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage of a simulated trial."""

    key: str
    parent: str | None
    kind: StageKind
    parameters: dict[str, Any]
    iteration: int
    cost: Cost


def steps_of(spec: TrialSpec) -> Iterator[Step]:
    """The stages of a trial: what they cost follows from their flops, a fifth more or less by their keys."""
    path: list[tuple[StageKind, int, int, dict[str, Any]]] = [("dense", 0, spec.dense.epochs, {"model": spec.model})]
    for iteration in range(1, spec.iterations + 1):
        path.append(("sparse", iteration, spec.sparse.epochs, {"regularization_weight": spec.regularization_weight}))
        path.append(("cut", iteration, spec.recovery.epochs, {"pruning_ratio": spec.pruning_ratio}))
    parent = None
    for kind, iteration, epochs, settings in path:
        parameters = {"version": 1, "schedule": spec.sparse.model_dump(), **settings}
        key = stage_key(parent, kind, parameters)
        kept = (1 - spec.pruning_ratio) ** (iteration - (kind == "sparse"))
        train_flops = round(3 * FLOPS * kept * PICTURES * epochs)
        seconds = train_flops / SPEED * random.Random(seed_of(key)).uniform(0.8, 1.2)
        cost = Cost(train_flops=train_flops, seconds=seconds)
        yield Step(key=key, parent=parent, kind=kind, parameters=parameters, iteration=iteration, cost=cost)
        parent = key


def point_of(spec: TrialSpec, step: Step, path_cost: Cost) -> Point:
    """What a simulated stage measures: a weight far from its best hurts, and so does every channel gone."""
    kept = (1 - spec.pruning_ratio) ** step.iteration
    peak = math.exp(-((math.log10(spec.regularization_weight) + 3) ** 2))
    noise = random.Random(seed_of(step.key) + 1).gauss(0, 0.001)
    accuracy = 0.94 - 0.3 * (1 - kept) ** 4 * (1.2 - peak) * (1 + spec.pruning_ratio) + noise
    pruned = step.kind == "cut"
    return Point(
        key=step.key,
        parent=step.parent,
        kind="cut" if pruned else "dense",
        iteration=step.iteration,
        model=spec.model,
        dataset=spec.dataset,
        method=spec.method if pruned else None,
        regularization_weight=spec.regularization_weight if pruned else None,
        pruning_ratio=spec.pruning_ratio if pruned else None,
        seed=spec.seed,
        flops=round(FLOPS * kept),
        params=round(PARAMS * kept),
        flops_kept=kept,
        accuracy=min(1.0, max(0.0, accuracy)),
        cost=step.cost,
        path_cost=path_cost,
        created=now(),
    )


@dataclass(kw_only=True)
class Slots:
    """Where simulated slot-seconds went. `since` is the moment up to which they are counted."""

    total: int
    computing: int = 0
    taken: int = 0
    since: float = 0.0
    busy: float = 0.0
    waiting: float = 0.0

    def until(self, moment: float) -> None:
        passed = moment - self.since
        self.busy += passed * self.computing
        self.waiting += passed * (self.taken - self.computing)
        self.since = moment


class Simulation:
    """A search on simulated slots. Closes over the event queue: who goes on, and when."""

    def __init__(self, space: SearchSpace, root: Path, slots: int) -> None:
        self.meter, self.store, self.now = Meter(), StageStore(root), 0.0
        self.store.write_json("study.json", {"name": space.name, "definition": space.definition(), "created": now()})
        self.stopping = space.stopping
        self.proposals = proposals_of(space, root / "journal.log")
        counts = Counts(target=self.proposals.target)
        silent = Console(file=io.StringIO(), force_terminal=False)
        self.progress = Progress(silent, space.name, counts, clock=lambda: self.now)
        self.slots = Slots(total=slots)
        self.ended = self.published = 0
        self.ready_at = 0.0  # when the dense stage was there: until then there is nothing else to do
        self._queue: list[tuple[float, int, Iterator[float | str]]] = []
        self._order = count()
        self._waiting: dict[str, list[Iterator[float | str]]] = {}  # by the stage under way

    def run(self, at_quarter: Callable[[], None]) -> None:
        """To the end of the search; `at_quarter` is called four times."""
        quarters = {round(self.proposals.target * part / ROWS) for part in range(1, ROWS + 1)}
        self._fill()
        while self._queue:
            moment, _, trial = heapq.heappop(self._queue)
            self.slots.until(moment)
            self.now = moment
            ended = self.ended
            self._go_on(trial)
            if self.ended > ended:
                self._fill()
                if self.ended in quarters:
                    at_quarter()
        assert self.proposals.over, "the queue is empty, and there are proposals left"

    def _fill(self) -> None:
        while self.slots.taken < self.slots.total and (proposal := self.proposals.next()) is not None:
            self.slots.taken += 1
            self.progress.started(proposal.index)
            self._go_on(self._trial(proposal))

    def _go_on(self, trial: Iterator[float | str]) -> None:
        wanted = next(trial, None)
        if isinstance(wanted, str):
            self._waiting[wanted].append(trial)
        elif wanted is not None:
            heapq.heappush(self._queue, (self.now + wanted, next(self._order), trial))

    def _trial(self, proposal: Proposal) -> Iterator[float | str]:
        """Yields the seconds that it computes, or the key of the stage that it waits for."""
        points: list[str] = []
        computed: list[str] = []
        costs: dict[str, int] = {}
        path_cost, failure, stopped = Cost(), None, None
        for step in steps_of(proposal.spec):
            if self._diverges(proposal, step):
                failure = self._failure(proposal.spec, step)
                break
            while not self._is_there(step.key):
                if step.key in self._waiting:
                    yield step.key
                    continue
                self._waiting[step.key] = []
                self.slots.computing += 1
                yield step.cost.seconds
                self.slots.computing -= 1
                self._publish(proposal.spec, step, path_cost + step.cost)
                computed.append(step.key)
            path_cost = path_cost + step.cost
            costs[step.key] = step.cost.train_flops
            if step.kind != "sparse":
                points.append(step.key)
                self._report(proposal.index, step.key)
                stopped = self._stopped(proposal, points)
                if stopped is not None:
                    break
        self._end(proposal.index, points, computed, Result(failure=failure, stopped=stopped, stages=costs))

    def _stopped(self, proposal: Proposal, keys: list[str]) -> str | None:
        found = [self.store.point(key) for key in keys]
        if found[-1].iteration == proposal.spec.iterations:
            return None
        return reason_to_stop(proposal.spec, found, proposal.frontier, self.stopping)

    def _diverges(self, proposal: Proposal, step: Step) -> bool:
        return step.kind == "cut" and step.iteration == 2 and seed_of(step.key) % DIVERGES == 0

    def _failure(self, spec: TrialSpec, step: Step) -> str:
        failure = Failure(
            key=step.key, spec=spec, reason="diverged", message="the loss is NaN", traceback="", **whereabouts()
        )
        self.store.record_failure(failure)
        return f"{failure.reason}: {failure.message}"

    def _is_there(self, key: str) -> bool:
        with self.meter("look-up"):
            return self.store.folder(key) is not None

    def _publish(self, spec: TrialSpec, step: Step, path_cost: Cost) -> None:
        def compute(folder: Path) -> None:
            record = {"key": step.key, "parent": step.parent, "kind": step.kind, "parameters": step.parameters}
            write_record(folder / "stage.json", Stage(**record, cost=step.cost, **whereabouts()))
            (folder / "plan.json").write_text("{}\n")
            (folder / "weights.safetensors").write_bytes(b"none")
            if step.kind != "sparse":
                write_record(folder / "point.json", point_of(spec, step, path_cost))

        with self.meter("publish"):
            self.store.obtain(step.key, compute)
        self.published += 1
        if step.kind == "dense":
            self.ready_at = self.now
        for trial in self._waiting.pop(step.key):
            heapq.heappush(self._queue, (self.now, next(self._order), trial))

    def _report(self, index: int, key: str) -> None:
        """What the driver does when a worker reports a point."""
        with self.meter("report"):
            point = self.store.point(key)
            if point.iteration:
                self.proposals.passed(index)
            self.progress.found(index, point)

    def _end(self, index: int, keys: list[str], computed: list[str], result: Result) -> None:
        """What the driver does when a worker reports that its trial has ended."""
        with self.meter("report"):
            points = tuple(self.store.point(key) for key in keys)
        with self.meter("ask and tell"):
            self.proposals.complete(index, replace(result, points=points))
        reused = 1 + 2 * len(keys) - len(computed)
        with self.meter("display"):
            target = self.proposals.target
            self.progress.ended(
                index,
                failure=result.failure,
                stopped=result.stopped,
                computed=computed,
                reused=reused,
                target=target,
                left=self.proposals.left,
            )
        self.ended += 1
        self.slots.taken -= 1


class Rows:
    """The table of a simulation, a row at each quarter. Closes over where the last quarter ended."""

    HEADER = (
        "trials",
        "ask + tell, ms a trial",
        "of it Optuna's ask",
        "report, ms",
        "display, ms a trial",
        "screen, ms a redraw",
        "look-up, ms",
        "publish, ms a stage",
        "driver, MB",
        "slots busy",
        "waiting",
        "idle",
    )

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self._before = simulation.meter.copy()

    def add(self) -> None:
        now, before = self.simulation.meter, self._before
        with now("screen"):
            Console(file=io.StringIO(), width=80).print(self.simulation.progress.table())
        reports = now.times["report"] - before.times["report"]
        print_row(
            f"{self.simulation.ended}",
            f"{now.since(before, 'ask and tell'):.1f}",
            f"{now.since(before, 'ask', 'ask and tell'):.1f}",
            f"{now.since(before, 'report'):.2f}" if reports else "-",
            f"{now.since(before, 'display'):.1f}",
            f"{now.since(before, 'screen'):.1f}",
            f"{now.since(before, 'look-up'):.2f}",
            f"{now.since(before, 'publish'):.1f}",
            f"{psutil.Process().memory_info().rss / 1e6:.0f}",
            *shares(self.simulation),
        )
        self._before = now.copy()


def shares(simulation: Simulation) -> list[str]:
    """Of the slot-seconds so far: busy computing, waiting for another slot's stage, without a proposal."""
    slots = simulation.slots
    total = slots.total * max(slots.since, 1e-9)
    return [
        f"{share:.0%}"
        for share in (slots.busy / total, slots.waiting / total, 1 - (slots.busy + slots.waiting) / total)
    ]


@contextmanager
def asks_measured(meter: Meter) -> Iterator[None]:
    """Optuna's own ask, inside whatever the proposals do, measured apart."""
    original = optuna.Study.ask

    def ask(study: optuna.Study, *arguments: Any, **named: Any) -> optuna.Trial:
        with meter("ask"):
            return original(study, *arguments, **named)

    optuna.Study.ask = ask  # type: ignore[method-assign]
    try:
        yield
    finally:
        optuna.Study.ask = original  # type: ignore[method-assign]


def large_study(root: Path, points: int, stages_a_point: float) -> None:
    """A study of so many points: a name in its folder for every stage, and its index. Nothing else is asked for."""
    draw = np.random.default_rng(0)
    total = round(points * stages_a_point)
    digits = draw.bytes(32 * total).hex()
    keys = sorted(digits[64 * at : 64 * at + 64] for at in range(total))
    (root / "stages").mkdir(parents=True)
    for key in keys:
        (root / "stages" / key).touch()
    is_point = np.arange(total) < points
    draw.shuffle(is_point)
    kept = draw.uniform(0.02, 1, total)
    accuracy = 0.94 - 0.3 * (1 - kept) ** 4 - draw.exponential(0.02, total)
    missing, at = ~is_point, np.arange(total)
    moments = np.char.mod("2026-01-01T%02d", at // 3600 % 24)
    for part in (np.char.mod(":%02d", at // 60 % 60), np.char.mod(":%02d.000+00:00", at % 60)):
        moments = np.char.add(moments, part)
    columns: dict[str, Any] = {
        "key": keys,
        "parent": [keys[0], *keys[:-1]],
        "kind": np.where(is_point, "cut", "sparse"),
        "created": moments,
        "frozen_groups": [None] * total,
        "train_flops": kept * 1e15,
        "seconds": kept * 1e3,
        "model": pa.array(np.full(total, "resnet56"), mask=missing),
        "dataset": pa.array(np.full(total, "cifar10"), mask=missing),
        "method": pa.array(np.full(total, "oicsr"), mask=missing),
        "flops": pa.array(np.round(FLOPS * kept).astype(np.int64), mask=missing),
        "params": pa.array(np.round(PARAMS * kept).astype(np.int64), mask=missing),
        "accuracy": pa.array(np.clip(accuracy, 0.0, 1.0), mask=missing),
    }
    for name in SCHEMA.names:
        if name not in columns:
            values = (kept * 5).astype(np.int64) if SCHEMA.field(name).type == pa.int64() else kept
            columns[name] = pa.array(values, mask=missing)
    pq.write_table(pa.table(columns, schema=SCHEMA), root / INDEX_FILE, compression="lz4", use_dictionary=REPEATED)


def seconds_of(question: Callable[[], Any], times: int) -> tuple[float, float]:
    """Wall and CPU seconds, medians of several times."""
    taken = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        question()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    walls, cpus = zip(*taken, strict=True)
    return statistics.median(walls), statistics.median(cpus)


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def print_header(*cells: str) -> None:
    print_row(*cells)
    print_row(*("---" for _ in cells))


def simulate(space: SearchSpace, root: Path, given: argparse.Namespace) -> Simulation:
    """Run the search, printing a row at each quarter, and what it came to."""
    profile = cProfile.Profile() if given.profile else None
    before = psutil.Process().memory_info().rss
    simulation = Simulation(space, root, given.slots)
    print_header(*Rows.HEADER)
    rows, started = Rows(simulation), time.perf_counter()
    with asks_measured(simulation.meter), profile or nullcontext():
        simulation.run(rows.add)
    if profile is not None:
        profile.dump_stats(given.profile)
    meter, slots, grown = simulation.meter, simulation.slots, psutil.Process().memory_info().rss - before
    after = slots.total * (slots.since - simulation.ready_at)
    ended, published = max(1, simulation.ended), max(1, simulation.published)
    print(
        f"\n{simulation.ended} trials, {simulation.published} stages, {len(simulation.progress.counts.points)} points, "
        f"{len(simulation.proposals.failures)} failed; {slots.since / 3600:.1f} simulated hours. Here they took "
        f"{time.perf_counter() - started:.0f} s, {sum(meter.cpu.values()) - meter.cpu['ask']:.0f} s of the CPU; the "
        f"process grew by {grown / 1e6:.0f} MB. Wall time of a trial's ask and tell, fsyncs of the journal included: "
        f"{1e3 * meter.wall['ask and tell'] / ended:.0f} ms; of publishing a stage: "
        f"{1e3 * meter.wall['publish'] / published:.0f} ms. The dense stage, for which all others wait, took "
        f"{simulation.ready_at / 3600:.2f} hours; of the slot-seconds after it "
        f"{(slots.busy - simulation.ready_at) / after:.0%} were busy.\n"
    )
    return simulation


def ask_questions(space: SearchSpace, simulation: Simulation, given: argparse.Namespace) -> None:
    """How long a study answers: the simulated one, and a large one."""
    root = simulation.store.root
    points = len(simulation.progress.counts.points)
    print_header("question", "points", "wall, s", "CPU, s")

    def row(name: str, size: int, question: Callable[[], Any], times: int = 3) -> None:
        wall, cpu = seconds_of(question, times)
        print_row(name, f"{size}", f"{wall:.2f}", f"{cpu:.2f}")

    row("the search opened again", points, lambda: proposals_of(space, root / "journal.log"), 1)
    row("front, no index yet", points, lambda: Study(root).front(), 1)
    row("front", points, lambda: Study(root).front())
    row("status", points, lambda: Study(root).status())
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        large = Path(folder) / "large"
        large_study(large, given.points, simulation.published / points)
        row("front", given.points, lambda: Study(large).front())
        row("of it listing the stages' names", given.points, lambda: StageStore(large).keys())
        row("status", given.points, lambda: Study(large).status())


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--parallel", type=int, help="proposals under way at once (default: as many as slots)")
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--profile", help="a file for cProfile's figures of the search; it then runs slower")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simulated.toml"
        startup = min(given.slots, given.trials)
        path.write_text(SPACE.format(trials=given.trials, parallel=given.parallel or given.slots, startup=startup))
        space = SearchSpace.read(path)
        simulation = simulate(space, Path(folder) / "simulated", given)
        ask_questions(space, simulation, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
