"""Tables beside the records of a study: what is a reason to make one anew, and what is not."""

from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pytest

from orchestrator.collector.table_files import read_table, write_table
from orchestrator.files.patience import StorageFault
from orchestrator.store import StageStore

NAME = "table.parquet"
NUMBERS = pa.schema([("number", pa.int64())])


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    store, table = StageStore(tmp_path), pa.table({"number": [1, 2, 2]}, schema=NUMBERS)
    write_table(store, NAME, table, repeated=["number"])
    assert read_table(store, NAME, NUMBERS).equals(table)


def test_a_table_that_is_missing_damaged_or_of_another_version_is_empty(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    assert read_table(store, NAME, NUMBERS).equals(NUMBERS.empty_table())
    write_table(store, NAME, pa.table({"number": [1]}, schema=NUMBERS))
    other = pa.schema([("number", pa.string())])
    assert read_table(store, NAME, other).equals(other.empty_table())
    content = (tmp_path / NAME).read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"0" * len(content)):
        (tmp_path / NAME).write_bytes(damaged)
        assert read_table(store, NAME, NUMBERS).equals(NUMBERS.empty_table())


def test_storage_that_is_away_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record that is read in place of the table would wait for it again."""

    def away(store: StageStore, name: str) -> NoReturn:
        raise StorageFault(f"{name}: away")

    monkeypatch.setattr(StageStore, "read_bytes", away)
    with pytest.raises(StorageFault, match="away"):
        read_table(StageStore(tmp_path), NAME, NUMBERS)
