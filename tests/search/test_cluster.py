"""A Ray cluster of five nodes on loopback, four of them with a made-up GPU: a study loses two of them and finishes."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_trial
import psutil  # type: ignore[import-untyped]
import pytest
from processes import is_loopback, listening
from rich.console import Console

from orchestrator.collector import frontier
from orchestrator.record import InvalidInput
from orchestrator.search import Summary, launch, runner
from orchestrator.store import StageStore

Write = Callable[..., Path]
GPU_NODES = 4
# A lost node, which refuses connections, is noticed after about 4 s instead of 17; a busy one has time to answer.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 700,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 5,
}


class LoopbackCluster:
    """What a test needs of ray.cluster_utils.Cluster."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.ray = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "node_ip_address": "127.0.0.1", "_system_config": HEALTH},
        )
        self.nodes = [self.ray.add_node(num_cpus=2, num_gpus=1, node_ip_address="127.0.0.1") for _ in range(GPU_NODES)]

    @property
    def address(self) -> str:
        return str(self.ray.address)

    def lose_node(self) -> None:
        """Ends one GPU node at once, with all its processes, and no word to the cluster."""
        node = self.nodes.pop()
        started = [one.process for each in node.all_processes.values() for one in each]
        self.ray.remove_node(node, allow_graceful=False)
        for process in started:
            process.wait(timeout=60)  # Ray forgets them unreaped, of which Python warns whenever it collects them


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "a-token-for-these-tests-alone-0123456789")
        patch.setenv("RAY_TMPDIR", "/tmp")  # the paths of its sockets may not be long
        runner._set_environment(None)
        read_authentication_anew()
        here = LoopbackCluster()
        try:
            yield here
        finally:
            here.ray.shutdown()
    read_authentication_anew()


def read_authentication_anew() -> None:
    """What this process has read of the environment before, when it first used Ray, counts no longer."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def search(space: Path, storage: Path, address: str, **changes: Any) -> tuple[Summary, str]:
    console = Console(file=io.StringIO(), width=120)
    summary = launch(
        space,
        storage=storage,
        address=address,
        console=console,
        run_trial=fake_trial.run,
        check_trial=fake_trial.check,
        **changes,
    )
    assert isinstance(console.file, io.StringIO)
    return summary, console.file.getvalue()


def lose_nodes_while_running(cluster: LoopbackCluster, store: StageStore, at: tuple[int, ...]) -> threading.Thread:
    """A thread that ends a node each time so many stages are published."""

    def lose() -> None:
        deadline = time.monotonic() + 90
        for stages in at:
            while len(store.keys()) < stages and time.monotonic() < deadline:
                time.sleep(0.02)
            cluster.lose_node()

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    return thread


def front(store: StageStore) -> list[tuple[str, float, int]]:
    return [(point.key, point.accuracy, point.flops) for point in frontier(list(store.points()))]


def test_all_its_processes_listen_on_loopback_alone(cluster: LoopbackCluster) -> None:
    found = listening(psutil.Process())
    assert found
    assert [text for text in found.values() if not is_loopback(text)] == []
    family = {member.pid for member in psutil.Process().children(recursive=True)}
    raylets = [one for one in psutil.process_iter(["name"]) if one.pid in family and one.info["name"] == "raylet"]
    assert len(raylets) == 1 + GPU_NODES


def test_a_study_that_loses_two_nodes_finishes(cluster: LoopbackCluster, space_file: Write, tmp_path: Path) -> None:
    text = {"[trial]": "[trial]\nmethod_options = { seconds = 0.3 }", "parallel = 3": "parallel = 6"}
    resources = {"cpus_per_trial": 0.5, "gpus_per_trial": 0.5}
    store = StageStore(tmp_path / "torn" / "small")
    thread = lose_nodes_while_running(cluster, store, at=(10, 30))
    summary, printed = search(space_file("small", **text), store.root.parent, cluster.address, trials=16, **resources)
    thread.join()
    assert len(cluster.nodes) == GPU_NODES - 2
    assert (summary.trials, summary.failures) == (16, {})
    assert "16 trials done, 0 failed" in printed
    computed = (store.root / "computed.txt").read_text().split()
    assert len(computed) == len(set(computed))
    assert set(computed) <= set(store.keys())
    unnoted = len(store.keys()) - len(computed)
    assert unnoted <= 4  # of two nodes with two trials each: a worker may be lost between a stage and its line
    assert store.duplicates() == 0
    workers = {stage.pid for stage in store.stages()}
    assert len(workers) > 2  # how many more, the machine's speed decides: an idle worker takes the next trial

    calm = StageStore(tmp_path / "calm" / "small")
    undisturbed = space_file("small", **{"parallel = 3": "parallel = 6"})
    search(undisturbed, calm.root.parent, cluster.address, trials=16, gpus_per_trial=1.0)
    assert store.keys() == calm.keys()
    assert front(store) == front(calm)


def test_a_trial_that_fits_no_single_machine_is_refused(
    cluster: LoopbackCluster, space_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All machines together would have been enough: that does not help."""
    from orchestrator.search import placement

    monkeypatch.setattr(placement, "JOIN_SECONDS", 0.0)
    message = (
        r"^no machine of the cluster can host a trial: 1 CPUs and 2 GPUs are wanted of one machine; there are "
        r"\d with 2 CPUs and 1 GPUs, 1 with 1 CPUs and 0 GPUs: give --cpus-per-trial and --gpus-per-trial that fit"
    )
    with pytest.raises(InvalidInput, match=message):
        search(space_file("small"), tmp_path, cluster.address, gpus_per_trial=2.0)


def test_a_machine_that_lacks_the_users_code_is_named(
    cluster: LoopbackCluster, space_file: Write, tmp_path: Path
) -> None:
    space = space_file("small", **{'model = "fake"': 'model = "code_of_my_own:make_net"'})
    message = r"^machine 127\.0\.0\.1 cannot run trials: code_of_my_own:make_net: .* No module named 'code_of_my_own'"
    with pytest.raises(InvalidInput, match=message):
        search(space, tmp_path, cluster.address)
