"""The learner of stable-baselines3, as the source's recipe has it. Alone imports that library, which is an extra."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import Env
from gymnasium.spaces import Box
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples


class Memory(ReplayBuffer):
    """Takes a moving average of the rewards that were sampled off every reward, as AMC does.

    baseline: the share of the old average in the new one; 1 takes nothing off.
    """

    def __init__(self, *args: Any, baseline: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.baseline = baseline
        self.average: float | None = None

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        found = super().sample(batch_size, env)
        if self.baseline == 1:
            return found
        mean = float(found.rewards.mean())
        before = mean if self.average is None else self.average
        self.average = before + (1 - self.baseline) * (mean - before)
        return found._replace(rewards=found.rewards - self.average)


class Spaces(Env[Any, Any]):
    """What states and actions look like, and no more: episodes are run by teaching.py."""

    def __init__(self, states: int) -> None:
        self.observation_space = Box(0.0, 1.0, (states,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)


class _TwoRates:
    """The library has one step size for both networks; the source's critic learns faster than its actor."""

    rates: ClassVar[tuple[float, float]]

    def _update_learning_rate(self, optimizers: Any) -> None:
        for optimizer, rate in zip(optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate


def built(
    algorithm: str, *, states: int, memory: int, baseline: float, rates: tuple[float, float], **options: Any
) -> TD3:
    """A learner that is fed by hand. memory: steps that it remembers; rates: step sizes of actor and critic."""
    kind = {"ddpg": DDPG, "td3": TD3}[algorithm]
    two_rates: Any = type(kind.__name__, (_TwoRates, kind), {"rates": rates})
    model: TD3 = two_rates(
        "MlpPolicy",
        Spaces(states),
        buffer_size=memory,
        replay_buffer_class=Memory,
        replay_buffer_kwargs={"baseline": baseline},
        device="cpu",
        **options,
    )
    model.set_logger(configure(None, []))
    return model
