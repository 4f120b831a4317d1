"""The README's commands and Python are run, literally, on a small study of the name that it uses."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from orchestrator import cli, trial
from orchestrator.record import Schedule, TrialSpec
from orchestrator.store import StageStore

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Every `orchestrator ...` line of the README but `search`, which other tests run."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    typed = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("orchestrator ")]
    return [words for words in typed if words[0] != "search"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/digits_cifarnet: one short trial that reaches the README's limits."""
    folder = tmp_path_factory.mktemp("home")
    schedule = Schedule(epochs=6, learning_rate=0.1, batch_size=64)
    spec = TrialSpec(
        model="cifarnet",
        dataset="digits",
        regularization_weight=0.01,
        pruning_ratio=0.6,
        iterations=3,
        dense=schedule,
        sparse=schedule,
        recovery=schedule,
    )
    outcome = trial.run(spec, StageStore(folder / "results" / "digits_cifarnet"))
    assert outcome.failure is None
    return folder


def test_the_readme_has_commands_to_run() -> None:
    assert {words[0] for words in commands()} == {"status", "front", "best", "plot", "inspect"}


def test_what_the_readme_says_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    for words in commands():
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0, (words, result.output)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)
    pruned = names["pruned"]
    assert isinstance(pruned, torch.nn.Module)
    assert pruned(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert (home / "front.svg").is_file()
