"""A study's files on object storage that speaks S3 with conditional writes (AWS, MinIO, Ceph, R2, ...).

There are no folders and no renames there: a published folder is there as soon as its last file is, and what only one
may make is made with If-None-Match. Credentials and the endpoint come from the usual environment (AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_PROFILE, ...). Work in progress and copies of published folders lie in a folder of this machine's
temporary directory; a copy that nobody asked for in a day is removed.
"""

import errno
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from orchestrator.files.interface import Files, Size, patient
from orchestrator.files.patience import Patience
from orchestrator.files.places import Uri
from orchestrator.files.s3 import as_os_errors, check_bucket, connect, is_precondition

P = ParamSpec("P")
T = TypeVar("T")

KEPT_SECONDS = 24 * 3600.0  # how long a copy stays that nobody asks for
TOKEN = "written-by"  # in an object's metadata: tells a writer, whose answer was lost, that it was the one


def remote(method: Callable[Concatenate["ObjectFiles", P], T]) -> Callable[Concatenate["ObjectFiles", P], T]:
    """A method whose errors come out as OSErrors, and that is tried again while the storage is away."""

    @wraps(method)
    def translated(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with as_os_errors():
            return method(self, *args, **kwargs)

    return patient(translated)


class ObjectFiles(Files):
    """Files are objects, written whole by their nature. Costs are counted in requests: see each method."""

    def __init__(self, root: Uri, patience: Patience) -> None:
        self.root: Uri = root
        self.patience = patience
        self._s3 = connect(root)
        self._prepared = False
        self._ahead: dict[str, bytes | None] = {}
        self._cache = cache_of(root)
        self._swept = False

    def prepare(self, folders: Sequence[str]) -> None:
        """Two requests, the first time."""
        if not self._prepared:
            self._probe()
            self._prepared = True

    @remote
    def read(self, name: str) -> bytes | None:
        """One request."""
        if name in self._ahead:
            return self._ahead.pop(name)
        return self._get(name)

    @remote
    def exists(self, name: str) -> bool:
        """One request."""
        if name in self._ahead:
            return self._ahead[name] is not None
        return self._head(name) is not None

    @remote
    def names(self, folder: str) -> list[str]:
        """One request for each thousand."""
        prefix = self._prefix(folder)
        return sorted({key[len(prefix) :].rstrip("/") for key in self._listed(prefix, Delimiter="/")} - {""})

    @remote
    def write(self, name: str, content: bytes) -> None:
        """One request."""
        self._put(name, content)

    def create(self, name: str, content: bytes) -> "HeldObject | None":
        """One request; two if it is there."""
        return self._create(name, content, uuid.uuid4().hex)

    @remote
    def look(self, name: str) -> tuple[bytes, object] | None:
        """One request. The mark is what the content ends with: see HeldObject."""
        found = self._get(name)
        if found is None:
            return None
        content, _, touches = found.partition(HeldObject.MARK)
        return content, touches

    @remote
    def remove(self, names: Sequence[str]) -> None:
        """One request each."""
        for name in names:
            self._s3.call_s3("delete_object", Bucket=self.root.bucket, Key=self._key(name))

    def tidy(self, folder: str) -> None:
        """Nothing: a folder is there as long as something is in it."""

    def staging(self, name: str) -> Path:
        return self._cache / "staging" / name

    def publish(self, staging: Path, name: str, last: str) -> Path | None:
        """Two requests, and one for each file."""
        if not self._publish(staging, name, last, uuid.uuid4().hex):
            return None
        copy = self._copy_of(name)
        shutil.rmtree(copy, ignore_errors=True)
        with suppress(OSError):  # another process of this machine has just made the same copy
            copy.parent.mkdir(parents=True, exist_ok=True)
            staging.rename(copy)
        return copy

    def has(self, name: str, last: str) -> bool:
        """One request."""
        return self.exists(f"{name}/{last}")

    def fetch(self, name: str, last: str, *, anew: bool = False) -> Path | None:
        """One request where this machine has a copy; otherwise two, and one for each file."""
        content = self.read(f"{name}/{last}")
        if content is None:
            return None
        copy = self._copy_of(name)
        with suppress(OSError):
            if not anew and (copy / last).read_bytes() == content:
                os.utime(copy)
                return copy
        return self._download(name, last)

    @remote
    def published(self, folder: str, last: str) -> list[str]:
        """One request for each thousand files in all folders."""
        return sorted(name for name, files in self._tree(folder).items() if last in files)

    @remote
    def having(self, folder: str, last: str, name: str) -> list[str]:
        """One request for each thousand files in all folders."""
        return sorted(one for one, files in self._tree(folder).items() if {last, name} <= files)

    @remote
    def move(self, name: str, target: str, last: str) -> None:
        """Two requests for each file, and one more."""
        keys = sorted(self._listed(self._prefix(name)), key=lambda key: not key.endswith(f"/{last}"))
        for key in keys:
            new = self._key(target) + key[len(self._key(name)) :]
            source = {"Bucket": self.root.bucket, "Key": key}
            self._s3.call_s3("copy_object", Bucket=self.root.bucket, Key=new, CopySource=source)
        for key in keys:  # `last` first: from here on nothing is published under `name`
            self._s3.call_s3("delete_object", Bucket=self.root.bucket, Key=key)

    @remote
    def discard(self, name: str, last: str) -> None:
        """One request for each file, and one more."""
        self._delete_all(self._prefix(name), f"{name}/{last}", last_first=True)
        shutil.rmtree(self._copy_of(name), ignore_errors=True)

    @remote
    def erase(self, last: str) -> None:
        """One request for each file, and one for each thousand."""
        self._delete_all(self._prefix(""), last, last_first=False)
        shutil.rmtree(self._cache, ignore_errors=True)

    @remote
    def sizes(self, folder: str) -> dict[str, Size]:
        """One request for each thousand files."""
        prefix = self._prefix(folder)
        found = {
            f"{one['Key']}/": Size(int(one["Size"]), str(one["ETag"])) for one in self._objects(prefix.rstrip("/"))
        }
        return {key[len(prefix) : -1]: size for key, size in found.items() if key.startswith(prefix)}

    @remote
    def read_ahead(self, names: Sequence[str]) -> None:
        """One request each, many at a time."""
        self._ahead.clear()
        if not names:
            return
        paths = {f"{self.root.bucket}/{self._key(name)}": name for name in names}
        for path, found in self._s3.cat(list(paths), on_error="return", max_concurrency=1).items():
            if isinstance(found, Exception) and not isinstance(found, FileNotFoundError):
                raise found
            self._ahead[paths[path]] = found if isinstance(found, bytes) else None

    # -- requests ------------------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"{self.root.key}/{name}".lstrip("/")

    def _prefix(self, folder: str) -> str:
        key = self._key(folder).rstrip("/")
        return f"{key}/" if key else ""

    def _get(self, name: str) -> bytes | None:
        try:
            found: bytes = self._s3.cat_file(f"{self.root.bucket}/{self._key(name)}", max_concurrency=1)
        except FileNotFoundError as error:
            check_bucket(error)
            return None
        return found

    def _head(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._s3.call_s3("head_object", Bucket=self.root.bucket, Key=self._key(name))
        except FileNotFoundError as error:
            check_bucket(error)
            return None
        return found

    def _put(self, name: str, content: bytes, **conditions: Any) -> str:
        """Returns the object's ETag."""
        reply = self._s3.call_s3("put_object", Bucket=self.root.bucket, Key=self._key(name), Body=content, **conditions)
        return str(reply["ETag"])

    def _delete_all(self, prefix: str, last: str, *, last_first: bool) -> None:
        own = self._key(last)
        keys = sorted(self._listed(prefix), key=lambda key: (key == own) != last_first)
        for key in keys:
            self._s3.call_s3("delete_object", Bucket=self.root.bucket, Key=key)

    def _listed(self, prefix: str, **options: Any) -> Iterator[str]:
        """Keys of objects; with a delimiter also the prefixes that stand for folders."""
        for page in self._pages(prefix, **options):
            yield from (one["Key"] for one in page.get("Contents", ()))
            yield from (one["Prefix"] for one in page.get("CommonPrefixes", ()))

    def _objects(self, prefix: str) -> Iterator[dict[str, Any]]:
        for page in self._pages(prefix):
            yield from page.get("Contents", ())

    def _pages(self, prefix: str, **options: Any) -> Iterator[dict[str, Any]]:
        while True:
            page = self._s3.call_s3("list_objects_v2", Bucket=self.root.bucket, Prefix=prefix, **options)
            yield page
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = page["NextContinuationToken"]

    def _tree(self, folder: str) -> dict[str, set[str]]:
        """What lies in each folder of a folder."""
        prefix = self._prefix(folder)
        found: dict[str, set[str]] = {}
        for key in self._listed(prefix):
            name, _, file = key[len(prefix) :].partition("/")
            found.setdefault(name, set()).add(file)
        return found

    @remote
    def _probe(self) -> None:
        name = f"staging/probe.{uuid.uuid4().hex}"
        self._put(name, b"")
        self._s3.call_s3("delete_object", Bucket=self.root.bucket, Key=self._key(name))

    @remote
    def _create(self, name: str, content: bytes, token: str) -> "HeldObject | None":
        try:
            tag = self._put(name, content, IfNoneMatch="*", Metadata={TOKEN: token})
        except FileExistsError:
            there = self._head(name)
            if there is None or there["Metadata"].get(TOKEN) != token:
                return None
            tag = str(there["ETag"])
        return HeldObject(self, name, content, tag)

    @remote
    def _publish(self, staging: Path, name: str, last: str, token: str) -> bool:
        writer = self._writer(f"{name}/{last}")
        if writer is not None:
            return writer == token
        for key in self._listed(self._prefix(name)):  # what an owner left that died while it published
            self._s3.call_s3("delete_object", Bucket=self.root.bucket, Key=key)
        files = [path for path in sorted(staging.rglob("*")) if path.is_file() and path != staging / last]
        for path in (*files, staging / last):
            try:
                self._upload(path, f"{name}/{path.relative_to(staging).as_posix()}", token)
            except FileExistsError as error:
                writer = self._writer(f"{name}/{last}")
                if writer is None:  # somebody else is at it, or was: begin again in a moment
                    raise OSError(errno.EBUSY, f"another process publishes {name}") from error
                return writer == token
        return True

    def _writer(self, name: str) -> str | None:
        """The token of the writer of an object that is there."""
        there = self._head(name)
        return None if there is None else str(there["Metadata"].get(TOKEN, ""))

    def _upload(self, path: Path, name: str, token: str) -> None:
        """A large file goes in parts, and is there with the last one."""
        target = f"{self.root.bucket}/{self._key(name)}"
        self._s3.put_file(str(path), target, mode="create", Metadata={TOKEN: token})

    # -- copies on this machine ----------------------------------------------------------------------------------

    def _copy_of(self, name: str) -> Path:
        return self._cache / "copies" / name.replace("/", ".")

    @remote
    def _download(self, name: str, last: str) -> Path | None:
        aside, copy = self._cache / "copies" / f"part.{uuid.uuid4().hex}", self._copy_of(name)
        aside.mkdir(parents=True)
        try:
            prefix = self._prefix(name)
            for key in self._listed(prefix):
                target = aside / key[len(prefix) :]
                target.parent.mkdir(parents=True, exist_ok=True)
                self._s3.get_file(f"{self.root.bucket}/{key}", str(target))
            if not (aside / last).is_file():
                return None
            with suppress(OSError):  # a copy that another process has just made is as good
                if copy.is_dir():
                    copy.rename(copy.with_name(f"old.{uuid.uuid4().hex}"))
                aside.rename(copy)
            return copy
        except FileNotFoundError:  # moved away in this very moment
            return None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            self._sweep()

    def _sweep(self) -> None:
        """Remove copies that nobody asked for in a long time."""
        if self._swept:
            return
        self._swept = True
        for copy in (self._cache / "copies").iterdir():
            with suppress(OSError):
                if time.time() - copy.stat().st_mtime > KEPT_SECONDS:
                    shutil.rmtree(copy, ignore_errors=True)


class HeldObject:
    """An object that this process created. It is touched by writing it anew, if it is still the same object."""

    MARK = b"\n"  # what follows it is a count of touches

    def __init__(self, files: ObjectFiles, name: str, content: bytes, tag: str) -> None:
        self._files, self._name, self._content, self._tag = files, name, content, tag
        self._touches = 0

    def touch(self) -> bool:
        self._touches += 1
        content = self._content + self.MARK + str(self._touches).encode()
        with as_os_errors():
            try:
                self._tag = self._files._put(self._name, content, IfMatch=self._tag)
            except FileNotFoundError:
                return False
            except OSError as error:
                if not is_precondition(error):
                    raise
                return self._was_written_before()
        return True

    def close(self) -> None:
        """Nothing is open."""

    def _was_written_before(self) -> bool:
        """Whether it is still this object: then only the answer to the last touch was lost."""
        there, content = self._files._head(self._name), self._files._get(self._name)
        if there is None or content is None or content.partition(self.MARK)[0] != self._content:
            return False
        self._tag = str(there["ETag"])
        return True


def cache_of(root: Uri) -> Path:
    """This user's folder for a study on this machine: no other user's, and no other server's."""
    server = os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", ""))
    name = hashlib.sha256(server.encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"orchestrator-{os.getuid()}" / name / root.path
