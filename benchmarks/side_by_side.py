"""Every method of METHODS, side by side: same networks, same data, same train_flops, at three flops_kept.

    python benchmarks/side_by_side.py [--data-root data] [--work results/side_by_side] [--quick | --full]

Protocol, the same for every method. Dense training, then sparse training (with the method's penalty; those without one
train for the same epochs without it), one cut to flops_kept 0.7, 0.5 or 0.3, and recovery training: the same epochs for
all, so also the same train_flops, but for how closely each meets its flops budget. A method that repairs what the cut
lost gets no epoch less for it, and what is computed on calibration data costs no train_flops. What a method must learn
before its first trial is counted beside, as extra train_flops. Each penalised method's regularization_weight is chosen
for each flops_kept by validation accuracy after recovery, from one grid, with the first seed; then all seeds run with
it, and every final model is measured on the test split once: "before recovery" right after the cut (and repair), norm
statistics re-estimated and no weight trained, and "after recovery". `pfec` without a recipe, where every group loses
the same share, is the reference of equal widths. "scratch" is the pruned architecture from random weights for the
train_flops of its whole path, in whole epochs (the control of `orchestrator confirm`). What fails is in the table as
failed, with its reason below.

Sizes: without --quick or --full, parts of the data (and pictures of half the size for ResNet-20), for two cores;
--full is all of it, for a GPU; --quick is scikit-learn's digits, to see that it works. Stages are kept in the work
folder: the same command goes on where it was stopped or killed. --estimate says what it takes on this machine.
"""

import argparse
import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import side_by_side_jobs as jobs
from side_by_side_jobs import PREPARATIONS, Arena, Done, Job, Prepared, Setup, Tested, Walked
from side_by_side_table import estimate_table, table, weights_table

from orchestrator.methods import METHODS
from orchestrator.record import InvalidInput, Option
from orchestrator.training.datasets import load

# The methods' own switches, where the defaults are not what is to be compared.
OPTIONS: dict[str, dict[str, Option]] = {}
GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
GRID_SCALES = {"feature_flow": 100.0}  # its penalty is a mean over features, not a sum over channels
KEPT = (0.7, 0.5, 0.3)
# Inside its blocks ResNet-20 gives 0.26 of its flops at the least if a cut may take 0.75 of a group: at flops_kept 0.3
# all methods would have nearly the same widths. With 0.9 it is 0.13; CifarNet has 0.08 with 0.75.
BLOCKS_ALONE = 0.9
SIZES: dict[str, tuple[Arena, ...]] = {
    "cores": (
        Arena(
            name="cifarnet",
            title="CifarNet on a stratified part of Fashion-MNIST: 10,000 train and 2,000 validation pictures, "
            "all 10,000 test pictures",
            model="cifarnet",
            dataset="small_pictures:fashion_part",
            epochs=(6, 3, 3),
            episodes=150,
        ),
        Arena(
            name="resnet20",
            title="ResNet-20 on a stratified part of CIFAR-10 from JPEGs (not comparable with CIFAR-10): 10,000 train "
            "and 2,000 validation pictures, all 10,000 test pictures, each halved to 16 x 16",
            model="resnet20",
            group_cap=BLOCKS_ALONE,
            dataset="small_pictures:cifar_part",
            epochs=(6, 3, 3),
            episodes=150,
        ),
    ),
    "full": (
        Arena(
            name="cifarnet",
            title="CifarNet on Fashion-MNIST: 54,000 train, 6,000 validation, 10,000 test pictures",
            model="cifarnet",
            dataset="small_pictures:fashion_whole",
            epochs=(10, 5, 5),
            episodes=300,
            batch_size=128,
        ),
        Arena(
            name="resnet20",
            title="ResNet-20 on CIFAR-10 from JPEGs (not comparable with CIFAR-10): 45,000 train, 5,000 validation, "
            "10,000 test pictures",
            model="resnet20",
            group_cap=BLOCKS_ALONE,
            dataset="small_pictures:cifar_whole",
            epochs=(20, 10, 10),
            episodes=300,
            batch_size=128,
            augmentation="crop_flip",
        ),
    ),
    "quick": tuple(
        Arena(
            name=name,
            title=f"{title} on scikit-learn's digits",
            model=name,
            dataset="digits",
            epochs=(4, 2, 2),
            episodes=12,
            group_cap=BLOCKS_ALONE if name == "resnet20" else 0.75,
        )
        for name, title in (("cifarnet", "CifarNet"), ("resnet20", "ResNet-20"))
    ),
}
PENALTY_COST = 1.3  # a step with a penalty, over one without: an estimate
EPISODE_COST = 0.35  # of a teaching, in epochs: mostly the repair of the network that is rewarded
REPAIR_COST = (0.8, 0.3)  # in epochs: what methods with repair_ take to choose and repair, and to repair once more


