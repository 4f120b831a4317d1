"""A made-up study with all that a page shows, and a browser to open the page in."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator import Study
from orchestrator.record import (
    ArmRecord,
    ArmSpec,
    Cost,
    Failure,
    Measured,
    Schedule,
    Stage,
    TrialRecord,
    TrialSpec,
    stage_key,
    whereabouts,
)
from orchestrator.stage_files import write_record
from orchestrator.store import CONFIRMED, StageStore

SCHEDULE = Schedule(epochs=1, learning_rate=0.1)
RATIOS = (0.3, 0.45)
WEIGHTS = (1e-4, 1e-3)
DEFINITION = {
    "trial": {
        "model": "cifarnet",
        "dataset": "digits",
        "method": "oicsr",
        "method_options": {},
        "seed": 0,
        "weights": None,
        "dense": SCHEDULE.model_dump(),
        "sparse": SCHEDULE.model_dump(),
        "recovery": SCHEDULE.model_dump(),
    },
    "search": {
        "regularization_weight": {"kind": "grid", "values": list(WEIGHTS)},
        "pruning_ratio": {"kind": "grid", "values": list(RATIOS)},
        "iterations": {"kind": "range", "low": 1, "high": 3, "log": False, "whole": True},
    },
    "proposals": {"seed": 0, "parallel": 4, "startup": 8},
}


def spec_of(weight: float, ratio: float, iterations: int = 3) -> TrialSpec:
    return TrialSpec(
        model="cifarnet",
        dataset="digits",
        regularization_weight=weight,
        pruning_ratio=ratio,
        iterations=iterations,
        dense=SCHEDULE,
        sparse=SCHEDULE,
        recovery=SCHEDULE,
    )


def end_trial(store: StageStore, index: int, weight: float, ratio: float, **how: Any) -> TrialRecord:
    """Records the end of a made-up trial whose stages are there."""
    points = Study(store.root).points()
    own = points[(points["regularization_weight"] == weight) & (points["pruning_ratio"] == ratio)]
    keys = (points["key"].iloc[0], *own.sort_values("iteration")["key"])
    trial = TrialRecord(index=index, spec=spec_of(weight, ratio), stages=keys, created="2026-01-01", **how)
    store.record_trial(trial)
    return trial


def describe(store: StageStore) -> None:
    """Gives every pruned point a model.json with its widths, as a real one has."""
    points = Study(store.root).points()
    for row in points[points["kind"] == "cut"].to_dict(orient="records"):
        widths = {"conv1": {"channels": round(32 * row["flops_kept"]) or 1, "dense": 32}}
        widths["conv10"] = {"channels": 60, "dense": 64}
        if row["iteration"] > 1:
            widths["conv2"] = {"channels": 31, "dense": 32}
        store.write_json(f"stages/{row['key']}/model.json", {"widths": widths})


def record_failure(store: StageStore, message: str, key: str = "f" * 64) -> None:
    spec = spec_of(1e-3, 0.3)
    store.record_failure(
        Failure(key=key, spec=spec, reason="error", message=message, traceback="secret", **whereabouts())
    )


@pytest.fixture
def full_study(study: StageStore) -> Study:
    """The made-up study with trials that ended, one that was stopped, a failure, widths and its definition."""
    study.write_json("study.json", {"name": "small", "definition": DEFINITION, "created": "2026-01-01"})
    describe(study)
    for index, (weight, ratio) in enumerate((w, r) for w in WEIGHTS for r in RATIOS):
        end_trial(study, index, weight, ratio, stopped="what is left is dominated" if index == 3 else None)
    record_failure(study, "the loss is NaN in epoch 3")
    return Study(study.root)


@pytest.fixture
def measure(study: StageStore) -> Callable[..., str]:
    """measure(point, arm, seed, test_accuracy): a model of a confirmation; returns its key."""
    store = StageStore(study.root / CONFIRMED)
    moments = iter(range(10, 60))

    def publish(
        point: str,
        arm: str,
        seed: int,
        test_accuracy: float,
        *,
        length: float = 1.0,
        with_validation: bool = False,
        failure: str | None = None,
    ) -> str:
        moment = f"2026-01-01T00:00:{next(moments)}.000+00:00"
        parameters: dict[str, Any] = {
            "point": point,
            "arm": arm,
            "seed": seed,
            "length": length,
            "data": with_validation,
        }
        key = stage_key(None, "cut", parameters)
        cost = Cost(train_flops=1000 + seed)
        tested = Measured(
            key=key,
            parent=None,
            kind="cut",
            iteration=1,
            model="cifarnet",
            dataset="digits",
            seed=seed,
            flops=5000 + seed,
            params=70,
            flops_kept=0.5,
            test_accuracy=test_accuracy,
            accuracy=None,
            epochs=4,
            cost=cost,
            path_cost=cost,
            created=moment,
        )
        stage = Stage(key=key, parent=None, kind="cut", parameters=parameters, cost=cost, **whereabouts())

        def compute(folder: Path) -> None:
            write_record(folder / "stage.json", stage)
            write_record(folder / "tested.json", tested)

        store.obtain(key, compute)
        spec = ArmSpec(
            model="cifarnet",
            dataset="digits",
            regularization_weight=0.01,
            pruning_ratio=0.3,
            iterations=1,
            seed=seed,
            dense=SCHEDULE,
            sparse=SCHEDULE,
            recovery=SCHEDULE,
            point=point,
            path=stage_key(None, "cut", {**parameters, "arm": "pruned"}),
            arm=arm,
            with_validation=with_validation,
            length=length,
        )
        store.record_arm(ArmRecord(spec=spec, stages=(key,), failure=failure, created=moment))
        return key

    return publish


class ManyPoints(Study):
    """A study whose index claims 100,000 points: 12,500 trials of a dense model's, of 8 iterations each."""

    def stages(self) -> pd.DataFrame:
        known, count = super().stages(), 100_000
        dense, cut = known[known["kind"] == "dense"], known[known["kind"] == "cut"]
        random = np.random.default_rng(0)
        iteration = np.tile(np.arange(1, 9), count // 8)[: count - 1]
        ratio = np.repeat(random.choice([0.2, 0.25, 0.3, 0.35], count // 8), 8)[: count - 1]
        kept = (1 - ratio) ** iteration * random.uniform(0.95, 1, count - 1)
        keys = [f"{random.integers(2**63):016x}{place:048x}" for place in range(count - 1)]
        points = cut.iloc[np.zeros(count - 1, int)].assign(
            key=keys,
            parent=[
                dense["key"].iloc[0] if nth == 1 else before
                for nth, before in zip(iteration, ["", *keys], strict=False)
            ],
            iteration=iteration,
            pruning_ratio=ratio,
            flops=(1e9 * kept).astype(int),
            params=(1e6 * kept).astype(int),
            flops_kept=kept,
            accuracy=0.97 - 0.3 * (1 - kept) ** 6 - random.exponential(0.02, count - 1),
        )
        return pd.concat([dense.assign(flops=10**9), points], ignore_index=True)


@pytest.fixture
def many_points(full_study: Study) -> Study:
    return ManyPoints(full_study.path)


def chromium() -> str | None:
    """Debian's Chromium, or one of another name."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium. Skips where there is none, but for continuous integration, which installs it."""
    found = chromium()
    if found is None and os.environ.get("CI") != "true":
        pytest.skip("no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    switches = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=found, args=[*switches, "--disable-component-update", "--disable-sync"]
        )
        yield launched
        launched.close()


class Opened:
    """A page in a browser, and everything that it asked for or complained about."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        self.page.goto(address)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.page.locator("#data").text_content())
        return found


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Opened]]:
    """open_page(address, **settings of the browser's context) -> Opened; no page may have asked anybody else."""
    pages: list[Opened] = []

    def opener(address: str, **settings: Any) -> Opened:
        pages.append(Opened(browser, address, **settings))
        return pages[-1]

    yield opener
    for opened in pages:
        opened.context.close()
        outside = [url for url in opened.requests if not url.startswith(("file://", "http://127.0.0.1:", "data:"))]
        assert outside == []
        assert opened.complaints == []
