"""Proposals that wait for a worker: those first whose stages nobody else is about to compute."""

from collections import deque

from orchestrator.record import TrialSpec, canonical_json

OWN = {"pruning_ratio", "group_cap", "round_to", "recovery", "iterations"}  # of each trial after its first sparse stage


class Waiting:
    """Proposals in their order, but for those that would sit beside another worker's first sparse stage and wait.

    Trials of equal regularization_weight share that stage. One is handed out; the others follow when it has its first
    iteration behind it, or when nothing else is left to do.
    """

    def __init__(self) -> None:
        self._queue: deque[int] = deque()
        self._prefix: dict[int, str] = {}
        self._preparing: dict[str, int] = {}  # prefix -> who is about to compute it
        self._ready: set[str] = set()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, index: int, spec: TrialSpec) -> None:
        """Append a proposal."""
        self._queue.append(index)
        self._prefix[index] = canonical_json(spec.model_dump(mode="json", exclude=OWN))

    def take(self) -> int:
        """The next one to run. There must be one."""
        free = (index for index in self._queue if self._is_free(self._prefix[index]))
        index = next(free, self._queue[0])
        self._queue.remove(index)
        self._preparing.setdefault(self._prefix[index], index)
        return index

    def ready(self, index: int) -> None:
        """Take note that what proposal `index` shares with others is computed, or that it has ended."""
        prefix = self._prefix[index]
        self._ready.add(prefix)
        self._preparing.pop(prefix, None)

    def _is_free(self, prefix: str) -> bool:
        return prefix in self._ready or prefix not in self._preparing
