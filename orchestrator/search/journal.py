"""The journal of a study's proposals: opened whole, whatever killed the process that wrote it last."""

import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage

from orchestrator.files import Place, Uri, open_files, reason_of
from orchestrator.record import InvalidInput
from orchestrator.search.journal_objects import ObjectJournal

# Optuna holds its lock for single writes, a few milliseconds; a lock seen unchanged for this long is a dead process's.
STALE_SECONDS = 2.0


def open_journal(path: Place) -> JournalStorage:
    """The storage in the journal at `path`, which is made if it is missing: a file, or segments under a URI.

    Only for the one process that holds the study's driver claim: it takes away a dead process's lock and cuts off a
    line that was being written when its process died. Raises InvalidInput, naming the line, for any other damage.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("optuna").setLevel(logging.WARNING)
    if isinstance(path, Uri):
        try:
            return JournalStorage(ObjectJournal(open_files(path)))
        except OSError as error:
            raise InvalidInput(f"{path}: cannot be read ({reason_of(error)})") from error
    path = path.absolute()  # Optuna's lock is a link to this name: a relative one would lead nowhere
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be written: {error.strerror}") from None
    _remove_stale_lock(path)
    _repair_tail(path)
    return JournalStorage(JournalFileBackend(str(path)))


def _remove_stale_lock(path: Path) -> None:
    lock = path.with_name(path.name + ".lock")
    seen, since = _identity(lock), time.monotonic()
    while seen is not None:
        if time.monotonic() - since >= STALE_SECONDS:
            with suppress(RuntimeError):  # gone by itself in this very moment
                JournalFileSymlinkLock(str(path)).release()
            return
        time.sleep(0.05)
        current = _identity(lock)
        if current != seen:
            seen, since = current, time.monotonic()


def _identity(lock: Path) -> tuple[int, int] | None:
    try:
        status = os.lstat(lock)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def _repair_tail(path: Path) -> None:
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        with path.open("r+b") as file:
            content = file.read()
            sound = _sound_length(path, content)
            if sound < len(content):
                file.truncate(sound)
                os.fsync(file.fileno())
    finally:
        lock.release()


def _sound_length(path: Path, content: bytes) -> int:
    """How many bytes of whole lines there are; only the last line may be damaged."""
    length = 0
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not _is_sound(line):
            if number < len(lines):
                raise InvalidInput(
                    f"{path}: line {number} is damaged; move the file away and give the same command again: "
                    "no finished stage is lost"
                )
            break
        length += len(line)
    return length


def _is_sound(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False
