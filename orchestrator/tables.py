"""What the commands print: tables on a terminal, plain lines elsewhere."""

import math
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
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
SHORT, FOLDED = 12, 6  # characters: wider columns may fold, to no less than this


def flops_text(value: float) -> str:
    from orchestrator.collector.query import format_flops

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


LINE = 100  # characters of a message in a table


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
    """A table. To fit a terminal it folds the words of its header, then long texts, and never a figure."""
    columns = [[name, *(row[index] for row in rows)] for index, name in enumerate(header)]
    narrow = sum(max(map(len, column)) + 2 for column in columns) > console().width
    table = Table(box=None, pad_edge=False, padding=(0, 1 if narrow else 2, 0, 0), header_style="bold")
    least = -1
    for name, *cells in columns:
        heading = name.replace("_", "_\n") if narrow else name
        width = max(map(len, [*heading.split("\n"), *cells]))
        is_text = not all(cell[:1].isdigit() or cell == "-" for cell in cells)
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=width <= SHORT, overflow="fold")
        least += 1 + (width if width <= SHORT else FOLDED)
    for row in rows:
        table.add_row(*map(Text, row))
    console(least).print(table)


def console(least: int = 0) -> Console:
    """Without a terminal lines are as long as they need to be: rich would fold them at 80 characters."""
    found = Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False)
    found.width = max(found.width, least)  # narrower, and rich would leave columns out
    return found
