"""Tables that save reading the records of a study one by one, in Parquet files beside them.

Each is a copy: made anew where it is missing or damaged, done without where a study may only be read.
"""

import io
from collections.abc import Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.record import InvalidInput
from orchestrator.stage_files import DamagedRecord
from orchestrator.store import StageStore


def read_table(store: StageStore, name: str, schema: pa.Schema) -> pa.Table:
    """A file of the study that write_table wrote; empty if it is missing, damaged or of another version.

    Raises StorageFault where the storage is away: to read all the records in its place would only wait again.
    """
    try:
        content = store.read_bytes(name)
        table = None if content is None else pq.read_table(pa.BufferReader(content))
    except (DamagedRecord, pa.ArrowException, OSError):
        return schema.empty_table()
    return table if table is not None and table.schema.equals(schema) else schema.empty_table()


def write_table(store: StageStore, name: str, table: pa.Table, *, repeated: Sequence[str] | None = None) -> None:
    """repeated: the columns whose values come again and again, if not any may."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, use_dictionary=True if repeated is None else list(repeated), compression="lz4")
    with suppress(InvalidInput, OSError):  # a study that may only be read is read without it
        store.write_bytes(name, buffer.getvalue())
