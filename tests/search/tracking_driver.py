"""Launches a search of fake trials that all trackers follow, one of which is broken, with Ray's dashboard.

tracking_driver.py SPACE STORAGE FOLDER: a process of its own, which tests may kill.
"""

import sys
from pathlib import Path
from typing import Any

import fake_trial
from rich.console import Console

from orchestrator.search import launch, make_trackers
from orchestrator.search.tracking import Known


class Broken:
    """A tracker whose server goes away."""

    name = "the broken one"
    look = "no use to look"

    def begin(self, about: Any, store: Any) -> Known:
        return Known()

    def point(self, index: int, spec: Any, point: Any) -> None:
        raise ConnectionError("nobody\nanswers")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called after an error")


if __name__ == "__main__":
    space, storage, folder = sys.argv[1:]
    written = {"tensorboard": Path(folder) / "tb", "mlflow": f"{folder}/mlflow.db", "wandb": "project"}
    launch(
        space,
        storage=storage,
        trackers=[*make_trackers(**written), Broken()],
        dashboard=True,
        console=Console(width=200),
        run_trial=fake_trial.run,
        check_trial=fake_trial.check,
    )
