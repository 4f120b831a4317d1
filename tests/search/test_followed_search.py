"""A real search that all trackers follow, killed and gone on with; and the programs that look at it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from holding import hold, is_held, release
from processes import is_loopback, listening
from test_tracking import check
from tracker_files import from_mlflow, from_tensorboard, from_wandb
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.record import InvalidInput
from orchestrator.search.proposals import Proposals
from orchestrator.search.space import Resources, SearchSpace
from orchestrator.store import StageStore

DRIVER = Path(__file__).with_name("tracking_driver.py")
pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")  # MLflow 3.17 with SQLAlchemy 2.1
BROKEN = "the broken one: nobody answers; the search goes on without it"


@contextmanager
def launched(space: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver, whose trackers write into the folder; ended at the latest when it is left."""
    paths = os.pathsep.join(map(str, [DRIVER.parents[2], *sys.path]))
    environment = os.environ | {"PYTHONPATH": paths, "WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
    environment.pop("WANDB_SERVICE", None)  # that of other tests in this process, which would outlive a killed driver
    command = [sys.executable, str(DRIVER), str(space), str(folder / "results"), str(folder)]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 250
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def answer(url: str) -> Any:
    """What a server on loopback says, None while it does not listen yet."""
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, HTTPException, ValueError):
        return None


def space_of(write: Callable[..., Path]) -> Path:
    options = "[trial]\nmethod_options = { diverges = 0.3 }"
    stopping = '[stopping]\nrule = "none"\n[proposals]'
    return write("small", **{"[trial]": options, "trials = 12": "trials = 6", "[proposals]": stopping})


def test_a_search_that_is_followed_killed_and_gone_on_with(space_file: Callable[..., Path], tmp_path: Path) -> None:
    space, store = space_of(space_file), StageStore(tmp_path / "results" / "small")
    hold(store, trials=2)
    with launched(space, tmp_path) as process:
        wait_for(lambda: is_held(store), process)
        addresses = listening(psutil.Process(process.pid))
        unfinished = len(store.trials())
        dashboard = [port for port in addresses if answer(f"http://127.0.0.1:{port}/api/version") == 401]
        process.send_signal(signal.SIGKILL)
        printed, _ = process.communicate()
    assert 2 <= unfinished < 6
    release(store)
    assert [text for text in addresses.values() if not is_loopback(text)] == []
    (address,) = re.findall(r"Ray's dashboard: http://127\.0\.0\.1:(\d+) \(it asks for the token", printed)
    assert int(address) in dashboard  # which does not let in who has no token

    with launched(space, tmp_path) as process:
        printed, _ = process.communicate(timeout=250)
    assert process.returncode == 0, printed
    assert printed.count(BROKEN) == 1
    assert "the broken one: stopped after an error (nobody answers)" in printed.splitlines()[-1]
    assert "6 trials done" in printed
    (folder,) = (tmp_path / "tb").iterdir()
    check(from_tensorboard(folder), store, digits=1e-7)
    check(from_mlflow(f"sqlite:///{tmp_path}/mlflow.db", "small"), store)
    check(from_wandb(tmp_path), store, twice=None)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def journal(space: SearchSpace, tmp_path: Path) -> Path:
    """The journal of a search with two trials that ended, one that failed, and one under way."""
    from test_proposals import end, opened

    path = tmp_path / "journal.log"
    under_way: Proposals = opened(space, path, 12)
    for _ in range(3):
        proposal = under_way.next()
        assert proposal is not None
        end(under_way, proposal, failing=proposal.index == 1)
    under_way.next()
    under_way.close()
    return path


@pytest.fixture
def optuna_dashboard(journal: Path, port: int) -> Iterator[str]:
    """Its address, while it looks at the journal."""
    command = [sys.executable, "-m", "optuna_dashboard._cli", str(journal), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: answer(f"http://127.0.0.1:{port}/api/studies"), process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate()


def test_optuna_dashboard_shows_settings_prefixes_and_reasons(
    optuna_dashboard: str, space: SearchSpace, journal: Path
) -> None:
    before = journal.read_bytes()
    (study,) = answer(f"{optuna_dashboard}/api/studies")["study_summaries"]
    assert (study["study_name"], study["directions"]) == ("small", ["maximize", "minimize"])
    found = answer(f"{optuna_dashboard}/api/studies/{study['study_id']}")
    assert found["objective_names"] == ["accuracy", "flops_kept"]
    trials = [(trial, {item["key"]: item["value"] for item in trial["user_attrs"]}) for trial in found["trials"]]
    weights = {str(value) for value in space.dimensions["regularization_weight"].values}  # type: ignore[union-attr]
    assert all(notes["regularization_weight"] in weights for _, notes in trials)
    assert all(0.2 <= float(notes["pruning_ratio"]) <= 0.5 for _, notes in trials)

    own = {notes["proposal"]: (trial, notes) for trial, notes in trials if "proposal" in notes}
    states = [own[index][0]["state"] for index in ("0", "1", "2", "3")]
    assert states == ["Complete", "Fail", "Complete", "Running"]
    assert own["1"][1]["failure"] == "diverged: loss is NaN"
    for _, notes in own.values():
        assert {"regularization_weight", "pruning_ratio"} <= notes.keys()
    prefixes = [(trial, notes) for trial, notes in trials if "prefix_of" in notes]
    assert prefixes
    for trial, notes in prefixes:
        whole = own[notes["prefix_of"]][1]
        assert notes["regularization_weight"] == whole["regularization_weight"]
        accuracy, flops_kept = trial["values"]
        assert 0 < flops_kept < 1
        assert 0.5 < accuracy < 1
    assert journal.read_bytes() == before  # looking writes nothing


def test_a_dashboard_without_its_packages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.search import session

    missing = ImportError("No module named 'aiohttp_cors'")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray._private.utils.get_dashboard_dependency_error", lambda: missing)
    message = r"--dashboard needs packages that are not installed \(No module .*\): pip install '.*\[dashboard\]'"
    with pytest.raises(InvalidInput, match=message), session.connected(None, Resources(), dashboard=True):
        pass


def test_a_cluster_without_a_dashboard_is_said() -> None:
    from orchestrator.search import session

    assert session._dashboard("") == "Ray has no dashboard: this cluster was started without one"


def test_the_command_line_makes_trackers_before_anything_else(tmp_path: Path) -> None:
    answered = CliRunner().invoke(app, ["search", str(tmp_path / "none.toml"), "--wandb", "a/b/c"])
    assert answered.exit_code == 2
    assert answered.stderr == "error: --wandb is 'a/b/c'; give the name of a project, or entity/project\n"
