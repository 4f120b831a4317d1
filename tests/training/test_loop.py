"""Fitting and measuring: it learns, the seed decides, hooks see every step, nothing outside is touched."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.network.architectures import build
from orchestrator.network.zoo import CifarNet
from orchestrator.record import Schedule
from orchestrator.training import loop
from orchestrator.training.batches import Batches
from orchestrator.training.datasets import load
from orchestrator.training.loop import Diverged, evaluate, fit, learning_rate, precision, reestimate_norm_statistics_
from orchestrator.training.splits import DataSet, Pictures, Split

GOLDEN = Path(__file__).with_name("golden_losses.txt")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load("digits")


@pytest.fixture(scope="module")
def few(digits: DataSet) -> DataSet:
    """64 digits: one batch an epoch."""
    return replace(digits, train=held(digits.train).part(torch.arange(64)))


def cifarnet(seed: int = 0) -> CifarNet:
    model = build("cifarnet", classes=10, input_shape=(1, 8, 8), seed=seed)
    assert isinstance(model, CifarNet)
    return model


def schedule(epochs: int = 2, **changes: Any) -> Schedule:
    return Schedule(**{"epochs": epochs, "learning_rate": 0.05, "batch_size": 64, **changes})


def held(pictures: Pictures) -> Split:
    assert isinstance(pictures, Split)
    return pictures


def statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def weights(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("decay", ["one_cycle", "cosine"])
def test_digits_are_learnt_in_few_epochs(digits: DataSet, decay: str) -> None:
    model = cifarnet()
    report = fit(model, digits, schedule(5, decay=decay), seed=0)
    assert report.samples == 5 * 16 * 64
    assert report.seconds > 0
    assert report.losses[-1] < 0.1
    assert report.losses[-1] < report.losses[0] / 5
    assert evaluate(model, digits, "validation").accuracy > 0.95
    assert evaluate(model, digits, "test").accuracy > 0.95


def test_losses_are_the_stored_ones(few: DataSet) -> None:
    """Twenty steps; rounding may differ between builds of PyTorch, anything else may not.

    The rate is low enough for one rounding not to grow past the tolerance (AVX-512 against SSE: 3e-7).
    """
    settings = schedule(20, learning_rate=0.003, label_smoothing=0.1, augmentation="crop_flip")
    losses = fit(cifarnet(), few, settings, seed=0).losses
    assert losses == pytest.approx([float(line) for line in GOLDEN.read_text().split()], abs=1e-5)


def test_the_seed_decides_and_nothing_outside_is_touched(digits: DataSet) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    runs = []
    for seed in (1, 1, 2):
        model = nn.Sequential(cifarnet(), nn.Dropout(0.5))
        losses = fit(model, digits, schedule(1, augmentation="crop"), seed=seed).losses
        runs.append((losses, weights(model)))
        assert torch.equal(state, torch.get_rng_state())
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert equal(runs[0][1], runs[1][1])


def test_no_epochs_change_nothing(digits: DataSet) -> None:
    model = cifarnet()
    before = weights(model)
    report = fit(model, digits, schedule(0), seed=0)
    assert (report.samples, report.losses) == (0, ())
    assert equal(before, weights(model))


def test_modes_layout_and_gradients_are_left_tidy(digits: DataSet) -> None:
    model = cifarnet().eval()
    model.norm2.train()
    parameters = list(model.parameters())
    fit(model, digits, schedule(1), seed=0)
    evaluate(model, digits, "validation")
    reestimate_norm_statistics_(model, digits, seed=0)
    modes = {name: module.training for name, module in model.named_modules()}
    assert [name for name, training in modes.items() if training] == ["norm2"]
    assert all(old is new for old, new in zip(parameters, model.parameters(), strict=True))
    assert all(p.is_contiguous() and p.grad is None and not p.is_inference() for p in model.parameters())


def test_modes_are_put_back_after_an_exception(digits: DataSet) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    model = cifarnet().eval()
    with pytest.raises(Stop):
        fit(model, digits, schedule(1), seed=0, after_backward=stop)
    assert not model.training
    assert model.conv2.weight.is_contiguous()


def test_after_backward_runs_each_step_and_its_gradients_count(digits: DataSet) -> None:
    model = cifarnet()
    frozen = model.conv1.weight.detach().clone()
    seen = []

    def freeze_first() -> None:
        assert model.training
        seen.append(float(gradient(model.conv1.weight).abs().sum()))
        gradient(model.conv1.weight).zero_()

    fit(model, digits, schedule(2, weight_decay=0.0), seed=0, after_backward=freeze_first)
    assert len(seen) == 2 * 16
    assert min(seen) > 0
    assert torch.equal(model.conv1.weight, frozen)
    assert not torch.equal(model.conv2.weight, cifarnet().conv2.weight)


def test_extra_loss_runs_after_each_forward_pass_and_is_minimised(digits: DataSet) -> None:
    calls = []

    def run(weight: float) -> tuple[float, tuple[float, ...]]:
        model = cifarnet()
        features: list[Tensor] = []
        hook = model.conv3.register_forward_hook(lambda _, __, out: features.append(out))

        def size() -> Tensor:
            calls.append(len(features))
            return weight * features.pop().square().mean()

        report = fit(model, digits, schedule(2), seed=0, extra_loss=size)
        hook.remove()
        return float(model.conv3.weight.detach().norm()), report.losses

    (free, losses), (held, held_losses) = run(0.0), run(10.0)
    assert calls == [1] * 2 * 2 * 16
    assert held < free
    plain = fit(cifarnet(), digits, schedule(2), seed=0).losses
    assert losses == pytest.approx(plain)
    assert held_losses[-1] < 3  # cross-entropy alone is reported


def test_gradients_of_both_hooks_add_up(few: DataSet) -> None:
    """One step of plain SGD on the whole set: the weight moves by the rate times the sum of the three gradients."""
    linear = nn.Linear(64, 10)
    before, bias = (parameter.detach().clone().requires_grad_() for parameter in linear.parameters())
    pictures, labels = next(Batches(few, few.train, 64, CPU).in_order())
    F.cross_entropy(F.linear(pictures.flatten(1), before, bias), labels).backward()
    settings = schedule(1, momentum=0.0, weight_decay=0.0)

    def after_backward() -> None:
        gradient(linear.weight).add_(1.0)

    model = nn.Sequential(nn.Flatten(), linear)
    fit(model, few, settings, seed=0, extra_loss=lambda: 3 * linear.weight.sum(), after_backward=after_backward)
    moved = (before - linear.weight).detach()
    torch.testing.assert_close(moved, learning_rate(settings, 0, 1) * (gradient(before) + 3.0 + 1.0))


def test_weight_decay_spares_biases_and_norms(few: DataSet) -> None:
    norm, linear = nn.BatchNorm2d(1), nn.Linear(64, 10)
    model = nn.Sequential(norm, nn.Flatten(), linear)
    nn.init.constant_(norm.bias, 0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def no_gradient() -> None:
        for parameter in model.parameters():
            gradient(parameter).zero_()

    settings = schedule(1, weight_decay=0.1, momentum=0.0)
    fit(model, few, settings, seed=0, after_backward=no_gradient)
    shrunk = 1 - 0.1 * learning_rate(settings, 0, 1)
    torch.testing.assert_close(linear.weight.detach(), before["2.weight"] * shrunk)
    assert torch.equal(linear.bias, before["2.bias"])
    assert torch.equal(norm.weight, before["0.weight"])
    assert torch.equal(norm.bias, before["0.bias"])


def test_an_absurd_learning_rate_diverges_with_the_place(digits: DataSet) -> None:
    with pytest.raises(Diverged, match=r"the loss became (nan|inf) in epoch \d+, step \d+"):
        fit(cifarnet(), digits, schedule(2, learning_rate=1e30, decay="cosine"), seed=0)


def test_the_step_of_divergence_is_exact_across_looks(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECK_EVERY", 4)
    steps = []

    def poison() -> Tensor:
        steps.append(1)
        return torch.tensor(math.nan if len(steps) == 16 + 7 else 0.0)

    with pytest.raises(Diverged, match="the loss became nan in epoch 2, step 7"):
        fit(cifarnet(), digits, schedule(3), seed=0, extra_loss=poison)
    assert len(steps) == 16 + 8  # noticed at the next look


def test_a_weight_broken_by_the_last_step_is_named(few: DataSet) -> None:
    linear = nn.Linear(64, 10)

    def break_() -> None:
        gradient(linear.weight).fill_(math.inf)

    with pytest.raises(Diverged, match=r"1\.weight is not finite after the last step"):
        fit(nn.Sequential(nn.Flatten(), linear), few, schedule(1), seed=0, after_backward=break_)


def test_frozen_parameters_stay(digits: DataSet) -> None:
    model = cifarnet()
    model.conv1.weight.requires_grad_(False)
    before = model.conv1.weight.clone()
    fit(model, digits, schedule(1), seed=0)
    assert torch.equal(before, model.conv1.weight)


def test_one_cycle_is_pytorchs() -> None:
    settings = schedule(1, learning_rate=0.3)
    steps = 200
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.3, total_steps=steps, pct_start=loop.WARM_UP, cycle_momentum=False
    )
    for step in range(steps):
        assert learning_rate(settings, step, steps) == pytest.approx(oracle.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step < steps - 1:
            oracle.step()


def test_cosine_is_pytorchs() -> None:
    settings = schedule(1, learning_rate=0.3, decay="cosine")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for step in range(50):
        assert learning_rate(settings, step, 50) == pytest.approx(oracle.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        oracle.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("decay", ["one_cycle", "cosine"])
def test_short_schedules_have_rates_too(decay: str, steps: int) -> None:
    rates = [learning_rate(schedule(1, decay=decay), step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.05 for rate in rates)
    assert max(rates) > 0.04


@pytest.mark.parametrize(
    ("device", "native", "expected"),
    [("cpu", None, None), ("cuda", True, torch.bfloat16), ("cuda", False, None), ("mps", None, None)],
)
def test_precision_follows_the_device(device: str, native: bool | None, expected: torch.dtype | None) -> None:
    assert precision(torch.device(device), native_bfloat16=native) == expected


def test_the_bfloat16_path_learns_too(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, on the CPU: autocast and convolutions in bfloat16, weights and loss in float32."""
    seen = set()
    model = cifarnet()
    model.conv2.register_forward_hook(lambda _, __, out: seen.add((out.dtype, model.training)))
    monkeypatch.setattr(loop, "precision", lambda device: torch.bfloat16)
    report = fit(model, digits, schedule(3), seed=0)
    assert report.losses[-1] < 0.3
    assert evaluate(model, digits, "validation").accuracy > 0.9
    assert seen == {(torch.bfloat16, True), (torch.float32, False)}  # measured in float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_gpu_settings_are_put_back() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    with loop._gpu_products():
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.allow_tf32
    after = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    assert before == after


