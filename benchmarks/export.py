"""Pruned networks that leave: saved, loaded by a fresh process, exported; what differs, how large, how fast.

    python benchmarks/export.py [NETWORK ...] [--side 224] [--threads 2] [--batches 1 32] [--write]

Each network has random weights that keep its signal alive and is pruned to half of its flops by L1 filter norms over
their group's mean: once as it comes, and once with round_to=8, to widths that are multiples of 8. The differences are
from the pruned network in memory, relative to its largest output, over batches of 1, 2 and 5 pictures: of the folder
that `orchestrator.load` reads in a process of its own, of the ONNX file under ONNX Runtime, of the torch.export file.
Latency is PyTorch's on the CPU in float32, the dense network and both pruned ones in turn: the median of a batch, and
the tenth and ninetieth percentile. Prints a table and, with --write, puts it into RESULTS.md under "Export". Exit
code 1 if a difference is above 1e-5.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from orchestrator.methods import Subject
from orchestrator.methods.filter_norm import FilterNormOptions, filter_norm
from orchestrator.network import CostTable, Coupling, Plan, couple, cut, greedy
from orchestrator.network.architectures import build
from orchestrator.network.artifact import Architecture, save
from orchestrator.network.export import BATCHES, Exported, to_onnx, to_torch_export
from orchestrator.network.latency import Latency, side_by_side
from orchestrator.network.lively import lively_
from orchestrator.record import InvalidInput

NETWORKS = ("torchvision:resnet50", "torchvision:mobilenet_v3_large", "torchvision:densenet121")
CLASSES = 1000
FLOPS_KEPT = 0.5
GROUP_CAP = 0.9
ROUND_TO = (1, 8)
TOLERANCE = 1e-5
PICTURES = 160  # that a network is timed on, in no fewer than 5 batches and no more than 30

RELOAD = """
import sys, orchestrator
network = orchestrator.load(sys.argv[1])
import torch
from safetensors.torch import load_file, save_file
with torch.inference_mode():
    save_file({batch: network(pictures) for batch, pictures in load_file(sys.argv[2]).items()}, sys.argv[3])
"""


@dataclass(frozen=True, kw_only=True)
class Travels:
    """What came of a pruned network outside of the process that pruned it."""

    difference: float  # of the saved folder
    bytes: int
    onnx: Exported
    torch_export: Exported

    @property
    def differences(self) -> tuple[float, ...]:
        return self.difference, self.onnx.difference, self.torch_export.difference

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.bytes, self.onnx.bytes, self.torch_export.bytes


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network, dense or pruned. The dense one stays at home."""

    network: str
    widths: str
    flops_kept: float
    params: int
    latencies: tuple[Latency, ...]
    travels: Travels | None

    @property
    def passed(self) -> bool:
        return self.travels is None or max(self.travels.differences) <= TOLERANCE

    def cells(self) -> tuple[str, ...]:
        differences = self.travels.differences if self.travels else ()
        sizes = self.travels.sizes if self.travels else ()
        return (
            self.network.removeprefix("torchvision:"),
            self.widths,
            f"{self.flops_kept:.3f}",
            f"{self.params / 1e6:.2f}",
            *([f"{found:.1e}" for found in differences] or ["", "", ""]),
            *([f"{found / 1e6:.1f}" for found in sizes] or ["", "", ""]),
            *(f"{found.latency_ms:.1f} ({found.p10_ms:.1f} to {found.p90_ms:.1f})" for found in self.latencies),
        )


def header(batches: Sequence[int]) -> tuple[str, ...]:
    return (
        "network", "widths", "flops_kept", "M params",
        "loaded again: difference", "ONNX: difference", "torch.export: difference",
        "folder, MB", "ONNX, MB", "torch.export, MB",
        *(f"batch of {batch}, ms" for batch in batches),
    )  # fmt: skip


def rows_of(name: str, arguments: argparse.Namespace, work: Path) -> list[Row]:
    architecture = Architecture(reference=name, classes=CLASSES, input_shape=(3, arguments.side, arguments.side))
    dense = lively(architecture)
    coupling = couple(dense, torch.zeros(1, *architecture.input_shape))
    plans = {"dense": Plan(kept={})}
    plans |= {"free" if n == 1 else f"round_to={n}": half(dense, coupling, round_to=n) for n in ROUND_TO}
    models = {widths: cut(dense, coupling, plan) for widths, plan in plans.items()}
    latencies = timed(models, architecture, arguments)
    rows = []
    for widths, plan in plans.items():
        table = CostTable(coupling.restrict(plan))
        folder = work / f"{name.rpartition(':')[2]}-{widths}"
        rows.append(
            Row(
                network=name,
                widths=widths,
                flops_kept=table.flops() / CostTable(coupling).flops(),
                params=table.params(),
                latencies=tuple(found[widths] for found in latencies),
                travels=None if widths == "dense" else travels(models[widths], architecture, plan, folder),
            )
        )
        print(" ".join(rows[-1].cells()), file=sys.stderr, flush=True)
    return rows


