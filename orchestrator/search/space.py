"""Search spaces: a TOML file that fixes some fields of a trial and varies the others, read and checked.

[trial]       fields with one value: those of TrialSpec, with the tables [trial.dense] [trial.sparse]
              [trial.recovery] [trial.method_options], and for switches that one method alone has
              [trial.method_options.NAME OF THE METHOD]
[search]      fields that vary, laid out in the same way. Each is one of
              { low = 1e-3, high = 1e-1, log = true, grid = 5 }    5 values, evenly spaced on a log scale
              { low = 0.2, high = 0.5, grid = 4 }                  4 values, evenly spaced
              { low = 0.2, high = 0.5, step = 0.05 }               every 0.05; whole numbers: step = 2
              { low = 0.01, high = 0.1, log = true }               any number in between
              { low = 3, high = 6 }                                any whole number, where the field is one
              { choices = ["oicsr", "filter_norm"] }
[budget]      how far to go:         trials, train_flops, hours
[proposals]   how to choose:         seed, parallel, startup, guide
[limits]      what is of use:        max_flops, max_params, max_latency_ms, min_accuracy
[stopping]    what cannot matter:    rule, margin
[confirm]     orchestrator confirm:  points, seeds, length (epochs of all schedules times this; 1 is as in the search)
[resources]   what a trial takes:    cpus_per_trial, gpus_per_trial, stage_minutes (a stage that takes longer hangs)
"""

import math
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from functools import reduce
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, FiniteFloat, ValidationError, ValidationInfo, model_validator

from orchestrator.collector.amounts import parse_flops
from orchestrator.record import InvalidInput, Record, Schedule, Share, TrialSpec, options_for
from orchestrator.search.dimensions import Choice, Dimension, parse_dimension
from orchestrator.search.messages import FieldError, explain, known, show
from orchestrator.search.space_methods import METHOD, OPTIONS, WEIGHT, check_methods, has_penalty, is_table, matters

T = TypeVar("T", bound=Record)
TABLES = ("dense", "sparse", "recovery", "method_options")
IN_NO_STUDY = ("data_root",)  # where the data lie changes no result
ADDED_LATER = {
    "round_to": 1,
    "latency_batch": 0,
}  # left out of a definition while it has the value that older studies stand for
CORNERS = 4096  # combinations of extreme values that are tried out when a space is read


def _count(value: Any, info: ValidationInfo) -> Any:
    """A number as people write it, "60M" or 6e7, as a whole one."""
    if isinstance(value, str):
        return parse_flops(value, str(info.field_name))
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_count), Field(ge=1)]
Positive = Annotated[FiniteFloat, Field(gt=0.0)]


class Budget(Record):
    """How far a search goes; may be raised later. What is used up first ends it."""

    trials: Annotated[int, Field(ge=1)] = 16  # each yields a point for each of its iterations
    train_flops: Count | None = None  # forward flops x samples x 3, of all stages that were computed
    hours: Positive | None = None  # of all launches together


class ProposalSettings(Record):
    """How settings are chosen. The first three are part of a study's definition: they tell one search from another."""

    seed: Annotated[int, Field(ge=0)] = 0  # of the choice of trials
    parallel: Annotated[int, Field(ge=1)] = 4  # trials that may be under way at once, however many fit the machine
    startup: Annotated[int, Field(ge=1)] = 8  # the first so many are drawn at random
    guide: Literal["gain", "prefixes"] = "gain"  # gain: what adds most to the frontier; prefixes: see guides.py


class Limits(Record):
    """What a model must keep to, to be of use. Others are recorded too, but do not guide the search."""

    max_flops: Count | None = None  # multiply-accumulates
    max_params: Count | None = None  # weights of all layers
    max_latency_ms: Positive | None = None  # trial.latency_batch says of what
    min_accuracy: Share | None = None  # on the validation split


class Stopping(Record):
    """When a trial ends before its last iteration: see stopping.py."""

    rule: Literal["dominated", "none"] = "dominated"  # "none": no trial is stopped
    margin: Share = 0.05  # of accuracy


class Confirmation(Record):
    """How `orchestrator confirm` trains points of the frontier anew; no part of a study's definition."""

    points: Annotated[int, Field(ge=1)] = 3  # of the frontier, spread over it
    seeds: Annotated[int, Field(ge=1)] = 3  # trainings of each
    length: Positive = 1.0  # epochs of all schedules, as a multiple of the search's


