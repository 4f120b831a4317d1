"""Launches a search of fake trials in a process of its own, which tests may kill: driver.py SPACE STORAGE.

With TERM_IN_SHUTDOWN in its environment it sends itself SIGTERM when Ray, at the end, ends the first of its processes.
"""

import os
import signal
import subprocess
import sys

import fake_trial
from rich.console import Console

from orchestrator.search import launch


def send_sigterm_with_the_first_process_ended() -> None:
    terminate = subprocess.Popen.terminate

    def interrupted(process: "subprocess.Popen[bytes]") -> None:
        subprocess.Popen.terminate = terminate  # type: ignore[method-assign]
        os.kill(os.getpid(), signal.SIGTERM)
        terminate(process)

    subprocess.Popen.terminate = interrupted  # type: ignore[method-assign]


if __name__ == "__main__":
    if "TERM_IN_SHUTDOWN" in os.environ:
        send_sigterm_with_the_first_process_ended()
    launch(
        sys.argv[1],
        storage=sys.argv[2],
        console=Console(width=80),
        run_trial=fake_trial.run,
        check_trial=fake_trial.check,
    )
