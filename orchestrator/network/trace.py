"""One symbolic forward pass: every operator a model runs, with the channels that its tensors carry.

The model runs once on meta tensors under a dispatch mode, so whatever Python it contains is simply followed. Rules
(rules.py) say how labels flow through each operator; here they are collected: equalities, frozen and inexact labels,
and every convolution or linear call. Nothing is solved here: coupling.py does that.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from orchestrator.network import labels as lb
from orchestrator.record import InvalidInput

Example = Tensor | tuple[Any, ...]
Role = Literal["made", "read"]
WILD = -1  # in a replay: the label of what no parameter makes (inputs, padding); fits every frozen channel


class UnsupportedModel(InvalidInput):
    """A model that cannot be followed at all: it does not run, or not on meta tensors."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A tensor that is a parameter, perhaps with its dimensions permuted: dimension d is `dims[d]` of `name`."""

    name: str
    dims: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One convolution or linear call. flops at batch 1 = positions x (kept size of dim 0) x (kept size of dim 1)."""

    module: str
    weight: str
    positions: int  # output positions x kernel elements, per picture


@dataclass(frozen=True, kw_only=True)
class Note:
    """Labels that something was found out about, and the reader's words for it."""

    labels: Tensor
    reason: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """An operator that ran: what it is, who called it, and which labels its result carries."""

    operator: str
    module: str
    labels: Tensor

    @property
    def place(self) -> str:
        return f"{self.operator}, called from {self.module or 'the model itself'}"


@dataclass(kw_only=True)
class Site:
    """An operator that takes a channel axis apart. Its alternatives are hypotheses about what the code fixes."""

    step: int
    alternatives: int
    labels: Tensor


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
    sites: dict[int, Site] = field(default_factory=dict)
    axes: dict[str, list[Tensor | None]] = field(default_factory=dict)
    elements: dict[str, Tensor] = field(default_factory=dict)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)  # parameters in the order of their first use


class PassFailed(Exception):
    """An operator raised in a replay; `step` tells where, `labels` what its operands carried."""

    def __init__(self, step: Step, cause: BaseException) -> None:
        super().__init__(f"{step.place}: {cause}")
        self.step = step


class BrokenRule(AssertionError):
    """A rule raised: a mistake of ours, never to be taken for one of the model's."""


