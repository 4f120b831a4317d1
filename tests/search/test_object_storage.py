"""A whole search on object storage: through Ray, killed, resumed, asked from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_trial
import psutil  # type: ignore[import-untyped]
from holding import hold, is_held, release
from test_proposals import end
from test_runner import front
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.files import Uri
from orchestrator.search.proposals import Proposals
from orchestrator.search.space import SearchSpace
from orchestrator.store import StageStore

DRIVER = Path(__file__).with_name("driver.py")


def start(space: Path, storage: Uri) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [DRIVER.parents[2], *sys.path]))}
    command = [sys.executable, str(DRIVER), str(space), str(storage)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def undisturbed(space: Path, journal: Path) -> set[str]:
    """The points of the same proposals, made here one after the other."""
    proposals = Proposals(SearchSpace.read(space), journal)
    found: set[str] = set()
    while (proposal := proposals.next()) is not None:
        found |= {point.key for point in fake_trial.points_of(proposal.spec)}
        end(proposals, proposal)
    return found


def test_a_search_on_object_storage_is_killed_resumed_and_asked(
    object_storage: Uri, space_file: Callable[..., Path], tmp_path: Path
) -> None:
    storage = object_storage / tmp_path.name / "deep"
    store = StageStore(storage / "small")
    fixed = {
        "trials = 12": "trials = 6",
        "[proposals]": '[stopping]\nrule = "none"\n[proposals]',
    }
    space = space_file("small", **fixed)
    hold(store, stages=5)
    process = start(space, storage)
    wait_for(lambda: is_held(store), process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {stage.key: stage.created for stage in store.stages()}
    release(store)
    assert all(not member.name().startswith("ray::work") for member in family if member.is_running())

    process = start(space, storage)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert f"small in {storage}/small" in printed
    assert f"next: orchestrator front {storage}/small" in printed
    after = {stage.key: stage.created for stage in store.stages()}
    assert {key: after.get(key) for key in before} == before
    assert store.duplicates() == 0
    assert {point.key for point in store.points()} == undisturbed(space, tmp_path / "journal.log")
    keys = [name.partition(".")[0] for name in store._files.names("computed")]
    assert len(keys) == len(set(keys))
    assert store._files.names("claims") == []

    ask = CliRunner()
    answer = ask.invoke(app, ["front", "small", "--storage", str(storage), "--format", "json"])
    assert answer.exit_code == 0, answer.output
    assert [row["key"] for row in json.loads(answer.output)] == [key for key, _, _ in front(store)]
    answer = ask.invoke(app, ["status", f"{storage}/small"])
    assert answer.exit_code == 0, answer.output
    assert answer.output.split()[:2] == ["study", f"{storage}/small"]
    output = tmp_path / "out"
    answer = ask.invoke(app, ["best", "small", "--storage", str(storage), "--max-flops", "1M", "--output", str(output)])
    assert answer.exit_code == 2
    assert "the weights of this point were not kept" in answer.stderr
    answer = ask.invoke(app, ["best", "small", "--storage", str(storage), "--max-flops", "1M"])
    assert answer.exit_code == 0, answer.output
