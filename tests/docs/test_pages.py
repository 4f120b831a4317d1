"""Every command and every piece of Python on a page is run, from top to bottom, and prints what the page shows."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, RUN, Block, blocks_of
from doc_running import Reader, clone, compare

RUNNING = [page for page in PAGES if any(b.language in RUN and not b.not_run for b in blocks_of(page))]
FIRST = "tutorial.md"  # makes the study that the other pages start from


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that a page shows beside ours
@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_says_is_so(
    page: Path, search: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clone(tmp_path, monkeypatch) as home:
        if page.name != FIRST:
            search(home)
        if page.name == "README.md":  # its study has the demo's name
            shutil.move(home / "results" / "tutorial", home / "results" / "digits_cifarnet")
        Reader(home, search).follow(blocks_of(page))


def test_the_page_of_files_names_every_folder_and_file_of_a_study(tutorial_search: tuple[Path, str]) -> None:
    shown = (ROOT / "docs" / "reference" / "files.md").read_text()
    study, _ = tutorial_search
    stages = {file.name for file in study.glob("stages/*/*")}
    there = {path.name for path in study.iterdir()} | stages
    assert [name for name in sorted(there) if name not in shown] == []


def text(shown: str, **marks: bool) -> Block:
    return Block(page=ROOT / "docs" / "page.md", line=7, language="text", text=shown, **marks)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("one\ntwo\n", "one\ntwo\n"),
        ("one   two\n", "\none two  \n\n"),
        ("one\n...\nfive\n", "one\ntwo\nthree\nfive\n"),
        ("...\nfive\n", "five\n"),
        ("study in ... seconds\n", "study in 13 seconds\n"),
    ],
)
def test_output_that_is_as_shown(shown: str, printed: str) -> None:
    compare(text(shown), printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [("one\n", "two\n"), ("one\n", "one\ntwo\n"), ("one\n...\n", "two\n"), ("0.9\n", "0.8\n"), ("a.c\n", "abc\n")],
)
def test_output_that_is_not_as_shown(shown: str, printed: str) -> None:
    with pytest.raises(AssertionError, match=r"docs/page\.md:7: the page shows another output than came"):
        compare(text(shown), printed)


def test_figures_may_vary_where_the_page_says_so_and_words_may_not() -> None:
    shown = text("12.35 M  0.97  0:00:24  0a1b2c3d4e5f 2026-11-23 02:19Z\n", figures_vary=True)
    compare(shown, "8.1 k  1  1:02:03  ffffffffffff 2027-01-02 13:40Z\n")
    compare(text("187 to 206 epochs\n", figures_vary=True), "197 epochs\n")
    with pytest.raises(AssertionError, match=r"-# # # # #\n\+# # # or so # #"):
        compare(shown, "8.1 k  1  1:02:03 or so ffffffffffff 2027-01-02 13:40Z\n")


def test_marks_belong_to_the_next_block_alone(tmp_path: Path) -> None:
    source = """Words.

<!-- not run: it takes days -->
```sh
true \\
  --more
# no command
```

<!-- exit: 2 -->
<!-- figures vary -->

```python title="a/b.py"
x = 1
```
<!-- exit: 3 -->
Words.
```text
x
```
"""
    page = tmp_path / "page.md"
    page.write_text(source)
    blocks = blocks_of(page)
    assert [block.language for block in blocks] == ["sh", "python", "text"]
    assert [block.not_run for block in blocks] == ["it takes days", None, None]
    assert [block.exit_code for block in blocks] == [0, 2, 0]
    assert [block.figures_vary for block in blocks] == [False, True, False]
    assert [block.title for block in blocks] == [None, "a/b.py", None]
    assert blocks[0].lines() == ["true    --more"]
