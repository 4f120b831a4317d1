"""The order of asks and tells: whatever finishes first, whenever the driver is killed, the study is the same."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from fake_trial import TRAIN_FLOPS, points_of, stages_of

from orchestrator.collector.amounts import format_flops
from orchestrator.files import Place
from orchestrator.record import InvalidInput, Point, TrialSpec
from orchestrator.search import journal, proposals
from orchestrator.search.prior import Prior
from orchestrator.search.proposals import Proposal, Proposals, Result
from orchestrator.search.space import Budget, SearchSpace

Told = list[tuple[dict[str, Any], Any, Any, Any]]


def opened(space: SearchSpace, path: Place, trials: int, *, prior: Prior | None = None, **more: Any) -> Proposals:
    return Proposals(space, path, budget=Budget(trials=trials, **more), prior=prior)


def run(under_way: Proposals, chance: random.Random | None = None, *, failing: tuple[int, ...] = ()) -> list[TrialSpec]:
    """Run proposals to the end, finishing them in a random order; the specs that were run, in the order they have."""
    running: list[Proposal] = []
    ran: list[Proposal] = []
    while True:
        while (proposal := under_way.next()) is not None:
            running.append(proposal)
            ran.append(proposal)
        if not running:
            assert under_way.over
            return [proposal.spec for proposal in sorted(ran, key=lambda proposal: proposal.index)]
        done = running.pop(chance.randrange(len(running)) if chance else 0)
        end(under_way, done, failing=done.index in failing)


def end(under_way: Proposals, proposal: Proposal, *, failing: bool = False) -> None:
    points = points_of(proposal.spec)
    if failing:
        result = Result(points=tuple(points[:2]), failure="diverged: loss is NaN")
    else:
        result = Result(points=tuple(points), stages=dict.fromkeys(stages_of(proposal.spec), TRAIN_FLOPS))
    under_way.complete(proposal.index, result)


def trials(path: Path, name: str = "small") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=journal.open_journal(path)).get_trials()


def told(path: Path) -> Told:
    """What Optuna was told, in order; asks that a kill cut short are left out."""
    return [
        (t.params, t.values, t.state, t.user_attrs.get(proposals.PREFIX)) for t in trials(path) if len(t.params) == 3
    ]


@pytest.fixture(params=["gain", "prefixes"])
def space(request: pytest.FixtureRequest, space_file: Callable[..., Path]) -> SearchSpace:
    return SearchSpace.read(space_file(**{"startup = 4": f'startup = 4\nguide = "{request.param}"'}))


@pytest.fixture
def undisturbed(space: SearchSpace, tmp_path: Path) -> tuple[list[TrialSpec], Told]:
    path = tmp_path / "undisturbed" / "journal.log"
    return run(opened(space, path, 12)), told(path)


@pytest.mark.parametrize("seed", range(5))
def test_proposals_do_not_depend_on_which_trial_finishes_first(
    space: SearchSpace, tmp_path: Path, undisturbed: tuple[list[TrialSpec], Told], seed: int
) -> None:
    path = tmp_path / "journal.log"
    assert run(opened(space, path, 12), random.Random(seed)) == undisturbed[0]
    assert told(path) == undisturbed[1]


def test_the_seed_of_the_study_changes_the_proposals(
    space: SearchSpace, tmp_path: Path, undisturbed: tuple[list[TrialSpec], Told]
) -> None:
    other = space.model_copy(update={"proposals": space.proposals.model_copy(update={"seed": 1})})
    assert run(opened(other, tmp_path / "journal.log", 12)) != undisturbed[0]


def test_the_order_of_lines_in_the_file_changes_no_proposal(
    space: SearchSpace, tmp_path: Path, undisturbed: tuple[list[TrialSpec], Told]
) -> None:
    turned = space.model_copy(update={"dimensions": dict(reversed(space.dimensions.items()))})
    assert run(opened(turned, tmp_path / "journal.log", 12)) == undisturbed[0]


def test_a_search_killed_after_any_write_ends_the_same(
    space: SearchSpace, tmp_path: Path, undisturbed: tuple[list[TrialSpec], Told]
) -> None:
    """The journal is all that survives a kill: cut it after some of its lines, and in the middle of others."""
    whole = (tmp_path / "undisturbed" / "journal.log").read_bytes().splitlines(keepends=True)
    for count in range(0, len(whole), 3):
        path = tmp_path / f"{count}.log"
        torn = whole[count][: len(whole[count]) // 2] if count % 2 else b""
        path.write_bytes(b"".join(whole[:count]) + torn)
        run(opened(space, path, 12), random.Random(count))
        assert told(path) == undisturbed[1]


def test_nothing_stays_running(space: SearchSpace, tmp_path: Path, undisturbed: Any) -> None:
    states = {trial.state for trial in trials(tmp_path / "undisturbed" / "journal.log")}
    assert states == {optuna.trial.TrialState.COMPLETE}


def test_reopening_a_finished_search_has_nothing_to_do(space: SearchSpace, tmp_path: Path, undisturbed: Any) -> None:
    again = opened(space, tmp_path / "undisturbed" / "journal.log", 12)
    assert again.over
    assert again.next() is None
    assert again.finished == again.target == 12
    assert opened(space, tmp_path / "undisturbed" / "journal.log", 5).over


def test_a_larger_budget_goes_on_from_where_the_search_ended(
    space: SearchSpace, tmp_path: Path, undisturbed: Any
) -> None:
    path = tmp_path / "undisturbed" / "journal.log"
    more = opened(space, path, 15)
    assert len(run(more)) == 3
    assert more.finished == 15
    assert told(path)[: len(undisturbed[1])] == undisturbed[1]


def test_orphans_of_a_smaller_budget_are_finished(space: SearchSpace, tmp_path: Path) -> None:
    first = opened(space, tmp_path / "journal.log", 12)
    orphans = sorted(iter(first.next, None), key=lambda orphan: orphan.index)
    again = opened(space, tmp_path / "journal.log", 1)
    assert run(again) == [orphan.spec for orphan in orphans]
    assert again.target == 3


def test_at_most_parallel_proposals_are_under_way(space: SearchSpace, tmp_path: Path) -> None:
    under_way = opened(space, tmp_path / "journal.log", 12)
    handed = [under_way.next() for _ in range(4)]
    assert [proposal is not None for proposal in handed] == [True, True, True, False]
    assert not under_way.over


def test_results_are_held_until_their_turn(space: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    under_way = opened(space, path, 12)
    first, second, third = (under_way.next() for _ in range(3))
    assert first
    assert second
    assert third
    end(under_way, third)
    end(under_way, second)
    assert under_way.finished == 0
    assert under_way.next() is None
    end(under_way, first)
    assert under_way.finished == 3


def test_every_prefix_is_told_once(undisturbed: tuple[list[TrialSpec], Told]) -> None:
    specs, rows = undisturbed
    expected = {
        (s.regularization_weight, s.pruning_ratio, k, points_of(s)[k].accuracy)
        for s in specs
        for k in range(2, s.iterations + 1)
    }
    assert len(rows) >= len(expected)
    prefixes = [row for row in rows if row[3] is not None]
    settings = [json.dumps(row[0], sort_keys=True) for row in prefixes]
    assert len(settings) == len(set(settings)) > 0
    assert {accuracy for *_, accuracy in expected} == {row[1][0] for row in rows}


def test_fixed_iterations_have_no_prefix_to_tell(space_file: Callable[..., Path], tmp_path: Path) -> None:
    text = {"iterations = { low = 2, high = 4 }": "", 'model = "fake"': 'model = "fake"\niterations = 3'}
    fixed = SearchSpace.read(space_file("small", **text))
    path = tmp_path / "journal.log"
    run(opened(fixed, path, 6))
    assert {proposals.PREFIX in trial.user_attrs for trial in trials(path)} == {False}


def test_a_failed_trial_is_told_as_failed_with_its_prefixes(space: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    under_way = opened(space, path, 3)
    proposal = under_way.next()
    assert proposal
    long = proposal.spec.iterations > 2
    under_way.complete(0, Result(points=tuple(points_of(proposal.spec)[:3]), failure="diverged: loss is NaN"))
    run(under_way)
    assert under_way.failures == {0: "diverged: loss is NaN"}
    states = [trial.state.name for trial in trials(path) if trial.user_attrs.get(proposals.PREFIX) == 0]
    assert trials(path)[0].state.name == "FAIL"
    assert states == (["COMPLETE"] if long else [])
    assert opened(space, path, 3).failures == {0: "diverged: loss is NaN"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_failures(space: SearchSpace, tmp_path: Path, value: float) -> None:
    under_way = opened(space, tmp_path / "journal.log", 1)
    proposal = under_way.next()
    assert proposal
    points: list[Point] = [p.model_copy(update={"accuracy": value}) for p in points_of(proposal.spec)]
    under_way.complete(0, Result(points=tuple(points)))
    assert "brought no accuracy and flops_kept that are numbers" in under_way.failures[0]


def test_missing_values_are_failures(space: SearchSpace, tmp_path: Path) -> None:
    under_way = opened(space, tmp_path / "journal.log", 1)
    under_way.next()
    under_way.complete(0, Result())
    assert under_way.failures.keys() == {0}


def test_a_search_goes_on_when_every_trial_fails(space: SearchSpace, tmp_path: Path) -> None:
    under_way = opened(space, tmp_path / "journal.log", 12)
    run(under_way, failing=tuple(range(100)))
    assert under_way.finished == len(under_way.failures) == 12


SMALL = {
    "{ low = 1e-3, high = 1e-1, log = true, grid = 5 }": "{ low = 1e-3, high = 1e-1, log = true, grid = 2 }",
    "{ low = 0.2, high = 0.5, step = 0.05 }": "{ choices = [0.2, 0.3] }",
}


PREFIXES = {"startup = 4": 'startup = 4\nguide = "prefixes"'}


def test_known_proposals_are_not_run_and_an_exhausted_space_ends_the_search(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Two weights, two ratios: a trial of four iterations runs through those of two and three."""
    small = SearchSpace.read(space_file("small", **SMALL))
    path = tmp_path / "journal.log"
    under_way = opened(small, path, 50)
    ran = run(under_way, random.Random(0))
    assert under_way.exhausted
    assert under_way.over
    assert under_way.target == under_way.finished == len(ran)
    assert len({spec.model_dump_json() for spec in ran}) == len(ran)
    assert {(s.regularization_weight, s.pruning_ratio) for s in ran if s.iterations == 4} == {
        (0.001, 0.2),
        (0.001, 0.3),
        (0.1, 0.2),
        (0.1, 0.3),
    }
    known = [trial for trial in trials(path) if proposals.PREFIX not in trial.user_attrs]
    assert len(known) > len(ran)
    assert {trial.state.name for trial in known} == {"COMPLETE"}
    assert opened(small, path, 50).over


