"""The arms of a confirmation: a frontier point's path walked anew from a fresh seed, and its two controls.

The path is a trial's own: dense, then sparse and cut. When it is done, its train_flops are the budget of the controls:
"dense" trains the whole network for as many epochs as that gives, "scratch" the path's last widths from random weights
(the Scratch-B of Liu et al. 2019, arXiv:1810.05270), both on the schedule of the dense stage. Epochs are whole ones, at
least one. Every trained model is measured on the test split once, when its stage is made; none is chosen by it.

With weights of the user's own, which cost the path nothing here, the dense control goes on from them, on the schedule
of the recovery, and the scratch control still begins at random: it then has less training behind it than the others.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.network import CostTable, Plan, cut
from orchestrator.network.architectures import build
from orchestrator.record import ArmSpec, Cost, InvalidInput, Measured, Outcome, Point, Schedule, TrialSpec, now, seed_of
from orchestrator.stage_files import PLAN_FILE, TESTED_FILE, write_record
from orchestrator.store import CONFIRMED, StageStore
from orchestrator.training.joined import joined
from orchestrator.training.splits import DataSet
from orchestrator.trial.checking import check
from orchestrator.trial.networks import Network, Networks
from orchestrator.trial.path import Setting, Step, steps
from orchestrator.trial.running import Trial, outcome_of
from orchestrator.trial.time_limit import TimeLimit

VERSION = 1  # of the controls; raise it when their results change


def run_arm(
    spec: ArmSpec,
    store: StageStore,
    report: Callable[[Measured], None] = lambda tested: None,
    *,
    device: str | Sequence[str] = "cpu",
    stop: Callable[[Sequence[Point]], str | None] = lambda points: None,
    time_limit: TimeLimit | None = None,
) -> Outcome:
    """Train one arm, or find it trained; `report` gets each measured model as soon as its stage is published.

    A control walks the path first, which is a look-up where its "pruned" arm is done. The last of the Outcome's stages
    is the model that stands for the arm. Ends and fails as trial.run does; `stop` is for searches.
    """

    def begin() -> _Arm:
        return _Arm(spec, store, device, time_limit)

    return outcome_of(spec, store, begin, lambda arm: arm.walk(report), points=[], time_limit=time_limit)


def paths(specs: Iterable[TrialSpec], *, with_validation: bool) -> list[str]:
    """The key of each path's last stage. Raises InvalidInput for what would end all its arms at once: see check."""
    found: dict[tuple[str, str], DataSet] = {}
    checked: set[tuple[str, str]] = set()
    keys = []
    for spec in specs:
        if (spec.model, spec.dataset) not in checked:
            check(spec)
            checked.add((spec.model, spec.dataset))
        setting = Setting.of(spec, found.get((spec.dataset, spec.data_root)))
        found[spec.dataset, spec.data_root] = setting.data
        *_, last = steps(_with_data(setting, with_validation=with_validation))
        keys.append(last.key)
    return keys


def _with_data(setting: Setting, *, with_validation: bool) -> Setting:
    return replace(setting, data=joined(setting.data)) if with_validation else setting


