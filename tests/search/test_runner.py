"""Whole searches through Ray Tune, with trials that take no time; one Ray for all that need not kill it."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_trial
import psutil  # type: ignore[import-untyped]
import pytest
from holding import hold, is_held, release
from processes import is_loopback, listening
from rich.console import Console

from orchestrator.collector import frontier
from orchestrator.files import StorageFault
from orchestrator.record import InvalidInput, Outcome, Point
from orchestrator.search import SearchSpace, Summary, launch, runner
from orchestrator.search.binding import bind
from orchestrator.search.proposals import Proposals
from orchestrator.search.space import Resources
from orchestrator.store import Occupied, StageStore

Write = Callable[..., Path]
DRIVER = Path(__file__).with_name("driver.py")
OPTIONS = "[trial]\nmethod_options = { %s }"


@pytest.fixture(scope="module")
def ray_on_loopback() -> Iterator[None]:
    runner._set_environment(None)
    from orchestrator.search import session

    with session.connected(None, Resources()):
        yield


class Search:
    """Launches with fake trials into one folder, and what was printed."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.printed = ""

    def __call__(self, space: Path, **changes: Any) -> Summary:
        console = Console(file=io.StringIO(), width=100)
        given = {"storage": self.storage, "run_trial": fake_trial.run, "check_trial": fake_trial.check, **changes}
        try:
            return launch(space, console=console, **given)
        finally:
            assert isinstance(console.file, io.StringIO)
            self.printed = console.file.getvalue()

    def store(self, name: str = "small") -> StageStore:
        return StageStore(self.storage / name)


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path / "results")


def front(store: StageStore) -> list[tuple[str, float, int]]:
    return [(point.key, point.accuracy, point.flops) for point in frontier(list(store.points()))]


def named(process: psutil.Process, text: str) -> bool:
    """Whether a process has a text in its command line."""
    return any(text in word for word in process.info["cmdline"] or ())


def test_a_process_that_ends_while_it_is_asked_listens_on_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        gone = psutil.Process(process.pid)
    before = listening(psutil.Process())
    monkeypatch.setattr(psutil.Process, "children", lambda *given, **options: [gone])
    assert listening(psutil.Process()).items() <= before.items()


@pytest.mark.usefixtures("ray_on_loopback")
def test_ray_listens_on_loopback_alone() -> None:
    """Every process of the session, once all of them are up, the agents and a worker too."""
    import ray

    ray.get(ray.remote(num_cpus=0)(lambda: None).remote())
    parts = {"gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE"}
    wait_for(lambda: parts <= {member.name() for member in psutil.Process().children(recursive=True)})
    (node,) = ray.nodes()
    wait_for(lambda: {node["NodeManagerPort"], node["ObjectManagerPort"]} <= listening(psutil.Process()).keys())
    found = listening(psutil.Process())
    assert [address for address in found.values() if not is_loopback(address)] == []

    session = ray._private.worker.global_worker.node.get_session_dir_path()
    members = {member.pid for member in psutil.Process().children(recursive=True)}
    assert [one.pid for one in psutil.process_iter(["cmdline"]) if named(one, session)] != []
    assert {one.pid for one in psutil.process_iter(["cmdline"]) if named(one, session)} <= members


@pytest.mark.usefixtures("ray_on_loopback")
def test_groups_that_stay_whole_are_said(search: Search, space_file: Write) -> None:
    search(space_file("small", **{"[trial]": OPTIONS % "freezes = true"}), trials=2)
    printed = search.printed.splitlines()
    assert printed[0] == "note: fake: followed in one mode alone"
    cuts = sum(stage.kind == "cut" for stage in search.store().stages())
    said = f"group conv1 (32 channels) left whole in {cuts} stages: cut and masked network differ by 1.0e-01"
    assert said in printed
    assert f"layer conv2 not repaired in {cuts} stages: its weight is used more than once" in printed


@pytest.mark.usefixtures("ray_on_loopback")
def test_a_search_runs_resumes_and_extends(search: Search, space_file: Write) -> None:
    space = space_file("small")
    first = search(space, trials=5)
    assert (first.trials, first.target, first.failures, first.exhausted) == (5, 5, {}, False)
    assert first.computed == len(search.store().keys())
    assert "small" in search.printed.splitlines()[0]
    assert "[5/5]" in search.printed
    assert f"5 trials done, 0 failed; {len(list(search.store().points()))} points" in search.printed
    assert "orchestrator best" in search.printed
    assert not (search.store().root / "tune").exists()

    again = search(space, trials=5)
    assert (again.trials, again.computed) == (5, 0)
    assert "nothing to do" in search.printed
    assert "5 trials are done; the budget is used up (5 of 5 trials); --trials 9 goes on" in search.printed
    assert search(space, trials=2).trials == 5

    more = search(space, trials=8)
    assert more.trials == 8
    assert "8 trials, 5 of them done" in search.printed
    computed = (search.store().root / "computed.txt").read_text().split()
    assert len(computed) == len(set(computed)) == len(search.store().keys())


