"""The arguments that many commands take, and what they mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from orchestrator.collector import Study

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study's name, or the path of its folder.")]
Storage = Annotated[str, typer.Option(metavar="DIR", help="The folder or s3://bucket/prefix that holds the studies.")]
MaxFlops = Annotated[str | None, typer.Option(metavar="FLOPS", help="The largest number of flops, such as 60M.")]
MinAccuracy = Annotated[float | None, typer.Option(metavar="SHARE", help="The lowest accuracy, such as 0.9.")]
TensorBoard = Annotated[
    str | None, typer.Option("--tensorboard", metavar="DIR", help="Write event files for TensorBoard there.")
]
MLflow = Annotated[
    str | None, typer.Option("--mlflow", metavar="URI", help="Write runs to MLflow: http://..., or a file: mlflow.db.")
]
WandB = Annotated[
    str | None, typer.Option("--wandb", metavar="PROJECT", help="Write runs to Weights & Biases; WANDB_MODE=offline.")
]
Dashboard = Annotated[bool, typer.Option("--dashboard", help="Start Ray's dashboard, on this machine alone.")]
TrainFlops = Annotated[str | None, typer.Option(metavar="FLOPS", help="How much training in all: 50T.")]
Hours = Annotated[float | None, typer.Option(min=0.0, help="How long in all, every launch counted.")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster to run on; else this machine.")]
CpusPerTrial = Annotated[float | None, typer.Option(min=0.0, help="CPU cores for each trial.")]
GpusPerTrial = Annotated[float | None, typer.Option(min=0.0, help="GPUs for each trial, such as 0.5.")]
AllowCode = Annotated[
    list[str] | None,
    typer.Option(metavar="PACKAGE.MODULE:FUNCTION", help="Code of yours that may be run; repeatable."),
]
RESULTS, DATA = "results", Path("data")


def open_study(name: str, storage: str) -> "Study":
    """The study of this name in the storage. Raises InvalidInput where there is none."""
    from orchestrator.collector import Study

    return Study(name, results=storage)


def limit(max_flops: str | None) -> int | None:
    """A limit of flops as a number, from what was typed."""
    from orchestrator.collector import parse_flops

    return None if max_flops is None else parse_flops(max_flops, "--max-flops")
