"""The files of a stage: their names, the digests by which a torn or altered one is found; and records as JSON files."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.record import InvalidInput, Point, Stage, first_problem

STAGE_FILE = "stage.json"
POINT_FILE = "point.json"
TESTED_FILE = "tested.json"
PLAN_FILE = "plan.json"
WEIGHTS_FILE = "weights.safetensors"
MODEL_FILE = "model.json"  # with the weights beside it, a point's folder is a model that orchestrator.load reads

RecordT = TypeVar("RecordT", bound=BaseModel)


class DamagedRecord(InvalidInput):
    """A file of the study that cannot be read; the message names it."""


class DamagedStage(DamagedRecord):
    """A record of a published stage that cannot be read."""


def write_record(path: Path, record: BaseModel) -> None:
    """Writes a record as JSON into a staging folder; publishing it is the store's."""
    path.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def parsed(content: bytes, path: object, kind: type[RecordT]) -> RecordT:
    """A record from what a file holds. Raises DamagedRecord, which names `path`."""
    try:
        return kind.model_validate(json_of(content, path))
    except ValidationError as error:
        raise DamagedRecord(f"{path}: damaged ({first_problem(error)})") from error


def json_of(content: bytes, path: object) -> Any:
    """JSON from what a file holds. Raises DamagedRecord, which names `path`."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise DamagedRecord(f"{path}: damaged (no JSON: {error})") from error


def sealed(staging: Path) -> Stage:
    """The record of the stage in a staging folder, with the digests of its other files, as it is then published."""
    path = staging / STAGE_FILE
    assert path.is_file(), f"{staging}: compute left no {STAGE_FILE}"
    stage = Stage.model_validate_json(path.read_bytes())
    others = sorted(file for file in staging.rglob("*") if file.is_file() and file != path)
    files = {file.relative_to(staging).as_posix(): _digest(file) for file in others}
    write_record(path, stage.model_copy(update={"files": files}))
    return stage


def problem_of(folder: Path, key: str, *, without: str | None) -> str | None:
    """What is wrong with a published stage, or None. The file `without` is not looked for."""
    try:
        stage = parsed((folder / STAGE_FILE).read_bytes(), STAGE_FILE, Stage)
        if stage.key != key:
            return f"{STAGE_FILE} holds another stage's record"
        if stage.files is None:  # published before there were digests
            if (folder / POINT_FILE).exists():
                parsed((folder / POINT_FILE).read_bytes(), POINT_FILE, Point)
            return None
        for name, digest in stage.files.items():
            if name != without and _digest(folder / name) != digest:
                return f"{name} is not what was published"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except DamagedRecord as error:
        return str(error)
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
