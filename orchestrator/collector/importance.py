"""Which of the settings explains what a study found: permutation importance on trials held out.

A random forest is fitted to four fifths of the trials and asked about the last fifth, five times over. Then it is asked
again with one setting drawn at random. Half of what that adds to the squared error, over the variance of what is to be
explained, estimates the setting's total effect: the share of the variance that goes with it, alone or together with the
others (Jansen 1999, Analysis of variance designs for model output; on held-out data it is the permutation importance of
Breiman 2001, Random Forests). Trials of equal settings are held out together, so that none is asked about its twin.
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
    methods = sorted({trial.spec.method for trial in trials})
    rows = []
    for trial in _evenly(trials):
        own = found.reindex([key for key in trial.stages if key in found.index])
        if len(own):
            spec = trial.spec
            settings = (spec.regularization_weight, spec.pruning_ratio, float(spec.iterations))
            method = (methods.index(spec.method),)[: len(methods) - 1]
            rows.append((*settings, *method, hypervolume(own["accuracy"], own["flops_kept"])))
    names = _names(methods)
    return _explained("hypervolume of a trial", np.array(rows, dtype=np.float64).reshape(-1, len(names) + 1), names)


def importance_for_points(trials: Sequence[TrialRecord], points: pd.DataFrame) -> Importance:
    """What explains the accuracy of a pruned point of these trials; `iterations` are those that it has been through."""
    ended = {key for trial in trials for key in trial.stages}
    cut = points[(points["kind"] == "cut") & points["key"].isin(ended)].dropna(
        subset=["regularization_weight", "pruning_ratio"]
    )
    methods = sorted(cut["method"].dropna().unique())
    columns = ["regularization_weight", "pruning_ratio", "iteration", *["method"][: len(methods) - 1], "accuracy"]
    coded = cut.assign(method=cut["method"].map({method: at for at, method in enumerate(methods)}))
    table = coded.iloc[even_positions(len(cut), MOST)][columns].to_numpy(dtype=np.float64)
    return _explained("accuracy of a point", table, _names(methods))


def _names(methods: Sequence[str]) -> tuple[str, ...]:
    """The settings that are columns of a table; methods by their place, where there are several."""
    return (*SETTINGS, "method") if len(methods) > 1 else SETTINGS


def _alike(settings: Floats) -> Floats:
    """[samples, 2 or 3] what trials of equal settings share, whatever their iterations."""
    return np.delete(settings, SETTINGS.index("iterations"), axis=1)


def _evenly(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [trials[at] for at in even_positions(len(trials), MOST)]


def even_positions(count: int, most: int) -> NDArray[np.int64]:
    """Places in a list of `count`, evenly spread, first and last among them: all, or `most` of them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)) if count else np.array([], np.int64)


def _explained(of: str, table: Floats, names: tuple[str, ...]) -> Importance:
    """table: [samples, settings + 1], the last column is what is to be explained."""
    settings, target = table[:, :-1], table[:, -1]
    varied = [len(set(column)) > 1 for column in settings.T]
    nothing: dict[str, float | None] = dict.fromkeys(names)
    groups = np.unique(_alike(settings), axis=0, return_inverse=True)[1] if len(table) else np.array([])
    if (pairs := len(set(groups.tolist()))) < LEAST:
        silence = f"{LEAST} different pairs of regularization_weight and pruning_ratio are needed, there are {pairs}"
        return Importance(of=of, samples=len(table), settings=nothing, silence=silence)
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
    """The share of the variance that is explained on what is held out, and the total effect of each column."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import GroupKFold

    table = np.array(rows)
    settings, target = table[:, :-1], table[:, -1]
    groups = np.unique(_alike(settings), axis=0, return_inverse=True)[1]
    random = np.random.default_rng(0)
    errors = np.zeros(1 + settings.shape[1])  # of what is known, then with each column shuffled
    for fit, held in GroupKFold(FOLDS).split(settings, target, groups):
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=0).fit(settings[fit], target[fit])
        asked = np.tile(settings[held], (len(errors), SHUFFLES, 1, 1))
        for column in range(settings.shape[1]):
            asked[1 + column, ..., column] = random.choice(settings[:, column], asked.shape[1:3])
        off = forest.predict(asked.reshape(-1, settings.shape[1])).reshape(asked.shape[:3]) - target[held]
        errors += np.sum(off**2, axis=(1, 2)) / SHUFFLES
    shares = errors / np.sum((target - target.mean()) ** 2)
    return float(1.0 - shares[0]), tuple(np.clip((shares[1:] - shares[0]) / 2, 0.0, 1.0).tolist())
