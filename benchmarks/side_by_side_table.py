"""What side_by_side.py prints: the table of one arena, the weights that were chosen, and what it all takes."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from side_by_side_jobs import Job, Prepared, Tested

from orchestrator.methods import METHODS

if TYPE_CHECKING:
    from side_by_side import Course

COLUMNS = (
    "method",
    "flops_kept",
    "reached",
    "regularization_weight",
    "test, before recovery",
    "test, after recovery",
    "train_flops",
    "extra train_flops",
)
WEIGHT_COLUMNS = (
    "method",
    "flops_kept",
    "regularization_weight",
    "validation, before recovery",
    "after recovery",
    "chosen",
)
PHASES = (
    "dense networks",
    "preparations, methods without a penalty, the grid of the others",
    "prepared methods, other seeds of penalised ones",
    "test split",
    "scratch controls",
)
# What has to be said wherever a method's figures stand.
LABELS = {"pfec": "pfec (equal widths)", "feature_flow": "feature_flow (a reconstruction)"}
NONE = "-"


def table(course: "Course") -> Iterator[str]:
    """A row for each method and control at each flops_kept, and below it the reasons of what failed."""
    given, arena = course.given, course.arena
    yield f"\n### {arena.title}\n"
    yield (
        f"{arena.model}, epochs dense / sparse / recovery {' / '.join(map(str, arena.epochs))}, "
        f"{given.iterations} iteration{'s' if given.iterations > 1 else ''}, batches of {arena.batch_size}, "
        f"{given.seeds} seeds: mean +- standard deviation. flops are multiply-accumulates of convolutions and linear "
        "layers at batch 1; train_flops are those of the whole path, 3 x forward.\n"
    )
    yield from _head(COLUMNS)
    yield _row("dense", None, NONE, [course.dense.get(seed) for seed in range(given.seeds)], NONE)
    groups = [list(_rows(course, kept)) for kept in given.kept]
    for rows in groups:
        yield from rows
    yield ""
    yield from _differences(course)
    yield from _reasons(course)


def _rows(course: "Course", kept: float) -> Iterator[str]:
    given = course.given
    for name in given.methods:
        found = [_found(course, course.job(name, kept, seed)) for seed in range(given.seeds)]
        weight = NONE if METHODS[name].penalty is None else f"{course.weight(name, kept):g}"
        prepared = course.prepared.get(name)
        extra = f"{prepared.train_flops:.3g}" if isinstance(prepared, Prepared) else NONE
        yield _row(LABELS.get(name, name), kept, weight, found, extra)
    for name in given.scratch:
        controls = [course.controls.get(course.job(name, kept, seed)) for seed in range(given.seeds)]
        yield _row(f"scratch, widths of {name}", kept, NONE, controls, NONE)


def _found(course: "Course", job: Job) -> Tested | str | None:
    return course.failure(job) or course.tested.get(job)


def _row(name: str, kept: float | None, weight: str, found: Sequence[Tested | str | None], extra: str) -> str:
    tested = [one for one in found if isinstance(one, Tested)]
    befores = [one.before for one in tested if one.before is not None]
    cells = (
        name,
        NONE if kept is None else f"{kept:g}",
        f"{statistics.mean(one.flops_kept for one in tested):.3f}" if tested else NONE,
        weight,
        spread(befores) if befores or not tested else NONE,
        spread([one.after for one in tested]),
        f"{statistics.mean(one.train_flops for one in tested):.4g}" if tested else NONE,
        extra,
    )
    failed, missing = sum(isinstance(one, str) for one in found), sum(one is None for one in found)
    notes = [f"{failed} failed"] * bool(failed) + [f"{missing} not run"] * bool(missing)
    marked = f"{cells[5]} ({', '.join(notes)})" if notes else cells[5]
    return _line((*cells[:5], marked, *cells[6:]))


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation (of a sample, n - 1) in per cent; of one value itself."""
    if not values:
        return NONE
    deviation = f" +- {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{deviation} %"


def _differences(course: "Course") -> Iterator[str]:
    """Whether all rows of one flops_kept really had the same budget."""
    for kept in course.given.kept:
        taken = [one.train_flops for job, one in course.tested.items() if job.kept == kept]
        if taken:
            apart = max(taken) / min(taken) - 1
            yield f"At flops_kept {kept:g} the methods' train_flops differ by {apart:.1%} at most."


def _reasons(course: "Course") -> Iterator[str]:
    given = course.given
    for seed, one in course.dense.items():
        if isinstance(one, str):
            yield f"- dense, seed {seed}: {_plain(one)}"
    for kept in given.kept:
        for name in given.methods:
            yield from _said(
                f"{name} at {kept:g}", [course.failure(course.job(name, kept, s)) for s in range(given.seeds)]
            )
        for name in given.scratch:
            found = [course.controls.get(course.job(name, kept, seed)) for seed in range(given.seeds)]
            yield from _said(f"scratch, {name} at {kept:g}", [one if isinstance(one, str) else None for one in found])


def _said(what: str, reasons: Sequence[str | None]) -> Iterator[str]:
    """A line for each reason, with the seeds that it ended."""
    for reason in dict.fromkeys(reason for reason in reasons if reason is not None):
        seeds = ", ".join(str(seed) for seed, one in enumerate(reasons) if one == reason)
        yield f"- {what}, seed {seeds}: {_plain(reason)}"


def _plain(reason: str) -> str:
    return " ".join(reason.split())


def weights_table(course: "Course") -> Iterator[str]:
    """What the grid gave on the validation split, first seed."""
    given = course.given
    tried = [
        Job(method=name, weight=weight, kept=kept, seed=0)
        for kept in given.kept
        for name in given.methods
        for weight in course.grid(name)
    ]
    if not tried:
        return
    yield "\nThe grid of regularization_weight, validation split, first seed:\n"
    yield from _head(WEIGHT_COLUMNS)
    for job in tried:
        walked = course.walked.get(job)
        befores, afters = ([], []) if walked is None or walked.failure else ([walked.before], [walked.after])
        chosen = "yes" if afters and job.weight == course.weight(job.method, job.kept) else ""
        failed = "failed" if walked is not None and walked.failure else "not run"
        values = (spread(befores), spread(afters)) if afters else (failed, failed)
        yield _line((job.method, f"{job.kept:g}", f"{job.weight:g}", *values, chosen))


def estimate_table(courses: Sequence["Course"]) -> Iterator[str]:
    """Hours of a core for each phase, from the seconds of an epoch measured now and what is shared."""
    yield from _head(("network", "an epoch, s of a core", *(f"{phase}, h" for phase in PHASES), "all, h"))
    total = 0.0
    for course in courses:
        hours = [sum(task.seconds for task in phase()) / 3600 for phase in course.phases()]
        total += sum(hours)
        yield _line((course.arena.name, f"{course.epoch:.2f}", *(f"{hour:.2f}" for hour in (*hours, sum(hours)))))
    count = courses[0].given.processes
    yield f"\nAbout {total:.2f} hours of a core if nothing is there yet, {total / count:.2f} on {count} processes.\n"


def _head(columns: Iterable[str]) -> Iterator[str]:
    names = list(columns)
    yield _line(names)
    yield f"|{' --- |' * len(names)}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
