"""Fitting a network to a data set, and measuring it. Knows nothing of pruning: `fit` takes two functions instead."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.network.seeding import seeded
from orchestrator.record import Schedule
from orchestrator.training.batches import Batch, Batches
from orchestrator.training.share import Alone, Share
from orchestrator.training.splits import DataSet, SplitName

WARM_UP = 0.25  # share of the steps in which one_cycle rises to its peak
FIRST, LAST = 1 / 25, 1e-4  # where it starts and where it ends, as shares of the peak
CHECK_EVERY = 200  # steps between looks at the loss, each of which waits for the device
ALONE = Alone()


class Diverged(RuntimeError):
    """The loss or a weight is no longer a finite number."""


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What a training run took, and the mean cross-entropy of each of its epochs."""

    samples: int
    seconds: float
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Top-1 accuracy in [0, 1] and mean cross-entropy over one split."""

    accuracy: float
    loss: float


def precision(device: torch.device, *, native_bfloat16: bool | None = None) -> torch.dtype | None:
    """The type that autocast trains in: bfloat16 on a GPU that has it, on anything else none, plain float32."""
    if device.type != "cuda":
        return None
    if native_bfloat16 is None:
        native_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native_bfloat16 else None


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """The rate of one step, from 0 to steps - 1.

    cosine falls from the peak to 0 (Loshchilov & Hutter 2017, without restarts). one_cycle rises for the first quarter
    and falls for the rest, both along half a cosine (Smith & Topin 2017, as torch.optim's OneCycleLR draws it).
    """
    peak = schedule.learning_rate
    if schedule.decay == "cosine":
        return peak * _eased(1.0, 0.0, step / steps)
    turn = max(WARM_UP * steps - 1, 0.0)
    if step < turn:
        return peak * _eased(FIRST, 1.0, step / turn)
    return peak * _eased(1.0, FIRST * LAST, (step - turn) / max(steps - 1 - turn, 1.0))


def _eased(start: float, end: float, done: float) -> float:
    """From start to end along half a cosine; done is in [0, 1]."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def fit(
    model: nn.Module,
    data: DataSet,
    schedule: Schedule,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    extra_loss: Callable[[], Tensor] | None = None,
    after_backward: Callable[[], None] | None = None,
    share: Share = ALONE,
) -> FitReport:
    """Train the model in place on data.train by SGD with Nesterov momentum, the rate set anew at each step.

    `extra_loss` is called after each forward pass and added to the loss; `after_backward` after each backward pass, to
    change the gradients (`.grad` is None where no loss reaches). Both see weights in the channels_last layout, which
    `view` refuses and `reshape` takes. Weight decay acts on parameters of two or more dimensions alone, not on biases
    and norms. Batches are full: what is left over, drawn anew, sits an epoch out. `share` is this process's part where
    several train one model together (`parallel`); the report is of the whole.

    The model moves to the device and stays there; its modes are left as they were, its weights contiguous, without
    gradients. The same seed gives the same weights on a CPU with the same number of threads; the caller's random state
    is not touched. Raises Diverged.
    """
    device = torch.device(device)
    started = time.perf_counter()
    epoch_seeds = torch.randint(2**62, (schedule.epochs,), generator=Generator().manual_seed(seed)).tolist()
    losses = []
    with seeded(seed + share.index, device), _prepared(model, device, training=True):
        batches = Batches(data, data.train, schedule.batch_size, device)
        steps = batches.full * schedule.epochs
        step = _Step(model, schedule, steps, precision(device), share, extra_loss, after_backward)
        for number, epoch_seed in enumerate(epoch_seeds, start=1):
            losses.append(_epoch(step, batches.shuffled(epoch_seed, schedule.augmentation, share.part), number))
            share.level_()
    model.zero_grad()
    _check_weights(model)
    samples = len(losses) * batches.full * batches.batch_size
    return FitReport(samples=samples, seconds=time.perf_counter() - started, losses=tuple(losses))


