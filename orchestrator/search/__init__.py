"""Many trials: the only folder that knows Ray and Optuna."""

from orchestrator.search.runner import Summary, launch
from orchestrator.search.space import SearchSpace

__all__ = ["SearchSpace", "Summary", "launch"]
