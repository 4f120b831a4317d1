"""A distributed pruning-search orchestrator.

`from orchestrator import Study` asks a study for its frontier; nothing here imports torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.collector import Study

__all__ = ["Study"]


def __getattr__(name: str) -> Any:
    if name == "Study":  # pandas is slow to import, and most of the package does without it
        from orchestrator.collector import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
