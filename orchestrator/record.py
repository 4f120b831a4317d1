"""Everything that crosses a process or a file: trial specs, points, costs, failures; and the keys of stages.

Plain frozen records that check themselves and round-trip through JSON. No torch, no Ray, no Optuna.
"""

import hashlib
import json
import math
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

StageKind = Literal["dense", "sparse", "cut"]
FailureReason = Literal["diverged", "out_of_memory", "timed_out", "budget", "storage", "error"]
Arm = Literal["pruned", "dense", "scratch"]
Option = bool | int | float | str
Share = Annotated[FiniteFloat, Field(ge=0.0, le=1.0)]
OpenShare = Annotated[FiniteFloat, Field(gt=0.0, lt=1.0)]


class InvalidInput(ValueError):
    """The user's mistake: the message names the file, the field or the path, and what is allowed there."""


class Record(BaseModel):
    """Base of all records: frozen, no unknown field, no silent coercion of a number written as text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Schedule(Record):
    """How long and how fast a network is trained."""

    epochs: Annotated[int, Field(ge=0)]  # passes over the train split
    learning_rate: Annotated[FiniteFloat, Field(gt=0.0)]  # the peak, reached after the warm-up of one_cycle
    decay: Literal["one_cycle", "cosine"] = "one_cycle"  # course of the step size; both end at nothing
    momentum: Annotated[FiniteFloat, Field(ge=0.0, lt=1.0)] = 0.9  # share of the last step that is kept (Nesterov)
    weight_decay: Annotated[FiniteFloat, Field(ge=0.0)] = 5e-4  # not of biases and norms
    batch_size: Annotated[int, Field(ge=1)] = 128  # pictures in a step
    label_smoothing: Annotated[FiniteFloat, Field(ge=0.0, lt=1.0)] = 0.0  # share of the target spread over all classes
    augmentation: Literal["none", "crop", "crop_flip"] = "none"  # random shifts; these and mirroring


class TrialSpec(Record):
    """One trial: a network, its data, a method, and the three settings that a study varies."""

    model: str  # a name such as resnet56, torchvision:NAME, timm:NAME, or package.module:function
    dataset: str  # a name such as digits or cifar10, imagefolder:PATH, or package.module:function
    method: str = "oicsr"  # what is added while training, and which channels stay
    method_options: dict[str, Option] = {}  # the method's own switches
    regularization_weight: Annotated[FiniteFloat, Field(ge=0.0)]  # of the method's penalty, beside the loss
    pruning_ratio: OpenShare  # share of the current flops removed in each iteration
    iterations: Annotated[int, Field(ge=1)]  # cycles of sparse training, pruning and recovery
    group_cap: OpenShare = 0.5  # largest share of a group's channels that one iteration may take
    round_to: Annotated[int, Field(ge=1)] = 1  # a group that loses channels keeps a multiple of this
    latency_batch: Annotated[int, Field(ge=0)] = 0  # pictures in the batch that each point's latency_ms is of; 0: none
    seed: Annotated[int, Field(ge=0)] = 0  # of all that is random in a trial
    weights: str | None = None  # a file with trained weights; the dense stage then trains nothing
    data_root: str = "data"  # folder of the downloaded data sets; part of no key
    dense: Schedule  # the training before anything is pruned
    sparse: Schedule  # the training with the penalty, first part of each iteration
    recovery: Schedule  # the training without it, after each cut


class ArmSpec(TrialSpec):
    """One model of a confirmation: a frontier point's path walked anew, or a control under the same train_flops.

    "pruned" is what the path ends with; "scratch" has its widths and random weights; "dense" is the whole network. The
    other fields are those of the path, with its schedules at their full length.
    """

    point: str  # key of the frontier point in the study
    path: str  # key of the path's last stage; it stands for all that determines the path
    arm: Arm
    with_validation: bool = False  # trained on the validation split too
    length: Annotated[FiniteFloat, Field(gt=0.0)] = 1.0  # epochs, as a multiple of the search's


class Cost(Record):
    """What was spent. train_flops = forward flops x samples x 3, which no noisy machine distorts."""

    train_flops: Annotated[int, Field(ge=0)] = 0
    seconds: Annotated[FiniteFloat, Field(ge=0.0)] = 0.0

    def __add__(self, other: Self) -> "Cost":
        return Cost(train_flops=self.train_flops + other.train_flops, seconds=self.seconds + other.seconds)


class Point(Record):
    """One measured model. `accuracy` is top-1 on the validation split; flops are multiply-accumulates at batch 1."""

    key: str
    parent: str | None
    kind: Literal["dense", "cut"]
    iteration: Annotated[int, Field(ge=0)]  # 0 for the dense model
    model: str
    dataset: str
    method: str | None = None  # what follows is None for the dense model, which no method has touched
    regularization_weight: FiniteFloat | None = None
    pruning_ratio: FiniteFloat | None = None
    seed: int
    flops: Annotated[int, Field(ge=0)]
    params: Annotated[int, Field(ge=0)]
    flops_kept: Annotated[FiniteFloat, Field(gt=0.0, le=1.0)]
    accuracy: Share
    accuracy_after_cut: Share | None = None  # norm statistics re-estimated, no recovery
    test_accuracy: Share | None = None
    latency_ms: Annotated[FiniteFloat, Field(ge=0.0)] | None = None  # of a batch of `latency_batch`, where it ran
    latency_batch: int | None = None
    cost: Cost  # of this stage alone
    path_cost: Cost  # of this stage and all before it on its path
    created: str


class Measured(Record):
    """One model of a confirmation as it was measured, once, on the test split; `accuracy` is on the validation split.

    It is no Point: what was confirmed never enters a search's frontier.
    """

    key: str
    parent: str | None
    kind: Literal["dense", "cut"]
    iteration: Annotated[int, Field(ge=0)]
    model: str
    dataset: str
    seed: int
    flops: Annotated[int, Field(ge=0)]
    params: Annotated[int, Field(ge=0)]
    flops_kept: Annotated[FiniteFloat, Field(gt=0.0, le=1.0)]
    test_accuracy: Share
    accuracy: Share | None  # None where the model was trained on the validation split
    epochs: Annotated[int, Field(ge=0)]  # of all training that led to it
    cost: Cost  # of this stage alone
    path_cost: Cost  # of all training that led to it
    created: str


class Sensed(Record):
    """A trained network with one group pruned alone, and nothing trained after: see `orchestrator sensitivity`."""

    group: str
    channels: Annotated[int, Field(ge=1)]  # of the group
    share: OpenShare  # of them that was to leave, rounded down, at least one
    kept: Annotated[int, Field(ge=1)]
    flops: Annotated[int, Field(ge=0)]  # of the network with this group pruned
    flops_kept: Annotated[FiniteFloat, Field(gt=0.0, le=1.0)]
    accuracy: Share  # on the validation split


class FrozenGroup(Record):
    """A group of channels that stays whole: its cut, tried on the model's own weights, was not right, or its method
    cannot treat it.
    """

    group: str
    channels: Annotated[int, Field(ge=1)]
    reason: str


class Stage(Record):
    """The record of one finished unit of work; `parameters` is all that its key was made from."""

    key: str
    parent: str | None
    kind: StageKind
    parameters: dict[str, Any]
    frozen: tuple[FrozenGroup, ...] = ()  # in this stage, by verification or by the method
    unrepaired: dict[str, str] = {}  # layers that the method's repair could not treat after the cut, with the reason
    files: dict[str, str] | None = None  # SHA-256 of the stage's other files, by the store as it publishes them
    cost: Cost
    created: str
    host: str
    pid: int

    @model_validator(mode="after")
    def _key_fits(self) -> Self:
        expected = stage_key(self.parent, self.kind, self.parameters)
        if self.key != expected:
            raise ValueError(f"key is {self.key}; its parent, kind and parameters give {expected}")
        return self


class Failure(Record):
    """Why a trial ended early: a record like any other. `key` is the stage that could not be finished."""

    key: str
    spec: TrialSpec
    reason: FailureReason
    message: str
    traceback: str
    created: str
    host: str
    pid: int


class Outcome(Record):
    """How a trial ended: the points it passed, in order, and the failure that stopped it, if one did.

    `stages` are the keys of the stages that it passed, in order; `computed` those that this run trained itself, and
    `reused` those that it found finished. `stopped` says why its last iterations were not worth their cost.
    """

    points: tuple[Point, ...]
    failure: Failure | None = None
    stopped: str | None = None
    stages: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()


class TrialRecord(Record):
    """How a trial of a study ended, for those who count and compare. What it found lies in its stages."""

    index: Annotated[int, Field(ge=0)]  # its number among the proposals of the study
    spec: TrialSpec
    stages: tuple[str, ...]  # the keys of those that it passed, in order
    failure: str | None = None
    stopped: str | None = None
    created: str


class ArmRecord(Record):
    """How one arm of a confirmation ended. The last of its stages is the model that was measured."""

    spec: ArmSpec
    stages: tuple[str, ...]
    failure: str | None = None
    created: str


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, shortest floats, no NaN. Equal values, equal text.

    Integral floats are written as integers, so that 1 and 1.0 (TOML makes both) give the same text.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


LEAVES = frozenset({str, int, bool, type(None)})  # plain already, as most is: studies have a lot of it


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {str(key): item if type(item) in LEAVES else _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value


def options_for(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The switches of one method among those of a study: what is there for all methods, then its own table's."""
    own = given.get(method)
    return {
        **{name: value for name, value in given.items() if not isinstance(value, Mapping)},
        **(own if isinstance(own, Mapping) else {}),
    }


