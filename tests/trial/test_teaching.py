"""Teaching an agent: it learns what was made to be learnt, the same each time, killed or not; and its mistakes."""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import trial
from orchestrator.methods.agent import AgentOptions
from orchestrator.methods.agent_file import load_agent, read_card
from orchestrator.network.artifact import Plan
from orchestrator.record import InvalidInput, Schedule, TrialSpec
from orchestrator.stage_files import PLAN_FILE
from orchestrator.store import StageStore
from orchestrator.training.datasets import load
from orchestrator.training.held_out import held_out
from orchestrator.trial.path import Setting, steps
from orchestrator.trial.teaching import Episode, Lesson, teach

pytest.importorskip("stable_baselines3", reason="stable-baselines3 (extra agent) is not installed")

NOTHING = Schedule(epochs=0, learning_rate=0.1)
TOY = TrialSpec(
    model="toy_choice:toy",
    dataset="toy_choice:pictures",
    regularization_weight=0.0,
    pruning_ratio=0.5,
    iterations=1,
    group_cap=0.9,
    dense=NOTHING,
    sparse=NOTHING,
    recovery=NOTHING,
)
PLAIN = AgentOptions(repair=False)
LESSON = Lesson(episodes=60, group_cap=0.9)
SHORT = Lesson(episodes=14, group_cap=0.9, rates=(0.4, 0.6), recipe={"batch_size": 8})
Teach = Callable[..., Any]


class Killed(Exception):
    pass


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "study")


@pytest.fixture
def run(store: StageStore, tmp_path: Path) -> Teach:
    """Teaches on the toy network; returns the card of agent.safetensors or another file."""

    def one(lesson: Lesson = SHORT, name: str = "agent.safetensors", **options: Any) -> Any:
        return teach(TOY, store, tmp_path / name, lesson, PLAIN, **options)

    return one


def test_it_learns_what_was_made_to_be_learnt(run: Teach) -> None:
    episodes: list[Episode] = []
    card = run(LESSON, tell=episodes.append)
    assert [(e.number, e.rate) for e in episodes[:4]] == [(1, 0.3), (2, 0.5), (3, 0.7), (4, 0.3)]
    assert len(episodes) == 60
    assert all(e.flops_kept <= e.rate for e in episodes)
    assert [answer.rate for answer in card.answers] == [0.3, 0.5, 0.7]
    for answer in card.answers:
        assert answer.rate - 0.02 < answer.flops_kept <= answer.rate
        assert answer.reward > answer.uniform_reward + 0.1, answer
    assert card.answers[0].reward > 0.9


