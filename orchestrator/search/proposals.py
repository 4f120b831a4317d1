"""Which trials a study consists of: Optuna's ask and tell, in an order that no timing can change.

A search that is killed at any moment and started again ends with the same trials as one left alone. Therefore

- results are held back and told in the order of the proposals, whichever trial finishes first;
- what is asked next depends on nothing but what the journal holds: while fewer than `parallel` proposals are waiting
  for their results to be told, the next one is asked; only then is the next result told;
- when the rest of a trial cannot matter is judged by the frontier of those trials alone that were told by then;
- each ask has a new sampler, whose seed comes from the study's seed and the proposal's number;
- a trial that a dead driver left running is run again with the same settings, which is a look-up as far as its stages
  are finished, and told once;
- what a study takes over from an older one never changes: see prior.py. Its first settings come first, in place of the
  startup at random.
"""

import hashlib
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.collector.amounts import format_flops
from orchestrator.files import Place
from orchestrator.record import Point, TrialSpec, canonical_json
from orchestrator.search.dimensions import Choice, Dimension, Grid, Range
from orchestrator.search.guides import ITERATIONS, Fixed, guide_named
from orchestrator.search.journal import open_journal
from orchestrator.search.prior import Prior, old_trials, positions_of
from orchestrator.search.space import Budget, SearchSpace
from orchestrator.search.waiting import Waiting
from orchestrator.search.worth import Found, Front

DIRECTIONS: Sequence[Literal["maximize", "minimize"]] = ("maximize", "minimize")  # accuracy, flops_kept
PATIENCE = 4  # known proposals in a row before a new one is drawn from what is left of a finite space
OBJECTIVES = ["accuracy", "flops_kept"]
# Names of user attributes in the journal. Beside them stand, for whoever looks at the journal, the values of those
# settings that are proposed by their position in a grid.
PREFIX, FAILURE, STOPPED, POINTS, STAGES, TRAIN_FLOPS, SECONDS, PROPOSAL = (
    "prefix_of", "failure", "stopped", "points", "stages", "train_flops", "seconds", "proposal",
)  # fmt: skip
SHORT = 16  # digits of a stage's key in the journal

Values = tuple[float, float]
Steps = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Settings to run. `index` numbers all proposals of the study.

    frontier: (flops_kept, accuracy) of the study's, in ascending order of both, when these settings were asked for.
    """

    index: int
    spec: TrialSpec
    frontier: Steps


@dataclass(kw_only=True)
class _Entry:
    """A proposal as the journal knows it. `known`: an earlier one runs through the same settings already."""

    spec: TrialSpec
    number: int
    known: bool
    asked_at: int  # so many were told when it was asked
    told: bool = False
    failure: str | None = None
    stopped: str | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a proposal ended. `stages`: the train_flops of all stages that it passed, by key."""

    points: tuple[Point, ...] = ()
    failure: str | None = None
    stopped: str | None = None
    stages: Mapping[str, int] = field(default_factory=dict)


