"""Whether a trial fits anywhere: on this machine, on a machine of a cluster, or on one that will join it.

Ray keeps waiting for a machine that is large enough, without a word; a search that can never start is refused instead.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get  # no public call tells what the autoscaler reports

from orchestrator.record import InvalidInput
from orchestrator.search.space import Resources

LAUNCHER_FILE = "~/ray_bootstrap_config.yaml"  # on the head of a cluster that `ray up` made; Tune looks there, too
KUBERAY_VARIABLE = "RAY_enable_autoscaler_v2"  # "true" or "false", set by KubeRay on heads that have an autoscaler
REPORT_KEY = b"__autoscaling_status"
STATIC = "node_"  # begins the type of a node that the autoscaler only watches
JOIN_SECONDS = 60.0  # for the machines of a cluster that is just starting

Node = Mapping[str, float]


def check_here(resources: Resources) -> None:
    """Raises InvalidInput if this machine can never host a trial."""
    (have,) = _nodes() or [{}]
    for unit, (name, share) in _wanted(resources).items():
        if share > have.get(unit, 0.0):
            there = have.get(unit, 0.0)
            hint = f"give --{name}-per-trial {there:g} or less"
            raise InvalidInput(f"resources.{name}_per_trial is {share:g}; this machine has {there:g} {unit}s: {hint}")


def check_cluster(resources: Resources, say: Callable[[str], None]) -> None:
    """Waits until a machine of the cluster can host a trial; that all of them together could does not help.

    A cluster that autoscales is left to grow, which is said. Raises InvalidInput for any other whose machines are all
    too small, after a minute: they may still be joining.
    """
    deadline = time.monotonic() + JOIN_SECONDS
    while not any(_fits(resources, node) for node in _nodes()):
        if autoscales():
            say(f"no machine of the cluster can host a trial yet ({_asked(resources)}): waiting for the autoscaler")
            return
        if time.monotonic() >= deadline:
            raise InvalidInput(
                f"no machine of the cluster can host a trial: {_asked(resources)} are wanted of one machine; "
                f"there are {_described(_nodes())}: give --cpus-per-trial and --gpus-per-trial that fit one of them"
            )
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))


def autoscales() -> bool:
    """Whether the cluster that this process is connected to starts machines of its own accord."""
    if Path(LAUNCHER_FILE).expanduser().exists() or KUBERAY_VARIABLE in os.environ:
        return True
    report = json.loads(_internal_kv_get(REPORT_KEY) or b"{}").get("autoscaler_report") or {}
    return any(not kind.startswith(STATIC) for kind in report.get("active_nodes", {}))


def _nodes() -> list[Node]:
    """What each living machine has in all, the free and the taken."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in found if node["Alive"]]


def _wanted(resources: Resources) -> dict[str, tuple[str, float]]:
    return {"CPU": ("cpus", resources.cpus_per_trial), "GPU": ("gpus", resources.gpus_per_trial)}


def _fits(resources: Resources, node: Node) -> bool:
    return all(share <= node.get(unit, 0.0) for unit, (_, share) in _wanted(resources).items())


def _asked(resources: Resources) -> str:
    return f"{resources.cpus_per_trial:g} CPUs and {resources.gpus_per_trial:g} GPUs"


def _described(nodes: list[Node]) -> str:
    """The different kinds of machines, the largest first."""
    kinds = sorted(((node.get("GPU", 0.0), node.get("CPU", 0.0)) for node in nodes), reverse=True)
    return ", ".join(f"{kinds.count(kind)} with {kind[1]:g} CPUs and {kind[0]:g} GPUs" for kind in dict.fromkeys(kinds))
