"""A study's files in a folder of a file system, which several machines may share."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.files.interface import Files, Size, patient
from orchestrator.files.patience import Patience

STAGING = "staging"
ERASED = ".erased."  # what a folder is called while it is removed
ASIDE, PROBE, DISCARDED = "file", "probe", "discarded"  # what is in STAGING for a moment only
MOMENT_SECONDS = 3600.0  # whoever has not ended such a moment by then was killed in it


class LocalFiles(Files):
    """Files are written aside, reach the disk, and are renamed; folders are published by one rename."""

    def __init__(self, root: Path, patience: Patience) -> None:
        self.root: Path = root
        self.patience = patience
        self._swept = False

    @patient
    def prepare(self, folders: Sequence[str]) -> None:
        for name in (STAGING, *folders):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        probe = self.root / STAGING / f"{PROBE}.{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
        self._sweep()

    @patient
    def read(self, name: str) -> bytes | None:
        try:
            with open(f"{self.root}/{name}", "rb", buffering=0) as file:  # of a Path, a study of 100,000 points is slow
                return file.readall()
        except FileNotFoundError:
            return None

    @patient
    def exists(self, name: str) -> bool:
        return os.path.isfile(f"{self.root}/{name}")

    @patient
    def names(self, folder: str) -> list[str]:
        return _listed(self.root / folder)

    @patient
    def write(self, name: str, content: bytes) -> None:
        path, aside = self.root / name, self.root / STAGING / f"{ASIDE}.{uuid.uuid4().hex}"
        for folder in (aside.parent, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(content)
            _sync(aside)
            aside.replace(path)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
        _sync(path.parent)

    @patient
    def create(self, name: str, content: bytes) -> "HeldFile | None":
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return self._created_before(path, content)
        except FileNotFoundError:  # the last owner has just removed the folder
            return None
        try:
            os.write(descriptor, content)
        except OSError:
            os.close(descriptor)
            with suppress(OSError):
                path.unlink()
            raise
        return HeldFile(path, descriptor, content)

    @patient
    def look(self, name: str) -> tuple[bytes, object] | None:
        try:
            # Opening makes a network file system ask the server; a bare stat may be answered from a cache.
            with (self.root / name).open("rb") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    @patient
    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def tidy(self, folder: str) -> None:
        with suppress(OSError):
            (self.root / folder).rmdir()

    def staging(self, name: str) -> Path:
        return self.root / STAGING / name

    @patient
    def publish(self, staging: Path, name: str, last: str) -> Path | None:
        if staging.is_dir():  # otherwise it was renamed by a try whose answer was lost
            _sync_all(staging)
            try:
                staging.rename(self.root / name)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                return None
        _sync((self.root / name).parent)
        return self.root / name

    @patient
    def has(self, name: str, last: str) -> bool:
        return (self.root / name).is_dir()

    @patient
    def fetch(self, name: str, last: str, *, anew: bool = False) -> Path | None:
        folder = self.root / name
        return folder if folder.is_dir() else None

    @patient
    def published(self, folder: str, last: str) -> list[str]:
        return _listed(self.root / folder)

    @patient
    def having(self, folder: str, last: str, name: str) -> list[str]:
        return [one for one in _listed(self.root / folder) if (self.root / folder / one / name).is_file()]

    @patient
    def move(self, name: str, target: str, last: str) -> None:
        (self.root / target).parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # moved by a try whose answer was lost
            (self.root / name).rename(self.root / target)
        _sync((self.root / target).parent)

    @patient
    def discard(self, name: str, last: str) -> None:
        aside = self.root / STAGING / f"{DISCARDED}.{uuid.uuid4().hex}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            (self.root / name).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    @patient
    def erase(self, last: str) -> None:
        aside = self.root.parent / f"{ERASED}{self.root.name}.{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):  # renamed by a try whose answer was lost
            self.root.rename(aside)
        for folder in self.root.parent.glob(f"{ERASED}*"):  # also what a killed process left
            shutil.rmtree(folder, ignore_errors=True)

    @patient
    def sizes(self, folder: str) -> dict[str, Size]:
        try:
            return dict(_sizes(os.fspath(self.root / folder), ""))
        except NotADirectoryError:
            return {"": _size((self.root / folder).stat())}

    def read_ahead(self, names: Sequence[str]) -> None:
        """Nothing: a file system reads ahead by itself."""

    def _sweep(self) -> None:
        """Remove what killed processes were writing or removing; a stage's folder is its next owner's to remove."""
        if self._swept:
            return
        self._swept = True
        for left in (self.root / STAGING).iterdir():
            with suppress(OSError):  # ended in this very moment
                named = left.name.partition(".")[0] in (ASIDE, PROBE, DISCARDED)
                if named and time.time() - left.stat().st_mtime > MOMENT_SECONDS:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _created_before(self, path: Path, content: bytes) -> "HeldFile | None":
        """The file of an earlier try whose answer was lost: what is created says who created it."""
        descriptor = _opened_if(path, content)
        return None if descriptor is None else HeldFile(path, descriptor, content)


class HeldFile:
    """A file that this process created, kept open: if another takes its place, that one is not touched."""

    def __init__(self, path: Path, descriptor: int, content: bytes) -> None:
        self._path, self._descriptor, self._content = path, descriptor, content

    def touch(self) -> bool:
        try:
            os.utime(self._descriptor)
        except OSError:  # a file server that started anew knows no open files
            descriptor = _opened_if(self._path, self._content)
            if descriptor is None:
                return False
            self.close()
            self._descriptor = descriptor
            os.utime(descriptor)
        return True

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)


def _opened_if(path: Path, content: bytes) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    if os.read(descriptor, len(content) + 1) == content:
        return descriptor
    os.close(descriptor)
    return None


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _sizes(folder: str, prefix: str) -> Iterator[tuple[str, Size]]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed in this very moment
                if entry.is_dir(follow_symlinks=False):
                    yield from _sizes(entry.path, f"{prefix}{entry.name}/")
                else:
                    yield prefix + entry.name, _size(entry.stat(follow_symlinks=False))


def _size(found: os.stat_result) -> Size:
    return Size(found.st_size, f"{found.st_ino}.{found.st_mtime_ns}", found.st_nlink > 1)


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
