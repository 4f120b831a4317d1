"""What holds for every test: one thread a process, Ray on loopback and silent, pictures without a screen.

Set here, before any test imports torch or Ray; the processes that tests start inherit it. And a made-up study.
"""

import logging
import math
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from orchestrator.files import Place, Uri, objects
from orchestrator.record import Cost, FrozenGroup, Point, Stage, StageKind, stage_key, whereabouts
from orchestrator.stage_files import write_record
from orchestrator.store import StageStore

BUCKET = "studies"
TESTS = Path(__file__).parent
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
NICENESS = "RAY_worker_niceness"

os.environ.update(dict.fromkeys(THREADS, "1"))
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # without it Ray listens on the machine's outer address
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ[NICENESS] = "0"  # at Ray's own 15 a trial gets a thirtieth of a core that a test beside it uses
os.environ["MPLBACKEND"] = "Agg"
sys.path.insert(0, str(TESTS))  # what several folders of tests use
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")  # a machine that stands still for a moment fails no test


WITH_RAY = ("search", "deploy", "docs", "test_benchmarks.py")  # a Ray for each file is enough, and quicker
MEASURED = "COVERAGE_PROCESS_CONFIG"  # by which Coverage tells child processes to measure themselves
WRONG = "cut and masked network differ by 1.0e-01"
TWICE = "its weight is used more than once"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those of a file that starts a Ray stay in one."""
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in WITH_RAY:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Coverage does not count what the child processes of tests with Ray run: tracing them takes a quarter of the CPU.

    It counts what the tests' own processes run, and those that other tests start.
    """
    measured = os.environ.pop(MEASURED, None) if item.path.relative_to(TESTS).parts[0] in WITH_RAY else None
    try:
        return (yield)
    finally:
        if measured is not None:
            os.environ[MEASURED] = measured


def make_stage(store: StageStore, parent: Stage | None, kind: StageKind, parameters: dict[str, Any]) -> Stage:
    """Publishes one stage of a made-up study; its figures follow from its parameters, nothing is trained."""
    parent_key = None if parent is None else parent.key
    stage = Stage(
        key=stage_key(parent_key, kind, parameters),
        parent=parent_key,
        kind=kind,
        parameters=parameters,
        frozen=tuple(FrozenGroup(group=name, channels=8, reason=WRONG) for name in parameters.get("frozen", ())),
        unrepaired=dict.fromkeys(parameters.get("unrepaired", ()), TWICE),
        cost=Cost(train_flops=3_000_000, seconds=1.5),
        **whereabouts(),
    )

    def compute(staging: Path) -> None:
        write_record(staging / "stage.json", stage)
        if kind != "sparse":
            write_record(staging / "point.json", make_point(stage))
            (staging / "weights.safetensors").write_bytes(stage.key.encode())
        if kind == "cut":
            (staging / "plan.json").write_text('{"groups": []}\n')

    store.obtain(stage.key, compute)
    return stage


def make_point(stage: Stage) -> Point:
    """The point of a made-up stage: pruning more costs accuracy, the more so the smaller the weight."""
    iteration = int(stage.parameters.get("iteration", 0))
    weight = stage.parameters.get("regularization_weight")
    ratio = stage.parameters.get("pruning_ratio")
    kept = (1 - float(ratio or 0)) ** iteration
    lost = (1 - kept) ** 2 * 0.2 * (1 + 0.1 * abs(math.log10((weight or 1e-3) / 1e-3)))
    return Point(
        key=stage.key,
        parent=stage.parent,
        kind="dense" if stage.kind == "dense" else "cut",
        iteration=iteration,
        model="cifarnet",
        dataset="digits",
        method=None if stage.kind == "dense" else stage.parameters.get("method", "oicsr"),
        regularization_weight=weight,
        pruning_ratio=ratio,
        seed=0,
        flops=max(1, round(12_345_678 * kept)),
        params=max(1, round(89_440 * kept)),
        flops_kept=kept,
        accuracy=0.97 - lost,
        latency_ms=10 * kept if stage.parameters.get("latency") else None,
        latency_batch=8 if stage.parameters.get("latency") else None,
        accuracy_after_cut=None if stage.kind == "dense" else 0.97 - 2 * lost,
        cost=stage.cost,
        path_cost=Cost(train_flops=3_000_000 * (1 + 2 * iteration), seconds=1.5 * (1 + 2 * iteration)),
        created=stage.created,
    )


def make_trial(store: StageStore, weight: float, ratio: float, iterations: int = 3, **beside: Any) -> None:
    """Publishes the stages of one made-up trial that are not there yet."""
    last = make_stage(store, None, "dense", {"model": "cifarnet", "dataset": "digits", "seed": 0})
    for iteration in range(1, iterations + 1):
        settings: dict[str, Any] = {"regularization_weight": weight, "iteration": iteration}
        last = make_stage(store, last, "sparse", settings)
        last = make_stage(store, last, "cut", {**settings, "pruning_ratio": ratio, **beside})


@pytest.fixture
def add_trial() -> Callable[..., None]:
    """make_trial(store, weight, ratio, iterations=3, frozen=[...], unrepaired=[...], latency=True, method="...")."""
    return make_trial


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small made-up study: 4 trials of 3 iterations, 1 + 4 x 3 points."""
    store = StageStore(tmp_path_factory.mktemp("finished") / "small")
    store.write_json("study.json", {"name": "small"})
    for weight in (1e-4, 1e-3):
        for ratio in (0.3, 0.45):
            make_trial(store, weight, ratio)
    return store.root


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> StageStore:
    """The store of a copy of the small made-up study, results/small, for one test alone."""
    return StageStore(shutil.copytree(finished_study, tmp_path / "results" / "small"))


@pytest.fixture(scope="session")
def object_storage() -> Iterator[Uri]:
    """A bucket on a server on loopback that speaks S3. The environment leads there, for child processes too."""
    import s3fs  # type: ignore[import-untyped]
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    s3fs.S3FileSystem(endpoint_url=environment["AWS_ENDPOINT_URL"]).call_s3("create_bucket", Bucket=BUCKET)
    yield Uri("s3", BUCKET)
    shutil.rmtree(objects.cache_of(Uri("s3", BUCKET)).parent, ignore_errors=True)
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.stop()


@pytest.fixture(params=["folder", "objects"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where studies may lie: a folder, and a prefix on object storage."""
    if request.param == "folder":
        return tmp_path
    bucket: Uri = request.getfixturevalue("object_storage")
    return bucket / uuid.uuid4().hex
