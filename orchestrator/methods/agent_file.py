"""A taught agent as a file: its actor's weights in safetensors, and what it was taught as JSON in the header.

No pickle: reading it runs nothing. PyTorch alone is needed to ask it.
"""

import json
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from orchestrator.methods.agent_walk import FEATURES
from orchestrator.methods.method import Floats
from orchestrator.network import Group
from orchestrator.network.seeding import seeded
from orchestrator.record import InvalidInput, OpenShare, Record, Share

HEADER = "orchestrator_agent"
HOW = "`orchestrator teach SPACE.toml --out FILE` makes one"
HIDDEN = 300  # neurons in each of the two layers between state and action, as in the reference's recipe


class UnfitAgent(InvalidInput):
    """An agent's file that is missing, damaged, or taught for something else."""


class Answer(Record):
    """What the taught agent gave when it was asked for a rate, on the network that it was taught on."""

    rate: OpenShare  # flops_kept that was asked for
    flops_kept: Share  # that its widths have
    reward: Share  # accuracy on the held-out part of the train split, no recovery
    uniform_flops_kept: Share  # of uniform widths at the same rate
    uniform_reward: Share
    widths: dict[str, int]  # of every group it walked over


class AgentCard(Record):
    """What is to be known of an agent besides its weights.

    groups: of the network it was taught on, those it walked over, each with its members ("parameter:dimension").
    """

    version: Literal[1] = 1  # of this file's form, of the states and of what an action means
    groups: dict[str, tuple[str, ...]]
    any_network: bool = False  # whether it may be asked about other networks
    least_share: Annotated[float, Field(ge=0.0, lt=1.0)]  # of a group's channels, that its lowest action means
    spend_budget: bool = True  # the lower clamp: see Walk
    options: dict[str, bool | int | float | str]  # of the method, that it was taught with
    rates: tuple[OpenShare, ...]
    group_cap: OpenShare | None = None  # that it was taught with, as round_to; None in files older than these fields
    round_to: Annotated[int, Field(ge=1)] | None = None
    answers: tuple[Answer, ...] = ()
    taught: dict[str, str] = Field(default_factory=dict)  # model and dataset; identity: what decided about it


class Actor(nn.Module):
    """A state in, the share of a group's channels that stays out: the DDPG actor of the reference, 300-300."""

    def __init__(self, least_share: float) -> None:
        super().__init__()
        self.least_share = least_share
        sizes = len(FEATURES), HIDDEN, HIDDEN
        hidden = [part for read, made in pairwise(sizes) for part in (nn.Linear(read, made), nn.ReLU())]
        self.mu = nn.Sequential(*hidden, nn.Linear(HIDDEN, 1), nn.Tanh())

    @torch.no_grad()
    def forward(self, states: Tensor) -> Tensor:
        """[..., 13] -> [...] shares from least_share to 1."""
        found: Tensor = self.mu(states).squeeze(-1)
        return self.least_share + (found + 1) / 2 * (1 - self.least_share)

    def share(self, state: Floats) -> float:
        """What it answers in one state."""
        return float(self(torch.from_numpy(np.asarray(state, np.float32))))


def signature(group: Group) -> tuple[str, ...]:
    """What tells a group from those of other networks, whatever its width: the parameters it runs through."""
    return tuple(sorted(f"{name}:{dim}" for name, dim in group.members))


def save_agent(path: Path, actor: Actor, card: AgentCard) -> None:
    """Write an agent, aside first: the file is there whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in actor.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(aside), metadata={HEADER: card.model_dump_json()})
        os.replace(aside, path)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)


def read_card(path: Path) -> AgentCard:
    """What an agent's file says of it. Raises UnfitAgent."""
    return _read(path)[0]


def load_agent(path: Path) -> tuple[Actor, AgentCard]:
    """An agent from its file, on the CPU, in evaluation mode. Raises UnfitAgent, which names the file."""
    card, tensors = _read(path)
    with seeded(0):  # its first weights are drawn, and then overwritten
        actor = Actor(card.least_share)
    wanted = {name: tuple(tensor.shape) for name, tensor in actor.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        name = min(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        raise UnfitAgent(f"agent: {path}: {name} is {found.get(name)}; an agent has {wanted.get(name)}")
    if any(not tensor.isfinite().all() for tensor in tensors.values()):
        raise UnfitAgent(f"agent: {path}: holds weights that are no finite numbers")
    actor.load_state_dict(tensors)
    return actor.eval(), card


def check_present(path: str) -> Path:
    """The path of an agent's file. Raises UnfitAgent, which says how to come by one."""
    if not path:
        raise UnfitAgent(f"method_options.agent is empty; it must name the file of a taught agent: {HOW}")
    if not os.path.isfile(path):
        raise UnfitAgent(f"method_options.agent: {path}: there is no such file; {HOW}")
    return Path(path)


def _read(path: Path) -> tuple[AgentCard, Mapping[str, Tensor]]:
    path = check_present(str(path))
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnfitAgent(f"agent: {path} is no safetensors file: {str(error).splitlines()[0]}") from error
    if text is None:
        raise UnfitAgent(f"agent: {path} holds weights, but of no agent; {HOW}")
    try:
        return AgentCard.model_validate(json.loads(text)), tensors
    except (ValidationError, ValueError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, problem["loc"])) or "header"
        raise UnfitAgent(f"agent: {path}: {where}: {problem['msg']}; teach it again with this version") from error
