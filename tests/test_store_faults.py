"""What the storage of a study does to it, and what the user sees: damage, a full disk, storage that goes away."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.claim import Claim, Generation, Owner, Sighting, Timing, Watch, machine, sight, started_at
from orchestrator.files import Files, LocalFiles, Patience, Place, StorageFault, Uri, open_files
from orchestrator.record import Cost, InvalidInput, Point, Stage, stage_key, whereabouts
from orchestrator.stage_files import DamagedStage, write_record
from orchestrator.store import SOUND, Occupied, StageStore

PARAMETERS = {"model": "cifarnet", "seed": 0}
KEY = stage_key(None, "dense", PARAMETERS)
STAGE = Stage(key=KEY, parent=None, kind="dense", parameters=PARAMETERS, cost=Cost(seconds=1.0), **whereabouts())
PLACE = f"stages/{KEY}"


def write(staging: Path) -> None:
    write_record(staging / "stage.json", STAGE)
    (staging / "weights.safetensors").write_bytes(b"weights")


def never(staging: Path) -> None:
    raise AssertionError("was computed again")


@pytest.fixture
def store(place: Place) -> StageStore:
    return StageStore(place / "study")


@pytest.fixture
def files(store: StageStore) -> Files:
    return open_files(store.root)


def as_another_process(store: StageStore) -> None:
    """Forget what this process has checked, and the copies of this machine."""
    SOUND.clear()
    if isinstance(store.root, Uri):
        shutil.rmtree(open_files(store.root).staging("").parent)


# --- damage ---


def altered(files: Files) -> None:
    files.write(f"{PLACE}/weights.safetensors", b"Weights")


def truncated(files: Files) -> None:
    files.write(f"{PLACE}/weights.safetensors", b"wei")


def without_weights(files: Files) -> None:
    files.remove([f"{PLACE}/weights.safetensors"])


def torn_record(files: Files) -> None:
    files.write(f"{PLACE}/stage.json", (files.read(f"{PLACE}/stage.json") or b"")[:100])


def anothers_record(files: Files) -> None:
    other = STAGE.model_copy(update={"parameters": {}, "key": stage_key(None, "dense", {})})
    files.write(f"{PLACE}/stage.json", other.model_dump_json().encode())


DAMAGES: dict[Callable[[Files], None], str] = {
    altered: r"weights\.safetensors is not what was published",
    truncated: r"weights\.safetensors is not what was published",
    without_weights: r"weights\.safetensors is missing",
    torn_record: r"stage\.json: damaged \(no JSON",
    anothers_record: r"stage\.json holds another stage's record",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: str(damage.__name__))
def test_a_damaged_stage_is_moved_aside_and_computed_again(
    store: StageStore, files: Files, damage: Callable[[Files], None]
) -> None:
    store.obtain(KEY, write)
    damage(files)
    as_another_process(store)
    with pytest.raises(DamagedStage, match=DAMAGES[damage]) as caught:
        store.folder(KEY)
    assert str(caught.value).startswith(f"{store.root}/{PLACE}: ")
    assert str(caught.value).endswith("; the next search that needs it moves it aside and computes it again")
    assert store.has(KEY)  # who only reads moves nothing

    folder, computed = store.obtain(KEY, write)
    assert computed
    assert (folder / "weights.safetensors").read_bytes() == b"weights"
    assert store.folder(KEY) == folder
    assert store.obtain(KEY, never) == (folder, False)
    (found,) = store.damaged()
    assert found.key == KEY
    assert found.moved_to.startswith(f"{store.root}/damaged/{KEY}.")
    assert str(found).endswith(f"; now in {found.moved_to}")
    aside = f"damaged/{Path(found.moved_to).name}"
    assert "stage.json" in files.names(aside)  # nothing is deleted
    assert store.replaced() == {KEY}
    assert store.duplicates() == 0
    assert files.names("claims") == files.names("staging") == []


def test_what_was_published_before_there_were_digests_is_read(store: StageStore, files: Files) -> None:
    store.obtain(KEY, write)
    files.write(f"{PLACE}/stage.json", STAGE.model_dump_json(exclude={"files"}).encode())
    as_another_process(store)
    folder = store.folder(KEY)
    assert folder is not None
    assert store.stage(KEY).files is None
    files.write(f"{PLACE}/point.json", b"{")
    as_another_process(store)
    with pytest.raises(DamagedStage, match=r"point\.json: damaged \(no JSON"):
        store.folder(KEY)


def test_a_stage_is_checked_once_in_a_process(store: StageStore, files: Files) -> None:
    folder, _ = store.obtain(KEY, write)
    altered(files)
    assert store.folder(KEY) == folder
    assert StageStore(store.root).obtain(KEY, never) == (folder, False)


def test_a_damaged_copy_is_fetched_again(object_storage: Uri, tmp_path: Path) -> None:
    store = StageStore(object_storage / tmp_path.name)
    folder, _ = store.obtain(KEY, write)
    (folder / "weights.safetensors").write_bytes(b"torn")
    SOUND.clear()
    assert store.folder(KEY) == folder
    assert (folder / "weights.safetensors").read_bytes() == b"weights"
    assert store.damaged() == []


def test_a_finished_stage_in_a_folder_is_found_by_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StageStore(tmp_path / "study")
    store.obtain(KEY, write)
    looks: list[str] = []

    def counted(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        looks.append(str(path))
        return stat(path, *args, **kwargs)

    stat = os.stat
    monkeypatch.setattr(os, "stat", counted)
    assert store.obtain(KEY, never)
    assert store.has(KEY)
    assert looks == [str(tmp_path / "study" / PLACE)] * 2


def test_damaged_stages_are_left_out_where_many_are_read(store: StageStore, files: Files) -> None:
    store.obtain(KEY, write)
    torn_record(files)
    assert store.keys() == [KEY]
    assert list(store.stages()) == []
    assert list(store.points()) == []


# --- a full disk ---


def fills_the_disk(staging: Path) -> None:
    write(staging)
    with open("/dev/full", "wb") as file:  # a disk without space, as Linux has it
        file.write(b"weights")


def fills_the_disk_by_a_library(staging: Path) -> None:
    write(staging)
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("compute", [fills_the_disk, fills_the_disk_by_a_library])
def test_a_disk_that_is_full_while_a_stage_is_computed(
    store: StageStore, files: Files, compute: Callable[[Path], None]
) -> None:
    with pytest.raises(StorageFault, match=r"^/.*: no space is left there; free some, and the same command goes on$"):
        store.obtain(KEY, compute)
    assert not store.has(KEY)
    assert files.names("claims") == files.names("staging") == []
    assert list(files.staging("").glob("*")) == []
    assert store.obtain(KEY, write)[1]


def full(*given: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_when_a_stage_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StageStore(tmp_path / "study")

    def compute(staging: Path) -> None:
        write(staging)
        monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StorageFault, match=r"^.*/study: no space is left there"):
        store.obtain(KEY, compute)
    monkeypatch.undo()
    assert store.keys() == []
    assert os.listdir(tmp_path / "study" / "staging") == os.listdir(tmp_path / "study" / "claims") == []


def test_a_disk_that_is_full_before_anything_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StageStore(tmp_path / "study")
    store.prepare()
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageFault, match=r"^.*/study: no space is left there"):
        store.obtain(KEY, never)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageFault, match=r"^.*/study: no space is left there"):
        store.write_json("study.json", {})
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "study" / "staging")) == []
    assert store.read_json("study.json") is None


# --- storage that goes away ---


class Outage:
    """Storage that fails from now on until a clock, which pauses move, has gone on by `seconds`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.until = 0.0, seconds
        for name in ("listdir", "open"):
            monkeypatch.setattr(os, name, self.failing(getattr(os, name)))

    def failing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.now < self.until:
                raise OSError(errno.ESTALE, "Stale file handle")
            return function(*args, **kwargs)

        return call

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def timing(self) -> Timing:
        return Timing(clock=lambda: self.now, pause=self.pause)


