"""`orchestrator search`."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.arguments import (
    RESULTS,
    Address,
    CpusPerTrial,
    Dashboard,
    GpusPerTrial,
    Hours,
    MLflow,
    Storage,
    TensorBoard,
    TrainFlops,
    WandB,
)
from orchestrator.tables import console


def search(
    space: Annotated[Path, typer.Argument(metavar="SPACE.toml", help="The search-space file.")],
    *,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials in all; else the file says.")] = None,
    train_flops: TrainFlops = None,
    hours: Hours = None,
    storage: Storage = RESULTS,
    address: Address = None,
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    tensorboard: TensorBoard = None,
    mlflow: MLflow = None,
    wandb: WandB = None,
    dashboard: Dashboard = False,
) -> None:
    """Starts a search; started again, goes on with it; with a larger budget, extends it."""
    from orchestrator.search import launch, make_trackers

    launch(
        space,
        trials=trials,
        train_flops=train_flops,
        hours=hours,
        storage=storage,
        address=address,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        trackers=make_trackers(tensorboard=tensorboard, mlflow=mlflow, wandb=wandb),
        dashboard=dashboard,
        console=console(),
    )
