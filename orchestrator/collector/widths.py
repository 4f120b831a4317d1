"""How wide each group of channels of a point is, beside the dense model: from model.json, without torch."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from orchestrator.stage_files import MODEL_FILE, DamagedRecord
from orchestrator.store import StageStore

Left = dict[str, tuple[int, int]]  # group -> channels that are left, channels of the dense model


def widths_of(store: StageStore, keys: Sequence[str]) -> dict[str, Any]:
    """{"groups": names, "dense": channels, "left": {key: channels in that order}}; of points without a file nothing.

    A group that no plan of these points names is left whole by all of them, and is not listed.
    """
    found = {key: left for key in keys if (left := _left(store, key)) is not None}
    dense: dict[str, int] = {}
    for left in found.values():
        dense |= {name: width for name, (_, width) in left.items()}
    groups = sorted(dense, key=_natural)
    return {
        "groups": groups,
        "dense": [dense[name] for name in groups],
        "left": {key: [left.get(name, (dense[name],))[0] for name in groups] for key, left in found.items()},
    }


@lru_cache(maxsize=4096)  # what is published does not change
def _left(store: StageStore, key: str) -> Left | None:
    try:
        card = store.read_json(f"stages/{key}/{MODEL_FILE}")
        return {str(name): (int(w["channels"]), int(w["dense"])) for name, w in card["widths"].items()}
    except (DamagedRecord, KeyError, TypeError, ValueError, AttributeError):
        return None  # a point whose description is missing or damaged is shown without its widths


def _natural(name: str) -> list[int | str]:
    """layer2 before layer10: what lies between the numbers, and the numbers, in turn."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]
