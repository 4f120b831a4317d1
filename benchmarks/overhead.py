"""What a search takes beside the training it contains: the same trials through Ray, and in a plain loop.

    python benchmarks/overhead.py [--trials 4] [--seconds 60] [--workers 1 2] [--empty 100]

Trials of the digits demo, their schedules lengthened until one takes about --seconds on this machine now. For each
number of workers the study runs twice: by plain processes that call trial.run in a loop, and by `launch`, with Ray,
Optuna, journal and display. Both leave the same stages, which is checked; both have one thread a worker and the
niceness that Ray gives its workers. "start and end": of the processes, up to the first stage and after the last one.
"added": what launch takes more than the plain loop, between the first stage's start and the last one's end. "outside
stages": the share of that time in which a worker was in no stage's own seconds; it means something on a busy machine
too, where the two runs were not slowed down alike. Last, trials of which every stage takes no time at all.
"""

import argparse
import importlib
import io
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from many_trials import point_of, proposals_of, steps_of
from rich.console import Console

from orchestrator import trial
from orchestrator.network.architectures import build
from orchestrator.record import Cost, Outcome, Point, Schedule, Stage, TrialSpec, whereabouts
from orchestrator.search import SearchSpace, launch
from orchestrator.search.proposals import Result
from orchestrator.stage_files import write_record
from orchestrator.store import StageStore
from orchestrator.training.datasets import load
from orchestrator.training.loop import fit

RAYS_NICENESS = 15
ITERATIONS = 2
SPACE = """
[trial]
model = "cifarnet"
dataset = "digits"
iterations = {iterations}
[trial.dense]
epochs = {dense}
learning_rate = 0.1
batch_size = 64
[trial.sparse]
epochs = {epochs}
learning_rate = 0.05
batch_size = 64
[trial.recovery]
epochs = {epochs}
learning_rate = 0.02
batch_size = 64
[search]
regularization_weight = {{ low = 0.01, high = 0.1, log = true }}
pruning_ratio = {{ low = 0.2, high = 0.4, step = 0.05 }}
[budget]
trials = {trials}
[stopping]
rule = "none"
[proposals]
parallel = {workers}
startup = {trials}
"""


@dataclass(frozen=True, kw_only=True)
class Took:
    """How long a study took: in all, from its first stage's start to its last one's end, and inside its stages."""

    wall: float
    span: float
    in_stages: float
    keys: frozenset[str]

    def outside(self, workers: int) -> float:
        return 1 - self.in_stages / (workers * self.span)


def timed(store: StageStore, study: Callable[[], object]) -> Took:
    """Run a study and read from its stages where the time went."""
    started = time.perf_counter()
    study()
    wall = time.perf_counter() - started
    stages = list(store.stages())
    ends = [datetime.fromisoformat(stage.created).timestamp() for stage in stages]
    begins = [end - stage.cost.seconds for end, stage in zip(ends, stages, strict=True)]
    return Took(
        wall=wall,
        span=max(max(ends) - min(begins), 1e-3),
        in_stages=math.fsum(stage.cost.seconds for stage in stages),
        keys=frozenset(stage.key for stage in stages),
    )


def epoch_seconds() -> float:
    """Of one epoch of the dense network, on one thread."""
    data = load("digits")
    model = build("cifarnet", classes=data.classes, input_shape=data.input_shape, seed=0)
    fit(model, data, Schedule(epochs=1, learning_rate=0.05, batch_size=64), seed=0)
    return fit(model, data, Schedule(epochs=5, learning_rate=0.05, batch_size=64), seed=0).seconds / 5


def specs_of(space: SearchSpace, folder: Path) -> list[TrialSpec]:
    """The trials that a search of this space runs, in its order: all are drawn at random, whatever comes out."""
    proposals = proposals_of(space, folder / "journal.log")
    specs = []
    while (proposal := proposals.next()) is not None:
        specs.append(proposal.spec)
        proposals.complete(proposal.index, Result(failure="not run"))
    return specs


def be_a_worker() -> None:
    torch.set_num_threads(1)
    os.nice(RAYS_NICENESS)


def run_plainly(spec: TrialSpec, root: Path) -> None:
    outcome = trial.run(spec, StageStore(root))
    assert outcome.failure is None, outcome.failure


