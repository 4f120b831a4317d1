"""Where a trial fits, by what Ray says of its machines; real clusters are in test_cluster.py."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.record import InvalidInput
from orchestrator.search.space import Resources
from orchestrator.store import StageStore

TWO_GPUS = Resources(cpus_per_trial=4, gpus_per_trial=2)
Machines = Callable[..., None]


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machines:
    """Sets what Ray says: machines as (cpus, gpus), the last `lost` of them dead, and the autoscaler's report."""
    from orchestrator.search import placement

    def have(*kinds: tuple[float, float], lost: int = 0, report: Any = None) -> None:
        alive = len(kinds) - lost
        nodes = [
            {"Alive": index < alive, "Resources": {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}}
            for index, (cpus, gpus) in enumerate(kinds)
        ]
        monkeypatch.setattr("ray.nodes", lambda: nodes)
        found = None if report is None else json.dumps(report).encode()
        monkeypatch.setattr(placement, "_internal_kv_get", lambda key: found)

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(placement.KUBERAY_VARIABLE, raising=False)
    monkeypatch.setattr(placement, "JOIN_SECONDS", 0.0)
    return have


def check(resources: Resources) -> list[str]:
    from orchestrator.search import placement

    said: list[str] = []
    placement.check_cluster(resources, said.append)
    return said


def test_one_machine_that_is_large_enough_will_do(machines: Machines) -> None:
    machines((1, 0), (8, 4))
    assert check(TWO_GPUS) == []


@pytest.mark.parametrize("kinds", [[(8, 1), (8, 1)], [(2, 4), (8, 1)], [(64, 0)]])
def test_machines_are_not_added_up(machines: Machines, kinds: list[tuple[float, float]]) -> None:
    machines(*kinds)
    with pytest.raises(InvalidInput, match="no machine of the cluster can host a trial: 4 CPUs and 2 GPUs are wanted"):
        check(TWO_GPUS)


def test_a_dead_machine_does_not_count(machines: Machines) -> None:
    machines((1, 0), (8, 4), lost=1)
    with pytest.raises(InvalidInput, match="there are 1 with 1 CPUs and 0 GPUs: give"):
        check(TWO_GPUS)


def test_a_machine_may_join_late(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.search import placement

    machines((1, 0))
    monkeypatch.setattr(placement, "JOIN_SECONDS", 60.0)
    monkeypatch.setattr("time.sleep", lambda seconds: machines((1, 0), (8, 4)))
    assert check(TWO_GPUS) == []


def test_a_cluster_that_autoscales_is_left_to_grow(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Ray's launcher, KubeRay, or the autoscaler's own report tell."""
    from orchestrator.search import placement

    waiting = ["no machine of the cluster can host a trial yet (4 CPUs and 2 GPUs): waiting for the autoscaler"]
    machines((1, 0), report={"autoscaler_report": {"active_nodes": {"head": 1}}})
    assert check(TWO_GPUS) == waiting
    machines((1, 0), report={"autoscaler_report": {"active_nodes": {"node_f2d3": 1}}})
    assert not placement.autoscales()
    monkeypatch.setenv(placement.KUBERAY_VARIABLE, "false")  # "true" for the second version of the autoscaler
    assert check(TWO_GPUS) == waiting
    monkeypatch.delenv(placement.KUBERAY_VARIABLE)
    (tmp_path / "ray_bootstrap_config.yaml").touch()
    assert check(TWO_GPUS) == waiting


def test_what_a_machine_complains_of(tmp_path: Path) -> None:
    """Asked of this process, which is as good as any worker."""
    from orchestrator.search import session

    store = StageStore(tmp_path / "seen")
    store.write_json("study.json", {})
    job = session.Job(root=store.root, function="fake_trial:run", resources=Resources())
    assert session._complaint(job) is None
    message = r"it does not see .*/unseen; give a --storage that every machine sees"
    assert re.fullmatch(message, session._complaint(replace(job, root=tmp_path / "unseen")) or "")
    message = r"No module named 'fake_tryal'; install it there, or send it along: deploy/README\.md"
    assert re.fullmatch(message, session._complaint(replace(job, function="fake_tryal:run")) or "")
    message = r"own_code:net: own_code cannot be imported: No module named 'own_code'; install it there.*"
    assert re.fullmatch(message, session._complaint(replace(job, references=("own_code:net",))) or "")
