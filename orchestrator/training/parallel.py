"""Training one network on several devices of a machine, with the result that one device gives.

Every device gets a process of its own and a part of each batch. Batches, learning rates and steps stay what they are on
one device; gradients are summed so that every picture counts the same, batch norms see the whole batch, and a picture
is augmented alike whichever process has it. What stays different: the order in which numbers are added up, and what
the network draws at random itself (dropout). Code that compares pictures with one another sees a part of the batch,
batch norms apart; a term of the loss is right if it is a mean over pictures or does not depend on them.

    share.py             a process's part of a batch, and the sums over all processes
    whole_batch_norm.py  batch norms over pictures that lie in several processes
    member.py            what one process does
    parallel.py          starting, watching and ending them: fit_parallel

The processes are torch.distributed's, by gloo on CPUs and NCCL on GPUs, on the loopback interface alone. This process
only watches: whatever becomes of one of them, it can end the others and say why.
"""

import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, NoReturn

import cloudpickle
import torch
from torch import nn

from orchestrator.record import InvalidInput, Schedule
from orchestrator.training.loop import FitReport, fit
from orchestrator.training.member import Hooks, MakeHooks, Message, Task
from orchestrator.training.share import tensors
from orchestrator.training.splits import DataSet

POLL = 1.0  # seconds between looks at processes that say nothing
GRACE = 30.0  # seconds in which the cause is to come to light after processes have lost one another
NOT_PICKLED = (
    AttributeError,
    LookupError,
    NotImplementedError,
    pickle.PickleError,
    RuntimeError,
    TypeError,
    ValueError,
)
# A signal to all processes at once is answered by this one: the others tidy up when it goes.
START = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *ignored: None)
descriptor, index, folder, *sys.path = sys.argv[1:]
from orchestrator.training.member import main
main(int(descriptor), int(index), folder)
"""


class ProcessFailed(RuntimeError):
    """One of the processes of a training was killed, crashed, or raised what cannot be raised again here."""


class _InProcess(Exception):
    """The traceback of another process, as a cause."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@contextmanager
def no_hooks(model: nn.Module) -> Iterator[Hooks]:
    """Nothing added to the loss, nothing to the gradients."""
    yield None, None


