"""Weights that were collected: their stages stay finished, and come back where they are needed, as they were."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from short_trials import Finished, make_spec

import orchestrator
from orchestrator import Study, trial
from orchestrator.collector import frontier
from orchestrator.collector.keeping import collect, collectable, spec_with
from orchestrator.network import Plan
from orchestrator.record import InvalidInput, TrialRecord, now
from orchestrator.search.proposals import Proposals, Result
from orchestrator.search.space import SearchSpace
from orchestrator.store import SOUND, StageStore
from orchestrator.training.datasets import load
from orchestrator.training.loop import evaluate
from orchestrator.trial import networks
from orchestrator.trial.networks import Collected

SPACE = """
[trial]
model = "cifarnet"
dataset = "digits"
regularization_weight = 0.01
[trial.dense]
epochs = 2
learning_rate = 0.1
batch_size = 128
[trial.sparse]
epochs = 1
learning_rate = 0.05
batch_size = 128
[trial.recovery]
epochs = 1
learning_rate = 0.02
batch_size = 128
[search]
pruning_ratio = { low = 0.2, high = 0.45, step = 0.05 }
iterations = { low = 1, high = 2 }
[budget]
trials = 2
[proposals]
parallel = 1
startup = 2
guide = "prefixes"
"""


@pytest.fixture
def store(finished: Finished, tmp_path: Path) -> Iterator[StageStore]:
    """A copy of the finished trial's study, for one test alone: dense, sparse, cut, sparse, cut."""
    yield StageStore(shutil.copytree(finished.store.root, tmp_path / "study"))
    SOUND.clear()


def weights_of(store: StageStore, key: str) -> bytes:
    folder = store.weights(key)
    assert folder is not None
    return (folder / "weights.safetensors").read_bytes()


def search(space: Path, root: Path, trials: int) -> None:
    """What `orchestrator search --trials` does, in this process: no Ray, a trial after the other."""
    read = SearchSpace.read(space)
    budget = read.budget.model_copy(update={"trials": trials})
    store = StageStore(root)
    store.write_json("study.json", {"name": read.name, "definition": read.definition(), "created": now()})
    proposals = Proposals(read, root / "journal.log", budget=budget)
    while (proposal := proposals.next()) is not None:
        outcome = trial.run(proposal.spec, store)
        assert outcome.failure is None, outcome.failure
        record = TrialRecord(index=proposal.index, spec=proposal.spec, stages=outcome.stages, created=now())
        store.record_trial(record)
        costs = {key: store.stage(key).cost.train_flops for key in outcome.stages}
        proposals.complete(proposal.index, Result(points=outcome.points, stages=costs))


def front(root: Path) -> list[tuple[Any, ...]]:
    return [(p.key, p.accuracy, p.flops, p.params) for p in frontier(list(StageStore(root).points()))]


@pytest.mark.parametrize("keep", ["resumable", "frontier"])
def test_a_search_extended_after_gc_ends_with_the_same_frontier(tmp_path: Path, keep: Any) -> None:
    space, plain, kept = tmp_path / "small.toml", tmp_path / "plain", tmp_path / "kept"
    space.write_text(SPACE)
    search(space, plain, 2)
    shutil.copytree(plain, kept)
    search(space, plain, 4)
    went = collect(Study(kept), keep)
    assert went.bytes or keep == "resumable"
    assert collect(Study(kept), keep).bytes == {}
    search(space, kept, 4)
    assert front(kept) == front(plain)
    assert StageStore(kept).keys() == StageStore(plain).keys()
    collect(Study(kept), keep)
    validation = load("digits")
    for key, accuracy, flops, _ in front(kept):
        assert weights_of(StageStore(kept), key) == weights_of(StageStore(plain), key)
        folder = StageStore(kept).weights(key)
        assert folder is not None
        model = orchestrator.load(folder)
        assert evaluate(model, validation, "validation").accuracy == accuracy
        assert flops > 0