def lively(architecture: Architecture) -> nn.Module:
    """The dense network in float32, with random weights under which every channel matters."""
    shape = architecture.input_shape
    model = build(architecture.reference, classes=architecture.classes, input_shape=shape, seed=0)
    lively_(model, torch.zeros(1, *shape))
    return model.float().eval()


def half(model: nn.Module, coupling: Coupling, *, round_to: int) -> Plan:
    """Which channels stay if half of the flops shall."""
    options = FilterNormOptions(scale="group_mean", residual_streams=True)
    subject = Subject(model=model, coupling=coupling, options=options, calibration=tuple, seed=0)
    budget = int(FLOPS_KEPT * CostTable(coupling).flops())
    return greedy(coupling, filter_norm(subject), budget, group_cap=GROUP_CAP, round_to=round_to)


def timed(
    models: Mapping[str, nn.Module], architecture: Architecture, arguments: argparse.Namespace
) -> list[dict[str, Latency]]:
    """For each batch size, the latency of each network."""
    found = []
    for batch in arguments.batches:
        repeats = min(30, max(5, PICTURES // batch))
        found.append(
            side_by_side(
                models,
                architecture.input_shape,
                batch=batch,
                threads=arguments.threads,
                warmup=max(1, repeats // 5),
                repeats=repeats,
            )
        )
    return found


def travels(model: nn.Module, architecture: Architecture, plan: Plan, folder: Path) -> Travels:
    shape = architecture.input_shape
    card = save(folder, model, architecture=architecture, plans=[plan])
    return Travels(
        difference=difference_in_a_fresh_process(model, folder, shape),
        bytes=card.weights.bytes + (folder / "model.json").stat().st_size,
        onnx=to_onnx(model, shape, folder / "model.onnx", tolerance=float("inf")),  # it is judged with the others
        torch_export=to_torch_export(model, shape, folder / "model.pt2", tolerance=float("inf")),
    )


def difference_in_a_fresh_process(model: nn.Module, folder: Path, shape: tuple[int, int, int]) -> float:
    generator = torch.Generator().manual_seed(0)
    given = {str(batch): torch.randn(batch, *shape, generator=generator) for batch in BATCHES}
    questions, answers = folder / "given.safetensors", folder / "made.safetensors"
    save_file(given, questions)
    subprocess.run([sys.executable, "-c", RELOAD, str(folder), str(questions), str(answers)], check=True)
    made = load_file(answers)
    with torch.inference_mode():
        wanted = {batch: model(pictures) for batch, pictures in given.items()}
    return max((made[batch] - wanted[batch]).abs().max().item() / wanted[batch].abs().max().item() for batch in given)


def markdown(rows: Sequence[Row], batches: Sequence[int]) -> str:
    titles = header(batches)
    lines = [titles, ["---"] * len(titles), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(table: str, arguments: argparse.Namespace) -> str:
    return (
        "## Export\n\n"
        f"`make bench-export`, {datetime.now(UTC):%Y-%m-%d}, {arguments.threads} threads on {os.cpu_count()} cores "
        f"({platform.machine()}), Python {platform.python_version()}, PyTorch {torch.__version__}, pictures of "
        f"{arguments.side} x {arguments.side}, {CLASSES} classes.\n\n"
        "flops_kept: multiply-accumulates of convolutions and linear layers at batch 1, biases and norms not counted, "
        "over those of the dense network. Random weights, pruned by filter norms. Differences: from the pruned network "
        f"in memory, float32, relative to its largest output, over batches of {', '.join(map(str, BATCHES))}; at most "
        f"{TOLERANCE:g}. The folder was loaded by a process of its own. Latency: PyTorch on the CPU, float32, the "
        "three networks in turn; median of a batch (tenth to ninetieth percentile).\n\n"
        f"{table}\n"
    )


def write(text: str, path: Path) -> None:
    """Replace the section "Export" of a file, or add it."""
    before = path.read_text() if path.exists() else "# Results\n"
    head, found, rest = before.partition("## Export\n")
    tail = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    path.write_text(f"{head.rstrip()}\n\n{text}{chr(10) + tail if found and tail else ''}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NETWORKS, help="networks as a trial names them")
    parser.add_argument("--side", type=int, default=224, help="height and width of the pictures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="batch sizes to be timed")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md beside this script")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    try:
        for name in arguments.names:
            with tempfile.TemporaryDirectory() as work:
                rows += rows_of(name, arguments, Path(work))
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = markdown(rows, arguments.batches)
    print(table)
    if arguments.write:
        write(section(table, arguments), Path(__file__).with_name("RESULTS.md"))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
