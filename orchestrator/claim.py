"""Who may compute what: claims that a dead process cannot keep, on any file system that several machines share.

A claim is a folder of numbered generation files; who made the highest one owns it. A file is made with O_EXCL, so of
many who try, one gets it. The owner touches its file while it lives; who waits takes over, by making the next number,
when the owner's process is gone from this very machine or when the file has not been touched for long on the waiting
process's own clock. Clocks of two machines are never compared.
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from orchestrator.record import Record, whereabouts

Life = Literal["alive", "gone", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often a claim is touched and looked at, and whose time counts; tests bring their own clock."""

    beat_seconds: float = 3.0
    stale_seconds: float = 20.0
    poll_seconds: float = 0.2
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


class Owner(Record):
    """The process that made a generation file. `machine` and `started` make its pid unmistakable."""

    token: str
    created: str
    host: str
    pid: int
    machine: str | None  # None where the system does not say: then only the heartbeat tells
    started: str | None


@dataclass(frozen=True)
class Sighting:
    """A generation file as it was just found; `owner` is None when its maker died before filling it in."""

    number: int
    owner: Owner | None
    touched_ns: int


class Watch:
    """Decides for one waiting process whether an owner is dead; remembers when each sign of life was first seen."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._last: Sighting | None = None
        self._since = 0.0

    def is_dead(self, sighting: Sighting) -> bool:
        """Whether the owner's process is gone, or has shown no sign of life while this watch looked on."""
        if sighting != self._last:
            self._last, self._since = sighting, self._timing.clock()
        stale = self._timing.clock() - self._since >= self._timing.stale_seconds
        return stale or life_of(sighting.owner) == "gone"


class Claim:
    """A claim that this process made. Entered, it is touched by a thread; left, it is given back."""

    def __init__(self, path: Path, descriptor: int, owner: Owner, timing: Timing) -> None:
        self.owner = owner
        self._path = path
        self._descriptor = descriptor
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, args=(timing.beat_seconds,), name="claim", daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._heart.join()
        held = self.held()
        os.close(self._descriptor)
        if held:  # someone else's files otherwise
            _remove_generations(self._path.parent, up_to=int(self._path.stem))

    def held(self) -> bool:
        """Whether this is still the newest generation, and the very file that was made."""
        try:
            same = os.path.samestat(os.fstat(self._descriptor), self._path.stat())
            return same and newest(self._path.parent) == int(self._path.stem)
        except FileNotFoundError:
            return False

    def _beat(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            with suppress(OSError):  # a file system that is away for a moment; others decide by their own clocks
                os.utime(self._descriptor)


def try_claim(folder: Path, watch: Watch, timing: Timing) -> Claim | None:
    """The claim on `folder`, if it is free or its owner is dead; None while somebody else has it."""
    folder.mkdir(parents=True, exist_ok=True)
    current = sight(folder)
    if current is not None and not watch.is_dead(current):
        return None
    number = 1 if current is None else current.number + 1
    return _make(folder / f"{number}.json", timing)


def sight(folder: Path) -> Sighting | None:
    """The newest generation in `folder`, or None when it is free."""
    number = newest(folder)
    if number == 0:
        return None
    try:
        # Opening makes a network file system ask the server; a bare stat may be answered from a cache.
        with (folder / f"{number}.json").open("rb") as file:
            return Sighting(number, _parse(file.read()), os.fstat(file.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None


def newest(folder: Path) -> int:
    """The highest generation number in `folder`, 0 when there is none."""
    return max(_generations(folder), default=0)


def life_of(owner: Owner | None) -> Life:
    """Whether the owner's process runs; "unknown" unless it can be asked of this very machine."""
    if owner is None or owner.machine is None or owner.machine != machine():
        return "unknown"
    started = started_at(owner.pid)
    if started is None:
        return "gone" if _no_such_process(owner.pid) else "unknown"
    return "alive" if started == owner.started else "gone"


@cache
def machine() -> str | None:
    """What makes a pid unique: the host, its boot and the process namespace. None where Linux's /proc is missing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def started_at(pid: int) -> str | None:
    """When process `pid` started, in ticks since the boot; "" for a zombie, None if it cannot be seen."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return "" if fields[0] in "ZX" else fields[19]


def _no_such_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # /proc may hide other users' processes; signal 0 only asks
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _make(path: Path, timing: Timing) -> Claim | None:
    pid = os.getpid()
    owner = Owner(token=uuid.uuid4().hex, machine=machine(), started=started_at(pid), **whereabouts())
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except (FileExistsError, FileNotFoundError):  # another was faster, or its owner has just given it back
        return None
    os.write(descriptor, owner.model_dump_json().encode())
    return Claim(path, descriptor, owner, timing)


def _parse(text: bytes) -> Owner | None:
    try:
        return Owner.model_validate(json.loads(text))
    except ValueError:  # cut short: its maker died, or is still writing
        return None


def _generations(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name[:-5]) for name in names if re.fullmatch(r"[0-9]+\.json", name))


def _remove_generations(folder: Path, *, up_to: int) -> None:
    with suppress(OSError):  # what stays behind is a dead owner's, and passes on
        for number in _generations(folder):  # ascending: the newest guards the others until the last moment
            if number <= up_to:
                (folder / f"{number}.json").unlink(missing_ok=True)
        folder.rmdir()
