"""Which trials a study consists of: Optuna's ask and tell, in an order that no timing can change.

A search that is killed at any moment and started again ends with the same trials as one left alone. Therefore

- results are held back and told in the order of the proposals, whichever trial finishes first;
- what is asked next depends on nothing but what the journal holds: while fewer than `parallel` proposals are waiting
  for their results to be told, the next one is asked; only then is the next result told;
- each ask has a new sampler, whose seed comes from the study's seed and the proposal's number;
- a trial that a dead driver left running is run again with the same settings, which is a look-up as far as its stages
  are finished, and told once.
"""

import hashlib
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.record import Point, TrialSpec, canonical_json
from orchestrator.search.dimensions import Dimension, Grid, Range
from orchestrator.search.journal import open_journal
from orchestrator.search.space import SearchSpace

DIRECTIONS: Sequence[Literal["maximize", "minimize"]] = ("maximize", "minimize")  # accuracy, flops_kept
PATIENCE = 4  # known proposals in a row before a new one is drawn from what is left of a finite space
PREFIX, FAILURE = "prefix_of", "failure"  # names of user attributes in the journal

Values = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Settings to run. `index` numbers all proposals of the study."""

    index: int
    spec: TrialSpec


@dataclass(kw_only=True)
class _Entry:
    """A proposal as the journal knows it. `known`: an earlier one runs through the same settings already."""

    spec: TrialSpec
    number: int
    known: bool
    told: bool = False
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Result:
    points: tuple[Point, ...] = ()
    failure: str | None = None


class Proposals:
    """A study's proposals, in its journal. One process at a time may have them open."""

    def __init__(self, space: SearchSpace, journal: Path, *, trials: int) -> None:
        self.exhausted = False
        self._space = space
        self._trials = trials
        self._storage = open_journal(journal)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=space.name,
            directions=DIRECTIONS,
            sampler=RandomSampler(),
            load_if_exists=True,
        )
        # In the order of their names: moving lines about in the file changes no proposal.
        self._distributions = {name: _distribution(space.dimensions[name]) for name in sorted(space.dimensions)}
        self._entries: list[_Entry] = []
        self._told = 0  # entries before this one are told
        self._observed: dict[str, Values] = {}  # told settings, prefixes too
        self._reach: dict[str, int] = {}  # settings but for iterations -> the most iterations proposed
        self._results: dict[int, _Result] = {}
        self._waiting: deque[int] = deque()
        self._adopt()
        self._advance()

    @property
    def over(self) -> bool:
        """Whether every proposal there will be in this launch has been handed out."""
        return not self._waiting and (self.exhausted or self._distinct >= self._trials)

    @property
    def parallel(self) -> int:
        """How many may be under way at once."""
        return self._space.proposals.parallel

    @property
    def finished(self) -> int:
        """Trials with a result, failed ones included."""
        return sum(entry.told for entry in self._entries if not entry.known)

    @property
    def failures(self) -> dict[int, str]:
        """Why trials failed, by the number of the proposal."""
        return {i: entry.failure for i, entry in enumerate(self._entries) if entry.failure and not entry.known}

    @property
    def target(self) -> int:
        """How many trials there will be: the budget, more if more were begun, fewer if the space is exhausted."""
        return self._distinct if self.exhausted else max(self._trials, self._distinct)

    def next(self) -> Proposal | None:
        """Hand out the next proposal to run; None if results must come in first, or if the search is over."""
        if not self._waiting:
            return None
        index = self._waiting.popleft()
        return Proposal(index=index, spec=self._entries[index].spec)

    def complete(self, index: int, points: Sequence[Point], failure: str | None = None) -> None:
        """Take in how a proposal ended, and tell it when its turn has come."""
        self._results[index] = _Result(points=tuple(points), failure=failure)
        self._advance()

    @property
    def _distinct(self) -> int:
        return sum(not entry.known for entry in self._entries)

    def _adopt(self) -> None:
        """Take up what the journal holds."""
        for trial in self._study.get_trials(deepcopy=False):
            if PREFIX in trial.user_attrs:
                self._observed[canonical_json(self._spec(trial.params))] = _values(trial)
            elif trial.params.keys() == self._distributions.keys():
                self._append(trial)
            elif trial.state == TrialState.RUNNING:  # killed in the middle of the ask; it is asked anew
                self._study.tell(trial.number, state=TrialState.FAIL)
        while self._told < len(self._entries) and self._entries[self._told].told:
            self._told += 1

    def _append(self, trial: FrozenTrial) -> None:
        spec = self._spec(trial.params)
        base = _base(spec)
        known = self._reach.get(base, 0) >= spec.iterations
        entry = _Entry(spec=spec, number=trial.number, known=known, told=trial.state.is_finished())
        if entry.told:
            entry.failure = trial.user_attrs.get(FAILURE)
            if trial.state == TrialState.COMPLETE:
                self._observed[canonical_json(spec)] = _values(trial)
        elif not known:
            self._waiting.append(len(self._entries))
        self._reach[base] = max(self._reach.get(base, 0), spec.iterations)
        self._entries.append(entry)

    def _spec(self, positions: Mapping[str, Any]) -> TrialSpec:
        return self._space.spec({name: self._space.dimensions[name].value(at) for name, at in positions.items()})

    def _advance(self) -> None:
        while self._ask() or self._tell():
            pass

    def _ask(self) -> bool:
        """Ask for one more proposal, if it is time to."""
        under_way = sum(not entry.known for entry in self._entries[self._told :])
        if self.exhausted or self._distinct >= self._trials or under_way >= self._space.proposals.parallel:
            return False
        sampler = self._sampler(len(self._entries))
        if sampler is None:
            self.exhausted = True
            return False
        self._study.sampler = sampler
        number = self._study.ask(self._distributions).number
        self._append(self._study.get_trials(deepcopy=False)[number])
        return True

    def _sampler(self, index: int) -> BaseSampler | None:
        """How proposal `index` is chosen; None when the space holds nothing new."""
        settings = self._space.proposals
        seed = int.from_bytes(hashlib.sha256(f"{settings.seed}:{index}".encode()).digest()[:4], "big")
        if self._space.size is not None and self._is_stuck():
            positions = self._something_new(random.Random(seed))
            return None if positions is None else _Fixed(positions)
        return RandomSampler(seed) if index < settings.startup else TPESampler(seed=seed, n_startup_trials=1)

    def _is_stuck(self) -> bool:
        latest = self._entries[-PATIENCE:]
        return len(latest) == PATIENCE and all(entry.known for entry in latest)

    def _something_new(self, chance: random.Random) -> dict[str, Any] | None:
        """Settings that no proposal runs through yet, from a random place of the space onward."""
        size = self._space.size
        assert size is not None
        start = chance.randrange(size)
        for offset in range(size):
            positions = self._positions((start + offset) % size)
            spec = self._spec(positions)
            if self._reach.get(_base(spec), 0) < spec.iterations:
                return positions
        return None

    def _positions(self, rank: int) -> dict[str, Any]:
        positions = {}
        for name in self._distributions:
            dimension = self._space.dimensions[name]
            assert dimension.size is not None
            rank, at = divmod(rank, dimension.size)
            positions[name] = dimension.nth(at)
        return positions

    def _tell(self) -> bool:
        """Tell the next result, if it is there."""
        if self._told == len(self._entries):
            return False
        entry = self._entries[self._told]
        result = self._result(entry)
        if result is None:
            return False
        self._tell_prefixes(entry, result)
        self._tell_end(entry, result)
        self._told += 1
        return True

    def _result(self, entry: _Entry) -> _Result | None:
        return _Result() if entry.known else self._results.pop(self._told, None)

    def _tell_prefixes(self, entry: _Entry, result: _Result) -> None:
        """Add what a shorter trial with these settings would have given, as far as the space holds such trials."""
        iterations = self._space.dimensions.get("iterations")
        for point in sorted(_cuts(result.points), key=lambda point: point.iteration):
            position = None if iterations is None else iterations.position(point.iteration)
            spec = entry.spec.model_copy(update={"iterations": point.iteration})
            key = canonical_json(spec)
            if position is None or point.iteration >= entry.spec.iterations or key in self._observed:
                continue
            trial = self._study.get_trials(deepcopy=False)[entry.number]
            values = (point.accuracy, point.flops_kept)
            self._study.add_trial(
                create_trial(
                    params={**trial.params, "iterations": position},
                    distributions=self._distributions,
                    values=values,
                    user_attrs={PREFIX: self._told},
                )
            )
            self._observed[key] = values

    def _tell_end(self, entry: _Entry, result: _Result) -> None:
        key = canonical_json(entry.spec)
        values = self._observed.get(key) if entry.known else _end(entry.spec, result.points)
        failure = result.failure or _fault(values, entry)
        if failure is None:
            assert values is not None
            self._study.tell(entry.number, values=values)
            self._observed[key] = values
        else:
            study_id = self._storage.get_study_id_from_name(self._space.name)
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, entry.number)
            self._storage.set_trial_user_attr(trial_id, FAILURE, failure)
            self._study.tell(entry.number, state=TrialState.FAIL)
        entry.told, entry.failure = True, failure


