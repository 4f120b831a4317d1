"""What a tracker is: a program of the user's own, such as MLflow, that is told what a search finds.

    interface.py       what it is told
    following.py       a thread for each, fed by the driver; what a tracker lacks is taken from the store
    to_tensorboard.py  event files, TensorBoard's HParams tab included
    to_mlflow.py       runs in a database or on a server
    to_wandb.py        runs of Weights & Biases, offline too

A study is a number of runs, one a trial and one for the whole. A run has the trial's settings as parameters, the
figures of its points by iteration, and how it ended.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from orchestrator.record import Option, Point, TrialRecord, TrialSpec, canonical_json, setting_of
from orchestrator.store import StageStore

SETTINGS = ("method", "regularization_weight", "pruning_ratio", "iterations", "model", "dataset", "seed")
FIGURES = ("accuracy", "accuracy_after_cut", "flops", "flops_kept", "params", "latency_ms")
MILLION = 10**6  # train_flops count as steps in millions: of single ones a large search has more than 64 bits hold

Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class About:
    """Which study it is. `identity` tells it from another one of the same name; `varied` are its [search] fields."""

    name: str
    identity: str
    varied: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, definition: object, varied: tuple[str, ...] = ()) -> "About":
        """The study that study.json describes."""
        identity = hashlib.sha256(canonical_json(definition).encode()).hexdigest()[:12]
        return cls(name=name, identity=identity, varied=varied)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a trial ended, and the points that it passed, in order."""

    index: int
    spec: TrialSpec
    points: tuple[Point, ...]
    status: Status
    reason: str | None  # why it was stopped, or failed
    created: str

    @classmethod
    def of(cls, trial: TrialRecord, points: tuple[Point, ...]) -> "Ended":
        status: Status = "failed" if trial.failure else "stopped" if trial.stopped else "finished"
        reason = trial.failure or trial.stopped
        return cls(
            index=trial.index, spec=trial.spec, points=points, status=status, reason=reason, created=trial.created
        )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where the study stood when so many trials had ended: the points of these, their stages counted once."""

    trials: int
    train_flops: int
    hypervolume: float
    frontier_size: int
    created: str


@dataclass(kw_only=True)
class Known:
    """What a tracker holds of a study already."""

    failed: dict[int, bool] = field(default_factory=dict)  # of trials whose end it has: whether they failed
    iterations: dict[int, set[int]] = field(default_factory=dict)  # of which it has the points, by trial
    standings: int = 0


class Tracker(Protocol):
    """Writes for one program. All calls come from one thread, `begin` first; whatever they raise ends the tracker."""

    @property
    def name(self) -> str:
        """What it is and where it writes, for messages."""

    @property
    def look(self) -> str:
        """How to look at what it writes."""

    def begin(self, about: About, store: StageStore) -> Known:
        """Open the study, which may be there from an earlier launch; what it holds already."""

    def point(self, index: int, spec: TrialSpec, point: Point) -> None:
        """A trial has a new point. Called once for each iteration of a trial."""

    def ended(self, ended: Ended) -> None:
        """A trial has ended; all of its points were told before. Told again only if it then ended otherwise."""

    def standing(self, standing: Standing) -> None:
        """Another trial has ended: where the study stands."""

    def close(self) -> None:
        """The launch is over. Trials that have not ended go on in a later one."""


def settings_of(spec: TrialSpec, about: About) -> Mapping[str, Option]:
    """A trial's parameters: the usual ones, then what the study varies besides, by dotted name."""
    everything = spec.model_dump()
    found = {name: everything[name] for name in SETTINGS}
    for name in about.varied:
        found.setdefault(name, setting_of(everything, name))
    return {name: value for name, value in found.items() if value is not None}


def figures_of(point: Point) -> Mapping[str, float]:
    """What was measured; train_flops are those of the whole path to the point."""
    found = {name: getattr(point, name) for name in FIGURES}
    measured = {name: float(value) for name, value in found.items() if value is not None}
    return {**measured, "train_flops": float(point.path_cost.train_flops)}


def study_figures(standing: Standing) -> Mapping[str, float]:
    """What changes as trials end."""
    return {
        "hypervolume": standing.hypervolume,
        "frontier_size": float(standing.frontier_size),
        "train_flops": float(standing.train_flops),
    }


def seconds_of(created: str) -> float:
    """A record's moment as seconds since 1970."""
    return datetime.fromisoformat(created).timestamp()
