"""An exported folder: whole or absent, in every form the same network, with what its card says of it true."""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from short_study import INSTALLED, Taken, searched

import orchestrator
from orchestrator import Study
from orchestrator.network import export, measure
from orchestrator.network.artifact import CodeNotAllowed, read
from orchestrator.network.export import ExportFailed
from orchestrator.record import InvalidInput, canonical_json
from orchestrator.takeout import Figures, choosing, take_out, taking
from orchestrator.training.datasets import load
from orchestrator.training.loop import evaluate

FILES = ["README.md", "figures.json", "model.json", "model.onnx", "model.pt2", "weights.safetensors"]
DIGITS = load("digits")
CODE = ["own_things:network", "own_things:data"]

KILLED = """
import os, signal, sys
from orchestrator import Study
from orchestrator.takeout import take_out, taking

def killed(made, staging):
    assert (staging / "weights.safetensors").is_file()
    os.kill(os.getpid(), signal.SIGKILL)

taking.FORMATS["pt2"] = killed
take_out(Study(sys.argv[1]), sys.argv[2], sys.argv[3], formats=["safetensors", "pt2"])
"""


def refusal(study: Study, key: str, folder: Path, **options: Any) -> str:
    """The one line of an export that writes nothing."""
    there = sorted(folder.parent.iterdir())
    with pytest.raises(InvalidInput) as caught:
        take_out(study, key, folder, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(folder.parent.iterdir()) == there
    return str(caught.value)


# --- what is in the folder ---


def test_the_folder_holds_every_form_and_the_card(taken: Taken) -> None:
    assert sorted(path.name for path in taken.folder.iterdir()) == [
        name for name in FILES if INSTALLED or name != "model.onnx"
    ]
    assert Figures.model_validate_json((taken.folder / "figures.json").read_bytes()) == taken.figures
    for file in taken.figures.files:
        content = (taken.folder / file.file).read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert file.difference <= 1e-5
        assert file.test_accuracy == taken.figures.test_accuracy


def test_the_model_is_the_one_that_the_search_measured(taken: Taken, trained: Study, pruned_key: str) -> None:
    point, figures = trained.point(pruned_key), taken.figures
    model = orchestrator.load(taken.folder)
    assert figures.accuracy == point.accuracy == evaluate(model, DIGITS, "validation").accuracy
    assert figures.test_accuracy == evaluate(model, DIGITS, "test").accuracy
    assert figures.test_accuracy_by == "export"
    assert (figures.flops, figures.params) == (point.flops, point.params)
    assert figures.flops == measure(model, torch.zeros(1, 1, 8, 8)).flops == sum(x.flops for x in figures.layers)
    assert figures.dense_flops == sum(layer.dense_flops for layer in figures.layers)
    assert figures.flops_kept == point.flops_kept
    assert figures.dense_params == trained.points()["params"].max()
    assert figures.dense_accuracy == trained.point(figures.origin.stages[0].key).accuracy


def test_the_figures_say_where_the_model_comes_from(taken: Taken, trained: Study, pruned_key: str) -> None:
    figures, origin = taken.figures, taken.figures.origin
    assert [stage.kind for stage in origin.stages] == ["dense", "sparse", "cut"]
    assert (origin.study, origin.key, origin.points) == ("small", pruned_key, 2)
    assert origin.stages[-1].key == pruned_key
    assert origin.stages[0].parameters["data"]["fingerprint"] == figures.data.fingerprint == DIGITS.fingerprint
    assert (figures.regularization_weight, figures.pruning_ratio, figures.iterations) == (0.01, 0.6, 1)
    assert (figures.data.classes, figures.data.test) == (10, len(DIGITS.test))
    assert origin.exported_with["torch"] == origin.trained_with["torch"] == torch.__version__
    first, *_, last = figures.layers
    assert (first.name, first.dense_channels, last.channels) == ("conv1", 32, 10)
    assert first.channels == orchestrator.load(taken.folder).conv1.out_channels
    assert figures.latency is not None
    assert (figures.latency.pruned.batch, figures.latency.dense.batch) == (4, 4)
    assert figures.search_latency is not None
    assert figures.search_latency.batch == 4


def test_the_files_say_how_pictures_are_prepared(taken: Taken) -> None:
    described, known = read(taken.folder), taken.figures.preprocessing
    assert described.preprocessing == known
    assert described.test_accuracy == taken.figures.test_accuracy
    assert (known.mean, known.std) == (DIGITS.mean, DIGITS.std)
    assert known.prepared == "scikit-learn's greys, 0 to 16, times 255 / 16, rounded"
    told = {"preprocessing": "", "model": ""}
    torch.export.load(taken.folder / "model.pt2", extra_files=told)
    said = json.loads(told["preprocessing"])
    assert (said["input_shape"], said["classes"], said["mean"]) == ([1, 8, 8], 10, list(DIGITS.mean))
    assert json.loads(told["model"])["test_accuracy"] == taken.figures.test_accuracy
    if INSTALLED:
        import onnxruntime

        session = onnxruntime.InferenceSession(taken.folder / "model.onnx", providers=["CPUExecutionProvider"])
        assert session.get_modelmeta().custom_metadata_map == told


def test_the_dense_model_can_be_taken_too(trained: Study, tmp_path: Path) -> None:
    points = trained.points()
    key = str(points.loc[points["iteration"] == 0, "key"].item())
    figures = take_out(trained, key[:10], tmp_path / "dense", formats=["safetensors"])
    assert (figures.flops_kept, figures.method, figures.iterations) == (1.0, None, 0)
    assert figures.latency is None
    assert (tmp_path / "dense" / "README.md").read_text().startswith("# `cifarnet`, not pruned\n")


# --- the user's own code ---


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Study:
    changes = {"model": CODE[0], "dataset": CODE[1], "pruning_ratio": 0.3, "latency_batch": 0}
    return searched(tmp_path_factory.mktemp("own") / "own", **changes)


def test_a_network_and_data_of_the_users_are_named_in_the_card(own: Study, tmp_path: Path) -> None:
    key = own.best(max_flops="1G").key
    figures = take_out(own, key, tmp_path / "own", formats=["safetensors", "pt2"], allow_code=CODE)
    digest = hashlib.sha256(Path(__file__).with_name("own_things.py").read_bytes()).hexdigest()
    assert [(code.reference, code.sha256) for code in figures.code] == [(reference, digest) for reference in CODE]
    card = (tmp_path / "own" / "README.md").read_text()
    assert "`own_things:network`, SHA-256 of its file" in card
    assert """orchestrator.load(".", allow_code=['own_things:network'])""" in card
    with pytest.raises(CodeNotAllowed, match="own_things:network, code that loading would run"):
        orchestrator.load(tmp_path / "own")


@pytest.mark.parametrize("missing", CODE)
def test_code_is_run_by_leave_alone(own: Study, tmp_path: Path, missing: str) -> None:
    key, allowed = own.best(max_flops="1G").key, [reference for reference in CODE if reference != missing]
    said = refusal(own, key, tmp_path / "out", allow_code=allowed)
    assert said.endswith(f"needs {missing}, code that taking it out would run; if you trust it, allow it: "
                         f"--allow-code {missing}")  # fmt: skip


# --- whole or not at all ---


def test_an_export_that_is_killed_leaves_nothing_under_the_name(
    trained: Study, pruned_key: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    command = [sys.executable, "-c", KILLED, str(trained.path), pruned_key, str(folder)]
    root = str(Path(orchestrator.__file__).parents[1])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, timeout=400, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".model.")
    assert left.name.endswith(".part")
    assert not (left / "README.md").exists()
    take_out(trained, pruned_key, folder, formats=["safetensors"])
    assert (folder / "README.md").is_file()


def test_a_form_that_computes_something_else_ends_the_export(
    trained: Study, pruned_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = export.TORCH_EXPORT

    def shifted(path: Path) -> export.Answer:
        answer = form.read(path)
        return lambda pictures: [out + 1 for out in answer(pictures)]

    monkeypatch.setattr(export, "TORCH_EXPORT", replace(form, read=shifted))
    with pytest.raises(ExportFailed, match=r"model.pt2: differs from the network by .*; 1e-05 is allowed"):
        take_out(trained, pruned_key, tmp_path / "out", formats=["safetensors", "pt2"])
    assert list(tmp_path.iterdir()) == []


def test_weights_that_give_something_else_end_the_export(
    trained: Study, pruned_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "TOLERANCE", -1.0)
    said = refusal(trained, pruned_key, tmp_path / "out", formats=["safetensors"])
    assert "weights.safetensors: differs from the network by 0.0e+00; -1 is allowed" in said


def test_a_folder_with_other_content_is_left_alone(trained: Study, pruned_key: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    said = refusal(trained, pruned_key, tmp_path / "out")
    assert said == f"{tmp_path / 'out'}: is not empty; give a folder that is new"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    take_out(trained, pruned_key, tmp_path / "empty", formats=["safetensors"])
    assert (tmp_path / "empty" / "model.json").is_file()


# --- what does not fit ---


def test_missing_packages_are_named_before_anything_is_done(
    trained: Study, pruned_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert refusal(trained, pruned_key, tmp_path / "out") == (
        ".onnx files need onnx: pip install 'pruning-orchestrator[export]'; or leave them out: "
        "--formats safetensors,pt2"
    )


@pytest.mark.parametrize(
    ("formats", "said"),
    [
        (["pickle"], "formats: there is no 'pickle'; allowed are safetensors, onnx, pt2"),
        ([], "formats: none is given; allowed are safetensors, onnx, pt2"),
    ],
)
def test_formats_are_chosen_from_those_that_there_are(
    trained: Study, pruned_key: str, tmp_path: Path, formats: list[str], said: str
) -> None:
    assert refusal(trained, pruned_key, tmp_path / "out", formats=formats) == said


def test_other_data_under_the_same_name_is_refused(
    trained: Study, pruned_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "load", lambda name, root: replace(DIGITS, fingerprint="f" * 64))
    said = refusal(trained, pruned_key, tmp_path / "out", data_root="pictures")
    assert said == (
        "data set digits in pictures: its fingerprint is ffffffffffff; "
        f"the model was trained on {DIGITS.fingerprint[:12]}: other pictures, or another split"
    )


def forge(folder: Path, **fields: Any) -> None:
    """Change a stage's model.json, with digests that fit."""
    path = folder / "model.json"
    told = json.loads(path.read_text()) | fields
    del told["digest"]
    told["digest"] = hashlib.sha256(canonical_json(told).encode()).hexdigest()
    path.write_text(json.dumps(told))
    path = folder / "stage.json"
    stage = json.loads(path.read_text())
    stage["files"]["model.json"] = hashlib.sha256((folder / "model.json").read_bytes()).hexdigest()
    path.write_text(json.dumps(stage))


def test_claims_are_counted_again(copied: Callable[[str], Study], pruned_key: str, tmp_path: Path) -> None:
    study = copied("forged")
    forge(Path(str(study.path)) / "stages" / pruned_key, flops=1)
    said = refusal(study, pruned_key, tmp_path / "out", formats=["safetensors"])
    assert said.startswith("model.json: flops is 1; the network has ")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("weights.safetensors", "the weights of this point were not kept"),
        ("model.json", "was made before there was model.json, which an export needs"),
    ],
)
def test_what_was_not_kept_is_said(
    copied: Callable[[str], Study], pruned_key: str, tmp_path: Path, file: str, said: str
) -> None:
    study = copied(file)
    folder = Path(str(study.path)) / "stages" / pruned_key
    (folder / file).unlink()
    stage = json.loads((folder / "stage.json").read_text())
    del stage["files"][file]
    (folder / "stage.json").write_text(json.dumps(stage))
    assert refusal(study, pruned_key, tmp_path / "out").endswith(said)


def test_a_key_that_there_is_not(trained: Study, tmp_path: Path) -> None:
    assert "no points have a key that starts with 'xyz'" in refusal(trained, "xyz", tmp_path / "out")
