"""The index of a study: a row for each stage, in a file that saves opening one for every stage.

It is brought up to date at each question, made anew when it is damaged, and may be thrown away. A study of a million
stages is a table of columns all the way.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.collector.table_files import read_table, write_table
from orchestrator.record import Point, Stage
from orchestrator.stage_files import DamagedStage
from orchestrator.store import StageStore

INDEX_FILE = "index.parquet"

# One row a stage; what only a point has is missing in the rows of `sparse` stages.
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("parent", pa.string()),
        ("kind", pa.string()),
        ("iteration", pa.int64()),
        ("model", pa.string()),
        ("dataset", pa.string()),
        ("method", pa.string()),
        ("regularization_weight", pa.float64()),
        ("pruning_ratio", pa.float64()),
        ("seed", pa.int64()),
        ("flops", pa.int64()),
        ("params", pa.int64()),
        ("flops_kept", pa.float64()),
        ("accuracy", pa.float64()),
        ("accuracy_after_cut", pa.float64()),
        ("test_accuracy", pa.float64()),
        ("latency_ms", pa.float64()),  # of a batch of latency_batch pictures
        ("train_flops", pa.float64()),  # a path on ImageNet has more of them than an int64 holds
        ("seconds", pa.float64()),
        ("path_train_flops", pa.float64()),
        ("path_seconds", pa.float64()),
        ("frozen_groups", pa.string()),  # those that verification froze in this stage, with commas
        ("unrepaired_layers", pa.string()),  # those that the method's repair could not treat in this stage, with commas
        ("created", pa.string()),
    ]
)
REPEATED = ["kind", "model", "dataset", "method", "frozen_groups", "unrepaired_layers"]  # a few values again and again
OF_POINTS = [name for name in SCHEMA.names if name in Point.model_fields]

Row = dict[str, Any]


def indexed(store: StageStore) -> tuple[pa.Table, dict[str, str]]:
    """One row for each published stage, in the order of their keys; and what is wrong with those that cannot be read.

    Only those not in the index are opened.
    """
    keys = pa.array(store.keys(), pa.string())
    index = read_table(store, INDEX_FILE, SCHEMA)
    replaced = pa.array(sorted(store.replaced()), pa.string())
    known = index.filter(pc.invert(pc.is_in(index["key"], replaced))) if len(replaced) else index
    if known["key"].combine_chunks().equals(keys):
        return known, {}
    new = keys.filter(pc.invert(pc.is_in(keys, known["key"].combine_chunks())))
    found, damaged = _rows(store, new.to_pylist())
    rows = pa.Table.from_pylist(found, schema=SCHEMA)
    table = pa.concat_tables([known.filter(pc.is_in(known["key"], keys)), rows]).sort_by("key")
    if not table.equals(index):
        write_table(store, INDEX_FILE, table, repeated=REPEATED)
    return table, damaged


def _rows(store: StageStore, keys: list[str]) -> tuple[list[Row], dict[str, str]]:
    """Rows of stages, opened one by one; and what is wrong with those that cannot be read, by key."""
    rows, damaged = [], {}
    store.read_ahead(keys)
    for key in keys:
        try:
            rows.append(_row(store, key))
        except DamagedStage as error:
            damaged[key] = str(error)
    store.read_ahead(())
    return rows, damaged


def _row(store: StageStore, key: str) -> Row:
    stage = store.stage(key)
    row = _point_row(store.point(key)) if store.has_point(key) else _stage_row(stage)
    frozen, unrepaired = ", ".join(one.group for one in stage.frozen), ", ".join(stage.unrepaired)
    return {**row, "frozen_groups": frozen or None, "unrepaired_layers": unrepaired or None}


def _point_row(point: Point) -> Row:
    row: Row = dict.fromkeys(SCHEMA.names)
    row.update((name, getattr(point, name)) for name in OF_POINTS)
    row.update(train_flops=float(point.cost.train_flops), seconds=point.cost.seconds)
    row.update(path_train_flops=float(point.path_cost.train_flops), path_seconds=point.path_cost.seconds)
    return row


def _stage_row(stage: Stage) -> Row:
    row = {**dict.fromkeys(SCHEMA.names), **stage.model_dump(include={"key", "parent", "kind", "created"})}
    return {**row, "train_flops": float(stage.cost.train_flops), "seconds": stage.cost.seconds}
