"""A study as a page: page_data() is all that there is to see, write_report() the one HTML file that shows it.

The page is drawn by a small script of its own rather than by plotly, which the design had named. plotly.js is 4.8 MB in
every file, builds code from text (`Function`), so that a page with it must allow `unsafe-eval`, and draws marks that no
keyboard reaches. What is drawn here are three plain charts: the page is about 70 kB and its data, its content security
policy allows nothing but its own script and style by their digests, and every chart is an SVG that prints sharp.
"""

import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.collector.course import hypervolume_over_cost, previous_points, with_ancestors
from orchestrator.collector.frontier import frontier_mask
from orchestrator.collector.importance import even_positions, importance_for_points, importance_for_trials
from orchestrator.collector.page import html_of
from orchestrator.collector.query import Status, Study
from orchestrator.collector.recipe import (
    allowances,
    export_command,
    other_settings,
    search_command,
    space_template,
    varied_names,
)
from orchestrator.collector.target import check_target
from orchestrator.collector.widths import widths_of
from orchestrator.record import InvalidInput, TrialRecord, now

ENDINGS = (".html", ".htm")
COSTS = ("flops", "params", "latency_ms")
SHOWN = 6000  # points beside the frontiers and what they were made from; of more, an even sample
WITH_WIDTHS = 300  # points whose widths are in the page: the frontier's, and the newest others
LISTED = 200  # failures, and trials that were stopped
LONGEST = 2000  # characters of a message
COURSE = 2000  # steps of the hypervolume
COLUMNS = (
    "key", "kind", "iteration", "model", "dataset", "method", "regularization_weight", "pruning_ratio", "seed", "flops",
    "params", "flops_kept", "accuracy", "accuracy_after_cut", "latency_ms", "path_train_flops", "path_seconds",
    "created",
)  # fmt: skip
ROUNDED = {"flops_kept": 6, "accuracy": 6, "accuracy_after_cut": 6, "latency_ms": 4, "path_seconds": 1}
COUNTED = {
    "flops": "multiply-accumulates of convolutions and linear layers, batch 1; biases and norms are not counted "
    "(ResNet-50 at 224: 4.09 G)",
    "flops_kept": "flops / flops of the dense model",
    "accuracy": "top-1 on the validation split, after recovery training; accuracy_after_cut is before it",
    "test_accuracy": "top-1 on the test split, which the search never looks at; only confirmed points have it",
    "latency_ms": "of one batch, on the machine that measured it: compare within a study only",
    "train_flops": "forward flops x samples x 3, of all that was trained; a stage that was reused counts once",
    "hypervolume": "the area under the frontier over flops_kept in [0, 1], accuracy in [0, 1]",
    "importance": "the share of the variance that goes with a setting, alone or together with the others: half of what "
    "is added to the squared error of a random forest, on trials that it was not fitted to, by drawing the setting at "
    "random",
}
LIMITS = (
    "Search figures are validation figures after short recovery training. The best of many is optimistic: what is "
    "promised to others should be confirmed first.",
    "Each point was measured once, from one seed. Neighbours that differ by less than the validation split can tell "
    "apart are equal for all practical purposes.",
    "A command that makes a point again gives the same key, and on the same kind of machine the same network. Another "
    "kind of processor or another version of PyTorch rounds differently.",
)


def page_data(study: Study) -> dict[str, Any]:
    """All that the page of a study shows, as JSON has it. Answers for a study without a point, too.

    Points are columns of equal length; where other fields speak of a point, they hold its place there. Of very many
    points the dominated ones are thinned out, the frontiers never are: `points.left_out` says how many are missing.
    """
    stages, trials = study.stages(), study.store.trials()
    points = stages[stages["flops"].notna()].reset_index(drop=True)
    previous = dict(zip(points["key"], previous_points(stages), strict=True))
    fronts = {cost: _front(points, cost) for cost in COSTS}
    confirmed = _records(study.confirmed())
    shown = _shown(points, previous, {*chain(*fronts.values()), *(row["key"] for row in confirmed)})
    place = {key: at for at, key in enumerate(shown["key"])}
    described = study.store.read_json("study.json") or {}
    definition = described.get("definition")
    return {
        "made": now(),
        "study": _about(study, points),
        "state": _state(study.status()),
        "points": {
            "total": len(points),
            "left_out": len(points) - len(shown),
            "columns": {name: _column(shown[name], ROUNDED.get(name)) for name in COLUMNS},
            "previous": [place.get(key) for key in _climbed(shown["key"], previous, place)],
            "others": _others(shown, trials, varied_names(definition)),
        },
        "fronts": {cost: [place[key] for key in front] for cost, front in fronts.items()},
        "course": _course(stages),
        "widths": _widths(study, shown, fronts["flops"], place),
        "importance": [asdict(found(trials, points)) for found in (importance_for_trials, importance_for_points)],
        "confirmed": [{"point": place[row["key"]], **row} for row in confirmed if row["key"] in place],
        "failures": _records(study.failures().tail(LISTED)),
        "stopped": _stopped(trials),
        "frozen": _records(study.frozen()) if stages["frozen_groups"].notna().any() else [],
        "unrepaired": _records(study.unrepaired()) if stages["unrepaired_layers"].notna().any() else [],
        "commands": {
            "export": export_command(study.path),
            "allow": allowances(*points["model"].unique(), *points["dataset"].unique()),
            "search": None if "merged" in described else _search_command(study, str(described.get("name", study.name))),
            "space": space_template(definition),
        },
        "counted": COUNTED,
        "limits": list(LIMITS),
    }


