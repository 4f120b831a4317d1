"""Which weights were collected on purpose: a stage without them is finished all the same, and not damaged.

    <root>/collected/<moment>.<token>.json    the stages whose weights one `gc` removed, and how many bytes each
           restored/<key>/                    a stage whose weights were needed again: computed again, a whole stage

A note is written before the first file that it names is removed. A kill at any moment therefore leaves every stage
either whole or known to be collected, and what a note names may still be there: whoever finds it may use it.
"""

import json
import uuid
from collections.abc import Mapping

from orchestrator.files import Files
from orchestrator.record import now, whereabouts

NOTES, RESTORED = "collected", "restored"


class Collected:
    """The stages of a study whose weights were collected. Closes over the notes that it has read."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._read: dict[str, dict[str, int]] = {}

    def bytes(self) -> dict[str, int]:
        """The bytes of weights that were removed, by the key of their stage. A note that cannot be read is left out."""
        for name in self._files.names(NOTES):
            if name not in self._read and name.endswith(".json"):
                self._read[name] = _parsed(self._files.read(f"{NOTES}/{name}"))
        return {key: size for note in self._read.values() for key, size in note.items()}

    def has(self, key: str) -> bool:
        """Whether a stage's weights were collected; notes that were written since the last look count."""
        return any(key in note for note in self._read.values()) or key in self.bytes()

    def note(self, sizes: Mapping[str, int]) -> None:
        """Writes down which weights are about to be removed."""
        name = f"{NOTES}/{now().replace(':', '').replace('+0000', 'Z')}.{uuid.uuid4().hex[:8]}.json"
        text = json.dumps({"bytes": dict(sorted(sizes.items())), **whereabouts()}, indent=1)
        self._files.write(name, text.encode())


def _parsed(content: bytes | None) -> dict[str, int]:
    try:
        return {str(key): int(size) for key, size in json.loads(content or b"")["bytes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
