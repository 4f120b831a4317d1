"""Which of the three settings explains what a study found: permutation importance on trials held out.

A random forest is fitted to four fifths of the trials and asked about the last fifth, five times over. A setting's
importance is by how much the squared error grows when the setting's values are shuffled, as a share of the variance
of what is explained (Breiman 2001, Random Forests; Fisher et al. 2019, All Models are Wrong). 0: it tells nothing
that the other two do not. Trials of equal settings are held out together, so that none is asked about its twin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.collector.frontier import hypervolume
from orchestrator.record import TrialRecord

SETTINGS = ("regularization_weight", "pruning_ratio", "iterations")
FOLDS, TREES, SHUFFLES = 5, 60, 10
LEAST = 12  # groups of equal settings; with fewer a fifth of them says nothing
MOST = 1000  # samples, evenly taken
TRUSTED = 0.1  # of the variance must be explained

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What the settings explain of one figure, or why nothing can be said."""

    of: str
    samples: int
    explained: float | None = None  # share of the variance, on trials held out
    settings: Mapping[str, float | None]  # None for a setting that did not vary
    silence: str | None = None  # why there are no figures


def importance_for_trials(trials: Sequence[TrialRecord], points: pd.DataFrame) -> Importance:
    """What explains the hypervolume of a trial: the area that its own points dominate."""
    found = points.set_index("key")[["accuracy", "flops_kept"]]
    rows = []
    for trial in _evenly(trials):
        own = found.reindex([key for key in trial.stages if key in found.index])
        if len(own):
            settings = (trial.spec.regularization_weight, trial.spec.pruning_ratio, float(trial.spec.iterations))
            rows.append((*settings, hypervolume(own["accuracy"], own["flops_kept"])))
    return _explained("hypervolume of a trial", np.array(rows, dtype=np.float64).reshape(-1, 4), SETTINGS)


def importance_for_points(points: pd.DataFrame) -> Importance:
    """What explains the accuracy of a pruned point; `iterations` are those that it has been through."""
    cut = points[points["kind"] == "cut"].dropna(subset=["regularization_weight", "pruning_ratio"])
    columns = ["regularization_weight", "pruning_ratio", "iteration", "accuracy"]
    table = cut.iloc[_even_positions(len(cut))][columns].to_numpy(dtype=np.float64)
    return _explained("accuracy of a point", table, SETTINGS)


def _evenly(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [trials[at] for at in _even_positions(len(trials))]


def _even_positions(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, MOST)).astype(np.int64)) if count else np.array([], np.int64)


def _explained(of: str, table: Floats, names: tuple[str, ...]) -> Importance:
    """table: [samples, settings + 1], the last column is what is to be explained."""
    settings, target = table[:, :-1], table[:, -1]
    varied = [len(set(column)) > 1 for column in settings.T]
    nothing: dict[str, float | None] = dict.fromkeys(names)
    groups = np.unique(settings[:, :2], axis=0, return_inverse=True)[1] if len(table) else np.array([])
    if len(set(groups.tolist())) < LEAST:
        silence = f"{LEAST} different pairs of regularization_weight and pruning_ratio are needed to tell"
        return Importance(of=of, samples=len(table), settings=nothing, silence=f"{silence}; so far there are "
                          f"{len(set(groups.tolist()))}")
    if float(np.var(target)) == 0.0:
        return Importance(of=of, samples=len(table), settings=nothing, silence="it is the same for all")
    explained, shares = _held_out(tuple(map(tuple, table.tolist())))
    if explained < TRUSTED:
        silence = f"the settings explain too little of it ({max(0.0, explained):.0%} of the variance) to share that out"
        return Importance(of=of, samples=len(table), explained=explained, settings=nothing, silence=silence)
    told = {name: share if moved else None for name, share, moved in zip(names, shares, varied, strict=True)}
    return Importance(of=of, samples=len(table), explained=explained, settings=told)


@lru_cache(maxsize=8)
def _held_out(rows: tuple[tuple[float, ...], ...]) -> tuple[float, tuple[float, ...]]:
    """The share of the variance that is explained on what is held out, and what each column adds to the error."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import GroupKFold

    table = np.array(rows)
    settings, target = table[:, :-1], table[:, -1]
    groups = np.unique(settings[:, :2], axis=0, return_inverse=True)[1]
    random = np.random.default_rng(0)
    count = settings.shape[1]
    error, shuffled = 0.0, np.zeros(count)
    for fit, held in GroupKFold(FOLDS).split(settings, target, groups):
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=0).fit(settings[fit], target[fit])
        error += float(np.sum((forest.predict(settings[held]) - target[held]) ** 2))
        for column in range(count):
            asked = np.repeat(settings[held], SHUFFLES, axis=0)
            asked[:, column] = random.choice(settings[:, column], len(asked))
            off = forest.predict(asked) - np.repeat(target[held], SHUFFLES)
            shuffled[column] += float(np.sum(off**2)) / SHUFFLES
    spread = float(np.sum((target - target.mean()) ** 2))
    shares = tuple(float(max(0.0, (worse - error) / spread)) for worse in shuffled)
    return 1.0 - error / spread, shares
