"""What the one who started a search gets to see."""

import io

import pytest
from fake_trial import points_of
from rich.console import Console

from orchestrator.record import TrialSpec
from orchestrator.search.progress import Counts, Progress, frontier_table
from orchestrator.search.space import SearchSpace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def spec(space: SearchSpace) -> TrialSpec:
    return space.spec({"regularization_weight": 0.01, "pruning_ratio": 0.5, "iterations": 4})


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def screen(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, no_color=True)


def test_without_a_terminal_each_trial_is_one_line(spec: TrialSpec) -> None:
    console, clock = screen(terminal=False), Clock()
    with Progress(console, "small", Counts(target=3, done=1), clock=clock) as progress:
        progress.started(7)
        for point in points_of(spec):
            progress.found(7, point)
            progress.found(7, point)  # a worker that died reports its points anew
        clock.now = 90
        progress.ended(7, target=3, computed=["a", "b"], reused=1)
        progress.ended(8, target=3, failure="diverged: the loss is NaN [at] epoch 3")
    first, second = text_of(console).splitlines()
    assert first.startswith("[2/3] 0:01:30  trial 7: 5 points, 2 new stages, 90.0 s; hypervolume 0.")
    assert second == "[3/3] 0:01:30  trial 8 failed: diverged: the loss is NaN [at] epoch 3"


def test_a_line_names_the_method_where_trials_differ_in_it(spec: TrialSpec) -> None:
    console = screen(terminal=False)
    with Progress(console, "small", Counts(target=2), varied=["pruning_ratio", "method"], clock=Clock()) as progress:
        progress.started(0, spec.model_dump_json())
        progress.started(1, spec.model_copy(update={"method": "slimming"}).model_dump_json())
        progress.ended(0, target=2)
        progress.ended(1, target=2, failure="diverged: the loss is NaN")
    first, second = text_of(console).splitlines()
    assert first.startswith("[1/2] 0:00:00  trial 0 (oicsr): 0 points")
    assert second == "[2/2] 0:00:00  trial 1 (slimming) failed: diverged: the loss is NaN"


def test_on_a_terminal_there_is_a_live_table(spec: TrialSpec) -> None:
    console, clock = screen(terminal=True), Clock()
    counts = Counts(target=4, done=1, failed=1)
    with Progress(console, "small", counts, clock=clock) as progress:
        progress.started(1)
        progress.started(2)
        for point in points_of(spec):
            progress.found(1, point)
        clock.now = 60
        progress.ended(1, target=4)
    shown = text_of(console)
    plain = screen(terminal=False)
    plain.print(progress.table())
    for words in (
        "2 of 4 done, 1 running, 1 failed",
        "hypervolume",
        "accuracy at flops_kept 0.25",
        "about 0:02:00",
    ):
        assert words in text_of(plain)
    assert "search small" in shown
    assert "trial 1:" not in shown


def test_the_time_left_is_unknown_before_the_first_trial_has_ended() -> None:
    progress = Progress(screen(terminal=False), "small", Counts(target=4))
    assert progress.seconds_left() is None


def test_a_target_that_shrinks_leaves_nothing_to_do() -> None:
    clock = Clock()
    progress = Progress(screen(terminal=False), "small", Counts(target=9), clock=clock)
    clock.now = 10
    progress.ended(0, target=1)
    assert progress.seconds_left() == 0


def test_the_frontier_fits_a_narrow_terminal(spec: TrialSpec) -> None:
    console = screen(terminal=False)
    console.print(frontier_table(points_of(spec)))
    title, header, *rows = text_of(console).splitlines()
    assert "multiply-accumulates" in title
    assert header.split() == [
        "flops",
        "flops_kept",
        "params",
        "accuracy",
        "after",
        "cut",
        "weight",
        "ratio",
        "iteration",
    ]
    assert len(rows) == 5
    assert rows[0].split()[-1] == "4"
