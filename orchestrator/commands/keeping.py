"""What becomes of studies: `orchestrator ls | gc | rm | merge`."""

from collections.abc import Collection as AnyOf
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.arguments import RESULTS, Storage, StudyName, open_study
from orchestrator.record import InvalidInput
from orchestrator.tables import bytes_text, print_facts, print_heading, print_table

if TYPE_CHECKING:
    from orchestrator.collector import Study
    from orchestrator.collector.keeping import Collection
    from orchestrator.collector.shelf import Entry


class Keep(StrEnum):
    """Whose weights `gc` keeps."""

    frontier = "frontier"
    resumable = "resumable"


KeepOption = Annotated[
    Keep, typer.Option(help="Keep weights of the frontier alone, or also those that a search may still go on from.")
]


def ls(storage: Storage = RESULTS) -> None:
    """The studies there are: how far they are, and what they take of the disk."""
    from orchestrator.collector.shelf import studies

    found = list(studies(storage))
    if not found:
        typer.echo(f"no study in {storage}; `orchestrator search` makes one")
        return
    header = [
        "study",
        "model",
        "data",
        "trials",
        "points",
        "hypervolume",
        "weights",
        "records",
        "last change",
        "search",
    ]
    print_table(header, [_row(one) for one in found if one.problem is None])
    for one in found:
        if one.problem is not None:
            typer.echo(f"cannot be read: {one.problem}", err=True)


def gc(
    study: StudyName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    keep: KeepOption = Keep.resumable,
    storage: Storage = RESULTS,
) -> None:
    """Removes weights that are of no more use; what was measured stays, all of it."""
    from orchestrator.collector.keeping import collect, collectable

    asked = open_study(study, storage)
    found = collectable(asked, keep.value) if dry_run else collect(asked, keep.value)
    _print_collection(str(asked.path), found, dry_run=dry_run)


def rm(
    study: StudyName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the study's name.")] = False,
    storage: Storage = RESULTS,
) -> None:
    """Removes a study, with everything in it."""
    from orchestrator.collector.shelf import check_removable, entry_of, remove

    asked = open_study(study, storage)
    check_removable(asked)
    if not yes:
        entry = entry_of(asked)
        size = bytes_text(entry.disk.total if entry.disk else 0)
        typer.echo(f"{asked.path}: {entry.trials} trials, {entry.points} points, {size}")
        typed = typer.prompt(f"to remove it, type its name ({asked.name})", default="", show_default=False)
        if typed != asked.name:
            raise InvalidInput(f"{asked.path}: not removed; {typed or 'nothing'} was typed, its name is {asked.name}")
    remove(asked)
    typer.echo(f"removed {asked.path}")


def merge(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY STUDY...", help="Names, or paths of folders.")],
    into: Annotated[
        str, typer.Option(metavar="NAME", help="The new study: a name, a path or s3://bucket/prefix/NAME.")
    ],
    storage: Storage = RESULTS,
) -> None:
    """Joins studies, such as those of several clusters, into one with one frontier."""
    from orchestrator.collector.merging import merge as merged
    from orchestrator.collector.merging import place_of

    done = merged([open_study(name, storage) for name in studies], place_of(into, storage))
    facts = {
        "study": str(done.path),
        "stages": f"{done.stages}; {done.shared} of them more than one study has",
        "trials": f"{done.trials}, numbered anew",
    }
    if done.confirmed:
        facts["confirmed"] = f"{done.confirmed} models measured on the test split"
    if done.damaged:
        facts["damaged"] = f"{len(done.damaged)} stages, left out"
    if len(done.models) > 1:
        facts["models"] = f"{', '.join(done.models)}; flops_kept of each one's own dense network"
    print_facts(facts)


def bring_back(study: "Study", key: str, *, allow_code: AnyOf[str] = (), data_root: Path | None = None) -> None:
    """Makes sure of the weights of a point: where they were collected, computes them again, which may take long.

    allow_code: the user's own functions that may be run for it. data_root: where the data sets lie; else where the
    trial had them.
    """
    if study.store.weights(key) is not None:
        return
    from orchestrator.collector.keeping import spec_with
    from orchestrator.takeout.choosing import check_allowed, code_of
    from orchestrator.trial import restore

    spec = spec_with(study, key)
    check_allowed(study, code_of(spec.model, spec.dataset), allow_code)
    if data_root is not None:
        spec = spec.model_copy(update={"data_root": str(data_root)})
    typer.echo(f"the weights of {key[:12]} were collected; computing them again", err=True)
    restore(spec, study.store, key)


def _row(one: "Entry") -> list[str]:
    assert one.disk is not None
    runs = [f"{what}{owner}" for what, owner in (("", one.driver), ("confirm: ", one.confirming)) if owner is not None]
    return [
        one.name,
        ", ".join(one.models) or "-",
        ", ".join(one.datasets) or "-",
        str(one.trials),
        str(one.points),
        f"{one.hypervolume:.4f}",
        bytes_text(one.disk.weights),
        bytes_text(one.disk.records),
        _moment(one.changed),
        ", ".join(runs) or "-",
    ]


def _moment(text: str) -> str:
    """A moment of a record to the minute, in UTC."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")
    except ValueError:
        return "-"


def _print_collection(path: str, found: "Collection", *, dry_run: bool) -> None:
    kept = ", ".join(f"{count} {reason}" for reason, count in found.kept.items()) or "none"
    if found.confirmed:
        kept += f"; {bytes_text(found.confirmed)} of confirmed models, which gc leaves alone"
    if not found.bytes:
        typer.echo(f"{path}: nothing to collect; weights kept: {kept}")
        return
    print_heading(f"Weights {'that would go' if dry_run else 'that went'} of {path}")
    rows = [[one.kind, str(one.iteration), str(one.stages), bytes_text(one.bytes)] for one in found.groups]
    print_table(["stages", "iteration", "number", "weights"], rows)
    size, shared = sum(found.bytes.values()), ""
    if found.freed < size:
        shared = (
            f"; {bytes_text(size - found.freed)} more are shared with another study by hard links, which keeps them"
        )
    typer.echo(f"{'would free' if dry_run else 'freed'} {bytes_text(found.freed)}{shared}")
    typer.echo(f"weights kept: {kept}; records: all")
