"""One command to start, resume and extend a search: what was finished is looked up, the rest is run.

launch(Path("search_spaces/digits_cifarnet.toml"))
"""

import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.collector import Study, frontier
from orchestrator.collector.amounts import format_flops
from orchestrator.files import Place, Uri, located
from orchestrator.record import InvalidInput, Outcome, Point, Record, TrialSpec, canonical_json
from orchestrator.search.binding import STUDY_FILE, bind
from orchestrator.search.daemons import RayLost, outliving, watched
from orchestrator.search.dimensions import Choice
from orchestrator.search.interrupts import Interrupts, interruptible
from orchestrator.search.prior import REACHED, Prior, found_in, trials_to
from orchestrator.search.progress import Counts, Progress, frontier_table, say
from orchestrator.search.proposals import Proposals
from orchestrator.search.space import CORNERS, Budget, Resources, SearchSpace, check_section, named_in
from orchestrator.search.space_methods import notes_on
from orchestrator.search.tracking import About, Following, Tracker
from orchestrator.search.worth import Front
from orchestrator.store import StageStore

JOURNAL_FILE = "journal.log"
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0" makes Ray bind 127.0.0.1 alone; no argument of ray.init does
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own would end an interrupted search with exit code 0
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints whatever its verbosity
    # With it Ray lets its driver in only when the first workers have come up, and for ever waits for one that died.
    "RAY_prestart_worker_first_driver": "0",
}
BUILT_IN = ("torchvision:", "timm:", "imagefolder:")  # names with a colon that are no function of the user's
CHECKS = 64  # combinations of choices that are checked before Ray starts

