"""Short trials on digits: their specs, and what is known of one that was run to its end."""

from dataclasses import dataclass

from orchestrator.record import Outcome, Schedule, TrialSpec
from orchestrator.store import StageStore


def make_spec(**changes: object) -> TrialSpec:
    """Two iterations on digits, an epoch or two in each stage."""
    plain: dict[str, object] = {
        "model": "cifarnet",
        "dataset": "digits",
        "regularization_weight": 0.01,
        "pruning_ratio": 0.3,
        "iterations": 2,
        "dense": Schedule(epochs=2, learning_rate=0.1, batch_size=64),
        "sparse": Schedule(epochs=1, learning_rate=0.05, batch_size=64),
        "recovery": Schedule(epochs=1, learning_rate=0.02, batch_size=64),
    }
    return TrialSpec.model_validate(plain | changes)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A trial that was run to its end. Nobody writes into its store but by looking stages up."""

    spec: TrialSpec
    store: StageStore
    outcome: Outcome
