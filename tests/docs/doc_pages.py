"""Pages as the tests read them: fenced blocks in order, each with the marks that stand before it.

A mark is an HTML comment on a line of its own before the block; it shows in the source, not on the page.

    <!-- not run: REASON -->   the block is not run; its commands are parsed, the files they name looked up
    <!-- exit: 2 -->           the block's last command ends with this code; without the mark all end with 0
    <!-- figures vary -->      in the output below, numbers, times and keys may differ, words and columns may not

A ```text block after a ```sh or ```python block is what it prints. A line `...` stands for any lines, `...` inside a
line for anything. A fence with title="PATH" is a file, which is written to that path.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
RUN = ("sh", "python")
FENCE = re.compile(r"^(?P<fence>```+)(?P<language>\w*)(?P<rest>[^`\n]*)\n(?P<text>.*?)^(?P=fence)[ \t]*$", re.M | re.S)
MARK = re.compile(r"^<!-- (not run|exit|figures vary)(?:: (.+?))? -->$", re.M)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    title: str | None = None  # the file that it is
    not_run: str | None = None  # why
    exit_code: int = 0
    figures_vary: bool = False

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    def lines(self) -> list[str]:
        """Its commands: continued lines joined, comments and empty lines left out."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in joined if line.strip() and not line.lstrip().startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, from top to bottom."""
    text = page.read_text(encoding="utf-8")
    found, before = [], 0
    for match in FENCE.finditer(text):
        marks = dict(MARK.findall(_comments_at_end(text[before : match.start()])))
        title = re.search(r'title="([^"]+)"', match["rest"])
        found.append(
            Block(
                page=page,
                line=text.count("\n", 0, match.start()) + 1,
                language=match["language"],
                text=match["text"],
                title=title[1] if title else None,
                not_run=marks.get("not run"),
                exit_code=int(marks.get("exit", 0)),
                figures_vary="figures vary" in marks,
            )
        )
        before = match.end()
    return found


def _comments_at_end(text: str) -> str:
    """The comments that nothing but space parts from the block after them."""
    kept = ""
    while (last := re.search(r"<!--(?:(?!-->).)*-->\s*\Z", text, re.S)) is not None:
        kept, text = f"{last[0].strip()}\n{kept}", text[: last.start()]
    return kept
