"""What the commands print: tables on a terminal, plain lines elsewhere."""

import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.record import Point

if TYPE_CHECKING:
    from collections.abc import Hashable

    import pandas as pd

    from orchestrator.collector import Study

FLOPS_MEANS = "flops: multiply-accumulates of convolutions and linear layers, batch 1"
ACCURACY_MEANS = "accuracy: top-1 on the validation split"
CONFIRMED_MEANS = (
    "test_accuracy: top-1 on the test split, trained anew from fresh seeds: mean ± deviation of the sample"
)
OPTIMISM_MEANS = "optimism: accuracy on the validation split when the search found the point, less that mean"
MEMBERS_SHOWN = 4
BYTES = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
SHORT = 12  # characters of a key
LINE = 100  # of a message in a table
UNBROKEN = re.compile(r"\S+(?: ± \S+| (?:[kMGTP]|[kMGT]?B|bytes)(?!\S))*\s*")  # a word, a figure with what is of it
Cell = list[str]  # the pieces of a text, between which it may be folded


def flops_text(value: float) -> str:
    from orchestrator.collector.amounts import format_flops

    return format_flops(value)


def share_text(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def number_text(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:g}"


def milliseconds_text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def bytes_text(value: float) -> str:
    """Bytes in powers of 1000, as `df -H` and disks' makers have them."""
    unit, scale = next(((u, s) for u, s in BYTES if value >= s), ("bytes", 1))
    return f"{value / scale:.3g} {unit}" if scale > 1 else f"{value:.0f} {unit}"


def first_line(value: Any) -> str:
    line = str(value).partition("\n")[0]
    return line if len(line) <= LINE else f"{line[: LINE - 1]}…"


CELLS: dict[str, Callable[[Any], str]] = {
    "flops": flops_text,
    "flops_kept": share_text,
    "accuracy": share_text,
    "accuracy_after_cut": share_text,
    "params": flops_text,
    "regularization_weight": number_text,
    "pruning_ratio": number_text,
    "iteration": str,
    "key": lambda key: str(key)[:SHORT],
}


MEAN, DEVIATION = "test_accuracy_mean", "test_accuracy_deviation"
CONFIRMED_CELLS: dict[str, Callable[[Any], str]] = {
    "key": lambda key: str(key)[:SHORT],
    "arm": str,
    "seeds": str,
    "test_accuracy": str,
    "optimism": lambda value: "-" if math.isnan(value) else f"{value:+.4f}",
    "flops": flops_text,
    "params": flops_text,
    "train_flops_mean": flops_text,
    "with_validation": lambda value: "yes" if value else "no",
}


def facts_of(point: Point) -> dict[str, str]:
    return {
        "flops": f"{flops_text(point.flops)} (flops_kept {point.flops_kept:.4f})",
        "params": flops_text(point.params),
        "accuracy": share_text(point.accuracy),
        "accuracy_after_cut": share_text(point.accuracy_after_cut),
        "test_accuracy": share_text(point.test_accuracy),
        **({} if point.latency_ms is None else {"latency_ms": _latency_text(point)}),
        "method": point.method or "-",
        "regularization_weight": number_text(point.regularization_weight),
        "pruning_ratio": number_text(point.pruning_ratio),
        "iteration": str(point.iteration),
        "cost": f"{flops_text(point.path_cost.train_flops)} train_flops, {point.path_cost.seconds:.1f} seconds",
        "key": point.key,
    }


def _latency_text(point: Point) -> str:
    return f"{point.latency_ms:.3f} (a batch of {point.latency_batch})"


def print_front(study: "Study", found: "pd.DataFrame") -> None:
    print_heading(f"Frontier of {study.path}", FLOPS_MEANS, ACCURACY_MEANS)
    measured = {"latency_ms": milliseconds_text} if found["latency_ms"].notna().any() else {}
    marked: dict[str, Callable[[Any], str]] = {}
    if found["confirmed_test_accuracy"].notna().any():
        pairs = zip(found["confirmed_test_accuracy"], found["confirmed_deviation"], strict=True)
        found = found.assign(confirmed=[confirmed_text(*pair) for pair in pairs])
        print_heading(f"confirmed: {CONFIRMED_MEANS.removeprefix('test_accuracy: ')}")
        marked = {"confirmed": str}
    print_frame(found, {**named_method(study.methods), **CELLS, **measured, **marked})
    if found.empty:
        typer.echo("no point of the frontier is within these limits")
        return
    budget = flops_text(found["flops"].iloc[len(found) // 2] * 1.005).replace(" ", "")
    command = ["orchestrator", "best", str(study.path), "--max-flops", budget, "--output", "DIR"]
    typer.echo(f"take a model out: {shlex.join(command)}")


def named_method(methods: Sequence[str]) -> dict[str, Callable[[Any], str]]:
    """The column of the points' methods, where a study has several. The dense model has none."""
    return {"method": lambda method: method or "-"} if len(methods) > 1 else {}


def confirmed_text(mean: float, deviation: float) -> str:
    """A confirmed accuracy: mean and, of two seeds or more, the sample's deviation; "-" where there is none."""
    return share_text(mean) + ("" if math.isnan(deviation) else f" ± {deviation:.4f}")


def seeds_text(count: int) -> str:
    return f"{count} seed" + ("" if count == 1 else "s")


def print_confirmed(study: "Study", found: "pd.DataFrame", notes: Iterable[str] = ()) -> None:
    print_heading(f"Confirmed points of {study.path}", FLOPS_MEANS, CONFIRMED_MEANS, OPTIMISM_MEANS)
    if found["with_validation"].any():
        print_heading("trained on train and validation: those with_validation")
    texts = [confirmed_text(*pair) for pair in zip(found[MEAN], found[DEVIATION], strict=True)]
    method_of = study.points().set_index("key")["method"]
    named = found.assign(test_accuracy=texts, method=found["key"].map(method_of))
    print_frame(named, {**CONFIRMED_CELLS, **named_method(study.methods)})
    for note in notes:
        typer.echo(note)


def print_network(title: str, report: Mapping[str, Any]) -> None:
    total = report["flops"]
    print_heading(title, FLOPS_MEANS)
    print_facts(
        {
            "flops": flops_text(total),
            "params": flops_text(report["params"]),
            "prunable share": share_text(report["prunable_share"]),
        }
    )
    for note in report["notes"]:
        typer.echo(f"note: {note}")
    typer.echo()
    print_heading("Groups: channels that can leave, each across all the members of its group")
    print_table(
        ["group", "channels", "exact", "flops_share", "members"],
        [
            [
                str(g["name"]),
                str(g["channels"]),
                "yes" if g["exact"] else "no",
                share_text(g["flops_share"]),
                _members(g),
            ]
            for g in report["groups"]
        ],
    )
    if report["frozen"]:
        typer.echo()
        print_heading("Frozen channels")
        print_table(["channels", "reason"], [[str(f["channels"]), str(f["reason"])] for f in report["frozen"]])
    typer.echo()
    print_heading("Layers")
    print_table(
        ["layer", "flops", "flops_share", "params"],
        [
            [
                str(one["name"]),
                flops_text(one["flops"]),
                share_text(one["flops"] / total if total else None),
                flops_text(one["params"]),
            ]
            for one in report["layers"]
        ],
    )


def _members(group: Mapping[str, Any]) -> str:
    members = [str(member) for member in group["members"]]
    more = len(members) - MEMBERS_SHOWN
    return ", ".join(members[:MEMBERS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def print_heading(title: str, *notes: str) -> None:
    for note in (title, *notes):
        typer.echo(note)


def print_facts(facts: Mapping[str, str]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {value}")


def print_frame(frame: "pd.DataFrame", cells: Mapping[str, Callable[[Any], str]]) -> None:
    rows: Iterable[Mapping[Hashable, Any]] = frame.to_dict(orient="records")
    print_table(list(cells), [[cell(row[name]) for name, cell in cells.items()] for row in rows])


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table. To fit a terminal it folds its header and its texts between words, and never a word or a figure.

    What is still too wide comes in parts, one below the other, each with the columns that tell the rows apart.
    """
    columns = [[_heading(name), *(UNBROKEN.findall(row[index]) for row in rows)] for index, name in enumerate(header)]
    room = console().width
    if sum(map(_widest, columns)) + 2 * len(columns) <= room:
        _print_part(columns, list(map(_widest, columns)), gap=2)
        return
    for nth, part in enumerate(_parts(columns, room)):
        if nth:
            typer.echo()
        _print_part(part, _widths(part, room), gap=1)


def _heading(name: str) -> Cell:
    """A name may be folded behind its underscores too."""
    return [piece for word in UNBROKEN.findall(name) for piece in re.split("(?<=_)", word) if piece]


def _print_part(columns: Sequence[Sequence[Cell]], widths: Sequence[int], *, gap: int) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for (heading, *cells), width in zip(columns, widths, strict=True):
        is_text = not all(cell[:1] in ([], ["-"]) or cell[0][0].isdigit() for cell in cells)
        table.add_column(_fold(heading, width), justify="left" if is_text else "right", no_wrap=True)
    folded = [[Text(_fold(cell, width)) for cell in cells] for (_, *cells), width in zip(columns, widths, strict=True)]
    for row in zip(*folded, strict=True):
        table.add_row(*row)
    console(sum(widths) + gap * len(widths)).print(table)


def _parts(columns: Sequence[Sequence[Cell]], room: int) -> list[list[Sequence[Cell]]]:
    """The columns that are printed together; each time those that tell the rows apart, unless they fill half of it."""
    leading = _leading(columns)
    if sum(map(_least, columns[:leading])) + leading > room / 2:
        leading = 1
    lead = list(columns[:leading])
    parts = [lead]
    for column in columns[leading:]:
        together = [*parts[-1], column]
        if parts[-1] != lead and sum(map(_least, together)) + len(together) - 1 > room:
            together = [*lead, column]
            parts.append(together)
        parts[-1] = together
    return parts


def _leading(columns: Sequence[Sequence[Cell]]) -> int:
    """How many columns, from the left, tell the rows apart; 1 where none do."""
    for count in range(1, len(columns)):
        rows = [str(row) for row in zip(*columns[:count], strict=True)]
        if len({*rows}) == len(rows):
            return count
    return 1


def _widths(columns: Sequence[Sequence[Cell]], room: int) -> list[int]:
    """Of columns side by side: the widest give way first, and none below its longest piece."""
    widths, least = list(map(_widest, columns)), list(map(_least, columns))
    while sum(widths) + len(widths) - 1 > room and widths != least:
        spare = (index for index, width in enumerate(widths) if width > least[index])
        widths[max(spare, key=widths.__getitem__)] -= 1
    return widths


def _widest(column: Sequence[Cell]) -> int:
    return max(cell_len("".join(cell).rstrip()) for cell in column)


def _least(column: Sequence[Cell]) -> int:
    return max(cell_len(piece.rstrip()) for cell in column for piece in (cell or [""]))


def _fold(cell: Cell, width: int) -> str:
    lines = [""]
    for piece in cell:
        if lines[-1] and cell_len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def console(least: int = 0) -> Console:
    """Without a terminal lines are as long as they need to be: rich would fold them at 80 characters."""
    found = Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False)
    found.width = max(found.width, least)  # narrower, and rich would leave columns out
    return found