def test_weights_and_features_are_channels_last_in_training(digits: DataSet) -> None:
    model = cifarnet()
    features: list[bool] = []
    for conv in (model.conv1, model.conv2):  # one of one input channel, one of many
        conv.register_forward_hook(lambda _, __, out: features.append(out.stride(1) == 1))
    fit(model, digits, schedule(1), seed=0, after_backward=lambda: features.append(model.conv2.weight.stride(1) == 1))
    assert all(features)


def test_evaluation_equals_a_direct_computation(digits: DataSet) -> None:
    model = cifarnet().train()
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before = weights(model)
    measured = evaluate(model, digits, "test", batch_size=100)
    assert model.training
    assert model.conv1.weight.grad is not None
    assert equal(before, weights(model))
    split = held(digits.test)
    pictures = (split.images / 255 - digits.mean[0]) / digits.std[0]
    with torch.no_grad():
        out = model.eval()(pictures)
    assert measured.accuracy == float((out.argmax(1) == split.labels).double().mean())
    assert measured.loss == pytest.approx(float(F.cross_entropy(out, split.labels)), rel=1e-5)


def test_norm_statistics_equal_a_direct_computation(digits: DataSet) -> None:
    """Averages over the batches of each batch's mean and unbiased variance, of what reaches the norm."""
    model = cifarnet()
    nn.init.constant_(statistics(model.norm1)[0], 100.0)
    inputs: list[Tensor] = []
    hook = model.norm1.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    reestimate_norm_statistics_(model, digits, seed=5, batches=3, batch_size=50)
    hook.remove()
    assert [len(batch) for batch in inputs] == [50, 50, 50]
    batches = list(Batches(digits, digits.train, 50, CPU).shuffled(5))[:3]
    direct = [model.conv1(pictures).detach() for pictures, _ in batches]
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in direct]).mean(0)
    variance = torch.stack([batch.var((0, 2, 3)) for batch in direct]).mean(0)
    torch.testing.assert_close(statistics(model.norm1), (mean, variance), rtol=1e-4, atol=1e-6)


