"""`orchestrator sensitivity`: which trial a space or a study stands for, and each of its groups pruned alone.

What is measured is in a file at once; a call that is stopped, and given again, goes on from there.
"""

import difflib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from rich.console import Console

from orchestrator.collector import Study
from orchestrator.collector.sensitivity import Sensitivity, as_csv, draw, files_of, read, write
from orchestrator.files import located
from orchestrator.record import InvalidInput, TrialSpec
from orchestrator.search.binding import STUDY_FILE, bind
from orchestrator.search.dimensions import Dimension
from orchestrator.search.interrupts import interruptible
from orchestrator.search.progress import duration, say
from orchestrator.search.rerun import definition_of
from orchestrator.search.space import SECTIONS, SearchSpace, named_in
from orchestrator.store import StageStore

if TYPE_CHECKING:
    from orchestrator.network import Group
    from orchestrator.trial.sensing import Sensor

DENSE = ("model", "dataset", "seed", "weights", "latency_batch")  # what the dense stage depends on, beside [dense]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A trial whose dense network is looked at, and the store that has it or gets it. study: if it was named."""

    spec: TrialSpec
    store: StageStore
    name: str
    space: SearchSpace
    study: Study | None


def asked_of(what: str, *, storage: str, data_root: str | None = None) -> Asked:
    """The trial of a space file (it ends in .toml) or of a study.

    Raises InvalidInput where there is none, and where the dense network is not one but varies.
    """
    study = None if what.endswith(".toml") else Study(what, results=storage)
    space = SearchSpace.read(what) if study is None else _space_of(study)
    for name in space.dimensions:
        if name in DENSE or name.startswith("dense."):
            raise InvalidInput(f"{what}: {name} varies; sensitivity is of one dense network: give {name} one value")
    spec = next(space.corners())
    if data_root is not None:
        spec = spec.model_copy(update={"data_root": data_root})
    store = StageStore(located(storage) / space.name if study is None else study.path)
    return Asked(spec=spec, store=store, name=space.name if study is None else study.name, space=space, study=study)


def _space_of(study: Study) -> SearchSpace:
    definition = definition_of(study, "sensitivity")
    dimensions: dict[str, Dimension] = TypeAdapter(dict[str, Dimension]).validate_python(definition["search"])
    trial = {name: value for name, value in definition["trial"].items() if value is not None}
    defaults = {name: kind() for name, kind in SECTIONS.items()}  # none of them matters here
    return SearchSpace.model_validate({"name": study.name, "trial": trial, "dimensions": dimensions, **defaults})


def sense(
    asked: Asked,
    output: Path,
    *,
    method: str = "filter_norm",
    groups: str | None = None,
    shares: str = "0.1,0.3,0.5,0.7,0.9",
    residual_streams: bool = False,
    statistics: bool = False,
    device: str = "cpu",
    console: Console | None = None,
) -> Sensitivity:
    """Prune each group alone at each share, and measure; picture, table and record go into files beside each other.

    groups: names, or patterns such as "stage1.*", separated by commas; all that may lose channels if None. The method
    says which channels leave, with its default options. Returns what was asked for; the record, FILE.json, has all that
    was ever measured into it. Raises InvalidInput for anything that is wrong; SIGINT and SIGTERM raise SystemExit.
    """
    wanted = _parsed(shares)
    table, record = files_of(output)
    console = console or Console()
    done: list[str] = []

    def on_interrupt(number: signal.Signals) -> None:
        kept = f"{done[-1]} are in {record}" if done else "nothing was measured"
        say(console, f"stopped by {number.name}; {kept}; the same command goes on from here")

    with interruptible(on_interrupt):
        sensor = _sensor(asked, console, method, device, residual_streams=residual_streams, statistics=statistics)
        chosen = _chosen(sensor, groups)
        streams = [group.name for group in sensor.others if group.summed]
        if groups is None and streams:
            say(console, f"left whole, as residual streams, without --residual-streams: {', '.join(streams)}")
        found = read(record, _begun(sensor, asked.spec, method))
        places = [(group, share) for group in chosen for share in wanted]
        left = [place for place in places if (place[0].name, place[1]) not in found.by_place]
        say(console, f"{len(chosen)} groups x {len(wanted)} shares: {len(places)} measurements" + _known(places, left))
        done.append(f"{len(places) - len(left)} of {len(places)} measurements")
        for grown in _measured(sensor, found, left, console):
            write(record, grown.model_dump_json(indent=1))
            found = grown
            done.append(f"{len(places) - len(left) + len(done)} of {len(places)} measurements")
    shown = found.only((group.name, share) for group, share in places)
    write(table, as_csv(shown))
    draw(shown, output)
    return shown


