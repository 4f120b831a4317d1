"""What an agent learns with: stable-baselines3's TD3, or DDPG as the source has it; the episodes are run elsewhere.

The library keeps networks, optimisers, memory and updates. Episodes are our own loop (teaching.py), because the reward
of the last step is given to every step of its episode, and because a teaching that was killed must end as it would
have. All that is random comes from the caller's seed: see `seeded`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

import numpy as np
import torch
from pydantic import Field, FiniteFloat
from scipy.stats import truncnorm

from orchestrator.methods.agent_file import HIDDEN, Actor
from orchestrator.methods.agent_walk import FEATURES
from orchestrator.methods.method import Floats
from orchestrator.network.seeding import seeded
from orchestrator.record import InvalidInput, Record, Share

if TYPE_CHECKING:
    from stable_baselines3 import TD3

    from orchestrator.trial.reinforcement import Memory

MISSING = "orchestrator teach needs stable-baselines3: pip install 'pruning-orchestrator[agent]'"
MEMORY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")  # the library's arrays
Positive = Annotated[FiniteFloat, Field(gt=0.0)]


class Recipe(Record):
    """How the learner learns. The source's recipe, but for the memory: it remembers its 100 warm-up episodes' worth."""

    algorithm: Literal["ddpg", "td3"] = "ddpg"  # td3: two critics, smoothed targets, an actor that waits for them
    actor_rate: Positive = 1e-4  # step size of Adam
    critic_rate: Positive = 1e-3
    discount: Share = 1.0  # of the next step's value
    tau: Share = 0.01  # how far the target networks follow at each update
    batch_size: Annotated[int, Field(ge=1)] = 64  # steps in an update
    updates: Annotated[int, Field(ge=1)] = 1  # for each step of an episode
    memory: Annotated[int, Field(ge=1)] = 1000  # episodes that are remembered
    noise: Positive = 0.5  # deviation of the first shares that are tried, a truncated normal around the actor's
    noise_decay: Share = 0.95  # what it is multiplied by after each episode
    baseline: Share = 0.5  # share of the old in the moving average of rewards that is taken off; 1 takes nothing off


class Step(NamedTuple):
    """One group of an episode: what the agent saw, and what it answered, from -1 to 1."""

    state: Floats
    action: float


class Learner:
    """Actor, critics and memory. `rng` is given to what explores; updates draw from the global random states."""

    def __init__(self, recipe: Recipe, *, steps: int, least_share: float) -> None:
        """steps: the groups of an episode."""
        self.recipe, self.least_share = recipe, least_share
        self.model = _built(recipe, steps)

    def action(self, state: Floats, noise: float, rng: np.random.Generator) -> float:
        """What the actor answers from -1 to 1, changed by noise of this deviation, in shares of [0, 1]."""
        with torch.no_grad():
            mean = float(self.model.actor(torch.from_numpy(state[None])))
        if noise <= 0:
            return mean
        spread = 2 * noise
        return float(truncnorm.rvs((-1 - mean) / spread, (1 - mean) / spread, mean, spread, random_state=rng))

    def share(self, action: float) -> float:
        """The share of a group's channels that an action from -1 to 1 means."""
        return self.least_share + (action + 1) / 2 * (1 - self.least_share)

    def remember(self, steps: Sequence[Step], reward: float) -> None:
        """One episode; its reward is given to every step, as the source does."""
        after = [*(step.state for step in steps[1:]), np.zeros(len(FEATURES), np.float32)]
        for number, (step, following) in enumerate(zip(steps, after, strict=True), start=1):
            self._memory.add(
                step.state[None],
                following[None],
                np.array([[step.action]], np.float32),
                np.array([reward], np.float32),
                np.array([float(number == len(steps))], np.float32),
                [{}],
            )

    def learn_(self, steps: int) -> None:
        """The updates after an episode of so many steps."""
        self.model.train(gradient_steps=steps * self.recipe.updates, batch_size=self.recipe.batch_size)

    def actor(self) -> Actor:
        """The actor as it is, to be asked with PyTorch alone."""
        with seeded(0):  # its first weights are drawn, and then overwritten
            found = Actor(self.least_share)
        found.mu.load_state_dict(self.model.actor.mu.state_dict())
        return found.eval()

    def state(self) -> dict[str, Any]:
        """All that it knows: tensors and plain numbers, which torch.load reads with weights_only=True."""
        memory = self._memory
        return {
            "policy": self.model.policy.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "updates": self.model._n_updates,
            "average": memory.average,
            "memory": {name: torch.from_numpy(getattr(memory, name)) for name in MEMORY},
            "place": [memory.pos, memory.full],
        }

    def load_(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        memory = self._memory
        self.model.policy.load_state_dict(state["policy"])
        for optimizer, known in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        self.model._n_updates = state["updates"]
        memory.average = state["average"]
        for name in MEMORY:
            getattr(memory, name)[:] = state["memory"][name].numpy()
        memory.pos, memory.full = state["place"]

    @property
    def _memory(self) -> "Memory":
        memory: Any = self.model.replay_buffer
        return cast("Memory", memory)

    @property
    def _optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        return self.model.actor.optimizer, self.model.critic.optimizer


def _built(recipe: Recipe, steps: int) -> "TD3":
    try:
        from orchestrator.trial.reinforcement import built
    except ImportError as error:
        raise InvalidInput(MISSING) from error
    return built(
        recipe.algorithm,
        states=len(FEATURES),
        memory=recipe.memory * steps,
        baseline=recipe.baseline,
        rates=(recipe.actor_rate, recipe.critic_rate),
        batch_size=recipe.batch_size,
        tau=recipe.tau,
        gamma=recipe.discount,
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN]},
    )
