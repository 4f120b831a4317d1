"""The overlay of a comparison as a picture for papers."""

import os
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from orchestrator.collector.comparison import Comparison, Line, mean_front
from orchestrator.collector.picture import LABELS, PLAIN, SCALES, WIDE, Over, draw_frame, write_picture
from orchestrator.record import InvalidInput

# Of Okabe and Ito, darkened where they must be read on white; marks and dashes tell lines apart without them.
TONES = ("#0072b2", "#c24e00", "#00795a", "#a8478a", "#9a6a00", "#2184bd", "#1a1d21", "#6d6f75")
MARKS = ("o", "D", "^", "s", "P", "v", "*", "X")
DASHES = ("-", "--", ":", "-.")
SMALL = 4.5  # points


def draw_comparison(comparison: Comparison, path: str | os.PathLike[str], *, over: Over = "flops") -> None:
    """Draws the frontiers over one another into an SVG or PNG file: mean over the seeds, and band of the deviation.

    Raises InvalidInput for a line without that cost, for another ending and for a bad path.
    """
    check_measured(comparison, over)

    def paint(axes: Axes) -> None:
        draw_frame(axes, _title(comparison), LABELS[over], "accuracy on the validation split")
        lows, highs = zip(
            *(_draw_line(axes, line, nth, over) for nth, line in enumerate(comparison.lines)), strict=True
        )
        if min(lows) > max(highs) / WIDE:
            axes.set_xlim(0, max(highs) * 1.06)
        else:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(PLAIN)
        axes.legend(loc="lower right", frameon=False)

    write_picture(paint, path)


def check_measured(comparison: Comparison, over: Over) -> None:
    """Raises InvalidInput for a line of which no point has that cost."""
    without = next((line.name for line in comparison.lines if not line.points[over].notna().any()), None)
    if without is not None:
        raise InvalidInput(f"{without}: no point has {over}; trial.latency_batch in the search space has it measured")


def _draw_line(axes: Axes, line: Line, nth: int, over: Over) -> tuple[float, float]:
    """Returns the least and the highest cost of its marks."""
    tone, turn = TONES[nth % len(TONES)], nth // len(TONES)
    cost, mean, deviation = mean_front(line, over).T
    cost = cost / SCALES[over]
    ends = np.append(cost, line.points[over].max() / SCALES[over])
    name = line.name.replace("$", r"\$")
    label = name if len(line.seeds) == 1 else f"{name} ({len(line.seeds)} seeds)"
    style: dict[str, Any] = {
        "linestyle": DASHES[(nth + turn) % len(DASHES)],
        "color": tone,
        "linewidth": 1.5,
        "markersize": SMALL,
    }
    mark = MARKS[(nth + 3 * turn) % len(MARKS)]
    axes.step(ends, np.append(mean, mean[-1]), where="post", marker=mark, markevery=[0], label=label, **style)
    if not np.isnan(deviation).all():
        low, high = mean - deviation, mean + deviation
        axes.fill_between(ends, np.append(low, low[-1]), np.append(high, high[-1]), step="post", color=tone, alpha=0.12)
    front = line.front(over)
    places = front[over].to_numpy(dtype=np.float64) / SCALES[over]
    axes.plot(places, front["accuracy"], mark, color=tone, markersize=SMALL)
    return float(places.min()), float(places.max())


def _title(comparison: Comparison) -> str:
    points = comparison.lines[0].points
    models = sorted({model for line in comparison.lines for model in line.points["model"]})
    return f"{', '.join(models)} on {points['dataset'].iloc[0]}, by {comparison.by}"
