"""How a search goes, for the one who started it: a live table on a terminal, otherwise a line for each trial."""

import json
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.collector import frontier
from orchestrator.collector.amounts import format_flops
from orchestrator.record import Point
from orchestrator.search.space import Limits
from orchestrator.search.worth import Found, Front

BUDGETS = (0.75, 0.5, 0.25)  # of flops_kept, where the best accuracy is shown
NAMED = ("model", "dataset", "method")  # what a trial's line names where trials differ in it


@dataclass(kw_only=True)
class Counts:
    """Where a search stands. `points` are the keys of all of the study; `front` their frontier within the limits."""

    target: int
    done: int = 0
    failed: int = 0
    running: set[int] = field(default_factory=set)
    points: set[str] = field(default_factory=set)
    front: Front = field(default_factory=lambda: Front(Limits()))
    computed: set[str] = field(default_factory=set)
    reused: int = 0
    stopped: int = 0
    left: str = ""  # of the budget, in words

    def add(self, point: Point) -> None:
        """Count a point, once."""
        if point.key not in self.points:
            self.points.add(point.key)
            self.front.add(Found.of(point))

    def best(self) -> dict[float, float | None]:
        """The best accuracy within each budget of flops_kept; None where no point is within it."""
        found = {budget: self.front.accuracy_within(budget) for budget in BUDGETS}
        return {budget: accuracy if accuracy >= 0 else None for budget, accuracy in found.items()}


class Progress:
    """Shows a search while it is entered. Told what happens by the driver; may be looked at by any thread.

    varied: the fields in which trials differ.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        counts: Counts,
        *,
        varied: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = counts
        self._console = console
        self._name = name
        self._clock = clock
        self._begun = clock()
        self._before = counts.done
        self._named = [field for field in NAMED if field in varied]
        self._started_at: dict[int, float] = {}
        self._labels: dict[int, str] = {}
        self._trial_points: dict[int, set[str]] = {}
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self.table, refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def started(self, index: int, spec: str = "{}") -> None:
        """spec: the trial's TrialSpec as JSON."""
        fields = json.loads(spec)
        with self._lock:
            self.counts.running.add(index)
            self._started_at.setdefault(index, self._clock())
            self._labels[index] = ", ".join(str(fields[name]) for name in self._named)

    def found(self, index: int, point: Point) -> None:
        with self._lock:
            self.counts.add(point)
            self._trial_points.setdefault(index, set()).add(point.key)

    def ended(
        self,
        index: int,
        *,
        target: int,
        left: str = "",
        failure: str | None = None,
        stopped: str | None = None,
        computed: Sequence[str] = (),
        reused: int = 0,
    ) -> None:
        with self._lock:
            self.counts.running.discard(index)
            self.counts.done += 1
            self.counts.failed += failure is not None
            self.counts.stopped += stopped is not None
            self.counts.left = left
            self.counts.computed.update(computed)
            self.counts.reused += reused
            self.counts.target = target
        if self._live is None:
            say(self._console, self._line(index, failure, len(computed)))
            if stopped is not None:
                say(self._console, f"trial {index} stopped {stopped}")

    def seconds_left(self) -> float | None:
        """What the trials of this launch took so far, carried forward; None before the first has ended."""
        ended = self.counts.done - self._before
        if not ended:
            return None
        return (self._clock() - self._begun) / ended * max(0, self.counts.target - self.counts.done)

    def table(self) -> Table:
        """The live view."""
        with self._lock:
            counts = self.counts
            left = self.seconds_left()
            rows = [
                (
                    "trials",
                    f"{counts.done} of {counts.target} done, {len(counts.running)} running, {counts.failed} failed, "
                    f"{counts.stopped} stopped early",
                ),
                ("budget left", counts.left or "-"),
                ("points", f"{len(counts.points)}"),
                ("hypervolume", f"{counts.front.worth:.4f}"),
                *((f"accuracy at flops_kept {budget:g}", accuracy(best)) for budget, best in counts.best().items()),
                ("elapsed", duration(self._clock() - self._begun)),
                ("left", "-" if left is None else f"about {duration(left)}"),
            ]
        table = Table(title=f"search {self._name}", show_header=False, title_justify="left", min_width=48)
        for name, value in rows:
            table.add_row(name, value)
        return table

    def _line(self, index: int, failure: str | None, computed: int) -> str:
        counts = self.counts
        place = f"[{counts.done}/{counts.target}] {duration(self._clock() - self._begun)}  trial {index}"
        if label := self._labels.get(index):
            place += f" ({label})"
        if failure is not None:
            return f"{place} failed: {failure}"
        took = self._clock() - self._started_at.get(index, self._begun)
        return (
            f"{place}: {len(self._trial_points.get(index, ()))} points, {computed} new stages, {took:.1f} s; "
            f"hypervolume {counts.front.worth:.4f}"
        )


def say(console: Console, text: str) -> None:
    """One line as it is: not wrapped, and with nothing in it taken for markup."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def frontier_table(points: Sequence[Point]) -> Table:
    """The frontier, from the cheapest model to the most accurate one."""
    title = "frontier: validation accuracy; flops are multiply-accumulates at batch 1"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    several = len({point.method for point in points if point.method}) > 1
    for column in ("flops", "flops_kept", "params", "accuracy", "after cut", "weight", "ratio", "iteration"):
        table.add_column(column, justify="right", no_wrap=True)
    if several:
        table.add_column("method", no_wrap=True)
    for point in frontier(points):
        weight, ratio = point.regularization_weight, point.pruning_ratio
        table.add_row(
            format_flops(point.flops),
            f"{point.flops_kept:.3f}",
            format_flops(point.params),
            accuracy(point.accuracy),
            accuracy(point.accuracy_after_cut),
            "-" if weight is None else f"{weight:.3g}",
            "-" if ratio is None else f"{ratio:.3g}",
            str(point.iteration),
            *([point.method or "-"] if several else []),
        )
    return table


def accuracy(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