def test_known_proposals_are_told_the_values_of_the_first(space_file: Callable[..., Path], tmp_path: Path) -> None:
    small = SearchSpace.read(space_file("small", **SMALL))
    path = tmp_path / "journal.log"
    run(opened(small, path, 50))
    values: dict[str, Any] = {}
    for trial in trials(path):
        assert values.setdefault(json.dumps(trial.params, sort_keys=True), trial.values) == trial.values


def test_a_known_proposal_of_a_failed_trial_fails_too(space_file: Callable[..., Path], tmp_path: Path) -> None:
    small = SearchSpace.read(space_file("small", **SMALL))
    path = tmp_path / "journal.log"
    under_way = opened(small, path, 50)
    run(under_way, failing=tuple(range(100)))
    reasons = {trial.user_attrs.get(proposals.FAILURE) for trial in trials(path) if trial.state.name == "FAIL"}
    assert reasons == {"diverged: loss is NaN", "an earlier trial with these settings failed"}
    assert set(under_way.failures.values()) == {"diverged: loss is NaN"}


def test_an_exhausted_search_killed_anywhere_ends_the_same(space_file: Callable[..., Path], tmp_path: Path) -> None:
    small = SearchSpace.read(space_file("small", **SMALL))
    path = tmp_path / "journal.log"
    run(opened(small, path, 50))
    whole, expected = path.read_bytes().splitlines(keepends=True), told(path)
    for count in range(1, len(whole), 9):
        path.write_bytes(b"".join(whole[:count]))
        run(opened(small, path, 50))
        assert told(path) == expected


