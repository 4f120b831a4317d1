"""How often workers may die on a trial before it is given up.

Tune's own count will not do: it counts one death twice where two calls were under way, and gives a trial up at once
that meets a worker which died while it was idle.
"""

from collections import Counter

RETRIES = 2  # after the first death at one and the same place; what had been published by then is looked up


class Attempts:
    """Counts the deaths of each trial's workers since it last got further; one process uses it, the driver's.

    idle: so many workers at most wait for their next trial. Each of them may have died meanwhile, and the trial that
    meets it has not had its chance.
    """

    def __init__(self, idle: int) -> None:
        self._idle = idle
        self._begun: set[int] = set()
        self._passed: dict[int, set[str]] = {}
        self._deaths: Counter[int] = Counter()
        self._false_starts: Counter[int] = Counter()

    def began(self, index: int) -> None:
        """A worker has taken the trial up."""
        self._begun.add(index)

    def reached(self, index: int, key: str) -> None:
        """The trial has passed this point, now or before."""
        passed = self._passed.setdefault(index, set())
        if key not in passed:
            passed.add(key)
            self._deaths[index] = 0

    def died(self, index: int) -> int | None:
        """A worker has died on the trial. How often it happened in a row, if that is enough; else None: try again."""
        if index in self._begun:
            self._begun.remove(index)
            self._deaths[index] += 1
            count, allowed = self._deaths[index], RETRIES
        else:
            self._false_starts[index] += 1
            count, allowed = self._false_starts[index], RETRIES + self._idle
        return count if count > allowed else None
