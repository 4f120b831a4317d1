"""What no test can run, a cluster say, is at least what the program takes: commands, options, files, spaces."""

import importlib.util
import re
import shlex
import tomllib

import pytest
from doc_pages import PAGES, ROOT, RUN, Block, blocks_of
from typer.main import get_command

from orchestrator import cli
from orchestrator.record import Schedule, TrialSpec
from orchestrator.search.space import SECTIONS

COMMANDS = get_command(cli.app).commands  # type: ignore[attr-defined]
OUTSIDE = {"python3", "git", "cd", "pip", "ray", "kubectl", "sbatch", "scancel", "source", "export", "optuna-dashboard"}
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
NOT_RUN = [block for block in BLOCKS if block.language in RUN and block.not_run]
TABLES = {"dense": Schedule, "sparse": Schedule, "recovery": Schedule}


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.where)
def test_what_is_not_run_is_at_least_there(block: Block) -> None:
    assert block.language == "sh", "Python can be run"
    for line in block.lines():
        check(shlex.split(line.removesuffix("&"), comments=True))


def check(words: list[str]) -> None:
    """Raises where a command, an option or a file of the tree is none."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if not words:
        return
    if words[:2] == ["python", "-m"] and words[2] != "orchestrator":
        assert importlib.util.find_spec(words[2]), words
    elif words[0] == "make":
        assert re.search(rf"^{words[-1]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif "orchestrator" in words[:3]:
        name, *rest = words[words.index("orchestrator") + 1 :]
        COMMANDS[name].make_context(name, rest)
    elif "/" in words[0]:
        assert (ROOT / words[0]).is_file() or words[0].startswith(".venv/"), words
    else:
        assert words[0] in OUTSIDE, f"{words[0]}: no program that the pages may name unchecked"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=lambda block: block.where)
def test_every_field_of_a_space_on_a_page_exists(block: Block) -> None:
    for section, fields in tomllib.loads(block.text).items():
        known = (TrialSpec if section in ("trial", "search") else SECTIONS[section]).model_fields
        assert set(fields) <= set(known), block.where
        for table, kind in TABLES.items():
            assert set(fields.get(table, {})) <= set(kind.model_fields), block.where


def test_every_command_of_the_program_is_on_a_page() -> None:
    typed = {
        word for block in BLOCKS if block.language in RUN for word in re.findall(r"orchestrator (\w+)", block.text)
    }
    assert set(COMMANDS) <= typed
