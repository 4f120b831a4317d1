"""What confirming a point has left: its figures, and the model of its first seed.

The model is taken by its seed, never by how it did on the test split.
"""

import math
from dataclasses import dataclass

from orchestrator.collector import Study
from orchestrator.collector.confirmed import latest, measured
from orchestrator.record import InvalidInput, Measured
from orchestrator.store import CONFIRMED, StageStore
from orchestrator.takeout.figures import Confirmation


@dataclass(frozen=True, kw_only=True)
class ConfirmedModel:
    """The model of the first seed, and what all of them together have shown."""

    store: StageStore
    measured: Measured
    confirmation: Confirmation


def confirmed_model(study: Study, key: str) -> ConfirmedModel:
    """What confirming this point of the search has given. Raises InvalidInput if it was not confirmed."""
    frame = study.confirmed()
    rows = frame[(frame["key"] == key) & (frame["arm"] == "pruned")].to_dict("records")
    if not rows:
        raise InvalidInput(f"{study.path}: the point {key[:12]} is not confirmed; `orchestrator confirm` does it")
    (row,) = rows
    store = StageStore(study.path / CONFIRMED)
    records = latest(record for record in store.arms() if record.spec.point == key)
    found = measured(store, [record for record in records if record.spec.arm == "pruned"])
    deviation = float(row["test_accuracy_deviation"])
    return ConfirmedModel(
        store=store,
        measured=min(found, key=lambda one: one.seed),
        confirmation=Confirmation(
            point=key,
            seeds=int(row["seeds"]),
            test_accuracy_mean=float(row["test_accuracy_mean"]),
            test_accuracy_deviation=None if math.isnan(deviation) else deviation,
            optimism=float(row["optimism"]),
            with_validation=bool(row["with_validation"]),
        ),
    )
