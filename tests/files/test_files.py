"""The operations on files: the same on a file system and on object storage, and what they do when answers are lost."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.files import Files, LocalFiles, Patience, Place, StorageFault, Uri, local, objects, open_files
from orchestrator.files.objects import HeldObject, ObjectFiles
from orchestrator.record import InvalidInput
from orchestrator.store import StageStore

QUICK = Patience(seconds=5, first_pause=0.001)


@pytest.fixture
def files(place: Place) -> Files:
    found = open_files(place, QUICK)
    found.prepare(["stages"])
    return found


@pytest.fixture
def remote(object_storage: Uri, tmp_path: Path) -> ObjectFiles:
    found = open_files(object_storage / tmp_path.name, QUICK)
    assert isinstance(found, ObjectFiles)
    return found


def staged(files: Files, name: str = "work", **content: bytes) -> Path:
    folder = files.staging(name)
    folder.mkdir(parents=True)
    for file, text in (content or {"a": b"1", "sub": b"2", "last": b"3"}).items():
        (folder / file).write_bytes(text)
    return folder


# --- the same for both ---


def test_files_are_written_read_listed_and_removed(files: Files) -> None:
    assert files.read("notes/one") is None
    assert files.names("notes") == []
    files.write("notes/one", b"1")
    files.write("notes/one", b"2")
    files.write("notes/two/deep", b"")
    assert files.read("notes/one") == b"2"
    assert files.read("notes/two/deep") == b""
    assert files.names("notes") == ["one", "two"]
    assert "notes" in files.names("")
    assert files.exists("notes/one")
    assert not files.exists("notes/two")
    files.remove(["notes/one", "notes/never"])
    assert not files.exists("notes/one")


def test_of_many_who_create_a_file_one_gets_it(files: Files) -> None:
    winners: list[int] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait()
        if files.create("claims/one", b"%d" % number) is not None:
            winners.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = winners
    found = files.look("claims/one")
    assert found is not None
    assert found[0] == b"%d" % winner


def test_a_touch_is_seen_and_changes_no_content(files: Files) -> None:
    held = files.create("claims/one", b"mine")
    assert held is not None
    seen = [files.look("claims/one")]
    for _ in range(2):
        assert held.touch()
        seen.append(files.look("claims/one"))
    assert len(set(seen)) == 3
    assert {found[0] for found in seen if found} == {b"mine"}
    held.close()
    assert files.look("claims/none") is None


def test_a_file_that_was_replaced_is_not_touched(files: Files) -> None:
    """An owner that stood still must not keep the claim of its follower alive, nor bring back what was removed."""
    held = files.create("claims/one", b"mine")
    assert held is not None
    files.remove(["claims/one"])
    files.write("claims/one", b"another's")
    before = files.look("claims/one")
    held.touch()
    assert files.look("claims/one") == before
    files.remove(["claims/one"])
    held.touch()
    assert files.look("claims/one") is None
    held.close()


def test_a_folder_is_published_fetched_and_moved_whole(files: Files) -> None:
    assert files.fetch("stages/x", "last") is None
    folder = files.publish(staged(files), "stages/x", "last")
    assert folder is not None
    assert files.fetch("stages/x", "last") == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"1", "sub": b"2", "last": b"3"}
    assert files.publish(staged(files, "again"), "stages/x", "last") is None
    assert files.publish(staged(files, "other", last=b"4"), "stages/y", "last")
    assert files.published("stages", "last") == ["x", "y"]
    assert files.having("stages", "last", "a") == ["x"]
    assert files.has("stages/x", "last")
    files.move("stages/x", "damaged/x", "last")
    assert not files.has("stages/x", "last")
    assert files.fetch("stages/x", "last") is None
    assert files.names("damaged/x") == ["a", "last", "sub"]


def test_reading_ahead_changes_no_answer(files: Files) -> None:
    files.write("notes/one", b"1")
    files.read_ahead(["notes/one", "notes/none"])
    assert files.exists("notes/one")
    assert not files.exists("notes/none")
    assert [files.read("notes/one"), files.read("notes/none")] == [b"1", None]
    files.read_ahead(["notes/one"])
    files.write("notes/one", b"2")
    files.read_ahead([])
    assert files.read("notes/one") == b"2"


# --- a file system alone ---


def test_what_killed_processes_were_writing_is_removed_an_hour_later(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    for name in ("discarded.1", "0a1b2c.7"):
        (staging / name).mkdir(parents=True)
        (staging / name / "weights").touch()
    for name in ("file.1", "file.2", "probe.1"):
        (staging / name).touch()
    long_ago = time.time() - local.MOMENT_SECONDS - 60
    for name in ("discarded.1", "0a1b2c.7", "file.1", "probe.1"):
        os.utime(staging / name, (long_ago, long_ago))
    LocalFiles(tmp_path, QUICK).prepare(["stages"])
    # file.2 may be written at this moment; the folder is of a stage, and goes when its claim passes on.
    assert sorted(os.listdir(staging)) == ["0a1b2c.7", "file.2"]


# --- answers that are lost on the way ---


def losing(function: Callable[..., Any], times: int = 1) -> Callable[..., Any]:
    """Does what is asked, and then says that the connection broke."""
    left = [times]

    def call(*args: Any, **kwargs: Any) -> Any:
        answer = function(*args, **kwargs)
        if left[0]:
            left[0] -= 1
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return answer

    return call


def test_what_was_created_although_the_answer_was_lost_is_ones_own(
    remote: ObjectFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_put", losing(remote._put))
    held = remote.create("claims/one", b"mine")
    assert held is not None
    assert held.touch()
    assert remote.create("claims/one", b"mine") is None  # the same content, and another who tries


def test_a_touch_whose_answer_was_lost_does_no_harm(remote: ObjectFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    held = remote.create("claims/one", b"mine")
    assert held is not None
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_put", losing(remote._put))
        with pytest.raises(ConnectionResetError):
            held.touch()
    assert held.touch()
    assert held.touch()


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_stage_is_published_once_although_an_answer_was_lost(
    remote: ObjectFiles, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    upload, asked = remote._upload, [0]

    def lost(path: Path, name: str, token: str) -> None:
        upload(path, name, token)
        asked[0] += 1
        if asked[0] == calls:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(remote, "_upload", lost)
    folder = remote.publish(staged(remote), "stages/x", "last")
    assert folder is not None
    assert remote.names("stages/x") == ["a", "last", "sub"]


def test_what_a_dead_owner_left_is_not_taken_over(remote: ObjectFiles) -> None:
    remote.write("stages/x/a", b"torn")
    remote.write("stages/x/more", b"torn")
    assert remote.published("stages", "last") == []
    assert remote.publish(staged(remote), "stages/x", "last")
    assert remote.names("stages/x") == ["a", "last", "sub"]
    assert remote.read("stages/x/a") == b"1"


def test_of_two_that_publish_at_once_one_does(remote: ObjectFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writes a file in the middle, and is slower; or publishes first."""
    upload = remote._upload

    def disturbed(path: Path, name: str, token: str) -> None:
        if not remote.exists("disturbed"):
            remote.write("disturbed", b"")
            remote.write("stages/x/a", b"the other's")
        upload(path, name, token)

    monkeypatch.setattr(remote, "_upload", disturbed)
    assert remote.publish(staged(remote), "stages/x", "last")
    assert remote.read("stages/x/a") == b"1"

    def beaten(path: Path, name: str, token: str) -> None:
        monkeypatch.setattr(remote, "_upload", upload)
        assert remote.publish(staged(remote, "faster"), "stages/y", "last")
        upload(path, name, token)

    monkeypatch.setattr(remote, "_upload", beaten)
    assert remote.publish(staged(remote, "slower", a=b"slow", last=b""), "stages/y", "last") is None
    assert remote.read("stages/y/a") == b"1"


