"""`orchestrator confirm`."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.arguments import (
    RESULTS,
    Address,
    Storage,
    StudyName,
)
from orchestrator.tables import console, print_confirmed


def confirm(
    study: StudyName,
    *,
    points: Annotated[
        int | None, typer.Option(min=1, help="How many, spread over the frontier; else the search's [confirm] says.")
    ] = None,
    at: Annotated[str | None, typer.Option(metavar="FLOPS", help="Or the best within each budget: 50M,100M.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many fresh seeds each; else as [confirm] says.")] = None,
    length: Annotated[
        float | None, typer.Option(metavar="FACTOR", help="Epochs, as a multiple of the search's; else as [confirm].")
    ] = None,
    with_validation: Annotated[
        bool, typer.Option("--with-validation", help="Train on validation pictures too.")
    ] = False,
    storage: Storage = RESULTS,
    data_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of the downloaded data sets; else the search's.")
    ] = None,
    address: Address = None,
    cpus_per_trial: Annotated[float | None, typer.Option(min=0.0, help="CPU cores for each training.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(min=0.0, help="GPUs for each training, such as 0.5.")] = None,
) -> None:
    """Trains points of the frontier anew, from fresh seeds, and measures them once on the test split."""
    from orchestrator.search import confirm as run

    found = run(
        study,
        points=points,
        at=at,
        seeds=seeds,
        length=length,
        with_validation=with_validation,
        storage=storage,
        data_root=data_root,
        address=address,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        console=console(),
    )
    print_confirmed(found.study, found.table, found.notes)