class Trace(TorchDispatchMode):
    """Follows one forward pass. `seeds` (a replay on a cut model) gives the labels of parameters in advance."""

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        choices: Mapping[int, int],
        seeds: Recording | None = None,
    ) -> None:
        super().__init__()
        from orchestrator.network.rules import RULES, pointwise

        self.rules: Mapping[Any, Callable[[Trace, Any], None]] = RULES
        self.pointwise = pointwise
        self.recording = Recording(batch=batch)
        self.choices = choices
        self.seeds = seeds
        self.names = {id(t): n for n, t in [*model.named_parameters(), *model.named_buffers()]}
        self.modules = {id(m): n for n, m in model.named_modules()}
        self.parameters = dict([*model.named_parameters(), *model.named_buffers()])
        self.stack: list[str] = []
        self.known: dict[int, tuple[Tensor, Tensor | Axes]] = {}

    # -- labels of tensors ---------------------------------------------------------------------------------------

    def fresh(self, count: int) -> Tensor:
        if self.seeds is not None:
            return torch.full((count,), WILD, dtype=torch.int64)
        start = self.recording.count + 1
        self.recording.count += count
        return torch.arange(start, start + count)

    def value(self, tensor: Tensor) -> Tensor | Axes:
        """Labels of an activation, or the axes of a parameter."""
        known = self.known.get(id(tensor))
        if known is not None:
            return known[1]
        name = self.names.get(id(tensor))
        if name is not None:
            return Axes(name=name, dims=tuple(range(tensor.ndim)))
        return lb.blank(tensor.shape)

    def labels(self, tensor: Tensor) -> Tensor:
        """Labels of any tensor, element by element."""
        value = self.value(tensor)
        if isinstance(value, Axes):
            return self._elements(value.name).permute(value.dims)
        return value

    def is_parameter(self, tensor: Tensor) -> bool:
        return isinstance(self.value(tensor), Axes)

    def axis(self, axes: Axes, dim: int, role: Role) -> Tensor:
        """[n] labels along one dimension of a weight, which makes or reads these channels."""
        self._used(axes.name)
        own = axes.dims[dim]
        self.recording.roles.setdefault((axes.name, own), role)
        parameter = self.parameters[axes.name]
        vectors = self.recording.axes.setdefault(axes.name, [None] * parameter.ndim)
        if vectors[own] is None:
            if axes.name in self.recording.elements and parameter.ndim > 1:
                self.freeze(self.recording.elements[axes.name], f"{axes.name} is used as a weight and by element")
            seeded = self.seeds.axes.get(axes.name) if self.seeds else None
            found = seeded[own] if seeded else None
            vectors[own] = found if found is not None else self.fresh(parameter.shape[own])
        vector = vectors[own]
        assert vector is not None
        return vector

    def _elements(self, name: str) -> Tensor:
        self._used(name)
        parameter = self.parameters[name]
        if name not in self.recording.elements:
            seeded = self.seeds.elements.get(name) if self.seeds else None
            found = seeded if seeded is not None else self.fresh(parameter.numel()).reshape(parameter.shape)
            self.recording.elements[name] = found
            if name in self.recording.axes:
                self.freeze(found, f"{name} is used as a weight and by element")
                for vector in self.recording.axes[name]:
                    if vector is not None:
                        self.freeze(vector, f"{name} is used as a weight and by element")
        return self.recording.elements[name]

    def _used(self, name: str) -> None:
        if name not in self.recording.axes and name not in self.recording.elements:
            self.recording.order.append(name)

    def set(self, tensor: Tensor, value: Tensor | Axes) -> None:
        if isinstance(value, Tensor):
            assert value.shape == tensor.shape, (value.shape, tensor.shape)
        self.known[id(tensor)] = (tensor, value)  # the tensor is kept alive, so that its id stays its own

    # -- what rules find out -------------------------------------------------------------------------------------

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Two label tensors (broadcastable) mean the same channels, wherever both have one."""
        ndim = max(a.ndim, b.ndim)
        a, b = (t.reshape((1,) * (ndim - t.ndim) + tuple(t.shape)) for t in (a, b))
        a, b = torch.broadcast_tensors(lb.core(a), lb.core(b))
        differ = (a != b) & (a != 0) & (b != 0)
        if differ.any():
            self.recording.pairs.append((a[differ], b[differ]))
            self.recording.pair_steps.append(len(self.recording.steps))

    def freeze(self, labels: Tensor, reason: str) -> None:
        self._note(self.recording.frozen, labels, reason)

    def inexact(self, labels: Tensor, reason: str) -> None:
        self._note(self.recording.inexact, labels, reason)

    def _note(self, notes: list[Note], labels: Tensor, reason: str) -> None:
        found = lb.core(labels).flatten()
        found = found[found > 0].unique()
        if found.numel():
            where = self.stack[-1] if self.stack else ""
            notes.append(Note(labels=found, reason=f"{where}: {reason}" if where else reason))

    def choice(self, labels: Tensor, alternatives: int) -> int:
        """Which hypothesis to follow at this operator: 0 at first, the next one after each that did not hold."""
        step = len(self.recording.steps)
        chosen = min(self.choices.get(step, 0), alternatives - 1)
        self.recording.sites[step] = Site(step=step, alternatives=alternatives, labels=lb.core(labels).unique())
        return chosen

    def call(self, axes: Axes, positions: int) -> None:
        """A convolution or linear call: `positions` = output positions x kernel elements over the whole batch."""
        where = self.stack[-1] if self.stack else ""
        self.recording.calls.append(Call(module=where, weight=axes.name, positions=positions // self.recording.batch))

    # -- following the pass --------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        where = self.stack[-1] if self.stack else ""
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            found = [self._seen(t) for t in tensors_in((args, kwargs))]
            labels = torch.cat(found).unique() if found else torch.zeros(0, dtype=torch.int64)
            raise PassFailed(Step(operator=str(func), module=where, labels=labels), error) from error
        rule = self.rules.get(func) or self.rules.get(func.overloadpacket)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = self.pointwise
        try:
            (rule or unknown)(self, Op(func=func, args=args, kwargs=kwargs, out=out))
        except Exception as error:
            raise BrokenRule(f"the rule for {func}, called from {where or 'the model itself'}: {error}") from error
        values = [self.value(t) for t in tensors_in(out)]
        self._step(short_name(func), where, [v for v in values if isinstance(v, Tensor)])
        return out

    def _step(self, operator: str, module: str, values: Sequence[Tensor]) -> None:
        found = [lb.core(v).flatten() for v in values]
        labels = torch.cat(found).unique() if found else torch.zeros(0, dtype=torch.int64)
        self.recording.steps.append(Step(operator=operator, module=module, labels=labels))

    def run(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        """One forward pass. Raises PassFailed at the operator that did, UnsupportedModel if none did."""
        for tensor in tensors_in(inputs):
            label = self.fresh(1)
            self.set(tensor, label.reshape((1,) * tensor.ndim).expand(tensor.shape))
            self.freeze(label, "the model's input")
        enter = register_module_forward_pre_hook(self._enter)
        leave = register_module_forward_hook(self._leave, always_call=True)
        try:
            with torch.no_grad(), self:
                out = model(*inputs)
        finally:
            enter.remove()
            leave.remove()
        self.stack.clear()
        results = [self.labels(t) for t in tensors_in(out)]
        for labels in results:
            self.freeze(labels, "the model's output")
        self._step("output", "", results)

    def _seen(self, tensor: Tensor) -> Tensor:
        """Labels that a tensor already carries, without giving any to a parameter that has none yet."""
        value = self.value(tensor)
        if isinstance(value, Tensor):
            return lb.core(value).unique()
        source = self.seeds or self.recording
        vectors = [v for v in source.axes.get(value.name, []) if v is not None]
        vectors += [source.elements[value.name].flatten()] if value.name in source.elements else []
        return torch.cat(vectors).unique() if vectors else torch.zeros(0, dtype=torch.int64)

    def _enter(self, module: nn.Module, _: Any) -> None:
        self.stack.append(self.modules.get(id(module), type(module).__name__))

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.stack.pop()


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator as it ran: what a rule gets to see."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def name(self) -> str:
        return short_name(self.func)

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)


def short_name(func: Any) -> str:
    """aten.split.Tensor -> aten.split"""
    return str(func.overloadpacket)


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def unknown(trace: Trace, op: Op) -> None:
    """An operator without a rule freezes what it touches."""
    touched = tensors_in((op.args, op.kwargs))
    for tensor in touched:
        trace.freeze(trace.labels(tensor), f"no rule for {op.name}")
    if any(lb.core(trace.labels(t)).any() for t in touched):
        for tensor in tensors_in(op.out):
            label = trace.fresh(1)
            trace.set(tensor, label.reshape((1,) * tensor.ndim).expand(tensor.shape))
            trace.freeze(label, f"no rule for {op.name}")


def record(
    model: nn.Module,
    example: Example,
    choices: Mapping[int, int],
    seeds: Recording | None = None,
) -> Recording:
    """Follow a model (on meta tensors already) in its present mode.

    Raises UnsupportedModel if it does not run; in a replay (with seeds) PassFailed, which says where.
    """
    inputs, batch = meta_inputs(example)
    trace = Trace(model, batch, choices, seeds)
    try:
        trace.run(model, inputs)
    except PassFailed as error:
        if seeds is not None:
            raise
        message = f"{type(model).__name__} does not run on the example: {error}"
        raise UnsupportedModel(message.splitlines()[0]) from error
    except BrokenRule:
        raise
    except Exception as error:
        if seeds is not None:
            last = trace.recording.steps[-1]
            raise PassFailed(last, error) from error
        message = f"{type(model).__name__} does not run on the example: {error}"
        raise UnsupportedModel(message.splitlines()[0]) from error
    return trace.recording


def as_meta(model: nn.Module) -> nn.Module:
    """A copy of a model whose tensors have shapes but no data; ties are kept, memory is not touched."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    loose = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    for tensor in [*model.buffers(), *loose]:
        memo.setdefault(id(tensor), torch.empty_like(tensor, device="meta"))
    return copy.deepcopy(model, memo)


def meta_inputs(example: Example) -> tuple[tuple[Any, ...], int]:
    """The example without data, with a batch of at least two (norms in training mode need two)."""
    inputs = example if isinstance(example, tuple) else (example,)
    sizes = [t.shape[0] for t in tensors_in(inputs) if t.ndim]
    if not sizes:
        raise UnsupportedModel("the example holds no tensor with a batch dimension")
    batch = sizes[0]
    wanted = max(2, batch)

    def empty(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        shape = (wanted, *leaf.shape[1:]) if leaf.ndim and leaf.shape[0] == batch else tuple(leaf.shape)
        return torch.empty(shape, dtype=leaf.dtype, device="meta")

    return tree_map(empty, inputs), wanted
