"""What compensation in closed form costs, in seconds and pictures, against fine-tuning to the same accuracy.

    python benchmarks/compensation.py [--data-root data] [--train 10000] [--seeds 3] [--kept 0.5 0.3]

For each seed a dense CifarNet is trained on a part of Fashion-MNIST, and cut to flops_kept once, the channels chosen by
the method "compensation". From this one cut network every recovery starts: the norm statistics re-estimated alone;
compensation with few and with many calibration pictures, without labels, then as in a trial the norm statistics;
fine-tuning on growing shares of the train pictures, for one epoch, four and sixteen, each until it has matched the mean
validation accuracy of compensation. The learning rate of each row is the best of a grid on the validation split, for
the first seed; the search for it is not counted. Seconds are those of the CPU, one
thread, statistics of the norms included. The test split is looked at once for each row and seed, and decides nothing.
The last columns say what each row takes of what compensation takes. The last row of each flops_kept says what
compensation saves against the quickest fine-tuning that is as good, and against the one of fewest pictures; the paper
claims 95 % of the time and 90 % of the data.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from orchestrator.methods import METHODS, Budget, Subject
from orchestrator.network import CostTable, Coupling, Plan, couple, cut
from orchestrator.network.architectures import build
from orchestrator.record import InvalidInput, Schedule
from orchestrator.training.batches import Batches
from orchestrator.training.datasets import load
from orchestrator.training.loop import evaluate, fit, reestimate_norm_statistics_
from orchestrator.training.splits import DataSet, Split

BATCH = 128
METHOD = METHODS["compensation"]
SHARES = (0.01, 0.04, 0.16, 0.64, 1.0)
RANKED = "the same, ranking of the channels counted"
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One recovery of one network."""

    seconds: float
    pictures: int
    validation: float
    test: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """A dense network under one seed, cut to one flops_kept. ranking: CPU seconds of the choice of channels."""

    data: DataSet
    dense: nn.Module
    coupling: Coupling
    plan: Plan
    seed: int
    ranking: float

    def recovered(self, recover_: Callable[[nn.Module], None], pictures: int) -> Result:
        """What a recovery makes of the cut network."""
        small = cut(self.dense, self.coupling, self.plan)
        started = time.process_time()
        recover_(small)
        seconds = time.process_time() - started
        validation, test = (evaluate(small, self.data, split).accuracy for split in ("validation", "test"))
        return Result(seconds=seconds, pictures=pictures, validation=validation, test=test)


def some(data: DataSet, count: int, seed: int) -> DataSet:
    """The same with so many train pictures, drawn at random; more of them hold fewer."""
    assert isinstance(data.train, Split)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    return replace(data, train=data.train.part(order[:count]))


def subject_of(dense: nn.Module, coupling: Coupling, data: DataSet, seed: int) -> Subject:
    """What the method may look at: the train pictures of this data."""

    def calibration() -> Iterator[tuple[Tensor, Tensor]]:
        return Batches(data, data.train, BATCH, torch.device("cpu")).shuffled(seed)

    return Subject(model=dense, coupling=coupling, options=METHOD.options(), calibration=calibration, seed=seed)


def cases_of(data: DataSet, given: argparse.Namespace) -> dict[float, list[Case]]:
    """By flops_kept, a case for each seed; the dense networks are trained here."""
    found: dict[float, list[Case]] = {kept: [] for kept in given.kept}
    schedule = Schedule(epochs=given.epochs, learning_rate=0.1, batch_size=BATCH, weight_decay=5e-4)
    for seed in range(given.seeds):
        dense = build(given.model, classes=data.classes, input_shape=data.input_shape, seed=seed)
        fit(dense, data, schedule, seed=seed)
        reestimate_(dense, data, seed)
        accuracy = evaluate(dense, data, "validation").accuracy
        print(f"seed {seed}: dense, validation accuracy {accuracy:.2%}", flush=True)
        coupling = couple(dense, torch.zeros(2, *data.input_shape))
        subject = subject_of(dense, coupling, some(data, given.batches[-1] * BATCH, seed), seed)
        for kept in given.kept:
            started = time.process_time()
            plan = METHOD.choose(subject, Budget(flops=int(CostTable(coupling).flops() * kept), group_cap=0.9))
            ranking = time.process_time() - started
            case = Case(data=data, dense=dense, coupling=coupling, plan=plan, seed=seed, ranking=ranking)
            found[kept].append(case)
    return found


def norms_alone(case: Case) -> Result:
    """The cut network with its norm statistics measured anew."""
    part = some(case.data, 8 * BATCH, case.seed)
    return case.recovered(lambda small: reestimate_(small, part, case.seed), len(part.train))


def reestimate_(small: nn.Module, part: DataSet, seed: int) -> None:
    """Measure the norms' statistics anew on these train pictures."""
    reestimate_norm_statistics_(small, part, seed=seed, batch_size=min(256, len(part.train)))


def compensated(case: Case, batches: int) -> Result:
    """Compensation by so many batches of calibration pictures, which are all that it sees; then as a trial does."""
    part = some(case.data, batches * BATCH, case.seed)
    subject = subject_of(case.dense, case.coupling, part, case.seed)
    assert METHOD.repair_ is not None
    repair_ = METHOD.repair_

    def recover_(small: nn.Module) -> None:
        repair_(small, subject, case.plan)
        reestimate_(small, part, case.seed)

    return case.recovered(recover_, len(part.train))


