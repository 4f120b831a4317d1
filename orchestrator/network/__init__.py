"""What a network is, what it costs, how it is cut. No data, no training."""

from orchestrator.network.cost import CostTable, Measurement, measure
from orchestrator.network.coupling import Coupling, Frozen, Group, couple
from orchestrator.network.meta import UnsupportedModel
from orchestrator.network.optimizers import UnsupportedOptimizer, cut_averaged, cut_optimizer
from orchestrator.network.plan import BudgetUnreachable, Plan, PlanMismatch, greedy, random_plan
from orchestrator.network.surgery import Verification, cut, masked, verify

__all__ = [
    "BudgetUnreachable",
    "CostTable",
    "Coupling",
    "Frozen",
    "Group",
    "Measurement",
    "Plan",
    "PlanMismatch",
    "UnsupportedModel",
    "UnsupportedOptimizer",
    "Verification",
    "couple",
    "cut",
    "cut_averaged",
    "cut_optimizer",
    "greedy",
    "masked",
    "measure",
    "random_plan",
    "verify",
]
