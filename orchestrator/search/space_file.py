"""A space file written back: the TOML from which a SearchSpace is read again, equal in all fields."""

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from orchestrator.record import InvalidInput
from orchestrator.search.dimensions import Choice, Dimension, Grid, Range, parse_dimension
from orchestrator.search.messages import FieldError
from orchestrator.search.space import SECTIONS, TABLES, SearchSpace
from orchestrator.store import StageStore

BARE = re.compile(r"[A-Za-z0-9_-]+")


def as_toml(space: SearchSpace, heading: str) -> str:
    """The text of a space file. `heading` becomes its first lines, as a comment.

    Raises InvalidInput for a grid that no entry of a file describes.
    """
    searched = {name: _entry(name, dimension) for name, dimension in space.dimensions.items()}
    sections = {name: getattr(space, name).model_dump() for name in SECTIONS}
    tables = {
        **dict(_tables("trial", space.trial)),
        **dict(_tables("search", _nested(searched))),
        **sections,
    }
    comment = "\n".join(f"# {line}" for line in heading.splitlines())
    return "\n\n".join([comment, *(_table(name, content) for name, content in tables.items())]) + "\n"


def read_back(store: StageStore) -> SearchSpace:
    """The space whose file lies in the folder of its study. Raises InvalidInput where there is none."""
    name = store.root.name
    file = store.root / file_name(name)
    content = store.read_bytes(file_name(name))
    if content is None:
        raise InvalidInput(f"{file}: there is no such file; put it back, or give another --name")
    try:
        return SearchSpace.parse(name, tomllib.loads(content.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file}: is not valid TOML: {error}") from None


def file_name(study: str) -> str:
    """Of the space file in a study's folder: `search` takes a study's name from its file's."""
    return f"{study}.toml"


def _nested(searched: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, entry in searched.items():
        *tables, field = name.split(".")
        reduce(lambda at, table: at.setdefault(table, {}), tables, nested)[field] = entry
    return nested


def _tables(name: str, content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield name, {field: value for field, value in content.items() if field not in TABLES}
    for table in TABLES:
        if content.get(table):
            yield f"{name}.{table}", content[table]


def _table(name: str, content: Mapping[str, Any]) -> str:
    lines = [f"{_key(field)} = {_value(value)}" for field, value in content.items() if value is not None]
    return "\n".join([f"[{name}]", *lines])


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)


def _entry(name: str, dimension: Dimension) -> dict[str, Any]:
    """The entry of [search] that describes a dimension."""
    if isinstance(dimension, Choice):
        return {"choices": list(dimension.choices)}
    if isinstance(dimension, Range):
        return {"low": dimension.low, "high": dimension.high} | ({"log": True} if dimension.log else {})
    for entry in _grids(dimension):
        try:
            if parse_dimension(name, entry) == dimension:
                return entry
        except FieldError:
            continue
    raise InvalidInput(f"search.{name} is a grid of {list(dimension.values)}; no entry of a space file describes it")


def _grids(grid: Grid) -> Iterator[dict[str, Any]]:
    """In the words that a file has for it, the likeliest first."""
    low, high, count = grid.values[0], grid.values[-1], len(grid.values)
    ends = {"low": low, "high": high}
    step = grid.values[1] - low
    yield {**ends, "step": step if isinstance(step, int) else float(f"{step:.6g}")}
    yield {**ends, "step": (high - low) / (count - 1)}
    if low > 0 and math.isfinite(high):
        yield {**ends, "log": True, "grid": count}
    yield {**ends, "grid": count}