def test_an_open_file_that_its_server_forgot_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LocalFiles(tmp_path, QUICK)
    held = files.create("claims/one", b"mine")
    assert held is not None
    utime, stale = os.utime, [True]

    def forgotten(target: Any, **given: Any) -> None:
        if stale.pop() if stale else False:
            raise OSError(errno.ESTALE, "Stale file handle")
        utime(target, **given)

    monkeypatch.setattr(os, "utime", forgotten)
    assert held.touch()
    stale.append(True)
    (tmp_path / "claims" / "one").write_bytes(b"another's")
    assert not held.touch()
    held.close()


def test_a_file_system_that_is_away_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LocalFiles(tmp_path, QUICK)
    monkeypatch.setattr(local, "_sync", losing(local._sync))
    files.write("study.json", b"{}")
    assert files.read("study.json") == b"{}"
    monkeypatch.setattr(local, "_sync", losing(local._sync, times=4))
    assert files.publish(staged(files), "x", "last") == tmp_path / "x"
    monkeypatch.setattr(os, "listdir", losing(os.listdir))
    assert files.names("x") == ["a", "last", "sub"]
    monkeypatch.setattr(os, "write", losing(os.write))
    held = files.create("claim", b"mine")
    assert held is not None
    held.close()
    assert files.create("claim", b"other") is None


# --- a server that is away ---


