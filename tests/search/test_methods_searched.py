"""A short real search whose method is varied: its frontier names methods, and nothing is computed twice."""

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator import Study, cli
from orchestrator.search import launch

SCHEDULE = "epochs = {}\nlearning_rate = 0.1\nbatch_size = 64\n"
SPACE = f"""
[trial]
model = "cifarnet"
dataset = "digits"
pruning_ratio = 0.4
iterations = 1
[trial.method_options.filter_norm]
scale = "group_mean"
[trial.dense]
{SCHEDULE.format(2)}
[trial.sparse]
{SCHEDULE.format(1)}
[trial.recovery]
{SCHEDULE.format(1)}
[search]
method = {{ choices = ["oicsr", "filter_norm", "separated_group_lasso"] }}
regularization_weight = {{ choices = [0.01, 0.1] }}
[budget]
trials = 12
[proposals]
parallel = 2
startup = 3
[stopping]
rule = "none"
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, str]:
    """The study, and what was printed."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "several.toml").write_text(SPACE)
    told = io.StringIO()
    summary = launch(folder / "several.toml", storage=folder, console=Console(file=told, width=200))
    assert (summary.trials, summary.exhausted, summary.failures) == (5, True, {})
    return Study(folder / "several"), told.getvalue()


def ask(study: Study, *command: str) -> str:
    done = CliRunner().invoke(cli.app, [command[0], study.name, "--storage", str(study.path.parent), *command[1:]])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_trial_without_a_penalty_is_computed_once(searched: tuple[Study, str]) -> None:
    study, said = searched
    assert "note: regularization_weight means nothing to filter_norm" in said
    stages, trials = study.stages(), study.store.trials()
    own = [trial for trial in trials if trial.spec.method == "filter_norm"]
    assert len(own) == 1
    assert own[0].spec.regularization_weight == 0
    assert own[0].spec.method_options == {"scale": "group_mean"}
    assert [trial.spec.method_options for trial in trials if trial.spec.method == "oicsr"] == [{}, {}]
    assert stages["kind"].value_counts().to_dict() == {"sparse": 5, "cut": 5, "dense": 1}
    assert study.status().duplicates == 0


def test_the_frontier_names_the_method_of_each_point(searched: tuple[Study, str]) -> None:
    study, said = searched
    front = study.front()
    assert len(study.methods) == 3
    assert set(front["method"].dropna()) <= set(study.methods)
    assert front["method"].notna().any()
    table = ask(study, "front")
    for method in front["method"].dropna():
        assert method in table
        assert method in said[said.index("frontier:") :]
    assert "method" in ask(study, "front", "--format", "csv").splitlines()[0].split(",")
    assert "method" in ask(study, "status").split("Best accuracy within budgets")[1].splitlines()[1]


def test_its_methods_can_be_compared(searched: tuple[Study, str]) -> None:
    study, _ = searched
    found = json.loads(ask(study, "compare", "--format", "json", "--at", "0.6"))
    lines = {line["name"]: line for line in found["lines"]}
    assert {name: line["trials"] for name, line in lines.items()} == {
        "filter_norm": 1, "oicsr": 2, "separated_group_lasso": 2,
    }  # fmt: skip
    trials = study.store.trials()
    dense = study.points()["train_flops"].iloc[0]
    own = next(trial.stages for trial in trials if trial.spec.method == "filter_norm")
    costs = study.stages().set_index("key")["train_flops"]
    assert lines["filter_norm"]["train_flops"] == costs[list(own)].sum() > dense
    assert {one["field"] for one in found["differences"]} == {"trials", "train_flops"}