@dataclass(frozen=True, kw_only=True)
class Task:
    """One call of a worker: about how many seconds of a core it takes, and where its answer goes."""

    label: str
    seconds: float
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keep: Callable[[Any], None]


@dataclass(kw_only=True)
class Course:
    """One arena as it goes: what is to be compared there, and what is known so far."""

    arena: Arena
    given: argparse.Namespace
    prepared: dict[str, Prepared | str] = field(default_factory=dict)
    dense: dict[int, Tested | str] = field(default_factory=dict)
    walked: dict[Job, Walked] = field(default_factory=dict)
    tested: dict[Job, Tested] = field(default_factory=dict)
    controls: dict[Job, Tested | str] = field(default_factory=dict)

    @property
    def setup(self) -> Setup:
        made = {name: one.options for name, one in self.prepared.items() if isinstance(one, Prepared)}
        given = self.given
        return Setup(
            arena=self.arena,
            work=given.work / given.size,
            data_root=given.data_root,
            device=given.device,
            iterations=given.iterations,
            group_cap=given.group_cap or self.arena.group_cap,
            kept=tuple(given.kept),
            options={name: {**OPTIONS.get(name, {}), **made.get(name, {})} for name in given.methods},
        )

    @cached_property
    def epoch(self) -> float:
        """Seconds of an epoch of the whole network."""
        return jobs.epoch_seconds(self.setup)

    def grid(self, method: str) -> tuple[float, ...]:
        """The weights that are tried; none without a penalty."""
        scale = GRID_SCALES.get(method, 1.0)
        return () if METHODS[method].penalty is None else tuple(scale * weight for weight in self.given.grid)

    def weight(self, method: str, kept: float) -> float:
        """The grid's best for this method: by validation with the first seed. 0 without a penalty."""
        grid = self.grid(method) or (0.0,)
        tried = {weight: self.walked.get(Job(method=method, weight=weight, kept=kept, seed=0)) for weight in grid}
        found = {weight: walked.after for weight, walked in tried.items() if walked and walked.failure is None}
        # nothing known yet: as if each flops_kept had another one, which costs most
        return max(found, key=found.__getitem__, default=grid[self.given.kept.index(kept) % len(grid)])

    def job(self, method: str, kept: float, seed: int) -> Job:
        """The one whose figures go into the table."""
        return Job(method=method, weight=self.weight(method, kept), kept=kept, seed=seed)

    def failure(self, job: Job) -> str | None:
        """Why a job cannot be measured, if that is known."""
        prepared = self.prepared.get(job.method)
        if isinstance(prepared, str):
            return prepared
        return self.walked[job].failure if job in self.walked else None

    # -- the phases, in order: what each has to do; before it is its turn, as far as that can be told ----------------

    def phases(self) -> list[Callable[[], Iterator[Task]]]:
        return [self.dense_tasks, self.first_tasks, self.other_tasks, self.test_tasks, self.control_tasks]

    def dense_tasks(self) -> Iterator[Task]:
        for seed in range(self.given.seeds):
            job = Job(method="filter_norm", weight=0.0, kept=self.given.kept[0], seed=seed)  # any method: none acts yet
            seconds = self.training(dense=True)
            yield self._task(f"dense, seed {seed}", seconds, jobs.begin, (job,), _put(self.dense, seed))

    def first_tasks(self) -> Iterator[Task]:
        """Preparations; all seeds of methods without a penalty; the grid of the others, with the first seed."""
        for name in filter(PREPARATIONS.__contains__, self.given.methods):
            seconds = EPISODE_COST * self.epoch * self.arena.episodes
            yield self._task(f"{name}: preparation", seconds, jobs.prepare, (name,), _put(self.prepared, name))
        plain = [name for name in self.given.methods if not self.grid(name) and name not in PREPARATIONS]
        yield from self._plain_walks(plain, shared=False)
        for name in self.given.methods:
            for weight in self.grid(name):
                yield self._walk(
                    [Job(method=name, weight=weight, kept=k, seed=0) for k in self.given.kept], sparse=True
                )

    def other_tasks(self) -> Iterator[Task]:
        """Methods that had to be prepared; the other seeds of penalised ones: those of one weight share a stage."""
        prepared = [name for name in self.given.methods if name in PREPARATIONS]
        yield from self._plain_walks([n for n in prepared if not isinstance(self.prepared.get(n), str)], shared=True)
        for name in filter(self.grid, self.given.methods):
            for seed in range(1, self.given.seeds):
                by_weight = defaultdict(list)
                for kept in self.given.kept:
                    by_weight[self.weight(name, kept)].append(self.job(name, kept, seed))
                for together in by_weight.values():
                    yield self._walk(together, sparse=True)

    def _plain_walks(self, methods: list[str], *, shared: bool) -> Iterator[Task]:
        """All seeds of methods without a penalty, seed after seed: the next method then finds the sparse stages."""
        for number, name in enumerate(methods):
            for seed in range(self.given.seeds):
                together = [Job(method=name, weight=0.0, kept=kept, seed=seed) for kept in self.given.kept]
                yield self._walk(together, sparse=number == 0 and not shared)

    def test_tasks(self) -> Iterator[Task]:
        for job in self._measurable(self.given.methods):
            key = self.walked[job].stages[-1] if job in self.walked else ""
            label = f"{job.method} at {job.kept}, seed {job.seed}: test"
            # all of the test split twice, forward alone, is about half an epoch
            seconds = self.epoch * (0.5 * jobs.step_share(job.kept) + REPAIR_COST[1] * _repairs(job.method))
            yield self._task(label, seconds, jobs.measure, (job, key), _put(self.tested, job))

    def control_tasks(self) -> Iterator[Task]:
        """Small ones first: they take longest, and nothing is left for one process alone at the end."""
        for job in sorted(self._measurable(self.given.scratch), key=lambda job: job.kept):
            stages = self.walked[job].stages if job in self.walked else ()
            label = f"scratch, {job.method} at {job.kept}, seed {job.seed}"
            seconds = jobs.control_epochs(self.arena.epochs, job.kept) * self.epoch
            yield self._task(label, seconds, jobs.scratch, (job, stages), _put(self.controls, job))

    def _measurable(self, methods: Iterable[str]) -> list[Job]:
        given = self.given
        found = [self.job(name, k, seed) for seed in range(given.seeds) for k in given.kept for name in methods]
        return [job for job in found if self.failure(job) is None]

    def _walk(self, together: list[Job], *, sparse: bool) -> Task:
        def keep(found: list[Walked]) -> None:
            self.walked.update(zip(together, found, strict=True))

        one = together[0]
        label = f"{one.method}{f' {one.weight:g}' if one.weight else ''}, seed {one.seed}"
        seconds = self.training(sparse=sparse, penalised=one.weight > 0, recovered=[job.kept for job in together])
        seconds += self.epoch * REPAIR_COST[0] * len(together) * _repairs(one.method)
        return self._task(label, seconds, jobs.walk, (together,), keep)

    def _task(
        self,
        label: str,
        seconds: float,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        keep: Callable[[Any], None],
    ) -> Task:
        name = f"{self.arena.name}: {label}"
        return Task(label=name, seconds=seconds, function=function, arguments=(self.setup, *arguments), keep=keep)

    def training(
        self, *, dense: bool = False, sparse: bool = False, penalised: bool = False, recovered: Iterable[float] = ()
    ) -> float:
        """Seconds of a core for the stages that are not shared; every iteration as if it were the only one."""
        whole = self.arena.epochs[0] * dense
        whole += self.arena.epochs[1] * sparse * (PENALTY_COST if penalised else 1.0)
        return (
            self.epoch * (whole + self.arena.epochs[2] * sum(map(jobs.step_share, recovered))) * self.given.iterations
        )


