"""Which state of this code a result comes from, where that is known."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the checkout, if it is one


@cache
def commit() -> str | None:
    """The git commit of the checkout that the package runs from, with "+" if files differ from it; None elsewhere."""
    if not (ROOT / ".git").exists():
        return None
    try:
        found = _git("rev-parse", "HEAD")
        return f"{found}+" if _git("status", "--porcelain", "--untracked-files=no") else found
    except (OSError, subprocess.SubprocessError):  # no git here, or a repository of someone else's
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
