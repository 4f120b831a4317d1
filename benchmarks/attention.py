"""ECA against SE against plain ResNet-20, pruned alike: same data, same epochs, same flops_kept, several seeds.

    python benchmarks/attention.py [--data-root data] [--work results/attention] [--quick | --full]

Protocol, the same for every network: that of side_by_side.py. Dense training, sparse training with the method's
penalty, one cut to flops_kept 0.7, 0.5 or 0.3, and recovery training, for equal epochs. The gates cost less than 0.1 %
of the flops, so that equal epochs are equal train_flops. Gates sit where a block adds to the residual stream: streams
are pruned too (--whole-streams leaves them), for otherwise no gate would lose a channel. The regularization_weight is
each network's best of the grid for each flops_kept, by validation accuracy after recovery with the first seed; then all
seeds run with it, and the test split is looked at once. "from scratch" is the pruned network from random weights for
the train_flops of its whole path, as in side_by_side.py; "before recovery" is right after the cut, norm statistics
re-estimated and no weight trained. Channels keep their order and a gate its kernel, but its channels have new
neighbours: what that costs is in "before recovery".

Sizes: without --quick or --full, a stratified part of CIFAR-10 from JPEGs at half its size, for two cores; --full is
all of it, for a GPU; --quick is scikit-learn's digits, to see that it works. Stages are kept in the work folder: the
same command goes on where it was stopped or killed. --estimate says what it takes on this machine.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import side_by_side_jobs as jobs
from side_by_side_jobs import Arena, Job, Setup, Tested, Walked
from side_by_side_table import spread

from orchestrator.methods import METHODS
from orchestrator.record import InvalidInput
from orchestrator.training.datasets import load

NETWORKS = ("resnet20", "se_resnet20", "eca_resnet20")
KEPT = (0.7, 0.5, 0.3)
GRID = (3e-3, 1e-2, 3e-2)
GROUP_CAP = 0.9  # one cut may have to go down to flops_kept 0.3
HEADER = (
    "network", "flops_kept", "reached", "regularization_weight", "test, before recovery", "test, after recovery",
    "train_flops",
)  # fmt: skip
GRID_HEADER = (
    "network", "flops_kept", "regularization_weight", "validation, before recovery", "after recovery", "chosen",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Size:
    """The data of one size of the benchmark, and how long networks are trained on it; `title` names what it is."""

    title: str
    dataset: str
    epochs: tuple[int, int, int]  # dense, sparse, recovery
    batch_size: int = 64
    augmentation: str = "none"

    def setup(self, network: str, given: argparse.Namespace) -> Setup:
        """Where one network's trials lie and run."""
        arena = Arena(
            name=network,
            title=self.title,
            model=network,
            dataset=self.dataset,
            epochs=tuple(given.epochs),
            batch_size=self.batch_size,
            augmentation=self.augmentation,
        )
        return Setup(
            arena=arena,
            work=given.work / given.size,
            data_root=given.data_root,
            device=given.device,
            iterations=1,
            group_cap=GROUP_CAP,
            kept=tuple(given.kept),
            options={given.method: {"residual_streams": not given.whole_streams}},
        )


SIZES = {
    "cores": Size(
        title="a stratified part of CIFAR-10 from JPEGs (not comparable with CIFAR-10): 10,000 train and 2,000 "
        "validation pictures, all 10,000 test pictures, each halved to 16 x 16",
        dataset="small_pictures:cifar_part",
        epochs=(6, 3, 3),
    ),
    "full": Size(
        title="CIFAR-10 from JPEGs (not comparable with CIFAR-10): 45,000 train, 5,000 validation, 10,000 test "
        "pictures",
        dataset="cifar10_jpeg",
        epochs=(60, 20, 20),
        batch_size=128,
        augmentation="crop_flip",
    ),
    "quick": Size(title="scikit-learn's digits", dataset="digits", epochs=(1, 1, 1)),
}


class Failed(RuntimeError):
    """A trial that did not come to its end: there is no table without it."""