def write_report(study: Study, path: str | os.PathLike[str]) -> int:
    """Writes a study's page into an HTML file, whole or not at all; returns its bytes.

    Raises InvalidInput for another ending, and where it cannot be written.
    """
    target = Path(path)
    check_page(target)
    return write_page(html_of(page_data(study)), target)


def write_page(text: str, path: str | os.PathLike[str]) -> int:
    """Writes an HTML file, whole or not at all; returns its bytes. Raises InvalidInput as write_report does."""
    target = Path(path)
    check_page(target)
    content = text.encode()
    aside = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        aside.write_bytes(content)
        aside.replace(target)
    except OSError as error:
        raise InvalidInput(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        aside.unlink(missing_ok=True)
    return len(content)


def check_page(target: Path) -> None:
    """Raises InvalidInput for another ending, and for a folder that cannot be written to."""
    check_target(target, "page", ENDINGS)


def _front(points: pd.DataFrame, cost: str) -> list[str]:
    """The keys of the points that none beats in both accuracy and this cost, in ascending order of it."""
    known = points[points[cost].notna()].sort_values(["params", "key"], kind="stable")
    front = known[frontier_mask(known["accuracy"].to_numpy(), known[cost].to_numpy(dtype=np.float64))]
    return [str(key) for key in front.sort_values(cost)["key"]]


def _shown(points: pd.DataFrame, previous: Mapping[str, str | None], needed: set[str]) -> pd.DataFrame:
    """The points that are in the page, the oldest first: these, what they were made from, the dense ones, others.

    The others are those of the lowest keys. Keys are digests, so that is an even sample, and points that come later
    do not change it but for their own share.
    """
    if len(points) <= SHOWN:
        return points
    kept = with_ancestors([*needed, *points["key"][points["kind"] == "dense"]], previous)
    others = points["key"][~points["key"].isin(kept)].sort_values()[:SHOWN]
    return points[points["key"].isin(kept | set(others))].reset_index(drop=True)


def _climbed(keys: Iterable[str], previous: Mapping[str, str | None], place: Mapping[str, int]) -> Iterator[str]:
    """The nearest ancestor of each point that is in the page; "" where there is none."""
    for key in keys:
        above = previous[key]
        while above is not None and above not in place:
            above = previous[above]
        yield above or ""


def _search_command(study: Study, name: str) -> str:
    """A rerun has left its space file in the study's folder; other space files lie where the user has them."""
    file = f"{name}.toml"
    return search_command(study.path / file if file in study.store.names() else file, study.path.parent)


def _about(study: Study, points: pd.DataFrame) -> dict[str, Any]:
    named = {f"{name}s": sorted(set(points[name].dropna())) for name in ("model", "dataset", "method")}
    return {"name": study.name, "path": str(study.path), **named}


def _state(status: Status) -> dict[str, Any]:
    return {
        "driver": None if status.driver is None else str(status.driver),
        "stages": status.stages,
        "points": status.points,
        "trials": status.trials,
        "stopped": len(status.stopped),
        "failures": status.failures,
        "reused": status.reused,
        "damaged": [text[:LONGEST] for text in status.damaged[:LISTED]],
        "hypervolume": status.hypervolume,
        "train_flops": status.train_flops,
        "train_flops_saved": status.train_flops_saved,
        "seconds": round(status.seconds, 1),
    }


def _others(shown: pd.DataFrame, trials: Sequence[TrialRecord], varied: Sequence[str]) -> dict[str, list[Any]]:
    """What a study varies besides the columns of a point; None while the trial of a point has not ended."""
    found = other_settings(trials, varied)
    names = dict.fromkeys(name for values in found.values() for name in values)
    return {name: [found.get(key, {}).get(name) for key in shown["key"]] for name in names}


def _course(stages: pd.DataFrame) -> dict[str, list[float]]:
    cost, worth = hypervolume_over_cost(stages)
    steps = even_positions(len(cost), COURSE)
    return {"train_flops": cost[steps].tolist(), "hypervolume": worth[steps].round(6).tolist()}


def _widths(study: Study, shown: pd.DataFrame, front: Sequence[str], place: Mapping[str, int]) -> dict[str, Any]:
    newest = [key for key in reversed(shown["key"].tolist()) if key not in set(front)]
    found = widths_of(study.store, [*front, *newest][: max(WITH_WIDTHS, len(front))])
    return {**found, "left": {str(place[key]): left for key, left in found["left"].items()}}


def _stopped(trials: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    return [{"trial": trial.index, "reason": trial.stopped[:LONGEST]} for trial in trials if trial.stopped is not None][
        -LISTED:
    ]


def _column(values: pd.Series, digits: int | None) -> list[Any]:
    return [_plain(value, digits) for value in values.tolist()]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): _plain(value) for name, value in row.items()} for row in frame.to_dict(orient="records")]


def _plain(value: Any, digits: int | None = None) -> Any:
    """A figure or a text as JSON has it: what is missing is None, whole numbers are whole."""
    if isinstance(value, str):
        return value[:LONGEST]
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else value if digits is None else round(value, digits)
    return value.item() if isinstance(value, np.generic) else value
