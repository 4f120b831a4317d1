"""What a new study takes over from an old one: settings to begin with, and observations to guide what follows.

Made once from what the old study's trials have brought, and kept as prior.json with the new study, which from then on
needs the old one no more.

`first`          The settings of the trajectories that make up the old frontier: the one with the largest hypervolume,
                 then, again and again, the one that adds most to it; as many as `proposals.startup`, in whose place
                 they come.
`observations`   Every trial of the old study that brought a pruned point, the best first: ranked by the hypervolume
                 that each has by itself; at most OBSERVATIONS, spread evenly over the ranking. Accuracies and flops of
                 another network are no measure for this one: to the guide `gain` only the ranks are told, to the guide
                 `prefixes` flops_kept and accuracy as a share of the old study's best.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import ValidationError

from orchestrator.collector import Study
from orchestrator.record import InvalidInput, Option, Record, TrialSpec, canonical_json, first_problem, setting_of
from orchestrator.search.dimensions import Dimension
from orchestrator.search.guides import ITERATIONS, OldTrial
from orchestrator.search.space import SearchSpace
from orchestrator.search.space_methods import matters
from orchestrator.search.worth import Found, Front
from orchestrator.store import StageStore

PRIOR_FILE = "prior.json"
OBSERVATIONS = 60  # a large old study must not drown a small new one
REACHED = 0.95  # of a study's own hypervolume, where two studies are compared


class Prefix(NamedTuple):
    """One iteration of an old trial. relative_accuracy: as a share of the old study's best."""

    iteration: int
    relative_accuracy: float
    flops_kept: float


class Observation(Record):
    """An old trial: its settings, by dotted name, and its iterations."""

    settings: dict[str, Option]
    prefixes: tuple[Prefix, ...]


