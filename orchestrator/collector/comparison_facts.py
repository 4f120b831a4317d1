"""What differs between the lines of a comparison besides what they are named for, so that nobody overlooks it.

Asked are the stages that led to each line's frontier: the records of the stages say what they were computed from. What
a search varies by itself, pruning_ratio and regularization_weight, is no difference, and neither is the method where
methods are compared.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.collector.comparison import Comparison, Line
from orchestrator.collector.query import Study, format_flops
from orchestrator.record import Stage

Facts = dict[str, set[str]]
MUCH = 1.1  # from this ratio on, a difference in cost is one
UNKNOWN = "-"  # of a line that does not have the field
LISTED = 6  # values of one field that are shown
SCHEDULES = {"dense": ("schedule", "dense"), "sparse": ("schedule", "sparse"), "cut": ("recovery", "recovery")}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A field that is not the same in all lines; `values` are in their order."""

    field: str
    values: tuple[str, ...]


def differences(comparison: Comparison, studies: Sequence[Study]) -> tuple[Difference, ...]:
    """What is not the same in all lines. `studies`: those that were compared."""
    found = [_facts(line, studies, comparison.by) for line in comparison.lines]
    fields = dict.fromkeys(field for facts in found for field in facts)
    told = [Difference(field=field, values=tuple(_text(facts.get(field)) for facts in found)) for field in fields]
    return tuple(one for one in (*told, *_effort(comparison.lines)) if len({*one.values} - {UNKNOWN}) > 1)


def _facts(line: Line, studies: Sequence[Study], by: str) -> Facts:
    facts: Facts = {}
    _note(facts, "model", line.points["model"])
    _note(facts, "flops of the dense model", map(format_flops, sorted(line.dense["flops"], reverse=True)))
    _note(facts, "accuracy of the dense model", (f"{value:.4f}" for value in line.dense["accuracy"]))
    _note(facts, "seed", line.seeds)
    for stage in _records(line, studies):
        for field, value in _told(stage, by):
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


def _told(stage: Stage, by: str) -> Iterator[tuple[str, Any]]:
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
    if stage.kind == "cut" and by == "study":
        method = _table(parameters, "method")
        options = _table(method, "options").items()
        yield from ((f"method_options.{method.get('name')}.{field}", value) for field, value in options)


def _table(parameters: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parameters.get(name)
    return found if isinstance(found, Mapping) else {}


def _effort(lines: Sequence[Line]) -> Iterator[Difference]:
    """What was spent: lines that were given more should have more."""
    yield Difference(field="trials", values=tuple(str(line.trials) for line in lines))
    costs = [line.train_flops for line in lines]
    if max(costs) > MUCH * min(costs):
        yield Difference(field="train_flops", values=tuple(map(format_flops, costs)))


def _note(facts: Facts, field: str, values: Iterable[Any]) -> None:
    texts = [str(value) for value in values if value is not None]
    facts.setdefault(field, set()).update(texts)


def _text(values: set[str] | None) -> str:
    ordered = sorted(values or ())
    more = len(ordered) - LISTED
    return ", ".join(ordered[:LISTED]) + (f" and {more} more" if more > 0 else "") or UNKNOWN
