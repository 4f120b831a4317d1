"""What a frontier costs: this search against the usual script, on one space, and what each of its parts is worth.

    python benchmarks/search_cost.py [digits fashion] [--seeds 5] [--data-root data] [--results results/search_cost]

Real training: CifarNet on scikit-learn's digits, and on a part of Fashion-MNIST at half its size (if it is there), over
the spaces in benchmarks/spaces. The script is plain_search.py: Ray Tune and OptunaSearch, independent trials, the last
report alone. Printed for each: train_flops until the hypervolume reached 90, 95 and 99 % of the best that any run of
either reached, as median and range over the seeds of the search (the seed of training is the same); then the same with
one part of this search off in turn.

    reuse off        every trial pays for all of its stages (the same trials, counted anew)
    prefixes off     of each trial its last point alone counts, and guides
    guide: prefixes  two-objective TPE over all prefixes, instead of the hypervolume that a trajectory adds
    guide: none      settings at random
    stopping off     no trial ends before its last iteration

All runs go through Ray, `parallel` trials at once. A stage's key holds all that determines its result, so each is
trained once, in the folder of the results, and looked up by every later run that comes by it; what is counted is what
each run would have trained. A killed benchmark goes on where it was.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray listens on loopback alone
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"

import torch
from rich.console import Console

from orchestrator import trial
from orchestrator.collector import hypervolume
from orchestrator.record import Outcome, Point, TrialSpec
from orchestrator.search import SearchSpace, launch
from orchestrator.stage_files import STAGE_FILE
from orchestrator.store import StageStore

SPACES = Path(__file__).with_name("spaces")
DATA_SETS = ("digits", "fashion")
SHARES = (0.9, 0.95, 0.99)
TRIALS = {"ours": 40, "script": 80}
RECORDED = "SEARCH_COST_RECORDED"  # environment: the folder of the stages that were trained for any run
DATA_ROOT, LAST_ALONE = "SEARCH_COST_DATA_ROOT", "SEARCH_COST_LAST_ALONE"
VARIANTS: dict[str, dict[str, Any]] = {
    "this search": {},
    "prefixes off": {"last_alone": True},
    "guide: prefixes": {"proposals": {"guide": "prefixes"}},
    "guide: none": {"proposals": {"startup": 10**6}},
    "stopping off": {"stopping": {"rule": "none"}},
}
HEADER = ("search", *(f"to {share:.0%}, G" for share in SHARES), "reached", "trials", "final hypervolume")

Spent = tuple[int, float]  # train_flops so far, hypervolume then


@dataclass(frozen=True, kw_only=True)
class Run:
    """One search under one seed: what it had spent whenever it knew more."""

    name: str
    seed: int
    curve: tuple[Spent, ...]
    trials: int

    def cost_to(self, worth: float) -> float:
        return next((spent for spent, reached in self.curve if reached >= worth), math.inf)


# -- what runs in the workers -----------------------------------------------------------------------------------------


def recorded_trial(
    spec: TrialSpec,
    store: StageStore,
    report: Callable[[Point], None] = lambda point: None,
    *,
    stop: Callable[[Sequence[Point]], str | None] = lambda points: None,
    **options: Any,
) -> Outcome:
    """trial.run, but each stage is trained in the folder of recorded stages, or found there, and copied from it."""
    recorded = StageStore(os.environ[RECORDED])
    last_alone = bool(os.environ.get(LAST_ALONE))

    def passed_on(point: Point) -> None:
        if not last_alone:
            report(point)

    own = spec.model_copy(update={"data_root": os.environ[DATA_ROOT]})
    outcome = trial.run(own, recorded, passed_on_after(store, recorded, passed_on), stop=stop, **options)
    for key in outcome.stages:
        store.obtain(key, partial(_copy, recorded, key))
    points = outcome.points[-1:] if last_alone else outcome.points
    return outcome.model_copy(update={"points": points})


def passed_on_after(
    store: StageStore, recorded: StageStore, report: Callable[[Point], None]
) -> Callable[[Point], None]:
    """Reports a point once its stage lies in the study's own store, where the driver looks for it."""

    def passed_on(point: Point) -> None:
        store.obtain(point.key, partial(_copy, recorded, point.key))
        report(point)

    return passed_on


