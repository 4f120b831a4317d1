"""The frontier as a picture: first what is to be seen, then the drawing of it."""

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from orchestrator.collector.query import Study
from orchestrator.record import InvalidInput

FORMATS = (".svg", ".png")
FLOPS_LABEL = "flops, M (multiply-accumulates of convolutions and linear layers, batch 1)"
BLUE, RED, GREY = "#1f5fbf", "#d1571d", "#b3bac5"
WIDE = 10  # from this ratio of flops on, dense to lowest, the axis is logarithmic
PLAIN = FuncFormatter(lambda value, position: f"{value:g}")
# A study that did not change gives the same bytes: no date, and names that come from the drawing alone.
STYLE: Any = {"svg.hashsalt": "orchestrator", "font.size": 10.0, "axes.edgecolor": "#8a929e"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a picture of a study shows. Points are [points, 2]: flops in millions, validation accuracy."""

    title: str
    front: NDArray[np.float64]  # in ascending order of flops
    others: NDArray[np.float64]
    dense: NDArray[np.float64]  # no row where the dense model's point is missing
    dense_flops: float  # in millions
    floor: float  # where the accuracy axis begins; what lies below is counted, not drawn


def picture_of(study: Study) -> Picture:
    """What there is to see in a study. Raises EmptyStudy while it has no point."""
    front, points = study.front(), study.points()
    first = points.iloc[0]
    front_xy = _xy(front)
    lowest, highest = front_xy[:, 1].min(), front_xy[:, 1].max()
    return Picture(
        title=f"{study.name}: {first['model']} on {first['dataset']}, {len(points)} points",
        front=front_xy,
        others=_xy(points[~points["key"].isin(front["key"])]),
        dense=_xy(points[points["kind"] == "dense"]),
        dense_flops=float(first["flops"] / first["flops_kept"]) / 1e6,
        floor=max(0.0, lowest - max(0.02, 0.25 * (highest - lowest))),
    )


def draw_front(study: Study, path: str | os.PathLike[str]) -> None:
    """Draws a study's frontier into an SVG or PNG file. Raises InvalidInput for another ending or a bad path."""
    target = Path(path)
    if target.suffix not in FORMATS:
        raise InvalidInput(
            f"{target}: ends in {target.suffix or 'nothing'!r}; a picture ends in {' or '.join(FORMATS)}"
        )
    aside = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    picture = picture_of(study)
    try:
        with mpl.rc_context(STYLE):
            metadata = {"Date": None} if target.suffix == ".svg" else None
            _figure(picture).savefig(aside, dpi=150, metadata=metadata)
        aside.replace(target)
    except OSError as error:
        raise InvalidInput(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        if aside.exists():
            aside.unlink()


def _figure(picture: Picture) -> Figure:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(picture.title, loc="left", fontweight="bold")
    axes.set_xlabel(FLOPS_LABEL)
    axes.set_ylabel("accuracy on the validation split")
    _draw_points(axes, picture)
    _scale(axes, picture)
    axes.set_ylim(picture.floor, None)
    kept = axes.secondary_xaxis("top", functions=(_times(1 / picture.dense_flops), _times(picture.dense_flops)))
    kept.set_xlabel("flops_kept")
    kept.xaxis.set_major_formatter(PLAIN)
    axes.grid(alpha=0.25)
    axes.spines["right"].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure


def _scale(axes: Axes, picture: Picture) -> None:
    """A frontier that reaches far below the dense model is drawn over the logarithm of its flops."""
    lowest = min([*picture.front[:, 0], *picture.others[:, 0]])
    if lowest > picture.dense_flops / WIDE:
        axes.set_xlim(0, picture.dense_flops * 1.06)
        return
    axes.set_xscale("log")
    axes.set_xlim(lowest / 1.25, picture.dense_flops * 1.25)
    axes.xaxis.set_major_formatter(PLAIN)


def _draw_points(axes: Axes, picture: Picture) -> None:
    below = int(np.sum(picture.others[:, 1] < picture.floor))
    label = f"other points ({below} of them lie lower)" if below else "other points"
    axes.plot(*picture.others.T, "o", color=GREY, markersize=4, label=label)
    # A step: up to the next point's flops, this one is the best there is.
    axes.step(*picture.front.T, where="post", color=BLUE, linewidth=1.5)
    axes.plot(*picture.front.T, "o", color=BLUE, markersize=6, label="frontier")
    axes.plot(*picture.dense.T, "D", color=RED, markersize=6, label="dense model")


def _xy(frame: pd.DataFrame) -> NDArray[np.float64]:
    return np.column_stack((frame["flops"] / 1e6, frame["accuracy"]))


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda values: np.asarray(values) * factor
