"""Every classifier of torchvision and two hundred of timm: coupled, cut at random, compared with the masked network.

    python benchmarks/architectures.py [NAME ...] [--processes 2] [--results results/architectures.jsonl] [--write]

A row each: seconds to couple, the share of flops that would go if every group went down to one channel, the worst
difference of cut and masked over 3 random plans (70 % of every exact group stays, float64, random weights that keep
the signal alive, relative to how much the output depends on the picture), inexact groups, and what is frozen with the
commonest reason. The networks and their picture sizes are those of architectures.csv. Rows go into the results file
as they come; the same command goes on from there. Exit code 1 if any network crashed or any cut was wrong.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("architectures.csv")
TOLERANCE = 1e-9
PLANS = 3
PATIENCE = 1200  # seconds for the networks of one process
TOGETHER = 6  # networks a process, one after the other
SEPARATE = 1.5e8  # parameters: from here on a network runs alone, for the memory's sake
HEADER = (
    "network", "kind", "side", "M flops", "groups", "couple, s", "prunable share", "worst difference", "exact",
    "inexact groups", "frozen share", "commonest reason",
)  # fmt: skip
ENDS = ("the model's output", "the model's input", "reads a constant")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A line of architectures.csv. kind: convolutional, or hybrid for anything with attention or token mixing."""

    name: str
    family: str
    kind: str
    side: int
    params: int


def networks() -> list[Network]:
    with LIST.open(newline="", encoding="utf-8") as file:
        return [
            Network(**{**row, "side": int(row["side"]), "params": int(row["params"])}) for row in csv.DictReader(file)
        ]


# -- one network, in a process of its own -----------------------------------------------------------------------------


def measured(network: Network) -> dict[str, Any]:
    """The row of one network, or how it failed."""
    import torch

    from orchestrator.network import CostTable, couple
    from orchestrator.network.architectures import build

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    shape = (3, network.side, network.side)
    model = build(network.name, classes=1000, input_shape=shape, seed=0).eval()
    example = torch.zeros(2, *shape)
    start = time.process_time()
    coupling = couple(model, example)
    seconds = time.process_time() - start
    table = CostTable(coupling)
    free, frozen = coupling.channels, [f for f in coupling.frozen if f.reason not in ENDS]
    reasons: Counter[str] = Counter()
    for each in frozen:
        reasons[each.reason.partition(": ")[2] or each.reason] += each.channels
    return {
        **asdict(network),
        "flops": table.flops(),
        "groups": len(coupling.groups),
        "inexact": sum(not group.exact for group in coupling.groups),
        "seconds": seconds,
        "prunable": table.prunable_share(),
        "difference": worst_difference(model, coupling, example),
        "frozen": sum(reasons.values()) / max(1, free + sum(reasons.values())),
        "reason": reasons.most_common(1)[0][0] if reasons else "",
    }


def worst_difference(model: Any, coupling: Any, example: Any) -> float:
    from orchestrator.network import cut, masked, random_plan
    from orchestrator.network.lively import difference, lively_

    inputs = tuple(tensor[:2] for tensor in lively_(model, example))
    plans = [random_plan(coupling, seed=seed) for seed in range(PLANS)]
    return max(difference(cut(model, coupling, plan), masked(model, coupling, plan), inputs) for plan in plans)


def work(names: Sequence[str]) -> int:
    """What a child process does: prints one line of JSON for each network."""
    known = {network.name: network for network in networks()}
    for name in names:
        try:
            row = measured(known[name])
        except Exception:  # the row says so
            row = {**asdict(known[name]), "crash": traceback.format_exc().strip().splitlines()[-1]}
        print(json.dumps(row), flush=True)
    return 0


# -- all of them ------------------------------------------------------------------------------------------------------