@pytest.mark.usefixtures("ray_on_loopback")
def test_failures_are_recorded_and_the_search_goes_on(search: Search, space_file: Write) -> None:
    """Each ratio has its own fate: one diverges, one kills its worker for good, one once, one raises."""
    options = OPTIONS % "diverges = 0.35, kills = 0.5, kills_once = 0.45, raises = 0.3"
    space = space_file(
        "small",
        **{
            "[trial]": f"{options}\nregularization_weight = 0.01\niterations = 3",
            "regularization_weight = { low = 1e-3, high = 1e-1, log = true, grid = 5 }": "",
            "iterations = { low = 2, high = 4 }": "",
            "{ low = 0.2, high = 0.5, step = 0.05 }": "{ choices = [0.3, 0.35, 0.45, 0.5] }",
        },
    )
    summary = search(space, trials=100)
    assert summary.exhausted
    assert "the space holds no other trial" in search.printed
    reasons = set(summary.failures.values())
    assert reasons == {
        "diverged: the loss is NaN",
        "error: its worker process was killed or crashed, 3 times",
        "error: RuntimeError: a worker that cannot go on",
    }
    assert all(f"trial {index} failed: {reason}" in search.printed for index, reason in summary.failures.items())
    recorded = search.store().failures()
    assert {failure.spec.pruning_ratio for failure in recorded} == {0.3, 0.35, 0.5}
    assert any("RuntimeError: a worker that cannot go on" in failure.traceback for failure in recorded)
    assert {point.flops_kept for point in search.store().points() if point.iteration == 3} == {0.55**3}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(search: Search, space: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a driver, send it a signal when it has published some stages; its exit code and what it printed."""
    store = search.store()
    hold(store, stages=5)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [DRIVER.parents[2], *sys.path]))}
    command = [sys.executable, str(DRIVER), str(space), str(search.storage)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    wait_for(lambda: is_held(store), process)
    family = psutil.Process(process.pid).children(recursive=True)
    addresses = listening(psutil.Process(process.pid))
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    release(store)
    if number != signal.SIGKILL:  # then Ray's agents stay until they miss it, up to a minute; the workers go at once
        wait_for(lambda: not any(_lives(member) for member in family))
    assert addresses
    assert [address for address in addresses.values() if not is_loopback(address)] == []
    return process.returncode, printed


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.usefixtures("ray_on_loopback")
def test_a_stopped_search_ends_as_if_left_alone(search: Search, space_file: Write, tmp_path: Path) -> None:
    space = space_file("small")
    code, printed = stop(search, space, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the same command goes on from here" in printed
    assert "Traceback" not in printed
    code, _ = stop(search, space, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert search(space).trials == 12

    undisturbed = Search(tmp_path / "undisturbed")
    undisturbed(space_file("small"))
    assert front(search.store()) == front(undisturbed.store())
    assert search.store().keys() == undisturbed.store().keys()
    assert search.store().duplicates() == 0


@pytest.mark.usefixtures("ray_on_loopback")
def test_a_full_disk_ends_the_launch_and_no_trial(search: Search, space_file: Write) -> None:
    choices = {"{ low = 0.2, high = 0.5, step = 0.05 }": "{ choices = [0.3, 0.35] }"}
    space = space_file("small", **{"[trial]": OPTIONS % "fills_once = 0.35", **choices})
    with pytest.raises(StorageFault, match=r"^/disk: no space$"):
        search(space)
    assert search.store().occupant("driver") is None
    summary = search(space)
    assert summary.failures == {}
    assert summary.exhausted


@pytest.mark.usefixtures("ray_on_loopback")
def test_storage_that_a_worker_cannot_reach_ends_the_launch(search: Search, space_file: Write) -> None:
    choices = {"{ low = 0.2, high = 0.5, step = 0.05 }": "{ choices = [0.3, 0.35] }"}
    space = space_file("small", **{"[trial]": OPTIONS % "loses_storage = 0.35", **choices})
    with pytest.raises(StorageFault, match=r"^/disk: away$"):
        search(space)
    assert search.store().failures() == []


def test_a_journal_that_cannot_be_written_ends_the_launch(space: SearchSpace, tmp_path: Path) -> None:
    from orchestrator.search.proposer import Proposer, last_row

    proposals = Proposals(space, tmp_path / "journal.log")
    proposer = Proposer(proposals, StageStore(tmp_path))
    asked = proposer.suggest("a")
    (tmp_path / "journal.log").unlink()
    (tmp_path / "journal.log").mkdir()
    proposer.on_trial_complete("a", last_row(Outcome(points=())))
    assert asked is not None
    assert proposer.fault is not None
    assert re.search(r"cannot be written \(is a directory\)$", str(proposer.fault))
    assert proposer.suggest("b") == proposer.FINISHED


def test_another_driver_is_kept_out(search: Search, space_file: Write) -> None:
    message = f"process {os.getpid()} on .* is its driver"
    with search.store().exclusive("driver"), pytest.raises(Occupied, match=message):
        search(space_file("small"))


def test_a_study_of_another_space_is_left_alone(search: Search, space_file: Write) -> None:
    store = search.store()
    bind(store, SearchSpace.read(space_file("small")), None)
    other = space_file("small", **{'dataset = "digits"': 'dataset = "mnist"'})
    message = r'small: is the study of another space: trial\.dataset is "digits" there, "mnist" in small\.toml; rename'
    with pytest.raises(InvalidInput, match=message):
        search(other)
    with pytest.raises(InvalidInput, match=r"search\.group_cap is absent there, \{.* in small\.toml"):
        search(space_file("small", **{"pruning_ratio = {": "group_cap = {", "[trial]": "[trial]\npruning_ratio = 0.3"}))


def test_a_damaged_study_file_is_named(search: Search, space_file: Write) -> None:
    search.store().write_json("study.json", [])
    with pytest.raises(InvalidInput, match=r"study\.json: damaged \(no definition\)"):
        search(space_file("small"))


def test_what_the_trial_refuses_is_refused_before_anything_is_written(search: Search, space_file: Write) -> None:
    text = {'model = "fake"': "", "[search]": '[search]\nmodel = { choices = ["fake", "unknown"] }'}
    with pytest.raises(InvalidInput, match=r"^small\.toml: unknown is no model; allowed: fake"):
        search(space_file("small", **text))
    assert not search.storage.exists()


def test_the_real_trial_is_the_default(search: Search, space_file: Write) -> None:
    with pytest.raises(InvalidInput, match=r"^small\.toml: unknown model 'fake'"):
        search(space_file("small"), run_trial=None, check_trial=None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trials": 0}, r"budget\.trials is 0; it must be at least 1"),
        ({"cpus_per_trial": 0.0}, r"resources\.cpus_per_trial is 0\.0; it must be above 0"),
        ({"gpus_per_trial": 2.5}, r"resources\.gpus_per_trial is 2\.5; above 1 it must be a whole number"),
        ({"address": "ray://head:10001"}, r"--address is ray://head:10001; it must be host:port or auto"),
    ],
)
def test_the_command_line_is_checked(search: Search, space_file: Write, given: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        search(space_file("small"), **given)
    assert not search.storage.exists()


def test_a_storage_that_cannot_be_written_is_named(search: Search, space_file: Write, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"file/small: cannot be written"):
        search(space_file("small"), storage=tmp_path / "file")


@pytest.mark.usefixtures("ray_on_loopback")
def test_resources_that_the_machine_lacks_are_refused() -> None:
    from orchestrator.search import placement

    with pytest.raises(InvalidInput, match=r"resources\.gpus_per_trial is 64; this machine has \d+ GPUs"):
        placement.check_here(Resources(gpus_per_trial=64))


def test_a_trial_with_several_gpus_is_told_of_each(tmp_path: Path) -> None:
    from orchestrator.search import session

    devices = {
        gpus: session.Job(root=tmp_path, function="", resources=Resources(gpus_per_trial=gpus)).device
        for gpus in (0, 0.5, 1, 2)
    }
    assert devices == {0: "cpu", 0.5: "cuda", 1: "cuda", 2: ("cuda:0", "cuda:1")}


def test_ray_imported_too_early_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys)
    monkeypatch.delenv(runner.LOOPBACK)
    with pytest.raises(InvalidInput, match=f"ray was imported before the search; set {runner.LOOPBACK}=0"):
        runner._set_environment(None)


def test_an_unreachable_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.search import session

    def refuse(**given: Any) -> None:
        raise ConnectionError(f"cannot connect to {given['address']}\nand much more")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    message = r"^no Ray at --address 10\.0\.0\.1:6379: cannot connect to 10\.0\.0\.1:6379; .*RAY_AUTH_MODE=token"
    with pytest.raises(InvalidInput, match=message), session.connected("10.0.0.1:6379", Resources()):
        pass


def test_the_next_command_has_a_budget_that_a_point_meets(space_file: Write, tmp_path: Path) -> None:
    space = SearchSpace.read(space_file("small"))
    spec = space.spec({"regularization_weight": 0.01, "pruning_ratio": 0.3, "iterations": 3})
    points: list[Point] = fake_trial.points_of(spec)
    lines = runner._next_commands(StageStore(Path("results") / "small"), points)
    assert lines == [
        "next: orchestrator front small",
        "      orchestrator best small --max-flops 490k --output small_best",
    ]
    assert runner._next_commands(StageStore(tmp_path / "small"), []) == []
    assert str(tmp_path) in runner._next_commands(StageStore(tmp_path / "small"), points[:1])[0]
