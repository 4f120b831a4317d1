"""What makes a folder the study of a space: study.json, and beside it what later launches and reruns need."""

from collections.abc import Iterator
from typing import Any

from orchestrator.record import InvalidInput, canonical_json, now
from orchestrator.search.prior import PRIOR_FILE, Prior, read_prior
from orchestrator.search.space import SECTIONS, SearchSpace
from orchestrator.search.space_file import as_toml, file_name
from orchestrator.store import StageStore

STUDY_FILE = "study.json"
SETTINGS_FILE = "settings.json"  # what the last launch was told besides the definition in study.json
ABSENT = object()


def bind(store: StageStore, space: SearchSpace, prior: Prior | None) -> Prior | None:
    """Make the study's folder this space's, or find that it is; returns the prior that the study has."""
    there = store.read_json(STUDY_FILE)
    prior = _begin(store, space, prior) if there is None else _check_bound(store, space, there)
    settings = {name: getattr(space, name).model_dump(mode="json") for name in SECTIONS}
    if store.read_json(SETTINGS_FILE) != settings:
        store.write_json(SETTINGS_FILE, settings)
    return prior


def _begin(store: StageStore, space: SearchSpace, prior: Prior | None) -> Prior | None:
    """Write what makes a folder a study; a prior goes first, so that no study is without the one it began with."""
    if prior is not None:
        heading = f"What {prior.study} searched with {prior.model} on {prior.dataset}, for other networks or data."
        store.write_bytes(file_name(space.name), as_toml(space, heading).encode())
        store.write_json(PRIOR_FILE, prior.model_dump(mode="json"))
    else:
        prior = read_prior(store)  # a launch that was killed before the study began has left it
    begun = {} if prior is None else {"prior": prior.digest}
    store.write_json(STUDY_FILE, {"name": space.name, "definition": space.definition(), **begun, "created": now()})
    return prior


def _check_bound(store: StageStore, space: SearchSpace, there: Any) -> Prior | None:
    """Find that the study is this space's, with the prior it began with."""
    if isinstance(there, dict) and "merged" in there:
        raise InvalidInput(f"{store.root}: was merged of several studies, and is not searched; search in one of these")
    if not isinstance(there, dict) or not isinstance(there.get("definition"), dict):
        raise InvalidInput(f"{store.root / STUDY_FILE}: damaged (no definition)")
    difference = next(_differences(there["definition"], space.definition()), None)
    if difference is not None:
        field, was, is_now = difference
        raise InvalidInput(
            f"{store.root}: is the study of another space: {field} is {was} there, {is_now} in {space.name}.toml; "
            "rename the file, or give another --storage"
        )
    prior = read_prior(store)
    if there.get("prior") != (None if prior is None else prior.digest):
        problem = "is missing" if prior is None else "is not what the study began with"
        raise InvalidInput(f"{store.root / PRIOR_FILE}: {problem}; its proposals would be others than until now")
    return prior


def _differences(was: Any, is_now: Any, field: str = "") -> Iterator[tuple[str, str, str]]:
    if isinstance(was, dict) and isinstance(is_now, dict) and was.get("kind") == is_now.get("kind"):
        for name in sorted(was.keys() | is_now.keys()):
            yield from _differences(was.get(name, ABSENT), is_now.get(name, ABSENT), f"{field}.{name}".lstrip("."))
    elif was is ABSENT or is_now is ABSENT or canonical_json(was) != canonical_json(is_now):
        yield field, _json(was), _json(is_now)


def _json(value: Any) -> str:
    return "absent" if value is ABSENT else canonical_json(value)
