"""The stage store: whole or not at all, once only, no claim outlives its owner; in a folder and on object storage."""

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orchestrator
from orchestrator.claim import Owner, Timing, life_of, machine, newest, sight, started_at
from orchestrator.files import Files, Place, open_files
from orchestrator.files.objects import HeldObject
from orchestrator.record import Cost, Failure, InvalidInput, Schedule, Stage, TrialSpec, stage_key, whereabouts
from orchestrator.stage_files import DamagedRecord, DamagedStage, write_record
from orchestrator.store import Occupied, StageStore

PARAMETERS = {"model": "cifarnet", "seed": 0}
KEY = stage_key(None, "dense", PARAMETERS)
STAGE = Stage(key=KEY, parent=None, kind="dense", parameters=PARAMETERS, cost=Cost(seconds=1.0), **whereabouts())

Spawn = Callable[..., subprocess.Popen[str]]


class Clock:
    """A clock that only moves when somebody pauses; `then` is called at each pause."""

    def __init__(self, then: Callable[[float], None] = lambda seconds: None) -> None:
        self.seconds = 0.0
        self.then = then

    def timing(self) -> Timing:
        return Timing(clock=lambda: self.seconds, pause=self.pause, poll_seconds=2.0)

    def pause(self, seconds: float) -> None:
        self.seconds += seconds
        self.then(self.seconds)


def write(staging: Path) -> None:
    write_record(staging / "stage.json", STAGE)
    (staging / "weights.safetensors").write_bytes(b"weights")


def never(staging: Path) -> None:
    raise AssertionError("was computed again")


def files(store: StageStore) -> Files:
    """What the store keeps, seen without it."""
    return open_files(store.root)


def foreign_claim(store: StageStore, name: str, text: str | None = None) -> str:
    """A claim from another machine; nobody here can ask whether its owner lives."""
    store.prepare()
    owner = Owner(token="t", host="far", pid=1, machine="far boot pid:[1]", started="5", created="2025-01-01")
    claim = f"claims/{name}/1.json"
    files(store).write(claim, (owner.model_dump_json() if text is None else text).encode())
    return claim


def touch(store: StageStore, claim: str, count: int) -> None:
    """The sign of life of another machine, whose clock is decades slow: nobody minds."""
    if isinstance(store.root, Path):
        os.utime(store.root / claim, ns=(0, count))
    else:
        content = files(store).read(claim) or b""
        files(store).write(claim, content.partition(HeldObject.MARK)[0] + HeldObject.MARK + str(count).encode())


def content(folder: Path) -> dict[str, bytes]:
    """A stage's files but for its record."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "stage.json"}


def left(store: StageStore) -> list[str]:
    """Claims, and work in progress."""
    here = files(store).staging("").glob("*")
    return [*files(store).names("claims"), *files(store).names("staging"), *map(str, here)]


@pytest.fixture
def store(place: Place) -> StageStore:
    return StageStore(place / "study")


@pytest.fixture
def spawn(store: StageStore) -> Iterator[Spawn]:
    """Starts Python code in a process of its own, with `store`, `KEY` and `write` as here; kills what is left."""
    prelude = (
        "import sys, os\n"
        "from pathlib import Path\n"
        "from orchestrator.claim import Timing\n"
        "from orchestrator.files import open_files\n"
        "from orchestrator.record import Stage\n"
        "from orchestrator.stage_files import write_record\n"
        "from orchestrator.store import StageStore\n"
        f"stage = Stage.model_validate_json({STAGE.model_dump_json()!r})\n"
        f"KEY, store = stage.key, StageStore({str(store.root)!r}, timing=Timing(poll_seconds=0.2))\n"
        "def write(staging):\n"
        "    write_record(staging / 'stage.json', stage)\n"
    )
    root = Path(orchestrator.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", prelude + code]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


HANG = """
def compute(staging):
    (staging / 'weights.safetensors').write_bytes(b'torn')
    print('computing', flush=True)
    sys.stdin.read()
