"""The README's commands and Python are run, literally, on a small study of the name that it uses."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from orchestrator import cli, trial
from orchestrator.record import Schedule, TrialSpec
from orchestrator.store import StageStore

ELSEWHERE = {"search", "rerun", "confirm", "watch"}  # other tests run these
README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Every `orchestrator ...` line of the README."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("orchestrator ")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/digits_cifarnet: one short trial that reaches the README's limits. And a copy of it."""
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
    store = StageStore(folder / "results" / "digits_cifarnet")
    store.write_json("study.json", {"name": "digits_cifarnet"})
    outcome = trial.run(spec, store)
    assert outcome.failure is None
    shutil.copytree(store.root, folder / "results" / "digits_elsewhere")
    return folder


def test_the_readme_shows_every_command() -> None:
    assert {words[0] for words in commands()} == {command.__name__ for command in cli.COMMANDS}


def test_the_tree_of_the_readme_is_that_of_the_package() -> None:
    package = Path(cli.__file__).parent
    tree = re.search(r"```\n(orchestrator/\n.*?)```", README, flags=re.DOTALL)
    assert tree is not None
    shown = re.findall(r"^  (\w+(?:/|\.py)) ", tree[1], flags=re.MULTILINE)
    there = [path for path in package.iterdir() if not path.name.startswith("__") and path.suffix in ("", ".py")]
    assert sorted(shown) == sorted(f"{path.name}/" if path.is_dir() else path.name for path in there)


def test_what_the_readme_says_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    for words in commands():
        if words[0] in ELSEWHERE or "--confirmed" in words:
            continue
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0, (words, result.output)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)
    pruned = names["pruned"]
    assert isinstance(pruned, torch.nn.Module)
    assert pruned(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert (home / "front.svg").is_file()
