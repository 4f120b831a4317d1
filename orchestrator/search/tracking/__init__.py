"""Trackers: programs of the user's own that are told what a search finds. `make_trackers` makes those asked for."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from orchestrator.record import InvalidInput
from orchestrator.search.tracking.following import Following
from orchestrator.search.tracking.interface import About, Ended, Known, Standing, Tracker

__all__ = ["About", "Ended", "Following", "Known", "Standing", "Tracker", "make_trackers"]


def make_trackers(
    *, tensorboard: str | Path | None = None, mlflow: str | None = None, wandb: str | None = None
) -> list[Tracker]:
    """The trackers that were asked for: a folder, a tracking URI (a path is a SQLite file's), a project's name.

    Raises InvalidInput where one's packages are missing, naming the extra, and where it can never write.
    """
    asked: list[Tracker] = []
    if tensorboard is not None:
        if "://" in str(tensorboard):
            raise InvalidInput(f"--tensorboard is {tensorboard}; it must be a folder of this machine")
        asked.append(_made("tensorboard", "TensorBoard", Path(tensorboard)))
    if mlflow is not None:
        asked.append(_made("mlflow", "MLflow", mlflow))
    if wandb is not None:
        asked.append(_made("wandb", "WandB", wandb))
    return asked


def _made(extra: str, tracker: str, where: Any) -> Tracker:
    module = import_module(f"{__name__}.to_{extra}")
    make: Callable[[Any], Tracker] = getattr(module, tracker)
    try:
        return make(where)
    except ImportError as error:
        raise InvalidInput(
            f"--{extra} needs packages that are not installed ({error}): pip install 'pruning-orchestrator[{extra}]'"
        ) from None
