"""The stages of a trial, in order, each under a key that holds all that determines its result."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.methods import Method, Options, method_named, options_of
from orchestrator.network.weights import fingerprint
from orchestrator.record import StageKind, TrialSpec, stage_key
from orchestrator.training.datasets import load
from orchestrator.training.splits import DataSet

# The version of the code that computes each kind of stage; raise it when results change, and old stages stay apart.
VERSIONS: dict[StageKind, int] = {"dense": 1, "sparse": 2, "cut": 2}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A trial's spec, and what it names: the method, its options, the data."""

    spec: TrialSpec
    method: Method
    options: Options
    data: DataSet

    @classmethod
    def of(cls, spec: TrialSpec, data: DataSet | None = None) -> "Setting":
        """data: of the spec, where it is loaded already. Raises InvalidInput for what there is not."""
        method = method_named(spec.method)
        options = options_of(method, spec.method_options)
        data = data or load(spec.dataset, root=spec.data_root)
        return cls(spec=spec, method=method, options=options, data=data)

    @cached_property
    def options_in_key(self) -> dict[str, Any]:
        """The method's options; a file that one of them names stands there by what it holds. Raises InvalidInput."""
        found = self.options.model_dump()
        return found if self.method.fingerprint is None else found | self.method.fingerprint(self.options)

    @property
    def penalised(self) -> bool:
        return self.method.penalty is not None and self.spec.regularization_weight > 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage to be looked up or computed."""

    kind: StageKind
    parent: str | None
    parameters: dict[str, Any]
    iteration: int

    @cached_property
    def key(self) -> str:
        return stage_key(self.parent, self.kind, self.parameters)


def steps(setting: Setting) -> Iterator[Step]:
    """dense, then sparse and cut once an iteration."""
    step = Step(kind="dense", parent=None, parameters=_dense(setting), iteration=0)
    yield step
    sparse, cut = _sparse(setting), _cut(setting)
    for iteration in range(1, setting.spec.iterations + 1):
        step = Step(kind="sparse", parent=step.key, parameters=sparse, iteration=iteration)
        yield step
        step = Step(kind="cut", parent=step.key, parameters=cut, iteration=iteration)
        yield step


def _dense(setting: Setting) -> dict[str, Any]:
    spec = setting.spec
    source = {"weights": fingerprint(Path(spec.weights))} if spec.weights else {"schedule": spec.dense.model_dump()}
    data = {"name": spec.dataset, "fingerprint": setting.data.fingerprint}
    common = {"version": VERSIONS["dense"], "model": spec.model, "data": data, "seed": spec.seed}
    return {**common, **source, **_measured(setting)}


def _sparse(setting: Setting) -> dict[str, Any]:
    """Methods without a penalty have the same sparse stages; so has one whose regularization_weight is 0."""
    penalty = None
    if setting.penalised:
        penalty = {
            "method": setting.method.name,
            "version": setting.method.version,
            "options": setting.options_in_key,
            "regularization_weight": setting.spec.regularization_weight,
        }
    return {"version": VERSIONS["sparse"], "schedule": setting.spec.sparse.model_dump(), "penalty": penalty}


def _cut(setting: Setting) -> dict[str, Any]:
    method = {
        "name": setting.method.name,
        "version": setting.method.version,
        "options": setting.options_in_key,
    }
    rounding = {"round_to": setting.spec.round_to} if setting.spec.round_to > 1 else {}  # 1 is how it was before
    return {
        "version": VERSIONS["cut"],
        "method": method,
        "pruning_ratio": setting.spec.pruning_ratio,
        "group_cap": setting.spec.group_cap,
        "recovery": setting.spec.recovery.model_dump(),
        **rounding,
        **_measured(setting),
    }


def _measured(setting: Setting) -> dict[str, Any]:
    """What a point is measured by besides accuracy, if it is."""
    batch = setting.spec.latency_batch
    return {"latency_batch": batch} if batch else {}
