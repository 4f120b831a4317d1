"""A stage that hangs ends as a record that says where, and so does its process."""

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import trial
from orchestrator.record import Failure, TrialSpec
from orchestrator.store import StageStore
from orchestrator.trial import TimeLimit, running
from orchestrator.trial.path import Setting
from orchestrator.trial.time_limit import EXIT_CODE, _minutes, watched

SpecOf = Callable[..., TrialSpec]

HOLDS_THE_INTERPRETER = """
import re
from orchestrator.trial import time_limit
time_limit.GRACE_SECONDS = 0.2
with time_limit.watched(time_limit.TimeLimit(seconds=0.2, hard=True), print):
    re.match(r"(a+)+$", "a" * 60 + "b")
"""
CANNOT_BE_RECORDED = """
import threading
from orchestrator.trial import time_limit
def expired(took, stack):
    raise OSError("storage is away")
with time_limit.watched(time_limit.TimeLimit(seconds=0.1), expired):
    threading.Event().wait()
"""


class Hung(Exception):
    """What a hung call raises here, where the process must not end with it."""


class Hang:
    """Stands in for anything that never returns, until its process is ended: that is, until end() is called."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self._ended = threading.Event()

    def end(self, code: int) -> None:
        self.codes.append(code)
        self._ended.set()

    def __call__(self, *given: Any, **options: Any) -> None:
        assert self._ended.wait(60)
        raise Hung


@pytest.fixture
def hang() -> Hang:
    return Hang()


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "study")


@pytest.fixture
def recorded(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> list[Failure]:
    """All that is recorded: here the hung call goes on, and its record is followed by another for the same stage."""
    seen: list[Failure] = []
    record = store.record_failure
    monkeypatch.setattr(store, "record_failure", lambda failure: (seen.append(failure), record(failure)))
    return seen


def loaded(spec: TrialSpec, patch: pytest.MonkeyPatch) -> TrialSpec:
    """The spec, whose data need no loading any more: the time of its trial goes by in its stages alone."""
    setting = Setting.of(spec)
    patch.setattr(Setting, "of", lambda *given: setting)
    return spec


def test_a_stage_that_hangs_is_a_record(
    store: StageStore, spec_of: SpecOf, recorded: list[Failure], hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.Trial, "_dense", hang)
    trial.run(loaded(spec_of(), monkeypatch), store, time_limit=TimeLimit(seconds=0.3, end=hang.end))
    failure = recorded[0]
    assert hang.codes == [EXIT_CODE]
    assert failure.reason == "timed_out"
    assert failure.message.startswith(f"the dense stage {failure.key[:12]} took longer than 0.005 minutes; it was at ")
    assert failure.message.endswith(" in __call__")
    assert "test_time_limit.py" in failure.traceback


@pytest.fixture
def timed_out(store: StageStore, spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch) -> TrialSpec:
    """A trial whose dense stage is recorded as hung."""
    hang, spec = Hang(), spec_of(iterations=1)
    with monkeypatch.context() as patch:
        patch.setattr(running.Trial, "_dense", hang)
        trial.run(loaded(spec, patch), store, time_limit=TimeLimit(seconds=0.3, end=hang.end))
    (failure,) = store.failures()
    store.record_failure(
        failure.model_copy(update={"reason": "timed_out", "message": "hung", "created": "2026-01-01T00:00:00"})
    )
    return spec


def test_a_stage_that_hung_is_not_tried_again(store: StageStore, timed_out: TrialSpec) -> None:
    limit = TimeLimit(seconds=60)
    found = trial.run(timed_out, store, time_limit=limit)
    assert found.failure is not None
    assert (found.failure.reason, found.failure.message) == ("timed_out", "hung")
    forgiving = replace(limit, forgiven=frozenset([found.failure.created]))
    assert len(trial.run(timed_out, store, time_limit=forgiving).computed) == 3


def test_without_a_limit_what_hung_is_tried_again(store: StageStore, timed_out: TrialSpec) -> None:
    assert len(trial.run(timed_out, store).computed) == 3


def test_data_that_hangs_is_a_record(
    store: StageStore, spec_of: SpecOf, recorded: list[Failure], hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Setting, "of", hang)
    trial.run(spec_of(), store, time_limit=TimeLimit(seconds=0.3, end=hang.end))
    assert recorded[0].message.startswith("loading the data took longer than 0.005 minutes; it was at ")


def test_a_block_in_time_is_left_alone(hang: Hang) -> None:
    with watched(TimeLimit(seconds=60, end=hang.end, hard=False), hang), watched(None, hang):
        pass
    assert hang.codes == []


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [(HOLDS_THE_INTERPRETER, 1, "Timeout (0:00:00.400000)!"), (CANNOT_BE_RECORDED, EXIT_CODE, "")],
)
def test_the_process_ends_whatever_happens(script: str, code: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stderr


def test_limits_are_said_in_minutes() -> None:
    assert [_minutes(seconds) for seconds in (60, 90, 3600)] == ["1 minute", "1.5 minutes", "60 minutes"]
