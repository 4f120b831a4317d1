"""Points in; frontiers and answers out. No torch: results are read on any laptop."""

from orchestrator.collector.amounts import parse_flops
from orchestrator.collector.frontier import best_at, frontier, frontier_mask, hypervolume
from orchestrator.collector.query import EmptyStudy, Status, Study, as_csv, as_json

__all__ = [
    "EmptyStudy",
    "Status",
    "Study",
    "as_csv",
    "as_json",
    "best_at",
    "frontier",
    "frontier_mask",
    "hypervolume",
    "parse_flops",
]
