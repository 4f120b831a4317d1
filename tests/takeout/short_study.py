"""A study of one short trial on digits, and what is known of a model that was taken out of it."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from orchestrator import Study, trial
from orchestrator.record import Schedule, TrialSpec
from orchestrator.store import StageStore
from orchestrator.takeout import Figures

INSTALLED = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
SPEC = {
    "model": "cifarnet",
    "dataset": "digits",
    "regularization_weight": 0.01,
    "pruning_ratio": 0.6,
    "iterations": 1,
    "latency_batch": 4,
    "dense": Schedule(epochs=3, learning_rate=0.1, batch_size=64),
    "sparse": Schedule(epochs=1, learning_rate=0.05, batch_size=64),
    "recovery": Schedule(epochs=1, learning_rate=0.02, batch_size=64),
}


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A folder that was written, and what take_out returned. Nobody writes into it."""

    folder: Path
    figures: Figures


def searched(folder: Path, **changes: object) -> Study:
    """A study of one trial."""
    torch.set_num_threads(1)
    outcome = trial.run(TrialSpec.model_validate(SPEC | changes), StageStore(folder))
    assert outcome.failure is None
    return Study(folder)
