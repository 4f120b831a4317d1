"""Ray's own processes on this machine: noticed at once when one of them dies that a search cannot do without.

Ray itself ends the driver for it, without a word: 15 s later when its raylet is gone, 60 s when its GCS is. Here the
block is left before that, so that the search can go on with a new Ray. The other way round the kernel sees to it:
where the driver is killed, Ray's processes get SIGKILL at the same moment, and its workers follow within seconds. Two
agents of its dashboard stay for a minute, in vain and harmless.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import Popen
from types import FrameType
from typing import Any, TypeVar

from orchestrator.search.interrupts import Interrupts

NEEDED = {"raylet": "raylet", "gcs_server": "GCS"}  # Ray's names of them, and what its manual calls them
WAKE = signal.SIGUSR2  # Tune has SIGUSR1
LOSSES = 3  # in a row, with nothing finished in between: another Ray would end the same way

T = TypeVar("T")


class RayLost(Exception):
    """Ray can no longer be used, and was shut down; the message says what became of it."""


def outliving(attempt: Callable[[], T], finished: Callable[[], int]) -> T:
    """What `attempt` returns, called again whenever Ray was lost; `finished` counts what it has achieved so far.

    Raises RayLost when that happens `LOSSES` times in a row without anything achieved.
    """
    losses = 0
    while True:
        before = finished()
        try:
            return attempt()
        except RayLost as lost:
            losses = losses + 1 if finished() == before else 1
            if losses == LOSSES:
                raise RayLost(f"{lost}, {losses} times in a row with nothing finished in between") from None


class _Watch:
    """Waits for the end of processes, each in a thread; says who ended first, and wakes the main thread."""

    def __init__(self, interrupts: Interrupts, on_loss: Callable[[str], None]) -> None:
        self.lost: str | None = None
        self._interrupts = interrupts
        self._on_loss = on_loss
        self._over = False
        self._lock = threading.Lock()

    def start(self, name: str, process: Popen[bytes]) -> None:
        threading.Thread(target=self._wait, args=(name, process), name=f"watch {name}", daemon=True).start()

    def end(self) -> None:
        with self._lock:
            self._over = True

    def wake(self, number: int, frame: FrameType | None) -> None:
        """Handles WAKE in the main thread; a stop that was asked for is under way already."""
        if not self._interrupts.received:
            raise KeyboardInterrupt  # the only exception that Ray passes on from where it waits

    def _wait(self, name: str, process: Popen[bytes]) -> None:
        code = process.wait()
        with self._lock:
            if self._over or self.lost is not None or self._interrupts.received:
                return
            self.lost = f"Ray's {name} {_ended(code)}"
            self._on_loss(self.lost)  # from here: in the worst case Ray ends this process before it gets further
            if self._interrupts.possible:
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, WAKE)


@contextmanager
def watched(interrupts: Interrupts, on_loss: Callable[[str], None]) -> Iterator[None]:
    """A block that is left through RayLost when the raylet or the GCS that this process started has ended.

    `on_loss` is told at once, in another thread. Where no signal can be handled (outside the main thread), and for a
    cluster that others started, it remains to Ray to end the process.
    """
    watch = _Watch(interrupts, on_loss)
    before: Any = signal.signal(WAKE, watch.wake) if interrupts.possible else None
    for name, process in _processes():
        watch.start(name, process)
    try:
        yield
    except BaseException:
        if watch.lost is None or interrupts.received:
            raise
        shut_down()
        raise RayLost(watch.lost) from None
    finally:
        watch.end()
        if before is not None:
            signal.signal(WAKE, before)


def shut_down() -> None:
    """End Ray. Its core leaves SIGTERM without a handler, of which Python knows nothing: the one of before is set again
    before Ray waits for the end of its processes, so that a signal while it does is not the silent end of this one."""
    import ray

    node = ray._private.worker._global_node  # nothing public stands between its core's end and its processes'
    if node is None:
        ray.shutdown()
        return
    end_processes = node.kill_all_processes

    def with_handler(*given: Any, **options: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # no other thread can set a handler
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        end_processes(*given, **options)

    node.kill_all_processes = with_handler
    ray.shutdown()


def _processes() -> Iterator[tuple[str, "Popen[bytes]"]]:
    """Those that this process started: none if it joined a cluster."""
    import ray

    node = ray._private.worker._global_node  # nothing public tells them
    started: dict[str, Any] = {} if node is None else node.all_processes
    for key, name in NEEDED.items():
        for info in started.get(key, ()):
            yield name, info.process


def _ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
