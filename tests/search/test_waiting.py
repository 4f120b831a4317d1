"""Which proposal is handed out next: one whose first sparse stage nobody else is about to compute."""

import pytest

from orchestrator.search.space import SearchSpace
from orchestrator.search.waiting import Waiting


@pytest.fixture
def waiting(space: SearchSpace) -> Waiting:
    """0 and 1 share their weight, 2 and 3 another."""
    queue = Waiting()
    for index, (weight, ratio) in enumerate([(0.1, 0.2), (0.1, 0.3), (0.01, 0.2), (0.01, 0.3)]):
        queue.add(index, space.spec({"regularization_weight": weight, "pruning_ratio": ratio, "iterations": 3}))
    return queue


def test_trials_of_another_weight_go_first(waiting: Waiting) -> None:
    assert [waiting.take(), waiting.take()] == [0, 2]


def test_a_shared_stage_that_is_ready_holds_nobody_back(waiting: Waiting) -> None:
    assert waiting.take() == 0
    waiting.ready(0)
    assert [waiting.take(), waiting.take(), waiting.take()] == [1, 2, 3]
    assert len(waiting) == 0


def test_where_all_would_wait_the_first_goes_on(waiting: Waiting) -> None:
    assert [waiting.take() for _ in range(4)] == [0, 2, 1, 3]
