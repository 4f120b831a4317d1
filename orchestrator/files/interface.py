"""The handful of operations on files that the stage store, its claims and the journal are made of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from orchestrator.files.patience import Patience
from orchestrator.files.places import Place

P = ParamSpec("P")
T = TypeVar("T")
FilesT = TypeVar("FilesT", bound="Files")


class Size(NamedTuple):
    """What a file takes on the disk, and which writing of it this is."""

    bytes: int
    mark: str  # changes when the file does
    shared: bool = False  # another folder has the same file, by a hard link: to remove one of the two frees nothing


class Held(Protocol):
    """A file that this process created, and shows to be alive."""

    def touch(self) -> bool:
        """Change the file so that `look` tells; False when it is another's by now. Raises OSError while away."""

    def close(self) -> None:
        """Let go of the file, which stays."""


class Files(ABC):
    """The files under one root. Names are relative to it, with slashes.

    Every operation is tried again while the storage is away, and raises StorageFault if it stays away or is full;
    other OSErrors pass through. What was written is seen by all processes on all machines from then on.
    """

    root: Place
    patience: Patience

    @abstractmethod
    def prepare(self, folders: Sequence[str]) -> None:
        """Make sure that the root can be written, with these folders in it."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A file's content, or None."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """What a folder holds, files and folders, sorted; nothing if it is not there."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all, over one that is there."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> Held | None:
        """Make a file that is not there yet; of many who try at once, one gets it, the others None."""

    @abstractmethod
    def look(self, name: str) -> tuple[bytes, object] | None:
        """A file's content and a mark that changes when it is touched, or None."""

    @abstractmethod
    def remove(self, names: Sequence[str]) -> None:
        """Remove files, in this order; those that are not there are no error."""

    @abstractmethod
    def tidy(self, folder: str) -> None:
        """Remove a folder if nothing is in it."""

    @abstractmethod
    def staging(self, name: str) -> Path:
        """A folder of this machine's file system, not made yet, for work that may be published."""

    @abstractmethod
    def publish(self, staging: Path, name: str, last: str) -> Path | None:
        """Make a staging folder the folder `name`, whole or not at all; None if there is one already.

        A published folder is there as soon as the file `last` is in it. The staging folder may be gone afterwards.
        Returns what `fetch` would.
        """

    @abstractmethod
    def has(self, name: str, last: str) -> bool:
        """Whether the folder `name` is published."""

    @abstractmethod
    def fetch(self, name: str, last: str, *, anew: bool = False) -> Path | None:
        """A published folder on this machine's file system, to be read only; None if there is none.

        `anew` throws a copy away that was made before.
        """

    @abstractmethod
    def published(self, folder: str, last: str) -> list[str]:
        """The names of the published folders in `folder`, sorted."""

    @abstractmethod
    def having(self, folder: str, last: str, name: str) -> list[str]:
        """The names of the published folders in `folder` that hold the file `name`, sorted."""

    @abstractmethod
    def move(self, name: str, target: str, last: str) -> None:
        """Move a published folder to where none is; it is no longer published before it is anywhere else."""

    @abstractmethod
    def discard(self, name: str, last: str) -> None:
        """Remove a published folder; it is no longer published before anything of it is gone."""

    @abstractmethod
    def erase(self, last: str) -> None:
        """Remove everything, the root too. On object storage the file `last` is the last to go."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, Size]:
        """All files in a folder and in its folders, by their names in it; a file's own size under the name "".

        Nothing if it is not there.
        """

    @abstractmethod
    def read_ahead(self, names: Sequence[str]) -> None:
        """Get files that `read` and `exists` will soon be asked for, where many at once are quicker than one by one.

        What was got before and not asked for is forgotten.
        """


def patient(
    method: Callable[Concatenate[FilesT, P], T],
) -> Callable[Concatenate[FilesT, P], T]:
    """A method of Files that is tried again while the storage is away."""

    @wraps(method)
    def tried(self: FilesT, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.patience.keep_trying(lambda: method(self, *args, **kwargs), self.root)

    return tried
