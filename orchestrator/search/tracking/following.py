"""Keeps trackers up to date, each in a thread of its own: a server that is slow or away holds no search up.

What a tracker lacks is taken from the study's store: the trials that ended while it was away, or before it was asked
for. So a launch that was killed, or whose tracker failed, is made up for by the next one.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from orchestrator.record import Point, TrialRecord, TrialSpec
from orchestrator.search.space import Limits
from orchestrator.search.tracking.interface import About, Ended, Known, Standing, Tracker
from orchestrator.search.worth import Found, Front
from orchestrator.store import StageStore

PATIENCE_SECONDS = 60.0  # at the end of a search, for a tracker that gets nothing more done
HASTE_SECONDS = 5.0  # in all, when a search was interrupted
LONGEST = 200  # characters of a library's complaint
MORE = "the next launch with it adds what is missing"

Act = Callable[[], None]


class Following:
    """The trackers of one launch. Entered, they can be fed; left, they are given time to write what they were told."""

    def __init__(self, trackers: Sequence[Tracker] = (), say: Callable[[str], None] = lambda text: None) -> None:
        self._feeds = [_Feed(tracker, say) for tracker in trackers]
        self._say = say
        self._front = Front(Limits())
        self._costs: dict[str, int] = {}
        self._indices: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for feed in self._feeds:
            feed.finish()
        deadline = time.monotonic() + HASTE_SECONDS
        for feed in self._feeds:
            feed.wait(deadline if error is not None else None)
            if feed.problem is not None:
                self._say(f"{feed.tracker.name}: {feed.problem}; {MORE}")

    def begin(self, about: About, store: StageStore) -> None:
        """Start the threads, with all that the store holds to begin with."""
        if not self._feeds:
            return
        for feed in self._feeds:
            self._say(f"{feed.tracker.name}; {feed.tracker.look}")
            feed.begin(about, store)
        for trial, points, costs in _history(store):
            self.ended(trial, points, costs)

    def point(self, index: int, spec: TrialSpec, point: Point) -> None:
        """A running trial has another point, or tells of one again."""
        for feed in self._feeds:
            feed.point(index, spec, point)

    def ended(self, trial: TrialRecord, points: Sequence[Point], costs: Mapping[str, int]) -> None:
        """A trial has ended. costs: the train_flops of the stages that it passed, by key."""
        if not self._feeds:
            return
        ended = Ended.of(trial, tuple(points))
        self._indices.add(trial.index)
        self._costs.update(costs)
        for point in points:
            self._front.add(Found.of(point))
        standing = Standing(
            trials=len(self._indices),
            train_flops=sum(self._costs.values()),
            hypervolume=self._front.worth,
            frontier_size=len(self._front.steps()),
            created=trial.created,
        )
        for feed in self._feeds:
            feed.ended(ended, standing)


class _Feed:
    """One tracker and its thread. What it holds already it is not told again; after an error it is told nothing."""

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.tracker = tracker
        self._say = say
        self._known = Known()
        self._fault: str | None = None
        self._acts: queue.SimpleQueue[Act | None] = queue.SimpleQueue()
        self._done = 0
        self._thread: threading.Thread | None = None

    @property
    def problem(self) -> str | None:
        """What the user should know at the end; None if all was written."""
        if self._fault is not None:
            return f"stopped after an error ({self._fault})"
        if self._thread is not None and self._thread.is_alive():
            return f"has not written everything: {self._acts.qsize() + 1} things were left"
        return None

    def begin(self, about: About, store: StageStore) -> None:
        self._thread = threading.Thread(target=self._run, args=(about, store), name=self.tracker.name, daemon=True)
        self._thread.start()

    def point(self, index: int, spec: TrialSpec, point: Point) -> None:
        self._acts.put(lambda: self._tell_point(index, spec, point))

    def ended(self, ended: Ended, standing: Standing) -> None:
        self._acts.put(lambda: self._tell_end(ended, standing))

    def finish(self) -> None:
        self._acts.put(None)

    def wait(self, deadline: float | None) -> None:
        """Until the thread has ended, or the deadline; without one, until it gets nothing more done."""
        if self._thread is None:
            return
        if deadline is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
            return
        before = -1
        while self._thread.is_alive() and before != self._done:
            before = self._done
            self._thread.join(PATIENCE_SECONDS)

    def _run(self, about: About, store: StageStore) -> None:
        try:
            self._known = self.tracker.begin(about, store)
            for act in iter(self._acts.get, None):
                act()
                self._done += 1
            self.tracker.close()
        except Exception as error:  # of any library's kind: no tracker is worth a search
            self._fault = _one_line(error)
            self._say(f"{self.tracker.name}: {self._fault}; the search goes on without it")

    def _tell_point(self, index: int, spec: TrialSpec, point: Point) -> None:
        there = self._known.iterations.setdefault(index, set())
        if index not in self._known.failed and point.iteration not in there:
            self.tracker.point(index, spec, point)
            there.add(point.iteration)

    def _tell_end(self, ended: Ended, standing: Standing) -> None:
        failed = ended.status == "failed"
        if self._known.failed.get(ended.index) != failed:
            self._known.failed.pop(ended.index, None)
            for point in ended.points:
                self._tell_point(ended.index, ended.spec, point)
            self.tracker.ended(ended)
            self._known.failed[ended.index] = failed
        if standing.trials > self._known.standings:
            self.tracker.standing(standing)
            self._known.standings = standing.trials


def _history(store: StageStore) -> Iterable[tuple[TrialRecord, list[Point], dict[str, int]]]:
    """The trials that have ended, in the order in which they did, with their points and what their stages cost."""
    trials = sorted(store.trials(), key=lambda trial: (trial.created, trial.index))
    stages = {stage.key: stage for stage in store.stages()} if trials else {}
    points = {point.key: point for point in store.points()} if trials else {}
    for trial in trials:
        costs = {key: stages[key].cost.train_flops for key in trial.stages if key in stages}
        yield trial, [points[key] for key in trial.stages if key in points], costs


def _one_line(error: Exception) -> str:
    """A library's complaint, which may be a page long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
