"""A study of several methods: which settings mean something to which of them.

[trial.method_options]           switches of all the study's methods
[trial.method_options.NAME]      of one method; what it says goes before what is said for all
[search.method_options.NAME]     the same, varied

Trials that differ in nothing that their method looks at are the same trial, whatever the sampler drew for the rest.
"""

from collections.abc import Collection
from typing import Any

from orchestrator.search.messages import FieldError, known

METHOD, OPTIONS, WEIGHT = "method", "method_options", "regularization_weight"


def has_penalty(method: str) -> bool:
    """Whether regularization_weight means something to a method; of one that there is not, another check tells."""
    from orchestrator.methods import METHODS  # not before a space needs it: it brings torch along

    return method not in METHODS or METHODS[method].penalty is not None


def matters(method: str, name: str) -> bool:
    """Whether a setting, by dotted name, can change a trial of this method."""
    table, _, field = name.partition(".")
    if table == OPTIONS:
        return field.rpartition(".")[0] in ("", method)
    return name != WEIGHT or has_penalty(method)


def notes_on(methods: Collection[str], varied: Collection[str]) -> list[str]:
    """What is to be said before a search over settings of which some mean nothing to some method."""
    if WEIGHT not in varied:
        return []
    free = [method for method in methods if not has_penalty(method)]
    names = " and ".join(filter(None, (", ".join(free[:-1]), *free[-1:])))
    return [f"{WEIGHT} means nothing to {names}: trials that differ in it alone are computed once"] if free else []


def is_table(value: Any, section: str) -> bool:
    """Whether an entry of method_options holds the switches of a method, and is not a switch, or a range of it."""
    return isinstance(value, dict) and (section == "trial" or any(isinstance(one, dict) for one in value.values()))


def check_methods(methods: Collection[str], fixed: Any, varied: Collection[str]) -> None:
    """Raises FieldError for switches that no method has, or not the one that they are meant for.

    methods: of the study. fixed: [trial.method_options] as it stands in the file. varied: dotted names of [search].
    """
    tables = {name: table for name, table in fixed.items() if isinstance(table, dict)}
    own = [name.split(".")[1:] for name in varied if name.count(".") == 2]
    for method, option in [*own, *((method, option) for method, table in tables.items() for option in table)]:
        section = "search" if [method, option] in own else "trial"
        _check_own(methods, method, option, section)
    plain = [name for name in fixed if name not in tables]
    shared = [name.partition(".")[2] for name in varied if name.startswith(f"{OPTIONS}.") and name.count(".") == 1]
    for option in shared:
        alone = [one for one in methods if option in tables.get(one, {}) or [one, option] in own]
        if alone:
            raise FieldError(
                f"search.{OPTIONS}.{option} varies for all methods, and {OPTIONS}.{alone[0]}.{option} is of one; "
                "keep one of them"
            )
    if len(methods) > 1:
        for section, option in [*(("trial", name) for name in plain), *(("search", name) for name in shared)]:
            _check_shared(methods, option, section)


def _check_own(methods: Collection[str], method: str, option: str, section: str) -> None:
    from orchestrator.methods import METHODS

    known(method, METHODS, prefix=f"{section}.{OPTIONS}.")
    known(option, METHODS[method].options.model_fields, prefix=f"{section}.{OPTIONS}.{method}.")
    if section == "search" and method not in methods:
        raise FieldError(
            f"search.{OPTIONS}.{method}.{option} varies, but no trial has the method {method}; "
            f"the study's: {', '.join(methods)}"
        )


def _check_shared(methods: Collection[str], option: str, section: str) -> None:
    """In a study of several methods, what is said for all must be a switch of each."""
    from orchestrator.methods import METHODS

    known_ones = [METHODS[method] for method in methods if method in METHODS]
    without = [method.name for method in known_ones if option not in method.options.model_fields]
    having = [method.name for method in known_ones if option in method.options.model_fields]
    if without:
        where = f"; give it to those that have it, in [{section}.{OPTIONS}.{having[0]}]" if having else ""
        raise FieldError(f"{section}.{OPTIONS}.{option}: {without[0]} has no such option{where}")
