"""What the tests of the pages share: one finished search, and a list of what is not run."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from doc_pages import PAGES, ROOT, RUN, blocks_of
from doc_running import TUTORIAL, in_shell


@pytest.fixture(scope="session")
def tutorial_search(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The tutorial's search, done once, by the command that it has: its study, and what was printed."""
    home = tmp_path_factory.mktemp("tutorial")
    shutil.copytree(ROOT / "search_spaces", home / "search_spaces")
    code, printed = in_shell(TUTORIAL, home)
    assert code == 0, printed
    return home / "results" / "tutorial", printed


@pytest.fixture
def search(tutorial_search: tuple[Path, str]) -> Callable[[Path], str]:
    """Puts a copy of the tutorial's study into a folder's results/; returns what the search printed."""
    study, printed = tutorial_search

    def finish(home: Path) -> str:
        shutil.copytree(study, home / "results" / "tutorial")
        return printed

    return finish


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which commands of the pages no test runs, and why."""
    left_out = [block for page in PAGES for block in blocks_of(page) if block.language in RUN and block.not_run]
    terminalreporter.section(f"documentation: {sum(len(b.lines()) for b in left_out)} lines of commands are not run")
    for block in left_out:
        terminalreporter.write_line(f"{block.where}: {block.not_run}")
