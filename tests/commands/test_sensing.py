"""`orchestrator sensitivity` from end to end on digits: what it measures, prints, keeps, and refuses."""

import csv
import json
import os
import shutil
import signal
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from orchestrator import cli, trial
from orchestrator.collector.sensitivity import Sensitivity
from orchestrator.network import CostTable, Plan, cut
from orchestrator.record import Failure, Sensed
from orchestrator.search import SearchSpace
from orchestrator.store import StageStore
from orchestrator.training.datasets import load
from orchestrator.training.loop import Diverged, evaluate, reestimate_norm_statistics_
from orchestrator.trial import running
from orchestrator.trial.sensing import Sensor

SPACE = """
[trial]
model = "cifarnet"
dataset = "digits"
iterations = 1
pruning_ratio = 0.3
method_options = {{ }}
{trial}
[trial.dense]
epochs = 1
learning_rate = 0.1
[trial.sparse]
epochs = 1
learning_rate = 0.05
[trial.recovery]
epochs = 0
learning_rate = 0.02
[search]
regularization_weight = {{ choices = [0.0, 0.01] }}
{search}
"""
Run = Callable[..., Result]


def space_file(folder: Path, *, trial: str = "", search: str = "") -> Path:
    path = folder / "tiny.toml"
    path.write_text(SPACE.format(trial=trial, search=search))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the command has run once, at two shares."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sensitivity")
    path = space_file(folder)
    result = invoke(folder, str(path), "--shares", "0.5,0.25")
    assert result.exit_code == 0, result.output
    (folder / "printed.txt").write_text(result.stdout)
    return folder


def invoke(folder: Path, *arguments: str) -> Result:
    output = [] if "--output" in arguments else ["--output", str(folder / "found.svg")]
    return CliRunner().invoke(cli.app, ["sensitivity", *arguments, *output, "--storage", str(folder / "results")])


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def store_of(folder: Path) -> StageStore:
    return StageStore(folder / "results" / "tiny")


def found_in(folder: Path, name: str = "found") -> Sensitivity:
    return Sensitivity.model_validate_json((folder / f"{name}.json").read_text())


def test_table(trained: Path) -> None:
    printed = (trained / "printed.txt").read_text().splitlines()
    found = found_in(trained)
    (key,) = store_of(trained).keys()
    assert printed[0] == f"the dense network of tiny: looked up in {trained}/results/tiny, or trained"
    assert printed[1] == f"trained: {key[:12]}, accuracy {found.accuracy:.4f}"
    assert printed[2] == "3 groups x 2 shares: 6 measurements"
    assert printed[3].startswith("[2/6] conv1: ")
    assert printed[6] == "cifarnet on digits: accuracy with a share of one group's channels gone, nothing trained"
    assert printed[7:9] == ["accuracy: top-1 on the validation split", f"dense: {found.accuracy:.4f}"]
    assert printed[9].split() == ["group", "channels", "0.25", "0.5"]
    rows = [line.split() for line in printed[10:13]]
    assert [row[:2] for row in rows] == [["conv1", "32"], ["conv2", "32"], ["conv3", "64"]]
    assert [float(cell) for row in rows for cell in row[2:]] == pytest.approx(
        [one.accuracy for one in found.measured], abs=5e-5
    )
    assert printed[13:] == [f"wrote {trained}/found.{ending}" for ending in ("svg", "csv", "json")]


def test_files(trained: Path) -> None:
    found = found_in(trained)
    with (trained / "found.csv").open() as file:
        rows = [Sensed.model_validate(row, strict=False) for row in csv.DictReader(file)]
    assert tuple(rows) == found.measured
    assert [(row.group, row.share, row.kept) for row in rows[:3]] == [
        ("conv1", 0.25, 24),
        ("conv1", 0.5, 16),
        ("conv2", 0.25, 24),
    ]
    assert (trained / "found.svg").read_text().count("conv3") == 1


def spec_of(folder: Path) -> Any:
    return next(SearchSpace.read(folder / "tiny.toml").corners())


@pytest.mark.parametrize("statistics", [False, True])
def test_what_is_measured_is_the_network_that_was_cut(copied: Path, statistics: bool) -> None:
    """Smallest filter norms first, accuracy on the validation split; all of it done here step by step."""
    arguments = ["--output", str(copied / "again.png"), *(["--statistics"] if statistics else [])]
    result = invoke(copied, "tiny", "--groups", "conv2", "--shares", "0.5", *arguments)
    assert result.exit_code == 0, result.output
    (one,) = found_in(copied, "again").measured
    store = store_of(copied)
    (key,) = store.keys()
    network = trial.rebuild(spec_of(copied), store, key)
    norms = network.model.conv2.weight.abs().sum((1, 2, 3))
    kept = norms.argsort(descending=True)[:16].sort().values.tolist()
    plan = Plan(kept={"conv2": tuple(kept)})
    small = cut(network.model, network.coupling, plan)
    if statistics:
        reestimate_norm_statistics_(small, load("digits"), seed=int(key[:16], 16) >> 1)
    assert one.accuracy == evaluate(small, load("digits"), "validation").accuracy
    assert one.flops == CostTable(network.coupling.restrict(plan)).flops()
    assert one.flops_kept == one.flops / CostTable(network.coupling).flops()


