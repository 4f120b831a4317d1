"""The journal on object storage: nothing that was appended is lost, and it is opened with few requests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from test_proposals import end, opened

from orchestrator.files import Files, LocalFiles, Patience, Uri, local, open_files
from orchestrator.record import InvalidInput, TrialSpec
from orchestrator.search import journal
from orchestrator.search.journal_objects import MERGED, ObjectJournal
from orchestrator.search.proposals import Proposals
from orchestrator.search.space import SearchSpace

Log = dict[str, Any]


class Counted(LocalFiles):
    """Files in a folder: the journal asks for nothing that object storage could not do. Counts what is asked."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, Patience())
        self.reads = self.writes = 0

    def read(self, name: str) -> bytes | None:
        self.reads += 1
        return super().read(name)

    def create(self, name: str, content: bytes) -> Any:
        self.writes += 1
        return super().create(name, content)

    def write(self, name: str, content: bytes) -> None:
        self.writes += 1
        super().write(name, content)


@pytest.fixture
def files(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "journal")


def logs(start: int, stop: int) -> list[Log]:
    return [{"op_code": 4, "number": number} for number in range(start, stop)]


def filled(files: Files, count: int) -> ObjectJournal:
    found = ObjectJournal(files)
    for number in range(count):
        found.append_logs(logs(number, number + 1))
    return found


def test_what_was_appended_is_read_by_who_opens_it_next(files: Counted) -> None:
    first = filled(files, 5)
    first.append_logs(logs(5, 8))
    assert list(first.read_logs(0)) == list(ObjectJournal(files).read_logs(0)) == logs(0, 8)
    assert list(ObjectJournal(files).read_logs(6)) == logs(6, 8)
    assert files.names("")[-1] == "0000000005-0000000007.jsonl"


def test_a_long_journal_lies_in_few_objects(files: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 trials of about eight logs each."""
    count = 16_000
    monkeypatch.setattr(local, "_sync", lambda path: None)
    filled(files, count)
    assert files.writes < 1.05 * count
    assert len(files.names("")) < 3 * MERGED
    files.reads = 0
    again = ObjectJournal(files)
    assert files.reads < 3 * MERGED
    assert list(again.read_logs(0)) == logs(0, count)
    assert [name for name in files.names("") if name.endswith(".jsonl")] == ["0000000000-0000015999.jsonl"]
    again.append_logs(logs(count, count + 1))
    assert list(ObjectJournal(files).read_logs(0)) == logs(0, count + 1)


class Killed(BaseException):
    """What ends a process in the middle."""


@pytest.mark.parametrize("moment", range(2 * MERGED))
def test_a_driver_killed_while_it_merges_loses_nothing(
    files: Counted, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Before or after the merged segment is written, or after some of the others are removed."""
    found = filled(files, MERGED - 1)
    steps = [0]

    def step(act: Callable[[], None]) -> None:
        if steps[0] == moment:
            raise Killed
        act()
        steps[0] += 1

    def write(name: str, content: bytes) -> None:
        step(lambda: LocalFiles.write(files, name, content))

    def remove(names: list[str]) -> None:
        for name in names:
            step(lambda name=name: LocalFiles.remove(files, [name]))  # type: ignore[misc]

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", write)
        patch.setattr(files, "remove", remove)
        try:
            found.append_logs(logs(MERGED - 1, MERGED))
        except Killed:
            pass
        else:
            assert moment > MERGED
    again = ObjectJournal(files)
    assert list(again.read_logs(0)) == logs(0, MERGED)
    again.append_logs(logs(MERGED, MERGED + 2))
    assert list(ObjectJournal(files).read_logs(0)) == logs(0, MERGED + 2)


def test_a_driver_that_was_followed_by_another_is_stopped(files: Counted) -> None:
    stood_still = filled(files, 3)
    ObjectJournal(files).append_logs([{"op_code": 4, "number": 3, "worker_id": "the other"}])
    with pytest.raises(
        InvalidInput, match=r"journal/0000000003-0000000003\.jsonl: was written by another process; this"
    ):
        stood_still.append_logs(logs(3, 4))


@pytest.mark.parametrize("content", [b"", b"{}\n", b'{"op_code": 4}\n{"op_', b"[4]\n"])
def test_a_damaged_segment_is_the_users_to_decide_about(files: Counted, content: bytes) -> None:
    filled(files, 3)
    files.write("0000000001-0000000001.jsonl", content)
    message = r"journal/0000000001-0000000001\.jsonl: is damaged; move the journal away and give the same command again"
    with pytest.raises(InvalidInput, match=message):
        ObjectJournal(files)


def test_a_missing_segment_is_named(files: Counted) -> None:
    filled(files, 5)
    files.remove(["0000000001-0000000001.jsonl", "0000000002-0000000002.jsonl"])
    files.write("README", b"no segment")
    with pytest.raises(InvalidInput, match=r"journal: logs 1 to 2 are missing; move the journal away"):
        ObjectJournal(files)


def run(proposals: Proposals, stop_after: int = 10**9) -> list[TrialSpec]:
    ran: list[TrialSpec] = []
    while len(ran) < stop_after and (proposal := proposals.next()) is not None:
        ran.append(proposal.spec)
        end(proposals, proposal)
    return ran


def test_proposals_are_the_same_in_a_file_and_on_object_storage(
    space: SearchSpace, object_storage: Uri, tmp_path: Path
) -> None:
    place = object_storage / tmp_path.name / "journal.log"
    begun = run(opened(space, place, 6), stop_after=3)
    again = opened(space, place, 6)
    assert again.finished == 3
    begun += run(again)
    assert begun == run(opened(space, tmp_path / "journal.log", 6))
    there, here = (stored(at, space) for at in (place, tmp_path / "journal.log"))
    assert there == here
    segments = open_files(place).names("")
    content = b"".join(open_files(place).read(name) or b"" for name in segments)
    assert all("op_code" in json.loads(line) for line in content.splitlines())


def stored(place: Any, space: SearchSpace) -> list[Any]:
    study = optuna.load_study(study_name=space.name, storage=journal.open_journal(place))
    return [(trial.state, trial.values, trial.params) for trial in study.get_trials()]


def test_a_journal_in_a_bucket_that_is_missing(object_storage: Uri) -> None:
    with pytest.raises(InvalidInput, match=r"^s3://nobodys-bucket/j: cannot be read \(.*bucket does not exist\)$"):
        journal.open_journal(Uri("s3", "nobodys-bucket/j"))
