"""One varied field of a search space: the values it can take, and how a file writes them down.

A *position* is what is proposed for a field and what the journal keeps: the place in a grid, otherwise the value.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from orchestrator.record import Option, Record, Schedule, TrialSpec
from orchestrator.search.messages import FieldError, allowed, known, show

PlainValue = bool | int | float | str


class Grid(Record):
    """Numbers that are proposed by their position, so that trials meet on the same ones and share stages."""

    kind: Literal["grid"] = "grid"
    values: tuple[int | float, ...]

    @property
    def size(self) -> int | None:
        return len(self.values)

    def ends(self) -> tuple[PlainValue, ...]:
        return self.values[0], self.values[-1]

    def value(self, position: Any) -> PlainValue:
        return self.values[int(position)]

    def nth(self, rank: int) -> int:
        return rank

    def position(self, value: PlainValue) -> int | None:
        return self.values.index(value) if value in self.values else None


class Range(Record):
    """Any number between two bounds, both included; six significant digits where it is not a whole one."""

    kind: Literal["range"] = "range"
    low: int | float
    high: int | float
    log: bool
    whole: bool

    @property
    def size(self) -> int | None:
        return int(self.high - self.low) + 1 if self.whole else None

    def ends(self) -> tuple[PlainValue, ...]:
        return self.low, self.high

    def value(self, position: Any) -> PlainValue:
        return int(position) if self.whole else min(max(float(f"{position:.6g}"), self.low), self.high)

    def nth(self, rank: int) -> int:
        return int(self.low) + rank

    def position(self, value: PlainValue) -> PlainValue | None:
        return value if not isinstance(value, str) and self.low <= value <= self.high else None


class Choice(Record):
    """One of several values without an order."""

    kind: Literal["choice"] = "choice"
    choices: tuple[PlainValue, ...]

    @property
    def size(self) -> int | None:
        return len(self.choices)

    def ends(self) -> tuple[PlainValue, ...]:
        return self.choices

    def value(self, position: Any) -> PlainValue:
        chosen: PlainValue = position
        return chosen

    def nth(self, rank: int) -> PlainValue:
        return self.choices[rank]

    def position(self, value: PlainValue) -> PlainValue | None:
        return value if value in self.choices else None


Dimension = Annotated[Grid | Range | Choice, Field(discriminator="kind")]


def parse_dimension(name: str, entry: Any) -> Dimension:
    """The dimension that an entry of [search] describes for the field of that dotted name."""
    label = f"search.{name}"
    if not isinstance(entry, dict):
        raise FieldError(
            f"{label} is {show(entry)}; it must be a range or choices, such as {{ low = 0.1, high = 0.5 }} "
            "or { choices = [1, 2] }; a single value belongs into [trial]"
        )
    for key in entry:
        known(key, ("low", "high", "log", "step", "grid", "choices"), prefix=f"{label}.")
    return _choice(name, label, entry) if "choices" in entry else _numbers(name, label, entry)


def _choice(name: str, label: str, entry: dict[str, Any]) -> Choice:
    if len(entry) > 1:
        other = next(key for key in entry if key != "choices")
        raise FieldError(f"{label} has choices and {other}; it must have either choices or a range")
    choices = entry["choices"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise FieldError(f"{label}.choices is {show(choices)}; it must be a list of two values or more")
    for position, choice in enumerate(choices):
        _check_value(name, f"{label}.choices[{position}]", choice)
        if choice in choices[:position]:
            raise FieldError(f"{label}.choices has {show(choice)} twice; each value must occur once")
    return Choice(choices=tuple(choices))


def _numbers(name: str, label: str, entry: dict[str, Any]) -> Grid | Range:
    low, high = _bounds(name, label, entry)
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise FieldError(f"{label}.log is {show(log)}; it must be true or false")
    if log and low <= 0:
        raise FieldError(f"{label}.low is {show(low)}; it must be above 0 where log = true")
    whole = _is_whole(name, low, high)
    if "step" in entry and ("grid" in entry or log):
        other = "grid" if "grid" in entry else "log = true"
        raise FieldError(f"{label} has step and {other}; it must have one of them")
    if "step" in entry:
        return Grid(values=_steps(label, low, high, entry["step"], whole=whole))
    if "grid" in entry:
        return Grid(values=_spread(label, low, high, entry["grid"], log=log, whole=whole))
    return Range(low=low, high=high, log=log, whole=whole)


def _bounds(name: str, label: str, entry: dict[str, Any]) -> tuple[int | float, int | float]:
    if not _is_number(name):
        raise FieldError(f"{label} is a range, but the field is not a number; it must be {{ choices = [...] }}")
    for key in ("low", "high"):
        if key not in entry:
            raise FieldError(f"{label}.{key} is missing; a range must have low and high")
        if isinstance(entry[key], bool) or not isinstance(entry[key], int | float):
            raise FieldError(f"{label}.{key} is {show(entry[key])}; it must be a number")
        _check_value(name, f"{label}.{key}", entry[key])
    low, high = entry["low"], entry["high"]
    if low >= high:
        raise FieldError(f"{label}.low is {show(low)}; it must be below high, {show(high)}")
    return low, high


def _steps(label: str, low: int | float, high: int | float, step: Any, *, whole: bool) -> tuple[int | float, ...]:
    if isinstance(step, bool) or not isinstance(step, int if whole else int | float) or step <= 0:
        kind = "whole number" if whole else "number"
        raise FieldError(f"{label}.step is {show(step)}; it must be a {kind} above 0")
    count = (high - low) / step
    if count < 1 or not math.isclose(count, round(count), rel_tol=1e-6):
        raise FieldError(f"{label}.step is {show(step)}; high - low, {show(round(high - low, 12))}, must be a multiple")
    return tuple(low + i * step if whole else round(low + i * step, 12) for i in range(round(count) + 1))


def _spread(
    label: str, low: int | float, high: int | float, grid: Any, *, log: bool, whole: bool
) -> tuple[int | float, ...]:
    if isinstance(grid, bool) or not isinstance(grid, int) or grid < 2:
        raise FieldError(f"{label}.grid is {show(grid)}; it must be a whole number, at least 2: how many values to try")
    shares = [i / (grid - 1) for i in range(1, grid - 1)]
    inner = [low * (high / low) ** share if log else low + (high - low) * share for share in shares]
    # Six digits: the same numbers, hence the same stage keys, on every machine.
    values = (low, *(round(x) if whole else float(f"{x:.6g}") for x in inner), high)
    if len(set(values)) < grid:
        raise FieldError(f"{label}.grid is {grid}; there are fewer different values from {show(low)} to {show(high)}")
    return values


def _is_number(name: str) -> bool:
    return name.startswith("method_options.") or _annotation(name)[0] in (int, float)


def _is_whole(name: str, low: int | float, high: int | float) -> bool:
    if name.startswith("method_options."):  # the method names the type of its options; here the file does
        return isinstance(low, int) and isinstance(high, int)
    return _annotation(name)[0] is int


def _annotation(name: str) -> tuple[Any, tuple[Any, ...]]:
    """The type of a field of a trial and its constraints, by dotted name."""
    table, _, inner = name.rpartition(".")
    model: type[BaseModel] = Schedule if table else TrialSpec
    field = model.model_fields[inner]
    return field.annotation, tuple(field.metadata)


def _check_value(name: str, label: str, value: Any) -> None:
    kind: Any = Option
    if not name.startswith("method_options."):
        annotation, constraints = _annotation(name)
        kind = Annotated[annotation, *constraints] if constraints else annotation
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise FieldError(f"{label} is {show(value)}; it must be {allowed(error.errors()[0])}") from None
