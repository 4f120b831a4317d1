"""The `orchestrator` command: parse, call, print.

What is slow to import (pandas, torch, ray) is imported by the command that needs it.
"""

import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from orchestrator.record import InvalidInput, Point

if TYPE_CHECKING:
    from collections.abc import Hashable

    import pandas as pd

    from orchestrator.collector import Study

FLOPS_MEANS = "flops: multiply-accumulates of convolutions and linear layers, batch 1"
ACCURACY_MEANS = "accuracy: top-1 on the validation split"
MEMBERS_SHOWN = 4
SHORT, FOLDED = 12, 6  # characters: wider columns may fold, to no less than this


class Format(StrEnum):
    """How `front` prints."""

    table = "table"
    csv = "csv"
    json = "json"


class Commands(TyperGroup):
    """Ends a user's mistake with one line on stderr and exit code 2; every other error keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            from orchestrator.store import first_problem

            _complain(f"{error.title}: {first_problem(error)}")
        except InvalidInput as error:
            _complain(str(error))
        raise typer.Exit(2)


app = typer.Typer(
    cls=Commands,
    help="What accuracy can a network have at every FLOPs budget? Search, then take the model that fits.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study's name, or the path of its folder.")]
Storage = Annotated[Path, typer.Option(metavar="DIR", help="The folder that holds the studies.")]
MaxFlops = Annotated[str | None, typer.Option(metavar="FLOPS", help="The largest number of flops, such as 60M.")]
MinAccuracy = Annotated[float | None, typer.Option(metavar="SHARE", help="The lowest accuracy, such as 0.9.")]
RESULTS, DATA = Path("results"), Path("data")


@app.command()
def search(
    space: Annotated[Path, typer.Argument(metavar="SPACE.toml", help="The search-space file.")],
    *,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials in all; else the file says.")] = None,
    storage: Storage = RESULTS,
    address: Annotated[str | None, typer.Option(help="A Ray cluster to run on; else this machine.")] = None,
    cpus_per_trial: Annotated[float | None, typer.Option(min=0.0, help="CPU cores for each trial.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(min=0.0, help="GPUs for each trial, such as 0.5.")] = None,
) -> None:
    """Starts a search; started again, goes on with it; with more trials, extends it."""
    from orchestrator.search import launch

    launch(
        space,
        trials=trials,
        storage=storage,
        address=address,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        console=_console(),
    )


@app.command()
def status(study: StudyName, storage: Storage = RESULTS) -> None:
    """How far a study is."""
    asked = _study(study, storage)
    now = asked.status()
    driver = "not running" if now.driver is None else f"run by process {now.driver.pid} on {now.driver.host}"
    facts = {
        "study": str(now.path),
        "search": driver,
        "stages": ", ".join(f"{count} {kind}" for kind, count in now.stages.items()),
        "points": str(now.points),
        "failures": str(now.failures),
        "hypervolume": f"{now.hypervolume:.4f} (flops_kept below 1, accuracy above 0)",
        "train_flops": _flops(now.train_flops),
        "seconds": f"{now.seconds:.1f}",
    }
    if now.duplicates:
        facts["computed twice"] = f"{now.duplicates} stages"
    _print_facts(facts)
    typer.echo()
    _print_heading("Best accuracy within budgets")
    _print_table(
        ["flops_kept up to", "accuracy"],
        [[f"{budget:g}", _share(accuracy)] for budget, accuracy in now.best_at.items()],
    )
    if now.failures:
        typer.echo()
        _print_heading("Failures", f"tracebacks: {now.path / 'failures'}")
        shown = ["reason", "message", "regularization_weight", "pruning_ratio", "key"]
        _print_frame(asked.failures(), {name: CELLS.get(name, _first_line) for name in shown})


@app.command()
def front(
    study: StudyName,
    max_flops: MaxFlops = None,
    min_accuracy: MinAccuracy = None,
    format: Annotated[Format, typer.Option(help="A table to read; csv or json with everything.")] = Format.table,
    storage: Storage = RESULTS,
) -> None:
    """The frontier: the points no other point beats in both accuracy and flops."""
    from orchestrator.collector import as_csv, as_json

    asked = _study(study, storage)
    found = asked.front(max_flops=_limit(max_flops), min_accuracy=min_accuracy)
    if format is Format.table:
        _print_front(asked, found)
    else:
        typer.echo((as_csv if format is Format.csv else as_json)(found).rstrip("\n"))


@app.command()
def best(
    study: StudyName,
    max_flops: MaxFlops = None,
    min_accuracy: MinAccuracy = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Copy weights, plan and records there.")] = None,
    storage: Storage = RESULTS,
) -> None:
    """The most accurate point within a budget of flops, or the cheapest with an accuracy."""
    if max_flops is None and min_accuracy is None:
        raise InvalidInput("give --max-flops, --min-accuracy or both")
    asked = _study(study, storage)
    point = asked.best(max_flops=_limit(max_flops), min_accuracy=min_accuracy)
    files = [] if output is None else asked.export(point.key, output)
    _print_heading(f"{point.model} on {point.dataset}", FLOPS_MEANS, ACCURACY_MEANS)
    _print_facts(_facts(point))
    for file in files:
        typer.echo(f"wrote {file}")


@app.command()
def plot(
    study: StudyName,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The picture: FILE.svg or FILE.png.")],
    storage: Storage = RESULTS,
) -> None:
    """Draws the frontier."""
    from orchestrator.collector.picture import draw_front

    draw_front(_study(study, storage), output)
    typer.echo(f"wrote {output}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="resnet56, torchvision:NAME, timm:NAME or package.module:function.")],
    *,
    dataset: Annotated[str | None, typer.Option(help="The data set whose pictures and classes it is made for.")] = None,
    input: Annotated[
        str | None, typer.Option(metavar="CxHxW", help="Or the pictures' size, such as 3x224x224.")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="How many classes, with --input.  [default: 1000]")] = None,
    data_root: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the downloaded data sets.")] = DATA,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """What can be pruned in a model, what cannot and why, and where its flops are."""
    if (dataset is None) == (input is None):
        raise InvalidInput("give either --dataset or --input")
    if dataset is not None and classes is not None:
        raise InvalidInput(f"--classes goes with --input; {dataset} has its own classes")
    if dataset is not None:
        from orchestrator.training.datasets import load

        data = load(dataset, root=data_root)
        shape, count = data.input_shape, data.classes
    else:
        shape, count = _input_shape(input or ""), classes or 1000
    report = _explain(model, shape, count)
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print_network(f"{model} on {'x'.join(map(str, shape))}, {count} classes", report)


def main() -> None:
    """The entry point of the `orchestrator` script."""
    app(prog_name="orchestrator")


def _complain(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)


def _study(name: str, storage: Path) -> "Study":
    from orchestrator.collector import Study

    return Study(name, results=storage)


def _limit(max_flops: str | None) -> int | None:
    from orchestrator.collector import parse_flops

    return None if max_flops is None else parse_flops(max_flops, "--max-flops")


def _input_shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InvalidInput(f"--input is {text!r}; give channels x height x width, such as 3x224x224")
    channels, height, width = map(int, parts)
    return channels, height, width


def _explain(name: str, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    import torch

    from orchestrator.network.architectures import build, check_runs

    model = build(name, classes=classes, input_shape=shape, seed=0).eval()
    check_runs(model, shape, classes=classes)
    from orchestrator.network.inspect import explain

    report: dict[str, Any] = explain(model, torch.zeros(1, *shape))
    return report


# --- printing: tables on a terminal, plain lines elsewhere ---


def _flops(value: float) -> str:
    from orchestrator.collector.query import format_flops

    return format_flops(value)


def _share(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:g}"


def _first_line(value: Any) -> str:
    return str(value).partition("\n")[0][:100]


CELLS: dict[str, Callable[[Any], str]] = {
    "flops": _flops,
    "flops_kept": _share,
    "accuracy": _share,
    "accuracy_after_cut": _share,
    "params": _flops,
    "regularization_weight": _number,
    "pruning_ratio": _number,
    "iteration": str,
    "key": lambda key: str(key)[:SHORT],
}


def _facts(point: Point) -> dict[str, str]:
    return {
        "flops": f"{_flops(point.flops)} (flops_kept {point.flops_kept:.4f})",
        "params": _flops(point.params),
        "accuracy": _share(point.accuracy),
        "accuracy_after_cut": _share(point.accuracy_after_cut),
        "test_accuracy": _share(point.test_accuracy),
        "method": point.method or "-",
        "regularization_weight": _number(point.regularization_weight),
        "pruning_ratio": _number(point.pruning_ratio),
        "iteration": str(point.iteration),
        "cost": f"{_flops(point.path_cost.train_flops)} train_flops, {point.path_cost.seconds:.1f} seconds",
        "key": point.key,
    }


def _print_front(study: "Study", found: "pd.DataFrame") -> None:
    _print_heading(f"Frontier of {study.path}", FLOPS_MEANS, ACCURACY_MEANS)
    _print_frame(found, CELLS)
    if found.empty:
        typer.echo("no point of the frontier is within these limits")
        return
    budget = _flops(found["flops"].iloc[len(found) // 2] * 1.005).replace(" ", "")
    command = ["orchestrator", "best", str(study.path), "--max-flops", budget, "--output", "DIR"]
    typer.echo(f"take a model out: {shlex.join(command)}")


def _print_network(title: str, report: Mapping[str, Any]) -> None:
    total = report["flops"]
    _print_heading(title, FLOPS_MEANS)
    _print_facts(
        {
            "flops": _flops(total),
            "params": _flops(report["params"]),
            "prunable share": _share(report["prunable_share"]),
        }
    )
    typer.echo()
    _print_heading("Groups: channels that can leave, each across all the members of its group")
    _print_table(
        ["group", "channels", "exact", "flops_share", "members"],
        [
            [str(g["name"]), str(g["channels"]), "yes" if g["exact"] else "no", _share(g["flops_share"]), _members(g)]
            for g in report["groups"]
        ],
    )
    if report["frozen"]:
        typer.echo()
        _print_heading("Frozen channels")
        _print_table(["channels", "reason"], [[str(f["channels"]), str(f["reason"])] for f in report["frozen"]])
    typer.echo()
    _print_heading("Layers")
    _print_table(
        ["layer", "flops", "flops_share", "params"],
        [
            [
                str(one["name"]),
                _flops(one["flops"]),
                _share(one["flops"] / total if total else None),
                _flops(one["params"]),
            ]
            for one in report["layers"]
        ],
    )


def _members(group: Mapping[str, Any]) -> str:
    members = [str(member) for member in group["members"]]
    more = len(members) - MEMBERS_SHOWN
    return ", ".join(members[:MEMBERS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _print_heading(title: str, *notes: str) -> None:
    for note in (title, *notes):
        typer.echo(note)


def _print_facts(facts: Mapping[str, str]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {value}")


def _print_frame(frame: "pd.DataFrame", cells: Mapping[str, Callable[[Any], str]]) -> None:
    rows: Iterable[Mapping[Hashable, Any]] = frame.to_dict(orient="records")
    _print_table(list(cells), [[cell(row[name]) for name, cell in cells.items()] for row in rows])


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table. To fit a terminal it folds the words of its header, then long texts, and never a figure."""
    columns = [[name, *(row[index] for row in rows)] for index, name in enumerate(header)]
    narrow = sum(max(map(len, column)) + 2 for column in columns) > _console().width
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
    _console(least).print(table)


def _console(least: int = 0) -> Console:
    """Without a terminal lines are as long as they need to be: rich would fold them at 80 characters."""
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False)
    console.width = max(console.width, least)  # narrower, and rich would leave columns out
    return console
