"""The stage store: whole or not at all, once only, and no claim outlives its owner."""

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
from orchestrator.claim import Owner, Timing, life_of, machine, newest, started_at
from orchestrator.record import Cost, Failure, InvalidInput, Schedule, Stage, TrialSpec, stage_key, whereabouts
from orchestrator.store import DamagedRecord, DamagedStage, Occupied, StageStore, write_record

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
        return Timing(clock=lambda: self.seconds, pause=self.pause)

    def pause(self, seconds: float) -> None:
        self.seconds += seconds
        self.then(self.seconds)


def write(staging: Path) -> None:
    write_record(staging / "stage.json", STAGE)
    (staging / "weights.safetensors").write_bytes(b"weights")


def never(staging: Path) -> None:
    raise AssertionError("was computed again")


def foreign_claim(store: StageStore, name: str, text: str | None = None) -> Path:
    """A claim from another machine; nobody here can ask whether its owner lives."""
    store.prepare()
    owner = Owner(token="t", host="far", pid=1, machine="far boot pid:[1]", started="5", created="2025-01-01")
    path = store.root / "claims" / name / "1.json"
    path.parent.mkdir()
    path.write_text(owner.model_dump_json() if text is None else text)
    return path


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "study")


@pytest.fixture
def spawn(store: StageStore) -> Iterator[Spawn]:
    """Starts Python code in a process of its own, with `store`, `KEY` and `write` as here; kills what is left."""
    prelude = (
        "import sys, os\n"
        "from pathlib import Path\n"
        "from orchestrator.record import Stage\n"
        "from orchestrator.store import StageStore, write_record\n"
        f"stage = Stage.model_validate_json({STAGE.model_dump_json()!r})\n"
        f"KEY, store = stage.key, StageStore({str(store.root)!r})\n"
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
    assert store.stage(KEY) == STAGE
    assert list(store.stages()) == [STAGE]
    assert list(store.points()) == []
    assert store.duplicates() == 0


def test_nothing_is_left_behind_by_a_finished_stage(store: StageStore) -> None:
    store.obtain(KEY, write)
    assert list((store.root / "staging").iterdir()) == []
    assert list((store.root / "claims").iterdir()) == []


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
    assert list((store.root / "staging").iterdir()) == []
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
    (store.root / "stages" / ".DS_Store").touch()
    assert store.keys() == [KEY]


# --- claims ---


def test_two_processes_that_want_the_same_stage_compute_it_once(store: StageStore, spawn: Spawn) -> None:
    code = """
def compute(staging):
    with open(store.root / 'computed', 'a') as file:
        file.write(f'{os.getpid()}\\n')
    write(staging)
print('ready', flush=True)
sys.stdin.readline()
print(store.obtain(KEY, compute)[1], flush=True)
"""
    store.prepare()
    processes = [spawn(code) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        let_go(process)
    answers = [process.communicate()[0].strip() for process in processes]
    assert sorted(answers) == ["False", "False", "False", "True"]
    assert len((store.root / "computed").read_text().splitlines()) == 1
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
        StageStore(store.root, timing=Timing(poll_seconds=0.001)).obtain(KEY, compute)

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
    assert list((store.root / "staging").iterdir()) == []  # the torn work is gone, too
    assert list((store.root / "claims").iterdir()) == []


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
            os.utime(claim, ns=(0, int(seconds * 1e9)))  # that machine's clock is decades slow: nobody minds

    clock = Clock(beat)
    assert StageStore(store.root, timing=clock.timing()).obtain(KEY, write)[1]
    assert 59 <= clock.seconds <= 70
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
        claims = store.root / "claims" / KEY
        text = (claims / "1.json").read_text().replace(machine() or "null", "elsewhere")
        (claims / "2.json").write_text(text)
        shutil.copytree(staging, store.root / "stages" / KEY)
        (store.root / "stages" / KEY / "weights.safetensors").write_bytes(b"the other's")

    folder, computed = store.obtain(KEY, overtaken)
    assert not computed
    assert (folder / "weights.safetensors").read_bytes() == b"the other's"
    assert store.duplicates() == 1
    assert newest(store.root / "claims" / KEY) == 2  # the other's claim is not ours to remove
    assert list((store.root / "staging").iterdir()) == []
    assert other.obtain(KEY, never) == (folder, False)


def test_a_stage_that_is_published_twice_stays_as_it_was(store: StageStore) -> None:
    def beaten(staging: Path) -> None:
        write(staging)
        shutil.copytree(staging, store.root / "stages" / KEY)

    assert not store.obtain(KEY, beaten)[1]
    assert store.duplicates() == 1


def test_an_owner_keeps_its_claim_alive(store: StageStore) -> None:
    """With a heartbeat of a millisecond, the file is seen to change; the test waits for the change itself."""
    quick = StageStore(store.root, timing=Timing(beat_seconds=0.001))
    path = store.root / "claims" / KEY / "1.json"

    def compute(staging: Path) -> None:
        write(staging)
        os.utime(path, ns=(0, 0))
        waiting = threading.Event()
        while path.stat().st_mtime_ns == 0:
            waiting.wait(0.001)

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
    clock = Clock(lambda seconds: os.utime(claim, ns=(0, int(seconds // 3 * 1e9))))
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
        ("null", r"stage\.json: missing"),
        (None, r"stage\.json: missing"),
        (STAGE.model_dump_json().replace('"dense"', '"rare"'), r"kind: .* \(met: 'rare'\)"),
        (STAGE.model_dump_json().replace("cifarnet", "other"), r"damaged \(key is .* give"),
    ],
)
def test_a_damaged_stage_is_named(store: StageStore, content: str | None, complaint: str) -> None:
    folder, _ = store.obtain(KEY, write)
    if content is None:
        (folder / "stage.json").unlink()
    else:
        (folder / "stage.json").write_text(content)
    with pytest.raises(DamagedStage, match=complaint) as caught:
        store.stage(KEY)
    assert str(folder / "stage.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_record_in_the_wrong_folder_is_named(store: StageStore) -> None:
    folder, _ = store.obtain(KEY, write)
    other = "0" * 64
    folder.rename(store.root / "stages" / other)
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
    (store.root / "failures" / f"{KEY}.json").write_text("[]")
    with pytest.raises(DamagedRecord, match=rf"failures/{KEY}\.json: damaged"):
        store.failures()


def test_json_files_are_written_whole(store: StageStore) -> None:
    assert store.read_json("study.json") is None
    store.write_json("study.json", {"name": "s", "weights": [1e-4]})
    store.write_json("study.json", {"name": "t"})
    assert store.read_json("study.json") == {"name": "t"}
    assert list((store.root / "staging").iterdir()) == []
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json("study.json", float("nan"))
    assert json.loads((store.root / "study.json").read_text()) == {"name": "t"}
    (store.root / "study.json").write_text("{")
    with pytest.raises(DamagedRecord, match=r"study\.json: damaged \(no JSON"):
        store.read_json("study.json")
    (store.root / "folder.json").mkdir()
    with pytest.raises(DamagedRecord, match=r"folder\.json: cannot be read \(is a directory\)"):
        store.read_json("folder.json")


def test_the_made_up_study_holds_what_it_says(study: StageStore) -> None:
    kinds = [stage.kind for stage in study.stages()]
    assert (kinds.count("dense"), kinds.count("sparse"), kinds.count("cut")) == (1, 10, 12)
    assert len(list(study.points())) == 13
    assert study.duplicates() == 0
