"""Studies of several methods: whose switches are whose, and trials that are the same are one trial."""

import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_trial
import pytest
from test_proposals import end, opened, run

from orchestrator.collector import Study
from orchestrator.collector.recipe import other_settings, space_template
from orchestrator.methods import METHODS
from orchestrator.record import InvalidInput, TrialRecord, canonical_json, now, setting_of
from orchestrator.search.chosen import paths_of
from orchestrator.search.prior import positions_of, prior_of
from orchestrator.search.runner import _representatives
from orchestrator.search.space import SearchSpace
from orchestrator.search.space_file import as_toml
from orchestrator.search.space_methods import notes_on
from orchestrator.store import StageStore
from orchestrator.trial.path import Setting, steps

Write = Callable[..., Path]
THREE = 'method = { choices = ["oicsr", "filter_norm", "separated_group_lasso"] }'
FILE = Path(__file__).resolve().parents[2] / "search_spaces" / "methods_cifarnet.toml"
EVERY = 5 * 7 * 3  # settings in the small space of conftest.py


def space_of(space_file: Write, *, trial: str = "", search: str = THREE, after: str = "", **more: str) -> SearchSpace:
    """The small space with lines at the end of [trial.recovery], of [search] and before [budget]."""
    replaced = {
        "[search]": f"{trial}\n[search]\n{search}",
        "[budget]": f"{after}\n[budget]",
        **more,
    }
    return SearchSpace.read(space_file(**replaced))


@pytest.fixture
def space(space_file: Write) -> SearchSpace:
    return space_of(
        space_file,
        trial='[trial.method_options.filter_norm]\nscale = "group_mean"',
        after="[search.method_options.oicsr]\nnorm_parameters = { choices = [true, false] }",
    )


def values_of(space: SearchSpace, rank: int) -> dict[str, Any]:
    return {name: space.dimensions[name].value(at) for name, at in space.nth(rank).items()}


# --- what a file may say ---


def parsed(*methods: str, **trial: Any) -> SearchSpace:
    """A space of these methods in which nothing says what regularization_weight is."""
    schedules = {name: {"epochs": 1, "learning_rate": 0.1} for name in ("dense", "sparse", "recovery")}
    fixed = {"model": "fake", "dataset": "digits", "iterations": 1, **schedules, **trial}
    search = {"pruning_ratio": {"choices": [0.3, 0.5]}, "method": {"choices": list(methods)}}
    return SearchSpace.parse("free", {"trial": fixed, "search": search})


def test_a_weight_is_asked_for_only_where_some_method_has_a_penalty() -> None:
    space = parsed("taylor", "filter_norm")
    assert {spec.regularization_weight for spec in space.corners()} == {0.0}
    assert space.definition() == parsed("taylor", "filter_norm", regularization_weight=0.0).definition()
    with pytest.raises(InvalidInput, match=r"^free\.toml: trial\.regularization_weight is missing; give it a value in"):
        parsed("taylor", "oicsr")


BAD = {
    'trial.method_options.oicrs is unknown; did you mean "oicsr"?': "[trial.method_options.oicrs]\nscale = 1",
    "trial.method_options.filter_norm.scael is unknown; did you mean": "[trial.method_options.filter_norm]\nscael = 1",
    "trial.method_options.scale: oicsr has no such option; give it to those that have it, in "
    "[trial.method_options.filter_norm]": '[trial.method_options]\nscale = "none"',
    "trial.method_options.zzz: oicsr has no such option": "[trial.method_options]\nzzz = 1",
    "search.method_options.oicsr.scale is unknown; allowed: ": "[search.method_options.oicsr]\n"
    "scale = { choices = [1, 2] }",
    "search.method_options.scale: oicsr has no such option; give it to those that have it, in "
    "[search.method_options.filter_norm]": '[search.method_options]\nscale = { choices = ["none", "group_mean"] }',
    "search.method_options.residual_streams varies for all methods, and method_options.oicsr.residual_streams is of "
    "one; keep one of them": "[search.method_options]\nresidual_streams = { choices = [true, false] }\n"
    "[trial.method_options.oicsr]\nresidual_streams = true",
    "method_options.oicsr.norm_parameters is in both [trial] and [search]": "[search.method_options.oicsr]\n"
    "norm_parameters = { choices = [true, false] }\n[trial.method_options.oicsr]\nnorm_parameters = true",
}


