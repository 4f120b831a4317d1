"""What confirming a point has left: its figures, and the model of its first seed.

<study>/confirmed is a stage store of its own, in which tested.json stands in place of point.json; arms/*.json say which
stage is whose. The model is taken by its seed, never by how it did on the test split.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from orchestrator.collector import Study
from orchestrator.files import open_files
from orchestrator.record import Cost, InvalidInput, Point
from orchestrator.store import StageStore, first_problem
from orchestrator.takeout.figures import Confirmation

CONFIRMED = "confirmed"
Kind = TypeVar("Kind", bound=BaseModel)


class Measured(BaseModel):
    """What is known of a trained model besides its network."""

    seed: int
    accuracy: float | None
    accuracy_after_cut: float | None = None
    test_accuracy: float | None = None
    path_cost: Cost

    @classmethod
    def of(cls, point: Point) -> "Measured":
        """Of a point of the search, whose model nobody has tested."""
        return cls(
            seed=point.seed,
            accuracy=point.accuracy,
            accuracy_after_cut=point.accuracy_after_cut,
            path_cost=point.path_cost,
        )


class _ArmSpec(BaseModel):
    point: str
    arm: str
    seed: int
    with_validation: bool = False
    length: float = 1.0

    @property
    def kind(self) -> tuple[bool, float]:
        """What one confirmation of a point has in common."""
        return self.with_validation, self.length


class _Arm(BaseModel):
    spec: _ArmSpec
    stages: tuple[str, ...]
    failure: str | None = None
    created: str


@dataclass(frozen=True, kw_only=True)
class ConfirmedModel:
    """The stage of the first seed, and what all of them together have shown."""

    store: StageStore
    key: str
    measured: Measured
    confirmation: Confirmation


def confirmed_model(study: Study, key: str) -> ConfirmedModel:
    """What confirming this point of the search has given. Raises InvalidInput if it was not confirmed."""
    frame = cast(Any, study).confirmed()
    rows = frame[(frame["key"] == key) & (frame["arm"] == "pruned")].to_dict("records")
    if not rows:
        raise InvalidInput(f"{study.path}: the point {key[:12]} is not confirmed; `orchestrator confirm` does it")
    row = rows[0]
    store = StageStore(study.path / CONFIRMED)
    last = _first_seed(store, key)
    deviation = float(row["test_accuracy_deviation"])
    return ConfirmedModel(
        store=store,
        key=last,
        measured=_record(Measured, store, f"stages/{last}/tested.json"),
        confirmation=Confirmation(
            point=key,
            seeds=int(row["seeds"]),
            test_accuracy_mean=float(row["test_accuracy_mean"]),
            test_accuracy_deviation=None if math.isnan(deviation) else deviation,
            optimism=float(row["optimism"]),
            with_validation=bool(row["with_validation"]),
        ),
    )


def _first_seed(store: StageStore, point: str) -> str:
    """The last stage of the lowest seed, of the last confirmation: the one that Study.confirmed tells of."""
    names = [name for name in open_files(store.root).names("arms") if name.endswith(".json")]
    arms = [_record(_Arm, store, f"arms/{name}") for name in names]
    done = [arm for arm in arms if (arm.spec.point, arm.spec.arm, arm.failure) == (point, "pruned", None)]
    if not done:
        raise InvalidInput(f"{store.root}: holds no model of the point {point[:12]}; `orchestrator confirm` makes it")
    done.sort(key=lambda arm: arm.created, reverse=True)
    last = [arm for arm in done if arm.spec.kind == done[0].spec.kind]
    return min(last, key=lambda arm: arm.spec.seed).stages[-1]


def _record(kind: type[Kind], store: StageStore, name: str) -> Kind:
    try:
        return kind.model_validate(store.read_json(name))
    except ValidationError as error:
        raise InvalidInput(f"{store.root / name}: {first_problem(error)}") from error
