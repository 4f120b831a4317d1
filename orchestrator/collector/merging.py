"""Studies from several clusters joined into one: `orchestrator merge`.

What may be joined. Accuracies compare where they were measured on the same pictures: all studies must be of one data
set with one split, which the fingerprint of the data tells. Models may differ, for flops count the same work
everywhere; flops_kept then is of each model's own dense network, and so is the hypervolume. What has one and the same
key must be the same network: a dense stage of equal key and other flops is a user's function that was changed between
the clusters. latency_ms is what each cluster's machines took.

What is joined. Stages by their keys, each once: of the first study that has its weights, else of the first that has it.
Where two have computed the same stage, their figures may differ by rounding, and the record comes along with what it
was measured of. Trials are numbered anew: those of the first study, then those of the next. Confirmations come along
in the same way; of an arm that two studies have trained, the model that was measured last counts. The sources stay as
they are; study.json says which they were. A merged study is asked, exported and confirmed; a search goes on in its
sources, which keep what only a search needs: its settings, journal, prior, space file, and notes of trackers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.collector.amounts import format_flops
from orchestrator.collector.query import Study
from orchestrator.files import Place, Uri, located
from orchestrator.record import InvalidInput, now
from orchestrator.retention import RESTORED
from orchestrator.stage_files import DamagedStage
from orchestrator.store import CONFIRMED, StageStore

STUDY_FILE = "study.json"


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What came of a merge. `shared` are stages that more than one source has, `damaged` those that none has whole.

    `stages` and `shared` are of the searches; `confirmed` models were measured on the test split.
    """

    path: Place
    stages: int
    shared: int
    trials: int
    confirmed: int
    damaged: tuple[str, ...]
    models: tuple[str, ...]


def place_of(name: str, storage: "str | Place") -> Place:
    """Where a new study lies: a name under the storage, or a path or URI."""
    given = located(name)
    return given if isinstance(given, Uri) or len(Path(given).parts) > 1 else located(storage) / name


def merge(sources: Sequence[Study], target: Place, at: Callable[[int, int], None] = lambda done, of: None) -> Merged:
    """Join studies into a new one. The same call goes on after a kill; `at` hears how far it is.

    Raises InvalidInput if the studies do not compare, or if there is something else under the target's name.
    """
    check_comparable(sources)
    store = StageStore(target)
    about = {"sources": [_about(source) for source in sources]}
    _check_target(store, sources, about)
    with store.exclusive("driver"):
        there = store.read_json(STUDY_FILE)
        created = there["created"] if there else now()
        head: dict[str, Any] = {"name": located(target).name, "created": created}
        store.write_json(STUDY_FILE, {**head, "merged": {**about, "finished": False}})
        stores = [source.store for source in sources]
        held = [set(one.keys()) for one in stores]
        damaged = _take_stages(stores, held, store, at)
        _take_failures(stores, store)
        trials = _take_trials(sources, store)
        confirmed, torn = _take_confirmed(sources, store)
        store.write_json(STUDY_FILE, {**head, "merged": {**about, "finished": True}})
    every = set().union(*held)
    return Merged(
        path=target,
        stages=len(every) - len(damaged),
        shared=sum(map(len, held)) - len(every),
        trials=trials,
        confirmed=confirmed,
        damaged=(*damaged, *torn),
        models=tuple(sorted({model for source in sources for model in _models(source)})),
    )


def check_comparable(sources: Sequence[Study]) -> None:
    """Raises InvalidInput, naming two studies and what differs, for those whose accuracies do not compare."""
    if len(sources) < 2:
        raise InvalidInput("merge joins two studies or more")
    seen: dict[Any, Study] = {}
    dense: dict[str, tuple[Study, Any]] = {}
    for source in sources:
        if any(source.path.resolve() == other.path.resolve() for other in seen.values()):
            raise InvalidInput(f"{source.path}: is named twice")
        points = [point for key in _dense_keys(source) for point in [source.store.point(key)]]
        if not points:
            raise InvalidInput(f"{source.path}: has no dense network so far, so that nothing tells what data it is of")
        for point in points:
            _check_data(source, point.key, seen)
            other, same = dense.setdefault(point.key, (source, point))
            if (same.flops, same.params) != (point.flops, point.params):
                raise InvalidInput(
                    f"{source.path}: its dense {point.model} has {format_flops(point.flops)} flops, that of "
                    f"{other.path} {format_flops(same.flops)}: the same name stands for two networks"
                )
        seen.setdefault(source.path, source)


def _check_data(source: Study, key: str, seen: dict[Any, Study]) -> None:
    """All in `seen` have the data of the first."""
    data = _data(source, key)
    for other in list(seen.values())[:1]:
        theirs = _data(other, _dense_keys(other)[0])
        if data["fingerprint"] != theirs["fingerprint"]:
            raise InvalidInput(
                f"{source.path}: is of {_described(data)}, {other.path} of {_described(theirs)}; accuracies compare "
                "on the same pictures and the same split alone"
            )


