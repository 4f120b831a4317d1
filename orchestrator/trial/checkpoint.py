"""The state of a teaching on disk: what a killed one goes on from. Plain data, read with weights_only=True."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from orchestrator.network.weights import DAMAGE
from orchestrator.record import InvalidInput


def write_checkpoint(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Write a teaching's state, aside first. identity: one text for all that decides about its outcome."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"identity": identity, "state": state}, aside)
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # torch.save has its own words for a disk that is full
        raise InvalidInput(f"{path}: cannot be written: {str(error).splitlines()[0]}") from error
    finally:
        aside.unlink(missing_ok=True)


def read_checkpoint(path: Path, identity: str) -> dict[str, Any] | None:
    """The state of the same teaching, or None where there is none. Raises InvalidInput for another's, or a damaged one.

    Never removed unasked: hours may lie in it.
    """
    if not os.path.lexists(path):
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        whose, state = found["identity"], found["state"]
    except (pickle.UnpicklingError, *DAMAGE) as error:
        raise InvalidInput(f"{path}: is no checkpoint of a teaching that can be read; remove it") from error
    if whose != identity:
        raise InvalidInput(f"{path}: is the checkpoint of another teaching; remove it, or give another --out")
    assert isinstance(state, dict)
    return state
