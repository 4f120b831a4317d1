"""A study for the eyes: `orchestrator report | watch | plot`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.arguments import RESULTS, Storage, StudyName, open_study

PORT = 8765


class Cost(StrEnum):
    """What a frontier is drawn over."""

    flops = "flops"
    params = "params"
    latency = "latency_ms"


class Shown(StrEnum):
    """What `plot` draws."""

    frontier = "frontier"
    trajectories = "trajectories"
    hypervolume = "hypervolume"


def report(
    study: StudyName,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The page.  [default: STUDY.html in this folder]")
    ] = None,
    storage: Storage = RESULTS,
) -> None:
    """Writes one HTML page, complete in itself, with all that a study has found."""
    from orchestrator.collector.report import write_report

    asked = open_study(study, storage)
    target = Path(f"{asked.name}.html") if output is None else output
    size = write_report(asked, target)
    typer.echo(f"wrote {target} ({size / 1000:,.0f} kB); open it in a browser")


def watch(
    study: StudyName,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1; 0 takes a free one.")] = PORT,
    storage: Storage = RESULTS,
) -> None:
    """Serves the page of `report` on this machine, up to date while a search runs. Ctrl-C ends it."""
    from orchestrator.collector.serving import address_of, serving

    with serving(open_study(study, storage), port) as server:
        typer.echo(f"watch {study} at {address_of(server)} (Ctrl-C ends this)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended")


def plot(
    study: StudyName,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The picture: FILE.svg or FILE.png.")],
    show: Annotated[Shown, typer.Option(help="What to draw.")] = Shown.frontier,
    over: Annotated[Cost, typer.Option(help="What the frontier or the trajectories are drawn over.")] = Cost.flops,
    storage: Storage = RESULTS,
) -> None:
    """Draws a picture for papers: the frontier, the trajectories of the trials, or the hypervolume over cost."""
    from orchestrator.collector.picture import draw

    draw(open_study(study, storage), output, show=show.value, over=over.value)
    typer.echo(f"wrote {output}")
