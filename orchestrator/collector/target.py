"""Files that a page or a picture is written to: what stands against it is said before the work is done."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.record import InvalidInput


def check_target(target: Path, what: str, endings: Sequence[str]) -> None:
    """Raises InvalidInput for another ending than those of `what`, and where no file can be written there."""
    if target.suffix not in endings:
        ending = target.suffix or "nothing"
        raise InvalidInput(f"{target}: ends in {ending!r}; a {what} ends in {' or '.join(endings)}")
    if (error := _obstacle(target)) is not None:
        raise InvalidInput(f"{target}: cannot be written ({os.strerror(error)})")


def _obstacle(target: Path) -> int | None:
    folder = target.parent
    if not folder.is_dir():
        return errno.ENOTDIR if folder.exists() else errno.ENOENT
    if target.is_dir():
        return errno.EISDIR
    return None if os.access(folder, os.W_OK) else errno.EACCES
