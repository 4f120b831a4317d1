"""What the tests of a trial share: short trials on digits, and one that is finished. One thread."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from orchestrator import trial
from orchestrator.record import TrialSpec
from orchestrator.store import StageStore

sys.path.insert(0, str(Path(__file__).parent))

from short_trials import Finished, make_spec


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def spec_of() -> Callable[..., TrialSpec]:
    """make_spec(**changes)."""
    return make_spec


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    torch.set_num_threads(1)
    spec, store = make_spec(), StageStore(tmp_path_factory.mktemp("trial") / "study")
    return Finished(spec=spec, store=store, outcome=trial.run(spec, store))
