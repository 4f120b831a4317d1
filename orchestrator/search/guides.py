"""What chooses the settings of the next trial: two guides, of which a study names one.

`gain`      One objective: what a trajectory added to the hypervolume when it was told. Every trial runs to the most
            iterations that the space allows, since each iteration is a point; TPE chooses the other settings.
`prefixes`  Two objectives, accuracy and flops_kept: TPE over all that the journal holds, where every iteration of a
            trial stands as a trial of so many iterations.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

ITERATIONS = "iterations"


class Guide(Protocol):
    """Chooses settings from what was told. Trials are told apart by their number among the proposals."""

    def sampler(self, seed: int, *, explore: bool) -> BaseSampler:
        """What chooses the next settings; at random if `explore`."""

    def adopt(self, index: int, positions: Mapping[str, Any], *, known: bool) -> None:
        """Take note of a proposal, new or from the journal; one that is known already brings no result."""

    def told(self, index: int, score: float | None) -> None:
        """Take in how good a trial was; None if it failed."""


def guide_named(name: str, distributions: Mapping[str, BaseDistribution], most: Mapping[str, Any]) -> Guide:
    """most: the position of the most iterations, where they vary."""
    return Gain(distributions, most) if name == "gain" else Prefixes()


class Prefixes:
    """The journal's own study is all that it needs."""

    def sampler(self, seed: int, *, explore: bool) -> BaseSampler:
        return RandomSampler(seed) if explore else TPESampler(seed=seed, n_startup_trials=1)

    def adopt(self, index: int, positions: Mapping[str, Any], *, known: bool) -> None:
        pass

    def told(self, index: int, score: float | None) -> None:
        pass


class Gain:
    """Keeps a study of its own in memory, made anew from the journal at every launch."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], most: Mapping[str, Any]) -> None:
        self._distributions = {name: found for name, found in distributions.items() if name not in most}
        self._most = dict(most)
        self._study = optuna.create_study(direction="maximize")
        self._numbers: dict[int, int] = {}  # of a proposal in that study

    def sampler(self, seed: int, *, explore: bool) -> BaseSampler:
        by_gain = TPESampler(seed=seed, n_startup_trials=1, multivariate=True)  # one density for all settings together
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
