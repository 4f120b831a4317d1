"""What the tests of the export share: a short study on digits, and a model that was taken out of it."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import Study
from orchestrator.takeout import FORMATS, take_out

sys.path.insert(0, str(Path(__file__).parent))

from short_study import INSTALLED, Taken, searched


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
