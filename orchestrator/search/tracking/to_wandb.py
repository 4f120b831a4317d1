"""Weights & Biases: a run for each trial and one for the whole study, grouped under the study's name.

Online only where the user has logged in; with WANDB_MODE=offline all stays in the folder wandb/, for `wandb sync`. Runs
cannot be asked for there, so what has been written is noted in the study, in trackers/wandb-<project>.json; without
that file a launch writes all trials again, to runs of the same ids. W&B takes what it is told in a process of its own,
and says that it has it only when a run is finished; so what the whole study's run was told last is told again by the
next launch, should this one be killed.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import quote

from orchestrator.record import InvalidInput, Point, TrialSpec
from orchestrator.search.tracking.interface import (
    About,
    Ended,
    Known,
    Standing,
    figures_of,
    settings_of,
    study_figures,
)
from orchestrator.store import StageStore

STUDY = "study"
SETTLED_SECONDS = 60.0  # after which what W&B was told is taken to be written
ALLOWED = "give the name of a project, or entity/project"
# Nothing of the machine, of its folders and of what is printed: a run holds what is told here.
QUIET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class WandB:
    """Writes to a project, given as "project" or "entity/project"."""

    def __init__(self, project: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises InvalidInput for a bad name and where nobody has logged in, and ImportError without wandb."""
        if not re.fullmatch(r"([^/]+/)?[^/\\#?%:]{1,128}", project):
            raise InvalidInput(f"--wandb is {project!r}; {ALLOWED}")
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # to its makers; read when wandb is imported
        import wandb

        self._wandb = wandb
        self._name = project
        *entity, self._project = project.split("/")
        self._entity = entity[0] if entity else None
        self._settings = wandb.Settings(**QUIET)
        self._mode: Literal["online", "offline"] = _mode(wandb)
        self._runs: dict[str, Any] = {}
        self._told: deque[tuple[float, int]] = deque()  # moments and standings that may not have arrived yet
        self._clock = clock

    @property
    def name(self) -> str:
        return f"W&B project {self._name}"

    @property
    def look(self) -> str:
        folder = os.environ.get("WANDB_DIR", ".")
        return (
            "look there" if self._mode == "online" else f"offline; send with: wandb sync {folder}/wandb/offline-run-*"
        )

    def begin(self, about: About, store: StageStore) -> Known:
        self._about, self._store = about, store
        self._notes = f"trackers/wandb-{quote(self._name, safe='')}.json"
        there = store.read_json(self._notes) or {"failed": [], "passed": [], "standings": 0}
        failed = {**dict.fromkeys(there["passed"], False), **dict.fromkeys(there["failed"], True)}
        self._known = Known(failed=failed, standings=there["standings"])
        return Known(failed=dict(failed), standings=self._known.standings)

    def point(self, index: int, spec: TrialSpec, point: Point) -> None:
        row = {**figures_of(point), "iteration": point.iteration, "key": point.key}
        self._run(index, spec).log(row, step=point.iteration)

    def ended(self, ended: Ended) -> None:
        run = self._run(ended.index, ended.spec)
        failed = ended.status == "failed"
        run.summary.update({"status": ended.status, "reason": ended.reason or ""})
        run.finish(exit_code=1 if failed else 0)
        del self._runs[str(ended.index)]
        self._known.failed[ended.index] = failed

    def standing(self, standing: Standing) -> None:
        if STUDY not in self._runs:
            run = self._open(STUDY, f"study {self._about.name}", {})
            for name in ("hypervolume", "frontier_size"):
                run.define_metric(name, step_metric="train_flops")
        row = {**study_figures(standing), "trials": standing.trials}
        self._runs[STUDY].log(row, step=standing.trials, commit=True)
        self._told.append((self._clock(), standing.trials))
        while self._told and self._told[0][0] <= self._clock() - SETTLED_SECONDS:
            self._known.standings = self._told.popleft()[1]
        self._note()

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()
        self._runs = {}
        if self._told:
            self._known.standings = self._told[-1][1]
            self._told.clear()
            self._note()

    def _run(self, index: int, spec: TrialSpec) -> Any:
        name = str(index)
        return self._runs.get(name) or self._open(name, f"trial {index}", dict(settings_of(spec, self._about)))

    def _open(self, name: str, title: str, config: dict[str, Any]) -> Any:
        """A run of its own identity: one that an earlier launch began goes on."""
        self._runs[name] = self._wandb.init(
            entity=self._entity,
            project=self._project,
            id=f"{self._about.identity}-{name}",
            resume="allow",
            reinit="create_new",  # beside those that are open
            name=title,
            group=self._about.name,
            job_type="study" if name == STUDY else "trial",
            config=config,
            mode=self._mode,
            settings=self._settings,
        )
        return self._runs[name]

    def _note(self) -> None:
        found: dict[bool, list[int]] = {True: [], False: []}
        for index, failed in sorted(self._known.failed.items()):
            found[failed].append(index)
        notes = {"passed": found[False], "failed": found[True], "standings": self._known.standings}
        self._store.write_json(self._notes, notes)


def _mode(wandb: Any) -> Literal["online", "offline"]:
    """Whether runs are sent, as the user has set it for all of wandb. Raises InvalidInput where nobody can log in."""
    from wandb.sdk.lib import wbauth  # the public `wandb.login` asks at the terminal

    settings = wandb.setup().settings
    mode = settings.mode
    if mode == "disabled":
        raise InvalidInput("--wandb writes nothing: W&B is disabled here, by WANDB_MODE or its settings")
    if mode in ("offline", "dryrun"):
        return "offline"
    if wbauth.authenticate_session(host=settings.base_url, source="orchestrator", prompt=False) is None:
        raise InvalidInput("--wandb needs a login: run `wandb login`, or set WANDB_MODE=offline")
    return "online"
