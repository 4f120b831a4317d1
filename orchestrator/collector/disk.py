"""What a study takes on the disk, its confirmed models too: weights, and everything else. Kept in disk.parquet.

A published stage changes in one way alone: its weights may be collected, and of that there are notes. So each stage is
looked at once; the file is a copy that may be thrown away.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.collector.table_files import read_table, write_table
from orchestrator.files import Size
from orchestrator.retention import RESTORED
from orchestrator.stage_files import WEIGHTS_FILE
from orchestrator.store import StageStore

DISK_FILE = "disk.parquet"
SCHEMA = pa.schema([("key", pa.string()), ("weights", pa.int64()), ("records", pa.int64())])
MANY = 64  # so many stages are looked at together


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes. `collected` are the stages whose weights were removed, and were not computed again since."""

    weights: int
    records: int
    collected: int

    @property
    def total(self) -> int:
        return self.weights + self.records


def disk_of(store: StageStore, keys: pa.Array) -> Disk:
    """What a study takes; `keys` are those of its published stages."""
    replaced = store.replaced()
    known = read_table(store, DISK_FILE, SCHEMA)
    if not known["key"].combine_chunks().equals(keys):
        known = _extended(store, known, keys.to_pylist())
    gone = store.collected.bytes().keys() - replaced
    there = known.filter(pc.invert(_among(known, gone))) if gone else known
    rows = [_split(store.sizes(f"stages/{key}")) for key in replaced & set(keys.to_pylist())] if replaced else []
    rows += [_split(store.sizes(name)) for name in store.names() if name != "stages"]
    weights = (pc.sum(there["weights"]).as_py() or 0) + sum(row[0] for row in rows)
    records = (pc.sum(known["records"]).as_py() or 0) + sum(row[1] for row in rows)
    missing = pc.sum(_among(known, gone - set(store.names(RESTORED)))).as_py() or 0 if gone else 0
    return Disk(weights=weights, records=records, collected=missing)


def is_weights(name: str) -> bool:
    """Whether a file of a study holds weights."""
    return name.rpartition("/")[2] == WEIGHTS_FILE


def _among(table: pa.Table, keys: AbstractSet[str]) -> pa.ChunkedArray:
    return pc.is_in(table["key"], pa.array(sorted(keys), pa.string()))


def _extended(store: StageStore, known: pa.Table, keys: Sequence[str]) -> pa.Table:
    """With a row for each of the stages; what was moved aside counts nothing here."""
    wanted = pa.array(sorted(set(keys) - store.replaced()), pa.string())
    new = wanted.filter(pc.invert(pc.is_in(wanted, known["key"].combine_chunks()))).to_pylist()
    rows = {key: [0, 0] for key in new}
    if len(new) > MANY:
        found = ((*name.partition("/")[::2], size.bytes) for name, size in store.sizes("stages").items())
    else:
        found = ((key, file, size.bytes) for key in new for file, size in store.sizes(f"stages/{key}").items())
    for key, file, size in found:
        if key in rows:
            rows[key][file != WEIGHTS_FILE] += size
    columns = [list(rows), [row[0] for row in rows.values()], [row[1] for row in rows.values()]]
    old = known.filter(pc.is_in(known["key"], wanted))
    table = pa.concat_tables([old, pa.table(columns, schema=SCHEMA)]).sort_by("key")
    if not table.equals(known):
        write_table(store, DISK_FILE, table)
    return table


def _split(sizes: Mapping[str, Size]) -> tuple[int, int]:
    """Bytes of weights, and of everything else."""
    weights = sum(size.bytes for name, size in sizes.items() if is_weights(name))
    return weights, sum(size.bytes for size in sizes.values()) - weights