def test_the_same_lesson_gives_the_same_agent_killed_or_not(run: Teach, tmp_path: Path) -> None:
    first = run(name="whole")
    assert not (tmp_path / "whole.teaching").exists()

    def kill(episode: Episode) -> None:
        if episode.number == 12:
            raise Killed

    notes: list[str] = []
    with pytest.raises(Killed):
        run(name="killed", tell=kill)
    assert not (tmp_path / "killed").exists()
    second = run(name="killed", note=notes.append)
    assert notes == ["going on after episode 10 of 14"]
    assert second == first
    whole, killed = (load_agent(tmp_path / name)[0].state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_what_was_taught_is_not_taught_again(run: Teach, store: StageStore, tmp_path: Path) -> None:
    notes: list[str] = []
    card = run()
    began = len(list(store.stages()))
    assert began == 1  # the dense stage, which the study's trials share
    assert run(tell=pytest.fail, note=notes.append) == card == read_card(tmp_path / "agent.safetensors")
    assert notes == [f"{tmp_path / 'agent.safetensors'}: this very agent is there; nothing is left to teach"]
    with pytest.raises(InvalidInput, match="is another agent, or one that was taught otherwise; give another --out"):
        run(LESSON)


def test_a_checkpoint_of_another_teaching_is_kept(run: Teach, tmp_path: Path) -> None:
    checkpoint = tmp_path / "agent.safetensors.teaching"
    torch.save({"identity": "{}", "state": {}}, checkpoint)
    with pytest.raises(InvalidInput, match=r"\.teaching: is the checkpoint of another teaching; remove it, or give"):
        run()
    checkpoint.write_bytes(b"torn")
    with pytest.raises(InvalidInput, match=r"\.teaching: is no checkpoint of a teaching that can be read; remove it"):
        run()
    assert checkpoint.read_bytes() == b"torn"


def test_a_trial_asks_the_agent_and_its_key_holds_the_file_not_its_name(
    run: Teach, store: StageStore, tmp_path: Path
) -> None:
    card = run()
    (tmp_path / "moved").mkdir()
    moved = (tmp_path / "agent.safetensors").rename(tmp_path / "moved" / "agent.safetensors")
    spec = TOY.model_copy(update={"method": "conditional_agent", "pruning_ratio": 0.4})
    options: dict[str, Any] = {"agent": str(moved), "repair": False}
    spec = spec.model_copy(update={"method_options": options})
    assert trial.check(spec) == ()
    (note,) = trial.check(spec.model_copy(update={"group_cap": 0.8}))
    assert note == f"conditional_agent: {moved} was taught with group_cap 0.9; here it is 0.8"
    cut = list(steps(Setting.of(spec)))[-1]
    assert len(cut.parameters["method"]["options"].pop("agent")) == 64
    assert cut.parameters["method"]["options"] == {
        "channels": "filter_norm",
        "places": 10,
        "repair": False,
        "residual_streams": False,
    }
    outcome = trial.run(spec, store)
    assert outcome.failure is None
    assert len(outcome.computed) == 2  # the dense stage is the agent's own
    point = outcome.points[-1]
    answer = card.answers[1]  # for 0.6
    assert (point.method, point.flops_kept) == ("conditional_agent", answer.flops_kept)
    plan = Plan.from_json((store.folder(point.key) / PLAN_FILE).read_text())
    assert {name: len(kept) for name, kept in plan.kept.items()}.items() <= answer.widths.items()
    moved.rename(tmp_path / "back.safetensors")
    back = spec.model_copy(update={"method_options": options | {"agent": str(tmp_path / "back.safetensors")}})
    assert list(steps(Setting.of(back)))[-1].key == point.key
    with pytest.raises(InvalidInput, match=r"there is no such file; `orchestrator teach SPACE\.toml"):
        trial.check(spec)


def test_it_is_asked_again_in_later_iterations(run: Teach, store: StageStore, tmp_path: Path) -> None:
    run()
    options = {"agent": str(tmp_path / "agent.safetensors"), "repair": False}
    changes = {"method": "conditional_agent", "method_options": options, "pruning_ratio": 0.3, "iterations": 3}
    points = trial.run(TOY.model_copy(update=changes), store).points
    flops = [point.flops for point in points]
    assert len(points) == 4
    assert all(after <= 0.7 * before for before, after in pairwise(flops))


def test_rewards_may_be_taken_relative_to_uniform_widths(run: Teach) -> None:
    card = run(Lesson(episodes=6, group_cap=0.9, rates=(0.4, 0.6), reward="beside_uniform", recipe={"batch_size": 4}))
    assert all(0 <= answer.reward <= 1 for answer in card.answers)  # the table has accuracies either way


@pytest.mark.parametrize("recipe", [{"algorithm": "td3"}, {"baseline": 1.0}, {"memory": 2}, {"noise": 1e-9}], ids=str)
def test_every_recipe_teaches(run: Teach, recipe: dict[str, Any]) -> None:
    lesson = Lesson(episodes=6, rates=(0.5,), group_cap=0.9, recipe={"batch_size": 4} | recipe)
    assert run(lesson).answers[0].flops_kept <= 0.5


def test_a_rate_that_cannot_be_met_is_named(run: Teach) -> None:
    with pytest.raises(InvalidInput, match=r"rate 0\.3: flops budget 345 cannot be met: with a cap of 0\.5 a group"):
        run(Lesson(episodes=3, group_cap=0.5))


def test_a_dense_network_that_diverges_is_named(store: StageStore, tmp_path: Path) -> None:
    spec = TOY.model_copy(update={"dense": Schedule(epochs=1, learning_rate=1e30)})
    with pytest.raises(InvalidInput, match="the dense network cannot be had: the loss became nan in epoch 1"):
        teach(spec, store, tmp_path / "agent", SHORT, PLAIN)


def test_rates_are_given_once() -> None:
    with pytest.raises(ValueError, match=r"rates are 0\.5, 0\.5; give at least one, each once"):
        Lesson(rates=(0.5, 0.5))
    with pytest.raises(ValueError, match="rates are none; give at least one"):
        Lesson(rates=())


def test_without_the_library_it_says_what_to_install(run: Teach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orchestrator.trial.reinforcement", None)
    with pytest.raises(InvalidInput, match=r"needs stable-baselines3: pip install 'pruning-orchestrator\[agent\]'"):
        run()


def test_pictures_that_are_kept_back_are_train_pictures_and_no_others() -> None:
    data = load("digits")
    part = held_out(data, seed=3)
    count = len(data.train)
    assert (len(part.validation), len(part.train)) == (round(0.2 * count), count - round(0.2 * count))
    assert part.test is part.validation
    both = torch.cat((part.train.images, part.validation.images)).flatten(1).double()  # type: ignore[union-attr]
    assert torch.equal(both.sum(0), data.train.images.flatten(1).double().sum(0))  # type: ignore[union-attr]
    assert (part.mean, part.std) == (data.mean, data.std)
    assert len(held_out(data, 7).validation) == 7
    for wrong in (0, count):
        with pytest.raises(
            InvalidInput, match=rf"held_out is {wrong}; it must be at least 1 and less than the {count}"
        ):
            held_out(data, wrong)
