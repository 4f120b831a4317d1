"""What is wrong in a search-space file, in one line: what was met, where, and what is allowed there."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError


class FieldError(Exception):
    """What is wrong with which field; whoever knows the file's name puts it before."""


def known(name: str, allowed_names: Collection[str], *, prefix: str) -> None:
    """Raise FieldError for a name that is not allowed, with the one that was probably meant."""
    if name in allowed_names:
        return
    near = get_close_matches(name, list(allowed_names), n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"allowed: {', '.join(allowed_names)}"
    raise FieldError(f"{prefix}{name} is unknown; {hint}")


def explain(error: ValidationError, section: str) -> str:
    """One line for the first thing that pydantic found wrong."""
    first = error.errors()[0]
    location = first["loc"][:2]  # a union adds the names of its members
    name = ".".join((section, *map(str, location)))
    if first["type"] == "missing":
        hint = "give it a value in [trial] or a range in [search]" if section == "trial" else "give it a value"
        return f"{name} is missing; {hint}"
    if first["type"] == "value_error":
        return f"{section}.{first['ctx']['error']}"
    return f"{name} is {show(first['input'])}; it must be {allowed(first)}"


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text in quotes",
    "bool": "true, false, a number or text",  # only method_options may be true or false
    "model": "a table",
    "dict": "a table",
    "finite": "a finite number",
}
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def allowed(error: Any) -> str:
    """What pydantic would have accepted, in words that go on from "it must be"."""
    context: dict[str, Any] = error.get("ctx", {})
    for key, words in _LIMITS.items():
        if key in context:
            return f"{words} {context[key]:g}"
    if "expected" in context:
        return str(context["expected"]).replace("'", '"')
    return _TYPES.get(error["type"].partition("_")[0], str(error["msg"]))


def show(value: Any) -> str:
    """A value as it stands in a TOML file, near enough."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)