def test_plain_ranges_stay_within_bounds(space_file: Callable[..., Path], tmp_path: Path) -> None:
    text = {", grid = 5": "", ", step = 0.05": ""}
    free = SearchSpace.read(space_file("small", **text))
    assert free.size is None
    ran = run(opened(free, tmp_path / "journal.log", 20))
    assert all(1e-3 <= spec.regularization_weight <= 0.1 and 0.2 <= spec.pruning_ratio <= 0.5 for spec in ran)


def test_known_proposals_leave_room_for_others(space_file: Callable[..., Path], tmp_path: Path) -> None:
    """While a known proposal waits for its turn, as many others as ever may run."""
    small = SearchSpace.read(space_file("small", **SMALL, **PREFIXES))
    under_way = opened(small, tmp_path / "journal.log", 50)
    most = []
    running: list[Proposal] = []
    while True:
        running.extend(iter(under_way.next, None))
        if not running:
            break
        most.append(len(running))
        end(under_way, running.pop(0))
    assert most[:3] == [3, 3, 3]


def test_a_budget_of_train_flops_ends_a_search_at_the_same_trial_always(space: SearchSpace, tmp_path: Path) -> None:
    """Stages that trials share are counted once."""
    path = tmp_path / "journal.log"
    first = opened(space, path, 12, train_flops=40 * TRAIN_FLOPS)
    ran = run(first, random.Random(1))
    passed = {key for spec in ran for key in stages_of(spec)}
    assert first.train_flops == len(passed) * TRAIN_FLOPS >= 40 * TRAIN_FLOPS
    assert first.over
    assert first.target == first.finished == len(ran) < 12
    assert first.spent == f"{len(passed)} k of 40 k train_flops"
    assert run(opened(space, tmp_path / "again.log", 12, train_flops=40 * TRAIN_FLOPS)) == ran
    more = opened(space, path, 12, train_flops=10**9)
    assert more.left == f"{12 - len(ran)} trials, {format_flops(10**9 - first.train_flops)} train_flops"
    assert len(run(more)) == 12 - len(ran)