@dataclass(kw_only=True)
class Comparison:
    """What is compared, and what is known of it so far."""

    given: argparse.Namespace
    setups: dict[str, Setup]
    dense: dict[tuple[str, int], Tested] = field(default_factory=dict)
    walked: dict[tuple[str, Job], Walked] = field(default_factory=dict)
    tested: dict[tuple[str, Job], Tested] = field(default_factory=dict)
    controls: dict[tuple[str, Job], Tested] = field(default_factory=dict)

    def job(self, weight: float, kept: float, seed: int) -> Job:
        return Job(method=self.given.method, weight=weight, kept=kept, seed=seed)

    def chosen(self, network: str, kept: float) -> float:
        """The grid's best weight: by validation accuracy after recovery with the first seed."""
        return max(self.given.grid, key=lambda weight: self.walked[network, self.job(weight, kept, 0)].after)

    def final(self, network: str, kept: float) -> list[Job]:
        """The jobs of one row of the table, a seed each."""
        weight = self.chosen(network, kept)
        return [self.job(weight, kept, seed) for seed in range(self.given.seeds)]

    def run(self, pool: ProcessPoolExecutor | None) -> None:
        """Everything that is not there yet, in five phases. Trials of one weight share their sparse stage."""
        given = self.given
        pairs = list(product(self.setups, range(given.seeds)))
        calls = [(jobs.begin, self.setups[name], self.job(0.0, given.kept[0], seed)) for name, seed in pairs]
        for pair, tested in zip(pairs, done(pool, calls, "dense"), strict=True):
            self.dense[pair] = _sound(tested, f"{pair[0]}, seed {pair[1]}")
        self._walk(pool, [(name, [self.job(w, k, 0) for k in given.kept]) for w in given.grid for name in self.setups])
        rest: list[tuple[str, list[Job]]] = []
        for name, seed in ((name, seed) for name, seed in pairs if seed > 0):
            for weight in given.grid:
                mine = [self.job(weight, k, seed) for k in given.kept if self.chosen(name, k) == weight]
                rest += [(name, mine)] if mine else []
        self._walk(pool, rest)
        finals = [(name, job) for name in self.setups for kept in given.kept for job in self.final(name, kept)]
        measured = [(jobs.measure, self.setups[name], job, self.walked[name, job].stages[-1]) for name, job in finals]
        self.tested = dict(zip(finals, done(pool, measured, "test"), strict=True))
        if given.scratch:
            finals.sort(key=lambda final: final[1].seed)  # killed in between, it has whole seeds
            trained = [(jobs.scratch, self.setups[name], job, self.walked[name, job].stages) for name, job in finals]
            for (name, job), found in zip(finals, done(pool, trained, "from scratch"), strict=True):
                self.controls[name, job] = _sound(found, f"{name}, {job}, from scratch")

    def _walk(self, pool: ProcessPoolExecutor | None, together: list[tuple[str, list[Job]]]) -> None:
        calls = [(jobs.walk, self.setups[name], mine) for name, mine in together]
        for (name, mine), found in zip(together, done(pool, calls, "sparse, cut, recovery"), strict=True):
            for job, walked in zip(mine, found, strict=True):
                self.walked[name, job] = _sound(walked, f"{name}, {job}")

    def table(self) -> Iterator[str]:
        """One row for each network, dense, and at each flops_kept."""
        yield f"| {' | '.join(HEADER)} |"
        yield f"|{' --- |' * len(HEADER)}"
        seeds = range(self.given.seeds)
        for name in self.setups:
            yield row(f"{name}, dense", "-", "-", [self.dense[name, seed] for seed in seeds])
        for kept, name in product(self.given.kept, self.setups):
            found = [self.tested[name, job] for job in self.final(name, kept)]
            yield row(name, f"{kept:g}", f"{self.chosen(name, kept):g}", found)
            if self.controls:
                controls = [self.controls[name, job] for job in self.final(name, kept)]
                yield row(f"{name}, from scratch", f"{kept:g}", "-", controls)

    def grid_table(self) -> Iterator[str]:
        """What each weight gave on the validation split with the first seed: whether the grid went far enough."""
        yield f"| {' | '.join(GRID_HEADER)} |"
        yield f"|{' --- |' * len(GRID_HEADER)}"
        for kept, name, weight in product(self.given.kept, self.setups, self.given.grid):
            walked = self.walked[name, self.job(weight, kept, 0)]
            chosen = "yes" if weight == self.chosen(name, kept) else ""
            cells = (name, f"{kept:g}", f"{weight:g}", spread([walked.before]), spread([walked.after]), chosen)
            yield f"| {' | '.join(cells)} |"

    def core_seconds(self) -> float:
        """About how long all of it takes one core if nothing is there yet, from a few steps of each network."""
        given = self.given
        epochs = [jobs.epoch_seconds(setup) for setup in self.setups.values()]
        length = dense, sparse, recovery = next(iter(self.setups.values())).arena.epochs
        recovered = recovery * sum(jobs.step_share(kept) for kept in given.kept)
        grid, others = len(given.grid), given.seeds - 1
        # with the other seeds at most one sparse stage a weight, and one recovery a flops_kept
        walks = grid * (sparse + recovered) + others * (min(grid, len(given.kept)) * sparse + recovered)
        scratch = sum(jobs.control_epochs(length, kept) for kept in given.kept) if given.scratch else 0.0
        return sum(epochs) * (given.seeds * (dense + scratch) + walks)