def plain_loop(specs: list[TrialSpec], root: Path, workers: int) -> None:
    """The trials in order, each by the next worker that is free."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=be_a_worker) as pool:
        list(pool.map(run_plainly, specs, [root] * len(specs)))


def untrained(
    spec: TrialSpec, store: StageStore, report: Callable[[Point], None] = lambda point: None, **options: Any
) -> Outcome:
    """What trial.run does, without any training: every stage is published at once, and none is left out."""
    points, stages, computed = [], [], []
    for step in steps_of(spec):

        def compute(folder: Path, step=step) -> None:  # type: ignore[no-untyped-def]
            record = {"key": step.key, "parent": step.parent, "kind": step.kind, "parameters": step.parameters}
            write_record(folder / "stage.json", Stage(**record, cost=Cost(), **whereabouts()))
            if step.kind != "sparse":
                write_record(folder / "point.json", point_of(spec, step, Cost()))

        if store.obtain(step.key, compute)[1]:
            computed.append(step.key)
        stages.append(step.key)
        if step.kind != "sparse":
            points.append(store.point(step.key))
            report(points[-1])
    return Outcome(points=tuple(points), stages=tuple(stages), computed=tuple(computed))


def unchecked(spec: TrialSpec) -> tuple[str, ...]:
    return ()


def quiet() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def header(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


def compare(given: argparse.Namespace, workers: int, folder: Path) -> bool:
    """One row of the table; whether both ways left the same stages."""
    each = max(1, round(given.seconds / epoch_seconds() / (2 * ITERATIONS)))
    path = folder / f"digits_{workers}.toml"
    path.write_text(
        SPACE.format(trials=given.trials, workers=workers, epochs=each, dense=max(1, each // 4), iterations=ITERATIONS)
    )
    specs = specs_of(SearchSpace.read(path), folder / f"dry_{workers}")
    plain_root, ray_root = folder / "plain" / path.stem, folder / "ray" / path.stem
    plain = timed(StageStore(plain_root), lambda: plain_loop(specs, plain_root, workers))
    through = timed(
        StageStore(ray_root), lambda: launch(path, storage=ray_root.parent, cpus_per_trial=1, console=quiet())
    )
    row(
        f"{workers}",
        f"{len(specs)}",
        f"{plain.in_stages / len(specs):.0f}",
        f"{plain.wall:.1f}",
        f"{plain.wall - plain.span:.1f}",
        f"{through.wall:.1f}",
        f"{through.wall - through.span:.1f}",
        f"{through.span / plain.span - 1:+.1%}",
        f"{plain.outside(workers):.1%}",
        f"{through.outside(workers):.1%}",
        "yes" if plain.keys == through.keys else "NO",
    )
    return plain.keys == through.keys


def empty_trials(count: int, folder: Path) -> None:
    """How long trials take that train nothing: Tune's, the journal's and the store's share of each."""
    here = importlib.import_module("overhead")  # workers find the function by its module's name, not as __main__
    path = folder / "empty.toml"
    path.write_text(SPACE.format(trials=count, workers=1, epochs=1, dense=1, iterations=ITERATIONS))
    root = folder / "ray" / path.stem

    def study() -> None:
        launch(
            path,
            storage=root.parent,
            cpus_per_trial=1,
            console=quiet(),
            run_trial=here.untrained,
            check_trial=here.unchecked,
        )

    took = timed(StageStore(root), study)
    stages = len(took.keys) / count
    print(
        f"\n{count} trials of {stages:.1f} stages that take no time, one worker: {took.span / count:.2f} s a trial "
        f"from the first stage to the last, and {took.wall - took.span:.1f} s to start and end."
    )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4, help="in each study")
    parser.add_argument("--seconds", type=float, default=60, help="that one trial is to take, about")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--empty", type=int, default=100, help="trials without training")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if max(given.workers) > (os.cpu_count() or 1):
        print(f"error: {max(given.workers)} workers; this machine has {os.cpu_count()} cores", file=sys.stderr)
        return 2
    columns = ("workers", "trials", "s a trial", "plain loop, s", "of it start and end", "launch, s")
    header(*columns, "of it start and end", "added", "outside stages, plain", "outside stages, launch", "same stages")
    with tempfile.TemporaryDirectory() as folder:
        same = [compare(given, workers, Path(folder)) for workers in given.workers]
        empty_trials(given.empty, Path(folder))
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