def fit_parallel(
    model: nn.Module,
    data: DataSet,
    schedule: Schedule,
    *,
    seed: int,
    devices: Sequence[str | torch.device],
    make_hooks: MakeHooks = no_hooks,
) -> FitReport:
    """Train the model in place as `fit` does, on several devices of one kind; the same device may occur more than once.

    `make_hooks` is called in every process with the model that lies there, and gives its extra_loss and after_backward;
    after_backward gets the gradients of the whole batch. Model, data set and make_hooks travel as pickles, classes and
    functions without a module of their own included; what cannot be pickled raises InvalidInput. The model's parameters
    and buffers come back, other attributes do not; it moves to the first device and stays there. The report's seconds
    are those of training: starting the processes takes some more.

    Raises what one of the processes raised, with its traceback as the cause, or ProcessFailed; none is left running.
    A batch too small to give each device two pictures is dealt out to fewer of them.
    """
    batch_size = min(schedule.batch_size, len(data.train))
    used = tuple(str(device) for device in devices)[: max(1, batch_size // 2)]
    if len(used) == 1:
        with make_hooks(model.to(used[0])) as (extra_loss, after_backward):
            return fit(
                model,
                data,
                schedule,
                seed=seed,
                device=used[0],
                extra_loss=extra_loss,
                after_backward=after_backward,
            )
    model.cpu()  # a pickled tensor comes up where it lay
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # the first process shares its device with this one
    task = Task(
        pickled=_pickled({"the network": model, "the data set": data, "the method's penalty": make_hooks}),
        schedule=schedule,
        seed=seed,
        devices=used,
        batch_size=batch_size,
        threads=max(1, torch.get_num_threads() // len(used)),
    )
    first = _run(task)
    _take_over_(model, first.weights)
    model.zero_grad()
    model.to(used[0])
    assert first.report is not None
    return first.report


def _pickled(parts: dict[str, Any]) -> bytes:
    """Of all parts together, since they may share what they hold."""
    try:
        found: bytes = cloudpickle.dumps(tuple(parts.values()))
    except NOT_PICKLED as error:
        what = next((name for name, part in parts.items() if not _can_be_pickled(part)), "this training")
        raise InvalidInput(
            f"{what} cannot be pickled for training on several devices: {str(error).partition(chr(10))[0]}; "
            "give a trial one device (gpus_per_trial at most 1)"
        ) from error
    return found


def _can_be_pickled(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except NOT_PICKLED:
        return False
    return True


def _take_over_(model: nn.Module, weights: bytes) -> None:
    own, trained = tensors(model), torch.load(io.BytesIO(weights), weights_only=True)
    for name in (*own, *trained):
        if name not in own or name not in trained or own[name].shape != trained[name].shape:
            raise InvalidInput(
                f"{name} came, went or changed its shape in training; on several devices parameters and buffers must "
                "stay: give a trial one device (gpus_per_trial at most 1)"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(trained[name])


def _run(task: Task) -> Message:
    """Start all processes, wait for all; the message of the first one. None is left when this returns or raises."""
    told = pickle.dumps(task)
    with ExitStack() as stack:
        # where they find one another; removed by them if this process is killed
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-", ignore_cleanup_errors=True))
        processes = [stack.enter_context(_Process(task, index, folder)) for index in range(len(task.devices))]
        for process in processes:
            process.tell(told)
        return _watch(processes)


class _Process:
    """One process and the connection to it. Killed at the end of its context, if it has not ended by then."""

    def __init__(self, task: Task, index: int, folder: str) -> None:
        self.name = f"training process {index + 1} of {len(task.devices)} ({task.devices[index]})"
        self.connection, theirs = Pipe()
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", START, str(theirs.fileno()), str(index), folder, *sys.path],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback},
            )

    def __enter__(self) -> "_Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is None:  # it has said its last word
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(GRACE)
        self._popen.kill()
        self._popen.wait()
        self.connection.close()

    def tell(self, task: bytes) -> None:
        try:
            self.connection.send_bytes(task)
        except OSError:
            self._died()

    def check(self) -> None:
        """Raise ProcessFailed if it ended without a word, even where a process of its own keeps the connection open."""
        if self._popen.poll() is not None and not self.connection.poll():
            self._died()

    def message(self) -> Message:
        """The next one. Raises ProcessFailed if it died instead."""
        try:
            found: Message = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            self._died()
        return found

    def _died(self) -> NoReturn:
        try:
            code = self._popen.wait(GRACE)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(f"{self.name} broke off its connection") from None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended early with exit code {code}"
        raise ProcessFailed(f"{self.name} {how}")


def _watch(processes: Sequence[_Process]) -> Message:
    """Wait until all are done. Those that have merely lost another one are not to blame: who is, is waited for."""
    done: dict[_Process, Message] = {}
    deadline = float("inf")
    lost = ""
    while len(done) < len(processes):
        waiting = {process.connection: process for process in processes if process not in done}
        ready: list[Any] = wait(list(waiting), timeout=POLL)
        for process in waiting.values() if not ready else ():
            process.check()
        for process in map(waiting.__getitem__, ready):
            message = done[process] = process.message()
            if message.kind == "error":
                _raise(process, message)
            if message.kind == "lost":
                lost = f"{process.name} lost the others: {message.text}"
                deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            break
    if lost:
        raise ProcessFailed(lost)
    return done[processes[0]]


def _raise(process: _Process, message: Message) -> None:
    error = pickle.loads(message.error) if message.error else ProcessFailed(f"{process.name} raised {message.text}")
    raise error from _InProcess(message.traceback)
