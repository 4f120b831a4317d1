"""Who may compute what: claims that a dead process cannot keep, on any storage that several machines share.

A claim is a folder of numbered generation files; who made the highest one owns it. Of many who try to make a file, one
gets it. The owner touches its file while it lives; who waits takes over, by making the next number, when the owner's
process is gone from this very machine or when the file has not been touched for long on the waiting process's own
clock. Clocks of two machines are never compared, and time in which nobody could look does not count.
"""

import json
import math
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

from orchestrator.files import Files, Held, StorageFault
from orchestrator.record import Record, whereabouts

Life = Literal["alive", "gone", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often a claim is touched and looked at, and whose time counts; tests bring their own clock."""

    beat_seconds: float = 3.0
    stale_seconds: float = 20.0
    poll_seconds: float = 0.2
    blind_seconds: float = 8.0  # without a look for so long, a watch begins anew
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

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Sighting:
    """A generation file as it was just found; `owner` is None when its maker died before filling it in."""

    number: int
    owner: Owner | None
    mark: object  # changes when the file is touched


class Watch:
    """Decides for one waiting process whether an owner is dead; remembers when each sign of life was first seen."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._last: Sighting | None = None
        self._since = self._looked = -math.inf

    def is_dead(self, sighting: Sighting) -> bool:
        """Whether the owner's process is gone, or has shown no sign of life while this watch looked on."""
        now = self._timing.clock()
        blind = now - self._looked > self._timing.blind_seconds  # the storage was away, or this process stood still
        if blind or sighting != self._last:
            self._last, self._since = sighting, now
        self._looked = now
        return now - self._since >= self._timing.stale_seconds or life_of(sighting.owner) == "gone"


class Claim:
    """A claim that this process made. Entered, it is touched by a thread; left, it is given back."""

    def __init__(self, at: "Generation", held: Held, owner: Owner, timing: Timing) -> None:
        self.owner = owner
        self._at = at
        self._held = held
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, args=(timing.beat_seconds,), name="claim", daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._heart.join()
        self._held.close()
        with suppress(OSError, StorageFault):  # what stays behind is a dead owner's, and passes on
            if self.held():  # someone else's files otherwise
                _remove_generations(self._at)

    def held(self) -> bool:
        """Whether this is still the newest generation, made by this process."""
        found = sight(self._at.files, self._at.folder)
        return found is not None and found.number == self._at.number and found.owner == self.owner

    def _beat(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            with suppress(OSError):  # storage that is away for a moment; who waits does not see it either
                if not self._held.touch():
                    return


@dataclass(frozen=True)
class Generation:
    """One file of a claim's folder."""

    files: Files
    folder: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.number}.json"


def try_claim(files: Files, folder: str, watch: Watch, timing: Timing) -> Claim | None:
    """The claim on `folder`, if it is free or its owner is dead; None while somebody else has it."""
    current = sight(files, folder)
    if current is not None and not watch.is_dead(current):
        return None
    return _make(Generation(files, folder, 1 if current is None else current.number + 1), timing)


def sight(files: Files, folder: str) -> Sighting | None:
    """The newest generation in `folder`, or None when it is free."""
    number = newest(files, folder)
    found = files.look(Generation(files, folder, number).name) if number else None
    return None if found is None else Sighting(number, _parse(found[0]), found[1])


def newest(files: Files, folder: str) -> int:
    """The highest generation number in `folder`, 0 when there is none."""
    return max(_generations(files, folder), default=0)


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


def _make(at: Generation, timing: Timing) -> Claim | None:
    pid = os.getpid()
    owner = Owner(token=uuid.uuid4().hex, machine=machine(), started=started_at(pid), **whereabouts())
    held = at.files.create(at.name, owner.model_dump_json().encode())
    return None if held is None else Claim(at, held, owner, timing)  # None: another was faster


def _parse(text: bytes) -> Owner | None:
    try:
        return Owner.model_validate(json.loads(text))
    except ValueError:  # cut short: its maker died, or is still writing
        return None


def _generations(files: Files, folder: str) -> list[int]:
    try:
        names = files.names(folder)
    except NotADirectoryError:  # whoever makes a claim there will hear of it
        return []
    return sorted(int(name[:-5]) for name in names if re.fullmatch(r"[0-9]+\.json", name))


def _remove_generations(at: Generation) -> None:
    numbers = [number for number in _generations(at.files, at.folder) if number <= at.number]
    # Ascending: the newest guards the others until the last moment.
    at.files.remove([Generation(at.files, at.folder, number).name for number in numbers])
    at.files.tidy(at.folder)
