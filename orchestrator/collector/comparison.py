"""Studies, or the methods in them, side by side under one measure: who has which accuracy at which flops, at what cost.

A *line* is one of what is compared. All lines have one reference for their hypervolume, the flops of the largest dense
model among them, and are asked at the same budgets. Where a line has points of several seeds, each figure is worked out
for each seed alone and given as mean and deviation of the sample: the best of many seeds would be worth more than the
best of one. What differs between lines besides their names is for comparison_facts.py to say.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.collector.amounts import parse_flops
from orchestrator.collector.frontier import best_at, frontier_mask, hypervolume
from orchestrator.collector.query import EmptyStudy, Study
from orchestrator.collector.trials import trials_of
from orchestrator.record import InvalidInput

By = Literal["study", "method"]
Floats = NDArray[np.float64]
SHARES = "0.7,0.5,0.3"  # budgets where none are given
OF_LINE = ["line", "study", "method"]  # before the other columns of a table of all lines


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure over the seeds that have it. deviation: of the sample; NaN for one seed, and mean too for none."""

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Figure":
        """None stands for a seed that has no value."""
        known = [value for value in values if value is not None]
        mean = fmean(known) if known else math.nan
        return cls(mean=mean, deviation=stdev(known) if len(known) > 1 else math.nan, seeds=len(known))


