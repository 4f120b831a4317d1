"""Which state of this code a result comes from, where that is known."""

import subprocess
from functools import cache
from pathlib import Path

import orchestrator


@cache
def commit() -> str | None:
    """The git commit of the checkout that the package runs from, with "+" if files differ from it; None elsewhere."""
    root = Path(orchestrator.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        found = _git(root, "rev-parse", "HEAD")
        return f"{found}+" if _git(root, "status", "--porcelain", "--untracked-files=no") else found
    except (OSError, subprocess.SubprocessError):  # no git here, or a repository of someone else's
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
