"""Storage that is away for a while is asked again; storage that is full or stays away is named, in one line."""

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.record import InvalidInput

T = TypeVar("T")

LOG = logging.getLogger("orchestrator")
LONGEST_PAUSE = 5.0
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = ("No space left on device", "Disk quota exceeded")  # in errors of libraries that raise their own kinds
# What a network file system or an object store answers when it, or the way to it, fails for a moment.
AWAY = {
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "EREMOTEIO", "EAGAIN", "EBUSY", "ETIMEDOUT", "EPIPE"),
        *("ENOTCONN", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ESHUTDOWN"),
    )
    if hasattr(errno, name)
}


class StorageFault(InvalidInput):
    """The storage of a study is full, or stays away; the message names the place and what can be done."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long storage that is away is asked again, with pauses that grow; tests bring their own clock."""

    seconds: float = 150.0
    first_pause: float = 0.1
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep

    def keep_trying(self, act: Callable[[], T], where: object) -> T:
        """The answer of `act`. Raises StorageFault when `where` is full, or was away for all of `seconds`.

        Other OSErrors pass through. `act` may have taken effect although it raised: it must bear repetition.
        """
        since: float | None = None
        pause = self.first_pause
        while True:
            try:
                return act()
            except OSError as error:
                if is_full(error):
                    raise full(where) from error
                if not is_away(error):
                    raise
                reason = reason_of(error)
                if since is None:
                    since = self.clock()
                elif self.clock() - since >= self.seconds:
                    raise StorageFault(
                        f"{where}: the storage has been away for {self.seconds:.0f} s ({reason}); "
                        "the same command goes on when it is back"
                    ) from error
            self.pause(pause)
            if pause < LONGEST_PAUSE <= 2 * pause:  # said once, and not of a hiccup
                LOG.warning("%s: the storage is away (%s); trying again", where, reason)
            pause = min(2 * pause, LONGEST_PAUSE)


def full(where: object) -> StorageFault:
    """What is said when nothing more can be written to `where`."""
    return StorageFault(f"{where}: no space is left there; free some, and the same command goes on")


def is_full(error: BaseException) -> bool:
    """Whether an error, of whatever library, says that a disk or a quota is used up."""
    return getattr(error, "errno", None) in FULL or any(text in str(error) for text in FULL_TEXTS)


def is_away(error: OSError) -> bool:
    """Whether asking again may help."""
    return error.errno in AWAY or isinstance(error, (ConnectionError, TimeoutError))


def reason_of(error: OSError) -> str:
    """Why, in the system's words."""
    text = " ".join((error.strerror or str(error)).split()).rstrip(".")
    return text[:1].lower() + text[1:]