def rows_of_some(some: Sequence[Network]) -> Iterator[dict[str, Any]]:
    """The rows of a few networks, from one child process after the other: one that dies costs one network."""
    left = list(some)
    while left:
        command = [sys.executable, __file__, "--child", *(network.name for network in left)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
            printed, why = done.stdout, f"exit code {done.returncode}: {done.stderr.strip()[-200:]}"
        except subprocess.TimeoutExpired as error:
            printed, why = (error.stdout or b"").decode(), f"not done after {PATIENCE} s"
        rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
        yield from rows
        left = left[len(rows) :]
        if left:
            yield {**asdict(left.pop(0)), "crash": why}


def rows_of(wanted: Sequence[Network], results: Path, processes: int) -> Iterator[dict[str, Any]]:
    """Rows in the order in which they come; those of the results file first."""
    results.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    names = {network.name for network in wanted}
    yield from (row for row in known if row["name"] in names)
    left = [network for network in wanted if network.name not in {row["name"] for row in known}]
    small = [network for network in left if network.params < SEPARATE]
    with results.open("a", encoding="utf-8") as file:
        for group, workers in ((small, processes), ([n for n in left if n.params >= SEPARATE], 1)):
            with ThreadPoolExecutor(workers) as pool:
                some = [group[i : i + TOGETHER] for i in range(0, len(group), TOGETHER)]
                for row in chain.from_iterable(pool.map(lambda few: list(rows_of_some(few)), some)):
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    yield row


def passed(row: dict[str, Any]) -> bool:
    return "crash" not in row and row["difference"] <= TOLERANCE


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    start = (row["name"], row["kind"], str(row["side"]))
    if "crash" in row:
        return (*start, *[""] * 5, "CRASH", "", "", row["crash"].replace("|", "/"))
    return (
        *start,
        f"{row['flops'] / 1e6:.1f}",
        str(row["groups"]),
        f"{row['seconds']:.2f}",
        f"{row['prunable']:.4f}",
        f"{row['difference']:.1e}",
        "yes" if passed(row) else "NO",
        str(row["inexact"]),
        f"{row['frozen']:.4f}",
        row["reason"].replace("|", "/"),
    )


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """What the table comes to."""
    fine = [row for row in rows if "crash" not in row]
    convolutional: dict[str, list[float]] = {}
    for row in fine:
        if row["kind"] == "convolutional":
            convolutional.setdefault(row["family"], []).append(row["prunable"])
    medians = [statistics.median(shares) for shares in convolutional.values()] or [0.0]
    timm = [row for row in rows if row["name"].startswith("timm:")]
    return (
        f"{len(rows)} networks: {len(rows) - len(timm)} of torchvision, {len(timm)} of timm in "
        f"{len({row['family'] for row in timm})} families. {len(rows) - len(fine)} crashes, "
        f"{sum(not passed(row) for row in fine)} wrong cuts; worst difference "
        f"{max((row['difference'] for row in fine), default=0.0):.1e}. Prunable share, median over "
        f"{len(convolutional)} convolutional families of their medians: {statistics.median(medians):.4f}; over all "
        f"networks: {statistics.median([row['prunable'] for row in fine] or [0.0]):.4f}. Couple: median "
        f"{statistics.median([row['seconds'] for row in fine] or [0.0]):.2f} CPU s, at most "
        f"{max((row['seconds'] for row in fine), default=0.0):.1f}."
    )


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [HEADER, ("---",) * len(HEADER), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(rows: Sequence[dict[str, Any]]) -> str:
    import torch

    return (
        "# Architectures\n\n"
        f"`python benchmarks/architectures.py --write`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores "
        f"({platform.machine()}), Python {platform.python_version()}, PyTorch {torch.__version__}.\n\n"
        f"{summary(rows)}\n\n"
        "prunable share: of the flops that would go if every group went down to one channel. worst difference: of cut "
        f"and masked over {PLANS} random plans that keep 70 % of every exact group, float64, random weights; at most "
        "1e-9. Inexact groups (norms and means across channels) are left whole there. frozen share: of all channels, "
        "those that stay, the model's own inputs and outputs apart; with the commonest reason.\n\n"
        f"{markdown(rows)}\n"
    )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these, such as torchvision:resnet18 or timm:resnet26")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("results/architectures.jsonl"))
    parser.add_argument("--write", action="store_true", help="put the table into ARCHITECTURES.md beside this script")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return work(given.child)
    known = {network.name: network for network in networks()}
    unknown = set(given.names) - set(known)
    if unknown:
        print(f"error: {sorted(unknown)[0]} is not in {LIST.name}", file=sys.stderr)
        return 2
    wanted = [known[name] for name in given.names] or list(known.values())
    rows = []
    for row in rows_of(wanted, given.results, given.processes):
        rows.append(row)
        print(f"{len(rows)}/{len(wanted)}", *cells(row), file=sys.stderr, flush=True)
    rows.sort(key=lambda row: list(known).index(row["name"]))
    print(markdown(rows))
    print(f"\n{summary(rows)}")
    if given.write:
        Path(__file__).with_name("ARCHITECTURES.md").write_text(section(rows), encoding="utf-8")
    return 0 if all(map(passed, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
