"""How long a study of 100,000 points takes to answer, side by side with pandas reading the same index.

    python benchmarks/many_points.py [--points 100000] [--times 5] [--work DIR]

The study is made up, its files are real: a folder with stage.json for every stage, point.json for every point, a file
for every trial (five iterations each), as a search of 20,000 trials leaves them; without weights. `cold` is a new
process's first question while there is no index, so that every record is opened; `warm` every later one, when the index
is there. Each question is asked in a process of its own, imports not counted; the file system's cache is warm in both.

pandas' row is what somebody would write who has the index alone: pd.read_parquet, the points, a filter for the
frontier by sorting. It does not look whether the index is up to date, which is what the others spend most of theirs on.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.record import Cost, Point, Schedule, Stage, StageKind, TrialRecord, TrialSpec, stage_key

FLOPS, PARAMS, ITERATIONS, WEIGHTS = 125_500_000, 850_000, 5, 9
CREATED = "2026-01-01T00:00:00.000+00:00"
WHERE = {"created": CREATED, "host": "made-up", "pid": 1}


def make_study(root: Path, points: int) -> int:
    """Write a study of about so many points; returns how many."""
    for folder in ("stages", "trials", "failures", "claims"):
        (root / folder).mkdir(parents=True)
    (root / "study.json").write_text(json.dumps({"name": root.name, "created": CREATED}))
    made: dict[str, float] = {}  # train_flops on the way to a stage
    count = 0
    for index in range(max(1, round((points - 1) / ITERATIONS))):
        spec, keys = spec_of(index), []
        for stage, point in stages_of(spec, made):
            keys.append(stage.key)
            if stage.key not in made:
                made[stage.key] = 1.0
                write_stage(root / "stages" / stage.key, stage, point)
                count += point is not None
        trial = TrialRecord(index=index, spec=spec, stages=tuple(keys), created=CREATED)
        (root / "trials" / f"{index}.json").write_text(trial.model_dump_json(indent=2) + "\n")
    return count


def spec_of(index: int) -> TrialSpec:
    schedule = Schedule(epochs=25, learning_rate=0.01)
    return TrialSpec(
        model="resnet56",
        dataset="cifar10",
        regularization_weight=1e-4 * 10 ** (2 * (index % WEIGHTS) / (WEIGHTS - 1)),
        pruning_ratio=0.1 + 0.3 * (index * 0.6180339887 % 1),
        iterations=ITERATIONS,
        dense=schedule,
        sparse=schedule,
        recovery=schedule,
    )


def stages_of(spec: TrialSpec, made: dict[str, float]) -> Iterator[tuple[Stage, Point | None]]:
    parent: str | None = None
    path: list[tuple[StageKind, int]] = [("dense", 0)]
    path += [(kind, at) for at in range(1, ITERATIONS + 1) for kind in ("sparse", "cut")]  # type: ignore[misc]
    for kind, iteration in path:
        varied = {"dense": {}, "sparse": {"weight": spec.regularization_weight}, "cut": {"ratio": spec.pruning_ratio}}
        parameters = {"version": 1, "schedule": spec.sparse.model_dump(), "data": {"name": "cifar10"}, **varied[kind]}
        key = stage_key(parent, kind, parameters)
        if key not in made:
            cost = Cost(train_flops=round(1e15), seconds=60.0)
            stage = Stage(key=key, parent=parent, kind=kind, parameters=parameters, cost=cost, files={}, **WHERE)
            yield stage, None if kind == "sparse" else point_of(spec, stage, iteration)
        else:
            yield Stage.model_construct(key=key), None
        parent = key


def point_of(spec: TrialSpec, stage: Stage, iteration: int) -> Point:
    """More pruning costs accuracy; a weight far from its best hurts; no two points are the same."""
    kept = (1 - spec.pruning_ratio) ** iteration
    peak = math.exp(-((math.log10(spec.regularization_weight) + 3) ** 2))
    noise = int(stage.key[:8], 16) / 16**8 * 0.02
    return Point(
        key=stage.key,
        parent=stage.parent,
        kind="cut" if iteration else "dense",
        iteration=iteration,
        model=spec.model,
        dataset=spec.dataset,
        method="oicsr" if iteration else None,
        regularization_weight=spec.regularization_weight if iteration else None,
        pruning_ratio=spec.pruning_ratio if iteration else None,
        seed=0,
        flops=round(FLOPS * kept),
        params=round(PARAMS * kept),
        flops_kept=kept,
        accuracy=0.94 - 0.3 * (1 - kept) ** 4 * (1.2 - peak) - noise,
        cost=stage.cost,
        path_cost=Cost(train_flops=round(1e15 * (1 + 2 * iteration)), seconds=60.0 * (1 + 2 * iteration)),
        created=CREATED,
    )


def write_stage(folder: Path, stage: Stage, point: Point | None) -> None:
    folder.mkdir()
    (folder / "stage.json").write_text(stage.model_dump_json(indent=2) + "\n")
    if point is not None:
        (folder / "point.json").write_text(point.model_dump_json(indent=2) + "\n")


def front(root: Path) -> Any:
    from orchestrator.collector import Study

    def answer() -> list[str]:
        return list(Study(root).front()["key"])

    return answer


def status(root: Path) -> Any:
    from orchestrator.collector import Study

    return lambda: Study(root).status()


def ls(root: Path) -> Any:
    from orchestrator.collector.shelf import studies

    return lambda: list(studies(root.parent))


def gc(root: Path) -> Any:
    from orchestrator.collector import Study
    from orchestrator.collector.keeping import collectable

    return lambda: collectable(Study(root))


def report(root: Path) -> Any:
    """The data of the page; None where this version has no page."""
    from orchestrator.collector import Study

    try:
        from orchestrator.collector.report import page_data
    except ImportError:
        return None
    return lambda: page_data(Study(root))


def with_pandas(root: Path) -> Any:
    import pandas as pd

    def answer() -> list[str]:
        points = pd.read_parquet(root / "index.parquet").dropna(subset="flops")
        points = points.sort_values(["flops", "accuracy", "params", "key"], ascending=[True, False, True, True])
        return list(points["key"][points["accuracy"] > points["accuracy"].cummax().shift(fill_value=-1.0)])

    return answer


QUESTIONS: dict[str, Callable[[Path], Any]] = {
    "front": front,
    "status": status,
    "report": report,
    "ls": ls,
    "gc --dry-run": gc,
    "pandas on the index": with_pandas,
}
DERIVED = ("index.parquet", "disk.parquet", "trials.parquet")


def ask(root: Path, name: str) -> dict[str, float]:
    """Seconds of a question in a process of its own; nothing if there is no such question in this version."""
    command = [sys.executable, __file__, "--ask", name, "--work", str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def answered(root: Path, name: str) -> dict[str, float]:
    """Seconds of the wall and of the CPU that a question takes in this process."""
    question = QUESTIONS[name](root)
    if question is None:
        return {}
    wall, cpu = time.perf_counter(), time.process_time()
    question()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def row_of(root: Path, name: str, times: int, cold_times: int) -> list[str]:
    cold = []
    for _ in range(cold_times if name != "pandas on the index" else 0):
        for file in DERIVED:
            (root / file).unlink(missing_ok=True)
        cold.append(ask(root, name))
    warm = [ask(root, name) for _ in range(times)]
    if not all(warm):
        return [name, "not in this version", "-", "-", "-"]
    return [name, *(seconds_of(runs, kind) for runs in (cold, warm) for kind in ("wall", "cpu"))]


def seconds_of(runs: list[dict[str, float]], kind: str) -> str:
    return f"{statistics.median(run[kind] for run in runs):.2f}" if runs else "-"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=5, help="how often each question is asked with the index there")
    parser.add_argument("--cold-times", type=int, default=3, help="and without it")
    parser.add_argument("--work", type=Path, help="a folder for the study, kept; one that is there is used again")
    parser.add_argument("--ask", choices=list(QUESTIONS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        print(json.dumps(answered(given.work, given.ask)))
        return 0
    work = given.work or Path(tempfile.mkdtemp())
    root = work / "many"
    try:
        if not root.exists():
            make_study(root, given.points)
        stages, trials = (len(list((root / name).iterdir())) for name in ("stages", "trials"))
        print(f"{given.points} points, {stages} stages, {trials} trials; seconds, medians of {given.times}")
        print("| question | cold: no index, s | of it CPU | warm, s | of it CPU |\n| --- | --- | --- | --- | --- |")
        for name in QUESTIONS:
            print(f"| {' | '.join(row_of(root, name, given.times, given.cold_times))} |", flush=True)
        same = front(root)() == with_pandas(root)()
        print(f"\nfront and pandas find the same points: {'yes' if same else 'NO'}")
    finally:
        if given.work is None:
            shutil.rmtree(work, ignore_errors=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