def setting_of(spec: Mapping[str, Any], name: str) -> Any:
    """The value that a trial has of a setting by dotted name; `spec` is a dumped TrialSpec.

    None for an option that it has not, and for one of another method, such as method_options.oicsr.norm_parameters.
    """
    table, _, field = name.partition(".")
    if table != "method_options":
        return spec[table][field] if field else spec[table]
    method, _, option = field.rpartition(".")
    return spec[table].get(option) if method in ("", spec["method"]) else None


def stage_key(parent: str | None, kind: StageKind, parameters: dict[str, Any]) -> str:
    """SHA-256 over everything that determines a stage's result, as 64 hexadecimal digits."""
    text = canonical_json({"parent": parent, "kind": kind, "parameters": parameters})
    return hashlib.sha256(text.encode()).hexdigest()


def seed_of(key: str) -> int:
    """A stage's random seed (63 bits) comes from its key, so it does not matter which trial computes it."""
    return int(key[:16], 16) >> 1


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def whereabouts() -> dict[str, Any]:
    """The fields that tell which process wrote a record."""
    return {"created": now(), "host": socket.gethostname(), "pid": os.getpid()}


def first_problem(error: ValidationError) -> str:
    """What is wrong with a file or a record, as one line: field, complaint, and what was met."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    met = "" if problem["type"] in ("missing", "value_error") else f" (met: {str(problem['input'])[:80]!r})"
    return f"{where}: {message}{met}" if where else f"{message}{met}"
