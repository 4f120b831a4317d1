"""Storage that is away is asked again for a while; what is full or stays away is named."""

import errno
import logging

import pytest

from orchestrator.files import Patience, StorageFault, is_full


class Storage:
    """Storage that is away for the first `seconds` of a clock that only pauses move."""

    def __init__(self, seconds: float, error: OSError) -> None:
        self.seconds, self.error = seconds, error
        self.now, self.asked = 0.0, 0

    def patience(self) -> Patience:
        return Patience(clock=lambda: self.now, pause=self.pause)

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def ask(self) -> str:
        self.asked += 1
        if self.now < self.seconds:
            raise self.error
        return "back"


AWAY = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.ENOTCONN, "Transport endpoint is not connected"),
    OSError(errno.EBUSY, "Please reduce your request rate."),
    ConnectionError("Could not connect"),
    TimeoutError(),
]


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__ + str(error.errno))
def test_storage_that_comes_back_is_not_missed(error: OSError, caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(100, error)
    with caplog.at_level(logging.WARNING):
        assert storage.patience().keep_trying(storage.ask, "there") == "back"
    assert storage.asked < 40  # pauses grow
    assert "there: the storage is away" in caplog.text


@pytest.mark.parametrize("error", AWAY[:2], ids=["EIO", "ESTALE"])
def test_storage_that_stays_away_is_named(error: OSError) -> None:
    storage = Storage(1e9, error)
    assert error.strerror is not None
    reason = error.strerror[0].lower() + error.strerror[1:]
    message = rf"^there: the storage has been away for 150 s \({reason}\); the same command goes on when"
    with pytest.raises(StorageFault, match=message) as caught:
        storage.patience().keep_trying(storage.ask, "there")
    assert "\n" not in str(caught.value)
    assert 150 <= storage.now < 160


def test_a_full_disk_is_named_at_once() -> None:
    storage = Storage(1e9, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StorageFault, match=r"^there: no space is left there; free some, and the same command goes on$"):
        storage.patience().keep_trying(storage.ask, "there")
    assert storage.now == 0


def test_what_patience_does_not_help_passes_through() -> None:
    storage = Storage(1e9, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):
        storage.patience().keep_trying(storage.ask, "there")
    assert storage.asked == 1


def test_full_disks_of_libraries_that_raise_their_own_errors() -> None:
    assert is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_full(RuntimeError("the loss is NaN"))
