"""What goes wrong in trials, with processes and by signals: what the user sees, and that nothing is lost by it."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_trial
import optuna
import psutil  # type: ignore[import-untyped]
import pytest
from holding import hold, is_held, release
from optuna.storages.journal import JournalFileBackend, JournalStorage
from rich.console import Console

from orchestrator import trial
from orchestrator.claim import sight
from orchestrator.collector import Study
from orchestrator.files import open_files
from orchestrator.search import Summary, daemons, launch, runner
from orchestrator.search.attempts import Attempts
from orchestrator.search.daemons import RayLost
from orchestrator.search.interrupts import Interrupts
from orchestrator.search.space import Resources
from orchestrator.store import StageStore

Write = Callable[..., Path]
DRIVER = Path(__file__).with_name("driver.py")
GOES_ON = "the same command goes on from here"
NUMBERS = {
    "regularization_weight = { low = 1e-3, high = 1e-1, log = true, grid = 5 }": "",
    "pruning_ratio = { low = 0.2, high = 0.5, step = 0.05 }": "",
    "iterations = { low = 2, high = 4 }": "",
}
FIXED = "[trial]\nregularization_weight = 0.01\niterations = 1\n"


@pytest.fixture(scope="module")
def ray_on_loopback() -> Iterator[None]:
    runner._set_environment(None)
    from orchestrator.search import session

    with session.connected(None, Resources()):
        yield


def search(space: Path, storage: Path, **changes: Any) -> tuple[Summary, list[str]]:
    """A launch in this process, and the lines that it printed."""
    console = Console(file=io.StringIO(), width=100)
    given = {"storage": storage, "run_trial": fake_trial.run, "check_trial": fake_trial.check, **changes}
    summary = launch(space, console=console, **given)
    assert isinstance(console.file, io.StringIO)
    return summary, console.file.getvalue().splitlines()


def assert_sound(root: Path) -> None:
    """Nothing is left behind, nothing was computed twice, and the frontier can be read."""
    store = StageStore(root)
    journal = JournalStorage(JournalFileBackend(str(root / "journal.log")))
    states = {one.state for one in optuna.load_study(study_name=root.name, storage=journal).get_trials()}
    assert not states & {optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING}
    files = open_files(root)
    assert [name for name in files.names("claims") if sight(files, f"claims/{name}")] == []
    # What a worker was writing in the moment of its death stays for an hour: tests/files/test_files.py.
    assert [one.name for one in (root / "staging").iterdir() if not one.name.startswith("file.")] == []
    assert store.duplicates() == 0
    log = root / "computed.txt"
    if log.exists():  # fake trials write it
        computed = log.read_text().split()
        assert len(computed) == len(set(computed))
        assert set(computed) == set(store.keys())
    assert len(Study(root).front()) > 0


# -- the user's own code ---------------------------------------------------------------------------------------------

TROUBLES = {
    "troubles:diverges": "diverged: the loss became nan in epoch 1, step 1",
    "troubles:out_of_memory": "out_of_memory: [enforce fail at",
    "troubles:breaks_in_training": "error: no such layer",
    "troubles:breaks_in_evaluation": "error: too many pictures",
}


@pytest.mark.usefixtures("ray_on_loopback")
def test_what_fails_in_the_users_code_ends_its_trial_alone(space_file: Write, tmp_path: Path) -> None:
    models = ", ".join(f'"{name}"' for name in ("troubles:sound", *TROUBLES))
    space = space_file(
        "troubles",
        **NUMBERS
        | {
            "[trial]": f"{FIXED}pruning_ratio = 0.3",
            'model = "fake"': "",
            'dataset = "digits"': "",
            "[search]": f"[search]\nmodel = {{ choices = [{models}] }}\n"
            'dataset = { choices = ["digits", "troubles:missing"] }',
        },
    )
    summary, printed = search(space, tmp_path / "results", trials=10, run_trial=trial.run)
    assert summary.trials == 10
    failures = StageStore(summary.study).failures()
    said = {(one.spec.model, one.spec.dataset): f"{one.reason}: {one.message}" for one in failures}
    for model, line in TROUBLES.items():
        assert said[model, "digits"].startswith(line)
    for model in ("troubles:sound", *TROUBLES):
        assert said[model, "troubles:missing"] == "error: the disk with the pictures is not there"
    assert len(summary.failures) == len(said) == 9
    for index, reason in summary.failures.items():
        assert reason in said.values()
        assert any(line.endswith(f"trial {index} failed: {reason}") for line in printed)
    raised = [failure for failure in failures if failure.reason != "diverged"]
    assert all("troubles.py" in failure.traceback for failure in raised)
    assert {point.model for point in StageStore(summary.study).points()} == {"troubles:sound"}
    assert_sound(summary.study)


@pytest.mark.usefixtures("ray_on_loopback")
def test_a_stage_that_hangs_hangs_once_a_launch(
    space_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials share the stage that hangs; the third, in the next launch, finds that it no longer does."""
    monkeypatch.chdir(tmp_path)

    def limited_to(minutes: float) -> Path:
        changes = {
            "[trial]": FIXED,
            'model = "fake"': 'model = "troubles:hangs_once"',
            "[search]": "[search]\npruning_ratio = { choices = [0.2, 0.3, 0.4] }",
            "[budget]": f"[resources]\nstage_minutes = {minutes}\n[budget]",
        }
        return space_file("hangs", **NUMBERS | changes)

    # In the first limit a trial comes as far as the hang on a machine that does much else, in the second to its end.
    first, printed = search(limited_to(0.2), tmp_path / "results", trials=2, run_trial=trial.run)
    (failure,) = StageStore(first.study).failures()
    reason = f"timed_out: the dense stage {failure.key[:12]} took longer than 0.2 minutes; it was at troubles.py:"
    assert [line.startswith(reason) and line.endswith(" in forward") for line in first.failures.values()] == [True] * 2
    assert sum("failed: timed_out: the dense stage" in line for line in printed) == 4  # as they end, and at the end
    assert "in forward" in failure.traceback
    second, _ = search(limited_to(30), tmp_path / "results", trials=3, run_trial=trial.run)
    assert (second.trials, len(second.failures), second.computed) == (3, 2, 3), second.failures
    assert_sound(second.study)


