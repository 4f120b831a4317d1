"""One taught agent, asked for flops_kept 0.3, 0.5 and 0.7, against uniform widths and greedy filter norm.

    python benchmarks/agent.py [--data-root data] [--dataset small_pictures:fashion_small] [--work results/agent]

Protocol. For each seed: a dense network is trained, and one agent taught on it. Then for each rate the same dense
network is cut in one step to the widths that each of four ways gives, its norms' statistics are measured anew, and it
is trained for the same recovery. "agent", "uniform" and "greedy" keep the channels of largest filter norm, and fit the
layers that read them by least squares, all on the same calibration pictures; "greedy, no fit" is the method
filter_norm as it is. Accuracies are on the test split, which is looked at here alone: mean and standard deviation over
seeds. "reward" is what the agent was taught by. The default data is a part of Fashion-MNIST at half its size: 2,400
train pictures of 14 x 14, 10,000 test pictures. Taught agents and dense networks are kept in the work folder, so that
a killed run goes on.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from orchestrator.methods import METHODS, Budget, Subject
from orchestrator.methods.agent import AgentOptions, importance, repair_
from orchestrator.methods.agent_file import read_card
from orchestrator.methods.widths import uniform_widths, widths_plan
from orchestrator.network import CostTable, Plan, cut
from orchestrator.record import InvalidInput, Schedule, TrialSpec
from orchestrator.store import StageStore
from orchestrator.training.datasets import load
from orchestrator.training.loop import evaluate, fit, reestimate_norm_statistics_
from orchestrator.training.splits import DataSet
from orchestrator.trial.networks import rebuild, subject_of
from orchestrator.trial.path import Setting, steps
from orchestrator.trial.teaching import Lesson, teach

WAYS = ("agent", "uniform", "greedy", "greedy, no fit")
CAP = 0.8


@dataclass(frozen=True, kw_only=True)
class Result:
    """One cut network: the share of the flops that stayed, and test accuracies before and after recovery."""

    kept: float
    before: float
    after: float


def spec_of(seed: int, given: argparse.Namespace) -> TrialSpec:
    """A trial whose dense stage is the network of this seed."""
    dense = Schedule(epochs=given.epochs[0], learning_rate=0.1, batch_size=64)
    recovery = Schedule(epochs=given.epochs[1], learning_rate=0.02, batch_size=64)
    return TrialSpec(
        model=given.model,
        dataset=given.dataset,
        data_root=given.data_root,
        method="filter_norm",
        regularization_weight=0.0,
        pruning_ratio=0.5,
        iterations=1,
        group_cap=CAP,
        seed=seed,
        dense=dense,
        sparse=recovery,
        recovery=recovery,
    )


def plan_of(way: str, subject: Subject, budget: Budget) -> Plan:
    """The channels that stay: of the taught agent, of uniform widths or of global greedy pruning."""
    if way == "agent":
        return METHODS["conditional_agent"].choose(subject, budget)
    if way == "uniform":
        widths = uniform_widths(subject.coupling, budget, subject.prunable())
        return widths_plan(subject.coupling, widths, importance(subject))
    method = METHODS["filter_norm"]
    plain = Subject(
        model=subject.model,
        coupling=subject.coupling,
        options=method.options(),
        calibration=subject.calibration,
        seed=subject.seed,
    )
    return method.choose(plain, budget)


def cut_and_recover(way: str, subject: Subject, rate: float, data: DataSet, recovery: Schedule) -> Result:
    """Cut the dense network in one step, measure it, train it, measure it again."""
    flops = CostTable(subject.coupling).flops()
    plan = plan_of(way, subject, Budget(flops=int(rate * flops), group_cap=CAP))
    small: nn.Module = cut(subject.model, subject.coupling, plan)
    if way != "greedy, no fit":
        repair_(small, subject, plan)
    reestimate_norm_statistics_(small, data, seed=subject.seed)
    before = evaluate(small, data, "test").accuracy
    fit(small, data, recovery, seed=subject.seed)
    kept = CostTable(subject.coupling.restrict(plan)).flops() / flops
    return Result(kept=kept, before=before, after=evaluate(small, data, "test").accuracy)


def of_seed(seed: int, given: argparse.Namespace, data: DataSet) -> Iterator[tuple[str, float, Result]]:
    """Teach an agent on this seed's network, and compare: (way, rate, result)."""
    started = time.perf_counter()
    spec, store = spec_of(seed, given), StageStore(given.work / "study")
    store.prepare()
    out = given.work / f"agent_{seed}.safetensors"
    teach(spec, store, out, Lesson(rates=tuple(given.rates), episodes=given.episodes, seed=seed, group_cap=CAP))
    print(f"seed {seed}: taught in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    setting = Setting.of(spec, data)
    network = rebuild(spec, store, next(steps(setting)).key)
    options = AgentOptions(agent=str(out))
    for rate in given.rates:
        for way in WAYS:
            model = copy.deepcopy(network.model)
            subject = subject_of(setting, model, network.coupling, seed)
            own = Subject(**{**vars(subject), "options": options})
            yield way, rate, cut_and_recover(way, own, rate, data, spec.recovery)


def spread(values: list[float]) -> str:
    """Mean and standard deviation in per cent; of one value itself."""
    deviation = f" +- {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{deviation} %"


def table(found: list[tuple[str, float, Result]], given: argparse.Namespace) -> None:
    """One row a rate and way."""
    print("| asked | widths by | flops_kept | reward | test, without recovery | with recovery |")
    print("|---|---|---|---|---|---|")
    cards = [read_card(given.work / f"agent_{seed}.safetensors") for seed in range(given.seeds)]
    for rate in given.rates:
        answers = [answer for card in cards for answer in card.answers if answer.rate == rate]
        rewards = {"agent": [a.reward for a in answers], "uniform": [a.uniform_reward for a in answers]}
        for way in WAYS:
            mine = [result for name, asked, result in found if (name, asked) == (way, rate)]
            reward = spread(rewards[way]) if way in rewards else "-"
            print(
                f"| {rate:g} | {way} | {statistics.mean(r.kept for r in mine):.4f} | {reward} "
                f"| {spread([r.before for r in mine])} | {spread([r.after for r in mine])} |"
            )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--dataset", default="small_pictures:fashion_small")
    parser.add_argument("--model", default="cifarnet")
    parser.add_argument("--work", default="results/agent", type=Path)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--episodes", type=int, default=90)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", nargs=2, type=int, default=[20, 5], metavar=("DENSE", "RECOVERY"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        data = load(given.dataset, root=given.data_root)
        found = [one for seed in range(given.seeds) for one in of_seed(seed, given, data)]
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.model} on {given.dataset}, {given.seeds} seeds, {given.episodes} episodes each\n")
    table(found, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
