"""Tables on a terminal: no word and no figure is broken, however narrow it is, and no column is lost."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from rich.console import Console

from orchestrator import tables

Rows = Sequence[Sequence[str]]
Printed = Callable[[int, Sequence[str], Rows], list[str]]
COMPARED = (
    ["method", "study", "seeds", "trials", "points", "train_flops", "hypervolume", "accuracy at 466.4 k (0.7)",
     "accuracy at 333.1 k (0.5)", "accuracy at 199.9 k (0.3)"],
    [["compensation", "many", "2", "2", "6", "22.65 G", "0.6354 ± 0.1569 (n=2)", "0.9903 ± 0.0059 (n=2)",
      "0.9903 ± 0.0059 (n=2)", "0.9861 (n=1)"],
     ["slimming", "many", "1", "2", "5", "14.5 G", "0.6829", "0.9500", "0.9500", "-"]],
)  # fmt: skip
LISTED = (
    ["study", "model", "data", "trials", "points", "hypervolume", "weights", "records", "last change", "search"],
    [["recipecase", "cifarnet", "digits", "2", "1", "0.0000", "317 kB", "27.1 kB", "2026-11-29 03:59Z", "-"],
     ["nopoint", "-", "-", "0", "0", "0.0000", "0 bytes", "10.8 kB", "2026-11-29 03:58Z", "running"]],
)  # fmt: skip
FRONT = (
    ["method", "flops", "flops_kept", "accuracy", "accuracy_after_cut", "params", "regularization_weight",
     "pruning_ratio", "iteration", "key"],
    [["filter_norm", "158.3 k", "0.2377", "0.9611", "0.8222", "21 k", "0", "0.5", "2", "e2524e04179a"],
     ["slimming", "153 k", "0.2297", "0.9278", "0.9222", "23.61 k", "0.03", "0.5", "2", "9496614ec677"]],
)  # fmt: skip
FAILED = (
    ["reason", "message", "key"],
    [["error", "ValueError: 日本語 is no name of a layer of this network, which has 22 others", "e2524e04179a"],
     ["error", "ValueError: the loss was not finite in the third epoch of the sparse stage", "e2524e04179b"]],
)  # fmt: skip


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    def at(width: int, header: Sequence[str], rows: Rows) -> list[str]:
        monkeypatch.setattr(tables, "Console", lambda **options: Console(**{**options, "width": width}))
        tables.print_table(header, rows)
        return capsys.readouterr().out.splitlines()

    return at


def figures(cell: str) -> list[str]:
    """What may not be broken: 0.6354 ± 0.1569, 22.65 G, words."""
    return re.findall(r"[\d.]+ ± [\d.]+|[\d.]+ (?:k|G|kB|bytes)\b|\S+", cell)


@pytest.mark.parametrize("width", [40, 80, 100, 300])
@pytest.mark.parametrize("table", [COMPARED, LISTED, FRONT, FAILED], ids=["compare", "ls", "front", "failures"])
def test_no_word_and_no_figure_is_broken(printed: Printed, table: Any, width: int) -> None:
    header, rows = table
    lines = printed(width, header, rows)
    assert max(map(len, lines)) <= width
    found = [word for line in lines for word in figures(line)]
    for row in rows:
        for cell in row:
            assert {*figures(cell)} <= {*found}
    for name in header:
        for piece in (piece for word in figures(name) for piece in re.split("(?<=_)", word) if piece):
            assert any(piece in word and word in name for word in found)


def test_a_table_that_fits_is_as_it_always_was(printed: Printed) -> None:
    head, first, _ = (line.rstrip() for line in printed(300, *COMPARED))
    assert re.split(" {2,}", head) == COMPARED[0]
    assert re.split(" {2,}", first) == COMPARED[1][0]


def test_what_is_too_wide_comes_in_parts_that_name_their_rows(printed: Printed) -> None:
    lines = printed(80, *COMPARED)
    assert [line.split()[0] for line in lines if line.startswith(("comp", "slim"))] == ["compensation", "slimming"] * 2
    assert lines.count("") == 1
    header = ["line", "arm", *(f"a_figure_{number}" for number in range(9))]
    rows = [["one", arm, *["0.1234567890"] * 9] for arm in ("pruned", "dense")]
    leading = [line.split()[:2] for line in printed(60, header, rows) if line.startswith("one")]
    assert leading == [["one", "pruned"], ["one", "dense"]] * 3  # a line's name alone tells no row from another


def test_a_word_longer_than_the_terminal_stays_whole(printed: Printed) -> None:
    path = "/".join(["a_long_folder"] * 9)
    lines = printed(40, ["path", "why"], [[path, "it is gone"], ["here", "-"]])
    assert any(path in line for line in lines)
