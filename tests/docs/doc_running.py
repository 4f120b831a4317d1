"""A page is run as a reader would: in a folder with what a clone holds, block by block, the output compared."""

import contextlib
import difflib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from doc_pages import ROOT, RUN, Block
from typer.testing import CliRunner

from orchestrator import cli

CLONE = ("search_spaces", "examples")  # what the pages name of it
OWN_PROCESS = ("search", "confirm", "rerun")
SHELL = re.compile(r"[|<>&;$`]")
NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
MOMENT = r"\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:Z|\+00:00)?)?|\b\d+:\d\d:\d\d\b"
VARYING = re.compile(rf"\b[0-9a-f]{{12,64}}\b|{MOMENT}|(?<![\w.]){NUMBER}(?: ?[kMGT])?(?!\w)")
SECONDS = 600  # of one command
TUTORIAL = "orchestrator search search_spaces/tutorial.toml"


class Reader:
    """Whoever follows a page: a folder, the program on the path, and the names of the page's Python."""

    def __init__(self, home: Path, search: Callable[[Path], str]) -> None:
        """search: finishes the tutorial's study in a folder, and says what the command printed."""
        self.home, self._search = home, search
        self.names: dict[str, Any] = {}

    def follow(self, blocks: Sequence[Block]) -> None:
        """Does what the blocks say, in order; AssertionError names the block that is not true."""
        printed: tuple[Block, str] | None = None
        for block in blocks:
            if block.title is not None:
                path = self.home / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.language in RUN:
                printed = None if block.not_run else (block, self._run(block))
            elif block.language == "text" and printed is not None:
                compare(block, printed[1])
                printed = None

    def _run(self, block: Block) -> str:
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, block.where, "exec"), self.names)
            return out.getvalue()
        output, code = "", 0
        for line in block.lines():
            assert code == 0, f"{block.where}: a command before the last one ended with {code}\n{output}"
            code, said = self._command(line)
            output += said
        assert code == block.exit_code, f"{block.where}: ended with {code}, not {block.exit_code}\n{output}"
        return output

    def _command(self, line: str) -> tuple[int, str]:
        words = shlex.split(line, comments=True)
        if line == TUTORIAL and not (self.home / "results" / "tutorial").exists():
            return 0, self._search(self.home)
        if words[0] == "orchestrator" and not self._starts_a_ray(words[1:]) and not SHELL.search(line):
            result = CliRunner().invoke(cli.app, words[1:])
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            return result.exit_code, result.output
        return in_shell(line, self.home)

    def _starts_a_ray(self, words: Sequence[str]) -> bool:
        """All else is quicker in this process: looking up, and a search that is done already."""
        done = words[0] == "search" and (self.home / "results" / Path(words[1]).stem).exists()
        return words[0] in OWN_PROCESS and not done


def in_shell(line: str, home: Path) -> tuple[int, str]:
    """Runs a line as a shell does, with the program and Python of this process; its code, and all that it printed."""
    programs = home / ".programs"
    programs.mkdir(exist_ok=True)
    for name, call in {"orchestrator": "-m orchestrator", "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {call} "$@"\n')
        (programs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    process = subprocess.Popen(
        ["bash", "-c", line],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):  # what outlives its command is ended with it
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, printed


@contextlib.contextmanager
def clone(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what a clone holds, as the current one."""
    for name in CLONE:
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(home)
    yield home


def compare(shown: Block, printed: str) -> None:
    """Raises AssertionError, with the difference, unless a page shows what was printed."""
    wanted = [_plain(line, shown) for line in shown.text.rstrip().splitlines()]
    got = [_plain(line, shown) for line in printed.strip("\n").rstrip().splitlines()]
    pattern = "".join("(?:.*\n)*" if line == "..." else _pattern(line) for line in wanted)
    if re.fullmatch(pattern, "".join(f"{line}\n" for line in got)) is None:
        difference = "\n".join(difflib.unified_diff(wanted, got, "the page", "printed", lineterm="", n=99))
        raise AssertionError(f"{shown.where}: the page shows another output than came\n{difference}")


def _pattern(line: str) -> str:
    return ".*".join(map(re.escape, line.split("..."))) + "\n"


def _plain(line: str, shown: Block) -> str:
    """Without what may differ: trailing and repeated space and, where figures vary, a figure or a range of them."""
    line = " ".join(line.split())
    return VARYING.sub("#", line).replace("# to #", "#") if shown.figures_vary else line
