"""Pruning methods: one file a published method, one line in METHODS."""

import difflib
from collections.abc import Mapping

from pydantic import ValidationError

from orchestrator.methods.agent import CONDITIONAL_AGENT
from orchestrator.methods.compensation import COMPENSATION
from orchestrator.methods.feature_flow import FEATURE_FLOW
from orchestrator.methods.filter_norm import FILTER_NORM
from orchestrator.methods.fisher import FISHER
from orchestrator.methods.lasso import LASSO
from orchestrator.methods.method import Ahead, Budget, Method, Options, Penalty, Subject, by_score
from orchestrator.methods.oicsr import OICSR, SEPARATED
from orchestrator.methods.pfec import PFEC
from orchestrator.methods.random_scores import RANDOM
from orchestrator.methods.slimming import SLIMMING
from orchestrator.methods.taylor import TAYLOR
from orchestrator.record import InvalidInput, Option

METHODS: dict[str, Method] = {
    "oicsr": OICSR,
    "separated_group_lasso": SEPARATED,
    "filter_norm": FILTER_NORM,
    "compensation": COMPENSATION,
    "feature_flow": FEATURE_FLOW,
    "pfec": PFEC,
    "slimming": SLIMMING,
    "taylor": TAYLOR,
    "fisher": FISHER,
    "random": RANDOM,
    "lasso": LASSO,
    "conditional_agent": CONDITIONAL_AGENT,
}


class UnknownMethod(InvalidInput):
    """A method's name that is not in METHODS."""


def method_named(name: str) -> Method:
    """Raises UnknownMethod with what is allowed."""
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UnknownMethod(f"method is {name!r}{hint}; it must be one of {', '.join(METHODS)}")
    return METHODS[name]


def options_of(method: Method, given: Mapping[str, Option]) -> Options:
    """A method's switches, checked. Raises InvalidInput that names switch and method, and what is allowed."""
    try:
        return method.options.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            allowed = ", ".join(method.options.model_fields)
            raise InvalidInput(f"method_options.{name}: {method.name} has no such option; it has {allowed}") from None
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise InvalidInput(f"method_options.{name} of {method.name} is {first['input']!r}; {message}") from None


__all__ = [
    "METHODS",
    "Ahead",
    "Budget",
    "Method",
    "Options",
    "Penalty",
    "Subject",
    "UnknownMethod",
    "by_score",
    "method_named",
    "options_of",
]
