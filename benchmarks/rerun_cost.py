"""What a study gains by an older one of another network: `orchestrator rerun` against a search from nothing.

    python benchmarks/rerun_cost.py [usual wide] [--seeds 5] [--trials 20] [--results results/rerun_cost]

Real training on scikit-learn's digits. For each seed a study of CifarNet comes first, from nothing; then a small ResNet
is searched over the same space, once from nothing and once with what that study found. `usual` has ranges in which
most settings do; `wide` has four decades of regularization_weight and the step size after the cut besides, so that few
settings are right. Printed for each: train_flops, and trials, until the hypervolume reached 90, 95 and 99 % of the best
that any run reached, as median and range over the seeds of the proposals (the seed of training is the same); then the
same with one part of what is taken over left out.

    no observations     the old frontier's settings come first; then the guide knows of this study's trials alone
    no first settings   the guide begins at once, with the old observations

All proposals are those that a search would make: what finishes first changes none of them. They are run one after the
other in this process. A stage's key holds all that determines its result, so each is trained once, in the folder of the
results, and looked up by every later run that comes by it; what is counted is what each run would have trained. A
killed benchmark goes on where it was.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from search_cost import SHARES, SPACES, _copy, _range, _worth

from orchestrator import trial
from orchestrator.collector import Study
from orchestrator.record import Point, TrialRecord, now
from orchestrator.search import SearchSpace
from orchestrator.search.prior import Prior, prior_of
from orchestrator.search.proposals import Proposal, Proposals, Result
from orchestrator.search.stopping import reason_to_stop
from orchestrator.store import StageStore

PAIRS = ("usual", "wide")
OLD, NEW = "cifarnet", "small_networks:small_resnet"
OLD_SEED = 1000  # added to a seed for the study before: a new one from nothing draws other settings
WAYS = ("from nothing", "rerun", "no observations", "no first settings")
HEADER = ("search", *(f"to {s:.0%}, G" for s in SHARES), *(f"to {s:.0%}, trials" for s in SHARES), "reached", "final")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One study: after every point the number of trials begun, the train_flops spent, and the hypervolume."""

    name: str
    seed: int
    curve: tuple[tuple[int, int, float], ...]

    def trials_to(self, worth: float) -> float:
        return next((float(count) for count, _, reached in self.curve if reached >= worth), math.inf)

    def cost_to(self, worth: float) -> float:
        return next((float(spent) for _, spent, reached in self.curve if reached >= worth), math.inf)


# -- one study --------------------------------------------------------------------------------------------------------


def searched(space: SearchSpace, folder: Path, recorded: StageStore, prior: Prior | None = None) -> StageStore:
    """The study that a search of the space would leave in a folder, but for its weights."""
    store = StageStore(folder / space.name)
    store.prepare()
    proposals = Proposals(space, folder / f"{space.name}.log", prior=prior)
    while (proposal := proposals.next()) is not None:
        proposals.complete(proposal.index, _run(space, proposal, store, recorded))
    return store


def _run(space: SearchSpace, proposal: Proposal, store: StageStore, recorded: StageStore) -> Result:
    def stop(points: Sequence[Point]) -> str | None:
        return reason_to_stop(proposal.spec, points, proposal.frontier, space.stopping)

    outcome = trial.run(proposal.spec, recorded, stop=stop)
    for key in outcome.stages:
        store.obtain(key, partial(_copy, recorded, key))
    failure = None if outcome.failure is None else f"{outcome.failure.reason}: {outcome.failure.message}"
    record = TrialRecord(
        index=proposal.index,
        spec=proposal.spec,
        stages=outcome.stages,
        failure=failure,
        stopped=outcome.stopped,
        created=now(),
    )
    store.record_trial(record)
    costs = {key: store.stage(key).cost.train_flops for key in outcome.stages}
    return Result(points=outcome.points, failure=failure, stopped=outcome.stopped, stages=costs)