def test_norm_statistics_alone_change(digits: DataSet) -> None:
    norm = nn.BatchNorm1d(10, momentum=0.3)
    model = nn.Sequential(cifarnet(), nn.Dropout(0.9), norm)
    again = nn.Sequential(cifarnet(), nn.Dropout(0.9), nn.BatchNorm1d(10, momentum=0.3))
    before = model.state_dict()
    unchanged = {
        name: tensor.clone() for name, tensor in before.items() if "running" not in name and "num_" not in name
    }
    for each in (model, again):
        reestimate_norm_statistics_(each, digits, seed=1)
    after = model.state_dict()
    assert all(torch.equal(unchanged[name], after[name]) for name in unchanged)
    assert norm.momentum == 0.3
    assert all(module.training for module in model.modules())
    assert equal(weights(model), weights(again))
    assert float(statistics(norm)[0].abs().max()) > 0
    assert not any(tensor.is_inference() for tensor in after.values())


def test_norm_statistics_mend_a_model_that_lost_them(digits: DataSet) -> None:
    model = cifarnet()
    fit(model, digits, schedule(5), seed=0)
    good = evaluate(model, digits, "validation").accuracy
    model.norm2.reset_running_stats()
    lost = evaluate(model, digits, "validation").accuracy
    reestimate_norm_statistics_(model, digits, seed=0)
    assert lost < good - 0.05
    assert evaluate(model, digits, "validation").accuracy > good - 0.02


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(64, 10)),
    ],
)
def test_a_model_without_norm_statistics_is_left_alone(digits: DataSet, model: Callable[[], nn.Module]) -> None:
    made = model()
    before = weights(made)
    reestimate_norm_statistics_(made, digits, seed=0)
    assert equal(before, weights(made))
