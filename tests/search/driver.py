"""Launches a search of fake trials in a process of its own, which tests may kill: driver.py SPACE STORAGE."""

import sys

import fake_trial
from rich.console import Console

from orchestrator.search import launch

if __name__ == "__main__":
    launch(
        sys.argv[1],
        storage=sys.argv[2],
        console=Console(width=80),
        run_trial=fake_trial.run,
        check_trial=fake_trial.check,
    )
