"""One symbolic forward pass: every operator a model runs, with the channels that its tensors carry.

The model runs once on meta tensors under a dispatch mode, so whatever Python it contains is simply followed. Rules
(rules.py) say how labels flow through each operator; here they are collected: equalities, frozen and inexact labels,
and every convolution or linear call. Nothing is solved here: coupling.py does that.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.network import grids, meta
from orchestrator.network import labels as lb
from orchestrator.network.grids import Grid
from orchestrator.network.meta import Example, UnsupportedModel
from orchestrator.network.recording import (
    Axes,
    Call,
    Note,
    Op,
    Recording,
    Role,
    Site,
    SiteKey,
    Step,
    no_labels,
    short_name,
    tensors_in,
)
from orchestrator.network.zeros import finite_at_zero, keeps_zero, makes_zero, zero_at_zero

ONE_AT_A_TIME = threading.Lock()  # passes, among the threads of a process: PyTorch's hooks on all modules are shared
Value = Tensor | Axes | Grid
WILD = -1  # in a replay: the label of what no parameter makes (inputs, padding); fits every frozen channel


class PassFailed(Exception):
    """An operator raised in a replay: the `index`-th, which is `step`; its labels are what its operands carried."""

    def __init__(self, step: Step, index: int, cause: BaseException) -> None:
        super().__init__(f"{step.place}: {cause}")
        self.step = step
        self.index = index


class BrokenRule(AssertionError):
    """A rule raised: a mistake of ours, never to be taken for one of the model's."""


