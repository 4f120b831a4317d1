"""What stages have to say besides their figures: groups that stayed whole, layers that no repair could treat."""

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.record import Stage
from orchestrator.store import StageStore

Says = Callable[[Stage], Iterator[dict[str, Any]]]


def frozen_in(store: StageStore, table: pa.Table) -> pd.DataFrame:
    """The groups that were left whole: group, channels, stages, reason. table: the study's index."""
    found = _said(store, table, "frozen_groups", lambda stage: (one.model_dump() for one in stage.frozen))
    groups = pd.DataFrame(found, columns=["group", "channels", "reason"]).groupby("group", sort=False)
    answers = {"channels": ("channels", "max"), "stages": ("group", "size"), "reason": ("reason", "first")}
    return groups.agg(**answers).reset_index()


def unrepaired_in(store: StageStore, table: pa.Table) -> pd.DataFrame:
    """The layers that lost inputs and that the method's repair could not treat: layer, stages, reason."""

    def says(stage: Stage) -> Iterator[dict[str, Any]]:
        return ({"layer": layer, "reason": reason} for layer, reason in stage.unrepaired.items())

    found = _said(store, table, "unrepaired_layers", says)
    layers = pd.DataFrame(found, columns=["layer", "reason"]).groupby("layer", sort=False)
    return layers.agg(stages=("layer", "size"), reason=("reason", "first")).reset_index()


def _said(store: StageStore, table: pa.Table, column: str, says: Says) -> list[dict[str, Any]]:
    """Of the stages that have anything in this column, the oldest first."""
    rows = table.filter(pc.is_valid(table[column])).sort_by([("created", "ascending"), ("key", "ascending")])
    return [said for key in rows["key"].to_pylist() for said in says(store.stage(key))]
