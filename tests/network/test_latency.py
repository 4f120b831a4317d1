"""Latency: what is measured, how often, in what order, and that all is as before afterwards. On a false clock."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from orchestrator.network.latency import Latency, latency, side_by_side
from orchestrator.record import InvalidInput

SHAPE = (3, 4, 4)


class Watch:
    """A clock that stands still unless a network runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[str] = []

    def __call__(self) -> float:
        return self.now


class Timed(nn.Module):
    """A network whose batches take the given seconds, one after the other, and that remembers how it was run."""

    def __init__(self, watch: Watch, *seconds: float, name: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.watch, self.seconds, self.name = watch, list(seconds), name
        self.seen: list[tuple[tuple[int, ...], torch.dtype, bool, bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.watch.now += self.seconds[len(self.seen) % len(self.seconds)]
        self.watch.runs.append(self.name)
        self.seen.append((
            tuple(x.shape), x.dtype, self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()
        ))  # fmt: skip
        return self.layer(x)


def test_latency_is_the_median_after_the_warm_up() -> None:
    watch = Watch()
    model = Timed(watch, 9.0, 9.0, 0.004, 0.001, 0.002, 0.003, 0.1)
    found = latency(model, SHAPE, batch=8, threads=1, warmup=2, repeats=5, clock=watch)
    assert found.latency_ms == pytest.approx(3.0)
    assert found.p10_ms == pytest.approx(1.4)
    assert found.p90_ms == pytest.approx(61.6)
    assert found.throughput == pytest.approx(8 / 0.003)
    assert (found.batch, found.threads, found.device, found.repeats) == (8, 1, "cpu", 5)
    assert len(model.seen) == 7
    assert Latency.model_validate_json(found.model_dump_json()) == found


def test_a_network_runs_in_evaluation_and_is_left_as_it_was() -> None:
    watch = Watch()
    model = nn.Sequential(Timed(watch, 1.0).half(), nn.Dropout())
    model[0].train()
    model[1].eval()
    threads = torch.get_num_threads()
    found = latency(model, SHAPE, batch=2, threads=threads + 1, warmup=0, repeats=1, clock=watch)
    assert found.threads == threads + 1
    assert model[0].seen == [((2, *SHAPE), torch.float16, False, True, threads + 1)]
    assert [module.training for module in model.children()] == [True, False]
    assert torch.get_num_threads() == threads


def test_modes_and_threads_return_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(5, 5))
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        latency(model, SHAPE, threads=threads + 1)
    assert model.training
    assert torch.get_num_threads() == threads


def test_threads_stay_if_none_are_given() -> None:
    assert latency(nn.Flatten(), SHAPE, warmup=0, repeats=1).threads == torch.get_num_threads()


def test_a_clock_too_coarse_is_no_division_by_zero() -> None:
    watch = Watch()
    found = latency(Timed(watch, 0.0), SHAPE, clock=watch)
    assert (found.latency_ms, found.repeats) == (0.0, 20)


def test_networks_take_turns_and_each_starts_a_round() -> None:
    watch = Watch()
    models = {name: Timed(watch, seconds, name=name) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    found = side_by_side(models, SHAPE, warmup=1, repeats=3, clock=watch)
    assert "".join(watch.runs) == "abcbcacababc"
    assert {name: measured.latency_ms for name, measured in found.items()} == {"a": 1000, "b": 2000, "c": 3000}


def test_a_disturbance_hits_all_alike() -> None:
    """The machine is ten times slower in the second half: the ratio of two networks stays."""
    watch = Watch()
    models = {name: Timed(watch, *[s] * 10, *[10 * s] * 10) for name, s in (("dense", 2.0), ("pruned", 1.0))}
    found = side_by_side(models, SHAPE, warmup=0, repeats=20, clock=watch)
    assert found["dense"].latency_ms == pytest.approx(2 * found["pruned"].latency_ms)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"warmup": -1}, "warmup is -1; it must be at least 0"),
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
        ({"device": "meta"}, "device is meta; latency is measured on cpu and cuda"),
    ],
)
def test_settings_without_sense_are_named(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{message}$"):
        latency(nn.Flatten(), SHAPE, **settings)


def test_there_must_be_a_network() -> None:
    with pytest.raises(InvalidInput, match="models: there is none to be measured"):
        side_by_side({}, SHAPE)


def test_networks_of_two_places_need_a_device() -> None:
    watch = Watch()
    models = {"here": Timed(watch, 1.0), "there": Timed(watch, 1.0).to("meta")}
    with pytest.raises(InvalidInput, match="models are on cpu and meta; give a device for all"):
        side_by_side(models, SHAPE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("place", [lambda model: model.cuda(), lambda model: model])
def test_a_gpu_reads_its_own_clock(place: Callable[[nn.Module], nn.Module]) -> None:
    model = place(nn.Sequential(nn.Flatten(), nn.Linear(48, 48)))
    before = next(model.parameters()).device
    found = latency(model, SHAPE, device="cuda:0", repeats=3, clock=lambda: pytest.fail("the clock was read"))
    assert found.latency_ms > 0
    assert found.device == "cuda:0"
    assert next(model.parameters()).device == before
