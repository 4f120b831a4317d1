"""How the trials of a study ended, as a table. trials.parquet is a copy that saves opening a file for every trial.

A trial's file may be written again, when the trial is run again after a kill: the table keeps the mark of each file
that it has read, and reads those again whose mark has changed.
"""

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.collector.table_files import read_table, write_table
from orchestrator.record import TrialRecord, canonical_json
from orchestrator.store import StageStore

TRIALS_FILE = "trials.parquet"
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("mark", pa.string()),
        ("settings", pa.string()),  # a digest of the spec but for its iterations
        ("iterations", pa.int64()),
        ("stages", pa.list_(pa.string())),  # keys, in order
        ("failure", pa.string()),
        ("stopped", pa.string()),
    ]
)


def trials_of(store: StageStore) -> pa.Table:
    """One row for each trial that has ended, in the order of their proposals: the columns of SCHEMA."""
    marks = {int(name[:-5]): size.mark for name, size in store.sizes("trials").items() if name[:-5].isdigit()}
    known = read_table(store, TRIALS_FILE, SCHEMA)
    there = dict(zip(known["index"].to_pylist(), known["mark"].to_pylist(), strict=True))
    if there == marks:
        return known
    new = sorted(index for index, mark in marks.items() if there.get(index) != mark)
    rows = [_row(trial, marks[trial.index]) for trial in store.trials(new)]
    stays = pa.array([marks.get(index) == mark for index, mark in there.items()], pa.bool_())
    table = pa.concat_tables([known.filter(stays), pa.Table.from_pylist(rows, schema=SCHEMA)]).sort_by("index")
    write_table(store, TRIALS_FILE, table)
    return table


def stopped_of(table: pa.Table) -> dict[int, str]:
    """Why trials ended before their last iteration, by their number."""
    found = table.filter(pc.is_valid(table["stopped"]))
    return dict(zip(found["index"].to_pylist(), found["stopped"].to_pylist(), strict=True))


def _row(trial: TrialRecord, mark: str) -> dict[str, Any]:
    settings = canonical_json(trial.spec.model_dump(mode="json", exclude={"iterations"}))
    return {
        "index": trial.index,
        "mark": mark,
        "settings": hashlib.sha256(settings.encode()).hexdigest()[:16],
        "iterations": trial.spec.iterations,
        "stages": list(trial.stages),
        "failure": trial.failure,
        "stopped": trial.stopped,
    }
