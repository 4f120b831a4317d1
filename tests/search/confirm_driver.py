"""Confirms two points of a study with fake arms, in a process of its own, which tests may kill: STUDY."""

import sys

import fake_arm
from rich.console import Console

from orchestrator.search import confirm

if __name__ == "__main__":
    confirm(sys.argv[1], points=2, seeds=2, console=Console(width=80), run_arm=fake_arm.run, paths=fake_arm.paths)
