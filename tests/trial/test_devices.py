"""A trial on two devices: the point of one device, under the same key."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from short_trials import Finished, make_spec

from orchestrator import trial
from orchestrator.record import Schedule
from orchestrator.store import StageStore
from orchestrator.trial.networks import devices_of


def test_two_processes_give_the_point_of_one(finished: Finished, tmp_path: Path) -> None:
    """From trained weights, so that two stages are trained: one with OICSR's penalty, one without."""
    dense = finished.store.folder(finished.outcome.points[0].key)
    assert dense is not None
    gentle = Schedule(epochs=1, learning_rate=0.01, batch_size=65)
    weights = str(dense / "weights.safetensors")
    spec = make_spec(weights=weights, iterations=1, sparse=gentle, recovery=gentle)
    stores = [StageStore(tmp_path / name / "study") for name in ("one", "two")]
    one, two = trial.run(spec, stores[0]), trial.run(spec, stores[1], device=["cpu", "cpu"])
    assert two.failure is None
    assert two.computed == one.computed
    times = {"cost": None, "path_cost": None, "created": None}
    for left, right in zip(one.points, two.points, strict=True):
        assert left.model_copy(update=times) == right.model_copy(update=times)
        assert left.cost.train_flops == right.cost.train_flops
    folders = [store.folder(one.computed[-1]) or Path() for store in stores]
    assert len({(folder / "plan.json").read_text() for folder in folders}) == 1
    weights_of_one, weights_of_two = (load_file(folder / "weights.safetensors") for folder in folders)
    for name, tensor in weights_of_one.items():
        torch.testing.assert_close(weights_of_two[name], tensor, atol=1e-4, rtol=0)


def test_a_trial_has_one_device_or_several() -> None:
    assert devices_of("cpu") == (torch.device("cpu"),)
    assert devices_of(("cuda:0", "cuda:1")) == (torch.device("cuda", 0), torch.device("cuda", 1))
