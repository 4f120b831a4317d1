"""The search space that a page prints for a point leads to that very point."""

from pathlib import Path
from typing import Any

from orchestrator.collector.recipe import (
    allowances,
    export_command,
    other_settings,
    search_command,
    space_template,
    varied_names,
)
from orchestrator.record import Schedule, TrialRecord, TrialSpec
from orchestrator.search.space import SearchSpace
from orchestrator.trial.path import Setting, steps

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"


def filled(template: list[str | dict[str, Any]], values: dict[str, str]) -> str:
    """What the page's script does with a template."""
    return "".join(piece if isinstance(piece, str) else values[piece["field"]] for piece in template)


def test_the_space_of_a_point_has_one_trial_that_passes_it(tmp_path: Path) -> None:
    space = SearchSpace.read(SPACES / "digits_cifarnet.toml")
    spec = space.spec({"regularization_weight": 0.0177828, "pruning_ratio": 0.35, "iterations": 8})
    path = list(steps(Setting.of(spec)))
    template = space_template(space.definition())
    assert template is not None
    iteration = 3
    values = {"regularization_weight": "0.0177828", "pruning_ratio": "0.35", "low": "3", "high": "4"}
    file = tmp_path / "point.toml"
    file.write_text(filled(template, values))
    again = SearchSpace.read(file)
    assert (again.budget.trials, again.stopping.rule) == (1, "none")
    for found in again.corners():
        keys = [step.key for step in steps(Setting.of(found)) if step.kind == "cut"]
        assert keys[iteration - 1] == [step.key for step in path if step.kind == "cut"][iteration - 1]


def test_fields_of_tables_and_texts_are_written_as_toml_has_them(tmp_path: Path) -> None:
    schedule = Schedule(epochs=1, learning_rate=0.1).model_dump()
    definition = {
        "trial": {"model": 'my."odd" <name>', "dataset": "digits", "method_options": {"normalised": True}}
        | {name: {**schedule} for name in ("dense", "sparse", "recovery")},
        "search": {
            "regularization_weight": {"low": 0.01, "high": 1},
            "pruning_ratio": {"choices": [0.2, 0.3]},
            "sparse.epochs": {"values": [1, 2]},
        },
    }
    definition["trial"]["sparse"].pop("epochs")
    assert varied_names(definition) == ["regularization_weight", "pruning_ratio", "sparse.epochs"]
    template = space_template(definition)
    assert template is not None
    fields = {piece["field"]: piece.get("otherwise") for piece in template if isinstance(piece, dict)}
    assert fields["pruning_ratio"] == 0.2
    file = tmp_path / "point.toml"
    file.write_text(filled(template, {**{name: str(value) for name, value in fields.items()}, "low": "1", "high": "2"}))
    spec = next(SearchSpace.read(file).corners())
    assert (spec.model, spec.sparse.epochs, spec.method_options) == ('my."odd" <name>', 1, {"normalised": True})


def test_settings_that_a_point_does_not_hold_come_from_its_trial() -> None:
    schedule = Schedule(epochs=7, learning_rate=0.1)
    spec = TrialSpec(
        model="cifarnet",
        dataset="digits",
        regularization_weight=1e-3,
        pruning_ratio=0.3,
        iterations=1,
        dense=schedule,
        sparse=schedule,
        recovery=schedule,
    )
    trial = TrialRecord(index=0, spec=spec, stages=("a", "b"), created="2026-01-01")
    assert other_settings([trial], ["pruning_ratio", "sparse.epochs", "group_cap"]) == {
        key: {"sparse.epochs": 7, "group_cap": 0.5} for key in ("a", "b")
    }
    assert other_settings([trial], ["pruning_ratio"]) == {}


def test_a_study_that_does_not_say_what_it_is_has_no_space() -> None:
    assert space_template(None) is None
    assert space_template({}) is None
    assert varied_names(None) == []


def test_a_users_own_functions_have_to_be_allowed() -> None:
    assert allowances("resnet56", "torchvision:resnet50", "timm:x", "digits", "imagefolder:/data") == {}
    assert allowances("my.nets:tiny", "$(x):y") == {
        "my.nets:tiny": "--allow-code my.nets:tiny",
        "$(x):y": "--allow-code '$(x):y'",
    }


def test_commands_are_quoted() -> None:
    assert export_command("results/a b") == "orchestrator export 'results/a b'"
    assert search_command("$(x).toml", "results") == "orchestrator search '$(x).toml' --storage results"
