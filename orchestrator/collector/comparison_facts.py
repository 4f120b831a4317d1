"""What differs between the lines of a comparison besides what they are named for, so that nobody overlooks it.

Asked are the stages that led to each line's frontier: the records of the stages say what they were computed from. What
a search varies by itself, pruning_ratio and regularization_weight, is no difference, and neither is the method where
methods are compared. An option that every method has, such as residual_streams, is compared over all of them, by its
name alone; one of a single method where that method is in several lines, or where a line has several values of it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from orchestrator.collector.amounts import format_flops
from orchestrator.collector.comparison import Comparison, Line
from orchestrator.collector.query import Study
from orchestrator.record import Stage, TrialSpec, canonical_json

Facts = dict[str, set[str]]
Settings = Mapping[int, Counter[str]]  # of the trials that have ended, by their seed
MUCH = 1.1  # from this ratio on, a difference in cost is one
UNKNOWN = "-"  # of a line that does not have the field
LISTED = 6  # values of one field that are shown
OPTIONS = "method_options."
OF_SEEDS = "trials of each seed"  # a field: where it is told, a line's deviation is not of its seeds alone
NO_SETTING = {"seed", "data_root", "weights"}  # fields of a spec that may differ from seed to seed
SCHEDULES = {"dense": ("schedule", "dense"), "sparse": ("schedule", "sparse"), "cut": ("recovery", "recovery")}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A field that is not the same in all lines; `values` are in their order."""

    field: str
    values: tuple[str, ...]


def differences(comparison: Comparison, studies: Sequence[Study]) -> tuple[Difference, ...]:
    """What is not the same in all lines. `studies`: those that were compared."""
    found = [_facts(line, studies) for line in comparison.lines]
    shared = _shared_options(found)
    for facts in found:
        _note_shared(facts, shared)
    fields = dict.fromkeys(field for facts in found for field in facts)
    told = [Difference(field=field, values=tuple(_text(facts.get(field)) for facts in found)) for field in fields]
    varied = {field for facts in found for field, values in facts.items() if len(values) > 1}
    unequal = [one for one in told if _is_unequal(one, one.field in varied)]
    general = {one.field for one in unequal}
    told_once = [one for one in unequal if OPTIONS + _option(one.field) not in general - {one.field}]
    effort = [one for one in _effort(comparison.lines) if len({*one.values}) > 1]
    return (*told_once, *effort, *_of_seeds(comparison, studies))


def _is_unequal(one: Difference, is_varied: bool) -> bool:
    """A line without the field has nothing that differs, unless another has several values: it had more draws."""
    known = {*one.values} - {UNKNOWN}
    return len(known) > 1 or (is_varied and one.field.startswith(OPTIONS) and UNKNOWN in one.values)


def _shared_options(found: Sequence[Facts]) -> set[str]:
    """The names of the options that every method has, of the lines together; of one method alone there are none."""
    options: dict[str, set[str]] = {}
    for field in {field for facts in found for field in facts if field.startswith(OPTIONS)}:
        options.setdefault(field.split(".")[1], set()).add(_option(field))
    return set.intersection(*options.values()) if len(options) > 1 else set()


def _note_shared(facts: Facts, shared: set[str]) -> None:
    """Adds the shared options by their names alone: what all methods of a line have of each."""
    for field in [field for field in facts if field.startswith(OPTIONS) and _option(field) in shared]:
        _note(facts, OPTIONS + _option(field), facts[field])


def _option(field: str) -> str:
    return field.rpartition(".")[2]


def _facts(line: Line, studies: Sequence[Study]) -> Facts:
    facts: Facts = {}
    _note(facts, "model", line.points["model"])
    _note(facts, "flops of the dense model", map(format_flops, sorted(line.dense["flops"], reverse=True)))
    _note(facts, "accuracy of the dense model", (f"{value:.4f}" for value in line.dense["accuracy"]))
    _note(facts, "seed", line.seeds)
    for stage in _records(line, studies):
        for field, value in _told(stage):
            _note(facts, field, [value])
    return facts


