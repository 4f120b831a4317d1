"""What a study has found: `orchestrator status | front | best`."""

import shlex
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.arguments import (
    RESULTS,
    AllowCode,
    MaxFlops,
    MinAccuracy,
    Storage,
    StudyName,
    limit,
    open_study,
)
from orchestrator.commands.keeping import bring_back
from orchestrator.record import InvalidInput, Point
from orchestrator.tables import (
    ACCURACY_MEANS,
    CELLS,
    DEVIATION,
    FLOPS_MEANS,
    MEAN,
    bytes_text,
    confirmed_text,
    facts_of,
    first_line,
    flops_text,
    print_confirmed,
    print_facts,
    print_frame,
    print_front,
    print_heading,
    print_table,
    seeds_text,
    share_text,
)

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.collector import Status, Study


class Format(StrEnum):
    """How `front` prints."""

    table = "table"
    csv = "csv"
    json = "json"


def status(study: StudyName, storage: Storage = RESULTS) -> None:
    """How far a study is."""
    asked = open_study(study, storage)
    now = asked.status()
    confirmed = asked.confirmed()
    print_facts(_facts(now, confirmed))
    if len(confirmed):
        typer.echo()
        print_confirmed(asked, confirmed)
    typer.echo()
    print_heading("Best accuracy within budgets")
    columns = {
        "flops_kept up to": [f"{budget:g}" for budget in now.best_at],
        "accuracy": [share_text(accuracy) for accuracy in now.best_at.values()],
        **({"method": _methods_at(asked.points(), now.best_at)} if len(asked.methods) > 1 else {}),
    }
    print_table(list(columns), list(zip(*columns.values(), strict=True)))
    _print_remarks(asked, now)


def _methods_at(points: "pd.DataFrame", budgets: Iterable[float]) -> list[str]:
    """Of the most accurate point within each budget of flops_kept; "-" for the dense model, and where there is none."""
    best_first = points.sort_values(["accuracy", "flops"], ascending=[False, True])
    within = [best_first["method"][best_first["flops_kept"] <= budget] for budget in budgets]
    return [str(methods.iloc[0] or "-") if len(methods) else "-" for methods in within]


def _facts(now: "Status", confirmed: "pd.DataFrame") -> dict[str, str]:
    driver = "not running" if now.driver is None else f"run by {now.driver}"
    own = "; flops_kept of each model's own dense network" if len(now.models) > 1 else ""
    facts = {
        "study": str(now.path),
        "search": driver,
        "trials": f"{now.trials} ended" + (f", {len(now.stopped)} of them stopped early" if now.stopped else ""),
        "stages": ", ".join(f"{count} {kind}" for kind, count in now.stages.items()),
        "reuse": f"{sum(now.stages.values())} stages computed, {now.reused} found finished",
        "points": str(now.points),
        "failures": str(now.failures),
        "hypervolume": f"{now.hypervolume:.4f} (flops_kept below 1, accuracy above 0{own})",
        "train_flops": f"{flops_text(now.train_flops)}; {flops_text(now.train_flops_saved)} saved by reuse",
        "seconds": f"{now.seconds:.1f}",
        "disk": f"{bytes_text(now.disk.weights)} weights, {bytes_text(now.disk.records)} records",
    }
    if now.disk.collected:
        facts["collected"] = (
            f"the weights of {now.disk.collected} stages; they are computed again where they are needed"
        )
    if now.confirming is not None:
        facts["confirm"] = f"run by {now.confirming}"
    if len(confirmed):
        facts["confirmed"] = (
            f"{confirmed['key'].nunique()} points, {confirmed['seeds'].sum()} models measured on the test split"
        )
    if now.damaged:
        facts["damaged"] = f"{len(now.damaged)} stages, see below"
    if now.duplicates:
        facts["computed twice"] = f"{now.duplicates} stages"
    return facts


