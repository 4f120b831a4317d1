"""explain(model, example): what can leave a network, what must stay and why, and where its flops are."""

from typing import Any

import numpy as np
from torch import nn

from orchestrator.network.cost import CostTable
from orchestrator.network.coupling import Coupling, Group, couple
from orchestrator.network.meta import Example


def explain(model: nn.Module, example: Example) -> dict[str, Any]:
    """All that `couple` and `CostTable` know about a network, as plain numbers and words that JSON can hold.

    groups, in the order in which they run: flops_share is the share of flops that would go if this group alone went
    down to one channel. layers: modules with weights; one that runs twice has the flops of both runs.
    Raises UnsupportedModel if the model does not run on the example.
    """
    coupling = couple(model, example)
    table = CostTable(coupling)
    return {
        "flops": table.flops(),
        "params": table.params(),
        "prunable_share": table.prunable_share(),
        "groups": [_group(group, table) for group in coupling.groups],
        "frozen": [{"layer": f.layer, "channels": f.channels, "reason": f.reason} for f in coupling.frozen],
        "layers": _layers(coupling, table),
        "notes": list(coupling.notes),
    }


def _group(group: Group, table: CostTable) -> dict[str, Any]:
    kept = np.ones(table.coupling.channels, bool)
    kept[group.start + 1 : group.start + group.size] = False
    full = table.flops()
    return {
        "name": group.name,
        "channels": group.size,
        "exact": group.exact,
        "inexact_reason": group.inexact_reason,
        "residual": group.summed,
        "flops_share": 1.0 - table.flops(kept) / full if full else 0.0,
        "members": [f"{name}:{dim}" for name, dim in group.members],
    }


def _layers(coupling: Coupling, table: CostTable) -> list[dict[str, Any]]:
    flops: dict[str, int] = {}
    for call, found in zip(coupling.calls, table.layer_flops(), strict=True):
        flops[call.module] = flops.get(call.module, 0) + found
    params: dict[str, int] = {}
    for name, shape in coupling.shapes.items():
        layer = name.rpartition(".")[0]
        params[layer] = params.get(layer, 0) + (0 if name in coupling.buffers else int(np.prod(shape, dtype=object)))
    names = [*flops, *(name for name in params if name not in flops and params[name])]
    return [{"name": name, "flops": flops.get(name, 0), "params": params.get(name, 0)} for name in names]
