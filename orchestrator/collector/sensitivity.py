"""What pruning each group alone costs, as a file that grows with every measurement, as a table and as a picture."""

import csv
import io
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from pydantic import ValidationError

from orchestrator.collector.picture import FORMATS, GREY, draw_frame, write_picture
from orchestrator.record import InvalidInput, Record, Sensed, Share

FEW = 10  # groups that a legend names one by one
MARKS = ("o", "D", "^", "s", "P", "v", "*", "X")


class Sensitivity(Record):
    """All that was measured of one network by one method. Two of another `definition` are not to be compared."""

    model: str
    dataset: str
    definition: dict[str, Any]  # key of the dense stage, method, version, options, statistics
    accuracy: Share  # of the dense network, on the validation split
    flops: int
    measured: tuple[Sensed, ...] = ()

    def with_(self, sensed: Sensed) -> Self:
        """The same with one measurement more."""
        return self.model_copy(update={"measured": (*self.measured, sensed)})

    def only(self, wanted: Iterable[tuple[str, float]]) -> Self:
        """The measurements of these pairs of group and share, in their order."""
        found = self.by_place
        return self.model_copy(update={"measured": tuple(found[place] for place in wanted if place in found)})

    @property
    def by_place(self) -> Mapping[tuple[str, float], Sensed]:
        """By group and share."""
        return {(one.group, one.share): one for one in self.measured}

    def by_group(self) -> dict[str, list[Sensed]]:
        """Of each group the measurements, in ascending order of share."""
        found: dict[str, list[Sensed]] = {}
        for one in sorted(self.measured, key=lambda one: one.share):
            found.setdefault(one.group, []).append(one)
        return {one.group: found[one.group] for one in self.measured}


def files_of(picture: Path) -> tuple[Path, Path]:
    """The table and the record beside a picture: FILE.csv and FILE.json. Raises InvalidInput for another ending."""
    if picture.suffix not in FORMATS:
        raise InvalidInput(
            f"{picture}: ends in {picture.suffix or 'nothing'!r}; a picture ends in {' or '.join(FORMATS)}"
        )
    return picture.with_suffix(".csv"), picture.with_suffix(".json")


def read(path: Path, begun: Sensitivity) -> Sensitivity:
    """What a file has of the measurements that `begun` is about; that itself if there is no file.

    Raises InvalidInput for a file that is none, or of another network, method or way of measuring.
    """
    try:
        found = Sensitivity.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return begun
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        raise InvalidInput(f"{path}: cannot be read as a sensitivity; give another --output") from error
    if found.definition != begun.definition:
        other = [name for name, value in begun.definition.items() if found.definition.get(name) != value]
        raise InvalidInput(
            f"{path}: was measured with another {other[0] if other else 'definition'}; give another --output"
        )
    return found


def write(path: Path, content: str) -> None:
    """A text file, whole or not at all. Raises InvalidInput for a path that cannot be written."""
    aside = path.with_name(f".{uuid.uuid4().hex}.aside")
    try:
        aside.write_text(content, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        aside.unlink(missing_ok=True)


def as_csv(found: Sensitivity) -> str:
    """One line a measurement, all its fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Sensed.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.model_dump() for one in found.measured)
    return text.getvalue()


def draw(found: Sensitivity, path: Path) -> None:
    """Accuracy over the share of a group's channels that left, a line a group (figure 2b of the paper).

    Colours go with the depth in the network; up to ten groups are named. Raises InvalidInput for a bad path.
    """
    groups = found.by_group()

    def paint(axes: Axes) -> None:
        title = f"{found.model} on {found.dataset}: each group pruned alone, nothing trained"
        draw_frame(axes, title, "share of the group's channels that left", "accuracy on the validation split")
        colours = mpl.colormaps["viridis"].resampled(256)
        for nth, (name, row) in enumerate(groups.items()):
            shares = [0.0, *((one.channels - one.kept) / one.channels for one in row)]
            depth = 0.9 * nth / max(len(groups) - 1, 1)  # the last tenth is too light to be seen on white
            mark = MARKS[nth % len(MARKS)]
            accuracies = [found.accuracy, *(one.accuracy for one in row)]
            label = name.replace("$", r"\$")
            axes.plot(shares, accuracies, color=colours(depth), marker=mark, markersize=4, linewidth=1.2, label=label)
        axes.axhline(found.accuracy, color=GREY, linestyle="--", linewidth=1)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, None)
        _name_groups(axes, list(groups), colours)

    write_picture(paint, path)


def _name_groups(axes: Axes, groups: list[str], colours: Any) -> None:
    if len(groups) <= FEW:
        axes.legend(loc="lower left", frameon=False, fontsize=8)
        return
    scale = ScalarMappable(Normalize(0, (len(groups) - 1) / 0.9), colours)
    bar = axes.figure.colorbar(scale, ax=axes, ticks=[0, len(groups) - 1], boundaries=range(len(groups) + 1))
    bar.ax.set_yticklabels([groups[0], groups[-1]], fontsize=8)