store.obtain(KEY, compute)
"""


# --- publishing ---


def test_a_stage_is_computed_once_and_then_looked_up(store: StageStore) -> None:
    assert store.folder(KEY) is None
    folder, computed = store.obtain(KEY, write)
    assert computed
    assert sorted(path.name for path in folder.iterdir()) == ["stage.json", "weights.safetensors"]
    assert store.obtain(KEY, never) == (folder, False)
    assert store.folder(KEY) == folder
    published = STAGE.model_copy(update={"files": {"weights.safetensors": hashlib.sha256(b"weights").hexdigest()}})
    assert store.stage(KEY) == published
    assert list(store.stages()) == [published]
    assert list(store.points()) == []
    assert store.duplicates() == 0


def test_nothing_is_left_behind_by_a_finished_stage(store: StageStore) -> None:
    store.obtain(KEY, write)
    assert left(store) == []


@pytest.mark.parametrize("interrupt", [RuntimeError("out of luck"), KeyboardInterrupt()])
def test_a_stage_that_raises_is_not_published_and_can_be_tried_again(
    store: StageStore, interrupt: BaseException
) -> None:
    def fail(staging: Path) -> None:
        write(staging)
        raise interrupt

    with pytest.raises(type(interrupt)):
        store.obtain(KEY, fail)
    assert store.folder(KEY) is None
    assert left(store) == []
    assert store.obtain(KEY, write)[1]


def test_work_in_progress_is_invisible(store: StageStore) -> None:
    def look(staging: Path) -> None:
        write(staging)
        other = StageStore(store.root)
        assert other.folder(KEY) is None
        assert other.keys() == []

    assert store.obtain(KEY, look)[1]


def test_a_stage_without_its_record_is_our_mistake(store: StageStore) -> None:
    with pytest.raises(AssertionError, match=r"compute left no stage\.json"):
        store.obtain(KEY, lambda staging: None)
    assert store.folder(KEY) is None


def test_junk_among_the_stages_is_no_stage(store: StageStore) -> None:
    store.obtain(KEY, write)
    files(store).write("stages/.DS_Store", b"")
    assert store.keys() == [KEY]


# --- claims ---


def test_two_processes_that_want_the_same_stage_compute_it_once(store: StageStore, spawn: Spawn) -> None:
    code = """
def compute(staging):
    open_files(store.root).write(f'computed/{os.getpid()}', b'')
    write(staging)
