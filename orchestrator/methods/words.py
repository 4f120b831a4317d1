"""Methods' options in words, as their classes have them: what may be given, what is taken otherwise, what it means."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from orchestrator.methods.method import Options

BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "object": "table"}


@dataclass(frozen=True, kw_only=True)
class OptionInWords:
    """values: what may be given, with backticks around what is to be typed as it is. default: as TOML has it."""

    name: str
    values: str
    default: str
    meaning: str


def in_words(options: type[Options]) -> list[OptionInWords]:
    """Every option of a method, those that all methods have first."""
    found = []
    for name in options.model_fields:
        owner = owner_of(options, name)
        facts = plain(owner.model_json_schema()["properties"][name])
        default = value_text(owner.model_fields[name].default)
        meaning = " ".join(meanings_of(owner)[name].split())
        found.append(OptionInWords(name=name, values=kind_text(facts), default=default, meaning=meaning))
    return found


def owner_of(options: type[Options], name: str) -> type[Options]:
    """The class that an option was written in."""
    return next(one for one in reversed(options.__mro__) if name in inspect.get_annotations(one))


def meanings_of(options: type[Options]) -> dict[str, str]:
    """What a class of options says of each: in its docstring, where a sentence begins with names, or beside the field.

    Names with commas between them have one meaning.
    """
    own = "|".join(options.__annotations__)
    said = re.split(rf"(?:^|(?<=[.\n])\s+)((?:(?:{own})(?:, )?)+): ", inspect.getdoc(options) or "")
    found = comments_of(options)
    for names, meaning in zip(said[1::2], said[2::2], strict=True):
        found |= dict.fromkeys(names.split(", "), meaning)
    return found


def comments_of(record: type[BaseModel]) -> dict[str, str]:
    """What the source says beside each field."""
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(record), re.M))


def plain(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A field's JSON schema without its null."""
    options: list[Mapping[str, Any]] = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return options[0]


def kind_text(facts: Mapping[str, Any], *, counted: bool = False) -> str:
    """What a field takes, from its JSON schema. counted: numbers may be given as people write flops."""
    if "enum" in facts:
        return " or ".join(f"`{value_text(value)}`" for value in facts["enum"])
    if "const" in facts:
        return f"`{value_text(facts['const'])}`"
    words = KINDS.get(str(facts.get("type")), "table")
    bounds = [f"{words} {facts[key]:g}" for key, words in BOUNDS.items() if key in facts]
    return ", ".join([f"{words}, or text such as `60M`" if counted else words, *bounds])


def value_text(value: Any) -> str:
    """A value as TOML has it."""
    if value is None:
        return "none"
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
