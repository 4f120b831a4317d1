"""Whether trials can run where Ray would put them: on this machine, on one of a cluster, or on one that will join it.

Ray keeps waiting for a machine that is large enough, without a word; and a machine that lacks the user's code or the
storage would fail one trial after the other. A search that cannot work is refused instead, before anything is tried.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.experimental.internal_kv import _internal_kv_get  # no public call tells what the autoscaler reports
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.record import InvalidInput
from orchestrator.search.space import Resources

LAUNCHER_FILE = "~/ray_bootstrap_config.yaml"  # on the head of a cluster that `ray up` made; Tune looks there, too
KUBERAY_VARIABLE = "RAY_enable_autoscaler_v2"  # "true" or "false", set by KubeRay on heads that have an autoscaler
REPORT_KEY = b"__autoscaling_status"
STATIC = "node_"  # begins the type of a node that the autoscaler only watches
JOIN_SECONDS = 60.0  # for the machines of a cluster that is just starting
ANSWER_SECONDS = 120.0  # for a machine to start a worker, import PyTorch and look

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


def check_machines(complaint: Callable[..., str | None], *arguments: Any) -> None:
    """Has each machine of the cluster call `complaint(*arguments)`, which says what keeps it from running trials.

    Raises InvalidInput with the first complaint. A machine that is lost in the meantime, or does not answer, is left
    out: Ray finds out about it. One that joins later is not asked.
    """
    nodes = _living()
    if len(nodes) < 2:
        return  # the driver's own machine
    task = ray.remote(num_cpus=0, max_retries=0)(complaint)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            *arguments
        ): node
        for node in nodes
    }
    answers, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    for answer in answers:
        if text := _answer(answer):
            raise InvalidInput(f"machine {asked[answer]['NodeManagerAddress']} cannot run trials: {text}")


def _answer(answer: Any) -> str | None:
    try:
        found: str | None = ray.get(answer, timeout=ANSWER_SECONDS)
        return found
    except (ImportError, AttributeError) as error:  # this very package is not there, or is another version
        return str(error).strip().splitlines()[-1]
    except (RayError, GetTimeoutError):
        return None


def autoscales() -> bool:
    """Whether the cluster that this process is connected to starts machines of its own accord."""
    if Path(LAUNCHER_FILE).expanduser().exists() or KUBERAY_VARIABLE in os.environ:
        return True
    report = json.loads(_internal_kv_get(REPORT_KEY) or b"{}").get("autoscaler_report") or {}
    return any(not kind.startswith(STATIC) for kind in report.get("active_nodes", {}))


def _living() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in found if node["Alive"]]


def _nodes() -> list[Node]:
    """What each living machine has in all, the free and the taken."""
    return [node["Resources"] for node in _living()]


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