class Proposals:
    """A study's proposals, in its journal. One process at a time may have them open."""

    def __init__(
        self, space: SearchSpace, journal: Place, *, budget: Budget | None = None, prior: Prior | None = None
    ) -> None:
        self.exhausted = False
        self._space = space
        self._budget = budget or space.budget
        self._storage = open_journal(journal)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=space.name,
            directions=DIRECTIONS,
            sampler=RandomSampler(),
            load_if_exists=True,
        )
        _name_objectives(self._study)
        # In the order of their names: moving lines about in the file changes no proposal.
        self._distributions = {name: _distribution(space.dimensions[name]) for name in sorted(space.dimensions)}
        self._most = _most_iterations(space.dimensions)
        self._first = [] if prior is None else [positions_of(one, space.dimensions) for one in prior.first]
        old = () if prior is None else old_trials(prior, space.dimensions)
        self._explored = len(self._first) if prior else space.proposals.startup  # proposals before the guide's own
        self._guide = guide_named(space.proposals.guide, self._distributions, self._most, self._study, old)
        self._entries: list[_Entry] = []
        self._told = 0  # entries before this one are told
        self._distinct = 0  # that are not known
        self.finished = 0  # trials with a result, failed ones included
        self.train_flops = 0  # of the stages of all these, each stage once
        self._asked_at = 0
        self._front = Front(space.limits)
        self._fronts: list[Steps] = [()]  # after so many were told
        self._observed: dict[str, Values] = {}  # told settings, prefixes too
        self._passed: set[str] = set()  # stages of told trials
        self._reach: dict[str, int] = {}  # settings but for iterations -> the most iterations proposed
        self._results: dict[int, Result] = {}
        self._waiting = Waiting()
        self._seconds_before = float(self._study.user_attrs.get(SECONDS, 0.0))
        self.seconds = self._seconds_before  # spent on the study, all launches together
        self._adopt()
        self._advance()

    @property
    def over(self) -> bool:
        """Whether every proposal there will be in this launch has been handed out."""
        return self.time_is_up or (not self._waiting and (self.exhausted or self.spent is not None))

    @property
    def parallel(self) -> int:
        """How many may be under way at once."""
        return self._space.proposals.parallel

    @property
    def spent(self) -> str | None:
        """The budget that is used up, in words; None while another trial may be begun."""
        budget = self._budget
        if self._distinct >= budget.trials:
            return f"{self._distinct} of {budget.trials} trials"
        if budget.train_flops is not None and self.train_flops >= budget.train_flops:
            return f"{format_flops(self.train_flops)} of {format_flops(budget.train_flops)} train_flops"
        if self.time_is_up:
            return f"{self.seconds / 3600:.2f} of {budget.hours:g} hours"
        return None

    @property
    def failures(self) -> dict[int, str]:
        """Why trials failed, by the number of the proposal."""
        return {i: entry.failure for i, entry in enumerate(self._entries) if entry.failure and not entry.known}

    @property
    def stops(self) -> dict[int, str]:
        """Why trials were stopped before their last iteration, by the number of the proposal."""
        return {i: entry.stopped for i, entry in enumerate(self._entries) if entry.stopped}

    @property
    def target(self) -> int:
        """How many trials there will be: the budget, more if more were begun, fewer if another budget ends first."""
        over = self.exhausted or (self.spent is not None and self._distinct < self._budget.trials)
        return self._distinct if over else max(self._budget.trials, self._distinct)

    def next(self) -> Proposal | None:
        """Hand out the next proposal to run; None if results must come in first, or if the search is over."""
        if self.time_is_up or not self._waiting:
            return None
        index = self._waiting.take()
        entry = self._entries[index]
        return Proposal(index=index, spec=entry.spec, frontier=self._fronts[entry.asked_at])

    def passed(self, index: int) -> None:
        """Take note that a running proposal has its first iteration behind it: others may build on the same stages."""
        self._waiting.ready(index)

    def complete(self, index: int, result: Result) -> None:
        """Take in how a proposal ended, and tell it when its turn has come."""
        self._waiting.ready(index)
        self._results[index] = result
        self._advance()

    def spend(self, seconds: float) -> None:
        """Note for how long this launch has been running. Kept with the next result, or by `close`."""
        self.seconds = self._seconds_before + seconds

    def close(self) -> None:
        """Keep for how long this launch has been running."""
        if self.seconds > self._seconds_before:
            self._study.set_user_attr(SECONDS, round(self.seconds, 3))

    @property
    def left(self) -> str:
        """What is left of the budget, in words."""
        budget = self._budget
        parts = [f"{max(0, budget.trials - self.finished)} trials"]
        if budget.train_flops is not None:
            parts.append(f"{format_flops(max(0, budget.train_flops - self.train_flops))} train_flops")
        if budget.hours is not None:
            parts.append(f"{max(0.0, budget.hours - self.seconds / 3600):.2f} hours")
        return ", ".join(parts)

    @property
    def time_is_up(self) -> bool:
        """Whether the budget of hours is used up: what runs then ends with its next point, to be gone on with later."""
        return self._budget.hours is not None and self.seconds >= self._budget.hours * 3600

    def _adopt(self) -> None:
        """Take up what the journal holds."""
        for trial in self._study.get_trials(deepcopy=False):
            if PREFIX in trial.user_attrs:
                self._observed[canonical_json(self._spec(trial.params))] = _values(trial)
            elif trial.params.keys() == self._distributions.keys():
                self._append(trial)
            elif trial.state == TrialState.RUNNING:  # killed in the middle of the ask; it is asked anew
                self._study.tell(trial.number, state=TrialState.FAIL)
        trials = self._study.get_trials(deepcopy=False)
        while self._told < len(self._entries) and self._entries[self._told].told:
            self._take_in(trials[self._entries[self._told].number])

    def _append(self, trial: FrozenTrial) -> None:
        spec = self._spec(trial.params)
        base = _base(spec)
        known = self._reach.get(base, 0) >= spec.iterations
        entry = _Entry(
            spec=spec,
            number=trial.number,
            known=known,
            asked_at=self._next_asked_at(),
            told=trial.state.is_finished(),
        )
        index = len(self._entries)
        self._guide.adopt(index, trial.params, known=known)
        if entry.told:
            entry.failure = trial.user_attrs.get(FAILURE)
            if trial.state == TrialState.COMPLETE:
                self._observed[canonical_json(spec)] = _values(trial)
        elif not known:
            self._waiting.add(index, spec)
        self._reach[base] = max(self._reach.get(base, 0), spec.iterations)
        self._distinct += not known
        self._entries.append(entry)

    def _next_asked_at(self) -> int:
        """How many must have been told before the next may be asked: the same after every kill."""
        while self._under_way(self._asked_at) >= self._space.proposals.parallel:
            self._asked_at += 1
        return self._asked_at

    def _under_way(self, told: int) -> int:
        return sum(not entry.known for entry in self._entries[told:])

    def _take_in(self, trial: FrozenTrial) -> None:
        """Count the next entry, which is told: `trial` is what the journal holds of it."""
        entry = self._entries[self._told]
        entry.stopped = trial.user_attrs.get(STOPPED)
        self.train_flops += trial.user_attrs.get(TRAIN_FLOPS, 0)
        self.finished += not entry.known
        self._passed.update(trial.user_attrs.get(STAGES, ()))
        found = [Found(*point) for point in trial.user_attrs.get(POINTS, ())]
        if not entry.known:
            failed = entry.failure is not None and not found
            self._guide.told(self._told, None if failed else self._front.score(found))
        for point in found:
            self._front.add(point)
        self._told += 1
        self._fronts.append(tuple(self._front.steps()))

    def _spec(self, positions: Mapping[str, Any]) -> TrialSpec:
        return self._space.spec({name: self._space.dimensions[name].value(at) for name, at in positions.items()})

    def _advance(self) -> None:
        while self._ask() or self._tell():
            pass

    def _ask(self) -> bool:
        """Ask for one more proposal, if it is time to."""
        if self.exhausted or self.spent is not None or self._under_way(self._told) >= self._space.proposals.parallel:
            return False
        sampler = self._sampler(len(self._entries))
        if sampler is None:
            self.exhausted = True
            return False
        self._study.sampler = sampler
        trial = self._study.ask(self._distributions)
        for name, value in {PROPOSAL: len(self._entries), **self._readable(trial.params)}.items():
            trial.set_user_attr(name, value)
        self._append(self._study.get_trials(deepcopy=False)[trial.number])
        return True

    def _readable(self, positions: Mapping[str, Any]) -> dict[str, Any]:
        """The values of settings whose positions say nothing."""
        dimensions = self._space.dimensions
        return {
            name: dimensions[name].value(at) for name, at in positions.items() if isinstance(dimensions[name], Grid)
        }

    def _sampler(self, index: int) -> BaseSampler | None:
        """How proposal `index` is chosen; None when the space holds nothing new."""
        if index < len(self._first):
            return Fixed(self._guided(self._first[index]))
        seed = int.from_bytes(hashlib.sha256(f"{self._space.proposals.seed}:{index}".encode()).digest()[:4], "big")
        stuck = self._is_stuck()
        if stuck and self._space.size is not None:
            positions = self._something_new(random.Random(seed))
            return None if positions is None else Fixed(positions)
        return self._guide.sampler(seed, explore=stuck or index < self._explored)

    def _is_stuck(self) -> bool:
        latest = self._entries[-PATIENCE:]
        return len(latest) == PATIENCE and all(entry.known for entry in latest)

    def _something_new(self, chance: random.Random) -> dict[str, Any] | None:
        """Settings that no proposal runs through yet, from a random place of the space onward."""
        size = self._space.size
        assert size is not None
        start = chance.randrange(size)
        for offset in range(size):
            positions = self._guided(self._space.nth((start + offset) % size))
            spec = self._spec(positions)
            if self._reach.get(_base(spec), 0) < spec.iterations:
                return positions
        return None

    def _guided(self, positions: dict[str, Any]) -> dict[str, Any]:
        """With the most iterations, where the guide lets every trial run to the end."""
        return {**positions, **self._most} if self._space.proposals.guide == "gain" else positions

    def _tell(self) -> bool:
        """Tell the next result, if it is there."""
        if self._told == len(self._entries):
            return False
        entry = self._entries[self._told]
        result = Result() if entry.known else self._results.pop(self._told, None)
        if result is None:
            return False
        self._tell_prefixes(entry, result)
        self._tell_end(entry, result)
        self._take_in(self._study.get_trials(deepcopy=False)[entry.number])
        self.close()
        return True

    def _tell_prefixes(self, entry: _Entry, result: Result) -> None:
        """Add what a shorter trial with these settings would have given, as far as the space holds such trials."""
        iterations = self._space.dimensions.get(ITERATIONS)
        for point in sorted(_cuts(result.points), key=lambda point: point.iteration):
            position = None if iterations is None else iterations.position(point.iteration)
            spec = entry.spec.model_copy(update={ITERATIONS: point.iteration})
            key = canonical_json(spec)
            if position is None or point.iteration >= entry.spec.iterations or key in self._observed:
                continue
            trial = self._study.get_trials(deepcopy=False)[entry.number]
            values = (point.accuracy, point.flops_kept)
            positions = {**trial.params, ITERATIONS: position}
            self._study.add_trial(
                create_trial(
                    params=positions,
                    distributions=self._distributions,
                    values=values,
                    user_attrs={PREFIX: self._told, **self._readable(positions)},
                )
            )
            self._observed[key] = values

    def _tell_end(self, entry: _Entry, result: Result) -> None:
        key = canonical_json(entry.spec)
        values = self._observed.get(key) if entry.known else _end(entry.spec, result)
        failure = result.failure or _fault(values, entry)
        new = {stage[:SHORT]: cost for stage, cost in result.stages.items() if stage[:SHORT] not in self._passed}
        found = [list(Found.of(point)) for point in result.points if _is_finite(point)]
        notes = {FAILURE: failure, STOPPED: result.stopped, POINTS: found, STAGES: list(new)}
        for name, note in {**notes, TRAIN_FLOPS: sum(new.values())}.items():
            if note:
                self._note(entry, name, note)
        if failure is None:
            assert values is not None
            self._study.tell(entry.number, values=values)
            self._observed[key] = values
        else:
            self._study.tell(entry.number, state=TrialState.FAIL)
        entry.told, entry.failure = True, failure

    def _note(self, entry: _Entry, name: str, value: Any) -> None:
        study_id = self._storage.get_study_id_from_name(self._space.name)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, entry.number)
        self._storage.set_trial_user_attr(trial_id, name, value)