def fine_tuned(case: Case, share: float, epochs: int, rate: float) -> Result:
    """Trained on a share of the train pictures."""
    count = max(2, round(share * len(case.data.train)))
    part = some(case.data, count, case.seed)
    schedule = Schedule(epochs=epochs, learning_rate=rate, batch_size=min(64, count), weight_decay=5e-4)

    def recover_(small: nn.Module) -> None:
        fit(small, part, schedule, seed=case.seed)
        reestimate_(small, part, case.seed)

    return case.recovered(recover_, count)


def best_rate(case: Case, share: float, epochs: int) -> float:
    """The learning rate of the grid that so many epochs on this share like best, by validation accuracy."""
    return max(RATES, key=lambda rate: fine_tuned(case, share, epochs, rate).validation)


def rows_of(cases: list[Case], given: argparse.Namespace) -> dict[str, list[Result]]:
    """Every recovery of the cases by its name, the last of compensation being what fine-tuning has to match."""
    rows = {"norm statistics alone": [norms_alone(case) for case in cases]}
    for batches in given.batches:
        name = f"compensation, {batches * BATCH:,} pictures"
        rows[name] = [compensated(case, batches) for case in cases]
    target, reference = mean(rows[name], "validation"), rows[name]
    with_ranking = [replace(r, seconds=r.seconds + c.ranking) for r, c in zip(reference, cases, strict=True)]
    rows[RANKED] = with_ranking
    for epochs in given.tuning:
        for share in given.shares:
            rate = best_rate(cases[0], share, epochs)
            found = [fine_tuned(case, share, epochs, rate) for case in cases]
            rows[f"fine-tuning, {share:.0%} of the pictures, epochs {epochs}, rate {rate:g}"] = found
            if mean(found, "validation") >= target:
                break
    return rows


def mean(results: list[Result], field: str) -> float:
    return statistics.mean(getattr(result, field) for result in results)


def spread(results: list[Result], field: str) -> str:
    """Mean and standard deviation in per cent; of one value itself."""
    values = [100 * getattr(result, field) for result in results]
    return f"{statistics.mean(values):.2f}" + (f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else "") + " %"


def print_rows(kept: float, rows: dict[str, list[Result]], reference: str, total: int) -> None:
    """A part of the table: that of one flops_kept."""
    own = rows[reference]
    for name, results in rows.items():
        seconds, pictures = mean(results, "seconds"), mean(results, "pictures")
        cells = [f"{kept:g}", name, f"{pictures:,.0f} ({pictures / total:.1%})", f"{seconds:.2f}"]
        cells += [spread(results, "validation"), spread(results, "test")]
        cells += ["yes" if mean(results, "validation") >= mean(own, "validation") else "no"]
        cells += [f"{seconds / mean(own, 'seconds'):.2f}", f"{pictures / mean(own, 'pictures'):.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"| {kept:g} | {' | '.join(saved(rows, own))} | | | | | |", flush=True)


def saved(rows: dict[str, list[Result]], own: list[Result]) -> list[str]:
    """Cells of the last row: its name, data and time that compensation saves, the ranking of channels counted too."""
    good = mean(own, "validation")
    matches = [r for name, r in rows.items() if name.startswith("fine-tuning") and mean(r, "validation") >= good]
    if not matches:
        return ["no fine-tuning was as good", "", ""]
    pictures, seconds = (min(mean(each, field) for each in matches) for field in ("pictures", "seconds"))
    with_ranking = mean(rows[RANKED], "seconds")
    time_saved = f"{1 - mean(own, 'seconds') / seconds:.0%}, {1 - with_ranking / seconds:.0%} with the ranking"
    return ["compensation saves", f"{1 - mean(own, 'pictures') / pictures:.0%}", time_saved]


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--model", default="cifarnet")
    parser.add_argument("--train", type=int, default=10_000, help="how many of the train pictures there are")
    parser.add_argument("--held", type=int, default=2_000, help="how many validation and test pictures are looked at")
    parser.add_argument("--epochs", type=int, default=6, help="of the dense network")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kept", nargs="+", type=float, default=[0.5, 0.3])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help=f"of {BATCH} calibration pictures")
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--tuning", nargs="+", type=int, default=[1, 4, 16], help="epochs of fine-tuning")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        data = load(given.dataset, root=given.data_root)
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    assert isinstance(data.train, Split)
    assert isinstance(data.validation, Split)
    assert isinstance(data.test, Split)
    held = torch.arange(given.held)
    data = some(data, given.train, 0)
    data = replace(
        data,
        validation=data.validation.part(held[: len(data.validation)]),
        test=data.test.part(held[: len(data.test)]),
    )
    total = len(data.train)
    print(
        f"{given.model} on {given.dataset}, {total:,} train, {len(data.validation):,} validation and "
        f"{len(data.test):,} test pictures, {given.epochs} epochs, {given.seeds} seeds\n"
    )
    cases = cases_of(data, given)
    columns = "pictures (share of train) | CPU seconds | validation | test | as good as compensation"
    print(f"\n| flops_kept | recovery | {columns} | seconds / compensation's | pictures / compensation's |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kept in given.kept:
        print_rows(kept, rows_of(cases[kept], given), f"compensation, {given.batches[-1] * BATCH:,} pictures", total)
    return 0


if __name__ == "__main__":
    sys.exit(main())
