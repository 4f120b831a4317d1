"""All studies of a storage, side by side, and how one leaves it: `orchestrator ls | rm`."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from orchestrator.claim import Owner
from orchestrator.collector.confirmed import confirming
from orchestrator.collector.disk import Disk, disk_of
from orchestrator.collector.frontier import hypervolume
from orchestrator.collector.keeping import COLLECTOR, DRIVER
from orchestrator.collector.query import Study
from orchestrator.files import Place, Uri, located, open_files, reason_of
from orchestrator.record import InvalidInput
from orchestrator.store import CONFIRMED, StageStore

STUDY_FILE = "study.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One study. `problem` says why nothing more is known of it."""

    name: str
    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    trials: int = 0
    points: int = 0
    hypervolume: float = 0.0
    disk: Disk | None = None
    changed: str = ""  # when its last stage was published; of one without stages, when it was made
    driver: Owner | None = None
    confirming: Owner | None = None
    problem: str | None = None


def studies(storage: "str | Place") -> Iterator[Entry]:
    """The studies that lie in a storage, in the order of their names. Raises InvalidInput if it cannot be read."""
    place = located(storage)
    files = open_files(place)
    try:
        names = [name for name in files.names("") if not name.startswith(".")]
        found = [name for name in names if files.exists(f"{name}/{STUDY_FILE}")]
    except OSError as error:
        raise InvalidInput(f"{place}: cannot be read ({reason_of(error)})") from error
    for name in found:
        try:
            yield entry_of(Study(place / name))
        except InvalidInput as error:
            yield Entry(name=name, problem=str(error))


def entry_of(study: Study) -> Entry:
    """A study, from its index: no stage is opened that is in it."""
    table = study.index()
    points = table.filter(pc.is_valid(table["flops"]))
    accuracy, flops_kept = points["accuracy"].to_numpy(), points["flops_kept"].to_numpy()
    about = study.store.read_json(STUDY_FILE)
    made = str(about.get("created", "")) if isinstance(about, dict) else ""
    return Entry(
        name=study.name,
        models=tuple(sorted(pc.unique(points["model"]).to_pylist())),
        datasets=tuple(sorted(pc.unique(points["dataset"]).to_pylist())),
        trials=sum(name.endswith(".json") for name in study.store.names("trials")),
        points=len(points),
        hypervolume=hypervolume(accuracy, flops_kept),
        disk=disk_of(study.store, table["key"].combine_chunks()),
        changed=pc.max(table["created"]).as_py() or made,
        driver=study.store.occupant(DRIVER),
        confirming=confirming(study.path),
    )


def remove(study: Study) -> None:
    """Removes a study with all that is in its folder.

    Raises Occupied while a search, a confirmation or a gc is at it, InvalidInput for what is no study of its own.
    """
    check_removable(study)
    with ExitStack() as alone:
        for name in (DRIVER, COLLECTOR):
            alone.enter_context(study.store.exclusive(name))
        if CONFIRMED in study.store.names():
            alone.enter_context(StageStore(study.path / CONFIRMED).exclusive(DRIVER))
        study.store.erase()


def check_removable(study: Study) -> None:
    """Raises InvalidInput, naming the reason, for a folder that is not removed."""
    path = study.path
    if not isinstance(path, Uri) and Path(path).is_symlink():
        raise InvalidInput(f"{path}: is a link; give the folder that it leads to, {path.resolve()}")
    if study.store.read_json(STUDY_FILE) is None:
        raise InvalidInput(f"{path}: has no {STUDY_FILE}, so no search made it; remove it by hand if it is to go")
    inner = [name for name in study.store.names() if name != CONFIRMED and _is_study(path / name)]
    if inner:
        raise InvalidInput(f"{path}: has the study {inner[0]} in it; remove that first")


def _is_study(place: Place) -> bool:
    try:
        return open_files(place).exists(STUDY_FILE)
    except NotADirectoryError:
        return False
