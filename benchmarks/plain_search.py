"""The usual script: Ray Tune with OptunaSearch, every trial from scratch, one number at its end.

What an engineer writes in an afternoon, for benchmarks/search_cost.py to compare with. Two objectives (accuracy up,
flops_kept down), TPE over regularization_weight, pruning_ratio and iterations, so many trials at once; a trial trains
the dense network, sparsifies and prunes it iteration after iteration, and reports its last model.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

Train = Callable[[int, int, int], dict[str, float]]


def search(
    train: Train,
    grid: tuple[Sequence[float], Sequence[float], Sequence[int]],
    *,
    seed: int,
    trials: int,
    parallel: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """Every trial's report, in the order in which they ended.

    train(weight, ratio, iterations), given positions in the grid, returns accuracy, flops_kept and what else is of use.
    """
    weights, ratios, iterations = grid

    def space(trial: Any) -> None:
        trial.suggest_int("regularization_weight", 0, len(weights) - 1)
        trial.suggest_int("pruning_ratio", 0, len(ratios) - 1)
        trial.suggest_int("iterations", 0, len(iterations) - 1)

    def objective(config: dict[str, int]) -> None:
        tune.report(train(config["regularization_weight"], config["pruning_ratio"], config["iterations"]))

    reports: list[dict[str, Any]] = []

    class Keep(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            reports.append(dict(trial.last_result))

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    sampler = OptunaSearch(space, metric=["accuracy", "flops_kept"], mode=["max", "min"], seed=seed)
    tune.Tuner(
        tune.with_resources(objective, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(sampler, max_concurrent=parallel),
            num_samples=trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"plain-{seed}", storage_path=str(folder.absolute()), callbacks=[Keep()], verbose=0
        ),
    ).fit()
    return reports