# -- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_on_loopback")
def test_a_worker_that_gets_further_each_time_is_not_given_up(space_file: Write, tmp_path: Path) -> None:
    """Killed once at each of its points, five times in all, and once after its end, a trial costs no other.

    Nobody needs the claims on those points any more; they are given back all the same.
    """
    options = "[trial]\nmethod_options = { kills_in_turn = 0.5, kills_after = 0.5 }"
    fixed = f"{options}\nregularization_weight = 0.01\niterations = 4"
    choices = "[search]\npruning_ratio = { choices = [0.5, 0.4, 0.3] }"
    space = space_file("small", **NUMBERS | {"[trial]": fixed, "[search]": choices})
    summary, _ = search(space, tmp_path / "results", trials=3)
    assert (summary.trials, summary.failures) == (3, {})
    assert len(list(summary.study.glob("killed_at_*"))) == 5
    assert_sound(summary.study)


def test_deaths_count_where_a_trial_gets_no_further() -> None:
    attempts = Attempts(idle=1)

    def begun_and_died() -> int | None:
        attempts.began(7)
        return attempts.died(7)

    attempts.reached(7, "a")
    assert [begun_and_died(), begun_and_died()] == [None, None]
    attempts.reached(7, "a")  # found again
    assert begun_and_died() == 3
    attempts.reached(7, "b")
    assert begun_and_died() is None
    assert [attempts.died(8) for _ in range(4)] == [None, None, None, 4]  # never begun: an idle worker may be dead


@dataclass
class Driver:
    """A search of fake trials in a process of its own."""

    process: psutil.Popen
    printed: Path
    root: Path

    @classmethod
    def start(cls, space: Path, storage: Path, **environment: str) -> "Driver":
        printed = storage.with_suffix(".txt")
        path = os.pathsep.join(map(str, [DRIVER.parents[2], *sys.path]))
        with printed.open("w") as output:
            process = psutil.Popen(
                [sys.executable, str(DRIVER), str(space), str(storage)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": path} | environment,
            )
        return cls(process, printed, storage / space.stem)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.01)

    def daemons(self) -> list[str]:
        return [child.name() for child in self.process.children()]

    def end(self) -> tuple[int, str]:
        """Its exit code and what it printed; none of its processes may stay."""
        family = self.process.children(recursive=True)
        code = self.process.wait(90)
        _, left = psutil.wait_procs(family, timeout=60)
        assert left == []
        return code, self.text()

    def text(self) -> str:
        return self.printed.read_text()


def is_agent(process: psutil.Process) -> bool:
    """Ray's agents wait a minute for a GCS that was killed with its driver."""
    try:
        return "Agent" in process.cmdline()[0]
    except (psutil.NoSuchProcess, IndexError):
        return False