@pytest.fixture
def server(object_storage: Uri, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A second way to the bucket, which can be closed and opened."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    server._port = port
    yield server
    server.stop()


def test_a_server_that_comes_back_is_not_missed(server: Any, object_storage: Uri, tmp_path: Path) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            server.start()

    files = open_files(object_storage / tmp_path.name, Patience(clock=lambda: sum(pauses), pause=pause))
    files.write("one", b"1")
    server.stop()
    assert files.read("one") == b"1"
    assert len(pauses) >= 3


def test_a_server_that_stays_away_is_named(server: Any, object_storage: Uri, tmp_path: Path) -> None:
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += 40 * seconds

    files = open_files(object_storage / tmp_path.name, Patience(clock=lambda: now[0], pause=pause))
    server.stop()
    message = r"^s3://studies/.*: the storage has been away for 150 s \(could not connect to the endpoint URL"
    with pytest.raises(StorageFault, match=message):
        files.write("one", b"1")
    server.start()


def test_a_bucket_that_is_missing_is_named(object_storage: Uri) -> None:
    store = StageStore("s3://nobodys-bucket/studies/small")
    with pytest.raises(
        InvalidInput, match=r"^s3://nobodys-bucket/studies/small: cannot be written \(.*bucket does not"
    ):
        store.prepare()
    with pytest.raises(InvalidInput, match=r"nobodys-bucket/studies/small/study\.json: cannot be read \(.*bucket does"):
        store.read_json("study.json")


def test_missing_credentials_are_named(
    object_storage: Uri, monkeypatch: pytest.MonkeyPatch, server: Any, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(InvalidInput, match=r"cannot be written \(unable to locate credentials; set AWS_PROFILE or"):
        StageStore(object_storage / "small").prepare()


# --- copies on this machine, and what a look-up costs ---


@pytest.fixture
def requests(remote: ObjectFiles, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request to the object storage, by its operation."""
    from aiobotocore.client import AioBaseClient  # type: ignore[import-untyped]

    made: list[str] = []
    call = AioBaseClient._make_api_call

    async def counted(client: Any, operation: str, given: Any) -> Any:
        made.append(operation)
        return await call(client, operation, given)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", counted)
    return made


def test_what_operations_cost(remote: ObjectFiles, requests: list[str]) -> None:
    def cost(act: Callable[[], object]) -> list[str]:
        requests.clear()
        act()
        return list(requests)

    assert cost(lambda: remote.has("stages/x", "last")) == ["HeadObject"]
    folder = staged(remote)
    put = ["PutObject"] * 3
    assert cost(lambda: remote.publish(folder, "stages/x", "last")) == ["HeadObject", "ListObjectsV2", *put]
    assert cost(lambda: remote.has("stages/x", "last")) == ["HeadObject"]
    assert cost(lambda: remote.fetch("stages/x", "last")) == ["GetObject"]
    anew = cost(lambda: remote.fetch("stages/x", "last", anew=True))
    assert anew == ["GetObject", "ListObjectsV2", *["GetObject"] * 3]
    assert cost(lambda: remote.published("stages", "last")) == ["ListObjectsV2"]
    assert cost(lambda: remote.names("stages")) == ["ListObjectsV2"]
    assert cost(lambda: remote.read_ahead(["stages/x/a", "stages/x/b"])) == ["GetObject"] * 2
    assert cost(lambda: remote.read("stages/x/a")) == []
    assert cost(lambda: remote.read("stages/x/a")) == ["GetObject"]


def test_a_copy_that_nobody_asks_for_is_removed(remote: ObjectFiles) -> None:
    assert remote.publish(staged(remote), "stages/old", "last")
    assert remote.publish(staged(remote, "new"), "stages/new", "last")
    copy = remote.fetch("stages/old", "last")
    assert copy is not None
    long_ago = time.time() - objects.KEPT_SECONDS - 60
    os.utime(copy, (long_ago, long_ago))
    anew = remote.fetch("stages/new", "last", anew=True)
    assert anew is not None
    assert anew.is_dir()
    assert not copy.exists()
    assert remote.fetch("stages/old", "last") == copy
    assert (copy / "a").read_bytes() == b"1"


def test_a_folder_that_is_moved_while_it_is_fetched(remote: ObjectFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote.publish(staged(remote), "stages/x", "last")
    listed = remote._listed

    def late(prefix: str, **options: Any) -> Iterator[str]:
        keys = list(listed(prefix, **options))
        remote.remove(["stages/x/last", "stages/x/a"])
        yield from keys

    monkeypatch.setattr(remote, "_listed", late)
    assert remote.fetch("stages/x", "last", anew=True) is None


def test_the_mark_of_a_touch_is_no_part_of_a_record() -> None:
    assert HeldObject.MARK not in b'{"token": "t"}'