class Prior(Record):
    """What was taken over, and from where."""

    study: str
    model: str
    dataset: str
    first: tuple[dict[str, Option], ...]
    observations: tuple[Observation, ...]  # the best first
    trials: int  # of the old study
    trials_to_reach: int  # until it had REACHED of its hypervolume

    @property
    def digest(self) -> str:
        """What tells this prior from any other."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()


@dataclass(frozen=True)
class Trajectory:
    """What an old trial found."""

    settings: dict[str, Option]
    found: list[Found] = field(default_factory=list)

    @property
    def prefixes(self) -> list[Found]:
        return [point for point in self.found if point.iteration]


def prior_of(study: Study, space: SearchSpace) -> Prior:
    """The prior that a study gives. `space` is the new study's: of the same dimensions, with its limits.

    Raises InvalidInput for a study without a pruned point of a trial that has ended.
    """
    tried = list(_trajectories(study, space))
    useful = [one for one in tried if one.prefixes]
    if not useful:
        raise InvalidInput(f"{study.path}: no trial has ended with a pruned point; there is nothing to take over yet")
    ranked, count = _ranked(useful, space)
    best = max(point.accuracy for one in useful for point in one.prefixes) or 1.0
    trials = study.store.trials()
    return Prior(
        study=study.name,
        model=trials[0].spec.model,
        dataset=trials[0].spec.dataset,
        first=tuple(one.settings for one in ranked[: min(count, space.proposals.startup)]),
        observations=tuple(_observation(one, best) for one in _spread(_by_themselves(ranked, space))),
        trials=len(trials),
        trials_to_reach=trials_to(REACHED, [one.found for one in tried], space),
    )


def read_prior(store: StageStore) -> Prior | None:
    """The prior that a study was begun with, if it was. Raises InvalidInput if it is damaged."""
    there = store.read_json(PRIOR_FILE)
    try:
        return None if there is None else Prior.model_validate(there)
    except ValidationError as error:
        raise InvalidInput(f"{store.root / PRIOR_FILE}: damaged ({first_problem(error)})") from error


def positions_of(settings: Mapping[str, Any], dimensions: Mapping[str, Dimension]) -> dict[str, Any]:
    """Where settings lie in a space. Raises InvalidInput for those that lie in no such place."""
    if settings.keys() != dimensions.keys():
        raise InvalidInput(
            f"{PRIOR_FILE}: has settings of {', '.join(sorted(settings))}; the space varies "
            f"{', '.join(sorted(dimensions))}"
        )
    positions = {name: dimensions[name].position(value) for name, value in settings.items()}
    outside = next((name for name, position in positions.items() if position is None), None)
    if outside is not None:
        raise InvalidInput(f"{PRIOR_FILE}: has {outside} {settings[outside]!r}; the space does not hold it")
    return positions


def old_trials(prior: Prior, dimensions: Mapping[str, Dimension]) -> tuple[OldTrial, ...]:
    """The observations as a guide over these dimensions takes them, the best first."""
    return tuple(
        OldTrial(positions_of(one.settings, dimensions), tuple(_prefixes(one, dimensions.get(ITERATIONS))))
        for one in prior.observations
    )


def _prefixes(observation: Observation, iterations: Dimension | None) -> Iterator[tuple[dict[str, Any], float, float]]:
    """Those that are trials of the space: where iterations vary, of as many as it holds; else the whole alone."""
    for one in observation.prefixes if iterations is not None else observation.prefixes[-1:]:
        position = None if iterations is None else iterations.position(one.iteration)
        if iterations is None or position is not None:
            at = {} if iterations is None else {ITERATIONS: position}
            yield at, one.relative_accuracy, one.flops_kept


def trials_to(share: float, trials: Sequence[Sequence[Found]], space: SearchSpace) -> int:
    """After how many trials, in their order, so much of the final hypervolume was there; 0 if it is none."""
    front = Front(space.limits)
    worth = [0.0]
    for found in trials:
        for point in found:
            front.add(point)
        worth.append(front.worth)
    return next(count for count, reached in enumerate(worth) if reached >= share * worth[-1])


def found_in(study: Study) -> Iterator[tuple[Any, list[Found]]]:
    """Every trial that has ended with what it found, in the order of the proposals; damaged points are left out."""
    names = list(Found._fields)
    frame = study.points().set_index("key")[names]
    rows = {key: Found(*_plain(row)) for key, row in zip(frame.index, frame.itertuples(index=False), strict=True)}
    for trial in study.store.trials():
        yield trial, [rows[key] for key in trial.stages if key in rows]


def _plain(row: Any) -> Iterator[Any]:
    return (None if isinstance(value, float) and math.isnan(value) else value for value in row)


def _trajectories(study: Study, space: SearchSpace) -> Iterator[Trajectory]:
    for trial, found in found_in(study):
        yield Trajectory(dict(_settings(trial.spec, space)), found)


def _settings(spec: TrialSpec, space: SearchSpace) -> Iterator[tuple[str, Any]]:
    """What a trial had of all that varies; of what means nothing to its method, any value of the space."""
    values = spec.model_dump()
    for name, dimension in space.dimensions.items():
        yield name, setting_of(values, name) if matters(spec.method, name) else dimension.ends()[0]


def _ranked(tried: Sequence[Trajectory], space: SearchSpace) -> tuple[list[Trajectory], int]:
    """Those that make up the frontier first, the best first, and how many; of the same settings the longest alone."""
    left = list(_distinct(tried))
    front, picked = Front(space.limits), list[Trajectory]()
    while left:
        scores = [front.score(one.prefixes) for one in left]
        at = max(range(len(left)), key=scores.__getitem__)  # the earliest of equal ones
        if scores[at] <= 0:
            break
        picked.append(left.pop(at))
        for point in picked[-1].found:
            front.add(point)
    return [*picked, *left], len(picked)


def _by_themselves(tried: Sequence[Trajectory], space: SearchSpace) -> list[Trajectory]:
    return sorted(tried, key=lambda one: -Front(space.limits, one.found).worth)  # stable: of equal ones as before


def _distinct(tried: Sequence[Trajectory]) -> Iterator[Trajectory]:
    longest: dict[str, Trajectory] = {}
    for one in tried:
        base = canonical_json({name: value for name, value in one.settings.items() if name != ITERATIONS})
        if base not in longest or len(one.prefixes) > len(longest[base].prefixes):
            longest[base] = one
    yield from longest.values()


def _observation(one: Trajectory, best: float) -> Observation:
    prefixes = [Prefix(p.iteration, p.accuracy / best, p.flops_kept) for p in one.prefixes]
    return Observation(settings=one.settings, prefixes=tuple(prefixes))


def _spread(ranked: Sequence[Trajectory]) -> list[Trajectory]:
    if len(ranked) <= OBSERVATIONS:
        return list(ranked)
    return [ranked[round(i * (len(ranked) - 1) / (OBSERVATIONS - 1))] for i in range(OBSERVATIONS)]
