"""What became of frontier points that were trained anew: the figures of the test split, which alone are results."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from orchestrator.claim import Owner
from orchestrator.files import Place
from orchestrator.record import Arm, ArmRecord, Measured
from orchestrator.stage_files import DamagedRecord, DamagedStage
from orchestrator.store import CONFIRMED, StageStore

ARMS: tuple[Arm, ...] = ("pruned", "dense", "scratch")
COLUMNS = {
    "key": "object",  # of the frontier point
    "arm": "object",
    "seeds": "int64",
    "test_accuracy_mean": "float64",
    "test_accuracy_deviation": "float64",  # of the sample; NaN for one seed
    "flops": "int64",  # the mean: widths may differ by a channel from seed to seed
    "params": "int64",
    "train_flops_mean": "float64",  # of all training that led to the model
    "optimism": "float64",  # accuracy that the search found for the point, less the mean; of the pruned arm alone
    "with_validation": "bool",
}


def confirming(study: Place) -> Owner | None:
    """The process that confirms points of a study, if one is known to."""
    return StageStore(study / CONFIRMED).occupant("driver")


def confirmed_frame(store: StageStore, accuracy_of: Callable[[str], float]) -> pd.DataFrame:
    """One row a point and arm, in the order in which points were confirmed; empty where none was.

    store: of the confirmations. accuracy_of: what the search found for a point. Of a point that was confirmed more
    than once, at another length or on other data, the last time counts.
    """
    rows = []
    for point, records in _by_point(store.arms()).items():
        for arm in ARMS:
            found = measured(store, [record for record in records if record.spec.arm == arm])
            if found:
                rows.append(_row(point, arm, found, accuracy_of, records[0].spec.with_validation))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def latest(records: Iterable[ArmRecord]) -> list[ArmRecord]:
    """Of one point's records those of the last confirmation: one for each arm and seed. Without failures."""
    done = [record for record in records if record.failure is None]
    paths = [record for record in done if record.spec.arm == "pruned"]
    if not paths:
        return []
    kind = _kind(max(paths, key=lambda record: record.created))
    ordered = sorted(done, key=lambda record: record.created)
    one_each = {(record.spec.arm, record.spec.seed): record for record in ordered if _kind(record) == kind}
    return list(one_each.values())


def measured(store: StageStore, records: Sequence[ArmRecord]) -> list[Measured]:
    """What the arms measured, but for those whose stage cannot be read: `orchestrator confirm` makes it again."""
    found = []
    for record in records:
        key = record.stages[-1]
        try:
            if store.has(key):
                found.append(store.tested(key))
        except (DamagedStage, DamagedRecord):
            continue
    return found


def _kind(record: ArmRecord) -> tuple[bool, float]:
    return record.spec.with_validation, record.spec.length


def _by_point(records: Sequence[ArmRecord]) -> dict[str, list[ArmRecord]]:
    points = dict.fromkeys(record.spec.point for record in records)
    found = {point: latest(record for record in records if record.spec.point == point) for point in points}
    return {point: some for point, some in found.items() if some}


def _row(
    point: str, arm: Arm, found: Sequence[Measured], accuracy_of: Callable[[str], float], with_validation: bool
) -> dict[str, Any]:
    accuracies = [tested.test_accuracy for tested in found]
    mean = fmean(accuracies)
    return {
        "key": point,
        "arm": arm,
        "seeds": len(found),
        "test_accuracy_mean": mean,
        "test_accuracy_deviation": stdev(accuracies) if len(found) > 1 else math.nan,
        "flops": round(fmean(tested.flops for tested in found)),
        "params": round(fmean(tested.params for tested in found)),
        "train_flops_mean": fmean(tested.path_cost.train_flops for tested in found),
        "optimism": accuracy_of(point) - mean if arm == "pruned" else math.nan,
        "with_validation": with_validation,
    }
