"""Which commit a result comes from is told where it is known, and nowhere else."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.trial import provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that passes for the checkout, and nothing remembered of the real one."""
    (tmp_path / "code.py").touch()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "commit", provenance.commit.__wrapped__)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_an_installed_package_has_no_commit(package: Path) -> None:
    assert provenance.commit() is None


def test_a_checkout_has_its_commit_and_a_mark_when_files_were_changed(package: Path) -> None:
    git(package, "init")
    assert provenance.commit() is None  # nothing is committed yet
    git(package, "add", ".")
    git(package, "commit", "-m", "first")
    clean = provenance.commit()
    assert clean is not None
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (package / "code.py").write_text("x = 1\n")
    assert provenance.commit() == f"{clean}+"
