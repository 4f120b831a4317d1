"""The journal of a study's proposals on object storage: numbered segments, merged now and then.

    <root>/0000000000-0000002047.jsonl   logs 0 to 2047, a JSON object in each line
           0000002048-0000002079.jsonl
           0000002080-0000002080.jsonl   ...

An object is written whole or not at all, so no log can be torn. One process at a time writes, the one that holds the
study's driver claim; a segment is made only where none is, so that a driver that stood still and was followed by
another one is found out. As soon as MERGED neighbours of about the same length lie at the end they become one, which is
written before they are removed: what a longer segment holds already is passed over.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from orchestrator.files import Files
from orchestrator.record import InvalidInput

MERGED = 32  # so many segments of one length become one: n logs lie in about 32 log(n) / log(32) objects
AGAIN = "move the journal away and give the same command again: no finished stage is lost"


@dataclass(frozen=True, order=True)
class Segment:
    """The logs from `first` to `last`, both included."""

    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.first:010}-{self.last:010}.jsonl"

    @classmethod
    def of(cls, name: str) -> "Segment | None":
        first, _, last = name.removesuffix(".jsonl").partition("-")
        return cls(int(first), int(last)) if name.endswith(".jsonl") and first.isdigit() and last.isdigit() else None


class ObjectJournal(BaseJournalBackend):
    """Optuna's journal in the segments under a root. Read once, when it is opened; then kept in memory, too.

    Raises InvalidInput, naming the segment, if one is damaged or missing.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._logs: list[dict[str, Any]] = []
        self._segments: list[Segment] = []
        self._open()

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """No request."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """One request, and some more when segments are merged. The logs are kept for good when this returns."""
        segment = Segment(len(self._logs), len(self._logs) + len(logs) - 1)
        held = self._files.create(segment.name, _lines(logs))
        if held is None:
            raise InvalidInput(
                f"{self._files.root}/{segment.name}: was written by another process; this one stood still for so long "
                "that another one took the search over"
            )
        held.close()
        self._logs += logs
        self._segments.append(segment)
        self._merge()

    def _open(self) -> None:
        there = [segment for name in self._files.names("") if (segment := Segment.of(name)) is not None]
        found = list(_cover(there, str(self._files.root)))
        self._files.read_ahead([segment.name for segment in found])
        for segment in found:
            self._logs += self._read(segment)
        self._segments = found
        self._files.remove([segment.name for segment in set(there) - set(found)])
        if len(found) > MERGED:
            self._write_as_one(found)

    def _read(self, segment: Segment) -> list[dict[str, Any]]:
        content = self._files.read(segment.name)
        try:
            logs = [json.loads(line) for line in (content or b"").splitlines()]
            assert len(logs) == segment.last - segment.first + 1
            assert all("op_code" in log for log in logs)
        except (ValueError, TypeError, AssertionError):
            raise InvalidInput(f"{self._files.root}/{segment.name}: is damaged; {AGAIN}") from None
        return logs

    def _merge(self) -> None:
        """Make one of the last segments if they are MERGED in number and of one level of length."""
        latest = self._segments[-MERGED:]
        while len(latest) == MERGED and len({_level(segment) for segment in latest}) == 1:
            self._write_as_one(latest)
            latest = self._segments[-MERGED:]

    def _write_as_one(self, some: list[Segment]) -> None:
        """`some` are the last ones."""
        whole = Segment(some[0].first, some[-1].last)
        names = [segment.name for segment in some]
        self._files.write(whole.name, _lines(self._logs[whole.first : whole.last + 1]))
        self._segments = [*self._segments[: -len(some)], whole]
        self._files.remove(names)


def _level(segment: Segment) -> int:
    length, level = segment.last - segment.first + 1, 0
    while length >= MERGED:
        length, level = length // MERGED, level + 1
    return level


def _cover(segments: list[Segment], where: str) -> Iterator[Segment]:
    """The longest segments that follow one another; those that lie within one of them were merged into it."""
    wanted = 0
    for segment in sorted(segments, key=lambda one: (one.first, -one.last)):
        if segment.last < wanted:
            continue
        if segment.first != wanted:
            raise InvalidInput(f"{where}: logs {wanted} to {segment.first - 1} are missing; {AGAIN}")
        wanted = segment.last + 1
        yield segment


def _lines(logs: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
