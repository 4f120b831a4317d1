"""The arms of a confirmation, in place of a search's proposals: a fixed list, in which controls follow their path."""

from collections import deque
from collections.abc import Mapping, Sequence

from orchestrator.record import ArmRecord, ArmSpec, TrialRecord, now
from orchestrator.search.proposals import Proposal, Result
from orchestrator.store import StageStore

MOST_WAITING = 64  # arms that are handed out before a worker is free


class Arms:
    """Hands out arms that are to be trained, each once; a control waits until its path is done, and fails with it.

    paths_done: the paths whose "pruned" arm is not among these, for it is done. Indices count the arms from 0.
    """

    def __init__(self, specs: Sequence[ArmSpec], store: StageStore, paths_done: Sequence[str] = ()) -> None:
        self.specs = tuple(specs)
        self.finished = 0
        self.failures: dict[int, str] = {}
        self._store = store
        self._queue: deque[int] = deque()
        self._waiting: dict[str, list[int]] = {}  # path -> its controls
        for index, spec in enumerate(self.specs):
            if spec.arm == "pruned" or spec.path in paths_done:
                self._queue.append(index)
            else:
                self._waiting.setdefault(spec.path, []).append(index)

    @property
    def over(self) -> bool:
        """Whether every arm has been handed out, or given up with its path."""
        return not self._queue and not self._waiting

    @property
    def parallel(self) -> int:
        """How many may be under way at once: as many as fit the machines."""
        return max(1, min(len(self.specs), MOST_WAITING))

    @property
    def time_is_up(self) -> bool:
        return False

    @property
    def target(self) -> int:
        return len(self.specs)

    @property
    def left(self) -> str:
        return f"{self.target - self.finished} arms"

    def next(self) -> Proposal | None:
        """The next arm to train; None while those that are left wait for their paths."""
        if not self._queue:
            return None
        index = self._queue.popleft()
        return Proposal(index=index, spec=self.specs[index], frontier=())

    def passed(self, index: int) -> None:
        pass

    def keep(self, record: TrialRecord) -> None:
        """Write down how an arm ended."""
        spec = self.specs[record.index]
        self._store.record_arm(
            ArmRecord(spec=spec, stages=record.stages, failure=record.failure, created=record.created)
        )

    def complete(self, index: int, result: Result) -> None:
        """Take in how an arm ended."""
        self._note(index, result.failure)
        spec = self.specs[index]
        if spec.arm != "pruned":
            return
        for control in self._waiting.pop(spec.path, ()):
            if result.failure is None:
                self._queue.append(control)
            else:
                failure = f"not trained: its path failed ({result.failure})"
                self.keep(TrialRecord(index=control, spec=spec, stages=(), failure=failure, created=now()))
                self._note(control, failure)

    def _note(self, index: int, failure: str | None) -> None:
        self.finished += 1
        if failure is not None:
            self.failures[index] = failure

    def spend(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass


def name_of(spec: ArmSpec) -> str:
    """An arm in words."""
    return f"{spec.arm} of {spec.point[:12]}, seed {spec.seed}"


def names_of(specs: Sequence[ArmSpec], failures: Mapping[int, str]) -> dict[str, str]:
    """Failures by the arms' names."""
    return {name_of(specs[index]): failure for index, failure in sorted(failures.items())}
