"""One thread; and the small networks beside the tests are found by them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


from small_networks import FILES, untaught_agent


@pytest.fixture(autouse=True, scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What methods read from a file: an agent that was never taught, and may be asked about any network."""
    FILES["conditional_agent"] = {"agent": str(untaught_agent(tmp_path_factory.mktemp("agent")))}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
