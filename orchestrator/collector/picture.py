"""Pictures of a study for papers: first what is to be seen, then the drawing of it."""

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter
from numpy.typing import NDArray

from orchestrator.collector.course import hypervolume_over_cost, previous_points
from orchestrator.collector.frontier import frontier_mask
from orchestrator.collector.query import EmptyStudy, Study
from orchestrator.collector.target import check_target
from orchestrator.record import InvalidInput

Show = Literal["frontier", "trajectories", "hypervolume"]
Over = Literal["flops", "params", "latency_ms"]
FORMATS = (".svg", ".png")
LABELS: dict[Over, str] = {
    "flops": "flops, M (multiply-accumulates of convolutions and linear layers, batch 1)",
    "params": "params, M",
    "latency_ms": "latency_ms of one batch",
}
SCALES: dict[Over, float] = {"flops": 1e6, "params": 1e6, "latency_ms": 1.0}
BLUE, RED, GREY = "#0072b2", "#c24e00", "#b3bac5"  # of Okabe and Ito, which colour-blind readers tell apart
WIDE = 10  # from this ratio of costs on, dense to lowest, the axis is logarithmic
PLAIN = FuncFormatter(lambda value, position: f"{value:g}")
# A study that did not change gives the same bytes: no date, and names that come from the drawing alone.
STYLE: Any = {"svg.hashsalt": "orchestrator", "font.size": 10.0, "axes.edgecolor": "#8a929e"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a picture of a study shows. Points are [points, 2]: cost, in millions if it is a count, and accuracy."""

    title: str
    over: Over
    front: NDArray[np.float64]  # in ascending order of cost
    others: NDArray[np.float64]
    dense: NDArray[np.float64]  # no row where the dense model's point is missing
    dense_cost: float  # the highest cost where the dense model's point is missing
    steps: NDArray[np.float64]  # [steps, 2, 2]: from a point to the one that was made of it
    floor: float  # where the accuracy axis begins; what lies below is counted, not drawn


def picture_of(study: Study, over: Over = "flops") -> Picture:
    """What there is to see in a study. Raises EmptyStudy while it has no point, InvalidInput without that cost."""
    title, points = _points(study)
    known = points[points[over].notna()].reset_index(drop=True)
    if known.empty:
        raise InvalidInput(
            f"{study.path}: no point has {over}; trial.latency_batch in the search space has it measured"
        )
    known = known.sort_values(["params", "key"], ignore_index=True)
    cost, accuracy = known[over].to_numpy(dtype=np.float64) / SCALES[over], known["accuracy"].to_numpy()
    places, mask = np.column_stack((cost, accuracy)), frontier_mask(accuracy, cost)
    front, dense = places[mask], places[known["kind"] == "dense"]
    lowest, highest = front[:, 1].min(), front[:, 1].max()
    return Picture(
        title=title,
        over=over,
        front=front[np.argsort(front[:, 0])],
        others=places[~mask],
        dense=dense,
        dense_cost=float(dense[:, 0].max() if len(dense) else cost.max()),
        steps=_steps(known, places),
        floor=max(0.0, lowest - max(0.02, 0.25 * (highest - lowest))),
    )


def draw(study: Study, path: str | os.PathLike[str], *, show: Show = "frontier", over: Over = "flops") -> None:
    """Draws a study into an SVG or PNG file, whole or not at all.

    show: the frontier; the trajectories of the trials under it, dense -> cut -> cut; or hypervolume over train_flops.
    over: what accuracy is drawn over. Raises InvalidInput for another ending or a bad path.
    """
    check_picture(Path(path))
    write_picture(
        _course_of(study) if show == "hypervolume" else _front_of(study, over, trajectories=show == "trajectories"),
        path,
    )


def write_picture(paint: Callable[[Axes], None], path: str | os.PathLike[str]) -> None:
    """Draws into an SVG or PNG file, whole or not at all. Raises InvalidInput for another ending or a bad path."""
    target = Path(path)
    check_picture(target)
    aside = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(7.2, 4.4), layout="constrained")
            paint(figure.add_subplot())
            figure.savefig(aside, dpi=150, metadata={"Date": None} if target.suffix == ".svg" else None)
        aside.replace(target)
    except OSError as error:
        raise InvalidInput(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        if aside.exists():
            aside.unlink()


def check_picture(target: Path) -> None:
    """Raises InvalidInput for another ending, and for a folder that cannot be written to."""
    check_target(target, "picture", FORMATS)


def _points(study: Study) -> tuple[str, pd.DataFrame]:
    """The title of a study's pictures, and its points with `previous`, the key of the one that each was made of."""
    stages = study.stages()
    points = stages[stages["flops"].notna()].reset_index(drop=True)
    if points.empty:
        study.front()  # says that there is no point, and why
        raise EmptyStudy(f"{study.path}: no point so far")
    points["previous"] = previous_points(stages)
    first = points.iloc[0]
    return f"{study.name}: {first['model']} on {first['dataset']}, {len(points)} points", points


def _steps(points: pd.DataFrame, places: NDArray[np.float64]) -> NDArray[np.float64]:
    place = dict(zip(points["key"], places, strict=True))
    found = [
        (place[before], place[key])
        for key, before in zip(points["key"], points["previous"], strict=True)
        if before in place
    ]
    return np.array(found, dtype=np.float64).reshape(-1, 2, 2)


def _front_of(study: Study, over: Over, *, trajectories: bool) -> Callable[[Axes], None]:
    picture = picture_of(study, over)

    def paint(axes: Axes) -> None:
        draw_frame(axes, picture.title, LABELS[over], "accuracy on the validation split")
        _draw_points(axes, picture, trajectories=trajectories)
        _scale(axes, picture)
        axes.set_ylim(picture.floor, None)
        if over == "flops":
            _draw_flops_kept(axes, picture.dense_cost)
        axes.legend(loc="lower right", frameon=False)

    return paint


def _course_of(study: Study) -> Callable[[Axes], None]:
    title, _ = _points(study)
    cost, worth = hypervolume_over_cost(study.stages())

    def paint(axes: Axes) -> None:
        draw_frame(axes, title, "train_flops (forward flops x samples x 3, of the whole study)", "hypervolume")
        axes.step(cost, worth, where="post", color=BLUE, linewidth=1.5)
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.set_xlim(0, None)
        axes.set_ylim(0, 1)

    return paint


def draw_frame(axes: Axes, title: str, across: str, up: str) -> None:
    """Title, labels and grid."""
    # A name may hold what matplotlib would read as mathematics.
    axes.set_title(title.replace("$", r"\$"), loc="left", fontweight="bold")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25)
    axes.spines["right"].set_visible(False)


