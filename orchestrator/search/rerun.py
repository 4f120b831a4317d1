"""A new study for another network or other data, which begins where an old study has ended.

The new study has the old one's space: the same schedules, the same things that vary, the same limits. Only the model,
or the data set, is another. What it takes over besides is its prior (see prior.py).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console

from orchestrator.collector import Study
from orchestrator.files import Place, located
from orchestrator.record import InvalidInput
from orchestrator.search.binding import SETTINGS_FILE, STUDY_FILE
from orchestrator.search.dimensions import Dimension
from orchestrator.search.prior import prior_of, read_prior
from orchestrator.search.progress import say
from orchestrator.search.runner import BUILT_IN, Summary, launch
from orchestrator.search.space import SECTIONS, SearchSpace, check_section
from orchestrator.search.space_file import read_back
from orchestrator.store import StageStore

CHANGED = ("model", "dataset")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def rerun(
    study: str | Place,
    *,
    model: str | None = None,
    dataset: str | None = None,
    name: str | None = None,
    storage: str | Place = "results",
    data_root: str | None = None,
    **options: Any,
) -> Summary:
    """Search with another model or data set, beginning with what a study has found. `options` are those of launch().

    The new study is `name`, else the old one's name and what is new, and lies in the same storage. Called again, or by
    `search` with the space file that it writes into the study's folder, it goes on, and needs the old study no more.
    Raises InvalidInput where nothing is new, where the old study has nothing to give or varies what is to be fixed,
    and where another study has the name.
    """
    if model is None and dataset is None:
        raise InvalidInput("give --model, --dataset or both: what is to be new")
    root = located(storage)
    old_name = located(study).resolve().name
    name = name or default_name(old_name, model, dataset)
    if not NAME.fullmatch(name):
        raise InvalidInput(f"--name is {name!r}; it must be letters, digits and any of _ - . (it names a folder)")
    store = StageStore(root / name)
    if store.read_json(STUDY_FILE) is not None:
        space = _going_on(store, old_name, {"model": model, "dataset": dataset})
        return launch(_placed(space, data_root), storage=root, **options)
    old = Study(study, results=root)
    console = options.get("console") or Console()
    for note in _notes(old):
        say(console, f"note: {note}")
    space = _placed(space_after(old, name, model=model, dataset=dataset), data_root)
    return launch(space, storage=root, prior=prior_of(old, space), **options)


def _notes(old: Study) -> Iterator[str]:
    """What of the old study is not taken over."""
    if (weights := definition_of(old)["trial"].get("weights")) is not None:
        yield f"{weights} are not taken over: the new network is trained as [trial.dense] says"
    if old.store.read_json(SETTINGS_FILE) is None:
        yield f"{old.path} has no {SETTINGS_FILE}: budget, stopping and resources are the defaults"


def default_name(old: str, model: str | None, dataset: str | None) -> str:
    """The old study's name and what is new: of `package.module:function` the function."""
    new = [re.sub(r"[^A-Za-z0-9]+", "_", _short(what)).strip("_") for what in (model, dataset) if what]
    return "_".join([old, *new])


def _short(what: str) -> str:
    return what if what.startswith(BUILT_IN) else what.rpartition(":")[2]


def space_after(old: Study, name: str, *, model: str | None, dataset: str | None) -> SearchSpace:
    """The space of a study with another model or data set. Trained weights of the old network are left behind.

    Raises InvalidInput where that is nothing new, or cannot be fixed because the study varies it.
    """
    definition = definition_of(old)
    new = {field: value for field, value in (("model", model), ("dataset", dataset)) if value is not None}
    trial = dict(definition["trial"])
    varied = next((field for field in (*new, *(f for f in CHANGED if f not in new)) if field not in trial), None)
    if varied is not None:
        raise InvalidInput(f"{old.path}: the study varies {varied}; rerun needs one with a single {varied}")
    if all(trial[field] == value for field, value in new.items()):
        what = f"{trial['model']} on {trial['dataset']}"
        raise InvalidInput(f"{old.path}: is a study of {what} already; `orchestrator search` extends it")
    settings = old.store.read_json(SETTINGS_FILE) or {}
    sections = {section: settings.get(section, {}) for section in SECTIONS}
    sections["proposals"] = {**sections["proposals"], **definition["proposals"]}
    dimensions: dict[str, Dimension] = TypeAdapter(dict[str, Dimension]).validate_python(definition["search"])
    return SearchSpace(
        name=name,
        trial={**_without_none(trial), **new},
        dimensions=dimensions,
        **{section: check_section(kind, sections[section], section) for section, kind in SECTIONS.items()},  # type: ignore[arg-type]
    )


def definition_of(old: Study, what: str = "rerun") -> dict[str, Any]:
    """What study.json has of the study's space. Raises InvalidInput, which names `what` needs it, where it has none."""
    there = old.store.read_json(STUDY_FILE)
    definition = there.get("definition") if isinstance(there, dict) else None
    if isinstance(there, dict) and "merged" in there:
        raise InvalidInput(f"{old.path}: was merged of several studies; give {what} one of these")
    if not isinstance(definition, dict):
        raise InvalidInput(
            f"{old.path / STUDY_FILE}: there is no definition; {what} needs a study that search has made"
        )
    return definition


def _without_none(trial: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in trial.items() if value is not None and field != "weights"}


def _placed(space: SearchSpace, data_root: str | None) -> SearchSpace:
    """With the data where they lie."""
    return space if data_root is None else space.model_copy(update={"trial": {**space.trial, "data_root": data_root}})


def _going_on(store: StageStore, old_name: str, wanted: Mapping[str, str | None]) -> SearchSpace:
    """The space of a rerun that was begun before, as its file has it by now."""
    prior = read_prior(store)
    if prior is None:
        raise InvalidInput(f"{store.root}: is a study that rerun has not made; give another --name")
    if prior.study != old_name:
        raise InvalidInput(f"{store.root}: began with {prior.study}, not with {old_name}; give another --name")
    space = read_back(store)
    other = next((f for f, value in wanted.items() if value is not None and space.trial.get(f) != value), None)
    if other is not None:
        has = space.trial.get(other)
        raise InvalidInput(f"{store.root}: is a study of {other} {has}, not {wanted[other]}; give another --name")
    return space
