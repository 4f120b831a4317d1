"""How a point is made again and taken out: the commands and the search space that a page prints for it.

A search varies something, so the space of a single point leaves open whether its one trial goes one iteration further
than the point: it passes the point either way. All else that determines the point's key is fixed.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.record import TrialRecord, setting_of

MAIN = ("regularization_weight", "pruning_ratio", "iterations")
BUILT_IN = ("torchvision", "timm", "imagefolder")  # what stands before a colon without being a module of the user's
TABLES = ("dense", "sparse", "recovery", "method_options")


def varied_names(definition: Mapping[str, Any] | None) -> list[str]:
    """The dotted names of all that a study varies, from the definition in its study.json."""
    return list((definition or {}).get("search", {}))


def other_settings(trials: Sequence[TrialRecord], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each stage, the values of the varied fields that a point does not hold itself, from the trials that ended."""
    others = [name for name in names if name not in (*MAIN, "model", "dataset", "method", "seed")]
    found: dict[str, dict[str, Any]] = {}
    if not others:
        return found
    for trial in trials:
        spec = trial.spec.model_dump(mode="json")
        values = {name: setting_of(spec, name) for name in others}
        for key in trial.stages:
            found.setdefault(key, values)
    return found


def space_template(definition: Mapping[str, Any] | None) -> list[str | dict[str, Any]] | None:
    """The search space of a single point, in pieces: text, and {"field": dotted name, "otherwise": value}.

    `otherwise` stands for what the dense model does not have; and, where a piece names its "method", for what points of
    other methods do not have. The fields "low" and "high" are those of iterations.
    None where the study's file does not say what a trial is made of.
    """
    if not definition or not definition.get("trial"):
        return None
    fixed, searched = definition["trial"], definition.get("search", {})
    values = {**_flat(fixed), **{name: _varied(name, dimension) for name, dimension in searched.items()}}
    values.pop("iterations", None)
    pieces: list[str | dict[str, Any]] = []
    of_methods = (name.rpartition(".")[0] for name in sorted(values) if name.count(".") == 2)
    for table in dict.fromkeys((None, *TABLES, *of_methods)):
        inside = {n: v for n, v in values.items() if (n.rpartition(".")[0] or None) == table}
        lines = {name.rpartition(".")[2]: value for name, value in inside.items() if value is not None}
        if lines:
            pieces.append(f"[trial{'' if table is None else f'.{table}'}]\n")
        for name, value in lines.items():
            pieces += [f"{name} = ", value if isinstance(value, dict) else _toml(value), "\n"]
        pieces.append("\n" if lines else "")
    pieces += ["[search]\niterations = { low = ", {"field": "low"}, ", high = ", {"field": "high"}, " }\n\n"]
    pieces += ['[budget]\ntrials = 1\n\n[stopping]\nrule = "none"\n']
    return list(_joined(pieces))


def export_command(study: object) -> str:
    """The start of the command that takes a point of the frontier out; a page adds the budget and the folder."""
    return shlex.join(["orchestrator", "export", str(study)])


def allowances(*references: str) -> dict[str, str]:
    """What the command needs besides for models and data sets that are the user's own functions, by their names."""
    own = [name for name in references if ":" in name and name.partition(":")[0] not in BUILT_IN]
    return {name: shlex.join(["--allow-code", name]) for name in own}


def search_command(file: object, storage: object) -> str:
    """The command that goes on with a study; `file` is its search space."""
    return shlex.join(["orchestrator", "search", str(file), "--storage", str(storage)])


def _flat(fixed: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in fixed.items() if name not in TABLES}
    for table in TABLES:
        for name, value in fixed.get(table, {}).items():
            inner = {f".{option}": one for option, one in value.items()} if isinstance(value, dict) else {"": value}
            plain |= {f"{table}.{name}{rest}": one for rest, one in inner.items()}
    return plain


def _varied(name: str, dimension: Mapping[str, Any]) -> dict[str, Any]:
    of_method = {"method": name.split(".")[1]} if name.count(".") == 2 else {}
    return {"field": name, "otherwise": _some(dimension), **of_method}


def _some(dimension: Mapping[str, Any]) -> Any:
    """Any one value that a dimension can take."""
    return next(iter(dimension.get("values") or dimension.get("choices") or [dimension.get("low")]))


def _toml(value: Any) -> str:
    """What a search space has in it is a number, a truth or a text, which TOML writes as JSON does."""
    return json.dumps(value, ensure_ascii=False)


def _joined(pieces: Sequence[str | dict[str, Any]]) -> Iterator[str | dict[str, Any]]:
    """Neighbouring texts as one."""
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        else:
            if text:
                yield text
            yield piece
            text = ""
    yield text
