"""SIGINT and SIGTERM: stop at once, leave nothing behind, and say so in the exit code."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible(on_interrupt: Callable[[signal.Signals], None]) -> Iterator[Callable[[], None]]:
    """A block that SIGINT and SIGTERM leave through SystemExit with 128 + the signal's number.

    Yields a function that installs the handlers anew, to be called after something else has installed its own. A
    second signal ends the process on the spot. Outside the main thread nothing is changed: no handler can be set.
    """
    received: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(signal.Signals(number))
        raise KeyboardInterrupt  # the only exception that Ray passes on from where it waits

    def install() -> None:
        if main:
            for number in SIGNALS:
                signal.signal(number, handle)

    main = threading.current_thread() is threading.main_thread()
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    install()
    try:
        yield install
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
