"""A distributed pruning-search orchestrator.

`from orchestrator import Study` asks a study for its frontier, `orchestrator.load(folder)` gives a saved model back;
nothing is imported before it is asked for, torch least of all.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.collector import Study
    from orchestrator.network.artifact import load

__all__ = ["Study", "load"]


def __getattr__(name: str) -> Any:
    if name == "Study":  # pandas is slow to import, and most of the package does without it
        from orchestrator.collector import Study

        return Study
    if name == "load":
        from orchestrator.network.artifact import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
