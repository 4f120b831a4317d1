"""What MkDocs puts into the site beside the pages of this folder.

Tables that the program itself gives, where a page has the line `<!-- generated: NAME -->`; and files of the tree that
pages lead to, such as deploy/README.md, so that they are read in one place and written once.
"""

import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BeforeValidator
from typer.main import get_command

from orchestrator import cli
from orchestrator.methods import METHODS, Options
from orchestrator.methods.words import comments_of, in_words, kind_text, owner_of, plain, value_text
from orchestrator.record import Record, Schedule, TrialSpec
from orchestrator.search.space import SECTIONS

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {  # where a file of the tree lies on the site
    "deploy/README.md": "beside/deploy.md",
    "benchmarks/README.md": "beside/benchmarks.md",
    "benchmarks/RESULTS.md": "beside/results.md",
    "benchmarks/ARCHITECTURES.md": "beside/architectures.md",
    "CHANGELOG.md": "beside/changelog.md",
}
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.M)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


# --- called by MkDocs ---


def on_files(files: Files, config: Any) -> Files:
    """Adds the files that lie elsewhere in the tree."""
    for source, target in BESIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Fills in generated tables, and leads links to where things are on the site."""
    here = page.file.src_uri
    source = next((source for source, target in BESIDE.items() if target == here), f"docs/{here}")
    known = {file.src_uri for file in files}
    return LINK.sub(lambda link: _led(link, source, here, known), MARK.sub(_generated, markdown))


def _led(link: re.Match[str], source: str, here: str, known: set[str]) -> str:
    """A link to a file of the tree: to its place on the site if it has one; else the file's name as text."""
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
    target = BESIDE.get(wanted, wanted.removeprefix("docs/"))
    if target in known:
        return f"[{link[1]}]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{link[3] or ''})"
    if (ROOT / wanted).exists() and not wanted.startswith("docs/"):
        return f"`{wanted}`" if link[1].strip("`") in wanted else f"{link[1]} (`{wanted}`)"
    return link[0]  # MkDocs says that it leads nowhere


def _generated(mark: re.Match[str]) -> str:
    return GENERATED[mark[1]]()


# --- the program's own words ---


def commands() -> str:
    """Every command with its arguments and options, as --help has them."""
    return "\n".join(_command(name, command) for name, command in get_command(cli.app).commands.items())  # type: ignore[attr-defined]


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"orchestrator {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## {name}", "", (command.help or "").strip(), "", "```text", f"orchestrator {name} {usage}", "```", ""]
    records = [record for one in command.get_params(context) if (record := one.get_help_record(context))]
    rows = [(f"`{left}`", _cell(right)) for left, right in records if left != "--help"]
    return "\n".join([*lines, *_table(("argument or option", "meaning"), rows)])


def space() -> str:
    """Every section of a search space with its fields: type, bounds, default, meaning."""
    parts = [_section("[trial] and [search]", TrialSpec)]
    parts.append(_section("[trial.dense], [trial.sparse], [trial.recovery]", Schedule))
    parts += [_section(f"[{name}]", section) for name, section in SECTIONS.items()]
    return "\n".join(parts)


def _section(title: str, record: type[Record]) -> str:
    schema, meanings = record.model_json_schema(), comments_of(record)
    rows = []
    for name, field in record.model_fields.items():
        facts = plain(schema["properties"][name])
        counted = any(isinstance(one, BeforeValidator) for one in _metadata(field.annotation, field.metadata))
        default = "required" if field.is_required() else _default(field.default)
        rows.append((f"`{name}`", kind_text(facts, counted=counted), default, _cell(meanings.get(name, ""))))
    head = "## " + re.sub(r"(\[[\w.]+\])", r"`\1`", title)
    about = (inspect.getdoc(record) or "").strip()
    return "\n".join([head, "", about, "", *_table(("field", "value", "default", "meaning"), rows)])


def methods() -> str:
    """Every method with its source, and which of the answers it gives."""
    rows = [
        (f"`{name}`", _cell(method.source), _said(method.penalty), _said(method.repair_))
        for name, method in METHODS.items()
    ]
    return "\n".join(_table(("method", "source", "penalty", "repairs"), rows))


def method_options() -> str:
    """Every option, with the methods that have it: value, default, meaning."""
    having: dict[tuple[type[Options], str], list[str]] = {}
    for name, method in METHODS.items():
        for option in method.options.model_fields:
            having.setdefault((owner_of(method.options, option), option), []).append(name)
    rows = []
    for (owner, option), names in having.items():
        of = "all" if len(names) == len(METHODS) else ", ".join(f"`{name}`" for name in names)
        words = next(one for one in in_words(owner) if one.name == option)
        rows.append((f"`{option}`", of, words.values, f"`{words.default}`", _cell(words.meaning)))
    return "\n".join(_table(("option", "of", "value", "default", "meaning"), rows))


def _said(answer: object) -> str:
    return "no" if answer is None else "yes"


GENERATED = {"commands": commands, "space": space, "methods": methods, "method_options": method_options}


# --- helpers ---


def _metadata(annotation: Any, given: list[Any]) -> Iterator[Any]:
    yield from given
    for inner in getattr(annotation, "__args__", ()):
        yield from getattr(inner, "__metadata__", ())


def _default(value: Any) -> str:
    return "none" if value is None else f"`{value_text(value)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    return ["", *(f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows)), ""]