def _records(line: Line, studies: Sequence[Study]) -> Iterator[Stage]:
    """The stages of the frontier and those that they were made from directly, and the dense ones."""
    keys = dict.fromkeys((*line.dense["key"], *line.front()["key"]))
    study_of = dict(zip(line.points["key"], line.points["study"], strict=True))
    stores = {name: study.store for study in studies for name in (study.name, str(study.path))}
    seen: set[str] = set()
    for key in keys:
        store, at = stores[study_of[key]], key
        for _ in range(2):  # a cut, and the sparse stage before it
            if at in seen or not store.has(at):
                break
            seen.add(at)
            stage = store.stage(at)
            yield stage
            at = stage.parent or at


def _told(stage: Stage) -> Iterator[tuple[str, Any]]:
    """What a stage was computed from, as far as it should be the same for all."""
    parameters = stage.parameters
    yield f"version of the {stage.kind} stages", parameters.get("version")
    name, label = SCHEDULES[stage.kind]
    yield from ((f"{label}.{field}", value) for field, value in _table(parameters, name).items())
    if stage.kind == "dense":
        yield "fingerprint of the data", str(_table(parameters, "data").get("fingerprint", "-"))[:12]
        yield "weights", str(parameters["weights"])[:12] if "weights" in parameters else "trained here"
    if stage.kind == "cut" and "group_cap" in parameters:
        yield "group_cap", parameters["group_cap"]
        yield "round_to", parameters.get("round_to", 1)
    if stage.kind == "cut":
        method = _table(parameters, "method")
        options = _table(method, "options").items()
        yield from ((f"{OPTIONS}{method.get('name')}.{field}", value) for field, value in options)


def _table(parameters: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parameters.get(name)
    return found if isinstance(found, Mapping) else {}


def _effort(lines: Sequence[Line]) -> Iterator[Difference]:
    """What was spent: lines that were given more should have more."""
    yield Difference(field="trials", values=tuple(str(line.trials) for line in lines))
    costs = [line.train_flops for line in lines]
    if max(costs) > MUCH * min(costs):
        yield Difference(field="train_flops", values=tuple(map(format_flops, costs)))


def _of_seeds(comparison: Comparison, studies: Sequence[Study]) -> Iterator[Difference]:
    """Told where the seeds of one line had unequal settings, even if they were so in all lines."""
    settings = [_settings_of_seeds(line, studies, comparison.by) for line in comparison.lines]
    if any(_are_unequal(of_seed) for of_seed in settings):
        yield Difference(field=OF_SEEDS, values=tuple(map(_seeds_text, settings)))


def _settings_of_seeds(line: Line, studies: Sequence[Study], by: str) -> Settings:
    """Empty for a line of one seed, and for one without a record of its trials."""
    found: dict[int, Counter[str]] = {seed: Counter() for seed in line.seeds}
    if len(found) < 2:  # a large study has many trials to read
        return {}
    for spec in _specs(line, studies):
        if by == "study" or spec.method == line.name:
            setting = canonical_json(spec.model_dump(mode="json", exclude=NO_SETTING))
            found.setdefault(spec.seed, Counter())[setting] += 1
    return found if any(found.values()) else {}


def _specs(line: Line, studies: Sequence[Study]) -> Iterator[TrialSpec]:
    for study in studies:
        if {study.name, str(study.path)} & {*line.studies}:
            yield from (trial.spec for trial in study.store.trials())


def _are_unequal(settings: Settings) -> bool:
    return any(own != other for own, other in pairwise(settings.values()))


def _seeds_text(settings: Settings) -> str:
    if not settings:
        return UNKNOWN
    counts = {seed: own.total() for seed, own in sorted(settings.items())}
    least, most = min(counts.values()), max(counts.values())
    if least == most:
        text = f"{least} each"
    elif len(counts) <= LISTED:
        text = ", ".join(f"{count} of seed {seed}" for seed, count in counts.items())
    else:
        text = f"{least} to {most} each"
    return f"{text}, in {'different' if _are_unequal(settings) else 'the same'} settings"


def _note(facts: Facts, field: str, values: Iterable[Any]) -> None:
    texts = [str(value) for value in values if value is not None]
    facts.setdefault(field, set()).update(texts)


def _text(values: set[str] | None) -> str:
    ordered = sorted(values or ())
    more = len(ordered) - LISTED
    return ", ".join(ordered[:LISTED]) + (f" and {more} more" if more > 0 else "") or UNKNOWN
