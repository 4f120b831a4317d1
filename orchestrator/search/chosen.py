"""Which points of a frontier are confirmed, and what their paths are: the search's settings, longer, of fresh seeds."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
from pydantic import ValidationError

from orchestrator.collector import Study, parse_flops
from orchestrator.collector.amounts import format_flops
from orchestrator.record import InvalidInput, Point, Schedule, TrialRecord, TrialSpec, options_for
from orchestrator.search.space_methods import matters

APART = 1000  # from the search's seed to the first of a confirmation


def spread(study: Study, count: int) -> list[Point]:
    """So many pruned points of the frontier, or all if there are fewer, evenly spread over the logarithm of flops.

    The cheapest and the most accurate are among them if count is 2 or more. Raises InvalidInput where there is none.
    """
    front = _pruned(study)
    if len(front) <= count:
        return _points(study, front["key"])
    places = [math.log(flops) for flops in front["flops"]]
    shares = [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
    taken: list[int] = []
    for share in shares:
        wanted = places[0] + share * (places[-1] - places[0])
        distances = [abs(place - wanted) for place in places]
        taken.append(min((at for at in range(len(places)) if at not in taken), key=distances.__getitem__))
    return _points(study, front["key"].iloc[sorted(taken)])


def within(study: Study, budgets: str) -> list[Point]:
    """The most accurate pruned point within each budget of flops, such as "50M,100M", the cheapest first.

    Raises InvalidInput for what is no number of flops, and for a budget that no point keeps to.
    """
    front = _pruned(study)
    keys = []
    for budget in sorted(parse_flops(text, "--at") for text in budgets.split(",")):
        fitting = front[front["flops"] <= budget]
        if fitting.empty:
            raise InvalidInput(
                f"{study.path}: no pruned point of the frontier has at most {format_flops(budget)} flops; the smallest "
                f"has {format_flops(front['flops'].iloc[0])}"
            )
        keys.append(str(fitting["key"].iloc[-1]))
    return _points(study, dict.fromkeys(keys))


def paths_of(
    study: Study, points: Sequence[Point], *, seeds: int, length: float, data_root: str | None
) -> Iterator[tuple[Point, TrialSpec]]:
    """The path of each point from each seed: its settings up to its iteration, schedules at their full length.

    Raises InvalidInput where the study does not tell a point's settings.
    """
    trials = study.store.trials()
    used = {trial.spec.seed for trial in trials} | {point.seed for point in points}
    by_stage = {key: trial for trial in trials for key in trial.stages}
    for point in points:
        spec = _spec_of(study, point, by_stage.get(point.key))
        changes: dict[str, Any] = {
            "iterations": point.iteration,
            "latency_batch": 0,  # it was measured by the search
            **{name: _longer(getattr(spec, name), length) for name in ("dense", "sparse", "recovery")},
            **({} if data_root is None else {"data_root": data_root}),
        }
        for seed in _fresh(point.seed, seeds, used):
            yield point, spec.model_copy(update={**changes, "seed": seed})


def _pruned(study: Study) -> pd.DataFrame:
    front = study.front()
    pruned = front[front["kind"] == "cut"]
    if pruned.empty:
        raise InvalidInput(f"{study.path}: no pruned point on the frontier so far; there is nothing to confirm")
    return pruned


def _points(study: Study, keys: Iterable[str]) -> list[Point]:
    return [study.store.point(key) for key in keys]


def _fresh(seed: int, count: int, used: set[int]) -> list[int]:
    """The first so many from seed + 1000 on that no trial of the study has."""
    found: list[int] = []
    candidate = seed + APART
    while len(found) < count:
        if candidate not in used:
            found.append(candidate)
        candidate += 1
    return found


def _longer(schedule: Schedule, length: float) -> Schedule:
    epochs = max(1, round(schedule.epochs * length)) if schedule.epochs else 0
    return schedule.model_copy(update={"epochs": epochs})


def _spec_of(study: Study, point: Point, trial: TrialRecord | None) -> TrialSpec:
    """The settings that gave a point: of a trial that passed it, else of the study's definition."""
    if trial is not None:
        return trial.spec
    there = study.store.read_json("study.json")
    fixed = there.get("definition", {}).get("trial") if isinstance(there, dict) else None
    own = point.model_dump(
        include={"model", "dataset", "method", "regularization_weight", "pruning_ratio", "seed", "iteration"}
    )
    own["iterations"] = own.pop("iteration")
    searched = there.get("definition", {}).get("search", {}) if isinstance(there, dict) else {}
    unknown = [name for name in searched if name not in own and matters(str(point.method), name)]
    if not isinstance(fixed, dict) or unknown:
        raise InvalidInput(
            f"{study.path}: point {point.key[:12]} has no record of its trial in trials/, and study.json does not tell "
            + (f"its {unknown[0]}" if unknown else "its settings")
        )
    try:
        options = options_for(str(point.method), fixed.get("method_options", {}))
        return TrialSpec.model_validate({**fixed, **own, "method_options": options})
    except ValidationError as error:
        raise InvalidInput(
            f"{study.path / 'study.json'}: damaged (definition.trial: {error.errors()[0]['msg']})"
        ) from error