def _name_objectives(study: optuna.Study) -> None:
    """For whoever looks at the journal."""
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(OBJECTIVES)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Grid):
        return IntDistribution(0, len(dimension.values) - 1)
    if not isinstance(dimension, Range):
        return CategoricalDistribution(dimension.choices)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _most_iterations(dimensions: Mapping[str, Dimension]) -> dict[str, Any]:
    """The position of the most iterations; empty where they do not vary."""
    dimension = dimensions.get(ITERATIONS)
    if dimension is None:
        return {}
    most = max(dimension.choices) if isinstance(dimension, Choice) else dimension.ends()[-1]
    return {ITERATIONS: dimension.position(most)}


def _base(spec: TrialSpec) -> str:
    """What two trials share when one is the beginning of the other."""
    return canonical_json(spec.model_dump(mode="json", exclude={"iterations"}))


def _values(trial: FrozenTrial) -> Values:
    accuracy, flops_kept = trial.values
    return accuracy, flops_kept


def _is_finite(point: Point) -> bool:
    return math.isfinite(point.accuracy) and math.isfinite(point.flops_kept)


def _cuts(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.kind == "cut" and _is_finite(point)]


def _end(spec: TrialSpec, result: Result) -> Values | None:
    """What the last iteration gave; None if it is missing or not a number."""
    cuts = _cuts(result.points)
    last = cuts[-1:] if result.stopped else [point for point in cuts if point.iteration == spec.iterations]
    return (last[0].accuracy, last[0].flops_kept) if last else None


def _fault(values: Values | None, entry: _Entry) -> str | None:
    if values is not None:
        return None
    if entry.known:
        return "an earlier trial with these settings failed"
    return f"iteration {entry.spec.iterations} brought no accuracy and flops_kept that are numbers"
