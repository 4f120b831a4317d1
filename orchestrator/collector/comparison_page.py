"""A comparison as a page: comparison_data() is all that there is to see, write_comparison() the one HTML file of it."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.collector.comparison import Comparison, Figure, Line, confirmed_of, mean_front
from orchestrator.collector.comparison_facts import differences
from orchestrator.collector.page import comparison_html
from orchestrator.collector.query import Study
from orchestrator.collector.report import COUNTED, write_page
from orchestrator.record import now

MARKS = (
    "key", "study", "method", "regularization_weight", "pruning_ratio", "iteration", "seed", "flops", "flops_kept",
    "params", "accuracy",
)  # fmt: skip
WORDS = ("flops", "accuracy", "test_accuracy", "train_flops")
EXPLAINED = {
    **{word: COUNTED[word] for word in WORDS},
    "hypervolume": "the area under a line's frontier; 1 is accuracy 1 at no cost. The worst corner is the same for all "
    "lines: accuracy 0 at the flops of the largest dense model",
    "accuracy at a budget": "the best of a line's points with at most so many flops, on the validation split",
    "mean and deviation": "over seeds: each figure is worked out for each seed alone. The deviation is that of the "
    "sample; n says how many seeds have a point within the budget. Where the trials of each seed were in different "
    "settings, as is then said among what is not the same, it is a deviation of settings too, not of seeds alone",
    "train_flops of a line": "of all stages on the paths to its points, each stage once; what two lines share counts "
    "for both",
}
LIMITS = (
    "Search figures are validation figures after short recovery training, and the best of many is optimistic. A line "
    "that was searched for longer has had more draws: compare lines of equal train_flops, trials and seeds.",
    "Differences below the deviation over seeds say nothing. With one seed nothing is known about that deviation.",
)


def comparison_data(comparison: Comparison, studies: Sequence[Study]) -> dict[str, Any]:
    """All that the page of a comparison shows, as JSON has it. Marks are columns of equal length."""
    confirmed = confirmed_of(comparison)
    return {
        "made": now(),
        "by": comparison.by,
        "reference_flops": comparison.reference_flops,
        "budgets": list(comparison.budgets),
        "lines": [_line(comparison, line) for line in comparison.lines],
        "differences": [{"field": one.field, "values": list(one.values)} for one in differences(comparison, studies)],
        "confirmed": [
            {str(name): _plain(value) for name, value in row.items()} for row in confirmed.to_dict("records")
        ],
        "counted": EXPLAINED,
        "limits": list(LIMITS),
    }


def write_comparison(data: dict[str, Any], path: str | os.PathLike[str]) -> int:
    """Writes the page of comparison_data() into an HTML file, whole or not at all; returns its bytes.

    Raises InvalidInput for another ending, and where it cannot be written.
    """
    return write_page(comparison_html(data), path)


def _line(comparison: Comparison, line: Line) -> dict[str, Any]:
    front = line.front()
    return {
        "name": line.name,
        "studies": list(line.studies),
        "methods": list(line.methods),
        "models": sorted(line.points["model"].unique()),
        "dataset": str(line.points["dataset"].iloc[0]),
        "seeds": list(line.seeds),
        "dense": _figure(Figure.of(line.dense["accuracy"])),
        "dense_flops": sorted({int(flops) for flops in line.dense["flops"]}),
        "points": len(line.points),
        "trials": line.trials,
        "train_flops": _plain(line.train_flops),
        "hypervolume": _figure(comparison.hypervolume(line)),
        "accuracy_at": [_figure(figure) for figure in comparison.accuracy_at(line)],
        "steps": [[_plain(value) for value in step] for step in mean_front(line).tolist()],
        "marks": {name: [_plain(value) for value in front[name].tolist()] for name in MARKS},
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {"mean": _plain(figure.mean), "deviation": _plain(figure.deviation), "seeds": figure.seeds}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if not math.isfinite(value) else int(value) if value.is_integer() else round(value, 6)
    return value