def _copy(recorded: StageStore, key: str, folder: Path) -> None:
    source = recorded.folder(key)
    assert source is not None, key
    for file in source.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    assert (folder / STAGE_FILE).is_file(), key


# -- the searches -----------------------------------------------------------------------------------------------------


def ours(space_file: Path, variant: str, seed: int, folder: Path, *, trials: int) -> tuple[Run, Run | None]:
    """This search under a variant; with nothing off, also counted without reuse."""
    changes = dict(VARIANTS[variant])
    text = _changed(space_file, changes, seed)
    with tempfile.TemporaryDirectory(dir=folder) as work, _environment(**_last_alone(changes)):
        file = Path(work) / space_file.name
        file.write_text(text)
        launch(
            file,
            trials=trials,
            storage=work,
            console=Console(quiet=True),
            run_trial=recorded_trial,
            check_trial=lambda spec: (),
        )
        store = StageStore(Path(work) / file.stem)
        run = Run(name=variant, seed=seed, curve=tuple(_curve(store, changes, reuse=True)), trials=len(store.trials()))
        bare = None
        if not changes:
            curve = tuple(_curve(store, changes, reuse=False))
            bare = Run(name="reuse off", seed=seed, curve=curve, trials=run.trials)
    return run, bare


def _last_alone(changes: dict[str, Any]) -> dict[str, str]:
    return {LAST_ALONE: "1"} if changes.get("last_alone") else {}


def _changed(space_file: Path, changes: dict[str, Any], seed: int) -> str:
    """The text of a space with other settings."""
    text = _with(space_file.read_text(), "proposals", {"seed": seed})
    for section, values in changes.items():
        if isinstance(values, dict):
            text = _with(text, section, values)
    return text


def _with(text: str, section: str, values: dict[str, Any]) -> str:
    before, _, rest = text.partition(f"[{section}]\n")
    inside, mark, after = rest.partition("\n[")
    kept = [line for line in inside.splitlines() if line.partition(" ")[0] not in values]
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return before.rstrip() + "\n\n" + "\n".join([f"[{section}]", *lines, *kept]) + "\n" + mark + after


def _curve(store: StageStore, changes: dict[str, Any], *, reuse: bool) -> Iterator[Spent]:
    """In the order of the proposals: stage by stage what was spent, point by point what is known."""
    spent, seen = 0, set()
    points: list[Point] = []
    for one in store.trials():
        for key in one.stages:
            if not reuse or key not in seen:
                spent += store.stage(key).cost.train_flops
            seen.add(key)
            known = store.has_point(key) and (not changes.get("last_alone") or key == one.stages[-1])
            if known:
                points.append(store.point(key))
                yield spent, _worth(points)


def _worth(points: Sequence[Point]) -> float:
    return hypervolume([point.accuracy for point in points], [point.flops_kept for point in points])


def script(space_file: Path, seed: int, folder: Path, *, trials: int) -> Run:
    """The usual script on the same grid, as many trials at once."""
    from plain_search import search

    space = SearchSpace.read(space_file)
    weights, ratios, iterations = (
        [dimension.value(dimension.nth(rank)) for rank in range(dimension.size or 0)]
        for dimension in (space.dimensions[name] for name in ("regularization_weight", "pruning_ratio", "iterations"))
    )

    def train(weight: int, ratio: int, iteration: int) -> dict[str, float]:
        spec = space.spec(
            {
                "regularization_weight": weights[weight],
                "pruning_ratio": ratios[ratio],
                "iterations": iterations[iteration],
            }
        )
        torch.set_num_threads(1)
        own = spec.model_copy(update={"data_root": os.environ[DATA_ROOT]})
        outcome = trial.run(own, StageStore(os.environ[RECORDED]))
        last = outcome.points[-1]
        return {
            "accuracy": last.accuracy,
            "flops_kept": last.flops_kept,
            "train_flops": last.path_cost.train_flops,
        }

    with tempfile.TemporaryDirectory(dir=folder) as work, _ray():
        reports = search(
            train,
            (weights, ratios, iterations),  # type: ignore[arg-type]
            seed=seed,
            trials=trials,
            parallel=space.proposals.parallel,
            folder=Path(work),
        )
    spent, curve = 0, []
    for count, report in enumerate(reports, start=1):
        spent += int(report["train_flops"])
        seen = reports[:count]
        worth = hypervolume([one["accuracy"] for one in seen], [one["flops_kept"] for one in seen])
        curve.append((spent, worth))
    return Run(name="script", seed=seed, curve=tuple(curve), trials=len(reports))