def _print_remarks(asked: "Study", now: "Status") -> None:
    """What did not go the usual way."""
    if now.stopped:
        typer.echo()
        print_heading("Stopped early: what was left of them could not matter")
        print_table(["trial", "stopped"], [[str(index), reason] for index, reason in now.stopped.items()])
    frozen = asked.frozen()
    if len(frozen):
        typer.echo()
        print_heading("Groups left whole")
        print_frame(frozen, {"group": str, "channels": str, "stages": str, "reason": first_line})
    unrepaired = asked.unrepaired()
    if len(unrepaired):
        typer.echo()
        print_heading("Layers that lost inputs and were not repaired")
        print_frame(unrepaired, {"layer": str, "stages": str, "reason": first_line})
    if now.damaged:
        typer.echo()
        print_heading("Stages that cannot be read, and those that were moved aside to be computed again")
        for problem in now.damaged:
            typer.echo(problem)
    if now.failures:
        typer.echo()
        print_heading("Failures", f"tracebacks: {now.path / 'failures'}")
        failures = asked.failures()
        several = failures["method"].nunique() > 1 or len(asked.methods) > 1
        settings = ["method"] * several + ["regularization_weight", "pruning_ratio"]
        shown = ["reason", "message", *settings, "key"]
        print_frame(failures, {name: CELLS.get(name, first_line) for name in shown})


def front(
    study: StudyName,
    max_flops: MaxFlops = None,
    min_accuracy: MinAccuracy = None,
    format: Annotated[Format, typer.Option(help="A table to read; csv or json with everything.")] = Format.table,
    storage: Storage = RESULTS,
) -> None:
    """The frontier: the points no other point beats in both accuracy and flops."""
    from orchestrator.collector import as_csv, as_json

    asked = open_study(study, storage)
    found = asked.front(max_flops=limit(max_flops), min_accuracy=min_accuracy)
    if format is Format.table:
        print_front(asked, found)
    else:
        typer.echo((as_csv if format is Format.csv else as_json)(found).rstrip("\n"))
    for problem in asked.damaged.values():
        typer.echo(f"left out: {problem}", err=True)


def best(
    study: StudyName,
    *,
    max_flops: MaxFlops = None,
    min_accuracy: MinAccuracy = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Copy weights, plan and records there.")] = None,
    allow_code: AllowCode = None,
    storage: Storage = RESULTS,
) -> None:
    """The most accurate point within a budget of flops, or the cheapest with an accuracy."""
    if max_flops is None and min_accuracy is None:
        raise InvalidInput("give --max-flops, --min-accuracy or both")
    asked = open_study(study, storage)
    point = asked.best(max_flops=limit(max_flops), min_accuracy=min_accuracy)
    if output is not None and point.key in asked.store.collected.bytes():
        bring_back(asked, point.key, allow_code=allow_code or ())
    files = [] if output is None else asked.export(point.key, output)
    print_heading(f"{point.model} on {point.dataset}", FLOPS_MEANS, ACCURACY_MEANS)
    print_facts({**facts_of(point), **_confirmed(asked, point)})
    for file in files:
        typer.echo(f"wrote {file}")
    if output is None:
        command = ["orchestrator", "export", str(asked.path), "--key", point.key[:12], "--output", "DIR"]
        typer.echo(f"take it out, as ONNX and torch.export too: {shlex.join(command)}")


def _confirmed(study: "Study", point: Point) -> dict[str, str]:
    """What training the point anew gave, in words, if it was."""
    found = study.confirmed()
    rows = found[found["key"] == point.key].set_index("arm")
    if "pruned" not in rows.index:
        return {}
    texts = {
        str(arm): f"{confirmed_text(row[MEAN], row[DEVIATION])} on the test split, {seeds_text(row['seeds'])}"
        for arm, row in rows.iterrows()
    }
    names = {"pruned": "confirmed", "dense": "confirmed, dense", "scratch": "confirmed, scratch"}
    return {names[arm]: text for arm, text in texts.items()}