def test_a_stage_is_computed_in_spite_of_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    StageStore(tmp_path).prepare()
    outage = Outage(monkeypatch, 60)
    with caplog.at_level(logging.WARNING):
        assert StageStore(tmp_path, timing=outage.timing()).obtain(KEY, write)[1]
    assert 60 <= outage.now <= 66
    assert f"{tmp_path}: the storage is away (stale file handle); trying again" in caplog.text


def test_an_outage_that_does_not_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StageStore(tmp_path / "study", timing=Outage(monkeypatch, 1e9).timing())
    message = r"/study: the storage has been away for 150 s \(stale file handle\); the same command goes on when it is"
    for ask in (lambda: store.obtain(KEY, never), store.keys, store.failures):
        with pytest.raises(StorageFault, match=message):
            ask()


def owner(**changes: Any) -> Owner:
    here = Owner(token="t", machine=machine(), started=started_at(os.getpid()), **whereabouts())
    return here.model_copy(update=changes)


def test_time_in_which_nobody_could_look_does_not_count() -> None:
    """The storage is away for longer than a claim may be silent: its owner, who could not touch it, is not dead."""
    now = 0.0
    watch = Watch(Timing(clock=lambda: now))
    sighting = Sighting(1, owner(machine="elsewhere"), 0)
    for seconds in (0.0, 5.0, 10.0, 15.0, 100.0, 105.0, 110.0, 115.0):
        now = seconds
        assert not watch.is_dead(sighting)
    now = 120.0
    assert watch.is_dead(sighting)


class Unsteady:
    """A held file whose storage is away for its first touches."""

    def __init__(self, away: int) -> None:
        self.away, self.touches = away, 0

    def touch(self) -> bool:
        self.touches += 1
        if self.touches <= self.away:
            raise OSError(errno.EIO, "Input/output error")
        return self.touches < self.away + 3

    def close(self) -> None:
        pass


def test_a_heart_beats_on_after_an_outage_and_stops_when_the_claim_is_lost(tmp_path: Path) -> None:
    held = Unsteady(away=3)
    at = Generation(LocalFiles(tmp_path, Patience()), "claims/x", 1)
    claim = Claim(at, held, owner(), Timing(beat_seconds=0.001))
    with claim:
        claim._heart.join(timeout=30)  # it ends by itself at the touch that finds another's file
    assert held.touches == 6


def test_leaving_a_claim_while_the_storage_is_away_leaves_it_to_pass_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore(tmp_path / "study", timing=Timing(pause=lambda seconds: None, clock=iter(range(10**6)).__next__))
    with store.exclusive("driver"):
        monkeypatch.setattr(os, "listdir", Outage(monkeypatch, 1).failing(os.listdir))
    monkeypatch.undo()
    assert sight(open_files(store.root), "claims/driver") is not None
    with (
        pytest.raises(Occupied, match=f"process {os.getpid()} on .* is its driver; one at a time"),
        store.exclusive("driver"),
    ):
        pass


def test_a_point_is_no_stage(store: StageStore) -> None:
    with pytest.raises(InvalidInput, match="has no stage"):
        store.point(KEY)
    assert not store.has_point(KEY)
    assert Point.model_fields.keys() >= {"key", "accuracy"}
