"""teach(spec, store, out, lesson): one agent taught to prune one network to several rates, and written to a file.

Source: Liu et al. 2020, Conditional Automated Channel Pruning, arXiv:2009.09724. An episode walks over the groups of
the network and gives each a width; the rates take turns; the reward comes at the end. The same lesson gives the same
agent, also where it was killed on the way: the state after every CHECKPOINT_EVERY episodes lies beside the file, and
each episode draws from a seed of its own.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from orchestrator.methods.agent import AgentOptions, taught_options
from orchestrator.methods.agent_file import Actor, AgentCard, Answer, read_card, save_agent, signature
from orchestrator.methods.agent_walk import Walk, walked
from orchestrator.methods.method import Budget
from orchestrator.methods.widths import uniform_widths
from orchestrator.network import BudgetUnreachable
from orchestrator.network.seeding import seeded
from orchestrator.record import InvalidInput, OpenShare, Record, TrialSpec, canonical_json
from orchestrator.store import StageStore
from orchestrator.trial.checkpoint import read_checkpoint, write_checkpoint
from orchestrator.trial.learner import Learner, Recipe, Step
from orchestrator.trial.networks import Network
from orchestrator.trial.path import Setting
from orchestrator.trial.rewards import Rewards
from orchestrator.trial.running import FailedStage, Trial

CHECKPOINT_EVERY = 10  # episodes
CHECKPOINT = ".teaching"  # what the name of the file beside the agent's ends with
WARM_UP = 8  # one episode in so many, but no more than MOST_WARM_UP, is walked at random before learning begins
MOST_WARM_UP = 100  # of the source's 800


class Lesson(Record):
    """What is taught, and how. Its fields decide about the agent that comes out, to the last digit."""

    rates: tuple[OpenShare, ...] = (0.3, 0.5, 0.7)  # flops_kept, one episode each in turn
    episodes: Annotated[int, Field(ge=1)] = 300  # the source has 800
    seed: Annotated[int, Field(ge=0)] = 0
    group_cap: OpenShare = 0.8  # largest share of a group that may leave; best as in the trials that will ask
    round_to: Annotated[int, Field(ge=1)] = 1  # a group that loses channels keeps a multiple of this
    spend_budget: bool = True  # the lower clamp of a walk, which the source does not have: see Walk
    reward: Literal["accuracy", "beside_uniform"] = "accuracy"  # or accuracy / accuracy of uniform widths at this rate
    held_out: Annotated[int, Field(ge=1)] | None = None  # pictures that rewards are measured on: see held_out.py
    any_network: bool = False  # whether the agent may be asked about other networks
    recipe: Recipe = Recipe()

    @model_validator(mode="after")
    def _rates_are_given_once(self) -> Self:
        if not self.rates or len(set(self.rates)) < len(self.rates):
            raise ValueError(f"rates are {', '.join(map(str, self.rates)) or 'none'}; give at least one, each once")
        return self

    @property
    def warm_up(self) -> int:
        """Episodes that are walked at random."""
        return min(MOST_WARM_UP, -(-self.episodes // WARM_UP))


class Episode(Record):
    """How one episode ended."""

    number: int  # from 1
    rate: float
    flops_kept: float
    reward: float  # accuracy, not yet scaled


Tell = Callable[[Episode], None]


def teach(
    spec: TrialSpec,
    store: StageStore,
    out: Path,
    lesson: Lesson,
    options: AgentOptions | None = None,
    *,
    device: str = "cpu",
    tell: Tell = lambda episode: None,
    note: Callable[[str], None] = lambda text: None,
) -> AgentCard:
    """Teach an agent on the dense network of a trial, which is looked up in the store or trained there once.

    `tell` is told of every episode, `note` of what else is to be said. A teaching that was killed goes on where its
    last checkpoint left it; one that is finished is read from its file.
    Raises InvalidInput where `out` holds something else, a rate cannot be met, the dense network cannot be had, or
    stable-baselines3 is not installed.
    """
    options = options or AgentOptions()
    setting = Setting.of(spec.model_copy(update={"method": "filter_norm", "method_options": {}}))
    trial = Trial(setting, store, device, None)
    identity = _identity(trial.keys[0], lesson, options)
    finished = _finished(out, identity)
    if finished is not None:
        note(f"{out}: this very agent is there; nothing is left to teach")
        return finished
    try:
        trial.pass_(trial.steps[0])
        trial.bring_back(trial.keys[0])
    except FailedStage as error:
        raise InvalidInput(f"the dense network cannot be had: {error.failure.message}") from error
    network = trial.networks.of(trial.keys[0])
    teacher = Teacher(network, Rewards(network, setting, options, seed=lesson.seed, count=lesson.held_out), lesson)
    checkpoint = out.with_name(out.name + CHECKPOINT)
    before = read_checkpoint(checkpoint, identity)
    if before is not None:
        teacher.load_(before)
        note(f"going on after episode {teacher.done} of {lesson.episodes}")
    for episode in teacher.episodes():
        tell(episode)
        if episode.number % CHECKPOINT_EVERY == 0:
            write_checkpoint(checkpoint, identity, teacher.state())
    card = AgentCard(
        groups={group.name: signature(group) for group in teacher.rewards.ground.groups},
        any_network=lesson.any_network,
        least_share=teacher.learner.least_share,
        spend_budget=lesson.spend_budget,
        options=taught_options(options),
        rates=lesson.rates,
        group_cap=lesson.group_cap,
        round_to=lesson.round_to,
        answers=tuple(teacher.answers()),
        taught={"model": spec.model, "dataset": spec.dataset, "identity": identity},
    )
    save_agent(out, teacher.best, card)
    checkpoint.unlink(missing_ok=True)
    return card


def _identity(dense_key: str, lesson: Lesson, options: AgentOptions) -> str:
    """One text for all that decides about the agent."""
    return canonical_json({"dense": dense_key, "lesson": lesson, "options": taught_options(options), "version": 1})


def _finished(out: Path, identity: str) -> AgentCard | None:
    """What is known of the agent that is there already; None where there is no file. Raises InvalidInput."""
    if not os.path.lexists(out):
        return None
    card = read_card(out)
    if card.taught.get("identity") != identity:
        raise InvalidInput(f"{out}: is another agent, or one that was taught otherwise; give another --out")
    return card


class Teacher:
    """A teaching as it goes: which episode is next, what was learnt, and the actor that has answered best so far.

    Asked without noise whenever the rates have been through ASK_EVERY times, and at the end, the actor whose mean
    reward over the rates is the highest is kept; the source keeps the last one.
    """

    ASK_EVERY = 5

    def __init__(self, network: Network, rewards: Rewards, lesson: Lesson) -> None:
        self.network, self.rewards, self.lesson = network, rewards, lesson
        ground = rewards.ground
        self.budgets = {rate: self._budget(rate) for rate in lesson.rates}
        self.uniform = {r: uniform_widths(ground.coupling, budget, ground.names) for r, budget in self.budgets.items()}
        with seeded(_seed(lesson.seed, 0)):
            self.learner = Learner(lesson.recipe, steps=len(ground.groups), least_share=1 - lesson.group_cap)
        self.done = 0  # episodes
        self.best: Actor = self.learner.actor()
        self.best_reward = -1.0

    def _budget(self, rate: float) -> Budget:
        lesson, ground = self.lesson, self.rewards.ground
        budget = Budget(flops=int(rate * ground.flops), group_cap=lesson.group_cap, round_to=lesson.round_to)
        try:
            Walk(ground, budget)
        except BudgetUnreachable as error:
            raise InvalidInput(f"rate {rate:g}: {error}") from error
        return budget

    def episodes(self) -> Iterator[Episode]:
        """Those that are left, one after the other; learns from each."""
        while self.done < self.lesson.episodes:
            episode = self._episode()
            self.done += 1
            every = self.ASK_EVERY * len(self.lesson.rates)
            if self.done > self.lesson.warm_up and (self.done % every == 0 or self.done == self.lesson.episodes):
                self._compare()
            yield episode

    def _episode(self) -> Episode:
        lesson, number = self.lesson, self.done
        rate = lesson.rates[number % len(lesson.rates)]
        walk = Walk(self.rewards.ground, self.budgets[rate], spend_budget=lesson.spend_budget)
        rng = np.random.default_rng([lesson.seed, number])
        learning = number >= lesson.warm_up
        noise = lesson.recipe.noise * lesson.recipe.noise_decay ** (number - lesson.warm_up)
        steps: list[Step] = []
        while walk.group is not None:
            state = walk.state()
            action = self.learner.action(state, noise, rng) if learning else float(rng.uniform(-1, 1))
            steps.append(Step(state, action))
            walk.step(self.learner.share(action))
        reward = self.rewards.of(walk.widths)
        self.learner.remember(steps, self._scaled(rate, reward))
        if learning:
            with seeded(_seed(lesson.seed, number + 1)):
                self.learner.learn_(len(steps))
        return Episode(number=number + 1, rate=rate, flops_kept=self.rewards.flops_kept(walk.widths), reward=reward)

    def _scaled(self, rate: float, reward: float) -> float:
        """The conditional reward: the source divides by 11, 50 and 70 per cent for 0.3, 0.5 and 0.7.

        There it never comes into effect, as the released code is written; here uniform widths give the figures.
        """
        if self.lesson.reward == "accuracy":
            return reward
        return reward / max(self.rewards.of(self.uniform[rate]), 1e-6)

    def _compare(self) -> None:
        """Keep the actor as it is, if nothing that was kept before answers better."""
        actor = self.learner.actor()
        answers = [self.rewards.of(self._asked(actor, rate)) for rate in self.lesson.rates]
        found = float(np.mean([self._scaled(*pair) for pair in zip(self.lesson.rates, answers, strict=True)]))
        if found >= self.best_reward:
            self.best, self.best_reward = actor, found

    def _asked(self, actor: Actor, rate: float) -> dict[str, int]:
        walk = Walk(self.rewards.ground, self.budgets[rate], spend_budget=self.lesson.spend_budget)
        return walked(walk, actor.share)

    def answers(self) -> Iterator[Answer]:
        """What the best actor answers at each rate, beside uniform widths."""
        for rate in self.lesson.rates:
            widths, uniform = self._asked(self.best, rate), self.uniform[rate]
            uniform = {name: width for name, width in uniform.items() if name in widths}
            yield Answer(
                rate=rate,
                flops_kept=self.rewards.flops_kept(widths),
                reward=self.rewards.of(widths),
                uniform_flops_kept=self.rewards.flops_kept(uniform),
                uniform_reward=self.rewards.of(uniform),
                widths=widths,
            )

    def state(self) -> dict[str, Any]:
        """All that is needed to go on: tensors, plain numbers and texts."""
        return {
            "done": self.done,
            "learner": self.learner.state(),
            "best": self.best.state_dict(),
            "best_reward": self.best_reward,
            "rewards": [[list(widths), reward] for widths, reward in self.rewards.known.items()],
        }

    def load_(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.done, self.best_reward = state["done"], state["best_reward"]
        self.learner.load_(state["learner"])
        self.best.load_state_dict(state["best"])
        self.rewards.known.update((tuple(widths), reward) for widths, reward in state["rewards"])


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