class Trace(TorchDispatchMode):
    """Follows one forward pass. `seeds` (a replay on a cut model) gives the labels of parameters in advance."""

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        choices: Mapping[SiteKey, str],
        weights: frozenset[str] = frozenset(),
        seeds: Recording | None = None,
    ) -> None:
        TorchDispatchMode.__init__(self)
        from orchestrator.network.rules import RULES
        from orchestrator.network.rules_elements import pointwise

        self.rules: Mapping[Any, Callable[[Trace, Op], None]] = RULES
        self.pointwise = pointwise
        self.recording = Recording(batch=batch, weights=set(weights))
        self.choices = choices
        self.weights = weights  # parameters that are followed as grids
        self.seeds = seeds
        self.parameters = dict([*model.named_parameters(), *model.named_buffers()])
        self.names = {id(tensor): name for name, tensor in self.parameters.items()}
        self.modules = {id(m): (name, type(m).__name__) for name, m in model.named_modules()}
        self.stack: list[tuple[str, str]] = []  # (name, class) of the modules that are running
        self.known: dict[int, tuple[Tensor, Value]] = {}
        self.sources: dict[int, frozenset[str] | None] = {}  # parameters that a tensor is computed from; None: inputs
        self.alive: set[int] = set()  # tensors that are not zero where their channel's parameters are
        self.passed_sites: Counter[tuple[str, str]] = Counter()

    # -- labels of tensors ---------------------------------------------------------------------------------------

    def fresh(self, count: int) -> Tensor:
        if self.seeds is not None:
            return torch.full((count,), WILD, dtype=torch.int64)
        start = self.recording.count + 1
        self.recording.count += count
        return torch.arange(start, start + count)

    def value(self, tensor: Tensor) -> Value:
        """Labels of an activation, the axes of a parameter, or the grid of a computed weight."""
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
        if isinstance(value, Grid) or (isinstance(value, Axes) and value.name in self.weights):
            return grids.spread(self, tensor)
        if isinstance(value, Axes):
            found = self._elements(value.name).permute([d for d in value.dims if d >= 0])
            for new in (d for d, own in enumerate(value.dims) if own < 0):
                found = found.unsqueeze(new)
            return found.expand(tensor.shape)
        return value

    def is_parameter(self, tensor: Tensor) -> bool:
        return isinstance(self.value(tensor), (Axes, Grid))

    def weight(self, tensor: Tensor, dims: tuple[int, int]) -> Axes | Grid | None:
        """A layer's weight, whose channels run along `dims`. None if nothing is known of how it was computed.

        What it was computed from is noted then, so that the next pass follows it.
        """
        value = self.value(tensor)
        if isinstance(value, Axes):
            return value
        if isinstance(value, Grid):
            return grids.weight_of(self, value, tensor, dims)
        self.recording.weights |= self.sources_of(tensor) or frozenset()
        return None

    def sources_of(self, tensor: Tensor) -> frozenset[str] | None:
        """The parameters that a tensor is computed from, none for a constant; None if pictures are in it."""
        name = self.names.get(id(tensor))
        return frozenset([name]) if name is not None else self.sources.get(id(tensor), frozenset())

    def axis(self, axes: Axes | Grid, dim: int, role: Role) -> Tensor:
        """[n] labels along one dimension of a weight, which makes or reads these channels."""
        if isinstance(axes, Grid):
            return grids.axis(self, axes, dim, role)
        own = axes.dims[dim]
        self.recording.roles.setdefault((axes.name, own), role)
        return self.along(axes.name, own)

    def reads(self, axes: Axes | Grid, dim: int, channels: Tensor) -> None:
        """A weight reads these channels ([n] labels) along one dimension; what reads a constant stays."""
        if isinstance(axes, Axes) and self._takes_over(axes.name, channels):
            self._used(axes.name)
            vectors = self.recording.axes.setdefault(axes.name, [None] * self.parameters[axes.name].ndim)
            if vectors[axes.dims[dim]] is None:
                vectors[axes.dims[dim]] = channels
        weight_in = self.axis(axes, dim, "read")
        if weight_in is not channels:
            self.unify(weight_in, channels)
            self.freeze(weight_in[(channels == 0).expand_as(weight_in)], "reads a constant")

    def acts_on(self, parameter: Tensor, channels: Tensor) -> None:
        """A parameter with an entry a channel, such as a bias or a norm's scale, acts on these channels, [n]."""
        name = self.names.get(id(parameter), "")
        plain = name and name not in self.weights and name not in self.recording.axes
        if plain and parameter.shape == channels.shape and self._takes_over(name, channels):
            self._used(name)
            self.recording.elements[name] = channels
        else:
            self.unify(self.labels(parameter), channels)

    def _takes_over(self, name: str, channels: Tensor) -> bool:
        """Whether a parameter may carry the very labels it meets: quicker than labels of its own, tied to them.

        Not in a replay, where its labels are given; not where it meets constants.
        """
        return self.seeds is None and name not in self.recording.elements and bool(channels.all())

    def along(self, name: str, own: int) -> Tensor:
        """[n] labels along one dimension of a parameter."""
        self._used(name)
        parameter = self.parameters[name]
        vectors = self.recording.axes.setdefault(name, [None] * parameter.ndim)
        vector = vectors[own]
        if vector is None:
            if name in self.recording.elements and parameter.ndim > 1:
                self.freeze(self.recording.elements[name], f"{name} is used as a weight and by element")
            seeded = self.seeds.axes.get(name) if self.seeds else None
            found = seeded[own] if seeded else None
            vector = vectors[own] = found if found is not None else self.fresh(parameter.shape[own])
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

    def set(self, tensor: Tensor, value: Value) -> None:
        if isinstance(value, Tensor):
            assert value.shape == tensor.shape, (value.shape, tensor.shape)
        self.known[id(tensor)] = (tensor, value)  # the tensor is kept alive, so that its id stays its own

    # -- what rules find out -------------------------------------------------------------------------------------

    @property
    def where(self) -> str:
        return self.stack[-1][0] if self.stack else ""

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Two label tensors (broadcastable) mean the same channels, wherever both have one."""
        a, b = lb.core(a), lb.core(b)
        if a.shape == b.shape and torch.equal(a, b):
            return
        a, b = torch.broadcast_tensors(a, b)
        differ = (a != b) & (a != 0) & (b != 0)
        if differ.any():
            self.recording.pairs.append((a[differ], b[differ]))
            self.recording.pair_steps.append(len(self.recording.steps))

    def freeze(self, labels: Tensor, reason: str) -> None:
        self._note(self.recording.frozen, labels, reason)

    def inexact(self, labels: Tensor, reason: str) -> None:
        self._note(self.recording.inexact, labels, reason)

    def _note(self, notes: list[Note], labels: Tensor, reason: str) -> None:
        if self.seeds is not None:
            return
        found = lb.core(labels).flatten()
        found = found[found > 0]
        if found.numel():
            notes.append(Note(labels=found, reason=f"{self.where}: {reason}" if self.where else reason))

    def choice(self, op: Op, labels: Tensor, alternatives: tuple[str, ...]) -> str:
        """Which hypothesis to follow at this operator: the first, or what was chosen since; in a replay, the same."""
        module, kind = self.stack[-1] if self.stack else ("", "")
        before = self.passed_sites[module, op.name]
        self.passed_sites[module, op.name] += 1
        key = (module, op.name, before)
        wanted = self.choices.get(key)
        if self.seeds is not None and key in self.seeds.sites:
            wanted = self.seeds.sites[key].chosen
        chosen = wanted if wanted in alternatives else alternatives[0]
        self.recording.sites[key] = Site(
            key=key,
            code=(kind, op.name, before),
            step=len(self.recording.steps),
            alternatives=alternatives,
            chosen=chosen,
            labels=lb.core(labels),
        )
        return chosen

    def is_depthwise(self, axes: Axes | Grid, groups: int, read: int) -> bool:
        """Whether a convolution reads one channel a group. A replay asks how it was before the cut."""
        known = self.seeds.axes.get(axes.name) if self.seeds is not None else None
        return known[axes.own(1)] is None if known else groups > 1 and read == groups

    def call(self, axes: Axes | Grid, places: Tensor, kernel: int = 1) -> None:
        """A convolution or linear call. places: labels of the places that it runs at, of all pictures together."""
        along = None
        core = lb.core(places)
        if core.numel() == 1:
            self._call_everywhere(axes, places.numel(), kernel)
            return
        found, counts = core.unique(return_counts=True)
        each = counts * (places.numel() // core.numel())
        if not (each % self.recording.batch).any():  # else what runs here is the same for every picture
            each //= self.recording.batch
        common = math.gcd(*each.tolist())
        if len(found) > 1:  # the places are channels themselves
            along = tuple(found.repeat_interleave(each // common).tolist())
        positions = kernel * common
        self.recording.calls.append(Call(module=self.where, weight=axes.name, positions=positions, along=along))

    def _call_everywhere(self, axes: Axes | Grid, places: int, kernel: int) -> None:
        shared = places % self.recording.batch  # what runs here is the same for every picture
        positions = kernel * (places if shared else places // self.recording.batch)
        self.recording.calls.append(Call(module=self.where, weight=axes.name, positions=positions))

    def fixed_call(self, products: int) -> None:
        """A call whose weight cannot be followed: `products` of all pictures together, at whatever widths."""
        self.recording.calls.append(Call(module=self.where, weight="", positions=products // self.recording.batch))

    def is_alive(self, tensor: Tensor) -> bool:
        """Whether a tensor may be other than zero at channels whose parameters are zero (behind a sigmoid, say)."""
        return id(tensor) in self.alive

    # -- following the pass --------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            out = meta.run(func, args, kwargs)
        except Exception as error:
            step = self._failed(func, tensors_in((args, kwargs)))
            raise PassFailed(step, len(self.recording.steps), error) from error
        if func._schema.is_mutable and out is not args[0] and isinstance(out, Tensor):
            out = args[0]  # a tensor of another device, written in place: meta.run wrote into a copy
        operands = tensors_in((args, kwargs) if kwargs else args)
        if func is torch.ops.aten.empty.memory_format:
            return out  # every batch norm asks for one; there is nothing to follow
        op = Op(func=func, args=args, kwargs=kwargs, out=out, operands=operands, outs=tensors_in(out))
        try:
            numbers = self._apply(op)
        except Exception as error:
            place = self.where or "the model itself"
            raise BrokenRule(f"the rule for {func}, called from {place}: {error}") from error
        results = [value for value in map(self.value, op.outs) if isinstance(value, Tensor)]
        self._step(op.name, results, numbers)
        return out

    def _apply(self, op: Op) -> tuple[Any, ...]:
        """Let the operator's rule say what it does to labels. Returns the numbers an element-wise operator used."""
        if isinstance(op.out, Tensor) and op.out.ndim == 0 and not op.out.is_floating_point():
            return ()  # a counter, such as batch norm's num_batches_tracked
        rule = self.rules.get(op.func) or self.rules.get(op.func.overloadpacket)
        if rule is None and torch.Tag.pointwise in op.func.tags:
            rule = self.pointwise
        elementwise = rule is self.pointwise
        if grids.concerns(self, op):
            rule = grids.follow
        (rule or unknown)(self, op)
        if self.seeds is None:
            self._note_alive(op, elementwise=rule is self.pointwise)
        self._note_sources(op)
        numbers = [*op.args, *op.kwargs.values()] if elementwise else []
        return tuple(number for number in numbers if isinstance(number, (int, float)))

    def _note_sources(self, op: Op) -> None:
        found = [self.sources_of(tensor) for tensor in op.operands]
        names = None if None in found else frozenset().union(*(f for f in found if f))
        for out in op.outs:
            self.known.setdefault(id(out), (out, self.value(out)))
            if id(out) not in self.names:
                self.sources[id(out)] = names

    def _note_alive(self, op: Op, *, elementwise: bool) -> None:
        outs = op.outs
        if elementwise and outs:
            known = [not self.is_alive(t) and bool(lb.core(self._present(t)).any()) for t in op.operands]
            zero = zero_at_zero(op, known)
            if not finite_at_zero(op, known):
                self.inexact(self.labels(outs[0]), f"{op.name} of a zero is not finite")
        else:
            zero = makes_zero(op) or (keeps_zero(op) and not any(map(self.is_alive, op.operands)))
        for out in outs:
            (self.alive.discard if zero else self.alive.add)(id(out))

    def _present(self, tensor: Tensor) -> Tensor:
        value = self.value(tensor)
        return self.labels(tensor) if isinstance(value, (Axes, Grid)) else value

    def _step(self, operator: str, results: Sequence[Tensor], numbers: tuple[Any, ...] = ()) -> None:
        cores = tuple(lb.core(labels) for labels in results)
        self.recording.steps.append(Step(operator=operator, module=self.where, results=cores, numbers=numbers))

    def run(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        """One forward pass. Raises PassFailed at the operator that did, anything else that the model's code raises."""
        for tensor in tensors_in(inputs):
            label = self.fresh(1)
            self.set(tensor, label.reshape((1,) * tensor.ndim).expand(tensor.shape))
            self.sources[id(tensor)] = None
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
        self._step("output", results)

    def _failed(self, func: Any, operands: Sequence[Tensor]) -> Step:
        """The operator that raised, with what its operands carried.

        Parameters count only if no activation carries anything: a layer does not fail for what it makes.
        """
        values = [self.value(operand) for operand in operands]
        found = [lb.core(value) for value in values if isinstance(value, Tensor)]
        if not any((labels > 0).any() for labels in found):
            found += [labels for value in values if isinstance(value, Axes) for labels in self._known_of(value.name)]
        return Step(operator=short_name(func), module=self.where, results=tuple(found))

    def _known_of(self, name: str) -> list[Tensor]:
        """Labels of a parameter, without giving any to one that has none yet."""
        source = self.seeds or self.recording
        return [*(v for v in source.axes.get(name, []) if v is not None), source.elements.get(name, no_labels())]

    def _enter(self, module: nn.Module, _: Any) -> None:
        self.stack.append(self.modules.get(id(module), ("", type(module).__name__)))

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if self.stack:
            self.stack.pop()


def unknown(trace: Trace, op: Op) -> None:
    """An operator without a rule freezes what it touches."""
    freeze_through(trace, op, f"no rule for {op.name}")


def freeze_through(trace: Trace, op: Op, reason: str) -> None:
    """Freeze all that an operator touches; its result is frozen too, if any operand carries channels."""
    touched = op.operands
    for tensor in touched:
        trace.freeze(trace.labels(tensor), reason)
    if any(lb.core(trace.labels(t)).any() for t in touched):
        for tensor in op.outs:
            label = trace.fresh(1)
            trace.set(tensor, label.reshape((1,) * tensor.ndim).expand(tensor.shape))
            trace.freeze(label, reason)


def record(
    model: nn.Module,
    example: Example,
    choices: Mapping[SiteKey, str],
    weights: frozenset[str] = frozenset(),
    *,
    seeds: Recording | None = None,
) -> Recording:
    """Follow a model (on meta tensors already) in its present mode.

    weights: parameters that weights are computed from; what else is found of them is followed in another pass.
    Raises UnsupportedModel if it does not run; in a replay (with seeds) PassFailed, which says where.
    """
    inputs, batch = meta.meta_inputs(model, example)
    trace = Trace(model, batch, choices, weights if seeds is None else frozenset(seeds.weights), seeds)
    try:
        with ONE_AT_A_TIME:
            trace.run(model, inputs)
    except BrokenRule:
        raise
    except Exception as error:
        if seeds is not None:
            raise _failed(trace, error) from error
        message = f"{type(model).__name__} does not run on the example: {error}"
        raise UnsupportedModel(message.splitlines()[0]) from error
    if seeds is None and trace.recording.weights != weights:
        return record(model, example, choices, frozenset(trace.recording.weights))
    return trace.recording


def _failed(trace: Trace, error: Exception) -> PassFailed:
    """The model's own code may raise as well, between two operators: the last one then stands for it."""
    if isinstance(error, PassFailed):
        return error
    steps = trace.recording.steps
    last = steps[-1] if steps else Step(operator="the start", module="", results=())
    return PassFailed(last, max(len(steps) - 1, 0), error)