def test_when_time_is_up_nothing_more_is_handed_out(space: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    first = opened(space, path, 12, hours=1.0)
    under_way = first.next()
    assert under_way
    first.spend(3000.0)
    end(first, under_way)
    assert first.left == "11 trials, 0.17 hours"
    again = opened(space, path, 12, hours=1.0)
    assert again.seconds == 3000.0  # the launch before counts
    again.spend(600.0)
    assert again.time_is_up
    assert again.next() is None
    assert again.over
    assert again.spent == "1.00 of 1 hours"
    again.close()
    assert opened(space, path, 12, hours=1.0).over
    assert len(run(opened(space, path, 12, hours=2.0))) == 11


def test_a_stopped_trial_is_told_with_what_it_had(space: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    under_way = opened(space, path, 1)
    proposal = under_way.next()
    assert proposal
    points = points_of(proposal.spec)[:2]
    under_way.complete(0, Result(points=tuple(points), stopped="after iteration 1", stages={}))
    assert under_way.stops == {0: "after iteration 1"}
    assert under_way.failures == {}
    (trial,) = (trial for trial in trials(path) if proposals.PREFIX not in trial.user_attrs)
    assert trial.values == [points[-1].accuracy, points[-1].flops_kept]
    assert opened(space, path, 1).stops == {0: "after iteration 1"}


def test_proposals_know_the_frontier_of_what_was_told_when_they_were_asked(space: SearchSpace, tmp_path: Path) -> None:
    """The same after a kill, however much has been told since."""
    path = tmp_path / "journal.log"
    under_way = opened(space, path, 6)
    handed: list[Proposal] = []
    while (proposal := under_way.next()) is not None:
        handed.append(proposal)
        if len(handed) > 2:
            end(under_way, handed[len(handed) - 3])
    assert handed[0].frontier == handed[2].frontier == ()
    assert len(handed[3].frontier) > 1
    again = opened(space, path, 6)
    left = {proposal.index: proposal.frontier for proposal in iter(again.next, None)}
    assert left == {proposal.index: proposal.frontier for proposal in handed if proposal.index in left}
    assert left


def test_the_guide_by_gain_runs_every_trial_to_the_end(space_file: Callable[..., Path], tmp_path: Path) -> None:
    ran = run(opened(SearchSpace.read(space_file()), tmp_path / "journal.log", 8))
    assert {spec.iterations for spec in ran} == {4}


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(journal, "STALE_SECONDS", 0.2)
    path = tmp_path / "journal.log"
    path.touch()
    (tmp_path / "journal.log.lock").symlink_to(path)
    return path


def test_a_lock_left_by_a_dead_process_is_removed(locked: Path) -> None:
    journal.open_journal(locked)
    assert not locked.with_name("journal.log.lock").is_symlink()


def test_a_journal_damaged_in_the_middle_is_the_users_to_decide_about(
    space: SearchSpace, tmp_path: Path, undisturbed: Any
) -> None:
    path = tmp_path / "undisturbed" / "journal.log"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"{}\n", *lines[5:]]))
    with pytest.raises(InvalidInput, match=r"journal\.log: line 5 is damaged; move the file away"):
        opened(space, path, 12)


def test_zeros_left_by_a_crashed_machine_are_cut_off(space: SearchSpace, tmp_path: Path, undisturbed: Any) -> None:
    path = tmp_path / "undisturbed" / "journal.log"
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert opened(space, path, 12).over


def test_a_journal_that_cannot_be_written_is_named(space: SearchSpace, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"file/journal\.log: cannot be written: "):
        opened(space, tmp_path / "file" / "journal.log", 1)
