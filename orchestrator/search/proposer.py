"""What Ray Tune asks for settings: a Searcher over the study's proposals. Knows of Tune; Proposals does not."""

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ray.tune.search import Searcher

from orchestrator.files import StorageFault, reason_of
from orchestrator.record import Failure, FailureReason, Outcome, Point, TrialRecord, canonical_json, now, whereabouts
from orchestrator.search.proposals import Proposal, Result
from orchestrator.store import StageStore

SPEC, INDEX, FRONTIER = "spec", "index", "frontier"  # in a trial's config
ENDED = "ended"  # in the last row of a trial, and in no other

OnEnd = Callable[[TrialRecord, Sequence[Point], Mapping[str, int]], None]


def last_row(outcome: Outcome) -> dict[str, Any]:
    """What a worker reports when a trial has ended. Its points lie in the store; here are their keys."""
    failure = outcome.failure
    return {
        ENDED: True,
        "keys": [point.key for point in outcome.points],
        "failure": None if failure is None else f"{failure.reason}: {failure.message}",
        "stopped": outcome.stopped,
        "stages": list(outcome.stages),
        "computed": list(outcome.computed),
        "reused": list(outcome.reused),
    }


class Source(Protocol):
    """What says which trials run next, and hears how they ended: a study's Proposals, or the Arms of a confirmation."""

    @property
    def over(self) -> bool: ...
    @property
    def parallel(self) -> int: ...
    @property
    def time_is_up(self) -> bool: ...
    @property
    def target(self) -> int: ...
    @property
    def left(self) -> str: ...
    def next(self) -> Proposal | None: ...
    def passed(self, index: int) -> None: ...
    def complete(self, index: int, result: Result) -> None: ...
    def spend(self, seconds: float) -> None: ...
    def close(self) -> None: ...


class Proposer(Searcher):
    """Hands out the study's proposals to Tune, and takes in how they ended; `keep` writes that down.

    Storage that is full or stays away is no fault of a trial: it ends the launch, the trial is told of no end, and the
    next launch runs it again. `fault` is what was wrong. `on_end` is told of every trial whose end is recorded, with
    its points and the train_flops of its stages.
    """

    def __init__(
        self,
        proposals: Source,
        store: StageStore,
        on_end: OnEnd = lambda *ended: None,
        *,
        keep: Callable[[TrialRecord], None] | None = None,
    ) -> None:
        super().__init__()  # no metric and no mode: with two objectives Tune would do harm with either
        self._proposals = proposals
        self._store = store
        self._on_end = on_end
        self._keep = keep or store.record_trial
        self._handed: dict[str, Proposal] = {}  # to Tune's trials, by their id
        self._again: deque[Proposal] = deque()
        self._costs: dict[str, int] = {}  # train_flops of stages
        self.fault: StorageFault | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher for a restore that this project never makes

    def suggest(self, trial_id: str) -> Any:
        if self.fault is not None:
            return Searcher.FINISHED
        proposal = self._again.popleft() if self._again else self._proposals.next()
        if proposal is None:  # Tune asks no more once it is told that all is over; a worker may still die
            return Searcher.FINISHED if self._proposals.over and not self._handed else None
        self._handed[trial_id] = proposal
        frontier = json.dumps(proposal.frontier)
        return {INDEX: proposal.index, SPEC: proposal.spec.model_dump_json(), FRONTIER: frontier}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell how a trial ended. One without a last row was stopped; for one whose worker died see again, give_up."""
        if error:
            return
        proposal = self._handed.pop(trial_id)
        if result and result.get(ENDED):
            with self._storage():
                self._take_in(proposal, result)

    def _take_in(self, proposal: Proposal, result: dict[str, Any]) -> None:
        failure, stopped, stages = result["failure"], result["stopped"], tuple(result["stages"])
        if failure is not None and failure.startswith("storage: "):
            raise StorageFault(failure.removeprefix("storage: "))
        points = tuple(self._store.point(key) for key in result["keys"])
        record = self._record(proposal, stages, failure, stopped)
        costs = {key: self._cost(key) for key in stages}
        self._proposals.complete(proposal.index, Result(points=points, failure=failure, stopped=stopped, stages=costs))
        self._on_end(record, points, costs)

    def _record(
        self, proposal: Proposal, stages: tuple[str, ...], failure: str | None, stopped: str | None = None
    ) -> TrialRecord:
        index, spec = proposal.index, proposal.spec
        record = TrialRecord(index=index, spec=spec, stages=stages, failure=failure, stopped=stopped, created=now())
        self._keep(record)
        return record

    def again(self, trial_id: str) -> None:
        """Hand a trial out again, before all others: its worker died."""
        self._again.append(self._handed.pop(trial_id))

    def give_up(self, trial_id: str, reason: FailureReason, message: str, traceback: str) -> str:
        """Record that a trial's worker could not go on, and tell it as failed; returns why in one line."""
        proposal = self._handed.pop(trial_id)
        with self._storage():
            self._record_lost(proposal, reason, message, traceback)
        return f"{reason}: {message}"

    def _record_lost(self, proposal: Proposal, reason: FailureReason, message: str, traceback: str) -> None:
        fault = re.search(r"\bStorageFault: (.*)", message)
        if fault is not None:
            raise StorageFault(fault[1])
        spec = proposal.spec
        # At which stage it was is not known here; the settings stand for it.
        key = hashlib.sha256(canonical_json(spec).encode()).hexdigest()
        failure = Failure(key=key, spec=spec, reason=reason, message=message, traceback=traceback, **whereabouts())
        self._store.record_failure(failure)
        said = f"{reason}: {message}"
        record = self._record(proposal, (), said)
        self._proposals.complete(proposal.index, Result(failure=said))
        self._on_end(record, (), {})

    @contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except StorageFault as fault:
            self.fault = self.fault or fault
        except OSError as error:  # of Optuna's own journal file
            self.fault = self.fault or StorageFault(f"{self._store.root}: cannot be written ({reason_of(error)})")

    def _cost(self, key: str) -> int:
        if key not in self._costs:
            self._costs[key] = self._store.stage(key).cost.train_flops
        return self._costs[key]

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal and the stage store hold all there is to keep."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("every launch is a new Tune session")
