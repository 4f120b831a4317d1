"""How long a network takes for one batch: warmed up, the median of many, several networks in turn."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, FiniteFloat
from torch import Tensor, nn

from orchestrator.network.zoo import InputShape
from orchestrator.record import InvalidInput, Record

WARMUP = 5
REPEATS = 20

Clock = Callable[[], float]  # seconds, from anywhere
Seconds = Annotated[FiniteFloat, Field(ge=0.0)]


class Latency(Record):
    """How long one batch takes, and under which conditions that holds."""

    latency_ms: Seconds  # of a whole batch: the median
    p10_ms: Seconds  # a tenth of the repeats took this long or less
    p90_ms: Seconds  # nine in ten did
    throughput: Seconds  # pictures a second, at the median
    batch: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]  # of PyTorch on the CPU
    device: str
    repeats: Annotated[int, Field(ge=1)]


def latency(
    model: nn.Module,
    input_shape: InputShape,
    *,
    batch: int = 1,
    threads: int | None = None,
    device: str | torch.device | None = None,
    warmup: int = WARMUP,
    repeats: int = REPEATS,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Time a network in evaluation mode on one batch of random pictures, in the network's own precision.

    threads: of PyTorch, set for the time of the measurement; as they are if None. device: where the network is if
    None; elsewhere a copy is measured. On a GPU its own events are read, not the clock. The model's mode, its place
    and the number of threads are afterwards as before.
    Raises InvalidInput for settings that make no sense.
    """
    found = side_by_side(
        {"the model": model},
        input_shape,
        batch=batch,
        threads=threads,
        device=device,
        warmup=warmup,
        repeats=repeats,
        clock=clock,
    )
    return found["the model"]


def side_by_side(
    models: Mapping[str, nn.Module],
    input_shape: InputShape,
    *,
    batch: int = 1,
    threads: int | None = None,
    device: str | torch.device | None = None,
    warmup: int = WARMUP,
    repeats: int = REPEATS,
    clock: Clock = time.perf_counter,
) -> dict[str, Latency]:
    """Time several networks in turn, a batch of each at a time, so that a busy machine slows all of them alike.

    Each round starts with another network. Otherwise as `latency`.
    """
    _check(batch=(batch, 1), threads=(1 if threads is None else threads, 1), warmup=(warmup, 0), repeats=(repeats, 1))
    where = _place(models, device)
    placed = {name: _at(model, where) for name, model in models.items()}
    names = list(models)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _evaluating(placed.values()), _threads(threads) as used, torch.inference_mode():
        pictures = {name: _pictures(model, (batch, *input_shape), where) for name, model in placed.items()}
        for i in range(warmup + repeats):
            for name in _turned(names, i):
                taken = _timed(placed[name], pictures[name], clock)
                if i >= warmup:
                    seconds[name].append(taken)
    return {name: _latency(taken, batch=batch, threads=used, device=where) for name, taken in seconds.items()}


def _check(**settings: tuple[int, int]) -> None:
    for name, (value, least) in settings.items():
        if value < least:
            raise InvalidInput(f"{name} is {value}; it must be at least {least}")


def _place(models: Mapping[str, nn.Module], device: str | torch.device | None) -> torch.device:
    if not models:
        raise InvalidInput("models: there is none to be measured")
    found = {_device(model) for model in models.values()} if device is None else {torch.device(device)}
    if len(found) > 1:
        raise InvalidInput(f"models are on {' and '.join(sorted(map(str, found)))}; give a device for all")
    (where,) = found
    if where.type not in ("cpu", "cuda"):
        raise InvalidInput(f"device is {where}; latency is measured on cpu and cuda")
    return where


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


def _at(model: nn.Module, where: torch.device) -> nn.Module:
    return model if _device(model) == where else copy.deepcopy(model).to(where)


def _turned(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def _pictures(model: nn.Module, shape: tuple[int, ...], where: torch.device) -> Tensor:
    precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(where, precision)


def _timed(model: nn.Module, pictures: Tensor, clock: Clock) -> float:
    """Seconds of one batch."""
    if pictures.device.type == "cuda":
        return _timed_on_gpu(model, pictures)
    start = clock()
    model(pictures)
    return clock() - start


def _timed_on_gpu(model: nn.Module, pictures: Tensor) -> float:
    with torch.cuda.device(pictures.device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        model(pictures)
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    try:
        if wanted is not None:
            torch.set_num_threads(wanted)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def _evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def _latency(seconds: list[float], *, batch: int, threads: int, device: torch.device) -> Latency:
    low, median, high = (float(value) for value in np.percentile(seconds, (10, 50, 90)))
    return Latency(
        latency_ms=1000 * median,
        p10_ms=1000 * low,
        p90_ms=1000 * high,
        throughput=batch / max(median, 1e-9),  # a clock may be too coarse to see anything
        batch=batch,
        threads=threads,
        device=str(device),
        repeats=len(seconds),
    )