def _parsed(shares: str) -> list[float]:
    try:
        found = sorted({float(text) for text in shares.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 < share < 1 for share in found):
        raise InvalidInput(f"--shares is {shares!r}; give numbers between 0 and 1, such as 0.1,0.3,0.5")
    return found


def _sensor(
    asked: Asked, console: Console, method: str, device: str, *, residual_streams: bool, statistics: bool
) -> "Sensor":
    from orchestrator.trial.checking import check_dense
    from orchestrator.trial.devices import check_device
    from orchestrator.trial.sensing import Sensor

    check_device(device)
    if asked.study is None:
        with named_in(asked.space.file):
            check_dense(asked.spec)
    asked.store.prepare()
    if asked.store.read_json(STUDY_FILE) is None or asked.study is None:
        bind(asked.store, asked.space, None)
    options: dict[str, Any] = {"residual_streams": True} if residual_streams else {}
    spec = asked.spec.model_copy(update={"method": method, "method_options": options})
    say(console, f"the dense network of {asked.name}: looked up in {asked.store.root}, or trained")
    sensor = Sensor(spec, asked.store, statistics=statistics, device=device)
    point = sensor.point
    say(console, f"{'trained' if sensor.trained else 'found'}: {sensor.key[:12]}, accuracy {point.accuracy:.4f}")
    return sensor


def _chosen(sensor: "Sensor", patterns: str | None) -> Sequence["Group"]:
    groups = sensor.groups
    if patterns is None:
        if not groups:
            raise InvalidInput("no group of this network may lose channels; --residual-streams lets streams do so")
        return groups
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    names = [group.name for group in groups]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            _complain_of(sensor, pattern, names)
    return [group for group in groups if any(fnmatchcase(group.name, pattern) for pattern in wanted)]


def _complain_of(sensor: "Sensor", pattern: str, names: Sequence[str]) -> None:
    stays = next((group for group in sensor.others if fnmatchcase(group.name, pattern)), None)
    if stays is not None:
        why = "is a residual stream; --residual-streams lets it" if stays.summed else "has one channel, and cannot"
        raise InvalidInput(f"--groups: {stays.name} {why} lose channels")
    near = difflib.get_close_matches(pattern, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(islice(names, 8))}"
    raise InvalidInput(f"--groups: no group is {pattern!r}; {hint}")


def _begun(sensor: "Sensor", spec: TrialSpec, method: str) -> Sensitivity:
    from orchestrator.methods import method_named

    definition = {
        "dense network": sensor.key,
        "method": f"{method}, version {method_named(method).version}",
        "norm statistics": "re-estimated" if sensor.statistics else "as trained",
    }
    point = sensor.point
    return Sensitivity(
        model=spec.model, dataset=spec.dataset, definition=definition, accuracy=point.accuracy, flops=point.flops
    )


def _known(places: Sequence[Any], left: Sequence[Any]) -> str:
    known = len(places) - len(left)
    return f", {known} of them measured before" if known else ""


def _measured(
    sensor: "Sensor",
    found: Sensitivity,
    left: Sequence[tuple["Group", float]],
    console: Console,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Sensitivity]:
    """All that is known, after each measurement."""
    begun = clock()
    with console.status("measuring") as status:
        for count, (group, share) in enumerate(left, start=1):
            status.update(f"{group.name} without {share:g} of its channels: {count} of {len(left)}")
            found = found.with_(sensor.measure(group, share))
            yield found
            if count == len(left) or left[count][0] is not group:
                seconds = (clock() - begun) / count * (len(left) - count)
                row = " ".join(f"{one.accuracy:.4f}" for one in found.measured if one.group == group.name)
                more = f"; about {duration(seconds)} left" if count < len(left) else ""
                say(console, f"[{count}/{len(left)}] {group.name}: {row}{more}")