@contextmanager
def _ray() -> Iterator[None]:
    """Ray on this machine; its workers inherit the environment as it is now."""
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (LAST_ALONE, *values)}
    os.environ.pop(LAST_ALONE, None)
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


# -- all of it --------------------------------------------------------------------------------------------------------


def runs_of(name: str, given: argparse.Namespace) -> list[Run]:
    """Every search on one space, from the results file as far as it goes."""
    space_file, folder = SPACES / f"search_cost_{name}.toml", given.results / name
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[RECORDED] = str((folder / "recorded").absolute())
    os.environ[DATA_ROOT] = str(given.data_root.absolute())
    file = folder / "runs.jsonl"
    found = [_run(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(run.name, run.seed) for run in found}
    for seed in range(given.seeds):
        for variant in ("script", *VARIANTS):
            if (variant, seed) in done:
                continue
            if variant == "script":
                new = [script(space_file, seed, folder, trials=given.trials or TRIALS["script"])]
            else:
                both = ours(space_file, variant, seed, folder, trials=given.trials or TRIALS["ours"])
                new = [run for run in both if run is not None]
            found += new
            with file.open("a") as out:
                out.writelines(json.dumps(vars(run)) + "\n" for run in new)
            print(f"{name}, seed {seed}: {variant}, {new[0].trials} trials", file=sys.stderr, flush=True)
    return [run for run in found if run.seed < given.seeds]


def _run(line: str) -> Run:
    raw = json.loads(line)
    return Run(**{**raw, "curve": tuple((spent, worth) for spent, worth in raw["curve"])})


def table(runs: Sequence[Run]) -> Iterator[str]:
    """A row for each way to search."""
    best = max(worth for run in runs for _, worth in run.curve)
    yield f"| {' | '.join(HEADER)} |"
    yield f"|{' --- |' * len(HEADER)}"
    for name in ("script", *VARIANTS, "reuse off"):
        mine = [run for run in runs if run.name == name]
        costs = [[run.cost_to(share * best) for run in mine] for share in SHARES]
        reached = ", ".join(str(sum(cost < math.inf for cost in each)) for each in costs)
        final = statistics.median(run.curve[-1][1] for run in mine)
        trials = statistics.median(run.trials for run in mine)
        cells = [name, *map(_range, costs), f"{reached} of {len(mine)}", f"{trials:g}", f"{final:.4f}"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"Best hypervolume that any run reached: {best:.4f}."
    for share in SHARES:
        script_cost, own_cost = (
            statistics.median(run.cost_to(share * best) for run in runs if run.name == name)
            for name in ("script", "this search")
        )
        yield f"To {share:.0%}, the script's median over this search's: {script_cost / own_cost:.1f}."


def _range(costs: Sequence[float]) -> str:
    low, middle, high = (_giga(cost) for cost in (min(costs), statistics.median(costs), max(costs)))
    return f"{middle} ({low} to {high})"


def _giga(cost: float) -> str:
    return "never" if cost == math.inf else f"{cost / 1e9:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", default="all", choices=[*DATA_SETS, "all"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, help="of every search (default: 40, and 80 of the script)")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--results", type=Path, default=Path("results/search_cost"))
    given = parser.parse_args()
    given.results = given.results.absolute()  # Ray's workers run in folders of their own
    for name in DATA_SETS if "all" in given.spaces else given.spaces:
        if name == "fashion" and not (given.data_root / "FashionMNIST").is_dir():
            print(f"fashion is left out: there is no Fashion-MNIST in {given.data_root}")
            continue
        print(f"### {name}\n")
        for line in table(runs_of(name, given)):
            print(line, flush=True)
        print()
    return 0


if __name__ == "__main__":
    import search_cost  # workers import the trial function by this module's name

    sys.exit(search_cost.main())
