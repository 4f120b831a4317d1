"""`orchestrator sensitivity`."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.arguments import RESULTS, AllowCode, Storage
from orchestrator.tables import ACCURACY_MEANS, console, print_heading, print_table, share_text

SHARES = "0.1,0.3,0.5,0.7,0.9"


def sensitivity(
    study: Annotated[str, typer.Argument(metavar="SPACE.toml|STUDY", help="A space file, or a study's name or path.")],
    *,
    groups: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Groups, or patterns: conv1,stage1.*; else all.")
    ] = None,
    shares: Annotated[str, typer.Option(metavar="SHARES", help="Of a group's channels that leave.")] = SHARES,
    method: Annotated[str, typer.Option(help="Whose scores say which channels leave; with its default options.")] = (
        "filter_norm"
    ),
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Measure norm statistics anew after each cut; the paper does not.")
    ] = False,
    residual_streams: Annotated[
        bool, typer.Option("--residual-streams", help="Residual streams may lose channels too.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="FILE.svg or FILE.png; .csv and .json beside it.  [default: NAME-sensitivity.svg]"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where it is computed, such as cuda.")] = "cpu",
    data_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of the downloaded data sets; else the search's.")
    ] = None,
    allow_code: AllowCode = None,
    storage: Storage = RESULTS,
) -> None:
    """Prunes each group alone, trains nothing, and shows what that costs: which layers can lose channels."""
    from orchestrator.search.sensing import asked_of, sense

    root = None if data_root is None else str(data_root)
    asked = asked_of(study, storage=storage, data_root=root)
    if asked.study is not None:
        from orchestrator.takeout.choosing import check_allowed, code_of

        check_allowed(asked.study, code_of(asked.spec.model, asked.spec.dataset), allow_code or ())
    target = Path(f"{asked.name}-sensitivity.svg") if output is None else output
    found = sense(
        asked,
        target,
        method=method,
        groups=groups,
        shares=shares,
        residual_streams=residual_streams,
        statistics=statistics,
        device=device,
        console=console(),
    )
    rows = found.by_group()
    columns = sorted({one.share for one in found.measured})
    print_heading(
        f"{found.model} on {found.dataset}: accuracy with a share of one group's channels gone, nothing trained",
        ACCURACY_MEANS,
        f"dense: {share_text(found.accuracy)}",
    )
    print_table(
        ["group", "channels", *(f"{share:g}" for share in columns)],
        [[name, str(row[0].channels), *(share_text(one.accuracy) for one in row)] for name, row in rows.items()],
    )
    for file in (target, target.with_suffix(".csv"), target.with_suffix(".json")):
        typer.echo(f"wrote {file}")
