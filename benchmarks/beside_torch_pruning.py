"""Ours beside Torch-Pruning, on the networks of its own tests: right or wrong, seconds to build and prune, memory.

    python benchmarks/beside_torch_pruning.py [NAME ...] [--results results/beside_torch_pruning.jsonl]

Each network, by each library, in a process of its own with one thread, at 224 x 224 (Inception: 299): the same work,
which is to find what is coupled, rank channels by the L1 norms of filters, and remove half of every group. Seconds are
CPU seconds of that work, after a small network was pruned to warm up; memory is what the process's peak rose by over
the network that was given.

Right or wrong, for both alike, by the law of the cut: the pruned network must compute what the whole network computes
with the removed entries of its tensors zeroed. Which entries a library removed is read off a copy whose tensors hold
the numbers of their own entries. Float64, random weights that keep the signal alive, pictures of 96 x 96 (ViT: 224),
1e-9 relative. Groups with a norm across their channels, for which no cut equals a masking, are left whole by both.
"""

import argparse
import copy
import json
import math
import resource
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

TOLERANCE = 1e-9
PATIENCE = 1200  # seconds for one network by one library
NETWORKS = (
    "densenet121", "densenet169", "densenet201", "densenet161",
    *(f"efficientnet_b{i}" for i in range(8)), "efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l",
    "googlenet", "inception_v3", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3",
    "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small",
    *(f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "wide_resnet50_2", "wide_resnet101_2", "squeezenet1_0", "squeezenet1_1",
    *(f"vgg{depth}{kind}" for depth in (11, 13, 16, 19) for kind in ("", "_bn")),
    "convnext_tiny", "convnext_small", "convnext_base", "convnext_large",
    "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32",
)  # fmt: skip
LEFT_OUT = ("vit_h_14", "regnet_y_128gf")  # 630 M parameters and more: the comparison in float64 outgrows 24 GiB
HEADER = (
    "network", "ours", "theirs", "ours, s", "theirs, s", "ours / theirs", "ours, MB", "theirs, MB",
    "params left, ours", "params left, theirs",
)  # fmt: skip
Prune = Callable[[Any, Any], Any]


# -- one network by one library, in a process of its own --------------------------------------------------------------


def ours(model: Any, example: Any) -> Any:
    """Couple, rank by filter norms, take half of every group, cut."""
    import numpy as np

    from orchestrator.methods.filter_norm import filter_norm
    from orchestrator.network import Plan, couple, cut
    from orchestrator.network.plan import removal_order

    coupling = couple(model, example)
    exact = coupling.without([g.name for g in coupling.groups if not g.exact], "left whole in this comparison")
    mask = np.ones(exact.channels, bool)
    mask[removal_order(exact, filter_norm(subject_of(model, exact)), 0.5)] = False
    return cut(model, exact, Plan.from_mask(exact, mask))


def subject_of(model: Any, coupling: Any) -> Any:
    from orchestrator.methods import METHODS, Subject

    options = METHODS["filter_norm"].options()
    return Subject(model=model, coupling=coupling, options=options, calibration=lambda: (), seed=0)


def theirs(model: Any, example: Any) -> Any:
    """As in its own tests, with the pruner's defaults and round_to for ViT.

    Layers that make the 1000 classes must be listed, or it prunes the output: SqueezeNet's convolution too.
    """
    import torch_pruning as tp
    import torchvision
    from torch import nn

    vit = isinstance(model, torchvision.models.VisionTransformer)
    pruner = tp.pruner.MagnitudePruner(
        model,
        example_inputs=example,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        round_to=model.encoder.layers[0].num_heads if vit else None,
        ignored_layers=[m for m in model.modules() if 1000 in (_made(m, nn.Linear), _made(m, nn.Conv2d))],
    )
    for group in pruner.step(interactive=True):
        if not any(isinstance(dep.target.module, (nn.LayerNorm, nn.GroupNorm)) for dep, _ in group):
            group.prune()
    if vit:
        model.hidden_dim = model.conv_proj.out_channels
    return model


def _made(module: Any, kind: type) -> int:
    return module.weight.shape[0] if isinstance(module, kind) else 0


def measured(name: str, library: str) -> dict[str, Any]:
    import torch
    import torchvision

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    prune = {"ours": ours, "theirs": theirs}[library]
    warm = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
    prune(warm, torch.zeros(1, 3, 8, 8))  # imports and PyTorch's own first times are no part of the comparison
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    example = torch.randn(1, 3, *[299 if name == "inception_v3" else 224] * 2)
    given = copy.deepcopy(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    small = prune(given, example)
    seconds = time.process_time() - start
    rose = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    row = {"name": name, "library": library, "seconds": seconds, "bytes": rose * 1024, "left": left}
    del given, small
    small_picture = example if name.startswith("vit") else example[:, :, :96, :96]  # else the comparison takes hours
    return {**row, "difference": difference(model, small_picture, prune)}


def difference(model: Any, example: Any, prune: Prune) -> float:
    """The pruned network against the masked one, by which entries of which tensors are left."""
    import torch

    from orchestrator.network.lively import difference as relative
    from orchestrator.network.lively import lively_

    numbered = copy.deepcopy(model).double()
    with torch.no_grad():
        for tensor in [*numbered.parameters(), *numbered.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.arange(1, 1 + tensor.numel(), dtype=tensor.dtype).view_as(tensor))
    small = prune(numbered, example.double())
    inputs = tuple(tensor[:2] for tensor in lively_(model, example))
    full = copy.deepcopy(model)
    entries = dict(tensors(small))
    with torch.no_grad():
        for name, tensor in tensors(full):
            kept = entries[name].long().flatten() - 1
            values = tensor.flatten()[kept]
            entries[name].copy_(values.view_as(entries[name]))
            masked = torch.zeros_like(tensor).flatten()
            masked[kept] = values
            tensor.copy_(masked.view_as(tensor))
    del model
    return relative(small.eval(), full.eval(), inputs)


def tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Parameters and buffers of floating point."""
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point())


def work(name: str, library: str) -> int:
    """What a child process does: prints one line of JSON."""
    try:
        row = measured(name, library)
    except Exception:  # the row says so
        row = {"name": name, "library": library, "crash": traceback.format_exc().strip().splitlines()[-1]}
    print(json.dumps(row))
    return 0


# -- all of them ------------------------------------------------------------------------------------------------------


def row_of(name: str, library: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, library]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return {"name": name, "library": library, "crash": f"not done after {PATIENCE} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    crash = {"name": name, "library": library, "crash": f"exit code {done.returncode}: {done.stderr.strip()[-200:]}"}
    found: dict[str, Any] = json.loads(lines[-1]) if lines else crash
    return found


def verdict(row: dict[str, Any]) -> str:
    if "crash" in row:
        return f"CRASH: {row['crash'][:60]}".replace("|", "/")
    return "right" if row["difference"] <= TOLERANCE else f"WRONG ({row['difference']:.0e})"


def cells(mine: dict[str, Any], other: dict[str, Any]) -> tuple[str, ...]:
    def figure(row: dict[str, Any], name: str, scale: float = 1.0, form: str = ".2f") -> str:
        return format(row[name] / scale, form) if name in row else "-"

    ratio = mine["seconds"] / other["seconds"] if "seconds" in mine and "seconds" in other else math.nan
    return (
        mine["name"],
        verdict(mine),
        verdict(other),
        figure(mine, "seconds"),
        figure(other, "seconds"),
        f"{ratio:.2f}",
        figure(mine, "bytes", 2**20, ".0f"),
        figure(other, "bytes", 2**20, ".0f"),
        figure(mine, "left"),
        figure(other, "left"),
    )


def summary(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    both = [(a, b) for a, b in pairs if "crash" not in a and "crash" not in b]
    ratios = [a["seconds"] / b["seconds"] for a, b in both] or [math.nan]
    memory = [a["bytes"] / max(b["bytes"], 1) for a, b in both] or [math.nan]
    return (
        f"{len(pairs)} networks. Ours: {sum(verdict(a) == 'right' for a, _ in pairs)} right; Torch-Pruning: "
        f"{sum(verdict(b) == 'right' for _, b in pairs)} right. Seconds, ours / theirs: median "
        f"{statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}. Memory, ours / theirs: median "
        f"{statistics.median(memory):.2f}."
    )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these networks of torchvision")
    parser.add_argument("--results", type=Path, default=Path("results/beside_torch_pruning.jsonl"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return work(*given.child)
    unknown = set(given.names) - set(NETWORKS)
    if unknown:
        print(f"error: {sorted(unknown)[0]} is none of {', '.join(NETWORKS)}", file=sys.stderr)
        return 2
    given.results.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    known = {(row["name"], row["library"]): row for row in rows}
    pairs = []
    with given.results.open("a", encoding="utf-8") as file:
        for name in given.names or NETWORKS:
            for library in ("ours", "theirs"):
                if (name, library) not in known:
                    known[name, library] = row_of(name, library)
                    file.write(json.dumps(known[name, library]) + "\n")
                    file.flush()
            pairs.append((known[name, "ours"], known[name, "theirs"]))
            print(*cells(*pairs[-1]), file=sys.stderr, flush=True)
    lines = [HEADER, ("---",) * len(HEADER), *(cells(*pair) for pair in pairs)]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))
    print(f"\n{summary(pairs)}")
    return 0 if all(verdict(mine) == "right" for mine, _ in pairs) else 1


if __name__ == "__main__":
    sys.exit(main())
