"""The stage store: every finished unit of work in a folder of its own, published whole or not at all.

    <root>/study.json            what the study is; search/ writes it
           stages/<key>/         stage.json, and point.json, plan.json, weights.safetensors where the stage has them
           staging/              work in progress; nothing here was ever published
           claims/<name>/        who computes a stage, or drives the search, at the moment (see claim.py)
           failures/<key>.json   the stages that could not be finished
           trials/<index>.json   how each trial of the search ended
           confirmed/            a store of the same layout, of the models that were confirmed; there every model has
                                 tested.json in place of point.json, and arms/<name>.json says which is which
           duplicates/           a note for every stage that was computed twice in spite of all that
           damaged/              stages that were found torn or altered, each with a note; they are computed again
           collected/, restored/ weights that were removed on purpose, and those needed again (see retention.py)

Files and JSON only: no database, no lock that a dead process keeps. Who owns tensors writes them. The root is a folder
or a place on object storage (see files/), where a stage is there as soon as its stage.json is, written last.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.claim import Claim, Owner, Sighting, Timing, Watch, life_of, sight, try_claim
from orchestrator.files import Patience, Size, StorageFault, Uri, is_full, located, open_files, reason_of
from orchestrator.files.patience import full
from orchestrator.record import (
    ArmRecord,
    Failure,
    InvalidInput,
    Measured,
    Point,
    Record,
    Stage,
    TrialRecord,
    whereabouts,
)
from orchestrator.retention import RESTORED, Collected
from orchestrator.stage_files import (
    POINT_FILE,
    STAGE_FILE,
    TESTED_FILE,
    WEIGHTS_FILE,
    DamagedRecord,
    DamagedStage,
    json_of,
    parsed,
    problem_of,
    sealed,
)

CONFIRMED = "confirmed"  # the folder of a study that holds its confirmations
FOLDERS = ("stages", "staging", "claims", "failures", "trials")
KEY = re.compile(r"[0-9a-f]{64}")
BATCH = 1024  # records that are read at a time
AGAIN = "the next search that needs it moves it aside and computes it again"
SOUND: set[tuple[str, str]] = set()  # root and place of the stages that this process published or has checked

RecordT = TypeVar("RecordT", bound=BaseModel)


class Occupied(InvalidInput):
    """Somebody else does what only one may do at a time; the message names host and pid."""


class Damage(Record):
    """A note about a stage that was moved aside: what was wrong with it, and who found out."""

    key: str
    problem: str
    moved_to: str
    created: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.problem}; now in {self.moved_to}"


class StageStore:
    """The files of one study. Any number of processes, on any machines that see them, may use them at once.

    `root` is a folder, or a URI such as s3://bucket/studies/name.
    """

    def __init__(self, root: str | os.PathLike[str] | Uri, *, timing: Timing | None = None) -> None:
        self.root = located(root)
        self._name = str(self.root.absolute())
        self._timing = timing or Timing(poll_seconds=1.0 if isinstance(self.root, Uri) else 0.2)
        self._files = open_files(self.root, Patience(clock=self._timing.clock, pause=self._timing.pause))
        self.collected = Collected(self._files)

    def prepare(self) -> None:
        """Makes the study's folders. Raises InvalidInput, naming the path, where they cannot be written."""
        try:
            self._files.prepare(FOLDERS)
        except OSError as error:
            reason = reason_of(error)
            raise InvalidInput(f"{self.root}: cannot be written ({reason}); give a folder that can") from error

    def obtain(self, key: str, compute: Callable[[Path], None]) -> tuple[Path, bool]:
        """The folder of a finished stage, and whether this call computed it.

        Looks it up; else claims it and lets `compute(staging)` write its files, stage.json at least; else waits while
        a living process has claimed it, and takes over if that dies. If compute raises, nothing is left behind.
        A stage that is damaged is moved aside, and computed again.
        """
        watch = Watch(self._timing)
        while (folder := self._sound_folder(key)) is None:
            claim = self._claim(key, watch)
            if claim is None:
                self._timing.pause(self._timing.poll_seconds)
                continue
            with claim:
                # Looked up again under the claim: whoever had it before may have published in between.
                if self._cleared(key, claim) and (made := self._compute(key, claim, compute, _place(key))) is not None:
                    return made, True
        return folder, False

    def folder(self, key: str) -> Path | None:
        """The folder of a published stage, to be read only, or None; of object storage a copy on this machine.

        Its files are compared with their digests the first time that this process is given it. Raises DamagedStage.
        """
        return self._checked(key, _place(key))

    def weights(self, key: str) -> Path | None:
        """A folder with the weights of a published stage, to be read only; None if they were collected, see `restore`.

        It is the stage's own, or that of the same stage computed again. Raises DamagedStage.
        """
        folder = self.folder(key)
        if folder is not None and (folder / WEIGHTS_FILE).is_file():
            return folder
        try:
            again = self._checked(key, f"{RESTORED}/{key}")
        except DamagedStage:  # worth no more than the computing
            return None
        return again if again is not None and (again / WEIGHTS_FILE).is_file() else None

    def restore(self, key: str, compute: Callable[[Path], None]) -> Path:
        """A folder with the weights of a published stage; if they were collected, they are computed again.

        Under the stage's claim, as `obtain` does it. The study keeps the record that it has; what `compute` writes
        becomes a stage of its own, in restored/, with the figures of this machine, which may differ by rounding.
        """
        watch = Watch(self._timing)
        while (folder := self.weights(key)) is None:
            claim = self._claim(key, watch)
            if claim is None:
                self._timing.pause(self._timing.poll_seconds)
                continue
            with claim:
                if self.weights(key) is None:
                    self._files.prepare((RESTORED,))
                    self._files.discard(f"{RESTORED}/{key}", STAGE_FILE)
                    self._compute(key, claim, compute, f"{RESTORED}/{key}")
        return folder

    def collect(self, sizes: Mapping[str, int]) -> None:
        """Removes the weights of published stages; their records stay, and the stages are as finished as before.

        `sizes` has how many bytes of weights go, by the key of their stage. It is no error if some are gone already.
        """
        self.collected.note(sizes)
        self._files.remove([f"{_place(key)}/{WEIGHTS_FILE}" for key in sizes])
        for key in sizes.keys() & set(self._files.names(RESTORED)):
            self._files.discard(f"{RESTORED}/{key}", STAGE_FILE)

    def adopt(self, key: str, folder: Path, *, restored: bool = False) -> bool:
        """Publishes a stage that another study has finished; False if there is one already.

        Its files are linked where that can be done, for no published file is ever written to, and copied elsewhere.
        """
        place = f"{RESTORED}/{key}" if restored else _place(key)
        if self._files.has(place, STAGE_FILE):
            return False
        self._files.prepare((*FOLDERS, RESTORED) if restored else FOLDERS)
        staging = self._files.staging(f"{key[:16]}.{uuid.uuid4().hex}")
        try:
            shutil.copytree(folder, staging, copy_function=_linked)
            return self._files.publish(staging, place, STAGE_FILE) is not None
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def sizes(self, folder: str = "") -> dict[str, Size]:
        """All files of the study, or in one of its folders, by their names in it."""
        with self._reading(folder):
            return self._files.sizes(folder)

    def names(self, folder: str = "") -> list[str]:
        """What the study's folder holds, or one of its folders, sorted."""
        with self._reading(folder):
            return self._files.names(folder)

    def erase(self) -> None:
        """Removes the study, with everything that is in its folder."""
        self._files.erase("study.json")

    def has(self, key: str) -> bool:
        """Whether a stage is published; nothing of it is read."""
        return self._files.has(_place(key), STAGE_FILE)

    def keys(self) -> list[str]:
        """The keys of all published stages, sorted."""
        with self._reading("stages"):
            return [name for name in self._files.published("stages", STAGE_FILE) if KEY.fullmatch(name)]

    def stage(self, key: str) -> Stage:
        """The record of a published stage."""
        return self._record(key, STAGE_FILE, Stage)

    def point(self, key: str) -> Point:
        """What a published `dense` or `cut` stage measured."""
        return self._record(key, POINT_FILE, Point)

    def tested(self, key: str) -> Measured:
        """What a published stage of a confirmation measured."""
        return self._record(key, TESTED_FILE, Measured)

    def has_point(self, key: str) -> bool:
        """Whether a published stage measured something: a `sparse` stage does not."""
        return self._files.exists(f"{_place(key)}/{POINT_FILE}")

    def stages(self) -> Iterator[Stage]:
        """The records of all published stages that are not damaged, in the order of their keys."""
        return self._records(self.keys(), STAGE_FILE, Stage)

    def points(self) -> Iterator[Point]:
        """The points of all published stages that have one and are not damaged, in the order of their keys."""
        with self._reading("stages"):
            names = self._files.having("stages", STAGE_FILE, POINT_FILE)
        return self._records([name for name in names if re.fullmatch(KEY, name)], POINT_FILE, Point)

    def read_ahead(self, keys: Sequence[str]) -> None:
        """Gets the records of stages that will soon be asked for, if many at once are quicker than one by one.

        What was got before and not asked for is forgotten.
        """
        self._files.read_ahead([f"{_place(key)}/{name}" for key in keys for name in (STAGE_FILE, POINT_FILE)])

    def replaced(self) -> set[str]:
        """The keys of stages that were moved aside, and may have been computed again since."""
        with self._reading("damaged"):
            return {name.partition(".")[0] for name in self._files.names("damaged")}

    def damaged(self) -> list[Damage]:
        """The stages that were found damaged and moved aside, the first found first."""
        with self._reading("damaged"):
            names = [name for name in self._files.names("damaged") if name.endswith(".json")]
        found = [self._read(f"damaged/{name}", Damage) for name in names]
        return sorted((one for one in found if one is not None), key=lambda one: (one.created, one.key))

    def record_failure(self, failure: Failure) -> None:
        """Keeps why a stage could not be finished; of several reasons for one stage, the last."""
        self.write_json(f"failures/{failure.key}.json", failure.model_dump(mode="json"))

    def failures(self) -> list[Failure]:
        """All recorded failures, the oldest first."""
        with self._reading("failures"):
            names = [f"failures/{name}" for name in self._files.names("failures") if name.endswith(".json")]
        self._files.read_ahead(names)
        found = [self._read(name, Failure) for name in names]
        return sorted((one for one in found if one is not None), key=lambda one: (one.created, one.key))

    def failure(self, key: str) -> Failure | None:
        """Why a stage could not be finished, or None."""
        return self._read(f"failures/{key}.json", Failure)

    def record_trial(self, trial: TrialRecord) -> None:
        """Keeps how a trial ended; of a trial that ended more than once, the last time."""
        self.write_json(f"trials/{trial.index}.json", trial.model_dump(mode="json"))

    def trials(self, indices: Sequence[int] | None = None) -> list[TrialRecord]:
        """How the trials of the search ended, or some of them, in the order of their proposals."""
        if indices is not None:
            names = [f"trials/{index}.json" for index in indices]
        else:
            with self._reading("trials"):
                names = [f"trials/{name}" for name in self._files.names("trials") if name.endswith(".json")]
        self._files.read_ahead(names)
        found = [self._read(name, TrialRecord) for name in names]
        return sorted((one for one in found if one is not None), key=lambda one: one.index)

    def record_arm(self, arm: ArmRecord) -> None:
        """Keeps how an arm of a confirmation ended; of one that ended more than once, the last time."""
        spec = arm.spec
        self.write_json(f"arms/{spec.point[:16]}.{spec.path[:16]}.{spec.arm}.json", arm.model_dump(mode="json"))

    def arms(self) -> list[ArmRecord]:
        """How the arms of the confirmations ended, the oldest first."""
        with self._reading("arms"):
            names = [f"arms/{name}" for name in self._files.names("arms") if name.endswith(".json")]
        self._files.read_ahead(names)
        found = [self._read(name, ArmRecord) for name in names]
        return sorted((one for one in found if one is not None), key=lambda one: (one.created, one.spec.path))

    @contextmanager
    def exclusive(self, name: str) -> Iterator[Claim]:
        """Does alone what only one process may do. Raises Occupied while another living one is at it.

        Where the other process runs on another machine, up to `stale_seconds` go by until it is known to be dead.
        """
        watch = Watch(self._timing)
        first: Sighting | None = None
        while (claim := self._claim(name, watch)) is None:
            current = sight(self._files, f"claims/{name}")
            if current is not None and _lives(current, first):
                raise Occupied(f"{self.root}: {_whose(current.owner)} is its {name}; one at a time")
            first = first or current
            self._timing.pause(self._timing.poll_seconds)
        with claim:
            yield claim

    def occupant(self, name: str) -> Owner | None:
        """The process that last claimed `name` and has not given it back, unless it is known to be gone."""
        current = sight(self._files, f"claims/{name}")
        return None if current is None or life_of(current.owner) == "gone" else current.owner

    def sweep(self) -> None:
        """Gives back what processes of this machine claimed and died with, and removes the work that they left.

        A claim that is needed again is taken over anyway; this is for those on stages that were finished just before.
        """
        for name in self._files.names("claims"):
            folder = f"claims/{name}"
            current = sight(self._files, folder)
            if current is None:
                self._files.tidy(folder)
            elif current.owner is not None and life_of(current.owner) == "gone":
                with self._claim(name, Watch(self._timing)) or nullcontext():
                    pass

    def write_json(self, name: str, value: Any) -> None:
        """Writes a file of the study, such as "study.json", whole or not at all."""
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file of the study, whole or not at all."""
        self.prepare()
        self._files.write(name, content)

    def read_json(self, name: str) -> Any:
        """A file that write_json wrote, or None if there is none. Raises DamagedRecord if it is no JSON."""
        content = self.read_bytes(name)
        return None if content is None else json_of(content, self.root / name)

    def read_bytes(self, name: str) -> bytes | None:
        """A file of the study, or None if there is none. Raises DamagedRecord if it cannot be read."""
        with self._reading(name):
            return self._files.read(name)

    def duplicates(self) -> int:
        """How often a stage was computed though another process had it: 0 unless a machine stood still for long."""
        with self._reading("duplicates"):
            return len(self._files.names("duplicates"))

    # -- reading -------------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DamagedRecord(f"{self.root / name}: cannot be read ({reason_of(error)})") from error

    def _read(self, name: str, kind: type[RecordT]) -> RecordT | None:
        content = self.read_bytes(name)
        if content is None:
            return None
        with suppress(ValidationError):
            return kind.model_validate_json(content)
        return parsed(content, self.root / name, kind)

    def _record(self, key: str, name: str, kind: type[RecordT]) -> RecordT:
        try:
            record = self._read(f"{_place(key)}/{name}", kind)
        except DamagedRecord as error:
            raise DamagedStage(f"{error}; {AGAIN}") from error
        if record is None and not self.has(key):
            raise InvalidInput(f"{self.root}: has no stage {key}")
        if record is None:
            raise DamagedStage(f"{self.root / _place(key) / name}: missing; {AGAIN}")
        if getattr(record, "key", None) != key:
            raise DamagedStage(f"{self.root / _place(key) / name}: holds another stage's record; {AGAIN}")
        return record

    def _records(self, keys: Sequence[str], name: str, kind: type[RecordT]) -> Iterator[RecordT]:
        for start in range(0, len(keys), BATCH):
            some = keys[start : start + BATCH]
            self._files.read_ahead([f"{_place(key)}/{name}" for key in some])
            for key in some:
                with suppress(DamagedStage):
                    yield self._record(key, name, kind)

    def _checked(self, key: str, place: str) -> Path | None:
        folder = self._files.fetch(place, STAGE_FILE)
        if folder is None or (self._name, place) in SOUND:
            return folder
        if self._problem(folder, key) is not None:  # of a copy it may be the copy's fault
            folder = self._files.fetch(place, STAGE_FILE, anew=True)
        problem = None if folder is None else self._problem(folder, key)
        if problem is not None:
            raise DamagedStage(f"{self.root / place}: {problem}; {AGAIN}")
        SOUND.add((self._name, place))
        return folder

    def _problem(self, folder: Path, key: str) -> str | None:
        lacks_weights = not (folder / WEIGHTS_FILE).exists()
        return problem_of(folder, key, without=WEIGHTS_FILE if lacks_weights and self.collected.has(key) else None)

    def _sound_folder(self, key: str) -> Path | None:
        try:
            return self.folder(key)
        except DamagedStage:
            return None

    # -- making --------------------------------------------------------------------------------------------------

    def _claim(self, name: str, watch: Watch) -> Claim | None:
        folder = f"claims/{name}"
        before = sight(self._files, folder)
        if before is None:
            self.prepare()
        claim = try_claim(self._files, folder, watch, self._timing)
        if claim is not None and before is not None and before.owner is not None and life_of(before.owner) == "gone":
            shutil.rmtree(self._staging(name, before.owner), ignore_errors=True)
        return claim

    def _staging(self, key: str, owner: Owner) -> Path:
        return self._files.staging(f"{key[:16]}.{owner.token}")

    def _compute(self, key: str, claim: Claim, compute: Callable[[Path], None], place: str) -> Path | None:
        staging = self._staging(key, claim.owner)
        try:
            staging.mkdir(parents=True)
            compute(staging)
            stage = sealed(staging)
            assert stage.key == key, f"{staging}: compute left the record of {stage.key}"
            return self._publish(key, claim, staging, place)
        except Exception as error:
            if is_full(error) and not isinstance(error, StorageFault):
                raise full(getattr(error, "filename", None) or staging) from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _publish(self, key: str, claim: Claim, staging: Path, place: str) -> Path | None:
        folder = self._files.publish(staging, place, STAGE_FILE) if claim.held() else None
        if folder is None:
            self.write_json(f"duplicates/{key}.{claim.owner.token}.json", {"key": key, **whereabouts()})
        else:
            SOUND.add((self._name, place))
        return folder

    def _cleared(self, key: str, claim: Claim) -> bool:
        """Whether a stage is to be computed; what is damaged is moved aside.

        Only under the claim on it: another process would move away what was computed in its place.
        """
        try:
            return self.folder(key) is None
        except DamagedStage as error:
            target = f"damaged/{key}.{claim.owner.token}"
            problem = str(error).removesuffix(f"; {AGAIN}")
            note = Damage(key=key, problem=problem, moved_to=str(self.root / target), **whereabouts())
            self.write_json(f"{target}.json", note.model_dump(mode="json"))
            self._files.move(_place(key), target, STAGE_FILE)
            return True


def _lives(current: Sighting, first: Sighting | None) -> bool:
    return life_of(current.owner) == "alive" or (first is not None and current != first)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _whose(owner: Owner | None) -> str:
    return "another process" if owner is None else str(owner)


def _place(key: str) -> str:
    return f"stages/{key}"
