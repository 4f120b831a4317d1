"""Kill a search at random moments, its workers, its Ray and its driver, start it again, and compare.

    python benchmarks/chaos.py [--space search_spaces/digits_cifarnet.toml] [--kills 50] [--seed 0]

The study of the space runs once undisturbed, and once with SIGKILL sent to a Ray worker process, to the raylet, to the
GCS or to the driver, each as often: one of them each time so many further stages are finished, a random part of the
study, and up to three seconds later. Whenever the driver has ended, the same command is given again. Only processes
that descend from a driver that was started here are killed.

Printed: a line for each kill; whether a finished stage was lost or computed again, whether anything was left behind (a
process, a trial that the journal has running, a claim, an unfinished stage), and whether the frontier is that of the
undisturbed run. Exit code 1 if one of these went wrong.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import psutil
from optuna.storages.journal import JournalFileBackend, JournalStorage

from orchestrator.claim import sight
from orchestrator.collector import frontier
from orchestrator.files import open_files
from orchestrator.store import StageStore

KINDS = ("worker", "raylet", "gcs", "driver")
LINGER = 90.0  # seconds for what is left of a killed Ray to end by itself: its agents miss their GCS for 60
DELAY = 3.0  # seconds between a number of finished stages and the kill, at most


@dataclass
class Search:
    """One study, and all processes that were ever seen to descend from its drivers."""

    command: list[str]
    store: StageStore
    log: Path
    patience: float  # seconds without a finished stage that are taken for a hang
    driver: psutil.Popen | None = None
    family: dict[tuple[int, float], psutil.Process] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)
    stages: dict[str, str] = field(default_factory=dict)  # finished ones, with the moment of their record
    lost: set[str] = field(default_factory=set)
    again: set[str] = field(default_factory=set)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.driver = psutil.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ)

    def running(self) -> bool:
        """Whether the driver runs; on the way looks at its descendants and at the stages."""
        assert self.driver is not None
        with suppress(psutil.NoSuchProcess):
            for process in [self.driver, *self.driver.children(recursive=True)]:
                self.family.setdefault((process.pid, process.create_time()), process)
        self.look()
        return self.driver.poll() is None

    def look(self) -> None:
        """Take in which stages are finished, and which of those before are not, or not the same, any more."""
        keys = self.store.keys()
        found = {key: self.stages.get(key) or self.store.stage(key).created for key in keys}
        self.lost |= self.stages.keys() - found.keys()
        self.stages = found

    def compare(self) -> None:
        """Read all records anew: one that is a later one than before was computed again."""
        before = self.stages
        self.stages = {}
        self.look()
        self.lost |= before.keys() - self.stages.keys()
        self.again |= {key for key, moment in before.items() if self.stages.get(key, moment) != moment}

    def living(self) -> list[psutil.Process]:
        return [process for process in self.family.values() if lives(process)]


def lives(process: psutil.Process) -> bool:
    """Whether this very process, not another one with its number, still runs."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def targets(search: Search, kind: str) -> list[psutil.Process]:
    """The living processes of one kind that the present driver started."""
    assert search.driver is not None
    if kind == "driver":
        return [search.driver] if lives(search.driver) else []
    with suppress(psutil.NoSuchProcess):
        return [process for process in search.driver.children(recursive=True) if kind_of(process) == kind]
    return []


def kind_of(process: psutil.Process) -> str | None:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        if process.name() in ("raylet", "gcs_server"):
            return "raylet" if process.name() == "raylet" else "gcs"
        title = " ".join(process.cmdline()[:1])
        if title.startswith("ray::") and not title.strip().endswith("Agent"):
            return "worker"
    return None


def until(search: Search, condition: Callable[[], bool]) -> None:
    """Wait for a condition, starting the driver again whenever it has ended but for good. Raises SystemExit at a hang.

    The driver ended for good when its exit code is 0.
    """
    since, stages = time.monotonic(), len(search.stages)
    while not condition():
        if search.driver is None or not search.running():
            if search.driver is not None:
                search.codes.append(search.driver.wait())
                if search.codes[-1] == 0:
                    return
            search.start()
        if len(search.stages) != stages:
            since, stages = time.monotonic(), len(search.stages)
        if time.monotonic() - since > search.patience:
            end(search)
            raise SystemExit(f"error: no stage was finished for {search.patience:.0f} s; see {search.log}")
        time.sleep(0.05)


def over(search: Search) -> bool:
    return bool(search.codes) and search.codes[-1] == 0


def kill(search: Search, kind: str, draw: random.Random) -> psutil.Process | None:
    """SIGKILL for one process of this kind, as soon as there is one; None if the search ended first."""
    until(search, lambda: bool(targets(search, kind)))
    found = sorted(targets(search, kind), key=lambda process: process.pid)
    if over(search) or not found:
        return None
    victim = draw.choice(found)
    victim.kill()
    return victim


def end(search: Search) -> None:
    for process in search.living():
        with suppress(psutil.NoSuchProcess):
            process.kill()


