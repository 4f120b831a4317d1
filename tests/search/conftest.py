"""What the tests of the search share: a small space, and a trial that takes no time."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.search.space import SearchSpace

SPACE = """
[trial]
model = "fake"
dataset = "digits"
[trial.dense]
epochs = 1
learning_rate = 0.1
[trial.sparse]
epochs = 1
learning_rate = 0.1
[trial.recovery]
epochs = 1
learning_rate = 0.1
[search]
regularization_weight = { low = 1e-3, high = 1e-1, log = true, grid = 5 }
pruning_ratio = { low = 0.2, high = 0.5, step = 0.05 }
iterations = { low = 2, high = 4 }
[budget]
trials = 12
[proposals]
parallel = 3
startup = 4
"""

sys.path.insert(0, str(Path(__file__).parent))  # workers are told the driver's path, and find fake_trial on it


@pytest.fixture
def space_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the small space, with pieces of its text replaced."""

    def write(name: str = "small", **replaced: str) -> Path:
        text = SPACE
        for old, new in replaced.items():
            text = text.replace(old, new)
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def space(space_file: Callable[..., Path]) -> SearchSpace:
    return SearchSpace.read(space_file())