def _data(source: Study, key: str) -> Mapping[str, str]:
    data = source.store.stage(key).parameters.get("data")
    if not isinstance(data, dict) or "fingerprint" not in data:
        raise InvalidInput(
            f"{source.path}: its dense stage {key[:12]} has no fingerprint of the data it was trained on"
        )
    return data


def _described(data: Mapping[str, str]) -> str:
    return f"{data.get('name', 'data')} (fingerprint {data['fingerprint'][:12]})"


def _dense_keys(source: Study) -> list[str]:
    table = source.index()
    rows = zip(table["key"].to_pylist(), table["kind"].to_pylist(), strict=True)
    return [key for key, kind in rows if kind == "dense"]


def _models(source: Study) -> set[str]:
    return {model for model in source.index()["model"].to_pylist() if model is not None}


def _about(source: Study) -> dict[str, Any]:
    """What is kept of a source."""
    study = source.store.read_json(STUDY_FILE)
    known = study if isinstance(study, dict) else {}
    trials = len(source.store.trials())
    kept = {name: known[name] for name in ("definition", "merged", "created") if name in known}
    return {"name": source.name, "path": str(source.path.absolute()), "trials": trials, **kept}


def _check_target(store: StageStore, sources: Sequence[Study], about: Mapping[str, Any]) -> None:
    if any(store.root.resolve() == source.path.resolve() for source in sources):
        raise InvalidInput(f"{store.root}: is one of the studies to be joined; give a new name")
    there = store.read_json(STUDY_FILE)
    merged = there.get("merged") if isinstance(there, dict) else None
    unfinished = isinstance(merged, dict) and not merged.get("finished")
    if unfinished and isinstance(merged, dict):
        if [one["path"] for one in merged["sources"]] == [one["path"] for one in about["sources"]]:
            return
        raise InvalidInput(f"{store.root}: holds an unfinished merge of other studies; `orchestrator rm` removes it")
    if there is not None or store.names():
        raise InvalidInput(f"{store.root}: is there already; give a new name")


def _take_stages(
    sources: Sequence[StageStore],
    held: Sequence[set[str]],
    store: StageStore,
    at: Callable[[int, int], None] = lambda done, of: None,
) -> list[str]:
    """Take every stage over; returns those that no source has whole."""
    gone = [source.collected.bytes().keys() - set(source.names(RESTORED)) for source in sources]
    keys = sorted(set().union(*held))
    orders = {
        key: sorted((n for n, has in enumerate(held) if key in has), key=lambda n: key in gone[n]) for key in keys
    }
    damaged, without = [], {}
    for done, (key, order) in enumerate(orders.items(), start=1):
        found = next((folders for n in order if (folders := _folders(sources[n], key))), None)
        if found is None:
            damaged.append(key)
            continue
        stage, weights = found
        store.adopt(key, stage)
        if weights != stage:
            without[key] = 0
        if weights is not None and weights != stage:
            store.adopt(key, weights, restored=True)
        at(done, len(orders))
    if without:  # until then the merge is not finished
        store.collected.note(without)
    return damaged


def _folders(store: StageStore, key: str) -> tuple[Path, Path | None] | None:
    """A stage's folder, and that with its weights; None if it is damaged."""
    try:
        folder = store.folder(key)
        return None if folder is None else (folder, store.weights(key))
    except DamagedStage:
        return None


def _take_failures(sources: Sequence[StageStore], store: StageStore) -> None:
    for source in sources:
        for failure in source.failures():
            if store.failure(failure.key) is None:
                store.record_failure(failure)


def _take_trials(sources: Sequence[Study], store: StageStore) -> int:
    """Number the trials anew; returns how many there are."""
    trials = [trial for source in sources for trial in source.store.trials()]
    for index, trial in enumerate(trials):
        store.record_trial(trial.model_copy(update={"index": index}))
    return len(trials)


def _take_confirmed(sources: Sequence[Study], store: StageStore) -> tuple[int, list[str]]:
    """Take confirmations over; returns how many models they have measured, and the stages that no source has whole."""
    stores = [StageStore(source.path / CONFIRMED) for source in sources]
    held = [set(one.keys()) for one in stores]
    ours = StageStore(store.root / CONFIRMED)
    torn = _take_stages(stores, held, ours)
    _take_failures(stores, ours)
    ended = sorted((arm for one in stores for arm in one.arms()), key=lambda arm: (arm.failure is None, arm.created))
    kept = {(arm.spec.point, arm.spec.path, arm.spec.arm): arm for arm in ended}  # the last, or else the last failure
    for arm in kept.values():
        ours.record_arm(arm)
    return sum(arm.failure is None and arm.stages[-1] not in torn for arm in kept.values()), torn