def done(pool: ProcessPoolExecutor | None, calls: list[tuple[Callable[..., Any], *tuple[Any, ...]]], what: str) -> Any:
    """The answers of some calls, in their order; told on stderr as they come."""
    columns = list(zip(*calls, strict=False)) if calls else []
    functions, *arguments = columns if columns else ([],)
    found: Iterable[jobs.Done] = (map if pool is None else pool.map)(jobs.timed, functions, *arguments)
    values = []
    for number, one in enumerate(found, start=1):
        values.append(one.value)
        if one.computed:
            print(f"{what}: {number} of {len(calls)}, {one.seconds:.0f} s", file=sys.stderr, flush=True)
    return values


def _sound(found: Any, what: str) -> Any:
    """What a trial ended with. Raises Failed if that is a failure."""
    reason = found if isinstance(found, str) else getattr(found, "failure", None)
    if reason is not None:
        raise Failed(f"{what}: {reason}")
    return found


def row(name: str, kept: str, weight: str, found: list[Tested]) -> str:
    """Means over seeds, and the accuracies' deviations."""
    befores = [one.before for one in found if one.before is not None]
    reached = f"{mean(one.flops_kept for one in found):.3f}"
    flops = f"{mean(one.train_flops for one in found):.4g}"
    cells = (name, kept, reached, weight, spread(befores), spread([one.after for one in found]), flops)
    return f"| {' | '.join(cells)} |"


def parsed() -> argparse.Namespace:
    """The command line, with what the size gives filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="tiny, on digits")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="all of the data, on a GPU")
    parser.add_argument("--method", default="oicsr", choices=[name for name, one in METHODS.items() if one.penalty])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="not all of them")
    parser.add_argument("--whole-streams", action="store_true", help="prune inside the blocks alone")
    parser.add_argument("--kept", nargs="+", type=float, default=list(KEPT), help="flops_kept of the final models")
    parser.add_argument("--grid", nargs="+", type=float, default=list(GRID), help="weights that are tried")
    parser.add_argument(
        "--epochs", nargs=3, type=int, metavar=("DENSE", "SPARSE", "RECOVERY"), help="in place of the size's own"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--scratch", action=argparse.BooleanOptionalAction, default=True, help="the controls from random weights"
    )
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--work", default="results/attention", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--estimate", action="store_true", help="say what it takes on this machine, and end")
    given = parser.parse_args()
    given.size = given.size or "cores"
    given.epochs = given.epochs or list(SIZES[given.size].epochs)
    given.device = given.device or ("cuda" if given.size == "full" else "cpu")
    given.processes = given.processes or (6 if given.size == "full" else 2)
    return given


def main() -> int:
    """Returns the exit code."""
    given = parsed()
    size = SIZES[given.size]
    comparison = Comparison(given=given, setups={name: size.setup(name, given) for name in given.networks})
    try:
        load(size.dataset, root=given.data_root)
        if given.estimate:
            hours = comparison.core_seconds() / 3600
            print(f"At most {hours:.2f} hours of a core, {hours / given.processes:.2f} on {given.processes} processes.")
            return 0
        if given.processes == 1:
            comparison.run(None)
        else:  # a fork would inherit torch's threads in whatever state they are
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(given.processes, context, initializer=jobs.end_with_parent) as pool:
                comparison.run(pool)
    except (InvalidInput, Failed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1
    streams = "whole" if given.whole_streams else "pruned too"
    print(
        f"{given.method}, residual streams {streams}, on {size.title}. Epochs dense / sparse / recovery "
        f"{' / '.join(map(str, given.epochs))}, batches of {size.batch_size}, {given.seeds} seeds: mean +- standard "
        "deviation. flops are multiply-accumulates of convolutions and linear layers at batch 1.\n"
    )
    for line in comparison.table():
        print(line)
    print("\nThe grid of regularization_weight, validation split, first seed:\n")
    for line in comparison.grid_table():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
