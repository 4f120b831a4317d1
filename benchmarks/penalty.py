"""What a training step costs with the OICSR penalty, and with Torch-Pruning's GroupNormPruner, beside a plain one.

    python benchmarks/penalty.py [--rounds 9] [--steps 3] [--threads 2] [--models resnet18 ...]

All three kinds of step run in turn in one process on the same model, batch 16 at 64 x 64, forward, backward, penalty
and SGD with momentum. A round times `steps` steps of each kind; the figures are medians over the rounds, the added
share is the median of the ratios inside each round, so that a machine that slows down slows down all of them. A row
each for OICSR as the paper has it, which leaves residual streams whole (our default), and for all groups penalised,
as Torch-Pruning always does.
"""

import argparse
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from orchestrator.methods import METHODS, Subject
from orchestrator.network import couple

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "densenet121")
BATCH, SIDE, WEIGHT = 16, 64, 1e-4


def stepper(model: nn.Module, after_backward: Callable[[], None]) -> Callable[[], None]:
    """A step of training on one batch, with something done to the gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    pictures, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, 1000, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(pictures), labels).backward()
        after_backward()
        optimizer.step()

    return step


def torch_pruning_step(model: nn.Module) -> Callable[[], None]:
    """A step with Torch-Pruning's group norm regulariser, its groups built once and beforehand."""
    import torch_pruning as tp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.GroupNormPruner(
            model,
            torch.randn(1, 3, SIDE, SIDE),
            importance=tp.importance.GroupMagnitudeImportance(),
            reg=WEIGHT,
            global_pruning=True,
            ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000],
        )
    pruner.update_regularizer()
    return stepper(model, lambda: pruner.regularize(model))


def seconds(step: Callable[[], None], steps: int) -> float:
    """Of one step, the mean over several."""
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


def measure(name: str, streams: bool, rounds: int, steps: int) -> str:
    """One network's row of the table, residual streams penalised or not."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).train()
    coupling = couple(model, torch.randn(1, 3, SIDE, SIDE))
    method = METHODS["oicsr"]
    options = method.options(residual_streams=streams)
    subject = Subject(model=model, coupling=coupling, options=options, calibration=lambda: (), seed=0)
    assert method.penalty is not None
    with method.penalty(subject, WEIGHT) as penalty:
        assert penalty.after_backward is not None
        kinds = [stepper(model, lambda: None), stepper(model, penalty.after_backward), torch_pruning_step(model)]
        for step in kinds:
            step()
        times = [[seconds(step, steps) for step in kinds] for _ in range(rounds)]
    plain, ours, theirs = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    added_ours = statistics.median(row[1] / row[0] - 1 for row in times)
    added_theirs = statistics.median(row[2] / row[0] - 1 for row in times)
    cells = [name, "all" if streams else "default", *(f"{found:.1f}" for found in (plain, ours, theirs))]
    cells += [f"{added_ours:+.1%}", f"{added_theirs:+.1%}", f"{added_ours / added_theirs:.3f}"]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    given = parser.parse_args()
    if importlib.util.find_spec("torch_pruning") is None:
        print("error: this compares with Torch-Pruning: pip install -e '.[bench]'", file=sys.stderr)
        return 2
    torch.set_num_threads(given.threads)
    print(f"batch {BATCH}, {SIDE} x {SIDE}, {given.threads} threads, {given.rounds} rounds of {given.steps} steps\n")
    columns = "plain step, ms | with OICSR, ms | with Torch-Pruning, ms | OICSR adds | TP adds | OICSR / TP"
    print(f"| network | groups | {columns} |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.models:
        for streams in (False, True):
            print(measure(name, streams, given.rounds, given.steps), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