def curve_of(store: StageStore) -> Iterator[tuple[int, int, float]]:
    """In the order of the proposals: stage by stage what was spent, point by point what is known."""
    spent, seen = 0, set()
    points: list[Point] = []
    for count, one in enumerate(store.trials(), start=1):
        for key in one.stages:
            if key in seen:
                continue
            seen.add(key)
            spent += store.stage(key).cost.train_flops
            if store.has_point(key):
                points.append(store.point(key))
                yield count, spent, _worth(points)


# -- all of it --------------------------------------------------------------------------------------------------------


def space_of(name: str, model: str, seed: int, trials: int) -> SearchSpace:
    """The space of a pair, for one of its networks."""
    space = SearchSpace.read(SPACES / f"rerun_cost_{name}.toml")
    return space.model_copy(
        update={
            "name": model.rpartition(":")[2],
            "trial": {**space.trial, "model": model},
            "proposals": space.proposals.model_copy(update={"seed": seed}),
            "budget": space.budget.model_copy(update={"trials": trials}),
        }
    )


def one_run(way: str, name: str, seed: int, given: argparse.Namespace) -> Run:
    """A study of the new network in one of the ways."""
    recorded = StageStore(given.results / name / "recorded")
    space = space_of(name, NEW, seed, given.trials)
    with tempfile.TemporaryDirectory() as folder:
        prior = None
        if way != "from nothing":
            old = searched(space_of(name, OLD, OLD_SEED + seed, given.trials), Path(folder), recorded)
            prior = prior_of(Study(old.root), space)
        if way == "no observations":
            prior = prior and prior.model_copy(update={"observations": ()})
        if way == "no first settings":
            prior = prior and prior.model_copy(update={"first": ()})
        store = searched(space, Path(folder), recorded, prior)
        return Run(name=way, seed=seed, curve=tuple(curve_of(store)))


def runs_of(name: str, given: argparse.Namespace) -> list[Run]:
    """Every run of a pair, from the results file as far as it goes."""
    folder = given.results / name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"runs_{given.trials}.jsonl"
    raw = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    found = [Run(**{**one, "curve": tuple(map(tuple, one["curve"]))}) for one in raw]
    done = {(run.name, run.seed) for run in found}
    for way, seed in product(WAYS, range(given.seeds)):
        if (way, seed) in done:
            continue
        found.append(one_run(way, name, seed, given))
        with file.open("a") as out:
            out.write(json.dumps(vars(found[-1])) + "\n")
        print(f"{name}, {way}: seed {seed}", file=sys.stderr, flush=True)
    return [run for run in found if run.seed < given.seeds]


def table(runs: Sequence[Run]) -> Iterator[str]:
    """A row for each way."""
    best = max(worth for run in runs for *_, worth in run.curve)
    yield f"| {' | '.join(HEADER)} |"
    yield f"|{' --- |' * len(HEADER)}"
    for name in WAYS:
        mine = [run for run in runs if run.name == name]
        costs = [[run.cost_to(share * best) for run in mine] for share in SHARES]
        counts = [[run.trials_to(share * best) for run in mine] for share in SHARES]
        reached = ", ".join(str(sum(cost < math.inf for cost in each)) for each in costs)
        final = statistics.median(run.curve[-1][-1] for run in mine)
        cells = [name, *map(_range, costs), *map(_counts, counts), f"{reached} of {len(mine)}", f"{final:.4f}"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"Best hypervolume that any run reached: {best:.4f}."
    for share in SHARES:
        cold, warm = (
            statistics.median(run.cost_to(share * best) for run in runs if run.name == name) for name in WAYS[:2]
        )
        yield f"To {share:.0%}, from nothing over rerun, medians of train_flops: {cold / warm:.2f}."


def _counts(counts: Sequence[float]) -> str:
    three = (min(counts), statistics.median(counts), max(counts))
    low, middle, high = ("never" if count == math.inf else f"{count:g}" for count in three)
    return f"{middle} ({low} to {high})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", default="all", choices=[*PAIRS, "all"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=20, help="of every study")
    parser.add_argument("--results", type=Path, default=Path("results/rerun_cost"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in PAIRS if "all" in given.pairs else given.pairs:
        print(f"### {name}\n")
        for line in table(runs_of(name, given)):
            print(line, flush=True)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
