"""OICSR against separate-out-channel group lasso against L1 filter norm: the same network, data and train_flops.

    python benchmarks/methods.py [--data-root data] [--dataset fashion_mnist] [--work results/methods] [--seeds 3]

Protocol, the same for every method. Dense training, then sparse training (with the method's penalty, if it has one),
then two iterations of global greedy pruning down to flops_kept 0.5, or 0.3, with recovery after each. Each penalised
method's regularization_weight is chosen on the validation split, from one grid, with the first seed; then all seeds
run with it and the test split is looked at once. "without recovery" is the test accuracy right after the last cut, norm
statistics re-estimated and no weight trained; "with recovery" is that of the finished trial. Stages are kept in the
work folder, so a killed run goes on where it was. train_flops are the mean over seeds of the whole path.
"""

import argparse
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from orchestrator import trial
from orchestrator.methods import METHODS
from orchestrator.record import InvalidInput, Schedule, TrialSpec
from orchestrator.store import StageStore
from orchestrator.training.datasets import load
from orchestrator.training.loop import evaluate
from orchestrator.training.splits import SplitName

KEPT = (0.5, 0.3)
ITERATIONS = 2
GRID = (1e-3, 3e-3, 1e-2)
COMPARED = ["oicsr", "separated_group_lasso", "filter_norm"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One trial: a method with its weight, at one flops_kept, under one seed."""

    method: str
    weight: float
    kept: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """Accuracies of one trial's last model on one split before and after recovery, and what its path cost."""

    before: float
    after: float
    kept: float
    train_flops: int


def spec_of(job: Job, given: argparse.Namespace) -> TrialSpec:
    """The trial of a job under the options of the command line."""

    def schedule(epochs: int, rate: float) -> Schedule:
        return Schedule(
            epochs=epochs, learning_rate=rate, batch_size=128, weight_decay=5e-4, augmentation=given.augmentation
        )

    return TrialSpec(
        model=given.model,
        dataset=given.dataset,
        data_root=given.data_root,
        method=job.method,
        regularization_weight=job.weight,
        pruning_ratio=1 - job.kept ** (1 / ITERATIONS),
        iterations=ITERATIONS,
        seed=job.seed,
        dense=schedule(given.epochs[0], 0.1),
        sparse=schedule(given.epochs[1], 0.05),
        recovery=schedule(given.epochs[2], 0.02),
    )


def run(job: Job, given: argparse.Namespace) -> None:
    """Run a job's trial to its end, in a process of the pool."""
    torch.set_num_threads(1)
    spec = spec_of(job, given)
    outcome = trial.run(spec, StageStore(given.work), device=given.device)
    if outcome.failure is not None:
        raise RuntimeError(f"{job}: {outcome.failure.message}")


def measure(job: Job, given: argparse.Namespace, split: SplitName) -> Result:
    """Accuracies of a finished trial right after its last cut, and after recovery."""
    torch.set_num_threads(1)
    spec, store = spec_of(job, given), StageStore(given.work)
    outcome = trial.run(spec, store, device=given.device)  # every stage is there: a look-up
    point = outcome.points[-1]
    data = load(spec.dataset, root=spec.data_root)
    cut = trial.replay_cut(spec, store, point.key, device=given.device)
    done = trial.rebuild(spec, store, point.key, device=given.device)
    return Result(
        before=evaluate(cut.model, data, split, device=given.device).accuracy,
        after=evaluate(done.model, data, split, device=given.device).accuracy,
        kept=point.flops_kept,
        train_flops=point.path_cost.train_flops,
    )


def chosen_weights(pool: ProcessPoolExecutor, given: argparse.Namespace) -> dict[tuple[str, float], float]:
    """The grid's best weight of each penalised method at each flops_kept: validation accuracy with recovery."""
    names = [name for name in given.methods if METHODS[name].penalty is not None]
    jobs = [Job(method=n, weight=w, kept=k, seed=0) for k in given.kept for n in names for w in given.grid]
    list(pool.map(run, jobs, [given] * len(jobs)))
    results = dict(zip(jobs, pool.map(measure, jobs, [given] * len(jobs), ["validation"] * len(jobs)), strict=True))
    print("| method | flops_kept | regularization_weight | validation, without recovery | with recovery |")
    print("|---|---|---|---|---|")
    for job, result in results.items():
        print(f"| {job.method} | {job.kept} | {job.weight:g} | {result.before:.2%} | {result.after:.2%} |")
    best: dict[tuple[str, float], float] = {}
    for job in sorted(jobs, key=lambda job: results[job].after):
        best[job.method, job.kept] = job.weight
    return best


def table(pool: ProcessPoolExecutor, given: argparse.Namespace, weights: dict[tuple[str, float], float]) -> None:
    """Test accuracies over all seeds, mean and standard deviation."""
    jobs = [
        Job(method=name, weight=weights.get((name, kept), 0.0), kept=kept, seed=seed)
        for seed in range(given.seeds)
        for kept in given.kept
        for name in given.methods
    ]
    list(pool.map(run, jobs, [given] * len(jobs)))
    results = dict(zip(jobs, pool.map(measure, jobs, [given] * len(jobs), ["test"] * len(jobs)), strict=True))
    print("\n| method | flops_kept | regularization_weight | test, without recovery | with recovery | train_flops |")
    print("|---|---|---|---|---|---|")
    for kept in given.kept:
        for name in given.methods:
            mine = [results[job] for job in jobs if job.method == name and job.kept == kept]
            weight = weights.get((name, kept), 0.0)
            print(
                f"| {name} | {statistics.mean(r.kept for r in mine):.3f} | {weight:g} "
                f"| {spread([r.before for r in mine])} | {spread([r.after for r in mine])} "
                f"| {statistics.mean(r.train_flops for r in mine):.3g} |"
            )


def spread(values: list[float]) -> str:
    """Mean and standard deviation in per cent; of one value itself."""
    deviation = f" +- {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{deviation} %"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--model", default="cifarnet")
    parser.add_argument("--work", default="results/methods", type=Path)
    parser.add_argument("--methods", nargs="+", default=COMPARED, choices=list(METHODS))
    parser.add_argument("--kept", nargs="+", type=float, default=list(KEPT))
    parser.add_argument("--grid", nargs="+", type=float, default=list(GRID), help="weights that are tried")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", nargs=3, type=int, default=[3, 2, 1], metavar=("DENSE", "SPARSE", "RECOVERY"))
    parser.add_argument("--augmentation", default="none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    try:
        load(given.dataset, root=given.data_root)
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in whatever state they are
    with ProcessPoolExecutor(given.processes, context) as pool:
        print(
            f"{given.model} on {given.dataset}, epochs dense / sparse / recovery {given.epochs}, {given.seeds} seeds\n"
        )
        table(pool, given, chosen_weights(pool, given))
    return 0


if __name__ == "__main__":
    sys.exit(main())
