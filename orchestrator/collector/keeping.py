"""Which weights a study keeps, and what becomes of the others: `orchestrator gc`.

Kept are the weights of

- the points on the frontier: they are what a study is for;
- dense stages: every trial begins there;
- with `resumable`, stages that a search of the study's space may still go on from. All settings of a trial hold for all
  its iterations, so that the space's file tells what may come after a stage:
  - after a cut, one sparse stage, unless it is that of the most iterations;
  - after the first sparse stage of a trial, as many cuts as the space has values of what decides a cut (pruning_ratio,
    method, recovery, ...): without end, where one of these may be any number;
  - after a later sparse stage, one cut.
  A stage after which all of that is finished, or is known to diverge, is not resumable; nor is one at which a trial of
  the most iterations was stopped, for no proposal goes there again.

The weights of all other stages go, and nothing else does: records, plans and points stay, and so does the frontier. All
that makes a stage collectable holds for ever (a finished stage stays finished, a beaten point beaten), so that it may
be found out while a search runs: its workers load weights of resumable stages alone. Where one does need weights that
went (a trial that another trial's stop had vouched for, or any after `frontier`), it computes them again, with the same
plan and under the same claims; see trial.restore.

Models that were confirmed lie in a store of their own, confirmed/, and stay, with what leads to them: they are results.
"""

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.collector.disk import is_weights
from orchestrator.collector.query import EmptyStudy, Study
from orchestrator.collector.trials import trials_of
from orchestrator.files import Size
from orchestrator.record import InvalidInput, TrialSpec
from orchestrator.retention import RESTORED
from orchestrator.stage_files import WEIGHTS_FILE
from orchestrator.store import CONFIRMED

