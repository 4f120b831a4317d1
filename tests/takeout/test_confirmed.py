"""The model of a confirmed point: of the first seed, whatever the others have reached, with the recorded figures."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from orchestrator import Study
from orchestrator.record import InvalidInput, Stage, stage_key
from orchestrator.store import StageStore, write_record
from orchestrator.takeout import take_out

TEST_ACCURACY = {3: 0.75, 7: 0.875}  # by seed: the second one is better


def confirm(study: Study, point: str, *, failed: bool = False) -> None:
    """A made-up confirmation of two seeds, in the layout of `orchestrator confirm`: copies of the point's own model."""
    store = StageStore(Path(str(study.path)) / "confirmed")
    source = study.store.folder(point)
    assert source is not None
    own = study.store.stage(point)
    for seed, test_accuracy in TEST_ACCURACY.items():
        parameters = {"seed": seed, "recovery": {"epochs": 9}}
        stage = own.model_copy(
            update={
                "parent": None,
                "kind": "dense",
                "parameters": parameters,
                "key": stage_key(None, "dense", parameters),
            }
        )

        def compute(staging: Path, stage: Stage = stage, seed: int = seed, reached: float = test_accuracy) -> None:
            for name in ("weights.safetensors", "model.json", "plan.json"):
                shutil.copyfile(source / name, staging / name)
            write_record(staging / "stage.json", stage)
            told = {"seed": seed, "accuracy": None, "test_accuracy": reached, "path_cost": {"train_flops": 5}}
            (staging / "tested.json").write_text(json.dumps(told))

        store.obtain(stage.key, compute)
        spec = {"point": point, "arm": "pruned", "seed": seed, "with_validation": True}
        arm = {"spec": spec, "stages": [stage.key], "failure": "lost" if failed else None, "created": f"2026-{seed}"}
        store.write_json(f"arms/{seed}.json", arm)
    earlier = {"spec": {**spec, "seed": 1, "length": 0.5}, "stages": ["0" * 64], "created": "2025-1"}
    control = {"spec": {**spec, "seed": 1, "arm": "dense"}, "stages": ["0" * 64], "created": "2027-1"}
    for name, other in (("earlier", earlier), ("control", control)):
        store.write_json(f"arms/{name}.json", other | {"failure": arm["failure"]})


def frame(point: str, **changes: object) -> pd.DataFrame:
    row = {
        "key": point,
        "arm": "pruned",
        "seeds": 2,
        "test_accuracy_mean": 0.8125,
        "test_accuracy_deviation": 0.0884,
        "optimism": 0.03,
        "with_validation": True,
    }
    return pd.DataFrame([row | {"arm": "dense", "test_accuracy_mean": 0.5}, row | changes])


@pytest.fixture
def study(copied: Callable[[str], Study], monkeypatch: pytest.MonkeyPatch, pruned_key: str) -> Study:
    found = copied("small")
    monkeypatch.setattr(Study, "confirmed", lambda self: frame(pruned_key), raising=False)
    return found


def test_the_first_seed_is_taken_with_its_recorded_figures(study: Study, pruned_key: str, tmp_path: Path) -> None:
    confirm(study, pruned_key)
    figures = take_out(study, pruned_key, tmp_path / "out", formats=["safetensors"], confirmed=True)
    assert (figures.origin.seed, figures.test_accuracy, figures.test_accuracy_by) == (3, 0.75, "confirm")
    assert (figures.accuracy, figures.dense_accuracy, figures.search_latency) == (None, None, None)
    assert figures.origin.train_flops == 5
    assert figures.confirmation is not None
    assert (figures.confirmation.point, figures.confirmation.seeds) == (pruned_key, 2)
    card = (tmp_path / "out" / "README.md").read_text()
    for stated in (
        "| test_accuracy (test split, 359 pictures) | 0.7500 |  |",
        "| test_accuracy over 2 seeds | 0.8125 ± 0.0884 |  |",
        "| accuracy (validation split, 360 pictures) | - |  |",
        "this is the model of the first of them, not of the best",
        "The search was optimistic by +0.0300",
        f"--key {pruned_key} --output DIR --confirmed",
        "the mean over all of them is what to expect",
    ):
        assert stated in card


def test_one_seed_has_no_deviation(
    study: Study, pruned_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirm(study, pruned_key)
    one = frame(pruned_key, seeds=1, test_accuracy_deviation=math.nan)
    monkeypatch.setattr(Study, "confirmed", lambda self: one, raising=False)
    figures = take_out(study, pruned_key, tmp_path / "out", formats=["safetensors"], confirmed=True)
    assert figures.confirmation is not None
    assert figures.confirmation.test_accuracy_deviation is None
    assert "| test_accuracy over 1 seeds | 0.8125 |  |" in (tmp_path / "out" / "README.md").read_text()


def test_a_point_that_was_not_confirmed(
    study: Study, pruned_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(study.points()["key"][0])
    with pytest.raises(InvalidInput, match=rf"the point {other[:12]} is not confirmed; `orchestrator confirm` does it"):
        take_out(study, other, tmp_path / "out", confirmed=True)


def test_a_confirmation_whose_model_is_gone(study: Study, pruned_key: str, tmp_path: Path) -> None:
    confirm(study, pruned_key, failed=True)
    with pytest.raises(InvalidInput, match=rf"confirmed: holds no model of the point {pruned_key[:12]}"):
        take_out(study, pruned_key, tmp_path / "out", confirmed=True)


def test_a_damaged_record_is_named(study: Study, pruned_key: str, tmp_path: Path) -> None:
    confirm(study, pruned_key)
    StageStore(Path(str(study.path)) / "confirmed").write_json("arms/3.json", {"stages": []})
    with pytest.raises(InvalidInput, match=r"confirmed/arms/3.json: spec: Field required"):
        take_out(study, pruned_key, tmp_path / "out", confirmed=True)