def _repairs(method: str) -> bool:
    return METHODS[method].repair_ is not None


def _put(where: dict[Any, Any], key: Any) -> Callable[[Any], None]:
    return lambda value: where.__setitem__(key, value)


# -- who does it ------------------------------------------------------------------------------------------------------


class Crew:
    """Worker processes, or this one alone; tells on stderr what is done and about how long the rest takes."""

    def __init__(self, pool: ProcessPoolExecutor | None, processes: int, hours: float | None) -> None:
        self.pool, self.processes = pool, processes
        self.deadline = None if hours is None else time.monotonic() + 3600 * hours
        self.rest = 0.0  # seconds of a core, as estimated
        self.taken, self.expected = 0.0, 0.0  # of what was computed, not looked up
        self.done = 0

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def do(self, tasks: list[Task]) -> bool:
        """Whether all were done before the budget was spent; what was begun is ended."""
        if self.pool is None:
            for task in tasks:
                if self.late():
                    return False
                self._note(task, jobs.timed(task.function, *task.arguments))
            return True
        futures = {self.pool.submit(jobs.timed, task.function, *task.arguments): task for task in tasks}
        return all([self._ended(future, task, futures) for future, task in _in_turn(futures)])

    def _ended(self, future: "Future[Done]", task: Task, futures: Iterable["Future[Done]"]) -> bool:
        if self.late():
            for other in futures:
                other.cancel()
        if future.cancelled():
            return False
        self._note(task, future.result())
        return True

    def _note(self, task: Task, done: Done) -> None:
        task.keep(done.value)
        self.done += 1
        self.rest = max(0.0, self.rest - task.seconds)
        if not done.computed:
            return
        self.taken, self.expected = self.taken + done.seconds, self.expected + task.seconds
        left = self.rest * self.taken / self.expected / self.processes
        print(
            f"[{self.done}] {task.label}: {done.seconds:.0f} s; about {_hours(left)} left", file=sys.stderr, flush=True
        )