def _draw_flops_kept(axes: Axes, dense: float) -> None:
    kept = axes.secondary_xaxis("top", functions=(_times(1 / dense), _times(dense)))
    kept.set_xlabel("flops_kept")
    kept.xaxis.set_major_formatter(PLAIN)


def _scale(axes: Axes, picture: Picture) -> None:
    """A frontier that reaches far below the dense model is drawn over the logarithm of its cost."""
    lowest = min([*picture.front[:, 0], *picture.others[:, 0]])
    highest = max([picture.dense_cost, *picture.others[:, 0]])
    if lowest > highest / WIDE or lowest <= 0:
        axes.set_xlim(0, highest * 1.06)
        return
    axes.set_xscale("log")
    axes.set_xlim(lowest / 1.25, highest * 1.25)
    axes.xaxis.set_major_formatter(PLAIN)


def _draw_points(axes: Axes, picture: Picture, *, trajectories: bool) -> None:
    below = int(np.sum(picture.others[:, 1] < picture.floor))
    label = f"other points ({below} of them lie lower)" if below else "other points"
    if trajectories and len(picture.steps):
        ends = np.full((len(picture.steps), 1, 2), np.nan)
        line = np.concatenate((picture.steps, ends), axis=1).reshape(-1, 2)  # a gap after each step
        axes.plot(*line.T, "-", color=GREY, linewidth=0.8, alpha=0.7, label="trajectories: dense, cut, cut, ...")
    axes.plot(*picture.others.T, "o", color=GREY, markersize=4, label=label)
    # A step: up to the next point's cost, this one is the best there is.
    axes.step(*picture.front.T, where="post", color=BLUE, linewidth=1.5)
    axes.plot(*picture.front.T, "o", color=BLUE, markersize=6, label="frontier")
    axes.plot(*picture.dense.T, "D", color=RED, markersize=6, label="dense model")


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda values: np.asarray(values) * factor