@dataclass(frozen=True, kw_only=True)
class Line:
    """One of what is compared. `points` and `confirmed` are as those of Study, and have a column `study`.

    A point that several studies have is there once. A method's line has the dense models that its points came from.
    """

    name: str
    studies: tuple[str, ...]
    methods: tuple[str, ...]
    points: pd.DataFrame
    trials: int  # that have ended
    train_flops: float  # of the stages on the paths to its points, each stage once
    confirmed: pd.DataFrame

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({int(seed) for seed in self.points["seed"]}))

    @property
    def dense(self) -> pd.DataFrame:
        """The points of its dense models."""
        return self.points[self.points["kind"] == "dense"]

    def of_seeds(self) -> Iterator[pd.DataFrame]:
        """Its points, seed by seed."""
        for seed in self.seeds:
            yield self.points[self.points["seed"] == seed]

    def front(self, cost: str = "flops") -> pd.DataFrame:
        """The points of the frontier of each seed, in ascending order of seed and cost."""
        return pd.concat([_front(points, cost) for points in self.of_seeds()], ignore_index=True)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Lines, and what they are measured by."""

    by: By
    lines: tuple[Line, ...]
    budgets: tuple[int, ...]  # of flops, the largest first
    reference_flops: int  # of the largest dense model: the worst corner of every hypervolume, at accuracy 0

    def hypervolume(self, line: Line) -> Figure:
        """Over flops / reference_flops in [0, 1] and accuracy in [0, 1]."""
        return Figure.of(
            hypervolume(points["accuracy"], points["flops"] / self.reference_flops) for points in line.of_seeds()
        )

    def accuracy_at(self, line: Line) -> list[Figure]:
        """The best accuracy within each budget; `seeds` says how many of its seeds have a point there."""
        found = [best_at(points["accuracy"], points["flops"], self.budgets) for points in line.of_seeds()]
        return [Figure.of(one[budget] for one in found) for budget in self.budgets]


def compare(studies: Sequence[Study], *, by: By | None = None, at: str | None = None) -> Comparison:
    """Studies side by side, or the methods in them.

    by: "study", or "method", which one study with several methods is taken for. at: budgets with commas, as flops or
    shares of those of the largest dense model, such as "50M,0.3". Raises InvalidInput where there is nothing to
    compare, or lines of different data sets; EmptyStudy for a study without a point.
    """
    paths = [str(study.path.resolve()) for study in studies]
    if (twice := next((path for at, path in enumerate(paths) if path in paths[:at]), None)) is not None:
        raise InvalidInput(f"{twice}: is given twice; give each study once")
    by = by or ("method" if len(studies) == 1 else "study")
    taken = [(_name(study, studies), study, _stages(study)) for study in studies]
    lines = _by_study(taken) if by == "study" else _by_method(taken)
    _check(lines, studies, by)
    largest = max(int(line.points["flops"].max()) for line in lines)
    reference = max((int(line.dense["flops"].max()) for line in lines if len(line.dense)), default=largest)
    return Comparison(by=by, lines=lines, budgets=_budgets(at or SHARES, reference), reference_flops=reference)


def mean_front(line: Line, cost: str = "flops") -> Floats:
    """[steps, 3]: cost, mean over the seeds of the best accuracy up to it, and deviation (NaN for one seed).

    It begins where every seed has a point. Of one seed it is that seed's frontier.
    """
    fronts = [_front(points, cost)[[cost, "accuracy"]].to_numpy(dtype=np.float64) for points in line.of_seeds()]
    fronts = [front for front in fronts if len(front)]
    if not fronts:
        return np.empty((0, 3))
    start = max(front[0, 0] for front in fronts)
    steps = sorted({value for front in fronts for value in front[:, 0] if value >= start})
    best = [[front[np.searchsorted(front[:, 0], step, side="right") - 1, 1] for front in fronts] for step in steps]
    figures = [Figure.of(values) for values in best]
    return np.array([(step, one.mean, one.deviation) for step, one in zip(steps, figures, strict=True)])


def as_table(comparison: Comparison) -> pd.DataFrame:
    """A row for each line and budget, with the figures of the line repeated."""
    rows = []
    for line in comparison.lines:
        worth = comparison.hypervolume(line)
        of_line = {
            "line": line.name,
            "studies": " ".join(line.studies),
            "methods": " ".join(line.methods),
            "seeds": len(line.seeds),
            "points": len(line.points),
            "trials": line.trials,
            "train_flops": line.train_flops,
            "hypervolume": worth.mean,
            "hypervolume_deviation": worth.deviation,
        }
        for budget, accuracy in zip(comparison.budgets, comparison.accuracy_at(line), strict=True):
            rows.append(
                {
                    **of_line,
                    "budget_flops": budget,
                    "budget_flops_kept": budget / comparison.reference_flops,
                    "accuracy": accuracy.mean,
                    "accuracy_deviation": accuracy.deviation,
                    "accuracy_seeds": accuracy.seeds,
                }
            )
    return pd.DataFrame(rows)


def confirmed_of(comparison: Comparison) -> pd.DataFrame:
    """What was confirmed of all lines: line, study, method of the point, then the columns of Study.confirmed()."""
    found = []
    for line in comparison.lines:
        methods = line.points.set_index("key")["method"]
        named = line.confirmed.assign(line=line.name, method=line.confirmed["key"].map(methods))
        found.append(named[[*OF_LINE, *(name for name in named.columns if name not in OF_LINE)]])
    filled = [frame for frame in found if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else found[0]


def _front(points: pd.DataFrame, cost: str) -> pd.DataFrame:
    known = points[points[cost].notna()].sort_values(["params", "key"], kind="stable")
    mask = frontier_mask(known["accuracy"].to_numpy(), known[cost].to_numpy(dtype=np.float64))
    return known[mask].sort_values(cost, kind="stable")


def _name(study: Study, studies: Sequence[Study]) -> str:
    """Of studies that have the same one, the path."""
    return study.name if sum(other.name == study.name for other in studies) == 1 else str(study.path)


def _stages(study: Study) -> pd.DataFrame:
    stages = study.stages()
    if not stages["flops"].notna().any():
        study.front()  # says that there is no point, and why
        raise EmptyStudy(f"{study.path}: no point so far")
    return stages


Taken = Sequence[tuple[str, Study, pd.DataFrame]]


def _by_study(taken: Taken) -> tuple[Line, ...]:
    lines = []
    for name, study, stages in taken:
        points = _points(name, stages, set(stages["key"]))
        trials = len(trials_of(study.store))
        lines.append(_line(name, [points], [stages], [_confirmed(name, study)], trials))
    return tuple(lines)


def _by_method(taken: Taken) -> tuple[Line, ...]:
    methods = sorted({method for _, _, stages in taken for method in stages["method"].dropna()})
    trials = [trial.spec.method for _, study, _ in taken for trial in study.store.trials()]
    confirmed = [_confirmed(name, study) for name, study, _ in taken]
    lines = []
    for method in methods:
        points = [
            _points(name, stages, set(path_stages(stages, stages["key"][stages["method"] == method])))
            for name, _, stages in taken
        ]
        keys = {key for frame in points for key in frame["key"]}
        own = [frame[frame["key"].isin(keys)] for frame in confirmed]
        lines.append(_line(method, points, [stages for _, _, stages in taken], own, trials.count(method)))
    return tuple(lines)


def _line(
    name: str,
    points: Sequence[pd.DataFrame],
    stages: Sequence[pd.DataFrame],
    confirmed: Sequence[pd.DataFrame],
    trials: int,
) -> Line:
    """points, stages, confirmed: of each study."""
    together = pd.concat([frame for frame in points if len(frame)], ignore_index=True).drop_duplicates("key")
    costs = {
        key: cost
        for own, whole in zip(points, stages, strict=True)
        for key, cost in path_stages(whole, own["key"]).items()
    }
    filled = [frame for frame in confirmed if len(frame)] or list(confirmed[:1])
    return Line(
        name=name,
        studies=tuple(frame["study"].iloc[0] for frame in points if len(frame)),
        methods=tuple(sorted(together["method"].dropna().unique())),
        points=together.reset_index(drop=True),
        trials=trials,
        train_flops=math.fsum(costs.values()),
        confirmed=pd.concat(filled, ignore_index=True),
    )


def path_stages(stages: pd.DataFrame, points: Iterable[str]) -> dict[str, float]:
    """The train_flops of all stages on the paths to these points, by key; each once."""
    parents: Mapping[str, str | None] = dict(zip(stages["key"], stages["parent"], strict=True))
    costs = dict(zip(stages["key"], stages["train_flops"].fillna(0.0), strict=True))
    found: dict[str, float] = {}
    for point in points:
        at: str | None = point
        while isinstance(at, str) and at in costs and at not in found:
            found[at] = float(costs[at])
            at = parents[at]
    return found


def _points(name: str, stages: pd.DataFrame, keys: set[str]) -> pd.DataFrame:
    points = stages[stages["flops"].notna() & stages["key"].isin(keys)]
    return points.assign(study=name)


def _confirmed(name: str, study: Study) -> pd.DataFrame:
    return study.confirmed().assign(study=name)


def _check(lines: Sequence[Line], studies: Sequence[Study], by: By) -> None:
    if len(lines) < 2:
        where = " and ".join(str(study.path) for study in studies)
        if by == "method":
            what = f"one method, {lines[0].name}" if lines else "no pruned point so far"
            raise InvalidInput(f"{where}: has {what}; give a second study, or one of several methods")
        raise InvalidInput(f"{where}: is one study; give a second one, or --by method")
    data = {str(name): line.name for line in reversed(lines) for name in line.points["dataset"].unique()}
    if len(data) > 1:
        having = ", ".join(f"{name} in {line}" for name, line in sorted(data.items()))
        raise InvalidInput(f"accuracies on different data sets cannot be compared: {having}")


def _budgets(text: str, reference: int) -> tuple[int, ...]:
    budgets = {_budget(one.strip(), reference) for one in text.split(",")}
    return tuple(sorted(budgets, reverse=True))


def _budget(text: str, reference: int) -> int:
    """Flops as they are typed; a number up to 1 is a share of the reference."""
    try:
        share = float(text)
    except ValueError:
        return parse_flops(text, "--at")
    if not math.isfinite(share) or share <= 0:
        raise InvalidInput(f"--at {text}: give flops, such as 50M, or a share of the dense model's, above 0")
    return round(share * reference) if share <= 1 else parse_flops(text, "--at")