@pytest.mark.usefixtures("ray_on_loopback")
def test_signals_at_any_moment_cost_nothing_that_was_finished(space_file: Write, tmp_path: Path) -> None:
    """SIGINT while Ray starts; twice, at once, while trials run; and SIGTERM while Ray is shut down at the end."""
    space, storage = space_file("small"), tmp_path / "r"
    store = StageStore(storage / "small")

    hold(store, stages=0)
    driver = Driver.start(space, storage)
    driver.wait_for(lambda: "gcs_server" in driver.daemons())
    driver.process.send_signal(signal.SIGINT)
    code, printed = driver.end()
    assert (code, printed.splitlines()[-1]) == (130, f"stopped by SIGINT; {GOES_ON}")
    assert "Traceback" not in printed

    hold(store, stages=5)
    driver = Driver.start(space, storage)
    driver.wait_for(lambda: is_held(store))
    family = [child for child in driver.process.children(recursive=True) if not is_agent(child)]
    while driver.process.poll() is None:  # Ctrl-C until it is over
        driver.process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert driver.process.returncode == 130
    assert driver.text().splitlines()[-1] in (f"ended on the spot; {GOES_ON}", f"stopped by SIGINT; {GOES_ON}")
    _, left = psutil.wait_procs(family, timeout=60)
    assert left == []
    finished = {stage.key: stage.created for stage in store.stages()}

    release(store)
    driver = Driver.start(space, storage, TERM_IN_SHUTDOWN="yes")
    code, printed = driver.end()
    assert (code, printed.splitlines()[-1]) == (143, f"stopped by SIGTERM; {GOES_ON}")
    assert "[12/12]" in printed
    now = {stage.key: stage.created for stage in store.stages()}
    assert finished.items() <= now.items()

    summary, printed_last = search(space, storage)
    assert (summary.trials, summary.computed) == (12, 0)
    assert printed_last[0].startswith("nothing to do for small")
    assert_sound(summary.study)
    calm, _ = search(space, tmp_path / "calm")
    assert Study(calm.study).front().key.tolist() == Study(summary.study).front().key.tolist()


def test_ray_ending_a_worker_for_want_of_memory_is_said(space_file: Write, tmp_path: Path) -> None:
    """Ray's memory monitor, told that one per cent of the memory is all there is, ends whatever runs."""
    slow = {"[trial]": "[trial]\nmethod_options = { seconds = 60 }", "trials = 12": "trials = 1"}
    slow["parallel = 3"] = "parallel = 1"
    starved = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    driver = Driver.start(space_file("small", **slow), tmp_path / "r", **starved)
    code, printed = driver.end()
    reason = r"out_of_memory: Ray ended its worker for want of memory, [34] times; a larger --cpus-per-trial runs "
    assert code == 0
    assert re.search(f"trial 0 failed: {reason}fewer trials side by side", printed)
    (failure,) = StageStore(driver.root).failures()
    assert "low on memory" in failure.traceback


# -- Ray's own processes ---------------------------------------------------------------------------------------------


@pytest.fixture
def raylet(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the raylet's place, for daemons.watched to look after."""
    process = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(daemons, "_processes", lambda: [("raylet", process)])
    monkeypatch.setattr("ray.shutdown", lambda: None)
    yield process
    process.kill()
    process.wait()


def lose(raylet: subprocess.Popen[bytes]) -> None:
    raylet.kill()
    assert threading.Event().wait(30)  # as a search waits for its trials: a signal ends it


def interrupted(raylet: subprocess.Popen[bytes]) -> None:
    raylet.kill()
    raylet.wait()
    raise KeyboardInterrupt


def test_a_lost_raylet_is_noticed_at_once(raylet: subprocess.Popen[bytes]) -> None:
    said: list[str] = []
    before = signal.getsignal(daemons.WAKE)
    with (
        pytest.raises(RayLost, match=r"^Ray's raylet was ended by SIGKILL$"),
        daemons.watched(Interrupts(), said.append),
    ):
        lose(raylet)
    assert said == ["Ray's raylet was ended by SIGKILL"]
    assert signal.getsignal(daemons.WAKE) == before


def test_a_stop_that_was_asked_for_goes_before_a_lost_raylet(raylet: subprocess.Popen[bytes]) -> None:
    said: list[str] = []
    interrupts = Interrupts()
    interrupts.received.append(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), daemons.watched(interrupts, said.append):
        interrupted(raylet)
    assert said == []


def test_a_search_goes_on_after_losses_but_not_in_vain() -> None:
    finished: list[int] = []
    calls: list[int] = []

    def attempt() -> str:
        calls.append(1)
        if len(calls) < 6:
            finished.append(1)
        raise RayLost("Ray's GCS was ended by SIGKILL")

    message = "Ray's GCS was ended by SIGKILL, 3 times in a row with nothing finished in between"
    with pytest.raises(RayLost, match=message):
        daemons.outliving(attempt, lambda: len(finished))
    assert len(calls) == 7
    assert daemons.outliving(lambda: "done", lambda: 0) == "done"


@pytest.mark.usefixtures("ray_on_loopback")
def test_a_search_that_loses_ray_again_and_again_ends(
    space_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.search import session

    def lost(*given: Any, **options: Any) -> None:
        raise RayLost("Ray's raylet was ended by SIGKILL")

    monkeypatch.setattr(session, "run", lost)
    console = Console(file=io.StringIO(), width=100)
    with pytest.raises(SystemExit) as caught:
        launch(
            space_file("small"),
            storage=tmp_path,
            console=console,
            run_trial=fake_trial.run,
            check_trial=fake_trial.check,
        )
    assert caught.value.code == 1
    assert isinstance(console.file, io.StringIO)
    last = "Ray's raylet was ended by SIGKILL, 3 times in a row with nothing finished in between"
    assert console.file.getvalue().splitlines()[-1] == f"{last}; {GOES_ON}"
