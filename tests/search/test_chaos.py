"""The chaos of benchmarks/chaos.py, bounded: one kill of each kind, with trials that take little time."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from holding import hold, release

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("driver.py")
IN_FLIGHT = 3  # trials at once in the small space, each of which may publish one more stage after it is held


def test_a_search_under_kills_ends_as_if_left_alone(
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A worker, the raylet, the GCS and the driver are killed with SIGKILL, in a random order, once each."""
    space = space_file("small", **{"[trial]": "[trial]\nmethod_options = { seconds = 0.1 }"})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    options = ["--space", space, "--driver", DRIVER, "--kills", "4", "--seed", "0", "--work", tmp_path / "work"]
    monkeypatch.setattr(sys, "argv", ["chaos.py", *map(str, options)])
    chaos = importlib.import_module("chaos")
    torment, kill = chaos.torment, chaos.kill
    killed = []

    def hold_and_torment(search: Any, whole: int, given: Any) -> Any:
        hold(search.store, stages=whole - IN_FLIGHT - 1)
        return torment(search, whole, given)

    def kill_and_release(search: Any, kind: str, draw: Any) -> Any:
        killed.append(kill(search, kind, draw))
        if len(killed) == len(chaos.KINDS):
            release(search.store)
        return killed[-1]

    monkeypatch.setattr(chaos, "torment", hold_and_torment)
    monkeypatch.setattr(chaos, "kill", kill_and_release)
    code = chaos.main()
    printed = capsys.readouterr().out
    log = (tmp_path / "work" / "torn" / "log.txt").read_text()
    assert code == 0, printed + log
    kinds = re.findall(r"^kill \d: (\w+) \d+ at", printed, flags=re.MULTILINE)
    assert sorted(kinds) == ["driver", "gcs", "raylet", "worker"]
    for line in ("stages lost: 0", "stages repeated: 0; computed by two at once: 0", "zombies: 0 ("):
        assert line in printed
    assert "same frontier, key by key: yes" in printed
    for process in ("raylet", "GCS"):  # which may also die while Ray starts; the driver is then started again
        said = f"Ray's {process} was ended by SIGKILL; nothing finished is lost, going on with a new Ray"
        assert said in log or "no Ray on this machine: " in log
