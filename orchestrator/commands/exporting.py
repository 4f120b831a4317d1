"""`orchestrator export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.arguments import (
    DATA,
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
from orchestrator.record import InvalidInput
from orchestrator.tables import ACCURACY_MEANS, FLOPS_MEANS, flops_text, print_facts, print_heading, share_text

if TYPE_CHECKING:
    from orchestrator.takeout import Figures


def export(
    study: StudyName,
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must be new or empty.")],
    *,
    max_flops: MaxFlops = None,
    min_accuracy: MinAccuracy = None,
    key: Annotated[str | None, typer.Option(help="A point by its key, or by how its key begins.")] = None,
    confirmed: Annotated[bool, typer.Option("--confirmed", help="The model that `confirm` has trained of it.")] = False,
    formats: Annotated[
        str | None, typer.Option(help="Of safetensors, onnx and pt2, with commas between.  [default: all]")
    ] = None,
    latency_batch: Annotated[
        int, typer.Option(min=0, help="Time a batch of so many pictures, pruned beside dense; 0 for none.")
    ] = 0,
    allow_code: AllowCode = None,
    data_root: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the downloaded data sets.")] = DATA,
    storage: Storage = RESULTS,
) -> None:
    """Takes a model out: safetensors, ONNX and torch.export in a folder, with a card that says what it is."""
    if key is None and max_flops is None and min_accuracy is None:
        raise InvalidInput("give --max-flops, --min-accuracy, both, or --key")
    if key is not None and (max_flops is not None or min_accuracy is not None):
        raise InvalidInput("give either --key or limits, not both")
    asked = open_study(study, storage)
    chosen = key or asked.best(max_flops=limit(max_flops), min_accuracy=min_accuracy).key
    from orchestrator.takeout import take_out

    if not confirmed and (point := asked.point(chosen).key) in asked.store.collected.bytes():
        bring_back(asked, point, allow_code=allow_code or (), data_root=data_root)

    figures = take_out(
        asked,
        chosen,
        output,
        formats=None if formats is None else [name.strip() for name in formats.split(",")],
        data_root=data_root,
        latency_batch=latency_batch,
        allow_code=allow_code or (),
        confirmed=confirmed,
    )
    print_heading(f"{figures.model} on {figures.data.name}", FLOPS_MEANS, ACCURACY_MEANS)
    print_facts(_facts(figures))
    for file in sorted(output.iterdir()):
        typer.echo(f"wrote {file}")


def _facts(figures: "Figures") -> dict[str, str]:
    by = "when it was confirmed" if figures.test_accuracy_by == "confirm" else "just now, once"
    facts = {
        "flops": f"{flops_text(figures.flops)} (flops_kept {figures.flops_kept:.4f})",
        "params": flops_text(figures.params),
        "accuracy": share_text(figures.accuracy),
        "test_accuracy": f"{share_text(figures.test_accuracy)} (of {figures.data.test} pictures, measured {by})",
    }
    if figures.confirmation is not None:
        found = figures.confirmation
        deviation = "" if found.test_accuracy_deviation is None else f" ± {found.test_accuracy_deviation:.4f}"
        facts["over its seeds"] = f"{found.test_accuracy_mean:.4f}{deviation} ({found.seeds})"
    if figures.latency is not None:
        pruned, dense = figures.latency.pruned, figures.latency.dense
        under = f"a batch of {pruned.batch}, {pruned.threads} threads"
        facts["latency_ms"] = f"{pruned.latency_ms:.3f}; dense {dense.latency_ms:.3f} ({under})"
    return {**facts, "key": figures.origin.key}
