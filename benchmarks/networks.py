"""How well networks are coupled and cut: groups, prunable share, seconds, and how far cut and masked differ.

Prints a table and, with --write, puts it into RESULTS.md under "Networks". Exit code 1 if cut and masked differ by
more than 1e-9 on any network: the comparison is in float64, on random weights that keep the signal alive, relative to
how much the output depends on the picture, over three random plans that keep 70 % of every exact group's channels.
"""

import argparse
import os
import platform
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn

from orchestrator.network import CostTable, Coupling, couple, cut, greedy, masked, random_plan
from orchestrator.network.architectures import build
from orchestrator.network.lively import difference, lively_

TOLERANCE = 1e-9
PLANS = 3
REPEATS = 3
FLOPS_KEPT = 0.5
CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)

# name, classes, input shape
NETWORKS: tuple[tuple[str, int, tuple[int, int, int]], ...] = (
    *((name, 10, CIFAR) for name in ("cifarnet", "vgg16", "resnet20", "resnet56", "resnet110")),
    *((name, 10, CIFAR) for name in ("densenet40", "preact_senet18")),
    *((name, 10, CIFAR) for name in ("eca_resnet20", "se_resnet20")),
    ("eca_resnet50", 1000, IMAGENET),
    *((f"torchvision:{name}", 1000, IMAGENET) for name in ("alexnet", "resnet18", "resnet50", "densenet121")),
    *((f"torchvision:{name}", 1000, IMAGENET) for name in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")),
    *((f"torchvision:{name}", 1000, IMAGENET) for name in ("efficientnet_b0", "shufflenet_v2_x1_0")),
    ("torchvision:inception_v3", 1000, (3, 299, 299)),
    *((f"torchvision:{name}", 1000, IMAGENET) for name in ("squeezenet1_1", "regnet_y_400mf")),
)
HEADER = (
    "network", "M flops", "groups", "channels", "prunable share", "couple + greedy + cut, CPU s",
    "worst difference", "exact", "inexact groups", "frozen channels: commonest reason",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network's figures."""

    name: str
    flops: int
    coupling: Coupling
    prunable_share: float
    seconds: float
    difference: float

    @property
    def passed(self) -> bool:
        return self.difference <= TOLERANCE

    def cells(self) -> tuple[str, ...]:
        inexact = sum(not group.exact for group in self.coupling.groups)
        return (
            self.name.removeprefix("torchvision:"),
            f"{self.flops / 1e6:.1f}",
            str(len(self.coupling.groups)),
            str(self.coupling.channels),
            f"{self.prunable_share:.4f}",
            f"{self.seconds:.2f}",
            f"{self.difference:.1e}",
            "yes" if self.passed else "NO",
            str(inexact),
            commonest_reason(self.coupling),
        )


def commonest_reason(coupling: Coupling) -> str:
    """How many channels stay though some layer makes or reads them, and the reason that most of them have."""
    reasons: Counter[str] = Counter()
    for frozen in coupling.frozen:
        reasons[frozen.reason] += frozen.channels
    if not reasons:
        return "0"
    reason, count = reasons.most_common(1)[0]
    return f"{reasons.total()}: {reason} ({count})"


def measure_network(name: str, classes: int, shape: tuple[int, int, int]) -> Row:
    model = build(name, classes=classes, input_shape=shape, seed=0).eval()
    example = torch.zeros(1, *shape)
    timed = [seconds_and_coupling(model, example) for _ in range(REPEATS)]
    coupling = timed[0][1]
    table = CostTable(coupling)
    inputs = tuple(tensor[:2] for tensor in lively_(model, example))
    worst = 0.0
    for seed in range(PLANS):
        plan = random_plan(coupling, seed=seed)
        worst = max(worst, difference(cut(model, coupling, plan), masked(model, coupling, plan), inputs))
    return Row(
        name=name,
        flops=table.flops(),
        coupling=coupling,
        prunable_share=table.prunable_share(),
        seconds=statistics.median(seconds for seconds, _ in timed),
        difference=worst,
    )


def seconds_and_coupling(model: nn.Module, example: torch.Tensor) -> tuple[float, Coupling]:
    start = time.process_time()
    coupling = couple(model, example)
    scores = np.random.default_rng(0).random(coupling.channels)
    plan = greedy(coupling, scores, int(CostTable(coupling).flops() * FLOPS_KEPT))
    cut(model, coupling, plan)
    return time.process_time() - start, coupling


def markdown(rows: Sequence[Row]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(table: str) -> str:
    return (
        "## Networks\n\n"
        f"`make bench-networks`, {datetime.now(UTC):%Y-%m-%d}, one core of {os.cpu_count()} ({platform.machine()}), "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}.\n\n"
        "M flops: multiply-accumulates of convolutions and linear layers at batch 1, biases and norms not counted. "
        "prunable share: the share of them that would go if every group went down to one channel. Seconds: median of "
        f"{REPEATS}. worst difference: of cut and masked over {PLANS} random plans that keep 70 % of every exact "
        "group, in float64 on random weights, relative to how much the output depends on the picture; at most 1e-9. "
        "Inexact groups are left whole there.\n\n"
        f"{table}\n"
    )


def write(text: str, path: Path) -> None:
    """Replace the section "Networks" of a file, or add it."""
    before = path.read_text() if path.exists() else "# Results\n"
    head, found, rest = before.partition("## Networks\n")
    tail = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    path.write_text(f"{head.rstrip()}\n\n{text}{chr(10) + tail if found and tail else ''}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these networks, such as resnet20 or torchvision:resnet18")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md beside this script")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {name for name, _, _ in NETWORKS}
    if unknown:
        parser.error(f"{sorted(unknown)[0]} is none of {', '.join(name for name, _, _ in NETWORKS)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name, classes, shape in NETWORKS:
        if not arguments.names or name in arguments.names:
            rows.append(measure_network(name, classes, shape))
            print(" ".join(rows[-1].cells()[:8]), file=sys.stderr, flush=True)
    table = markdown(rows)
    print(table)
    if arguments.write:
        write(section(table), Path(__file__).with_name("RESULTS.md"))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