def kinds(chosen: list[str], count: int, draw: random.Random) -> Iterator[str]:
    """Each kind as often as the others, in a random order."""
    while count > 0:
        batch = draw.sample(chosen, len(chosen))[:count]
        yield from batch
        count -= len(batch)


def torment(search: Search, whole: int, given: argparse.Namespace) -> dict[str, int]:
    """Run the search to its end through all kills; how many of each kind there were."""
    draw = random.Random(given.seed)
    counts = dict.fromkeys(given.kinds, 0)
    started = time.monotonic()
    for number, kind in enumerate(kinds(given.kinds, given.kills, draw)):
        low, high = whole * number // given.kills, whole * (number + 1) // given.kills
        wanted = min(draw.randint(low, max(low, high - 1)), whole - 1)
        until(search, lambda wanted=wanted: len(search.stages) >= wanted)
        moment = time.monotonic() + draw.uniform(0, DELAY)
        until(search, lambda moment=moment: time.monotonic() >= moment)
        victim = None if over(search) else kill(search, kind, draw)
        if victim is None:
            print(f"kill {number + 1}: the search had ended", flush=True)
            break
        counts[kind] += 1
        search.compare()
        place = f"{time.monotonic() - started:5.0f} s, {len(search.stages)} of {whole} stages finished"
        print(f"kill {number + 1}: {kind} {victim.pid} at {place}", flush=True)
    if not over(search):
        until(search, lambda: over(search))
    search.compare()
    return counts


def left_running(store: StageStore) -> int:
    """Trials that the journal has running."""
    storage = JournalStorage(JournalFileBackend(str(store.root / "journal.log")))
    study = optuna.load_study(study_name=store.root.name, storage=storage)
    return sum(trial.state == optuna.trial.TrialState.RUNNING for trial in study.get_trials(deepcopy=False))


def left_lying(store: StageStore) -> tuple[int, int]:
    """Claims that somebody seems to hold, and stages that somebody began."""
    files = open_files(store.root)
    claims = [name for name in files.names("claims") if sight(files, f"claims/{name}") is not None]
    return len(claims), len(files.names("staging"))


def front(store: StageStore) -> list[tuple[str, int, float]]:
    return [(point.key, point.flops, point.accuracy) for point in frontier(list(store.points()))]


def judge(calm: Search, torn: Search) -> bool:
    """Print how the two compare; whether all is as it should be."""
    deadline = time.monotonic() + LINGER
    while torn.living() and time.monotonic() < deadline:
        time.sleep(0.2)
    left = torn.living()
    end(torn)
    claims, staged = left_lying(torn.store)
    zombies = {
        "processes": len(left),
        "running trials": left_running(torn.store),
        "claims": claims,
        "unfinished stages": staged,
    }
    fronts = front(calm.store), front(torn.store)
    print(f"drivers started: {len(torn.codes)}; exit codes: {sorted(torn.codes)}")
    print(f"stages lost: {len(torn.lost)}")
    print(f"stages repeated: {len(torn.again)}; computed by two at once: {torn.store.duplicates()}")
    print(f"zombies: {sum(zombies.values())} ({', '.join(f'{name} {count}' for name, count in zombies.items())})")
    print(f"same stages: {'yes' if calm.stages.keys() == torn.stages.keys() else 'no'}, {len(torn.stages)}")
    print(f"same frontier, key by key: {'yes' if fronts[0] == fronts[1] else 'no'}, {len(fronts[1])} points")
    breaches = len(torn.lost) + len(torn.again) + torn.store.duplicates() + sum(zombies.values())
    return breaches == 0 and fronts[0] == fronts[1] and calm.stages.keys() == torn.stages.keys()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=Path("search_spaces/digits_cifarnet.toml"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--driver", type=Path, help="a script SPACE STORAGE in place of `orchestrator search`")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds without a stage that mean a hang")
    parser.add_argument("--work", type=Path, help="a new folder for both studies; else one that is removed")
    return parser.parse_args()


def search_in(folder: Path, given: argparse.Namespace) -> Search:
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "orchestrator", "search", str(given.space), "--storage", str(folder)]
    if given.driver is not None:
        command = [sys.executable, str(given.driver), str(given.space), str(folder)]
    return Search(
        command=command, store=StageStore(folder / given.space.stem), log=folder / "log.txt", patience=given.patience
    )


def main() -> int:
    given = parsed()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        calm, torn = (search_in(work / name, given) for name in ("calm", "torn"))
        try:
            started = time.monotonic()
            until(calm, lambda: over(calm))
            calm.compare()
            print(f"undisturbed: {len(calm.stages)} stages in {time.monotonic() - started:.0f} s", flush=True)
            started = time.monotonic()
            counts = torment(torn, len(calm.stages), given)
            said = ", ".join(f"{kind} {count}" for kind, count in counts.items())
            print(f"killed: {said}; {time.monotonic() - started:.0f} s")
            return 0 if judge(calm, torn) else 1
        finally:
            end(calm)
            end(torn)


if __name__ == "__main__":
    sys.exit(main())
