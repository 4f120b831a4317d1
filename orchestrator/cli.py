"""The `orchestrator` command: parse, call, print.

What is slow to import (pandas, torch, ray) is imported by the command that needs it.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from orchestrator.record import InvalidInput
from orchestrator.tables import (
    ACCURACY_MEANS,
    CELLS,
    FLOPS_MEANS,
    console,
    facts_of,
    first_line,
    flops_text,
    print_facts,
    print_frame,
    print_front,
    print_heading,
    print_network,
    print_table,
    share_text,
)

if TYPE_CHECKING:
    from orchestrator.collector import Study


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
Storage = Annotated[str, typer.Option(metavar="DIR", help="The folder or s3://bucket/prefix that holds the studies.")]
MaxFlops = Annotated[str | None, typer.Option(metavar="FLOPS", help="The largest number of flops, such as 60M.")]
MinAccuracy = Annotated[float | None, typer.Option(metavar="SHARE", help="The lowest accuracy, such as 0.9.")]
RESULTS, DATA = "results", Path("data")


@app.command()
def search(
    space: Annotated[Path, typer.Argument(metavar="SPACE.toml", help="The search-space file.")],
    *,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials in all; else the file says.")] = None,
    train_flops: Annotated[str | None, typer.Option(metavar="FLOPS", help="How much training in all: 50T.")] = None,
    hours: Annotated[float | None, typer.Option(min=0.0, help="How long in all, every launch counted.")] = None,
    storage: Storage = RESULTS,
    address: Annotated[str | None, typer.Option(help="A Ray cluster to run on; else this machine.")] = None,
    cpus_per_trial: Annotated[float | None, typer.Option(min=0.0, help="CPU cores for each trial.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(min=0.0, help="GPUs for each trial, such as 0.5.")] = None,
) -> None:
    """Starts a search; started again, goes on with it; with a larger budget, extends it."""
    from orchestrator.search import launch

    launch(
        space,
        trials=trials,
        train_flops=train_flops,
        hours=hours,
        storage=storage,
        address=address,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        console=console(),
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
        "trials": f"{now.trials} ended" + (f", {len(now.stopped)} of them stopped early" if now.stopped else ""),
        "stages": ", ".join(f"{count} {kind}" for kind, count in now.stages.items()),
        "reuse": f"{sum(now.stages.values())} stages computed, {now.reused} found finished",
        "points": str(now.points),
        "failures": str(now.failures),
        "hypervolume": f"{now.hypervolume:.4f} (flops_kept below 1, accuracy above 0)",
        "train_flops": f"{flops_text(now.train_flops)}; {flops_text(now.train_flops_saved)} saved by reuse",
        "seconds": f"{now.seconds:.1f}",
    }
    if now.damaged:
        facts["damaged"] = f"{len(now.damaged)} stages, see below"
    if now.duplicates:
        facts["computed twice"] = f"{now.duplicates} stages"
    print_facts(facts)
    typer.echo()
    print_heading("Best accuracy within budgets")
    print_table(
        ["flops_kept up to", "accuracy"],
        [[f"{budget:g}", share_text(accuracy)] for budget, accuracy in now.best_at.items()],
    )
    if now.stopped:
        typer.echo()
        print_heading("Stopped early: what was left of them could not matter")
        print_table(["trial", "stopped"], [[str(index), reason] for index, reason in now.stopped.items()])
    frozen = asked.frozen()
    if len(frozen):
        typer.echo()
        print_heading("Groups left whole: their cut, tried on the model's own weights, was not right")
        print_frame(frozen, {"group": str, "channels": str, "stages": str, "reason": first_line})
    if now.damaged:
        typer.echo()
        print_heading("Stages that cannot be read, and those that were moved aside to be computed again")
        for problem in now.damaged:
            typer.echo(problem)
    if now.failures:
        typer.echo()
        print_heading("Failures", f"tracebacks: {now.path / 'failures'}")
        shown = ["reason", "message", "regularization_weight", "pruning_ratio", "key"]
        print_frame(asked.failures(), {name: CELLS.get(name, first_line) for name in shown})


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
        print_front(asked, found)
    else:
        typer.echo((as_csv if format is Format.csv else as_json)(found).rstrip("\n"))
    for problem in asked.damaged.values():
        typer.echo(f"left out: {problem}", err=True)


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
    print_heading(f"{point.model} on {point.dataset}", FLOPS_MEANS, ACCURACY_MEANS)
    print_facts(facts_of(point))
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
        print_network(f"{model} on {'x'.join(map(str, shape))}, {count} classes", report)


def main() -> None:
    """The entry point of the `orchestrator` script."""
    app(prog_name="orchestrator")


def _complain(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)


def _study(name: str, storage: str) -> "Study":
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