print('ready', flush=True)
sys.stdin.readline()
print(store.obtain(KEY, compute)[1], flush=True)
"""
    store.prepare()
    processes = [spawn(code) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        let_go(process)
    answers = [process.communicate()[0].strip() for process in processes]
    assert sorted(answers) == ["False", "False", "True"]
    assert len(files(store).names("computed")) == 1
    assert store.duplicates() == 0


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_many_threads_that_want_the_same_stage_compute_it_once(store: StageStore) -> None:
    computed: list[int] = []
    start = threading.Barrier(8)

    def compute(staging: Path) -> None:
        computed.append(1)
        write(staging)

    def work() -> None:
        start.wait()
        StageStore(store.root, timing=Timing(poll_seconds=0.02)).obtain(KEY, compute)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed == [1]
    assert store.duplicates() == 0


def test_the_claim_of_a_killed_process_passes_on_at_once(store: StageStore, spawn: Spawn) -> None:
    process = spawn(HANG)
    assert process.stdout is not None
    assert process.stdout.readline() == "computing\n"
    process.kill()
    process.wait()
    clock = Clock()
    folder, computed = StageStore(store.root, timing=clock.timing()).obtain(KEY, write)
    assert computed
    assert clock.seconds == 0.0
    assert (folder / "weights.safetensors").read_bytes() == b"weights"
    assert left(store) == []  # the torn work is gone, too


def test_what_a_killed_process_claimed_is_swept_whatever_became_of_the_stage(store: StageStore, spawn: Spawn) -> None:
    process = spawn(HANG)
    assert process.stdout is not None
    assert process.stdout.readline() == "computing\n"
    files(store).create(f"claims/{'f' * 64}/1.json", files(store).read(f"claims/{KEY}/1.json") or b"")
    foreign = foreign_claim(store, "e" * 64)
    with store.exclusive("driver"):
        store.sweep()
        assert len(files(store).names("claims")) == 4  # all of them may be alive
        process.kill()
        process.wait()
        store.sweep()
        assert left(store) == ["driver", "e" * 64]
    assert files(store).read(foreign) is not None
    assert store.obtain(KEY, write)[1]


def test_a_claim_that_was_given_back_but_for_its_folder_is_swept(store: StageStore) -> None:
    store.prepare()
    if isinstance(store.root, Path):
        (store.root / "claims" / KEY).mkdir()
    store.sweep()
    assert left(store) == []


def test_a_process_that_is_killed_but_not_yet_reaped_counts_as_gone(store: StageStore, spawn: Spawn) -> None:
    process = spawn(HANG)
    assert process.stdout is not None
    assert process.stdout.readline() == "computing\n"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the process table
    assert started_at(process.pid) == ""
    assert store.obtain(KEY, write)[1]


def test_one_waits_for_a_living_owner(store: StageStore, spawn: Spawn) -> None:
    process = spawn(HANG.replace("sys.stdin.read()", "sys.stdin.read(); write(staging)"))
    assert process.stdout is not None
    assert process.stdout.readline() == "computing\n"

    def let_it_finish(seconds: float) -> None:
        if seconds >= 5.0 and process.returncode is None:
            process.communicate()

    folder, computed = StageStore(store.root, timing=Clock(let_it_finish).timing()).obtain(KEY, never)
    assert not computed
    assert (folder / "weights.safetensors").read_bytes() == b"torn"
    assert process.returncode == 0


def test_a_claim_from_another_machine_passes_on_when_its_heart_stops(store: StageStore) -> None:
    claim = foreign_claim(store, KEY)

    def beat(seconds: float) -> None:
        if seconds < 40:
            touch(store, claim, int(seconds))

    clock = Clock(beat)
    assert StageStore(store.root, timing=clock.timing()).obtain(KEY, write)[1]
    assert 58 <= clock.seconds <= 70
    assert store.duplicates() == 0


@pytest.mark.parametrize("text", ["", '{"token": "t", "ho'])
def test_a_claim_whose_maker_died_while_writing_it_passes_on(store: StageStore, text: str) -> None:
    foreign_claim(store, KEY, text)
    clock = Clock()
    assert StageStore(store.root, timing=clock.timing()).obtain(KEY, write)[1]
    assert 20 <= clock.seconds <= 30


def test_of_two_that_take_over_one_wins(store: StageStore) -> None:
    foreign_claim(store, KEY)
    rivals: list[bool] = []

    def rival(seconds: float) -> None:
        """The other one takes over while this one still waits; this one then finds it done."""
        if seconds >= 19 and not rivals:
            rivals.append(StageStore(store.root, timing=Clock().timing()).obtain(KEY, write)[1])

    assert not StageStore(store.root, timing=Clock(rival).timing()).obtain(KEY, never)[1]
    assert rivals == [True]


def test_an_owner_that_stood_still_for_long_discards_its_work(store: StageStore) -> None:
    other = StageStore(store.root)

    def overtaken(staging: Path) -> None:
        """While this one computes, it stops for so long that another one takes over and publishes."""
        write(staging)
        mine = files(store).read(f"claims/{KEY}/1.json") or b""
        files(store).write(f"claims/{KEY}/2.json", mine.replace((machine() or "null").encode(), b"elsewhere"))
        publish_another(store, staging)

    folder, computed = store.obtain(KEY, overtaken)
    assert not computed
    assert (folder / "weights.safetensors").read_bytes() == b"the other's"
    assert store.duplicates() == 1
    assert newest(files(store), f"claims/{KEY}") == 2  # the other's claim is not ours to remove
    assert left(store) == [KEY]
    assert other.obtain(KEY, never) == (folder, False)


def publish_another(store: StageStore, staging: Path) -> None:
    copy = Path(shutil.copytree(staging, staging.with_name("other")))
    (copy / "weights.safetensors").write_bytes(b"the other's")
    assert files(store).publish(copy, f"stages/{KEY}", "stage.json")


def test_a_stage_that_is_published_twice_stays_as_it_was(store: StageStore) -> None:
    def beaten(staging: Path) -> None:
        write(staging)
        publish_another(store, staging)

    folder, computed = store.obtain(KEY, beaten)
    assert not computed
    assert (folder / "weights.safetensors").read_bytes() == b"the other's"
    assert store.duplicates() == 1


def test_an_owner_keeps_its_claim_alive(store: StageStore) -> None:
    """With a quick heartbeat, the file is seen to change; the test waits for the change itself."""
    quick = StageStore(store.root, timing=Timing(beat_seconds=0.01))
    claim = f"claims/{KEY}"

    def compute(staging: Path) -> None:
        write(staging)
        first = sight(files(store), claim)
        waiting = threading.Event()
        while (latest := sight(files(store), claim)) == first:
            waiting.wait(0.01)
        assert first is not None
        assert latest is not None
        assert latest.owner == first.owner

    assert quick.obtain(KEY, compute)[1]


def test_an_unmistakable_process() -> None:
    here = Owner(token="t", machine=machine(), started=started_at(os.getpid()), **whereabouts())
    assert life_of(here) == "alive"
    assert life_of(here.model_copy(update={"started": "1"})) == "gone"  # the pid, given to a later process
    assert life_of(here.model_copy(update={"machine": "elsewhere"})) == "unknown"
    assert life_of(here.model_copy(update={"machine": None})) == "unknown"
    assert life_of(None) == "unknown"
    child = multiprocessing.get_context("spawn").Process()
    child.start()
    child.join()
    assert life_of(here.model_copy(update={"pid": child.pid})) == "gone"


# --- one at a time ---


def test_a_second_driver_is_refused_by_host_and_pid(store: StageStore) -> None:
    with (
        store.exclusive("driver") as claim,
        pytest.raises(Occupied, match=rf"study: process {os.getpid()} on .+ is its driver; one at a time"),
        StageStore(store.root).exclusive("driver"),
    ):
        assert claim.held()
    with store.exclusive("driver"):
        occupant = store.occupant("driver")
        assert occupant is not None
        assert occupant.pid == os.getpid()
    assert store.occupant("driver") is None


def test_a_killed_driver_is_followed_at_once(store: StageStore, spawn: Spawn) -> None:
    code = "with store.exclusive('driver'):\n    print('driving', flush=True)\n    sys.stdin.read()\n"
    process = spawn(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "driving\n"
    with pytest.raises(Occupied, match=f"process {process.pid} on "), store.exclusive("driver"):
        pass
    process.kill()
    process.wait()
    assert store.occupant("driver") is None
    with StageStore(store.root, timing=Clock(then=refuse_to_wait).timing()).exclusive("driver") as claim:
        assert claim.held()


def refuse_to_wait(seconds: float) -> None:
    raise AssertionError("waited for a dead process")


def test_a_driver_on_another_machine_that_lives_is_left_alone(store: StageStore) -> None:
    claim = foreign_claim(store, "driver")
    clock = Clock(lambda seconds: touch(store, claim, int(seconds // 3)))
    with (
        pytest.raises(Occupied, match="process 1 on far"),
        StageStore(store.root, timing=clock.timing()).exclusive("driver"),
    ):
        pass
    assert clock.seconds < 10


def test_a_driver_on_another_machine_that_is_dead_is_followed(store: StageStore) -> None:
    foreign_claim(store, "driver")
    clock = Clock()
    with StageStore(store.root, timing=clock.timing()).exclusive("driver") as claim:
        assert claim.held()
    assert 20 <= clock.seconds <= 30


# --- bad input ---


def test_a_storage_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = StageStore(tmp_path / "file" / "study")
    for use in (store.prepare, lambda: store.obtain(KEY, never), lambda: store.write_json("study.json", {})):
        with pytest.raises(InvalidInput, match=r"file/study: cannot be written \(not a directory\); give a folder"):
            use()
    with pytest.raises(InvalidInput, match="cannot be written"), store.exclusive("driver"):
        pass


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", r"stage\.json: damaged \(no JSON"),
        ("\x00\x00", r"stage\.json: damaged \(no JSON"),
        ("{}", r"stage\.json: damaged \(key: Field required"),
        ("null", r"stage\.json: damaged \(Input should be a valid dictionary"),
        (None, r"stage\.json: missing"),
        (STAGE.model_dump_json().replace('"dense"', '"rare"'), r"kind: .* \(met: 'rare'\)"),
        (STAGE.model_dump_json().replace("cifarnet", "other"), r"damaged \(key is .* give"),
    ],
)
def test_a_damaged_stage_is_named(store: StageStore, content: str | None, complaint: str) -> None:
    store.obtain(KEY, write)
    name = f"stages/{KEY}/stage.json"
    if content is not None:
        files(store).write(name, content.encode())
    elif isinstance(store.root, Path):
        files(store).remove([name])
    else:
        pytest.skip("on object storage there is no stage without its record")
    with pytest.raises(DamagedStage, match=complaint) as caught:
        store.stage(KEY)
    assert str(store.root / name) in str(caught.value)
    assert str(caught.value).endswith("the next search that needs it moves it aside and computes it again")
    assert "\n" not in str(caught.value)


def test_a_record_in_the_wrong_folder_is_named(store: StageStore) -> None:
    store.obtain(KEY, write)
    other = "0" * 64
    files(store).move(f"stages/{KEY}", f"stages/{other}", "stage.json")
    assert store.folder(KEY) is None
    with pytest.raises(DamagedStage, match="holds another stage's record"):
        store.stage(other)


def test_a_stage_that_is_not_there_is_named(store: StageStore) -> None:
    with pytest.raises(InvalidInput, match="study: has no stage 000"):
        store.point("000")


# --- the other files ---


def test_failures_are_kept_and_read_back(store: StageStore) -> None:
    schedule = Schedule(epochs=1, learning_rate=0.1)
    spec = TrialSpec(
        model="cifarnet",
        dataset="digits",
        regularization_weight=1e-3,
        pruning_ratio=0.3,
        iterations=1,
        dense=schedule,
        sparse=schedule,
        recovery=schedule,
    )
    assert store.failures() == []
    first = Failure(key=KEY, spec=spec, reason="diverged", message="m", traceback="t\nt", **whereabouts())
    last = first.model_copy(update={"reason": "out_of_memory"})
    other = first.model_copy(update={"key": "0" * 64, "created": "2020-01-01T00:00:00.000+00:00"})
    for failure in (first, last, other):
        store.record_failure(failure)
    assert store.failures() == [other, last]
    assert store.failure(KEY) == last
    assert store.failure("1" * 64) is None
    files(store).write(f"failures/{KEY}.json", b"[]")
    with pytest.raises(DamagedRecord, match=rf"failures/{KEY}\.json: damaged"):
        store.failures()


def test_json_files_are_written_whole(store: StageStore) -> None:
    assert store.read_json("study.json") is None
    store.write_json("study.json", {"name": "s", "weights": [1e-4]})
    store.write_json("study.json", {"name": "t"})
    assert store.read_json("study.json") == {"name": "t"}
    assert left(store) == []
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json("study.json", float("nan"))
    assert json.loads(files(store).read("study.json") or b"") == {"name": "t"}
    files(store).write("study.json", b"{")
    with pytest.raises(DamagedRecord, match=r"study\.json: damaged \(no JSON"):
        store.read_json("study.json")
    if isinstance(store.root, Path):
        (store.root / "folder.json").mkdir()
    else:
        pytest.skip("object storage has no folders")
    with pytest.raises(DamagedRecord, match=r"folder\.json: cannot be read \(is a directory\)"):
        store.read_json("folder.json")


def test_the_made_up_study_holds_what_it_says(study: StageStore) -> None:
    kinds = [stage.kind for stage in study.stages()]
    assert (kinds.count("dense"), kinds.count("sparse"), kinds.count("cut")) == (1, 10, 12)
    assert len(list(study.points())) == 13
    assert study.duplicates() == 0
