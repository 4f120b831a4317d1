"""Conditional automated channel pruning: a taught agent, told which share of the flops may stay, gives the widths.

Source: Liu et al. 2020, arXiv:2009.09724. The agent is taught once, for several rates, by `orchestrator teach`
(trial/teaching.py), and asked here by any number of trials. Asking costs one small matrix product a group.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from orchestrator.methods.agent_file import AgentCard, UnfitAgent, check_present, load_agent, read_card, signature
from orchestrator.methods.agent_walk import Ground, Walk, walked
from orchestrator.methods.channel_sums import ChannelSums
from orchestrator.methods.method import Ahead, Budget, Floats, Method, Options, Subject
from orchestrator.methods.reconstruction import Fitting, reconstruct_
from orchestrator.methods.widths import widths_plan
from orchestrator.network import CostTable, Plan
from orchestrator.network.weights import fingerprint

NAME = "conditional_agent"


class AgentOptions(Options):
    """agent: the file that `orchestrator teach` wrote; what it was taught with must be asked for again.

    channels: which of a group stay, once the agent has said how many: those whose filters have the largest L1 norm,
    or those with the largest energy (all weights that make or read the channel, as in OICSR). The source has LASSO.
    repair: whether the layers that read what is left are fitted to the outputs they had, by least squares, as the
    source does (He et al. 2017). places: of each picture that the fit samples, at least.
    """

    agent: str = ""
    channels: Literal["filter_norm", "energy"] = "filter_norm"
    repair: bool = True
    places: Annotated[int, Field(ge=1)] = 10


def importance(subject: Subject) -> Floats:
    """[channels] what decides which channels of a group stay."""
    energy = subject.options.channels == "energy"
    sums = ChannelSums(subject.model, subject.coupling, made_only=not energy)
    found: Floats = (sums.squares() if energy else sums.magnitudes()).double().cpu().numpy()
    return found


def ground_of(subject: Subject) -> Ground:
    """What an agent walks over in a network."""
    return Ground(coupling=subject.coupling, names=subject.prunable(), score=importance(subject))


def choose(subject: Subject, budget: Budget) -> Plan:
    """Ask the agent for budget.flops / present flops, and keep so many channels of every group as it says.

    In later iterations of a trial it is asked about the network as it then is: rates and shares are of its flops and
    widths. Rates between and beyond those that it was taught for may be asked; the clamp meets the budget at any.
    Raises UnfitAgent, BudgetUnreachable.
    """
    actor, card = load_agent(check_present(subject.options.agent))
    check_fit(subject, card)
    walk = Walk(ground_of(subject), budget, spend_budget=card.spend_budget)
    return widths_plan(subject.coupling, walked(walk, actor.share), walk.ground.score)


def repair_(small: nn.Module, subject: Subject, plan: Plan) -> dict[str, str]:
    """Least squares on calibration pictures, front to back, in place; nothing where `repair` is off.

    Returns the layers that have lost inputs and cannot be fitted, each with the reason.
    """
    if not subject.options.repair:
        return {}
    return reconstruct_(small, subject, plan, Fitting(places=subject.options.places))


def check(ahead: Ahead) -> None:
    """Raises UnfitAgent where the agent's file is missing, or was taught on another network or with other options."""
    check_fit(ahead.subject, read_card(check_present(ahead.subject.options.agent)))


def notes(ahead: Ahead) -> list[str]:
    """What the agent is asked that it was not taught: a rate beyond its own, another group_cap, another round_to."""
    path, budget = ahead.subject.options.agent, ahead.budget
    card = read_card(check_present(path))
    found: list[str] = []
    flops = CostTable(ahead.subject.coupling).flops()
    low, high = min(card.rates), max(card.rates)
    if not low * flops - 1 <= budget.flops <= high * flops + 1:  # budgets are whole flops
        rates = f"{low:g} to {high:g}" if low < high else f"{low:g}"
        found.append(f"{path} was taught on flops_kept {rates}; here it is asked for {budget.flops / flops:.4g}")
    for name, taught, asked in (
        ("group_cap", card.group_cap, budget.group_cap),
        ("round_to", card.round_to, budget.round_to),
    ):
        if taught is not None and taught != asked:
            found.append(f"{path} was taught with {name} {taught:g}; here it is {asked:g}")
    return found


def check_fit(subject: Subject, card: AgentCard) -> None:
    """Raises UnfitAgent for what the agent was not taught, unless its file allows any network.

    Groups that it knows may be missing: they were frozen, or have a single channel left.
    """
    if card.any_network:
        return
    path = subject.options.agent
    for name, value in taught_options(subject.options).items():
        if card.options.get(name, value) != value:
            raise UnfitAgent(f"agent: {path} was taught with {name} = {card.options[name]}; here it is {value}")
    for group in subject.coupling.groups:
        if group.name in subject.prunable() and card.groups.get(group.name) != signature(group):
            taught_on = card.taught.get("model", "another network")
            raise UnfitAgent(
                f"agent: {path} was taught on {taught_on}, which has no group {group.name} such as this network has; "
                "teach one on this network, or one with --any-network"
            )


def taught_options(options: Options) -> dict[str, bool | int | float | str]:
    """The options that change what an agent learns: all but its own path."""
    return options.model_dump(exclude={"agent"})


CONDITIONAL_AGENT = Method(
    name=NAME,
    source="Liu et al. 2020, CACP, arXiv:2009.09724",
    version=1,
    options=AgentOptions,
    choose=choose,
    repair_=repair_,
    check=check,
    notes=notes,
    fingerprint=lambda options: {"agent": fingerprint(check_present(options.agent))},
)