Keep = Literal["frontier", "resumable"]
COLLECTOR, DRIVER = "collector", "driver"  # what only one process at a time may be
# Settings that decide nothing about a cut but for what comes before it.
BEFORE_A_CUT = ("iterations", "regularization_weight", "sparse", "dense", "seed", "model", "dataset", "weights")
DIVERGED = "diverged: "  # how the failure of such a trial begins


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How far the trials of a study may go."""

    iterations: float = math.inf
    cuts: float = math.inf  # how many different ones may follow the first sparse stage of a trial

    @classmethod
    def of(cls, study: Any) -> "Extent":
        """From study.json; without an end where it does not say. A merged study is not searched any more."""
        if not isinstance(study, dict) or not isinstance(study.get("definition"), dict):
            merged = isinstance(study, dict) and "merged" in study
            return cls(iterations=0, cuts=0) if merged else cls()
        trial, search = study["definition"].get("trial", {}), study["definition"].get("search", {})
        most = search["iterations"] if "iterations" in search else {"values": [trial.get("iterations", math.inf)]}
        cuts = [_size(one) for name, one in search.items() if name.partition(".")[0] not in BEFORE_A_CUT]
        return cls(iterations=max(_ends(most), default=math.inf), cuts=math.prod(cuts))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Stages of one kind and iteration."""

    kind: str
    iteration: int
    stages: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What one gc removes, or would. `bytes` are of its weights by key; `freed` leaves out what other folders share."""

    bytes: Mapping[str, int]
    freed: int
    groups: tuple[Group, ...]
    kept: Mapping[str, int] = field(default_factory=dict)  # how many stages, by the reason
    confirmed: int = 0  # bytes of the weights in confirmed/, which are left alone


def collectable(study: Study, keep: Keep = "resumable") -> Collection:
    """The weights that are of no more use, as far as `keep` says. Reads only."""
    there, table = _weights(study), study.index()
    reasons = kept(study, table, keep)
    iterations = iterations_of(table)
    sizes: dict[str, int] = {}
    groups: dict[tuple[str, int], list[int]] = {}
    for key, kind in zip(table["key"].to_pylist(), table["kind"].to_pylist(), strict=True):
        if key in there and key not in reasons:
            sizes[key] = sum(size.bytes for size in there[key])
            groups.setdefault((kind, iterations.get(key, 0)), []).append(sizes[key])
    return Collection(
        bytes=sizes,
        freed=sum(size.bytes for key in sizes for size in there[key] if not size.shared),
        groups=tuple(Group(kind=k, iteration=i, stages=len(s), bytes=sum(s)) for (k, i), s in sorted(groups.items())),
        kept=Counter(reason for key, reason in reasons.items() if key in there),
        confirmed=sum(size.bytes for name, size in study.store.sizes(CONFIRMED).items() if is_weights(name)),
    )


def collect(study: Study, keep: Keep = "resumable") -> Collection:
    """Removes the weights that are of no more use; returns what went.

    May be done while a search runs, and may be killed at any moment; but to keep the frontier alone is refused
    (Occupied) while a search runs, which would compute again what it is about to go on from.
    """
    with ExitStack() as alone:
        alone.enter_context(study.store.exclusive(COLLECTOR))
        if keep == "frontier":
            alone.enter_context(study.store.exclusive(DRIVER))
        found = collectable(study, keep)
        if found.bytes:
            study.store.collect(found.bytes)
    return found


def spec_with(study: Study, key: str) -> TrialSpec:
    """The settings of a trial that passed a stage: with them the stage can be computed again.

    Raises InvalidInput if no trial of the study is known to have passed it.
    """
    found = next((trial.spec for trial in study.store.trials() if key in trial.stages), None)
    if found is None:
        raise InvalidInput(f"{study.path}: no trial is known that passed stage {key[:12]}, to compute it again by")
    return found


def kept(study: Study, table: pa.Table, keep: Keep) -> dict[str, str]:
    """Why the weights of stages are kept, by key; of several reasons the first."""
    try:
        frontier = study.front()["key"].tolist()
    except EmptyStudy:
        frontier = []
    kinds = zip(table["key"].to_pylist(), table["kind"].to_pylist(), strict=True)
    reasons = dict.fromkeys(frontier, "frontier")
    for key, kind in kinds:
        if kind == "dense":
            reasons.setdefault(key, "dense")
    if keep == "resumable":
        extent = Extent.of(study.store.read_json("study.json"))
        for key in resumable(table, extent, trials_of(study.store)):
            reasons.setdefault(key, "resumable")
    return reasons


def resumable(table: pa.Table, extent: Extent, trials: pa.Table) -> set[str]:
    """The cut and sparse stages that a search may still go on from: see the top of this file."""
    ends: dict[str, set[str]] = {}  # trials that ended for good after a stage; their settings but for iterations
    ended = pc.or_(pc.is_valid(trials["stopped"]), pc.is_valid(trials["failure"]))
    for trial in trials.filter(ended).to_pylist():
        stopped = trial["stopped"] is not None and trial["iterations"] >= extent.iterations
        if trial["stages"] and (stopped or (trial["failure"] or "").startswith(DIVERGED)):
            ends.setdefault(trial["stages"][-1], set()).add(trial["settings"])
    children = Counter(parent for parent in table["parent"].to_pylist() if parent is not None)
    iterations = iterations_of(table)
    found = set()
    for key, kind in zip(table["key"].to_pylist(), table["kind"].to_pylist(), strict=True):
        at, done = iterations.get(key), children[key] + len(ends.get(key, ()))
        if kind == "dense" or at is None:  # what comes before it cannot be read
            continue
        may_follow = extent.cuts if kind == "sparse" and at == 1 else 1
        last = extent.iterations if kind == "sparse" else extent.iterations - 1
        if at <= last and done < may_follow:
            found.add(key)
    return found | {key for key in table["key"].to_pylist() if key not in iterations}


def iterations_of(table: pa.Table) -> dict[str, int]:
    """The iteration of each stage, by key; stages whose parent cannot be read are left out."""
    rows = zip(*(table[name].to_pylist() for name in ("key", "parent", "iteration")), strict=True)
    known, later = {}, []
    for key, parent, iteration in rows:
        if iteration is not None:
            known[key] = iteration
        else:
            later.append((key, parent))
    return {**known, **{key: known[parent] + 1 for key, parent in later if parent in known}}


def _weights(study: Study) -> dict[str, list[Size]]:
    """What is there of weights, by the key of their stage."""
    found: dict[str, list[Size]] = {}
    for name, size in study.store.sizes("stages").items():
        key, _, file = name.partition("/")
        if file == WEIGHTS_FILE:
            found.setdefault(key, []).append(size)
    for name, size in study.store.sizes(RESTORED).items():
        found.setdefault(name.partition("/")[0], []).append(size)
    return found


def _size(dimension: Mapping[str, Any]) -> float:
    """How many values a varied field may take."""
    if dimension.get("kind") == "range":
        return int(dimension["high"] - dimension["low"]) + 1 if dimension.get("whole") else math.inf
    return len(dimension.get("values") or dimension.get("choices") or ()) or math.inf


def _ends(dimension: Mapping[str, Any]) -> list[float]:
    if dimension.get("kind") == "range":
        return [float(dimension["high"])]
    return [float(value) for value in dimension.get("values") or dimension.get("choices") or ()]