def test_collected_stages_stay_finished(finished: Finished, store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.collect(dict.fromkeys(finished.outcome.computed, 1))
    SOUND.clear()
    monkeypatch.setattr(networks, "fit", lambda *given, **named: pytest.fail("nothing was to be trained"))
    outcome = trial.run(finished.spec, store)
    assert outcome.computed == ()
    assert outcome.points == finished.outcome.points
    assert not list(store.root.rglob("*.safetensors"))
    assert store.damaged() == []
    assert all(store.has(key) and store.folder(key) for key in outcome.stages)
    with pytest.raises(Collected, match=rf"the weights of stage {outcome.stages[-1][:12]} were collected"):
        trial.rebuild(finished.spec, store, outcome.stages[-1])


def test_a_trial_goes_on_from_a_collected_stage(finished: Finished, store: StageStore, tmp_path: Path) -> None:
    """All before it is computed again, too; nothing of it is recorded anew."""
    spec = make_spec(iterations=3)
    plain = trial.run(spec, StageStore(shutil.copytree(store.root, tmp_path / "plain")))
    records = {path: path.read_bytes() for path in store.root.rglob("*.json")}
    store.collect(dict.fromkeys(finished.outcome.computed, 1))
    outcome = trial.run(spec, store)
    assert outcome.failure is None
    assert len(outcome.computed) == 2
    same = {"cost", "path_cost", "created"}
    assert [p.model_dump(exclude=same) for p in outcome.points] == [p.model_dump(exclude=same) for p in plain.points]
    assert {path: path.read_bytes() for path in records} == records
    spent = sum(store.stage(key).cost.train_flops for key in outcome.stages)
    assert outcome.points[-1].path_cost.train_flops == spent
    assert sorted(store.names("restored")) == sorted(finished.outcome.computed)


def test_what_is_computed_again_has_the_same_bytes(finished: Finished, store: StageStore) -> None:
    key = finished.outcome.points[1].key
    expected = weights_of(store, key)
    store.collect({key: len(expected)})
    folder = trial.restore(finished.spec, store, key)
    assert folder == store.root / "restored" / key
    assert weights_of(store, key) == expected
    assert (folder / "plan.json").read_bytes() == (store.root / "stages" / key / "plan.json").read_bytes()
    assert trial.restore(finished.spec, store, key) == folder  # once
    assert orchestrator.load(folder) is not None
    with pytest.raises(InvalidInput, match=r"stage 000000000000 is no finished one of this trial"):
        trial.restore(finished.spec, store, "0" * 64)


def test_the_recorded_plan_holds_where_another_machine_would_choose_otherwise(
    finished: Finished, store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says which channels stayed; flops and params of what is computed again are those of the point."""
    first, second = finished.outcome.points[1:]
    store.collect(dict.fromkeys(finished.outcome.computed[1:], 1))
    monkeypatch.setattr(Plan, "from_mask", classmethod(lambda *given: pytest.fail("a plan was made")))
    trial.restore(finished.spec, store, second.key)
    for point in (first, second):
        folder = store.root / "restored" / point.key
        again = type(point).model_validate_json((folder / "point.json").read_bytes())
        assert (again.flops, again.params, again.accuracy) == (point.flops, point.params, point.accuracy)


def test_weights_that_go_between_a_look_and_the_loading(
    finished: Finished, store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, real = finished.outcome.stages[-1], networks.load_weights_

    def gone_at_first(model: torch.nn.Module, path: Path) -> None:
        monkeypatch.setattr(networks, "load_weights_", real)
        assert path.parent.name == key
        store.collect({key: 1})
        real(model, path)

    monkeypatch.setattr(networks, "load_weights_", gone_at_first)
    outcome = trial.run(make_spec(iterations=3), store)
    assert outcome.failure is None
    assert store.names("restored") == [key]


def test_weights_that_go_every_time_end_the_trial(
    finished: Finished, store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, key: str) -> Any:
        raise Collected(self.store, key)

    monkeypatch.setattr(networks.Networks, "of", refuse)
    outcome = trial.run(make_spec(iterations=3), store)
    assert outcome.failure is not None
    assert re.search("the weights of stage .* were collected", outcome.failure.message)


def test_a_dense_stage_comes_back_untrained_first(finished: Finished, store: StageStore) -> None:
    """gc keeps dense stages; what else loses their weights must not train a trained network on."""
    key = finished.outcome.points[0].key
    expected = weights_of(store, key)
    store.collect({key: 1})
    assert trial.restore(finished.spec, store, key).parent.name == "restored"
    assert weights_of(store, key) == expected


def test_the_settings_that_compute_a_stage_again(finished: Finished, store: StageStore) -> None:
    key = finished.outcome.stages[-1]
    with pytest.raises(InvalidInput, match=rf"no trial is known that passed stage {key[:12]}"):
        spec_with(Study(store.root), key)
    store.record_trial(TrialRecord(index=0, spec=finished.spec, stages=finished.outcome.stages, created=now()))
    assert spec_with(Study(store.root), key) == finished.spec


KILLED = """
import os, signal, sys
from orchestrator import Study
from orchestrator.collector.keeping import collect
from orchestrator.files import LocalFiles
real = LocalFiles.remove
def remove(self, names):
    for count, name in enumerate(names):
        if count == int(sys.argv[2]) and name.endswith("safetensors"):
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, [name])
LocalFiles.remove = remove
collect(Study(sys.argv[1]), "frontier")
"""


@pytest.mark.parametrize("after", [0, 1])
def test_a_kill_in_the_middle_of_gc_loses_nothing(
    finished: Finished, store: StageStore, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_json("study.json", {"name": "study"})
    would_go = collectable(Study(store.root), "frontier").bytes
    assert len(would_go) >= 2
    environment = {**os.environ, "PYTHONPATH": str(Path(orchestrator.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.root), str(after)], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    left = {key for key in would_go if (store.root / "stages" / key / "weights.safetensors").exists()}
    assert len(left) == len(would_go) - after
    SOUND.clear()
    monkeypatch.setattr(networks, "fit", lambda *given, **named: pytest.fail("nothing was to be trained"))
    assert trial.run(finished.spec, store).points == finished.outcome.points
    assert store.damaged() == []
    assert collect(Study(store.root), "frontier").bytes.keys() == left
    assert collect(Study(store.root), "frontier").bytes == {}


def test_plans_are_taken_apart_as_they_were_put_together() -> None:
    before, later = Plan(kept={"a": (0, 2, 5), "b": (1, 3)}), Plan(kept={"a": (0, 2), "c": (4, 6)})
    assert before.then(later).since(before) == later
    with pytest.raises(InvalidInput, match="a keeps channels that the plan before it does not"):
        Plan(kept={"a": (1, 2), "b": (1,)}).since(before)
    with pytest.raises(InvalidInput, match="b is whole; before it was not"):
        Plan(kept={"a": (0,)}).since(before)