class _Arm(Trial):
    """One arm as it goes. `control` is its last step, unless it is the path itself."""

    def __init__(
        self, spec: ArmSpec, store: StageStore, device: str | Sequence[str], time_limit: TimeLimit | None
    ) -> None:
        setting = _with_data(Setting.of(spec), with_validation=spec.with_validation)
        super().__init__(setting, store, device, time_limit)
        self.arm = spec
        self.study = f"{store.root.resolve().parent.name}/{CONFIRMED}"
        self.control: Step | None = None
        if self.steps[-1].key != spec.path:
            raise InvalidInput(
                f"data set {spec.dataset} or the code is another one here than where `orchestrator confirm` was called"
            )

    def walk(self, report: Callable[[Measured], None]) -> None:
        for step in self._all_steps():
            self.pass_(step)
            if step.kind != "sparse":
                report(self.store.tested(step.key))

    def _all_steps(self) -> Iterator[Step]:
        yield from self.steps
        if self.arm.arm != "pruned":
            self.control = {"dense": self._dense_control, "scratch": self._scratch_control}[self.arm.arm]()
            yield self.control

    # -- what the controls are -----------------------------------------------------------------------------------

    def cost_before(self, step: Step) -> Cost:
        return Cost() if step is self.control else super().cost_before(step)

    def _dense_control(self) -> Step:
        spec = self.setting.spec
        flops = self.networks.dense_flops
        if spec.weights is None:  # the dense stage of a trial, but longer
            schedule = self._lasting(spec.dense, flops)
            return next(steps(replace(self.setting, spec=spec.model_copy(update={"dense": schedule}))))
        parameters = _parameters("dense", self._lasting(spec.recovery, flops))
        return Step(kind="dense", parent=self.steps[0].key, parameters=parameters, iteration=0)

    def _scratch_control(self) -> Step:
        last = self.steps[-1]
        parameters = _parameters("scratch", self._lasting(self.setting.spec.dense, self.store.tested(last.key).flops))
        return Step(kind="cut", parent=last.key, parameters=parameters, iteration=last.iteration)

    def _lasting(self, schedule: Schedule, flops: int) -> Schedule:
        """The schedule, as long as gives a network of these flops the train_flops that the path took."""
        count = len(self.setting.data.train)
        size = min(schedule.batch_size, count)
        epoch = 3 * flops * (count // size * size)
        return schedule.model_copy(update={"epochs": max(1, round(self.cost_of(self.keys).train_flops / epoch))})

    # -- making ----------------------------------------------------------------------------------------------------

    def make(self, step: Step, folder: Path) -> None:
        if step is not self.control:
            super().make(step, folder)
            return
        started = time.perf_counter()
        network = self._begun(step)
        schedule = Schedule.model_validate(step.parameters["schedule"])
        train_flops = self.networks.fit_(network, schedule, step.key)
        measured = self.measured(network)
        cost = Cost(train_flops=train_flops, seconds=time.perf_counter() - started)
        self.write_model(step, folder, network, cost, measured)

    def _begun(self, step: Step) -> Network:
        """A control's network before it is trained."""
        if step.kind == "dense" and step.parent is None:
            return Networks(self.setting, step.key, self.store, self.networks.devices).dense
        assert step.parent is not None
        if step.kind == "dense":
            return self.networks.of(step.parent)
        folder = self.store.folder(step.parent)
        assert folder is not None, step.parent
        return self._fresh(Plan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8")), seed_of(step.key))

    def _fresh(self, plan: Plan, seed: int) -> Network:
        """The network of these widths with random weights."""
        data = self.setting.data
        whole = build(self.setting.spec.model, classes=data.classes, input_shape=data.input_shape, seed=seed)
        coupling = self.networks.dense.coupling
        model = cut(whole, coupling, plan)
        spread_(model, whole, {call.weight for call in coupling.calls})
        return Network(model=model.to(self.networks.device), coupling=coupling.restrict(plan), plan=plan)

    def measured(self, network: Network) -> dict[str, Any]:
        return {"accuracy": None} if self.arm.with_validation else super().measured(network)

    def write_model(self, step: Step, folder: Path, network: Network, cost: Cost, measured: dict[str, Any]) -> None:
        test_accuracy = self.networks.accuracy(network, "test")
        super().write_model(step, folder, network, cost, {**measured, "test_accuracy": test_accuracy})

    def write_point(self, step: Step, folder: Path, network: Network, cost: Cost, measured: dict[str, Any]) -> None:
        table, spec = CostTable(network.coupling), self.setting.spec
        flops = table.flops()
        tested = Measured(
            key=step.key,
            parent=step.parent,
            kind="dense" if step.kind == "dense" else "cut",
            iteration=step.iteration,
            model=spec.model,
            dataset=spec.dataset,
            seed=spec.seed,
            flops=flops,
            params=table.params(),
            flops_kept=flops / self.networks.dense_flops,
            test_accuracy=measured["test_accuracy"],
            accuracy=measured["accuracy"],
            epochs=self._epochs(step),
            cost=cost,
            path_cost=self.cost_before(step) + cost,
            created=now(),
        )
        write_record(folder / TESTED_FILE, tested)

    def _epochs(self, step: Step) -> int:
        if step is self.control:
            return int(step.parameters["schedule"]["epochs"])
        spec = self.setting.spec
        dense = spec.dense.epochs if spec.weights is None else 0
        return dense + step.iteration * (spec.sparse.epochs + spec.recovery.epochs)


def _parameters(arm: str, schedule: Schedule) -> dict[str, Any]:
    return {"version": VERSION, "arm": arm, "schedule": schedule.model_dump()}


@torch.no_grad()
def spread_(small: nn.Module, whole: nn.Module, layers: Collection[str]) -> None:
    """Widen the random weights of a network that was cut out of another, for it reads fewer channels.

    layers: the names of convolutions' and linear layers' weights; what else a network has, a layer scale say, is left.

    What is drawn for n inputs has a deviation that falls with the root of n, by PyTorch's own layers at least, so this
    is what they would have drawn for the small one. Networks that draw for their outputs start a little wider.
    """
    drawn = dict(whole.named_parameters())
    for name, weight in small.named_parameters():
        if name in layers:
            weight.mul_((drawn[name][0].numel() / weight[0].numel()) ** 0.5)
