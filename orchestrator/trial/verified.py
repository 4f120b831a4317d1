"""A plan that was verified: a group whose cut is not the masked network is frozen, and the plan made again."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from orchestrator.network import Coupling, Plan, verify
from orchestrator.network.meta import Example
from orchestrator.record import FrozenGroup


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A plan that passed, the coupling it was made for, and the groups that were frozen on the way to it."""

    plan: Plan
    coupling: Coupling
    frozen: tuple[FrozenGroup, ...]


def verified(model: nn.Module, coupling: Coupling, make_plan: Callable[[Coupling], Plan], example: Example) -> Verified:
    """Make plans until one is right on the model's own weights, freezing what made the last one wrong.

    Raises UnsupportedModel if the model's answer is not the same twice.
    """
    frozen: list[FrozenGroup] = []
    while True:
        plan = make_plan(coupling)
        found = verify(model, coupling, plan, example)
        if found.passed:
            return Verified(plan=plan, coupling=coupling, frozen=tuple(frozen))
        reason = f"cut and masked network differ by {found.difference:.1e}"
        sizes = {name: coupling.by_name[name].size for name in found.failing}
        frozen += [FrozenGroup(group=name, channels=size, reason=reason) for name, size in sizes.items()]
        coupling = coupling.without(found.failing, reason)
