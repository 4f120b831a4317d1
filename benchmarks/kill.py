"""Kill a search's driver with SIGKILL at random moments, start it again by the same command, and compare.

    python benchmarks/kill.py [--space search_spaces/digits_cifarnet.toml] [--kills 3] [--seed 0]

The search runs once undisturbed, and once killed `--kills` times, each time after a random number of further stages
and a random part of a second. Printed: the moments; whether both ended with the same frontier; whether any stage that
was finished at a kill was computed again (its record would be a later one); stages computed twice by two workers.
Exit code 1 if one of these went wrong.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.collector import frontier
from orchestrator.store import StageStore

PATIENCE = 900  # seconds for one launch


def launch(space: Path, storage: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "orchestrator", "search", str(space), "--storage", str(storage)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)


def finished(store: StageStore) -> dict[str, str]:
    """Every finished stage, with the moment at which its record was written."""
    return {stage.key: stage.created for stage in store.stages()}


def kill_when(process: subprocess.Popen[bytes], store: StageStore, stages: int, delay: float) -> bool:
    """SIGKILL once so many stages are finished, and a little later. False if the search ended before."""
    deadline = time.monotonic() + PATIENCE
    while len(list(store.keys())) < stages:
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=Path("search_spaces/digits_cifarnet.toml"))
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        calm, torn = (StageStore(Path(folder) / name / given.space.stem) for name in ("calm", "torn"))
        started = time.perf_counter()
        code = launch(given.space, calm.root.parent).wait(PATIENCE)
        whole = finished(calm)
        print(f"undisturbed: exit code {code}, {len(whole)} stages, {time.perf_counter() - started:.0f} s")
        before: dict[str, str] = {}
        again: set[str] = set()
        done = 0
        for number in range(1, given.kills + 1):
            low, high = len(whole) * (number - 1) // given.kills, len(whole) * number // given.kills
            wanted, delay = draw.randint(max(low, done), max(high - 1, done)), draw.random()
            process = launch(given.space, torn.root.parent)
            killed = kill_when(process, torn, wanted, delay)
            now = finished(torn)
            again |= {key for key, moment in before.items() if now.get(key) != moment}
            before, done = now, len(now)
            print(f"kill {number}: {'SIGKILL' if killed else 'had ended'} with {done} stages finished")
        code = launch(given.space, torn.root.parent).wait(PATIENCE)
        now = finished(torn)
        again |= {key for key, moment in before.items() if now.get(key) != moment}
        fronts = [[(p.key, p.flops, p.accuracy) for p in frontier(list(store.points()))] for store in (calm, torn)]
        same = fronts[0] == fronts[1]
        print(f"last launch: exit code {code}, {len(now)} stages")
        print(f"same frontier, key by key: {same} ({len(fronts[0])} and {len(fronts[1])} points)")
        print(f"same stages: {now.keys() == whole.keys()}")
        print(f"finished stages computed again: {len(again)}; stages computed twice: {torn.duplicates()}")
        return 0 if same and not again and not torn.duplicates() and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
