"""Studies, or methods, side by side: `orchestrator compare`."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.arguments import RESULTS, Storage, open_study
from orchestrator.commands.asking import Format
from orchestrator.commands.reporting import Cost
from orchestrator.record import InvalidInput
from orchestrator.tables import (
    ACCURACY_MEANS,
    CONFIRMED_MEANS,
    DEVIATION,
    FLOPS_MEANS,
    MEAN,
    confirmed_text,
    flops_text,
    print_heading,
    print_table,
)

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.collector import Study
    from orchestrator.collector.comparison import Comparison, Figure
    from orchestrator.collector.comparison_facts import Difference

HYPERVOLUME_MEANS = (
    "hypervolume: flops below those of the largest dense model, {}, accuracy above 0; of all lines alike"
)
COST_MEANS = "train_flops: of all stages on the paths to a line's points, each once"


class By(StrEnum):
    """What the lines of a comparison are."""

    study = "study"
    method = "method"


def compare(
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY...", help="Studies' names, or paths of their folders.")
    ],
    *,
    by: Annotated[
        By | None, typer.Option(help="A line a study, or a line a method; of one study, its methods.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="BUDGETS", help="Budgets: flops, or shares of the dense model's: 50M,0.3.  [default: 0.7,0.5,0.3]"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page with all of it.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the frontiers: FILE.svg or FILE.png.")] = None,
    over: Annotated[Cost, typer.Option(help="What the picture of --plot is drawn over.")] = Cost.flops,
    format: Annotated[Format, typer.Option(help="A table to read; csv or json with everything.")] = Format.table,
    storage: Storage = RESULTS,
) -> None:
    """Studies, or the methods of one, side by side: frontiers, hypervolume, accuracy at budgets, cost, what differs."""
    from orchestrator.collector.comparison import compare as put_side_by_side
    from orchestrator.collector.comparison_facts import differences

    if plot is None and over is not Cost.flops:
        raise InvalidInput(f"--over {over.value}: is for the picture; give --plot FILE.svg too")
    _check_files(output, plot)
    opened = [open_study(name, storage) for name in studies]
    found = put_side_by_side(opened, by=None if by is None else by.value, at=at)
    if plot is not None:
        from orchestrator.collector.comparison_picture import check_measured, draw_comparison

        check_measured(found, over.value)
    if format is Format.table:
        _print(found, differences(found, opened))
    else:
        typer.echo(_as_text(found, opened, format))
    aside = format is not Format.table
    if output is not None:
        from orchestrator.collector.comparison_page import comparison_data, write_comparison

        size = write_comparison(comparison_data(found, opened), output)
        typer.echo(f"wrote {output} ({size / 1000:,.0f} kB); open it in a browser", err=aside)
    if plot is not None:
        draw_comparison(found, plot, over=over.value)
        typer.echo(f"wrote {plot}", err=aside)


def _check_files(output: Path | None, plot: Path | None) -> None:
    """Before anything is printed or written: what is asked for comes whole, or one line says why not."""
    if output is not None:
        from orchestrator.collector.report import check_page

        check_page(output)
    if plot is not None:
        from orchestrator.collector.picture import check_picture

        check_picture(plot)


def _as_text(found: "Comparison", studies: "list[Study]", format: Format) -> str:
    if format is Format.csv:
        from orchestrator.collector import as_csv
        from orchestrator.collector.comparison import as_table

        return as_csv(as_table(found)).rstrip("\n")
    import json

    from orchestrator.collector.comparison_page import comparison_data

    return json.dumps(comparison_data(found, studies), indent=2, allow_nan=False, ensure_ascii=False)


def _print(found: "Comparison", unequal: "tuple[Difference, ...]") -> None:
    from orchestrator.collector.comparison import confirmed_of

    reference = flops_text(found.reference_flops)
    models = sorted({model for line in found.lines for model in line.points["model"]})
    title = f"{', '.join(models)} on {found.lines[0].points['dataset'].iloc[0]}, by {found.by}"
    print_heading(title, FLOPS_MEANS, ACCURACY_MEANS, HYPERVOLUME_MEANS.format(reference), COST_MEANS)
    print_heading("mean ± deviation of the sample where a line has several seeds; n: seeds with a point in the budget")
    shares = [f"accuracy at {flops_text(budget)} ({budget / found.reference_flops:.2g})" for budget in found.budgets]
    rows = [
        [
            line.name,
            _named(line.methods if found.by == "study" else line.studies),
            str(len(line.seeds)),
            str(line.trials),
            str(len(line.points)),
            flops_text(line.train_flops),
            _text(found.hypervolume(line), len(line.seeds)),
            *(_text(figure, len(line.seeds)) for figure in found.accuracy_at(line)),
        ]
        for line in found.lines
    ]
    second = "method" if found.by == "study" else "study"
    print_table([found.by, second, "seeds", "trials", "points", "train_flops", "hypervolume", *shares], rows)
    _print_unequal(found, unequal)
    confirmed = confirmed_of(found)
    if len(confirmed):
        _print_confirmed(confirmed)


def _named(names: Sequence[str]) -> str:
    """A few names, or their number: a line stays short enough to read. csv and json have them all."""
    return (", ".join(names) or "-") if len(names) <= 3 else f"{len(names)} of them"


def _text(figure: "Figure", seeds: int) -> str:
    return confirmed_text(figure.mean, figure.deviation) + (f" (n={figure.seeds})" if seeds > 1 else "")


def _print_unequal(found: "Comparison", unequal: "tuple[Difference, ...]") -> None:
    from orchestrator.collector.comparison_facts import OF_SEEDS

    typer.echo()
    if not unequal:
        print_heading("The same in all: model, data, dense model, schedules, seeds, trials")
        return
    print_heading("NOT THE SAME, besides what is compared: unequal budgets, data or training make unequal comparisons")
    print_table(["field", *(line.name for line in found.lines)], [[one.field, *one.values] for one in unequal])
    if any(one.field == OF_SEEDS for one in unequal):
        print_heading(
            f"{OF_SEEDS}: where their settings are different, ± is a deviation of settings too, not of seeds alone"
        )


def _print_confirmed(confirmed: "pd.DataFrame") -> None:
    typer.echo()
    print_heading("Confirmed points", CONFIRMED_MEANS)
    print_heading("dense and scratch: controls under the train_flops of the pruned path")
    rows = [
        [
            row["line"],
            row["method"] or "-",
            row["key"][:12],
            row["arm"],
            str(row["seeds"]),
            confirmed_text(row[MEAN], row[DEVIATION]),
            flops_text(row["flops"]),
            flops_text(row["train_flops_mean"]),
        ]
        for row in confirmed.to_dict(orient="records")
    ]
    print_table(["line", "method", "key", "arm", "seeds", "test_accuracy", "flops", "train_flops_mean"], rows)