RunTrial = Callable[..., Outcome]
CheckTrial = Callable[[TrialSpec], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a launch ended. Trials are those of the whole study; stages those of this launch."""

    study: Place
    trials: int
    target: int
    failures: Mapping[int, str]
    exhausted: bool
    computed: int
    reused: int


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """What does not change during one launch."""

    space: SearchSpace
    store: StageStore
    console: Console
    address: str | None
    run_trial: RunTrial
    following: Following
    dashboard: bool = False
    prior: Prior | None = None
    damaged: frozenset[str] = frozenset()  # stages that were moved aside before this launch
    forgiven: frozenset[str] = frozenset()  # timeouts of earlier launches, by their moment: see TimeLimit


def launch(
    space_file: str | Path | SearchSpace,
    *,
    prior: Prior | None = None,
    trials: int | None = None,
    train_flops: str | int | None = None,
    hours: float | None = None,
    storage: str | Path | Uri = "results",
    address: str | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    trackers: Sequence[Tracker] = (),
    dashboard: bool = False,
    console: Console | None = None,
    run_trial: RunTrial | None = None,
    check_trial: CheckTrial | None = None,
) -> Summary:
    """Run the search of a space file until its budget is used up. The study lies in `storage`/<its name>;
    `storage` is a folder or a URI such as s3://bucket/studies. In place of the file the space itself may be given.

    A new study begins with `prior`, if there is one, and has it and its space file in its folder from then on.
    The same call starts, resumes and extends a study; one process at a time may drive it. `address` is that of a Ray
    cluster; without one Ray is started on this machine, on the loopback interface alone. `run_trial` and `check_trial`
    are trial.run and trial.check unless simulations give their own; what a check returns is printed as a note.
    `trackers`, by make_trackers, are told of all that the study holds and of what is found; `dashboard` is Ray's.
    Raises InvalidInput for anything that is wrong with the space, the study or the machine; SIGINT and SIGTERM raise
    SystemExit, and the next launch goes on.
    """
    space = _overridden(
        space_file if isinstance(space_file, SearchSpace) else SearchSpace.read(space_file),
        {"trials": trials, "train_flops": train_flops, "hours": hours},
        {"cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial},
    )
    check_address(address)
    console = console or Console()

    def on_interrupt(number: signal.Signals) -> None:
        say(console, f"stopped by {number.name}; the same command goes on from here")

    with interruptible(on_interrupt) as interrupts:
        if run_trial is None or check_trial is None:
            from orchestrator import trial

            run_trial, check_trial = run_trial or trial.run, check_trial or trial.check
        with named_in(space.file) if prior is None else nullcontext():  # a rerun's new space is in no file yet
            checked = [note for spec in _representatives(space) for note in check_trial(spec)]
        for note in dict.fromkeys((*notes_on(space.methods, space.dimensions), *checked)):
            say(console, f"note: {note}")
        store = StageStore(located(storage) / space.name)
        following = Following(trackers, partial(say, console))
        this = _Launch(
            space=space,
            store=store,
            console=console,
            address=address,
            run_trial=run_trial,
            following=following,
            dashboard=dashboard,
            prior=prior,
        )
        return _drive(this, interrupts)


def _drive(this: _Launch, interrupts: Interrupts) -> Summary:
    with this.store.exclusive("driver"), this.following:
        damaged = this.store.replaced()
        this = replace(this, prior=bind(this.store, this.space, this.prior))
        study = this.store.read_json(STUDY_FILE)
        this.following.begin(About.of(this.space.name, study, tuple(this.space.dimensions)), this.store)
        hung = (failure for failure in this.store.failures() if failure.reason == "timed_out")
        this = replace(this, forgiven=frozenset(failure.created for failure in hung), damaged=frozenset(damaged))
        attempts: list[Counts] = []
        try:
            summary = outliving(lambda: _attempt(this, interrupts, attempts), lambda: len(this.store.keys()))
        except RayLost as lost:
            say(this.console, f"{lost}; the same command goes on from here")
            raise SystemExit(1) from None
        this.store.sweep()
        return summary


def _attempt(this: _Launch, interrupts: Interrupts, attempts: list[Counts]) -> Summary:
    """Up to the end of the search, or of Ray: the journal then hands out again what was under way."""
    proposals = Proposals(this.space, this.store.root / JOURNAL_FILE, prior=this.prior)
    counts = Counts(
        target=proposals.target,
        done=proposals.finished,
        failed=len(proposals.failures),
        stopped=len(proposals.stops),
        left=proposals.left,
        front=Front(this.space.limits),
        computed={key for attempt in attempts for key in attempt.computed},
        reused=sum(attempt.reused for attempt in attempts[-1:]),
    )
    for point in this.store.points():
        counts.add(point)
    attempts.append(counts)
    _announce(this, proposals)
    if not proposals.over:
        _run(this, proposals, counts, interrupts)
    for damage in this.store.damaged():
        if damage.key not in this.damaged:
            say(this.console, f"a damaged stage was computed again: {damage}")
    return _conclude(this, proposals, counts)


def _run(this: _Launch, proposals: Proposals, counts: Counts, interrupts: Interrupts) -> None:
    space = this.space
    parallel = space.proposals.parallel
    ready = attended(
        this.address, space.resources, this.console, interrupts, parallel=parallel, dashboard=this.dashboard
    )
    with ready:
        from orchestrator.search import session

        own = tuple(sorted(references(_representatives(space))))
        job = session.Job.of(this.run_trial, this.store.root.absolute(), space, own, this.forgiven)
        with Progress(this.console, space.name, counts, varied=space.dimensions) as progress:
            session.run(proposals, this.store, job, progress, following=this.following)
    if proposals.finished < proposals.target and not proposals.time_is_up:  # Tune ends early, and well, at SIGUSR1
        say(this.console, "stopped early; the same command goes on from here")
        raise SystemExit(1)


@contextmanager
def attended(
    address: str | None,
    resources: Resources,
    console: Console,
    interrupts: Interrupts,
    *,
    parallel: int,
    dashboard: bool = False,
) -> Iterator[None]:
    """A block that has Ray, with the search's own handling of signals; left through RayLost where Ray is lost.

    parallel: how many trials may be handed out before a worker is free; dashboard: whether Ray's is started. Raises
    InvalidInput as session.connected does.
    """
    _set_environment(address)
    # Tune's own limit of one for a searcher of one's own starts workers one by one, and stops the one that is starting
    # whenever another falls idle: trials of seconds then run one at a time on any cluster.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(parallel)
    from orchestrator.search import session

    def on_loss(what: str) -> None:
        say(console, f"{what}; nothing finished is lost, going on with a new Ray")

    with session.connected(address, resources, partial(say, console), dashboard=dashboard):
        interrupts.install()
        with watched(interrupts, on_loss):
            yield


def _overridden(space: SearchSpace, budget: Mapping[str, Any], resources: Mapping[str, Any]) -> SearchSpace:
    """The space with what the command line says in place of what the file says."""
    return space.model_copy(
        update={
            "budget": check_section(Budget, _given(space.budget, budget), "budget"),
            "resources": check_section(Resources, _given(space.resources, resources), "resources"),
        }
    )


def _given(section: Record, values: Mapping[str, Any]) -> dict[str, Any]:
    return section.model_dump() | {name: value for name, value in values.items() if value is not None}


def check_address(address: str | None) -> None:
    if address is not None and "://" in address:
        raise InvalidInput(
            f"--address is {address}; it must be host:port or auto: run the command on a machine of the cluster, "
            "for example by `ray job submit`"
        )


def _representatives(space: SearchSpace) -> Iterator[TrialSpec]:
    """One trial for each combination of choices: a model or data set is wrong whatever the numbers are."""
    options = [
        dimension.choices if isinstance(dimension, Choice) else dimension.ends()[:1]
        for dimension in space.dimensions.values()
    ]
    specs = (
        space.spec(dict(zip(space.dimensions, values, strict=True))) for values in islice(product(*options), CORNERS)
    )
    different = {canonical_json(spec): spec for spec in specs}
    yield from islice(different.values(), CHECKS)


def references(specs: Iterable[TrialSpec]) -> set[str]:
    """The user's own functions that these trials call."""
    names = {name for spec in specs for name in (spec.model, spec.dataset)}
    return {name for name in names if ":" in name and not name.startswith(BUILT_IN)}


def _set_environment(address: str | None) -> None:
    """Settings that Ray reads when it is imported, and that its processes inherit."""
    if address is None:
        if "ray" in sys.modules and os.environ.get(LOOPBACK) != "0":
            raise InvalidInput(
                f"ray was imported before the search; set {LOOPBACK}=0 first, or it listens to the network"
            )
        os.environ[LOOPBACK] = "0"
    os.environ.update(ENVIRONMENT)


def _announce(this: _Launch, proposals: Proposals) -> None:
    done, target = proposals.finished, proposals.target
    place = f"{this.space.name} in {this.store.root}"
    if proposals.over:
        more = "the space holds no other trial" if proposals.exhausted else _larger(proposals, this.space.budget)
        say(this.console, f"nothing to do for {place}: {done} trials are done; {more}")
    else:
        say(this.console, f"search {place}: {target} trials" + (f", {done} of them done" if done else ""))
        if this.prior is not None:
            say(this.console, _taken_over(this.prior))
        say(this.console, f"budget left: {proposals.left}")


def _remarks(study: Study) -> Iterator[str]:
    """What did not go the usual way in the study's stages."""
    for one in study.frozen().itertuples():
        yield f"group {one.group} ({one.channels} channels) left whole in {_stages(one.stages)}: {one.reason}"
    for one in study.unrepaired().itertuples():
        yield f"layer {one.layer} not repaired in {_stages(one.stages)}: {one.reason}"


def _stages(count: int) -> str:
    return f"{count} stage" + ("s" if count > 1 else "")


def _larger(proposals: Proposals, budget: Budget) -> str:
    """Which budget is used up, and how to go on."""
    if proposals.time_is_up and budget.hours is not None:
        option = f"--hours {2 * budget.hours:g}"
    elif proposals.finished >= budget.trials:
        option = f"--trials {proposals.finished + 4}"
    else:
        assert budget.train_flops is not None
        option = f"--train-flops {format_flops(2 * budget.train_flops).replace(' ', '')}"
    return f"the budget is used up ({proposals.spent}); {option} goes on"


def _conclude(this: _Launch, proposals: Proposals, counts: Counts) -> Summary:
    points = list(this.store.points())
    if points:
        this.console.print(frontier_table(points))
    failures = proposals.failures
    say(
        this.console,
        f"{proposals.finished} trials done, {len(failures)} failed; {len(points)} points; in this launch "
        f"{len(counts.computed)} stages computed, {counts.reused} reused",
    )
    if proposals.stops:
        say(this.console, f"{len(proposals.stops)} trials stopped early, what was left of them could not matter")
    for index, reason in failures.items():
        say(this.console, f"trial {index} failed: {reason}")
    for remark in _remarks(Study(this.store.root)):
        say(this.console, remark)
    if proposals.exhausted:
        say(this.console, "the space holds no other trial")
    elif proposals.finished < this.space.budget.trials and proposals.spent:
        say(this.console, _larger(proposals, this.space.budget))
    if this.prior is not None:
        say(this.console, _taken_over(this.prior))
        say(this.console, _how_much_sooner(this, this.prior, proposals.finished))
    for command in _next_commands(this.store, points):
        say(this.console, command)
    return Summary(
        study=this.store.root,
        trials=proposals.finished,
        target=proposals.target,
        failures=failures,
        exhausted=proposals.exhausted,
        computed=len(counts.computed),
        reused=counts.reused,
    )


def _taken_over(prior: Prior) -> str:
    first, observations = len(prior.first), len(prior.observations)
    return f"from {prior.study} ({prior.model} on {prior.dataset}): {first} settings first, {observations} observations"


def _how_much_sooner(this: _Launch, prior: Prior, trials: int) -> str:
    tried = [found for _, found in found_in(Study(this.store.root))]
    here = trials_to(REACHED, tried, this.space)
    return (
        f"{REACHED:.0%} of its hypervolume this study had with trial {here} of {trials}, {prior.study} with trial "
        f"{prior.trials_to_reach} of {prior.trials}"
    )


def _next_commands(store: StageStore, points: Sequence[Point]) -> list[str]:
    """What to type next, with a budget that a point of the frontier meets."""
    if not points:
        return []
    front = frontier(points)
    within = [point for point in front if point.flops_kept <= 0.5] or front[:1]
    budget = format_flops(_round_up(within[-1].flops)).replace(" ", "")
    name = store.root.name if store.root.parent == Path("results") else str(store.root)
    study, output = shlex.quote(name), shlex.quote(f"{store.root.name}_best")
    return [
        f"next: orchestrator front {study}",
        f"      orchestrator best {study} --max-flops {budget} --output {output}",
    ]


def _round_up(flops: int) -> int:
    """To two digits."""
    unit: int = 10 ** max(0, len(str(flops)) - 2)
    return math.ceil(flops / unit) * unit
