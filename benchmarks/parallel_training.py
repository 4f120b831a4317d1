"""One network trained by one process and by two: time of a step side by side, and how far the results are apart.

    python benchmarks/parallel_training.py [--rounds 3] [--steps 40] [--models cifarnet ...] [--devices cpu cpu]

Made-up pictures of 3 x 32 x 32, batch 128, cropped and mirrored at random. Both train the same steps from the same
weights, in turn; on CPUs every process has one thread. Seconds are medians over the rounds: those of a step are those
of the training divided by its steps, and what passes beside it, to start the processes and to send data and weights
to and fro, has a column of its own. Errors are distances of the trained parameters from those that one process finds in
float64, as shares of the way that training went: what rounding does to one process, and what it does to several.
With GPUs: --devices cuda:0 cuda:1.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from orchestrator.network.architectures import build
from orchestrator.record import InvalidInput, Schedule
from orchestrator.training.loop import fit
from orchestrator.training.parallel import fit_parallel
from orchestrator.training.splits import DataSet, Split, in_memory

MODELS = ("cifarnet", "resnet20")
BATCH, SHAPE = 128, (3, 32, 32)


def made_up(pictures: int) -> DataSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (pictures, *SHAPE), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(10, (pictures,), generator=generator))
    return in_memory("made_up", 10, train=split, validation=split, test=split)


def trained(model: nn.Module, data: DataSet, devices: Sequence[str], steps: int) -> tuple[Tensor, float, float]:
    """All parameters after training, seconds of a step, and the seconds that passed beside the steps."""
    copy = deepcopy(model)
    settings = Schedule(epochs=1, learning_rate=0.02, batch_size=BATCH, augmentation="crop_flip")
    torch.set_num_threads(len(devices))  # shared out among the processes
    started = time.perf_counter()
    if len(devices) == 1:
        report = fit(copy, data, settings, seed=0, device=devices[0])
    else:
        report = fit_parallel(copy, data, settings, seed=0, devices=devices)
    beside = time.perf_counter() - started - report.seconds
    return parameters_to_vector(copy.cpu().parameters()).detach(), report.seconds / steps, beside


class InFloat64(nn.Module):
    """A network that computes in float64 what it is asked in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = deepcopy(model).double()

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.inner(pictures.double())
        return found


def measure(name: str, devices: Sequence[str], rounds: int, steps: int) -> str:
    """One network's row of the table."""
    data = made_up(steps * BATCH)
    model = build(name, classes=10, input_shape=SHAPE, seed=0)
    start = parameters_to_vector(model.parameters()).detach()
    times: list[tuple[float, float, float]] = []
    for _ in range(rounds):
        one, alone, _ = trained(model, data, devices[:1], steps)
        other, together, beside = trained(model, data, devices, steps)
        times.append((alone, together, beside))
    alone, together, beside = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(alone / together for alone, together, _ in times)
    exact, _, _ = trained(InFloat64(model), data, devices[:1], steps)
    errors = [float((each - exact).norm() / (exact - start).norm()) for each in (one, other)]
    cells = [name, str(len(devices)), f"{1e3 * alone:.1f}", f"{1e3 * together:.1f}", f"{ratio:.2f}", f"{beside:.1f}"]
    return f"| {' | '.join([*cells, *(f'{found:.1e}' for found in errors)])} |"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--devices", nargs="+", default=["cpu", "cpu"])
    given = parser.parse_args()
    if len(given.devices) < 2:
        print("error: --devices needs two or more, such as cpu cpu", file=sys.stderr)
        return 2
    print(f"batch {BATCH}, 3 x 32 x 32, {given.steps} steps, {given.rounds} rounds\n")
    columns = "one process, ms a step | all, ms a step | times as fast | beside it, s | error of one | error of all"
    print(f"| network | processes | {columns} |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.models:
        try:
            print(measure(name, given.devices, given.rounds, given.steps), flush=True)
        except InvalidInput as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
