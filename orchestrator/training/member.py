"""One of the processes that train a network together: started by `parallel`, which it tells how it went.

It ends with the process that started it, also where that one is killed: their connection breaks then.
"""

import io
import os
import pickle
import shutil
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Literal

import cloudpickle
import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.record import InvalidInput, Schedule
from orchestrator.training.loop import FitReport, fit
from orchestrator.training.share import Lost, Member, tensors
from orchestrator.training.splits import DataSet
from orchestrator.training.whole_batch_norm import whole_batch_norms

PATIENCE = timedelta(minutes=10)  # how long one process waits for the others in the midst of a step
UNPICKLED = (AttributeError, ImportError, LookupError, pickle.PickleError, RuntimeError, TypeError, ValueError)

Hooks = tuple[
    Callable[[], Tensor] | None, Callable[[], None] | None
]  # extra_loss and after_backward, as `fit` has them
MakeHooks = Callable[[nn.Module], AbstractContextManager[Hooks]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all processes of one training are told. pickled: the model, the data set and the maker of hooks."""

    pickled: bytes
    schedule: Schedule
    seed: int
    devices: tuple[str, ...]
    batch_size: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Message:
    """How it went in one process. weights: of process 0. error: what was raised, where that can be pickled."""

    kind: Literal["done", "error", "lost"]
    report: FitReport | None = None
    weights: bytes = b""
    error: bytes = b""
    text: str = ""
    traceback: str = ""


def main(descriptor: int, index: int, folder: str) -> None:
    """The life of one process, whose connection has this file descriptor; `folder` is where it finds the others."""
    connection = Connection(descriptor)
    try:
        task: Task = pickle.loads(connection.recv_bytes())
    except (EOFError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        return
    threading.Thread(target=_end_with_parent, args=(connection, folder), daemon=True).start()
    try:
        message = _trained(task, index, folder)
    except Lost as error:
        message = Message(kind="lost", text=str(error))
    except BaseException as error:  # where a process ends: whatever it was is raised again in the one that started it
        message = _told(error)
    connection.send_bytes(pickle.dumps(message))


def _end_with_parent(connection: Connection, folder: str) -> None:
    try:
        connection.recv_bytes()  # nothing more ever comes
    except (EOFError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


def _trained(task: Task, index: int, folder: str) -> Message:
    torch.set_num_threads(task.threads)
    device = torch.device(task.devices[index])
    model, data, make_hooks = _unpickled(task.pickled)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    count = len(task.devices)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.FileStore(os.path.join(folder, "store"), count),  # type: ignore[attr-defined]
        rank=index,
        world_size=count,
        timeout=PATIENCE,
    )
    model.to(device)
    member = Member(model, index, count, task.batch_size)
    with make_hooks(model) as (extra_loss, after_backward), whole_batch_norms(member):
        report = fit(
            model,
            data,
            task.schedule,
            seed=task.seed,
            device=device,
            extra_loss=extra_loss,
            after_backward=after_backward,
            share=member,
        )
    dist.destroy_process_group()  # not after an error: it may wait for those that are gone
    return Message(kind="done", report=report, weights=_weights(model) if index == 0 else b"")


def _unpickled(pickled: bytes) -> tuple[nn.Module, DataSet, MakeHooks]:
    try:
        found: tuple[nn.Module, DataSet, MakeHooks] = pickle.loads(pickled)
    except UNPICKLED as error:
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise InvalidInput(f"a process for each device cannot read network, data set and penalty: {problem}") from error
    return found


def _weights(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in tensors(model).items()}, buffer)
    return buffer.getvalue()


def _told(error: BaseException) -> Message:
    """What was raised, whole if it survives the journey, always in words."""
    try:
        pickled = cloudpickle.dumps(error)
        whole = isinstance(error, Exception) and type(pickle.loads(pickled)) is type(error)
    except Exception:  # an exception's own code runs here
        whole = False
    return Message(
        kind="error",
        error=pickled if whole else b"",
        text=f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
    )