class Resources(Record):
    """What one trial takes of the machine or the cluster."""

    cpus_per_trial: Annotated[FiniteFloat, Field(gt=0.0)] = 1.0  # CPU cores
    gpus_per_trial: Annotated[FiniteFloat, Field(ge=0.0)] = 0.0  # 0.25: four trials share a GPU; 2: each has two
    stage_minutes: Annotated[FiniteFloat, Field(gt=0.0)] | None = None  # the longest that one stage may take; else any

    @model_validator(mode="after")
    def _whole_gpus_above_one(self) -> Self:
        if self.gpus_per_trial > 1 and self.gpus_per_trial != int(self.gpus_per_trial):
            raise ValueError(f"gpus_per_trial is {self.gpus_per_trial}; above 1 it must be a whole number")
        return self


SECTIONS: dict[str, type[Record]] = {
    "budget": Budget,
    "proposals": ProposalSettings,
    "limits": Limits,
    "stopping": Stopping,
    "confirm": Confirmation,
    "resources": Resources,
}


class SearchSpace(Record):
    """A checked search-space file. `dimensions` are the varied fields by their dotted name, in the file's order."""

    name: str
    trial: dict[str, Any]
    dimensions: dict[str, Dimension]
    budget: Budget
    proposals: ProposalSettings
    limits: Limits
    stopping: Stopping
    confirm: Confirmation
    resources: Resources

    @classmethod
    def read(cls, path: str | Path) -> "SearchSpace":
        """The space of a TOML file. Raises InvalidInput with one line that names the file and the field."""
        path = Path(path)
        return cls.parse(path.stem, _load(path))

    @classmethod
    def parse(cls, name: str, raw: dict[str, Any]) -> "SearchSpace":
        """The space `name` of a TOML file's content. Raises InvalidInput with one line that names the field."""
        try:
            return _parse(name, raw)
        except FieldError as error:
            raise InvalidInput(f"{name}.toml: {error}") from None

    @property
    def file(self) -> str:
        """What errors call its file."""
        return f"{self.name}.toml"

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that its trials have."""
        varied = self.dimensions.get(METHOD)
        if isinstance(varied, Choice):
            return tuple(map(str, varied.choices))
        return (str(self.trial.get(METHOD, TrialSpec.model_fields[METHOD].default)),)

    @property
    def size(self) -> int | None:
        """How many different trials the space holds; None where a field may take any number."""
        sizes = [self._size_with(method) for method in self.methods]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def nth(self, rank: int) -> dict[str, Any]:
        """The positions of one of the `size` different trials."""
        positions = {name: one.position(one.ends()[0]) for name, one in self.dimensions.items()}
        methods = iter(self.methods)
        method = next(methods)
        while rank >= (size := self._size_with(method) or 0):
            rank, method = rank - size, next(methods)
        for name in self.varied_with(method):
            rank, at = divmod(rank, self.dimensions[name].size or 1)
            positions[name] = self.dimensions[name].nth(at)
        return {**positions, METHOD: method} if METHOD in positions else positions

    def varied_with(self, method: str) -> tuple[str, ...]:
        """The varied fields that tell trials of this method from one another, in the order of their names."""
        return tuple(name for name in sorted(self.dimensions) if name != METHOD and matters(method, name))

    def spec(self, values: Mapping[str, Any]) -> TrialSpec:
        """The trial with these values of the varied fields, by dotted name.

        What means nothing to its method is left out, so that trials which would do the same are the same: options of
        other methods, and, where it or the method varies, the regularization_weight of a method without a penalty: 0.
        """
        spec = self._plain(values)
        varied = METHOD in self.dimensions or WEIGHT in self.dimensions
        return spec.model_copy(update={WEIGHT: 0.0}) if varied and not has_penalty(spec.method) else spec

    def _plain(self, values: Mapping[str, Any]) -> TrialSpec:
        merged = _merge(self.trial, values)
        method = merged.get(METHOD, TrialSpec.model_fields[METHOD].default)
        if isinstance(method, str) and isinstance(merged.get(OPTIONS), dict):
            merged[OPTIONS] = options_for(method, merged[OPTIONS])
        if WEIGHT not in merged and not any(has_penalty(one) for one in self.methods):
            merged[WEIGHT] = 0.0  # it would mean nothing, whatever it was
        return TrialSpec.model_validate(merged, strict=True)

    def _size_with(self, method: str) -> int | None:
        sizes = [self.dimensions[name].size for name in self.varied_with(method)]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def corners(self) -> Iterator[TrialSpec]:
        """The trials at the ends of every range and at every choice: no other one can be out of bounds."""
        ends = [dimension.ends() for dimension in self.dimensions.values()]
        for values in islice(product(*ends), CORNERS):
            yield self.spec(dict(zip(self.dimensions, values, strict=True)))

    def definition(self) -> dict[str, Any]:
        """All that makes the study what it is; a space of another definition needs another study folder.

        Budget and resources are left out, and so is what decides about later proposals alone (the guide, limits,
        stopping), and about confirmations: they may change from one launch to the next.
        """
        first = {name: dimension.ends()[0] for name, dimension in self.dimensions.items()}
        fixed = self._plain(first).model_dump(mode="json")  # defaults filled in: writing one out changes nothing
        fixed[OPTIONS] = self._fixed_options()
        later = [name for name, default in ADDED_LATER.items() if fixed[name] == default]
        for name in (*self.dimensions, *IN_NO_STUDY, *later):
            _drop(fixed, name)
        searched = {name: dimension.model_dump(mode="json") for name, dimension in self.dimensions.items()}
        proposals = self.proposals.model_dump(mode="json", exclude={"guide"})
        return {"trial": fixed, "search": searched, "proposals": proposals}

    def _fixed_options(self) -> dict[str, Any]:
        """Without the tables of methods that no trial has."""
        given = self.trial.get(OPTIONS, {})
        return {name: value for name, value in given.items() if not isinstance(value, dict) or name in self.methods}


@contextmanager
def named_in(file: str) -> Iterator[None]:
    """Put a space file's name before what a trial's check finds wrong, as `parse` does before its own errors."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error}") from error


