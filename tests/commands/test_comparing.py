"""`orchestrator compare`: what it prints and writes, and one line for whatever cannot be compared."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator import cli
from orchestrator.store import StageStore

Run = Callable[..., Result]
HEADS = ["study", "method", "seeds", "trials", "points", "train_flops", "hypervolume"]


@pytest.fixture
def run(study: StageStore, add_trial: Callable[..., None]) -> Run:
    """Compares in a storage that has the made-up study `small`, and `other`, which was searched for less long."""
    other = StageStore(study.root.parent / "other")
    other.write_json("study.json", {"name": "other"})
    add_trial(other, 1e-4, 0.25)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli.app, ["compare", *arguments, "--storage", str(study.root.parent)])

    return invoke


def test_a_table_to_read(run: Run) -> None:
    done = run("small", "other", "--at", "5M,0.2")
    assert done.exit_code == 0, done.output
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0] == "cifarnet on digits, by study"
    assert lines[1].startswith("flops: multiply-accumulates")
    head = next(line for line in lines if line.startswith("study "))
    assert head.split("  ")[0] == "study"
    assert [word for word in head.split() if word in HEADS] == HEADS
    assert "accuracy at 5 M (0.41)" in head
    assert "accuracy at 2.469 M (0.2)" in head
    assert [line.split()[:2] for line in lines if line.startswith(("small ", "other "))] == [
        ["small", "oicsr"],
        ["other", "oicsr"],
    ]
    assert any(line.startswith("NOT THE SAME") for line in lines)
    assert any(line.split() == ["train_flops", "69", "M", "21", "M"] for line in lines)


def test_what_is_the_same_is_said_too(run: Run, study: StageStore, add_trial: Callable[..., None]) -> None:
    twin = StageStore(study.root.parent / "twin")
    twin.write_json("study.json", {"name": "twin"})
    add_trial(twin, 1e-3, 0.3)
    assert "The same in all: model, data" in run("other", "twin").stdout


def test_many_methods_are_a_number(run: Run, study: StageStore, add_trial: Callable[..., None]) -> None:
    several, many = (StageStore(study.root.parent / name) for name in ("several", "many"))
    for store, methods in ((several, ("lasso", "pfec", "random")), (many, ("fisher", "lasso", "pfec", "taylor"))):
        store.write_json("study.json", {"name": store.root.name})
        for method in methods:
            add_trial(store, 1e-3, 0.3, method=method)
    rows = [re.split(" {2,}", line) for line in run("several", "many").output.splitlines()]
    found = {row[0]: row[1] for row in rows if row[0] in ("several", "many") and len(row) > 4}
    assert found == {"several": "lasso, pfec, random", "many": "4 of them"}


def test_csv_and_json_have_everything(run: Run) -> None:
    done = run("small", "other", "--at", "0.5", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["line"] for row in rows] == ["small", "other"]
    assert float(rows[0]["budget_flops_kept"]) == pytest.approx(0.5)
    found = json.loads(run("small", "other", "--at", "0.5", "--format", "json").stdout)
    assert [line["accuracy_at"][0]["mean"] for line in found["lines"]] == [
        pytest.approx(float(row["accuracy"]), abs=1e-6) for row in rows
    ]


def test_a_page_and_a_picture(run: Run, tmp_path: Path) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "overlay.svg"
    done = run("small", "other", "--output", str(page), "--plot", str(picture), "--over", "params")
    assert done.stdout.splitlines()[-2].startswith(f"wrote {page} (")
    assert done.stdout.splitlines()[-1] == f"wrote {picture}"
    assert "<title>small, other · compared</title>" in page.read_text()
    assert "params, M" in picture.read_text()
    quiet = run("small", "other", "--format", "json", "--output", str(page))
    assert json.loads(quiet.stdout)
    assert quiet.stderr.startswith(f"wrote {page}")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--output page.txt", "page.txt: ends in '.txt'; a page ends in .html or .htm"),
        ("--output {there}/page.html --plot front.gif", "front.gif: ends in '.gif'; a picture ends in .svg or .png"),
        (
            "--output {there}/page.html --plot {there}/none/a.svg",
            "a.svg: cannot be written (No such file or directory)",
        ),
        ("--output {there}/folder.html", "folder.html: cannot be written (Is a directory)"),
        ("--output {there}/file/page.html", "page.html: cannot be written (Not a directory)"),
        (
            "--output {there}/page.html --plot {there}/a.svg --over latency_ms",
            "small: no point has latency_ms; trial.latency_batch in the search space has it measured",
        ),
    ],
)
def test_nothing_is_printed_or_written_before_all_can_be(run: Run, tmp_path: Path, typed: str, said: str) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()
    before = {*tmp_path.rglob("*.html"), *tmp_path.rglob("*.svg")}
    done = run("small", "other", *typed.format(there=tmp_path).split())
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert said in done.stderr
    assert {*tmp_path.rglob("*.html"), *tmp_path.rglob("*.svg")} == before


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("small nope", "nope: no study in "),
        ("small", "small: has one method, oicsr; give a second study"),
        ("small --by study", "small: is one study; give a second one, or --by method"),
        ("small other --at 6OM", "--at is '6OM'; give a number above 0"),
        ("small other --over params", "--over params: is for the picture; give --plot FILE.svg too"),
    ],
)
def test_what_cannot_be_compared_is_one_line(run: Run, typed: str, said: str) -> None:
    done = run(*typed.split())
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
