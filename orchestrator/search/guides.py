"""What chooses the settings of the next trial: two guides, of which a study names one.

`gain`      One objective: what a trajectory added to the hypervolume when it was told. Every trial runs to the most
            iterations that the space allows, since each iteration is a point; TPE chooses the other settings.
`prefixes`  Two objectives, accuracy and flops_kept: TPE over all that the journal holds, where every iteration of a
            trial stands as a trial of so many iterations.

Both can be told what an older study has seen (see prior.py). Its trials stand beside the study's own, each by its rank
among its like, and fade: every trial of its own that the study is told of takes the place of an old one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

ITERATIONS = "iterations"


@dataclass(frozen=True)
class OldTrial:
    """What another study has seen: settings, and for each iteration its position, relative accuracy, flops_kept."""

    positions: Mapping[str, Any]
    prefixes: Sequence[tuple[Mapping[str, Any], float, float]]


Old = Sequence[OldTrial]  # the best first


class Guide(Protocol):
    """Chooses settings from what was told. Trials are told apart by their number among the proposals."""

    def sampler(self, seed: int, *, explore: bool) -> BaseSampler:
        """What chooses the next settings; at random if `explore`."""

    def adopt(self, index: int, positions: Mapping[str, Any], *, known: bool) -> None:
        """Take note of a proposal, new or from the journal; one that is known already brings no result."""

    def told(self, index: int, score: float | None) -> None:
        """Take in how good a trial was; None if it failed."""


def guide_named(
    name: str, distributions: Mapping[str, BaseDistribution], most: Mapping[str, Any], journal: optuna.Study, old: Old
) -> Guide:
    """most: the position of the most iterations, where they vary. journal: the study of all that was asked and told."""
    return Gain(distributions, most, old) if name == "gain" else Prefixes(distributions, journal, old)


def still_counting(old: Old, told: int) -> Old:
    """The old trials that count once so many of the study's own were told: evenly spread over the ranking."""
    count = max(0, len(old) - told)
    return [old[(2 * i + 1) * len(old) // (2 * count)] for i in range(count)]


class Prefixes:
    """The journal's own study is all that it needs, unless there is an older one."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], journal: optuna.Study, old: Old) -> None:
        self._distributions = dict(distributions)
        self._journal = journal
        self._old = old
        self._told = 0

    def sampler(self, seed: int, *, explore: bool) -> BaseSampler:
        by_prefixes = TPESampler(seed=seed, n_startup_trials=1)
        old = still_counting(self._old, self._told)
        if explore or not old:
            return RandomSampler(seed) if explore else by_prefixes
        both = optuna.create_study(directions=self._journal.directions, sampler=by_prefixes)
        both.add_trials([*self._as_here(old), *self._own()])
        return Fixed(both.ask(self._distributions).params)

    def adopt(self, index: int, positions: Mapping[str, Any], *, known: bool) -> None:
        pass

    def told(self, index: int, score: float | None) -> None:
        self._told += score is not None

    def _own(self) -> list[FrozenTrial]:
        trials = self._journal.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.params.keys() == self._distributions.keys()]

    def _as_here(self, old: Old) -> Iterator[FrozenTrial]:
        """Old trials, accurate in proportion to the best of here."""
        done = self._journal.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = max((trial.values[0] for trial in done), default=1.0)
        for one in old:
            for position, relative_accuracy, flops_kept in one.prefixes:
                yield create_trial(
                    params={**one.positions, **position},
                    distributions=self._distributions,
                    values=(relative_accuracy * best, flops_kept),
                )


class Gain:
    """Keeps a study of its own in memory, made anew from the journal at every launch."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], most: Mapping[str, Any], old: Old = ()) -> None:
        self._distributions = {name: found for name, found in distributions.items() if name not in most}
        self._old = old
        self._told = 0
        self._most = dict(most)
        self._study = optuna.create_study(direction="maximize")
        self._numbers: dict[int, int] = {}  # of a proposal in that study

    def sampler(self, seed: int, *, explore: bool) -> BaseSampler:
        by_gain = TPESampler(seed=seed, n_startup_trials=1, multivariate=True)  # one density for all settings together
        old = still_counting(self._old, self._told)
        if old and not explore:
            both = optuna.create_study(direction="maximize", sampler=by_gain)
            both.add_trials([*self._ranked(old), *self._own()])
            return Fixed({**both.ask(self._distributions).params, **self._most})
        self._study.sampler = RandomSampler(seed) if explore else by_gain
        trial = self._study.ask(self._distributions)
        self._study.tell(trial, state=TrialState.FAIL)  # adopted with its number once it stands in the journal
        return Fixed({**trial.params, **self._most})

    def adopt(self, index: int, positions: Mapping[str, Any], *, known: bool) -> None:
        if known:
            return
        params = {name: positions[name] for name in self._distributions}
        self._numbers[index] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=self._distributions))

    def told(self, index: int, score: float | None) -> None:
        number = self._numbers.pop(index, None)
        if number is None:
            return
        if score is None:
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self._study.tell(number, score)
            self._told += 1

    def _ranked(self, old: Old) -> Iterator[FrozenTrial]:
        for rank, one in enumerate(old):
            params = {name: one.positions[name] for name in self._distributions}
            yield create_trial(params=params, distributions=self._distributions, value=-(rank + 0.5) / len(old))

    def _own(self) -> list[FrozenTrial]:
        """The study's own trials, with their ranks for values: what they gained is no measure for old ones."""
        trials = self._study.get_trials()
        done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        for rank, trial in enumerate(sorted(done, key=lambda trial: -trial.values[0])):
            trial.values = [-(rank + 0.5) / len(done)]
        return [trial for trial in trials if trial.state != TrialState.FAIL]


@dataclass
class Fixed(BaseSampler):
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
