"""Copies of networks, faster than copy.deepcopy: a module is mostly numbers, words and other modules."""

import copy
from collections import OrderedDict
from functools import cache
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeVar

import torch
from torch import nn

SomeModule = TypeVar("SomeModule", bound=nn.Module)

SHARED = (int, float, str, bool, type(None), type, FunctionType, BuiltinFunctionType, torch.dtype, torch.device)
PLAIN = {int, float, str, bool, type(None)}
OWN = {"_parameters", "_buffers", "_modules"}
CUSTOM = ("__deepcopy__", "__copy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__", "__slots__")


def copied(model: SomeModule, memo: dict[int, Any]) -> SomeModule:
    """What copy.deepcopy(model, memo) gives: whatever memo names by its id is put in the original's place.

    Modules that hold nothing but plain values, parameters and other modules are copied directly, children first; all
    others, with hooks, tensors or objects among their attributes, by deepcopy.
    """
    for module in reversed(list(model.modules())):
        if id(module) not in memo:
            memo[id(module)] = _copied(module, memo) if _is_plain(module, memo) else copy.deepcopy(module, memo)
    found: SomeModule = memo[id(model)]
    return found


def _is_plain(module: nn.Module, memo: dict[int, Any]) -> bool:
    return not _has_custom_copy(type(module)) and all(  # type: ignore[arg-type]  # a class is hashable
        _is_simple(value) or _are_copied(name, value, memo) for name, value in vars(module).items()
    )


@cache
def _has_custom_copy(kind: Any) -> bool:
    return any(name in vars(base) for base in kind.__mro__ if not _is_pytorchs(base) for name in CUSTOM)


def _is_simple(value: Any) -> bool:
    kind = type(value)
    return kind in PLAIN or _is_shared(value) or _is_empty(value) or (kind is list and all(map(_is_shared, value)))


def _are_copied(name: str, value: Any, memo: dict[int, Any]) -> bool:
    """Whether these are a module's parameters, buffers or modules, with a copy of each in memo."""
    if name in OWN:
        return all(part is None or id(part) in memo for part in value.values())
    return name == "_non_persistent_buffers_set"


def _is_pytorchs(kind: type) -> bool:
    return kind is object or kind.__module__.startswith("torch.nn.modules.")


def _is_shared(value: Any) -> bool:
    return isinstance(value, SHARED) or (type(value) is tuple and all(map(_is_shared, value)))


def _is_empty(value: Any) -> bool:
    """What PyTorch keeps hooks in."""
    return type(value) in (dict, OrderedDict) and not value


def _copied(module: SomeModule, memo: dict[int, Any]) -> SomeModule:
    attributes = dict(vars(module))
    for name, value in attributes.items():
        if name in OWN:
            attributes[name] = {key: None if part is None else memo[id(part)] for key, part in value.items()}
        elif isinstance(value, (list, dict, set)):
            attributes[name] = type(value)(value)
    replica: SomeModule = object.__new__(type(module))
    vars(replica).update(attributes)
    return replica
