"""The command line: what each command prints, and one line for whatever the user got wrong."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import orchestrator
from orchestrator import Study, cli, tables
from orchestrator.commands import inspecting
from orchestrator.record import Failure, InvalidInput, Schedule, TrialSpec, whereabouts
from orchestrator.store import CONFIRMED, StageStore
from orchestrator.tables import first_line

Run = Callable[..., Result]
ROOT = Path(orchestrator.__file__).parents[1]


@pytest.fixture
def run(study: StageStore) -> Run:
    """Runs the command on the made-up study's results folder; commands that read a study get --storage."""

    def invoke(command: str, *arguments: str) -> Result:
        storage = [] if command == "inspect" else ["--storage", str(study.root.parent)]
        return CliRunner().invoke(cli.app, [command, *arguments, *storage])

    return invoke


def lines(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return [line.rstrip() for line in result.stdout.splitlines()]


def complaint(result: Result) -> str:
    """The one line on stderr of a command that ended with exit code 2 and no traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


# --- front ---


def test_front_as_a_table(run: Run, study: StageStore) -> None:
    front = Study(study.root).front()
    printed = lines(run("front", "small"))
    assert printed[:3] == [
        f"Frontier of {study.root}",
        "flops: multiply-accumulates of convolutions and linear layers, batch 1",
        "accuracy: top-1 on the validation split",
    ]
    assert printed[3].split() == list(tables.CELLS)
    assert len(printed) == 3 + 1 + len(front) + 1
    assert printed[4].split()[-1] == front["key"].iloc[0][:12]
    dense = printed[-2].split()
    assert dense == ["12.35", "M", "1.0000", "0.9700", "-", "89.44", "k", "-", "-", "0", front["key"].iloc[-1][:12]]


def test_front_ends_with_the_next_command(run: Run, tmp_path: Path) -> None:
    command = lines(run("front", "small"))[-1].removeprefix("take a model out: orchestrator ").split()
    command[command.index("DIR")] = str(tmp_path / "out")
    assert "wrote" in lines(CliRunner().invoke(cli.app, command))[-1]


def test_front_and_best_show_latencies_where_there_are_any(
    run: Run, study: StageStore, add_trial: Callable[..., None]
) -> None:
    assert "latency_ms" not in run("front", "small").stdout
    add_trial(study, 1e-3, 0.25, iterations=4, latency=True)
    printed = lines(run("front", "small"))
    assert printed[3].split()[-1] == "latency_ms"
    assert {line.split()[-1] for line in printed[4:-1]} >= {"-", "4.219"}
    assert "latency_ms             4.219 (a batch of 8)" in lines(run("best", "small", "--max-flops", "5.3M"))


def test_front_within_limits(run: Run, study: StageStore) -> None:
    limited = Study(study.root).front(max_flops="9M", min_accuracy=0.9)
    printed = lines(run("front", "small", "--max-flops", "9M", "--min-accuracy", "0.9"))
    assert [line.split()[-1] for line in printed[4:-1]] == [key[:12] for key in limited["key"]]
    nothing = lines(run("front", "small", "--max-flops", "1M"))
    assert nothing[-1] == "no point of the frontier is within these limits"


def test_front_as_csv_and_json(run: Run, study: StageStore) -> None:
    front = Study(study.root).front()
    table = list(csv.DictReader(io.StringIO(run("front", "small", "--format", "csv").stdout)))
    records = json.loads(run("front", "small", "--format", "json").stdout)
    assert list(table[0]) == list(records[0]) == list(front.columns)
    for rows in (table, records):
        assert [row["key"] for row in rows] == front["key"].tolist()
        assert [float(row["accuracy"]) for row in rows] == front["accuracy"].tolist()
    assert json.loads(run("front", "small", "--format", "json", "--max-flops", "1").stdout) == []


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_a_terminal_loses_no_figure_and_no_column(
    run: Run, monkeypatch: pytest.MonkeyPatch, study: StageStore, width: int
) -> None:
    def narrow(**options: Any) -> Console:
        return Console(**{**options, "width": width})

    monkeypatch.setattr(tables, "Console", narrow)
    printed = run("front", "small").stdout
    for key in Study(study.root).front()["key"]:
        assert key[:12] in printed
    letters = "".join(printed.split())
    assert letters.count("0.001") >= 2
    header = printed.splitlines()[3:]
    assert max(len(line) for line in header[:-1]) <= max(80, width)


# --- status ---


def test_status(run: Run, study: StageStore) -> None:
    printed = lines(run("status", "small"))
    facts = dict(line.split("  ", 1) for line in printed[:8])
    assert facts["study"].strip() == str(study.root)
    assert facts["search"].strip() == "not running"
    assert "stages       1 dense, 10 sparse, 12 cut" in printed
    assert "points       13" in printed
    assert any(line.split() == ["0.5", "0.9180"] for line in printed)
    assert any(line.split() == ["0.15", "-"] for line in printed)
    assert not any(line.startswith("computed twice") for line in printed)


def test_status_of_a_search_that_runs_and_of_trials_that_failed(run: Run, study: StageStore) -> None:
    schedule = Schedule(epochs=1, learning_rate=0.1)
    spec = TrialSpec(
        model="cifarnet",
        dataset="digits",
        regularization_weight=1e-3,
        pruning_ratio=0.3,
        iterations=1,
        dense=schedule,
        sparse=schedule,
        recovery=schedule,
    )
    message = "the loss is NaN in epoch 3\nand more"
    study.record_failure(
        Failure(key="f" * 64, spec=spec, reason="diverged", message=message, traceback="t", **whereabouts())
    )
    study.prepare()
    (study.root / "duplicates").mkdir()
    (study.root / "duplicates" / "note.json").touch()
    with study.exclusive("driver") as claim, StageStore(study.root / CONFIRMED).exclusive("driver"):
        printed = lines(run("status", "small"))
        listed = lines(run("ls"))
    assert f"search          run by process {claim.owner.pid} on {claim.owner.host}" in printed
    assert f"confirm         run by {claim.owner}" in printed
    assert f"{claim.owner}, confirm: {claim.owner}" in listed[-1]
    assert "computed twice  1 stages" in printed
    assert f"tracebacks: {study.root / 'failures'}" in printed
    row = printed[-1].split()
    assert (row[0], row[-3:]) == ("diverged", ["0.001", "0.3", "f" * 12])
    assert "the loss is NaN in epoch 3" in printed[-1]
    assert "and more" not in printed[-1]


def test_status_names_the_groups_that_stay_whole(run: Run, study: StageStore, add_trial: Callable[..., None]) -> None:
    assert not any("left whole" in line for line in lines(run("status", "small")))
    add_trial(study, 1e-2, 0.3, iterations=2, frozen=["conv1", "conv2"])
    *_, heading, header, first, second = lines(run("status", "small"))
    assert heading == "Groups left whole"
    assert header.split() == ["group", "channels", "stages", "reason"]
    assert first.split() == ["conv1", "8", "2", "cut", "and", "masked", "network", "differ", "by", "1.0e-01"]
    assert second.split()[:3] == ["conv2", "8", "2"]
    points = Study(study.root).points()
    assert points["frozen_groups"].dropna().tolist() == ["conv1, conv2"] * 2


def test_status_names_the_layers_that_were_not_repaired(
    run: Run, study: StageStore, add_trial: Callable[..., None]
) -> None:
    assert not any("not repaired" in line for line in lines(run("status", "small")))
    add_trial(study, 1e-2, 0.3, iterations=2, unrepaired=["conv3"])
    *_, heading, header, only = lines(run("status", "small"))
    assert heading == "Layers that lost inputs and were not repaired"
    assert header.split() == ["layer", "stages", "reason"]
    assert only.split() == ["conv3", "2", "its", "weight", "is", "used", "more", "than", "once"]
    assert Study(study.root).unrepaired().to_dict("records") == [
        {"layer": "conv3", "stages": 2, "reason": "its weight is used more than once"}
    ]


def test_status_of_a_young_study(run: Run, study: StageStore) -> None:
    StageStore(study.root.parent / "young").prepare()
    printed = lines(run("status", "young"))
    assert "points       0" in printed


# --- best and plot ---


def test_best(run: Run, study: StageStore, tmp_path: Path) -> None:
    best = Study(study.root).best(max_flops="5M")
    printed = lines(run("best", "small", "--max-flops", "5M", "--output", str(tmp_path / "out")))
    assert printed[0] == "cifarnet on digits"
    assert f"key                    {best.key}" in printed
    assert "accuracy               0.8837" in printed
    assert printed[-4:] == [
        f"wrote {tmp_path / 'out' / name}" for name in ("weights.safetensors", "plan.json", "point.json", "stage.json")
    ]
    assert (tmp_path / "out" / "weights.safetensors").read_bytes() == best.key.encode()
    cheapest = lines(run("best", "small", "--min-accuracy", "0.95"))
    assert "iteration              1" in cheapest


def test_plot(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "front.svg"
    assert lines(run("plot", "small", "--output", str(picture))) == [f"wrote {picture}"]
    assert picture.read_text().startswith("<?xml")


def test_plot_shows_what_is_asked_for(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "paths.png"
    lines(run("plot", "small", "--output", str(picture), "--show", "trajectories", "--over", "params"))
    assert picture.read_bytes().startswith(b"\x89PNG")


# --- report and watch ---


def test_report(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = lines(run("report", "small"))
    assert re.fullmatch(r"wrote small\.html \(\d+ kB\); open it in a browser", line)
    assert (tmp_path / "small.html").read_text().startswith("<!doctype html>")
    assert lines(run("report", "small", "--output", str(tmp_path / "it.html")))[0].startswith(f"wrote {tmp_path}")


def test_watch_ends_with_one_ctrl_c(study: StageStore) -> None:
    heeding = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests may run without
    code = f"{heeding}from orchestrator.cli import main\nmain()"
    command = [sys.executable, "-c", code, "watch", str(study.root), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+/", line)
    assert address, line
    with urllib.request.urlopen(address[0]) as answer:
        assert b"<!doctype html>" in answer.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "ended\n", "")


# --- search ---


def pretend(monkeypatch: pytest.MonkeyPatch, launch: Callable[..., None]) -> None:
    """A search package that launches something else, and has no trackers."""
    fake = SimpleNamespace(launch=launch, make_trackers=lambda **options: [])
    monkeypatch.setitem(sys.modules, "orchestrator.search", fake)


def test_search_is_launched_with_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[Path, dict[str, Any]]] = []
    pretend(monkeypatch, lambda space, **options: launched.append((space, options)))
    typed = "search s.toml --trials 3 --storage d --address auto --cpus-per-trial 0.5 --gpus-per-trial 0.25"
    assert CliRunner().invoke(cli.app, typed.split()).exit_code == 0
    assert CliRunner().invoke(cli.app, ["search", "s.toml"]).exit_code == 0
    names = ("trials", "storage", "address", "cpus_per_trial", "gpus_per_trial")
    assert [space for space, _ in launched] == [Path("s.toml")] * 2
    assert [launched[0][1][name] for name in names] == [3, "d", "auto", 0.5, 0.25]
    assert [launched[1][1][name] for name in names] == [None, "results", None, None, None]
    assert isinstance(launched[0][1]["console"], Console)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidInput("s.toml: search.pruning_ratio.high is 1.5;\n it must be below 1"), r"1\.5; it must be below 1"),
        (None, r"^Schedule: epochs: Input should be .* \(met: '-1'\)$"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: InvalidInput | None, said: str
) -> None:
    def launch(space: Path, **options: Any) -> None:
        if error is not None:
            raise error
        Schedule(epochs=-1, learning_rate=0.1)

    pretend(monkeypatch, launch)
    result = CliRunner().invoke(cli.app, ["search", "s.toml"])
    with pytest.raises(InvalidInput, match=said):
        raise InvalidInput(complaint(result))


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(space: Path, **options: Any) -> None:
        raise ZeroDivisionError

    pretend(monkeypatch, launch)
    result = CliRunner().invoke(cli.app, ["search", "s.toml"])
    assert isinstance(result.exception, ZeroDivisionError)


# --- inspect ---

REPORT: dict[str, Any] = {
    "flops": 1_000_000,
    "params": 2000,
    "prunable_share": 0.75,
    "groups": [
        {"name": "conv1", "channels": 16, "exact": True, "flops_share": 0.5, "members": ["a", "b", "c", "d", "e", "f"]},
        {"name": "fc", "channels": 8, "exact": False, "flops_share": 0.25, "members": ["fc"]},
    ],
    "frozen": [{"channels": 10, "reason": "the model's output"}],
    "notes": ["not followed in training mode: it needs labels"],
    "layers": [{"name": "conv1", "flops": 750_000, "params": 1500}, {"name": "fc", "flops": 250_000, "params": 500}],
}


def test_inspect_prints_groups_frozen_channels_and_layers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[Any]] = []

    def explain(*question: Any) -> dict[str, Any]:
        asked.append(question)
        return REPORT

    monkeypatch.setattr(inspecting, "_explain", explain)
    printed = lines(run("inspect", "m:f", "--input", "3x32x40", "--classes", "7"))
    assert asked == [("m:f", (3, 32, 40), 7)]
    assert printed[0] == "m:f on 3x32x40, 7 classes"
    assert "prunable share  0.7500" in printed
    assert "conv1        16  yes         0.5000  a, b, c, d and 2 more" in printed
    assert "fc            8  no          0.2500  fc" in printed
    assert "      10  the model's output" in printed
    assert "note: not followed in training mode: it needs labels" in printed
    assert "conv1  750 k       0.7500   1.5 k" in printed
    assert json.loads(run("inspect", "m:f", "--input", "3x32x40", "--json").stdout) == REPORT
    assert asked[1] == ("m:f", (3, 32, 40), 1000)


def test_inspect_a_real_network(run: Run) -> None:
    report = json.loads(run("inspect", "cifarnet", "--dataset", "digits", "--json").stdout)
    assert sum(layer["flops"] for layer in report["layers"]) == report["flops"]
    assert 0.5 < report["prunable_share"] <= 1
    assert lines(run("inspect", "cifarnet", "--dataset", "digits"))[0] == "cifarnet on 1x8x8, 10 classes"


# --- bad input ---


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("front nope", r"^nope: no study in .*results/nope or nope; there is "),
        ("status nope", "^nope: no study in "),
        (
            "front small --max-flops 6OM",
            r"^--max-flops is '6OM'; give a number above 0, such as 2500000, 60M or 4\.1G$",
        ),
        ("front small --min-accuracy 90", "^min_accuracy is 90; give a share from 0 to 1$"),
        ("best small", "^give --max-flops, --min-accuracy or both$"),
        ("best small --max-flops 1k", r"small: no point has at most 1 k flops; the smallest has 2\.054 M flops"),
        ("best small --min-accuracy 0.99", r"small: no point reaches accuracy 0\.99; the best has 12\.35 M flops"),
        ("plot small --output front.gif", r"^front\.gif: ends in '\.gif'; a picture ends in \.svg or \.png$"),
        (
            "plot small --over latency_ms --output front.svg",
            "no point has latency_ms; trial.latency_batch in the search",
        ),
        ("report small --output page.pdf", r"^page\.pdf: ends in '\.pdf'; a page ends in \.html or \.htm$"),
        ("watch nope", "^nope: no study in "),
        ("front young", "young: no point so far; the dense model's comes first"),
        ("plot young --output front.svg", "young: no point so far"),
        ("front damaged", r"damaged/study\.json: damaged \(no JSON"),
        ("inspect cifarnet", "^give either --dataset or --input$"),
        ("inspect cifarnet --dataset digits --input 3x8x8", "^give either --dataset or --input$"),
        ("inspect cifarnet --dataset digits --classes 5", "^--classes goes with --input; digits has its own classes$"),
        ("inspect cifarnet --input 3x224", "^--input is '3x224'; give channels x height x width, such as 3x224x224$"),
        ("inspect cifarnet --input 3x0x8", "^--input is '3x0x8'"),
        ("inspect cifarnett --dataset digits", "unknown model 'cifarnett'"),
        ("inspect cifarnet --dataset digit", "unknown data set 'digit'"),
    ],
)
def test_bad_input_is_one_line(run: Run, study: StageStore, typed: str, said: str) -> None:
    StageStore(study.root.parent / "young").prepare()
    damaged = study.root.parent / "damaged"
    damaged.mkdir()
    (damaged / "study.json").write_text("{")
    with pytest.raises(InvalidInput, match=said):
        raise InvalidInput(complaint(run(*typed.split())))


@pytest.mark.parametrize("typed", ["search", "search s.toml --trials 0", "frnt small", "front small --format xml"])
def test_what_cannot_be_parsed_ends_with_usage(typed: str) -> None:
    result = CliRunner().invoke(cli.app, typed.split())
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert "Error: " in result.stderr


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(cli.app, ["--help"])
    for command in cli.COMMANDS:
        assert f"  {command.__name__} " in result.stdout


def test_a_question_is_answered_without_torch_or_ray(study: StageStore) -> None:
    code = (
        "import sys\n"
        "from orchestrator.cli import app\n"
        f"app(['front', {str(study.root)!r}, '--format', 'json'], standalone_mode=False)\n"
        "heavy = {'torch', 'ray', 'optuna', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert len(json.loads(found.stdout)) == len(Study(study.root).front())


def test_the_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator", "front", "nope", "--storage", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: nope: no study in ")
    assert ended.stderr.count("\n") == 1


def test_a_message_that_is_cut_short_ends_with_a_mark() -> None:
    assert first_line("x" * 100 + "\nmore") == "x" * 100
    assert first_line("x" * 101) == "x" * 99 + "…"
