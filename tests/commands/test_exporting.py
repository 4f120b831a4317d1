"""`orchestrator export`: which point it takes, what it prints, and one line for whatever the user got wrong."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator import Study, cli, takeout, trial
from orchestrator.record import InvalidInput, Schedule, TrialRecord, TrialSpec, now
from orchestrator.store import StageStore

Run = Callable[..., Result]
FILES = ("README.md", "figures.json", "model.json", "weights.safetensors")
SCHEDULE = Schedule(epochs=1, learning_rate=0.05, batch_size=64)
SPEC = TrialSpec(
    model="cifarnet",
    dataset="digits",
    regularization_weight=0.01,
    pruning_ratio=0.4,
    iterations=1,
    dense=SCHEDULE,
    sparse=SCHEDULE,
    recovery=SCHEDULE,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study "small", of one short trial."""
    folder = tmp_path_factory.mktemp("results")
    assert trial.run(SPEC, StageStore(folder / "small")).failure is None
    return folder


@pytest.fixture
def run(home: Path) -> Run:
    def invoke(*typed: str) -> Result:
        return CliRunner().invoke(cli.app, ["export", "small", "--storage", str(home), *typed])

    return invoke


def test_the_point_within_the_limits_is_taken(run: Run, home: Path, tmp_path: Path) -> None:
    point = Study(home / "small").best(max_flops="500k")
    typed = f"--max-flops 500k --output {tmp_path / 'out'} --formats safetensors --latency-batch 2"
    result = run(*typed.split())
    assert (result.exit_code, result.stderr) == (0, "")
    printed = result.stdout.splitlines()
    assert printed[0] == "cifarnet on digits"
    facts = dict(line.split("  ", 1) for line in printed[3:-4])
    assert facts["key"].strip() == point.key
    assert facts["accuracy"].strip() == f"{point.accuracy:.4f}"
    assert facts["test_accuracy"].strip().endswith("(of 359 pictures, measured just now, once)")
    assert "; dense " in facts["latency_ms"]
    assert facts["latency_ms"].endswith("(a batch of 2, 1 threads)")
    assert printed[-4:] == [f"wrote {tmp_path / 'out' / name}" for name in FILES]


def test_weights_that_were_collected_are_computed_again(home: Path, tmp_path: Path) -> None:
    study = Study(shutil.copytree(home / "small", tmp_path / "small"))
    point = study.best(max_flops="500k")
    stages = tuple(study.stages()["key"])
    study.store.record_trial(TrialRecord(index=0, spec=SPEC, stages=stages, created=now()))
    study.store.collect(dict.fromkeys(stages, 0))
    command = ["export", str(study.path), "--key", point.key, "--formats", "safetensors", "--output"]
    done = CliRunner().invoke(cli.app, [*command, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"the weights of {point.key[:12]} were collected; computing them again" in done.stderr
    again = CliRunner().invoke(cli.app, [*command, str(tmp_path / "again")])
    assert (again.exit_code, again.stderr) == (0, "")
    weights = [(folder / "weights.safetensors").read_bytes() for folder in (tmp_path / "out", tmp_path / "again")]
    own = home / "small" / "stages" / point.key / "weights.safetensors"
    assert weights == [own.read_bytes()] * 2


@pytest.mark.parametrize("command", [["export", "--key", "KEY"], ["best", "--max-flops", "500k"]], ids=lambda c: c[0])
def test_collected_weights_are_computed_by_allowed_code_alone(home: Path, tmp_path: Path, command: list[str]) -> None:
    store = StageStore(shutil.copytree(home / "small", tmp_path / "small"))
    point = Study(store.root).best(max_flops="500k")
    spec = SPEC.model_copy(update={"model": "evil:network"})
    store.record_trial(TrialRecord(index=0, spec=spec, stages=(point.key,), created=now()))
    store.collect({point.key: 0})
    typed = [point.key if word == "KEY" else word for word in command]
    done = CliRunner().invoke(cli.app, [*typed, "--output", str(tmp_path / "out"), str(store.root)])
    assert (done.exit_code, "allow it: --allow-code evil:network" in done.stderr) == (2, True)
    assert "computing them again" not in done.stderr


def test_best_ends_with_the_command_that_takes_the_model_out(home: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["best", str(home / "small"), "--min-accuracy", "0.05"])
    command = shlex.split(result.stdout.splitlines()[-1].partition(": orchestrator ")[2])
    command[command.index("DIR")] = str(tmp_path / "out")
    done = CliRunner().invoke(cli.app, [*command, "--formats", "safetensors"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "README.md").is_file()


def test_what_is_typed_is_passed_on(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def take_out(study: Study, key: str, output: Path, **options: Any) -> None:
        asked.append({"key": key, "output": output, **options})
        raise InvalidInput("enough")

    monkeypatch.setattr(takeout, "take_out", take_out)
    typed = (
        "--key ab --confirmed --formats onnx,pt2 --allow-code m:f --allow-code m:g --data-root pictures --output out"
    )
    assert run(*typed.split()).stderr == "error: enough\n"
    assert asked == [
        {
            "key": "ab",
            "output": Path("out"),
            "formats": ["onnx", "pt2"],
            "data_root": Path("pictures"),
            "latency_batch": 0,
            "allow_code": ["m:f", "m:g"],
            "confirmed": True,
        }
    ]


def test_a_confirmed_model_is_printed_as_one(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    take_out = takeout.take_out
    confirmation = takeout.figures.Confirmation(
        point="ab", seeds=3, test_accuracy_mean=0.5, test_accuracy_deviation=0.01, optimism=0.0, with_validation=False
    )

    def confirmed(*given: Any, **options: Any) -> takeout.Figures:
        known = {"confirmation": confirmation, "test_accuracy_by": "confirm"}
        return take_out(*given, **options).model_copy(update=known)

    monkeypatch.setattr(takeout, "take_out", confirmed)
    printed = run(*f"--max-flops 1M --formats safetensors --output {tmp_path / 'out'}".split()).stdout
    assert "measured when it was confirmed)" in printed
    assert "over its seeds  0.5000 ± 0.0100 (3)" in printed


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "give --max-flops, --min-accuracy, both, or --key"),
        ("--key ab --max-flops 5M", "give either --key or limits, not both"),
        ("--max-flops 5X", "--max-flops is '5X'; give a number above 0"),
        ("--max-flops 1", "small: no point has at most 1 flops"),
        ("--key xyz", "no points have a key that starts with 'xyz'"),
        ("--max-flops 1M --formats pickle", "formats: there is no 'pickle'; allowed are safetensors, onnx, pt2"),
    ],
)
def test_a_mistake_is_one_line(run: Run, tmp_path: Path, typed: str, said: str) -> None:
    result = run(*typed.split(), "--output", str(tmp_path / "out"))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []
