"""The stage store: every finished unit of work in a folder of its own, published whole or not at all.

    <root>/study.json            what the study is; search/ writes it
           stages/<key>/         stage.json, and point.json, plan.json, weights.safetensors where the stage has them
           staging/              work in progress; nothing here was ever published
           claims/<name>/        who computes a stage, or drives the search, at the moment (see claim.py)
           failures/<key>.json   the stages that could not be finished
           trials/<index>.json   how each trial of the search ended
           duplicates/           a note for every stage that was computed twice in spite of all that

Folders and JSON only: no database, no lock that a dead process keeps. Who owns tensors writes them.
"""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.claim import Claim, Owner, Sighting, Timing, Watch, life_of, sight, try_claim
from orchestrator.record import Failure, InvalidInput, Point, Stage, TrialRecord, whereabouts

STAGE_FILE = "stage.json"
POINT_FILE = "point.json"
PLAN_FILE = "plan.json"
WEIGHTS_FILE = "weights.safetensors"
MODEL_FILE = "model.json"  # with the weights beside it, a point's folder is a model that orchestrator.load reads

RecordT = TypeVar("RecordT", bound=BaseModel)


class DamagedRecord(InvalidInput):
    """A file of the study that cannot be read; the message names it."""


class DamagedStage(DamagedRecord):
    """A record of a published stage that cannot be read."""


class Occupied(InvalidInput):
    """Somebody else does what only one may do at a time; the message names host and pid."""


