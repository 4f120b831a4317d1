"""The files of a study, wherever they lie: a folder that all machines see, or object storage by URI.

No lock and no server: a few operations that either kind of storage can do whole or not at all.

    places.py    where a study lies: a path, or a URI that behaves like one
    patience.py  storage that is full, or away for a while: what is tried again, for how long, and what is said then
    interface.py the handful of operations that everything above is made of
    local.py     ... on a file system
    objects.py   ... on object storage (s3://)
    s3.py        the way to its server, and what its errors mean
"""

from orchestrator.files.interface import Files, Held, Size
from orchestrator.files.local import LocalFiles
from orchestrator.files.patience import Patience, StorageFault, is_full, reason_of
from orchestrator.files.places import Place, Uri, located

__all__ = [
    "Files",
    "Held",
    "LocalFiles",
    "Patience",
    "Place",
    "Size",
    "StorageFault",
    "Uri",
    "is_full",
    "located",
    "open_files",
    "reason_of",
]


def open_files(root: Place, patience: Patience | None = None) -> Files:
    """The files under `root`. Raises InvalidInput if the URI needs an extra that is not installed."""
    if not isinstance(root, Uri):
        return LocalFiles(root, patience or Patience())
    from orchestrator.files.objects import ObjectFiles

    return ObjectFiles(root, patience or Patience())
