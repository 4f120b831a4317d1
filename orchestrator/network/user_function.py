"""The user's own functions, named `package.module:function`: networks and data sets come this way."""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from orchestrator.record import InvalidInput

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_reference(name: str) -> bool:
    """Whether a name has the form `package.module:function`."""
    return _REFERENCE.fullmatch(name) is not None


def find(reference: str) -> Callable[..., Any]:
    """Import a user's function. Modules in the current folder are found, as `python -m` would find them."""
    module_name, function_name = reference.split(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise InvalidInput(f"{reference}: {module_name} cannot be imported: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        here = ", ".join(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
        raise InvalidInput(f"{reference}: {module_name} has no function {function_name}; it has {here or 'none'}")
    found: Callable[..., Any] = function
    return found


def call(reference: str, **offered: Any) -> Any:
    """Call a user's function with those of the offered arguments that its signature takes by name.

    What the function itself raises passes through, so that its traceback is seen.
    """
    function = find(reference)
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [p.name for p in parameters if _is_required(p) and p.name not in offered]
    if unknown:
        raise InvalidInput(f"{reference}: argument {unknown[0]} is not offered; offered are {', '.join(offered)}")
    names = set(offered) if takes_all else {p.name for p in by_name}
    return function(**{name: value for name, value in offered.items() if name in names})


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return not variadic and parameter.default is parameter.empty