def test_the_dense_stage_is_the_studys(copied: Path) -> None:
    """A search over the space trains it no more; and the command finds what a search has trained."""
    store = store_of(copied)
    (key,) = store.keys()
    outcome = trial.run(spec_of(copied), store)
    assert outcome.reused == (key,)
    assert outcome.failure is None
    assert json.loads((copied / "results/tiny/study.json").read_text())["name"] == "tiny"


@pytest.mark.parametrize("what", ["tiny", "tiny.toml"])
def test_what_was_measured_is_not_measured_again(copied: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = found_in(copied)
    calls = []
    measure = Sensor.measure

    def watched(sensor: Sensor, *place: Any) -> Sensed:
        calls.append(place)
        return measure(sensor, *place)

    monkeypatch.setattr(Sensor, "measure", watched)
    name = str(copied / what) if what.endswith(".toml") else what
    result = invoke(copied, name, "--shares", "0.25,0.5,0.75", "--groups", "conv[12]")
    assert result.exit_code == 0, result.output
    assert [(group.name, share) for group, share in calls] == [("conv1", 0.75), ("conv2", 0.75)]
    assert "2 groups x 3 shares: 6 measurements, 4 of them measured before" in result.stdout
    assert "found: " in result.stdout
    after = found_in(copied)
    assert after.measured[:6] == before.measured  # conv3's too, which were not asked for
    with (copied / "found.csv").open() as file:
        assert [row["group"] for row in csv.DictReader(file)] == ["conv1"] * 3 + ["conv2"] * 3


def test_ctrl_c_keeps_what_was_measured(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = found_in(copied)
    (copied / "found.json").unlink()
    measure, calls = Sensor.measure, []

    def interrupted(sensor: Sensor, *place: Any) -> Sensed:
        calls.append(place)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return measure(sensor, *place)

    monkeypatch.setattr(Sensor, "measure", interrupted)
    stopped = invoke(copied, "tiny", "--shares", "0.25,0.5")
    assert stopped.exit_code == 130
    last = f"stopped by SIGINT; 2 of 6 measurements are in {copied}/found.json; the same command goes on from here"
    assert stopped.stdout.splitlines()[-1] == last
    assert found_in(copied).measured == expected.measured[:2]
    done = invoke(copied, "tiny", "--shares", "0.25,0.5")
    assert done.exit_code == 0, done.output
    assert len(calls) == 3 + 4
    assert found_in(copied) == expected


def test_ctrl_c_before_anything_was_measured(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    (copied / "found.json").unlink()
    monkeypatch.setattr(running.Trial, "pass_", interrupted)
    stopped = invoke(copied, "tiny")
    assert stopped.exit_code == 130
    assert stopped.stdout.splitlines()[-1].startswith("stopped by SIGINT; nothing was measured; the same command goes")
    assert not (copied / "found.json").exists()


def complaint(result: Result) -> str:
    assert result.exit_code == 2, result.output
    return result.stderr.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shares", "0.5,1"], "--shares is '0.5,1'; give numbers between 0 and 1, such as 0.1,0.3,0.5"),
        (["--shares", "half"], "--shares is 'half'; give numbers between 0 and 1, such as 0.1,0.3,0.5"),
        (["--groups", "conv4"], "--groups: no group is 'conv4'; did you mean conv"),
        (["--groups", "x"], "--groups: no group is 'x'; there are conv1, conv2, conv3"),
        (
            ["--method", "pfec"],
            "method is 'pfec', which does not rank all channels by one score; take another, such",
        ),
        (["--method", "nobody"], "method is 'nobody'; it must be one of oicsr, "),
        (["--method", "slimming"], "found.json: was measured with another method; give another --output"),
        (["--statistics"], "found.json: was measured with another norm statistics; give another --output"),
        (["--device", "cuda:99"], "--device is 'cuda:99', which this machine does not have"),
        (["--device", "toaster"], "--device is 'toaster', which this machine does not have"),
        (["--output", "found.pdf"], "found.pdf: ends in '.pdf'; a picture ends in .svg or .png"),
        (["--output", "no/such/folder/found.svg"], "found.json: cannot be written (No such file or directory)"),
    ],
)
def test_mistakes(trained: Path, arguments: list[str], message: str) -> None:
    if arguments[0] == "--output":
        arguments = ["--output", str(trained / arguments[1])]
    assert message in complaint(invoke(trained, "tiny", *arguments))


def test_a_record_that_is_none(copied: Path) -> None:
    (copied / "found.json").write_text("{}")
    assert "found.json: cannot be read as a sensitivity; give another --output" in complaint(invoke(copied, "tiny"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"cifarnet"', '"cifarnt"', "tiny.toml: unknown model 'cifarnt'; did you mean cifarnet"),
        ('"digits"', '"digit"', "tiny.toml: unknown data set 'digit'"),
        ("iterations = 1", 'iterations = 1\nweights = "none.pt"', "tiny.toml: weights: none.pt: no such file"),
    ],
)
def test_what_is_wrong_in_a_space_file_names_it(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = space_file(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    assert complaint(invoke(tmp_path, str(path))).startswith(message)
    assert not (tmp_path / "results").exists()


def test_an_unknown_study(trained: Path) -> None:
    assert "nobody" in complaint(invoke(trained, "nobody"))


@pytest.mark.parametrize(
    ("search", "name"),
    [('model = { choices = ["cifarnet", "resnet20"] }', "model"), ("dense.epochs = { low = 1, high = 2 }", "dense.ep")],
)
def test_a_dense_network_that_varies(tmp_path: Path, search: str, name: str) -> None:
    text = SPACE.format(trial="", search=search)
    field = search.partition(" ")[0]
    if field == "model":
        text = text.replace('model = "cifarnet"\n', "")
    else:
        text = text.replace("epochs = 1\nlearning_rate = 0.1", "learning_rate = 0.1")
    (tmp_path / "varied.toml").write_text(text)
    said = complaint(invoke(tmp_path, str(tmp_path / "varied.toml")))
    assert f"varied.toml: {name}" in said
    assert "varies; sensitivity is of one dense network: give" in said


def test_a_space_of_another_study(copied: Path) -> None:
    path = space_file(copied, trial="seed = 3")
    assert "is the study of another space: trial.seed is 0 there, 3 in tiny.toml" in complaint(
        invoke(copied, str(path))
    )


def test_a_merged_study_has_no_dense_network(copied: Path) -> None:
    path = copied / "results/tiny/study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"merged": []}))
    assert "tiny: was merged of several studies; give sensitivity one of these" in complaint(invoke(copied, "tiny"))


def test_a_study_that_no_search_made_is_refused_in_the_commands_name(copied: Path) -> None:
    (copied / "results/tiny/study.json").unlink()
    said = complaint(invoke(copied, "tiny"))
    assert said.endswith("study.json: there is no definition; sensitivity needs a study that search has made")


def test_code_of_a_study_is_run_if_it_is_allowed(copied: Path) -> None:
    path = copied / "results/tiny/study.json"
    study = json.loads(path.read_text())
    study["definition"]["trial"]["model"] = "own_models:small"
    path.write_text(json.dumps(study))
    said = complaint(invoke(copied, "tiny"))
    assert "if you trust it, allow it: --allow-code own_models:small" in said


def test_residual_streams_have_to_be_asked_for(tmp_path: Path) -> None:
    path = space_file(tmp_path)
    path.write_text(path.read_text().replace('"cifarnet"', '"resnet20"').replace("epochs = 1\nl", "epochs = 0\nl"))
    asked = str(path), "--groups", "conv", "--shares", "0.5"
    assert "--groups: conv is a residual stream; --residual-streams lets it lose channels" in complaint(
        invoke(tmp_path, *asked)
    )
    result = invoke(tmp_path, *asked, "--residual-streams")
    assert result.exit_code == 0, result.output
    assert [one.group for one in found_in(tmp_path).measured] == ["conv"]
    whole = invoke(tmp_path, str(path), "--shares", "0.9")
    assert "left whole, as residual streams, without --residual-streams: conv\n" in whole.stdout
    assert len({one.group for one in found_in(tmp_path).measured}) == 9 + 1


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("one", "--groups: one has one channel, and cannot lose channels"),
        (None, "no group of this network may lose ch"),
    ],
)
def test_a_network_without_groups(tmp_path: Path, groups: str | None, message: str) -> None:
    path = space_file(tmp_path)
    path.write_text(
        path.read_text().replace('"cifarnet"', f'"{__name__}:single"').replace("epochs = 1\nl", "epochs = 0\nl")
    )
    assert message in complaint(invoke(tmp_path, str(path), *(["--groups", groups] if groups else [])))


def single(classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """A network of one channel."""
    parts = {"one": nn.Conv2d(1, 1, 3), "flat": nn.Flatten(), "head": nn.Linear(36, classes)}
    return nn.Sequential(OrderedDict(parts))


def test_a_dense_network_that_cannot_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*arguments: Any) -> None:
        raise Diverged("the loss became nan in epoch 1, step 2")

    monkeypatch.setattr(running.Trial, "make", diverge)
    said = complaint(invoke(tmp_path, str(space_file(tmp_path))))
    assert said == "the dense network cannot be trained: the loss became nan in epoch 1, step 2"
    (failure,) = store_of(tmp_path).failures()
    assert isinstance(failure, Failure)
