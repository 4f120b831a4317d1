"""Where a study lies: a path of the file system, or a URI that is taken apart and put together like one."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.record import InvalidInput

SCHEMES = ("s3",)


@dataclass(frozen=True)
class Uri:
    """A place on object storage: Uri("s3", "bucket/prefix/study"). No path of the file system: open() refuses it."""

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def __truediv__(self, name: "str | os.PathLike[str]") -> "Uri":
        return Uri(self.scheme, f"{self.path}/{os.fspath(name)}".rstrip("/"))

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> "Uri":
        return Uri(self.scheme, self.path.rpartition("/")[0] or self.path)

    @property
    def bucket(self) -> str:
        return self.path.partition("/")[0]

    @property
    def key(self) -> str:
        """What follows the bucket; may be empty."""
        return self.path.partition("/")[2]

    def absolute(self) -> "Uri":
        return self

    def resolve(self) -> "Uri":
        return self


Place = Path | Uri


def located(place: "str | os.PathLike[str] | Uri") -> Place:
    """The path or URI that a text means. Raises InvalidInput for a URI of an unknown kind or without a bucket."""
    if isinstance(place, Uri):
        return place
    text = os.fspath(place)
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/(/?)(.*)", text)
    if match is None:
        return Path(text)
    scheme, second, rest = match.groups()
    kinds = " or ".join(f"{known}://bucket/prefix" for known in SCHEMES)
    if scheme not in SCHEMES:
        if not second:  # a folder whose name has a colon
            return Path(text)
        raise InvalidInput(f"{text}: {scheme}:// is no storage that is known; give a folder or {kinds}")
    path = "/".join(part for part in rest.split("/") if part)
    if not second or not path:  # a Path makes one slash of two
        raise InvalidInput(f"{text}: names no bucket; give a folder or {kinds}, as text")
    return Uri(scheme, path)
