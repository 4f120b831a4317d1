"""What the tests of the export share: a short study on digits, and a model that was taken out of it."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from orchestrator import Study, trial
from orchestrator.record import Schedule, TrialSpec
from orchestrator.store import StageStore
from orchestrator.takeout import FORMATS, Figures, take_out

sys.path.insert(0, str(Path(__file__).parent))

INSTALLED = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
SPEC = {
    "model": "cifarnet",
    "dataset": "digits",
    "regularization_weight": 0.01,
    "pruning_ratio": 0.6,
    "iterations": 1,
    "latency_batch": 4,
    "dense": Schedule(epochs=3, learning_rate=0.1, batch_size=64),
    "sparse": Schedule(epochs=1, learning_rate=0.05, batch_size=64),
    "recovery": Schedule(epochs=1, learning_rate=0.02, batch_size=64),
}


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A folder that was written, and what take_out returned. Nobody writes into it."""

    folder: Path
    figures: Figures


def searched(folder: Path, **changes: object) -> Study:
    """A study of one trial."""
    torch.set_num_threads(1)
    outcome = trial.run(TrialSpec.model_validate(SPEC | changes), StageStore(folder))
    assert outcome.failure is None
    return Study(folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return searched(tmp_path_factory.mktemp("results") / "small")


@pytest.fixture(scope="session")
def pruned_key(trained: Study) -> str:
    points = trained.points()
    return str(points.loc[points["iteration"] == 1, "key"].item())


@pytest.fixture
def copied(trained: Study, tmp_path: Path) -> Callable[[str], Study]:
    """A copy of the study under any name, which may be harmed."""

    def copy(name: str) -> Study:
        return Study(shutil.copytree(trained.path, tmp_path / name))

    return copy


@pytest.fixture(scope="session")
def taken(trained: Study, pruned_key: str, tmp_path_factory: pytest.TempPathFactory) -> Taken:
    folder = tmp_path_factory.mktemp("exported") / "model"
    formats = [form for form in FORMATS if INSTALLED or form != "onnx"]
    figures = take_out(trained, pruned_key, folder, formats=formats, latency_batch=4)
    return Taken(folder=folder, figures=figures)
