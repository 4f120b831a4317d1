"""deploy/submit.sh against a real Ray on loopback, its token on: killed, submitted again, finished."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from processes import is_loopback, listening

from orchestrator.store import StageStore

pytest.importorskip("aiohttp_cors", reason="the job server is in the extra `cluster`")

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-for-this-test-alone-0123456789abcdef"
SPACE = """
[trial]
model = "own_net:make_net"
dataset = "digits"
iterations = 2
dense = { epochs = 1, learning_rate = 0.1 }
sparse = { epochs = 1, learning_rate = 0.1 }
recovery = { epochs = 1, learning_rate = 0.1 }
[search]
regularization_weight = { low = 1e-3, high = 1e-1, log = true, grid = 4 }
pruning_ratio = { low = 0.2, high = 0.5, step = 0.1 }
[budget]
trials = 3
[proposals]
parallel = 1
"""
# From so many finished stages on as a file of the project says, the network computes no more: what kills the job comes
# before its end, however late it comes.
OWN_NET = """
import time
from pathlib import Path
from torch import nn

class Net(nn.Sequential):
    def forward(self, pictures):
        stages, store = Path("hold").read_text().split()
        while len(list(Path(store).glob("stages/*/stage.json"))) >= int(stages):
            time.sleep(0.05)
        return super().forward(pictures)

def make_net():
    return Net(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
"""


@dataclass(frozen=True)
class Head:
    """A Ray head on loopback, its job server's URL and all its processes' parent."""

    url: str
    process: subprocess.Popen[str]
    environment: dict[str, str]

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["ray", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Started with a token, on a port of its own; ended by its process's number, and Ray's processes with it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
    }
    folder = tempfile.mkdtemp(prefix="ray")  # not pytest's own: the paths of sockets may not be long
    command = [sys.executable, str(Path(__file__).with_name("head.py")), "1", str(port), folder]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline().startswith(f"127.0.0.1:{port} ")
            yield Head(f"http://127.0.0.1:{port}", process, environment)
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.stdin.close()
            process.wait(timeout=120)
            psutil.wait_procs(family, timeout=30)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder: a space, a network of their own, and the deploy folder beside them."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    (folder / "own.toml").write_text(SPACE)
    (folder / "own_net.py").write_text(OWN_NET)
    return folder


@dataclass(frozen=True)
class Study:
    """Launches of one study by deploy/submit.sh."""

    head: Head
    project: Path
    store: StageStore

    def submit(self, stages: int) -> tuple[str, subprocess.Popen[str]]:
        """The submission id, and the process that follows the job, which stands still once it has so many stages.

        A head takes jobs a while after it has started.
        """
        (self.project / "hold").write_text(f"{stages} {self.store.root}")
        deadline = time.monotonic() + 180
        while True:
            process = self._submitting()
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if found := re.search(r"Job '(own-[\d-]+)' submitted successfully", line):
                    return found[1], process
            process.communicate(timeout=60)
            refused = "".join(said)
            assert "No available agent to submit job" in refused, refused
            assert time.monotonic() < deadline, refused

    def _submitting(self) -> subprocess.Popen[str]:
        command = ["deploy/submit.sh", "own.toml", str(self.store.root.parent), "--cpus-per-trial", "1"]
        return subprocess.Popen(
            command,
            cwd=self.project,
            env=self.head.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until_published(self, stages: int) -> dict[str, str]:
        """Every finished stage with its moment, once there are so many."""
        wait_for(lambda: len(self.store.keys()) >= stages)
        return self.finished()

    def finished(self) -> dict[str, str]:
        return {stage.key: stage.created for stage in self.store.stages()}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_job_is_submitted_again_and_finishes(head: Head, project: Path, tmp_path: Path) -> None:
    study = Study(head, project, StageStore(tmp_path / "results" / "own"))

    first, following = study.submit(2)
    known = study.until_published(2)
    assert head.ray("job", "stop", first).returncode == 0
    printed, _ = following.communicate(timeout=120)
    assert "stopped by SIGTERM; the same command goes on from here" in printed
    assert study.store.occupant("driver") is None

    second, following = study.submit(4)
    assert known.items() <= study.until_published(4).items()
    driver = study.store.occupant("driver")
    assert driver is not None
    os.kill(driver.pid, signal.SIGKILL)
    known = study.finished()
    following.communicate(timeout=120)
    assert following.returncode != 0

    third, following = study.submit(1000)
    printed, _ = following.communicate(timeout=120)
    assert following.returncode == 0, printed
    assert "3 trials done, 0 failed" in printed
    assert len({first, second, third}) == 3
    assert known.items() <= study.finished().items()  # none lost, none computed again
    assert study.store.duplicates() == 0
    assert len(list(study.store.points())) >= 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"RAY_AUTH_TOKEN": "not-the-token"}, "Invalid authentication token"), ({"RAY_AUTH_TOKEN": ""}, "token")],
)
def test_nobody_is_let_in_without_the_token(
    head: Head, project: Path, tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    environment = head.environment | {"HOME": str(tmp_path)} | changed
    command = ["deploy/submit.sh", "own.toml", str(tmp_path)]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert message in done.stderr + done.stdout


def test_its_processes_listen_on_loopback_alone(head: Head) -> None:
    found = listening(psutil.Process(head.process.pid))
    assert found
    assert [text for text in found.values() if not is_loopback(text)] == []