@dataclass
class _Fixed(BaseSampler):
    """A sampler that gives the settings it was made with."""

    positions: dict[str, Any] = field(default_factory=dict)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.positions[param_name]


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Grid):
        return IntDistribution(0, len(dimension.values) - 1)
    if not isinstance(dimension, Range):
        return CategoricalDistribution(dimension.choices)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _base(spec: TrialSpec) -> str:
    """What two trials share when one is the beginning of the other."""
    return canonical_json(spec.model_dump(mode="json", exclude={"iterations"}))


def _values(trial: FrozenTrial) -> Values:
    accuracy, flops_kept = trial.values
    return accuracy, flops_kept


def _cuts(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if p.kind == "cut" and math.isfinite(p.accuracy) and math.isfinite(p.flops_kept)]


def _end(spec: TrialSpec, points: Sequence[Point]) -> Values | None:
    """What the last iteration gave; None if it is missing or not a number."""
    return next(((p.accuracy, p.flops_kept) for p in _cuts(points) if p.iteration == spec.iterations), None)


def _fault(values: Values | None, entry: _Entry) -> str | None:
    if values is not None:
        return None
    if entry.known:
        return "an earlier trial with these settings failed"
    return f"iteration {entry.spec.iterations} brought no accuracy and flops_kept that are numbers"
