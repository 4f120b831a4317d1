"""The README shows every command and the package's tree. What it types is run by tests/docs, as on every page."""

import re
from pathlib import Path

from orchestrator import cli

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_readme_shows_every_command() -> None:
    shown = "".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL))
    typed = set(re.findall(r"^orchestrator (\w+)", shown, flags=re.MULTILINE))
    assert typed == {command.__name__ for command in cli.COMMANDS}


def test_the_tree_of_the_readme_is_that_of_the_package() -> None:
    package = Path(cli.__file__).parent
    tree = re.search(r"```\n(orchestrator/\n.*?)```", README, flags=re.DOTALL)
    assert tree is not None
    shown = re.findall(r"^  (\w+(?:/|\.py)) ", tree[1], flags=re.MULTILINE)
    there = [path for path in package.iterdir() if not path.name.startswith("__") and path.suffix in ("", ".py")]
    assert sorted(shown) == sorted(f"{path.name}/" if path.is_dir() else path.name for path in there)