@pytest.mark.parametrize("message", BAD)
def test_a_switch_that_is_nobodys_gets_one_line(space_file: Write, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        space_of(space_file, after=BAD[message])
    assert str(caught.value).startswith(f"small.toml: {message}")
    assert "\n" not in str(caught.value)


def test_what_varies_for_a_method_that_no_trial_has_is_refused(space_file: Write) -> None:
    table = '[search.method_options.filter_norm]\nscale = { choices = ["none", "group_mean"] }'
    with pytest.raises(InvalidInput, match=r"filter_norm\.scale varies, but no trial has .*; the study's: oicsr$"):
        space_of(space_file, search="", after=table)


def test_a_table_of_a_method_that_no_trial_has_changes_nothing(space_file: Write) -> None:
    plain = space_of(space_file, search="").definition()
    table = '[trial.method_options.filter_norm]\nscale = "group_mean"'
    assert space_of(space_file, search="", trial=table).definition() == plain


def test_a_trial_has_the_switches_of_its_own_method(space: SearchSpace) -> None:
    values = values_of(space, 0) | {"method_options.oicsr.norm_parameters": True}
    options = [space.spec({**values, "method": method}).method_options for method in space.methods]
    assert options == [{"norm_parameters": True}, {"scale": "group_mean"}, {}]


def test_a_methods_own_table_goes_before_what_is_said_for_all(space_file: Write) -> None:
    tables = "[trial.method_options]\nresidual_streams = true\n[trial.method_options.oicsr]\nresidual_streams = false"
    space = space_of(space_file, trial=tables)
    told = {method: space.spec(values_of(space, 0) | {"method": method}).method_options for method in space.methods}
    assert told["oicsr"] == {"residual_streams": False}
    assert told["filter_norm"] == {"residual_streams": True}


def test_the_file_is_written_back_with_its_tables(space: SearchSpace) -> None:
    assert SearchSpace.parse("small", tomllib.loads(as_toml(space, "again"))) == space


def test_the_definition_holds_all_tables_and_what_varies(space: SearchSpace) -> None:
    definition = space.definition()
    assert definition["trial"]["method_options"] == {"filter_norm": {"scale": "group_mean"}}
    assert "method_options.oicsr.norm_parameters" in definition["search"]


def test_a_fixed_weight_stays_in_the_definition_whatever_method_comes_first(space_file: Write) -> None:
    weight = "regularization_weight = { low = 1e-3, high = 1e-1, log = true, grid = 5 }"
    methods = 'method = { choices = ["filter_norm", "oicsr"] }'
    space = space_of(space_file, search=methods, **{weight: "", "[trial]": "[trial]\nregularization_weight = 0.3"})
    assert space.definition()["trial"]["regularization_weight"] == 0.3
    assert {spec.method: spec.regularization_weight for spec in space.corners()} == {"filter_norm": 0, "oicsr": 0.3}


def test_an_old_file_with_a_single_method_keeps_its_weight_and_its_keys(space_file: Write) -> None:
    weight = "regularization_weight = { low = 1e-3, high = 1e-1, log = true, grid = 5 }"
    fixed = {weight: "", "[trial]": '[trial]\nmethod = "filter_norm"\nregularization_weight = 0.3'}
    space = space_of(space_file, search="", **fixed)
    assert space.spec(values_of(space, 0)).regularization_weight == 0.3
    assert space.definition()["trial"]["regularization_weight"] == 0.3


# --- trials that are the same ---


def test_the_size_counts_different_trials(space: SearchSpace, space_file: Write) -> None:
    assert space.size == 2 * EVERY + EVERY // 5 + EVERY  # oicsr with its option, filter_norm, separated_group_lasso
    assert space.size is not None
    specs = [canonical_json(space.spec(values_of(space, rank))) for rank in range(space.size)]
    assert len(set(specs)) == space.size
    free = space_of(space_file, search="", **{"[trial]": '[trial]\nmethod = "filter_norm"'})
    assert free.size == EVERY // 5


def test_a_method_without_a_penalty_is_the_same_trial_at_every_weight(space: SearchSpace) -> None:
    values = values_of(space, 0) | {"method": "filter_norm"}
    specs = [space.spec({**values, "regularization_weight": weight}) for weight in (0.001, 0.1)]
    assert specs[0] == specs[1]
    assert specs[0].regularization_weight == 0
    lasso = [space.spec({**values, "method": "oicsr", "regularization_weight": weight}) for weight in (0.001, 0.1)]
    assert [spec.regularization_weight for spec in lasso] == [0.001, 0.1]


def test_the_stages_are_those_that_the_weight_as_drawn_would_have_had() -> None:
    space = SearchSpace.read(FILE)
    spec = space.spec({"method": "filter_norm", "regularization_weight": 0.1, "pruning_ratio": 0.3, "iterations": 4})
    keys = [
        [step.key for step in steps(Setting.of(spec.model_copy(update={"regularization_weight": weight})))]
        for weight in (0.0, 0.1)
    ]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("guide", ["gain", "prefixes"])
def test_no_trial_of_a_method_without_a_penalty_is_run_twice(space_file: Write, tmp_path: Path, guide: str) -> None:
    grids = {"step = 0.05": "step = 0.3", "grid = 5": "grid = 2", "low = 2, high = 4": "low = 2, high = 3"}
    space = space_of(space_file, **grids, **{"startup = 4": f'startup = 8\nguide = "{guide}"'})
    under_way = opened(space, tmp_path / "journal.log", trials=40)
    specs = run(under_way, random.Random(0))
    assert under_way.exhausted
    assert len({canonical_json(spec) for spec in specs}) == len(specs)
    longest = [spec for spec in specs if spec.iterations == 3]
    assert sorted(spec.method for spec in longest if spec.method == "filter_norm") == ["filter_norm"] * 2
    assert len([spec for spec in longest if spec.method == "oicsr"]) == 2 * 2


def test_a_space_whose_weight_may_be_any_number_ends_where_no_method_has_a_use_for_it(
    space_file: Write, tmp_path: Path
) -> None:
    grids = {"step = 0.05": "step = 0.3", "log = true, grid = 5": "log = true"}
    space = space_of(space_file, search="", **grids, **{"[trial]": '[trial]\nmethod = "filter_norm"'})
    assert space.size == 2 * 3
    under_way = opened(space, tmp_path / "journal.log", trials=40)
    assert len(run(under_way)) <= 6
    assert under_way.exhausted


def test_many_known_proposals_in_a_row_are_left_behind_where_any_number_may_be_drawn(
    space_file: Write, tmp_path: Path
) -> None:
    grids = {"step = 0.05": "step = 0.3", "log = true, grid = 5": "log = true"}
    space = space_of(space_file, **grids)
    assert space.size is None
    specs = run(opened(space, tmp_path / "journal.log", trials=12))
    assert len(specs) == 12
    assert len([spec for spec in specs if spec.method == "filter_norm"]) <= 2 * 3


def test_the_search_says_what_means_nothing() -> None:
    said = notes_on(("oicsr", "filter_norm"), ("regularization_weight",))
    assert said == [
        "regularization_weight means nothing to filter_norm: trials that differ in it alone are computed once"
    ]
    assert notes_on(("oicsr",), ("regularization_weight",)) == []
    assert notes_on(("filter_norm",), ("pruning_ratio",)) == []


def test_each_kind_of_trial_is_checked_once(space: SearchSpace) -> None:
    checked = [(spec.method, spec.method_options) for spec in _representatives(space)]
    assert checked == [
        ("oicsr", {"norm_parameters": True}),
        ("oicsr", {"norm_parameters": False}),
        ("filter_norm", {"scale": "group_mean"}),
        ("separated_group_lasso", {}),
    ]


# --- what is made of such a study later ---


@pytest.fixture
def study(space: SearchSpace, tmp_path: Path) -> Study:
    """A study of one trial of each method, without Ray."""
    store = StageStore(tmp_path / "several")
    store.prepare()
    store.write_json("study.json", {"name": "several", "definition": space.definition()})
    for index, method in enumerate(space.methods):
        spec = space.spec(values_of(space, 0) | {"method": method, "iterations": 3})
        outcome = fake_trial.run(spec, store)
        store.record_trial(TrialRecord(index=index, spec=spec, stages=outcome.stages, created=now()))
    return Study(store.root)


def test_a_rerun_takes_over_what_the_trials_of_each_method_found(
    study: Study, space: SearchSpace, tmp_path: Path
) -> None:
    prior = prior_of(study, space)
    assert {one.settings["method"] for one in prior.observations} == set(space.methods)
    assert all(positions_of(one.settings, space.dimensions) for one in prior.observations)
    begun = opened(space, tmp_path / "journal.log", trials=6, prior=prior)
    first = begun.next()
    assert first is not None
    end(begun, first)
    assert first.spec.method == prior.first[0]["method"]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_confirmation_walks_the_path_of_each_method(study: Study, recorded: bool) -> None:
    if not recorded:
        for path in study.store.root.glob("trials/*"):
            path.unlink()
    points = [study.point(key) for key in study.points().dropna(subset=["method"]).drop_duplicates("method")["key"]]
    if not recorded:
        points = [point for point in points if point.method != "oicsr"]  # whose option no record tells
    found = {point.method: spec for point, spec in paths_of(study, points, seeds=1, length=1.0, data_root=None)}
    assert found["filter_norm"].method_options == {"scale": "group_mean"}
    assert found["separated_group_lasso"].method_options == {}
    assert found["filter_norm"].regularization_weight == 0


def test_what_a_page_prints_to_make_a_point_again_is_its_own_space(
    study: Study, space: SearchSpace, tmp_path: Path
) -> None:
    template = space_template(space.definition())
    assert template is not None
    settings = other_settings(study.store.trials(), list(space.dimensions))
    for trial in study.store.trials():
        spec = trial.spec.model_dump(mode="json")
        known = {"low": 2, "high": 3, **spec, **settings[trial.stages[-1]]}
        pieces = [piece if isinstance(piece, str) else _json(piece, known, spec["method"]) for piece in template]
        (tmp_path / "point.toml").write_text("".join(pieces))
        again = SearchSpace.read(tmp_path / "point.toml").spec({"iterations": 3})
        assert again == trial.spec
        assert setting_of(spec, "method_options.oicsr.norm_parameters") in (
            (True,) if again.method == "oicsr" else (None,)
        )


def _json(piece: dict[str, Any], known: dict[str, Any], method: str) -> str:
    """What the page's script fills in."""
    value = known[piece["field"]]
    return canonical_json(piece["otherwise"] if value is None and piece.get("method", method) != method else value)


# --- the space that ships ---


def test_the_space_that_ships_has_every_method() -> None:
    space = SearchSpace.read(FILE)
    assert set(space.methods) == {name for name in METHODS if not _needs_a_file(name)}


def _needs_a_file(method: str) -> bool:
    """A taught agent has to be taught first."""
    return getattr(METHODS[method], "fingerprint", None) is not None