def check_section(section: type[T], values: Mapping[str, Any], name: str) -> T:
    """The record of a section with values from outside; InvalidInput names the section and the field."""
    try:
        return _section(section, dict(values), name)
    except FieldError as error:
        raise InvalidInput(str(error)) from None


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = get_close_matches(path.name, [other.name for other in path.parent.glob("*.toml")], n=1, cutoff=0.5)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; a search space is a TOML file"
        raise InvalidInput(f"{path}: there is no such file{hint}") from None
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name}: is not valid TOML: {error}") from None


def _parse(name: str, raw: dict[str, Any]) -> SearchSpace:
    sections = ("trial", "search", *SECTIONS)
    for section, content in raw.items():
        known(section, sections, prefix="")
        if not isinstance(content, dict):
            raise FieldError(f"{section} is {show(content)}; it must be a table: [{section}]")
    fixed = raw.get("trial", {})
    dimensions = dict(_dimensions(raw.get("search", {})))
    _check_fixed(fixed, dimensions)
    checked: dict[str, Any] = {s: _section(kind, raw.get(s, {}), s) for s, kind in SECTIONS.items()}
    space = SearchSpace(name=name, trial=fixed, dimensions=dimensions, **checked)
    check_methods(space.methods, fixed.get(OPTIONS, {}), dimensions)
    if space.limits.max_latency_ms is not None and not (fixed.get("latency_batch") or "latency_batch" in dimensions):
        raise FieldError("limits.max_latency_ms needs trial.latency_batch, the batch whose latency is measured")
    _try_out(space)
    return space


def _check_fixed(fixed: dict[str, Any], dimensions: dict[str, Dimension]) -> None:
    for name, _ in _fields(fixed, "trial"):
        if name in dimensions:
            raise FieldError(f"{name} is in both [trial] and [search]; keep one of them")
    if not dimensions:
        raise FieldError("[search] is empty; at least one field must vary, for example regularization_weight")


def _try_out(space: SearchSpace) -> None:
    try:
        for _ in space.corners():
            pass
    except ValidationError as error:
        raise FieldError(explain(error, "trial")) from None


def _section(section: type[T], values: dict[str, Any], name: str) -> T:
    for field in values:
        known(field, section.model_fields, prefix=f"{name}.")
    try:
        return section.model_validate(values, strict=True)
    except ValidationError as error:
        raise FieldError(explain(error, name)) from None


def _fields(table: dict[str, Any], section: str) -> Iterator[tuple[str, Any]]:
    """Every field of a [trial] or [search] table with its dotted name; raises at a name that no trial has."""
    for name, content in table.items():
        known(name, TrialSpec.model_fields, prefix=f"{section}.")
        if name not in TABLES:
            yield name, content
            continue
        if not isinstance(content, dict):
            raise FieldError(f"{section}.{name} is {show(content)}; it must be a table: [{section}.{name}]")
        for inner, value in content.items():
            if name != OPTIONS:
                known(inner, Schedule.model_fields, prefix=f"{section}.{name}.")
            if name == OPTIONS and is_table(value, section):
                yield from ((f"{name}.{inner}.{option}", one) for option, one in value.items())
            else:
                yield f"{name}.{inner}", value


def _dimensions(table: dict[str, Any]) -> Iterator[tuple[str, Dimension]]:
    for name, entry in _fields(table, "search"):
        yield name, parse_dimension(name, entry)


def _merge(fixed: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = {name: deepcopy(content) if name in TABLES else content for name, content in fixed.items()}
    for name, value in values.items():
        *tables, field = name.split(".")
        reduce(lambda at, table: at.setdefault(table, {}), tables, merged)[field] = value
    return merged


def _drop(nested: dict[str, Any], name: str) -> None:
    *tables, field = name.split(".")
    reduce(lambda at, table: at.get(table, {}), tables, nested).pop(field, None)
