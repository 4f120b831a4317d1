"""Many trials: the only folder that knows Ray and Optuna."""

from orchestrator.search.confirming import Confirmed, confirm
from orchestrator.search.runner import Summary, launch
from orchestrator.search.space import SearchSpace
from orchestrator.search.tracking import make_trackers

__all__ = ["Confirmed", "SearchSpace", "Summary", "confirm", "launch", "make_trackers"]
