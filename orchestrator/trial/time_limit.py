"""How long one stage may take: one that hangs is recorded as failed, with the place where it hangs, and ended.

Python cannot end a thread that hangs in somebody else's code, so what ends is the process. Whoever waits for its claim
goes on, finds the record, and does not hang at the same place again.
"""

import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from orchestrator.record import Failure

EXIT_CODE = 70  # of a process that ended itself because a stage hung; EX_SOFTWARE of sysexits.h
GRACE_SECONDS = 30.0  # for the record to be written, before the process is ended without one
INSIDE = ("torch", "numpy", "threading.py", "selectors.py", "socket.py", "subprocess.py")  # where nobody's bug is


@dataclass(frozen=True, kw_only=True)
class TimeLimit:
    """The limit of every stage; waiting for a stage that another process computes does not count.

    forgiven: moments (`created`) of earlier timeouts that count no more, so that their stages are tried again.
    hard: end the process even if no Python code can run in it any more (a hang that holds the interpreter's lock);
    uses faulthandler's one timer, so it is for processes that do nothing else.
    """

    seconds: float
    forgiven: frozenset[str] = frozenset()
    hard: bool = False
    end: Callable[[int], object] = os._exit

    def stands(self, failure: Failure) -> bool:
        """Whether a recorded timeout still counts."""
        return failure.created not in self.forgiven


@contextmanager
def watched(limit: TimeLimit | None, expired: Callable[[str, str], None]) -> Iterator[None]:
    """A block that may take `limit.seconds`. After that `expired` gets what is to be said, and the stack as text.

    It is called in a thread of its own, while the block still hangs; the process is ended whatever becomes of it.
    """
    if limit is None:
        yield
        return
    thread = threading.get_ident()

    def expire() -> None:
        try:
            frame = sys._current_frames().get(thread)
            if frame is not None:  # else the block's thread is over
                expired(f"took longer than {_minutes(limit.seconds)}{_place(frame)}", _stack(frame))
        finally:
            limit.end(EXIT_CODE)

    timer = threading.Timer(limit.seconds, expire)
    timer.daemon = True
    timer.start()
    if limit.hard:
        faulthandler.dump_traceback_later(limit.seconds + GRACE_SECONDS, exit=True)
    try:
        yield
    finally:
        timer.cancel()
        if limit.hard:
            faulthandler.cancel_dump_traceback_later()


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.3g} minute" + ("" if minutes == 1 else "s")


def _place(frame: FrameType) -> str:
    """The innermost line that is not inside of a well-known library."""
    calls = [call for call in traceback.extract_stack(frame) if not set(Path(call.filename).parts) & set(INSIDE)]
    return f"; it was at {Path(calls[-1].filename).name}:{calls[-1].lineno} in {calls[-1].name}" if calls else ""


def _stack(frame: FrameType) -> str:
    return "Stack of the hung thread (most recent call last):\n" + "".join(traceback.format_stack(frame))