class _Step:
    """One step of training after another: closes over the optimiser and the number of steps done."""

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        steps: int,
        autocast: torch.dtype | None,
        share: Share,
        *hooks: Callable[[], Any] | None,
    ) -> None:
        self.model, self.schedule, self.steps, self.autocast = model, schedule, steps, autocast
        self.share = share
        self.extra_loss, self.after_backward = hooks
        self.optimizer = _optimizer(model, schedule)
        self.done = 0

    def __call__(self, pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The cross-entropy of this share, and the whole loss; neither is waited for."""
        rate = learning_rate(self.schedule, self.done, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(pictures.device.type, self.autocast) if self.autocast else nullcontext():
            out = self.model(pictures)
        cross_entropy = F.cross_entropy(out.float(), labels, label_smoothing=self.schedule.label_smoothing)
        loss = cross_entropy if self.extra_loss is None else cross_entropy + self.extra_loss()
        self.optimizer.zero_grad()
        self.share.backward(loss)
        if self.after_backward is not None:
            self.after_backward()
        self.optimizer.step()
        self.done += 1
        return cross_entropy.detach(), loss.detach()


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # not fused=True: it is no faster here, and wrong without a word where a gradient's layout is not its weight's
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=schedule.learning_rate,
        momentum=schedule.momentum,
        nesterov=schedule.momentum > 0,
        foreach=True,
    )


def _epoch(step: _Step, batches: Iterable[Batch], number: int) -> float:
    """Train one epoch; its mean cross-entropy."""
    cross_entropies, losses = [], []
    for batch in batches:
        cross_entropy, loss = step(*batch)
        cross_entropies.append(cross_entropy)
        losses.append(loss)
        if len(losses) % CHECK_EVERY == 0:
            _check_losses(step.share, losses[-CHECK_EVERY:], number, len(losses) - CHECK_EVERY)
    _check_losses(step.share, losses, number, 0)
    return float(step.share.over_whole_batches(torch.stack(cross_entropies)).mean())


def _check_losses(share: Share, losses: list[Tensor], epoch: int, before: int) -> None:
    values = share.over_whole_batches(torch.stack(losses))
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise Diverged(f"the loss became {values[bad[0]].item()} in epoch {epoch}, step {before + bad[0] + 1}")


def _check_weights(model: nn.Module) -> None:
    """The last step can break a weight after its loss was looked at."""
    tensors = [(name, tensor) for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
    finite = torch.stack([tensor.isfinite().all() for _, tensor in tensors]).tolist()
    if not all(finite):
        raise Diverged(f"{tensors[finite.index(False)][0]} is not finite after the last step")


def evaluate(
    model: nn.Module,
    data: DataSet,
    split: SplitName,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 512,
) -> Evaluation:
    """Measure the model on one split, in float32 on any device, so that a stored figure holds on all.

    The model moves to the device and stays there; its modes are left as they were.
    """
    device = torch.device(device)
    batches = Batches(data, data.split(split), batch_size, device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with _prepared(model, device, training=False), torch.inference_mode():
        for pictures, labels in batches.in_order():
            out = model(pictures)
            correct += (out.argmax(1) == labels).sum()
            loss += F.cross_entropy(out, labels, reduction="sum")
    return Evaluation(accuracy=correct.item() / batches.count, loss=loss.item() / batches.count)


def reestimate_norm_statistics_(
    model: nn.Module,
    data: DataSet,
    *,
    seed: int,
    batches: int = 8,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
) -> None:
    """Measure anew the means and variances that batch norms evaluate with, over a few train batches, unaugmented.

    Each becomes the plain average over the batches. Nothing else changes: no weight, no mode; all but the batch norms
    (dropout, say) run as in evaluation.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return
    device = torch.device(device)
    momenta = [norm.momentum for norm in norms]
    with seeded(seed, device), _prepared(model, device, training=False), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's word for the plain average
            norm.training = True
        try:
            for pictures, _ in islice(Batches(data, data.train, batch_size, device).shuffled(seed), batches):
                model(pictures)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@contextmanager
def _prepared(model: nn.Module, device: torch.device, *, training: bool) -> Iterator[None]:
    """The model on the device, in one mode, laid out and computing as is fastest there; modes and layout put back.

    channels_last is the faster layout for convolutions on CPUs and GPUs alike.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.to(device)
    _lay_out_(model, torch.channels_last)
    model.train(training)
    try:
        with _gpu_products() if device.type == "cuda" else nullcontext():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        _lay_out_(model, torch.contiguous_format)


def _lay_out_(model: nn.Module, layout: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 4:
            # contiguous() would leave a weight of one input channel as it is, and all that follows it in NCHW
            parameter.data = parameter.data.clone(memory_format=layout)


@contextmanager
def _gpu_products() -> Iterator[None]:
    """float32 products rounded to TF32, convolution algorithms chosen by trial; both settings put back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
