"""What one symbolic pass has shown: plain data between the rules that find it out and the solver that numbers it."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Role = Literal["made", "read"]
SiteKey = tuple[str, str, int]
PLAIN = {int, float, str, bool, type(None), torch.dtype, torch.device}  # nearly all that is no tensor
ParameterDim = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A tensor that is a parameter, perhaps permuted or repeated: dimension d is `dims[d]` of `name`, or new if -1."""

    name: str
    dims: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.dims)

    def own(self, dim: int) -> int:
        return self.dims[dim]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One convolution or linear call. flops at batch 1 = positions x (kept size of dim 0) x (kept size of dim 1).

    A weight that is no parameter stands as "": its layer's flops are all in `positions`, whatever is cut.
    A layer that runs along channels (a linear layer over tokens' places, a kernel over channels) runs so often at each
    of those in `along`: their labels in a recording, their channels (-1: fixed) in a coupling.
    """

    module: str
    weight: str
    positions: int  # output positions x kernel elements, per picture
    along: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Note:
    """Labels that something was found out about, and the reader's words for it."""

    labels: Tensor
    reason: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """An operator that ran: what it is, who called it, which labels its results carry, and the numbers it used."""

    operator: str
    module: str
    results: tuple[Tensor, ...]
    numbers: tuple[Hashable, ...] = ()  # of an element-wise operator: they must not change with a width

    @property
    def labels(self) -> Tensor:
        """All labels of the results, in no order, some more than once."""
        return torch.cat([no_labels(), *(result.flatten() for result in self.results)])

    @property
    def place(self) -> str:
        return f"{self.operator}, called from {self.module or 'the model itself'}"


@dataclass(frozen=True, kw_only=True)
class Site:
    """An operator that takes a channel axis apart. Its alternatives are hypotheses about what the code fixes."""

    key: SiteKey  # (module, operator, how many times before in this module): the same in every pass
    code: SiteKey  # the same with the module's class: the same for every module of this code
    step: int
    alternatives: tuple[str, ...]
    chosen: str
    labels: Tensor

    @property
    def open(self) -> tuple[str, ...]:
        """The alternatives that were not tried yet."""
        return self.alternatives[self.alternatives.index(self.chosen) + 1 :]


@dataclass(kw_only=True)
class Recording:
    """What one pass has shown. Labels run from 1 to `count`."""

    batch: int
    count: int = 0
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pair_steps: list[int] = field(default_factory=list)
    frozen: list[Note] = field(default_factory=list)
    inexact: list[Note] = field(default_factory=list)
    summed: list[Tensor] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    sites: dict[SiteKey, Site] = field(default_factory=dict)
    axes: dict[str, list[Tensor | None]] = field(default_factory=dict)
    elements: dict[str, Tensor] = field(default_factory=dict)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)  # parameters in the order of their first use
    weights: set[str] = field(default_factory=set)  # parameters that weights are computed from
    bare: set[ParameterDim] = field(default_factory=set)  # of these, what cannot be zeroed: something divides by it
    depthwise: set[str] = field(default_factory=set)  # weights of depthwise convolutions


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator as it ran: what a rule gets to see."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    operands: list[Tensor]  # among the arguments, however deep
    outs: list[Tensor]

    @property
    def name(self) -> str:
        return short_name(self.func)

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)


def layer_of(parameter: str) -> str:
    """The module whose parameter this is; torch's parametrizations lie inside the module that they serve."""
    outer, found, _ = parameter.partition(".parametrizations.")
    return outer if found else parameter.rpartition(".")[0]


def short_name(func: Any) -> str:
    """aten.split.Tensor -> aten.split"""
    return str(func.overloadpacket)


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of a value, of lists, dicts and dataclasses in it, in their order."""
    if isinstance(tree, Tensor):
        return [tree]
    branches: Any = ()
    if isinstance(tree, (tuple, list)):
        branches = tree
    elif type(tree) in PLAIN:
        return []
    elif isinstance(tree, Mapping):
        branches = tree.values()
    elif is_dataclass(tree) and not isinstance(tree, type):
        branches = [getattr(tree, each.name) for each in fields(tree)]
    found: list[Tensor] = []
    for branch in branches:
        if isinstance(branch, Tensor):
            found.append(branch)
        elif type(branch) not in PLAIN:
            found += tensors_in(branch)
    return found


def no_labels() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)
