"""`orchestrator rerun`."""

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
    StudyName,
    TensorBoard,
    TrainFlops,
    WandB,
)
from orchestrator.tables import console


def rerun(
    study: StudyName,
    *,
    model: Annotated[str | None, typer.Option(metavar="NEW", help="The new network; as in a space file.")] = None,
    dataset: Annotated[str | None, typer.Option(metavar="NEW", help="The new data set; as in a space file.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the new study; else the old one's and what is new.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials in all; else as many as before.")] = None,
    train_flops: TrainFlops = None,
    hours: Hours = None,
    storage: Storage = RESULTS,
    data_root: Annotated[str | None, typer.Option(metavar="DIR", help="Where the data sets lie; else data.")] = None,
    address: Address = None,
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    tensorboard: TensorBoard = None,
    mlflow: MLflow = None,
    wandb: WandB = None,
    dashboard: Dashboard = False,
) -> None:
    """Searches with another network or data set, beginning with what a study found; started again, goes on."""
    from orchestrator.search import make_trackers
    from orchestrator.search.rerun import rerun as rerun_study

    rerun_study(
        study,
        model=model,
        dataset=dataset,
        name=name,
        storage=storage,
        data_root=data_root,
        trials=trials,
        train_flops=train_flops,
        hours=hours,
        address=address,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        trackers=make_trackers(tensorboard=tensorboard, mlflow=mlflow, wandb=wandb),
        dashboard=dashboard,
        console=console(),
    )
