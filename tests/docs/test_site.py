"""The site builds without a warning, asks for nothing from the network, and holds what the program says of itself."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from doc_pages import PAGES, ROOT
from typer.main import get_command

from orchestrator import cli
from orchestrator.methods import METHODS, Options
from orchestrator.record import Schedule, TrialSpec
from orchestrator.search.space import SECTIONS

FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
LOADED = {"stylesheet", "preload", "preconnect", "icon", "modulepreload", "dns-prefetch", "prefetch"}


class Requests(HTMLParser):
    """What a page asks for when it is opened, links to be clicked left out."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in FETCHED:
            self.found.append(given.get(FETCHED[tag]) or "")
        if tag == "link" and set((given.get("rel") or "").split()) & LOADED:
            self.found.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does. Any warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/hooks.py, which MkDocs loads by its path."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_on_the_site(site: Path) -> None:
    pages = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in PAGES if page.name != "README.md"]
    assert [page.as_posix() for page in pages if not (site / page).is_file()] == []


def test_the_site_asks_for_nothing_from_the_network(site: Path) -> None:
    asked = {address for page in site.rglob("*.html") for address in Requests(page.read_text()).found}
    assert asked, "no page was read"
    assert {address for address in asked if re.match(r"(?:[a-z]+:)?//", address)} == set()
    styles = "".join(style.read_text() for style in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^'\")]*", styles) == []


def test_no_page_is_left_with_a_mark_of_a_table(site: Path) -> None:
    assert [page.name for page in site.rglob("*.html") if "generated:" in page.read_text()] == []


def test_every_option_of_every_command_is_on_the_site(site: Path) -> None:
    text = (site / "reference" / "commands.html").read_text()
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        assert f'id="{name}"' in text
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert [option for option in options if option not in text] == []


def test_every_field_of_a_space_is_on_the_site_and_says_what_it_means(site: Path, hooks: ModuleType) -> None:
    text = (site / "reference" / "space.html").read_text()
    for record in (TrialSpec, Schedule, *SECTIONS.values()):
        meanings = hooks.comments_of(record)
        assert [name for name in record.model_fields if f"<code>{name}</code>" not in text] == []
        assert [name for name in record.model_fields if not meanings.get(name)] == []


def test_every_method_and_its_options_are_on_the_site(site: Path) -> None:
    text = (site / "how-to" / "methods.html").read_text()
    for name, method in METHODS.items():
        assert f"<code>{name}</code>" in text
        assert [option for option in method.options.model_fields if f"<code>{option}</code>" not in text] == []


def test_every_option_of_a_method_says_what_it_means(hooks: ModuleType) -> None:
    rows = hooks.method_options().splitlines()[3:]
    said = {(row.split(" | ")[0], of) for row in rows if row for of in row.split(" | ")[1].split(", ")}
    wanted = {
        (f"| `{option}`", "all" if option in Options.model_fields else f"`{name}`")
        for name, method in METHODS.items()
        for option in method.options.model_fields
    }
    assert said == wanted
    assert [row for row in rows if row and len(row.split(" | ")[4].strip(" |")) < 10] == []


@pytest.mark.parametrize(
    "row",
    [
        "| `residual_streams` | all | true or false | `false` | whether channels of",
        "| `size_normalization` | `oicsr`, `separated_group_lasso` | true or false | `false` | the penalty of",
        "| `length_weight` | `feature_flow` | number, at least 0 | `1.0` | what multiplies the path's",
        "| `bend_weight` | `feature_flow` | number, at least 0 | `1.0` | what multiplies the path's",
        '| `widths` | `lasso` | `"uniform"` or `"greedy"` | `"uniform"` | how many channels',
    ],
)
def test_options_have_the_words_of_their_classes(hooks: ModuleType, row: str) -> None:
    assert row in hooks.method_options()


@pytest.mark.parametrize(
    "row",
    [
        "| `model` | text | required |",
        "| `group_cap` | number, above 0, below 1 | `0.5` | largest share of a group's channels that",
        "| `max_flops` | whole number, or text such as `60M` | none |",
        '| `guide` | `"gain"` or `"prefixes"` | `"gain"` |',
        "| `gpus_per_trial` | number, at least 0 | `0.0` |",
    ],
)
def test_bounds_and_defaults_are_those_that_are_checked(hooks: ModuleType, row: str) -> None:
    assert row in hooks.space()


def test_links_to_files_of_the_tree_lead_somewhere(hooks: ModuleType) -> None:
    known = {"beside/deploy.md", "tutorial.md"}

    def led(text: str, source: str = "docs/how-to/page.md", here: str = "how-to/page.md") -> str:
        return str(hooks.LINK.sub(lambda link: hooks._led(link, source, here, known), text))

    assert led("[deploy](../../deploy/README.md#on-slurm)") == "[deploy](../beside/deploy.md#on-slurm)"
    assert led("[the file](../../deploy/slurm.sh)") == "the file (`deploy/slurm.sh`)"
    assert led("[slurm.sh](slurm.sh)", "deploy/README.md", "beside/deploy.md") == "`deploy/slurm.sh`"
    assert led("[x](../tutorial.md)") == "[x](../tutorial.md)"
    assert led("[x](../nowhere.md)") == "[x](../nowhere.md)"
    assert led("[x](https://example.org)") == "[x](https://example.org)"


def test_every_mark_names_a_table_that_there_is(hooks: ModuleType) -> None:
    marks = {mark for page in PAGES for mark in hooks.MARK.findall(page.read_text())}
    assert marks == set(hooks.GENERATED)
