"""What an old study gives a new one: the order of the first settings, how old observations fade, kills, refusals."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fake_trial
import pytest
from fake_trial import points_of
from test_proposals import end, opened, run, told

from orchestrator.collector import Study, hypervolume
from orchestrator.record import InvalidInput, Option, Point, TrialRecord, TrialSpec, now
from orchestrator.search import prior
from orchestrator.search.guides import OldTrial, still_counting
from orchestrator.search.prior import Observation, Prefix, Prior, prior_of
from orchestrator.search.space import SearchSpace
from orchestrator.store import StageStore

Settings = dict[str, Option]


def settings_of(weight: float, ratio: float, iterations: int = 4) -> Settings:
    return {"regularization_weight": weight, "pruning_ratio": ratio, "iterations": iterations}


def study_of(folder: Path, specs: Sequence[TrialSpec]) -> Study:
    """A study whose trials were these."""
    store = StageStore(folder / "old")
    store.prepare()
    store.write_json("study.json", {"name": "old"})
    for index, spec in enumerate(specs):
        outcome = fake_trial.run(spec, store)
        store.record_trial(TrialRecord(index=index, spec=spec, stages=outcome.stages, created=now()))
    return Study(store.root)


def worth(specs: Sequence[TrialSpec]) -> float:
    points: list[Point] = [point for spec in specs for point in points_of(spec)]
    return hypervolume([point.accuracy for point in points], [point.flops_kept for point in points])


@pytest.fixture(params=["gain", "prefixes"])
def space(request: pytest.FixtureRequest, space_file: Callable[..., Path]) -> SearchSpace:
    return SearchSpace.read(space_file(**{"startup = 4": f'startup = 4\nguide = "{request.param}"'}))


@pytest.fixture
def old_specs(space: SearchSpace) -> list[TrialSpec]:
    """Twelve different ones, the worst of them first."""
    weights, ratios = (space.dimensions[name].values for name in ("regularization_weight", "pruning_ratio"))  # type: ignore[union-attr]
    specs = [space.spec(settings_of(weight, ratio)) for weight in weights for ratio in ratios[::3]]
    return sorted(specs, key=lambda spec: worth([spec]))[-12:]


@pytest.fixture
def taken(space: SearchSpace, old_specs: list[TrialSpec], tmp_path: Path) -> Prior:
    return prior_of(study_of(tmp_path, old_specs), space)


def test_the_first_settings_are_those_that_add_most_to_the_hypervolume(
    space: SearchSpace, old_specs: list[TrialSpec], taken: Prior
) -> None:
    picked: list[TrialSpec] = []
    for settings in taken.first:
        best = max(old_specs, key=lambda spec: worth([*picked, spec]))
        assert worth([*picked, best]) > worth(picked)
        assert space.spec(settings) == best
        picked.append(best)
    assert 1 <= len(picked) <= space.proposals.startup


def test_what_adds_nothing_comes_in_no_first_setting(space: SearchSpace, tmp_path: Path) -> None:
    good, same, worse = (space.spec(settings_of(*one)) for one in ((0.01, 0.3), (0.01, 0.3, 3), (0.1, 0.3)))
    taken = prior_of(study_of(tmp_path, [worse, same, good, good]), space)
    assert [space.spec(settings) for settings in taken.first] == [good]
    assert [space.spec(one.settings) for one in taken.observations] == [good, worse]  # of the same, the longest alone


def test_observations_keep_accuracies_as_shares_of_the_best(
    space: SearchSpace, old_specs: list[TrialSpec], taken: Prior
) -> None:
    best = max(point.accuracy for spec in old_specs for point in points_of(spec)[1:])
    one = taken.observations[-1]
    points = points_of(space.spec(one.settings))[1:]
    assert one.prefixes == tuple(Prefix(p.iteration, p.accuracy / best, p.flops_kept) for p in points)


def test_a_large_study_gives_some_of_each_rank(
    space: SearchSpace, old_specs: list[TrialSpec], taken: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prior, "OBSERVATIONS", 3)
    fewer = prior_of(Study(tmp_path / "old"), space).observations
    count = len(taken.observations)
    assert fewer == (taken.observations[0], taken.observations[round((count - 1) / 2)], taken.observations[-1])


def test_how_soon_the_old_study_was_there_is_kept(old_specs: list[TrialSpec], taken: Prior) -> None:
    share = [worth(old_specs[:count]) / worth(old_specs) for count in range(1, len(old_specs) + 1)]
    assert taken.trials == len(old_specs)
    assert taken.trials_to_reach == 1 + next(i for i, reached in enumerate(share) if reached >= prior.REACHED)


def test_a_prior_round_trips_and_is_known_by_its_digest(taken: Prior) -> None:
    again = Prior.model_validate_json(taken.model_dump_json())
    assert again == taken
    assert again.digest == taken.digest
    assert taken.model_copy(update={"first": ()}).digest != taken.digest


def test_the_first_proposals_are_the_first_settings(space: SearchSpace, taken: Prior, tmp_path: Path) -> None:
    ran = run(opened(space, tmp_path / "journal.log", 8, prior=taken))
    assert ran[: len(taken.first)] == [space.spec(settings) for settings in taken.first]
    assert len({spec.model_dump_json() for spec in ran}) == 8


def test_a_search_with_a_prior_that_is_killed_after_any_write_ends_the_same(
    space: SearchSpace, taken: Prior, tmp_path: Path
) -> None:
    path = tmp_path / "whole.log"
    run(opened(space, path, 9, prior=taken))
    whole, undisturbed = path.read_bytes().splitlines(keepends=True), told(path)
    for count in range(0, len(whole), max(1, len(whole) // 8)):
        path = tmp_path / f"{count}.log"
        path.write_bytes(b"".join(whole[:count]) + whole[count][: len(whole[count]) // 2])
        run(opened(space, path, 9, prior=taken), random.Random(count))
        assert told(path) == undisturbed


def test_old_observations_draw_the_guide_to_what_was_good(space: SearchSpace, tmp_path: Path) -> None:
    """One weight was right and two were not: the guide, which knows nothing of its own yet, asks for that one."""
    weights = space.dimensions["regularization_weight"].values  # type: ignore[union-attr]
    good, bad = weights[1], (weights[0], weights[4])
    rows = [(good, 0.05)] * 3 + [(weight, 0.5) for weight in bad for _ in range(15)]
    observed = [
        Observation(
            settings=settings_of(weight, 0.3),
            prefixes=tuple(Prefix(k, 1.0 - lost * k / 4, 0.7**k) for k in range(1, 5)),
        )
        for weight, lost in rows
    ]
    given = {"first": (), "observations": tuple(observed), "trials": 33, "trials_to_reach": 1}
    taken = Prior(study="old", model="fake", dataset="digits", **given)
    first = [
        proposal.spec.regularization_weight
        for seed in range(8)
        if (proposal := opened(_seeded(space, seed), tmp_path / f"{seed}.log", 4, prior=taken).next())
    ]
    assert first.count(good) > 4
    assert opened(_seeded(space, 0), tmp_path / "0.log", 4, prior=taken).parallel == 3


def _seeded(space: SearchSpace, seed: int) -> SearchSpace:
    return space.model_copy(update={"proposals": space.proposals.model_copy(update={"seed": seed})})


@pytest.mark.parametrize(("told_by_now", "left"), [(0, "abcdef"), (2, "acdf"), (4, "be"), (5, "d"), (6, ""), (9, "")])
def test_old_observations_fade_evenly_as_own_ones_come(told_by_now: int, left: str) -> None:
    old = [OldTrial({"letter": letter}, ()) for letter in "abcdef"]
    assert "".join(one.positions["letter"] for one in still_counting(old, told_by_now)) == left


def test_once_faded_the_guide_is_as_without_a_prior(space: SearchSpace, taken: Prior, tmp_path: Path) -> None:
    """Of a prior without first settings and with a single observation, only the first proposals can be others."""
    single = taken.model_copy(update={"first": (), "observations": taken.observations[:1]})
    none = taken.model_copy(update={"first": (), "observations": ()})
    with_one, without = (opened(space, tmp_path / f"{i}.log", 9, prior=p) for i, p in enumerate((single, none)))
    for proposals in (with_one, without):
        for _ in range(4):
            proposal = proposals.next()
            assert proposal
            end(proposals, proposal, failing=False)
    assert without._guide._told == with_one._guide._told == 4  # type: ignore[attr-defined]
    assert still_counting(with_one._guide._old, 4) == []  # type: ignore[attr-defined]


def test_a_study_without_a_pruned_point_has_nothing_to_give(space: SearchSpace, tmp_path: Path) -> None:
    store = StageStore(tmp_path / "old")
    store.prepare()
    store.write_json("study.json", {"name": "old"})
    with pytest.raises(InvalidInput, match="old: no trial has ended with a pruned point"):
        prior_of(Study(store.root), space)
    spec = space.spec(settings_of(0.01, 0.3))
    outcome = fake_trial.run(spec, store)
    with pytest.raises(InvalidInput, match="old: no trial has ended with a pruned point; there is nothing to take ove"):
        prior_of(Study(store.root), space)
    store.record_trial(TrialRecord(index=0, spec=spec, stages=outcome.stages[:1], failure="error: x", created=now()))
    with pytest.raises(InvalidInput, match="old: no trial has ended with a pruned point"):
        prior_of(Study(store.root), space)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"regularization_weight": 0.01},
            r"^prior\.json: has settings of regularization_weight; the space varies iter",
        ),
        (settings_of(0.02, 0.3), r"^prior\.json: has regularization_weight 0\.02; the space does not hold it$"),
        (settings_of(0.01, 0.3, 9), r"^prior\.json: has iterations 9; the space does not hold it$"),
    ],
)
def test_settings_outside_the_space_are_refused(
    space: SearchSpace, taken: Prior, tmp_path: Path, settings: Any, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        opened(space, tmp_path / "journal.log", 4, prior=taken.model_copy(update={"first": (settings,)}))
