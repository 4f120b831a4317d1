"""Which part of every batch a process trains on, and how it agrees with those that train on the rest."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.training.augmentation import WHOLE


class Lost(RuntimeError):
    """The other processes do not answer; which of them failed, and why, is not known here."""


class Share(Protocol):
    """A process's part in training a network; all of them hold the same weights at all times."""

    @property
    def index(self) -> int:
        """Its number among the processes, from 0."""
        ...

    @property
    def part(self) -> slice:
        """Which pictures of each batch are its own."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Leave in `.grad` the gradients of the whole batch's mean loss, given the mean over this part."""
        ...

    def over_whole_batches(self, means: Tensor) -> Tensor:
        """Means over whole batches, given those over the parts of this process."""
        ...

    def level_(self) -> None:
        """Take away what rounding, or a buffer that saw this part alone, has made different among the processes."""
        ...


class Alone:
    """All of every batch."""

    index, part = 0, WHOLE

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def over_whole_batches(self, means: Tensor) -> Tensor:
        return means

    def level_(self) -> None:
        pass


class Member:
    """One of `count` processes of the default group of torch.distributed: batches of `batch_size` are dealt out.

    Parts differ by one picture at most; each counts for as much as it has pictures. Every method must be called by all
    processes in the same order; all raise Lost if one of the others is gone.
    """

    def __init__(self, model: nn.Module, index: int, count: int, batch_size: int) -> None:
        self.index, self.count = index, count
        self.part = slice(batch_size * index // count, batch_size * (index + 1) // count)
        self._weight = (self.part.stop - self.part.start) / batch_size
        self._model = model
        self._buckets: list[_Bucket] = []

    def backward(self, loss: Tensor) -> None:
        # weighted before, not after: through a norm over the whole batch the parts' gradients mix on their way
        (loss * self._weight).backward()
        self._buckets = self._buckets or _buckets(self._model)
        for bucket in self._buckets:
            bucket.add_up_(self.sum_)

    def over_whole_batches(self, means: Tensor) -> Tensor:
        total = means * self._weight
        self.sum_(total)
        return total

    @torch.no_grad()
    def level_(self) -> None:
        """Parameters become those of process 0, buffers of real numbers the mean."""
        for parameter in self._model.parameters():
            with _answered():
                dist.broadcast(parameter.data, src=0)
        for buffer in self._model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.over_whole_batches(buffer.double()))

    def sum_(self, values: Tensor) -> None:
        """Over all processes, in place."""
        with _answered():
            dist.all_reduce(values)

    def gather(self, values: Tensor) -> Tensor:
        """[n] -> [processes, n]."""
        found = [torch.empty_like(values) for _ in range(self.count)]
        with _answered():
            dist.all_gather(found, values)
        return torch.stack(found)


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Lost(next(iter(str(error).splitlines()), "no answer")) from error


class _Bucket:
    """Gradients of one type side by side in memory, so that one message carries them all."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._flat = parameters[0].new_zeros(sum(each.numel() for each in parameters) + len(parameters))
        self._reached = self._flat[-len(parameters) :]  # how many processes have a gradient
        self._places = []
        start = 0
        for each in parameters:  # laid out as the parameter is, or copies would be slow
            strides = torch.empty_like(each, device="meta").stride()
            self._places.append(self._flat.as_strided(each.shape, strides, start))
            start += each.numel()

    @torch.no_grad()
    def add_up_(self, add_up: Callable[[Tensor], None]) -> None:
        """Sum the gradients over the processes. One without a gradient counts as zero; where all are, none comes."""
        missing = [i for i, each in enumerate(self._parameters) if each.grad is None]
        self._reached.fill_(1)
        for i in missing:
            self._reached[i] = 0
            self._places[i].zero_()
        there = [(place, each.grad) for place, each in zip(self._places, self._parameters, strict=True)]
        found = [(place, gradient) for place, gradient in there if gradient is not None]
        if found:
            torch._foreach_copy_([place for place, _ in found], [gradient for _, gradient in found])
        add_up(self._flat)
        reached = self._reached.tolist() if missing else []  # waits for the device, hence only where it must
        for i, (each, place) in enumerate(zip(self._parameters, self._places, strict=True)):
            if each.grad is not None or reached[i]:
                each.grad = place


def _buckets(model: nn.Module) -> list[_Bucket]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kinds = dict.fromkeys(parameter.dtype for parameter in trained)
    return [_Bucket([parameter for parameter in trained if parameter.dtype == kind]) for kind in kinds]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, those too that are left out of state_dict."""
    return {name: tensor.detach() for name, tensor in chain(model.named_parameters(), model.named_buffers())}