class StageStore:
    """The folder of one study. Any number of processes, on any machines that see it, may use it at once."""

    def __init__(self, root: str | os.PathLike[str], *, timing: Timing | None = None) -> None:
        self.root = Path(root)
        self._timing = timing or Timing()

    def prepare(self) -> None:
        """Makes the study's folders. Raises InvalidInput, naming the path, where they cannot be written."""
        try:
            for name in ("stages", "staging", "claims", "failures", "trials"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe = self.root / "staging" / f"probe.{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InvalidInput(f"{self.root}: cannot be written ({_reason(error)}); give a folder that can") from error

    def obtain(self, key: str, compute: Callable[[Path], None]) -> tuple[Path, bool]:
        """The folder of a finished stage, and whether this call computed it.

        Looks it up; else claims it and lets `compute(staging)` write its files, stage.json at least; else waits while
        a living process has claimed it, and takes over if that dies. If compute raises, nothing is left behind.
        """
        watch = Watch(self._timing)
        while (folder := self.folder(key)) is None:
            claim = self._claim(key, watch)
            if claim is None:
                self._timing.pause(self._timing.poll_seconds)
                continue
            with claim:
                # Looked up again under the claim: whoever had it before may have published in between.
                if self.folder(key) is None and self._compute(key, claim, compute):
                    return self._stage_folder(key), True
        return folder, False

    def folder(self, key: str) -> Path | None:
        """The folder of a published stage, or None."""
        folder = self._stage_folder(key)
        return folder if folder.is_dir() else None

    def keys(self) -> list[str]:
        """The keys of all published stages, sorted."""
        return [name for name in _names(self.root / "stages") if re.fullmatch(r"[0-9a-f]{64}", name)]

    def stage(self, key: str) -> Stage:
        """The record of a published stage."""
        return self._record(key, STAGE_FILE, Stage)

    def point(self, key: str) -> Point:
        """What a published `dense` or `cut` stage measured."""
        return self._record(key, POINT_FILE, Point)

    def has_point(self, key: str) -> bool:
        """Whether a published stage measured something: a `sparse` stage does not."""
        return (self._stage_folder(key) / POINT_FILE).is_file()

    def stages(self) -> Iterator[Stage]:
        """The records of all published stages, in the order of their keys."""
        return (self.stage(key) for key in self.keys())

    def points(self) -> Iterator[Point]:
        """The points of all published stages that have one, in the order of their keys."""
        return (self.point(key) for key in self.keys() if self.has_point(key))

    def record_failure(self, failure: Failure) -> None:
        """Keeps why a stage could not be finished; of several reasons for one stage, the last."""
        self.write_json(f"failures/{failure.key}.json", failure.model_dump(mode="json"))

    def failures(self) -> list[Failure]:
        """All recorded failures, the oldest first."""
        names = [name for name in _names(self.root / "failures") if name.endswith(".json")]
        found = [_read(self.root / "failures" / name, Failure) for name in names]
        return sorted((one for one in found if one is not None), key=lambda one: (one.created, one.key))

    def failure(self, key: str) -> Failure | None:
        """Why a stage could not be finished, or None."""
        return _read(self.root / "failures" / f"{key}.json", Failure)

    def record_trial(self, trial: TrialRecord) -> None:
        """Keeps how a trial ended; of a trial that ended more than once, the last time."""
        self.write_json(f"trials/{trial.index}.json", trial.model_dump(mode="json"))

    def trials(self) -> list[TrialRecord]:
        """How the trials of the search ended, in the order of their proposals."""
        names = [name for name in _names(self.root / "trials") if name.endswith(".json")]
        found = [_read(self.root / "trials" / name, TrialRecord) for name in names]
        return sorted((one for one in found if one is not None), key=lambda one: one.index)

    @contextmanager
    def exclusive(self, name: str) -> Iterator[Claim]:
        """Does alone what only one process may do. Raises Occupied while another living one is at it.

        Where the other process runs on another machine, up to `stale_seconds` go by until it is known to be dead.
        """
        watch = Watch(self._timing)
        first: Sighting | None = None
        while (claim := self._claim(name, watch)) is None:
            current = sight(self.root / "claims" / name)
            if current is not None and _lives(current, first):
                raise Occupied(f"{self.root}: {_whose(current.owner)} is its {name}; one at a time")
            first = first or current
            self._timing.pause(self._timing.poll_seconds)
        with claim:
            yield claim

    def occupant(self, name: str) -> Owner | None:
        """The process that last claimed `name` and has not given it back, unless it is known to be gone."""
        current = sight(self.root / "claims" / name)
        return None if current is None or life_of(current.owner) == "gone" else current.owner

    def write_json(self, name: str, value: Any) -> None:
        """Writes a file of the study, such as "study.json", whole or not at all."""
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file of the study aside, has it reach the disk, and renames it."""
        self.prepare()
        aside = self.root / "staging" / f"file.{uuid.uuid4().hex}"
        try:
            aside.write_bytes(content)
            _sync(aside)
            aside.replace(self.root / name)
        finally:
            aside.unlink(missing_ok=True)
        _sync((self.root / name).parent)

    def read_json(self, name: str) -> Any:
        """A file that write_json wrote, or None if there is none. Raises DamagedRecord if it is no JSON."""
        return _load(self.root / name)

    def duplicates(self) -> int:
        """How often a stage was computed though another process had it: 0 unless a machine stood still for long."""
        return len(_names(self.root / "duplicates"))

    def _stage_folder(self, key: str) -> Path:
        return self.root / "stages" / key

    def _record(self, key: str, name: str, kind: type[RecordT]) -> RecordT:
        path = self._stage_folder(key) / name
        if self.folder(key) is None:
            raise InvalidInput(f"{self.root}: has no stage {key}")
        try:
            record = _read(path, kind)
        except DamagedRecord as error:
            raise DamagedStage(f"{error}; remove {path.parent} to have it computed again") from error
        if record is None:
            raise DamagedStage(f"{path}: missing; remove {path.parent} to have it computed again")
        if getattr(record, "key", None) != key:
            raise DamagedStage(f"{path}: holds another stage's record; remove {path.parent} to have it computed again")
        return record

    def _claim(self, name: str, watch: Watch) -> Claim | None:
        folder = self.root / "claims" / name
        before = sight(folder)
        if before is None:
            self.prepare()
        claim = try_claim(folder, watch, self._timing)
        if claim is not None and before is not None and before.owner is not None and life_of(before.owner) == "gone":
            shutil.rmtree(self._staging(name, before.owner), ignore_errors=True)
        return claim

    def _staging(self, key: str, owner: Owner) -> Path:
        return self.root / "staging" / f"{key[:16]}.{owner.token}"

    def _compute(self, key: str, claim: Claim, compute: Callable[[Path], None]) -> bool:
        staging = self._staging(key, claim.owner)
        staging.mkdir()
        try:
            compute(staging)
            stage = _read(staging / STAGE_FILE, Stage)
            assert stage is not None, f"{staging}: compute left no {STAGE_FILE}"
            assert stage.key == key, f"{staging}: compute left the record of {stage.key}"
            _sync_all(staging)
            return self._publish(key, claim, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _publish(self, key: str, claim: Claim, staging: Path) -> bool:
        if claim.held():
            try:
                os.rename(staging, self._stage_folder(key))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            else:
                _sync(self.root / "stages")
                return True
        (self.root / "duplicates").mkdir(exist_ok=True)
        self.write_json(f"duplicates/{key}.{claim.owner.token}.json", {"key": key, **whereabouts()})
        return False


def write_record(path: Path, record: BaseModel) -> None:
    """Writes a record as JSON into a staging folder; publishing it is the store's."""
    path.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def first_problem(error: ValidationError) -> str:
    """What is wrong with a file or a record, as one line: field, complaint, and what was met."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    met = "" if problem["type"] in ("missing", "value_error") else f" (met: {str(problem['input'])[:80]!r})"
    return f"{where}: {message}{met}" if where else f"{message}{met}"


def _lives(current: Sighting, first: Sighting | None) -> bool:
    return life_of(current.owner) == "alive" or (first is not None and current != first)


def _whose(owner: Owner | None) -> str:
    return "another process" if owner is None else f"process {owner.pid} on {owner.host}"


def _read(path: Path, kind: type[RecordT]) -> RecordT | None:
    value = _load(path)
    if value is None:
        return None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise DamagedRecord(f"{path}: damaged ({first_problem(error)})") from error


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedRecord(f"{path}: damaged (no JSON: {error})") from error
    except OSError as error:
        raise DamagedRecord(f"{path}: cannot be read ({_reason(error)})") from error


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DamagedRecord(f"{folder}: cannot be read ({_reason(error)})") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


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
