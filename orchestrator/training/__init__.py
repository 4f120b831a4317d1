"""Data sets, and fitting a network to one. Knows nothing of pruning."""
