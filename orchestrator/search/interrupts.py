"""SIGINT and SIGTERM: stop at once, leave nothing behind, and say so in the exit code."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The handlers of SIGINT and SIGTERM, and which of the two has come."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.possible = threading.current_thread() is threading.main_thread()  # no other thread can set a handler

    def install(self) -> None:
        """Set the handlers, after something else has set its own."""
        if self.possible:
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os.write(2, b"ended on the spot; the same command goes on from here\n")  # no lock, so safe in a handler
            os._exit(128 + number)
        self.received.append(signal.Signals(number))
        raise KeyboardInterrupt  # the only exception that Ray passes on from where it waits


@contextmanager
def interruptible(on_interrupt: Callable[[signal.Signals], None]) -> Iterator[Interrupts]:
    """A block that SIGINT and SIGTERM leave through SystemExit with 128 + the signal's number.

    A second signal ends the process on the spot. Outside the main thread nothing is changed: no handler can be set.
    """
    interrupts = Interrupts()
    received = interrupts.received
    before: dict[signal.Signals, Any] = {}
    if interrupts.possible:
        before = {number: signal.getsignal(number) for number in SIGNALS}
    interrupts.install()
    try:
        yield interrupts
    except (KeyboardInterrupt, SystemExit) as error:
        # While Ray starts, its own handler is in place: it leaves with the bare number of the signal.
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            received.append(signal.SIGTERM)
        if not received:
            raise
        on_interrupt(received[0])
        raise SystemExit(128 + received[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