def _in_turn(futures: dict["Future[Done]", Task]) -> Iterator[tuple["Future[Done]", Task]]:
    for future in as_completed(futures):
        yield future, futures[future]


def _hours(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def compare(crew: Crew, courses: list[Course]) -> bool:
    """All phases of all arenas; whether they came to their end."""
    for number in range(len(courses[0].phases())):
        ahead = [[list(phase()) for phase in course.phases()[number:]] for course in courses]
        crew.rest = sum(task.seconds for phases in ahead for tasks in phases for task in tasks)
        if not crew.do([task for phases in ahead for task in phases[0]]):
            return False
    return True


# -- the command ------------------------------------------------------------------------------------------------------


def parsed() -> argparse.Namespace:
    """The command line, with what the size gives filled in. `methods` is all there is, unless --only says less."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="tiny, on digits")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="all of the data, on a GPU")
    parser.add_argument("--only", nargs="+", metavar="METHOD", choices=list(METHODS), help="not every method")
    parser.add_argument("--networks", nargs="+", choices=["cifarnet", "resnet20"], help="not both")
    parser.add_argument(
        "--scratch",
        nargs="*",
        default=["oicsr"],
        metavar="METHOD",
        choices=list(METHODS),
        help="widths of the controls",
    )
    parser.add_argument("--kept", nargs="+", type=float, default=list(KEPT), help="flops_kept of the final models")
    parser.add_argument("--grid", nargs="+", type=float, default=list(GRID), help="weights that are tried")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--iterations", type=int, default=1, help="cuts, with sparse and recovery training each")
    parser.add_argument("--group-cap", type=float, help="largest share of a group that a cut may take")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--work", default="results/side_by_side", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--budget-hours", type=float, help="begin nothing more after this; the same command goes on")
    parser.add_argument("--estimate", action="store_true", help="say what it takes on this machine, and end")
    given = parser.parse_args()
    given.size = given.size or "cores"
    gpu = given.size == "full"
    given.device = given.device or ("cuda" if gpu else "cpu")
    given.processes = given.processes or (6 if gpu else 2)
    given.seeds = given.seeds or (2 if given.size == "quick" else 3)
    given.methods = given.only or list(METHODS)
    given.scratch = [name for name in given.scratch if name in given.methods]
    return given


def main() -> int:
    """Returns the exit code: 1 if the budget was spent before the end."""
    given = parsed()
    arenas = [arena for arena in SIZES[given.size] if not given.networks or arena.name in given.networks]
    try:
        for arena in arenas:
            load(arena.dataset, root=given.data_root)
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    courses = [Course(arena=arena, given=given) for arena in arenas]
    for line in estimate_table(courses):
        print(line, file=sys.stdout if given.estimate else sys.stderr, flush=True)
    if given.estimate:
        return 0
    with ExitStack() as stack:
        pool = None
        if given.processes > 1:  # a fork would inherit torch's threads in whatever state they are
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(given.processes, context, initializer=jobs.end_with_parent))
        ended = compare(Crew(pool, given.processes, given.budget_hours), courses)
    for course in courses:
        for line in (*table(course), *weights_table(course)):
            print(line)
    if not ended:
        print("The budget was spent before the end; the same command goes on from here.", file=sys.stderr)
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(main())
