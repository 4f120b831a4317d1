"""The network of a stage: built, rebuilt from what the store holds, trained, pruned."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.methods import Budget, Method, Subject
from orchestrator.network import CostTable, Coupling, Plan, couple, cut, random_plan
from orchestrator.network.architectures import build
from orchestrator.network.latency import Latency, latency
from orchestrator.network.weights import UnfitWeights, load_weights_
from orchestrator.record import FrozenGroup, InvalidInput, Schedule, TrialSpec, seed_of
from orchestrator.stage_files import PLAN_FILE, WEIGHTS_FILE
from orchestrator.store import StageStore
from orchestrator.training.batches import Batches
from orchestrator.training.loop import evaluate, fit, reestimate_norm_statistics_
from orchestrator.training.member import Hooks, MakeHooks
from orchestrator.training.parallel import fit_parallel, no_hooks
from orchestrator.training.splits import DataSet, SplitName
from orchestrator.trial.path import Setting, steps
from orchestrator.trial.verified import verified

CALIBRATION_BATCHES, CALIBRATION_BATCH = 8, 128
IDLE = "its layers run in training alone: nothing would be saved"


class Collected(InvalidInput):
    """A finished stage whose weights were collected: they have to be computed again first."""

    def __init__(self, store: StageStore, key: str) -> None:
        super().__init__(f"{store.root}: the weights of stage {key[:12]} were collected; trial.restore computes them")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model on its device, with the coupling of its present widths and the plan that led to them."""

    model: nn.Module
    coupling: Coupling
    plan: Plan  # from the dense network to this one
    frozen: tuple[FrozenGroup, ...] = ()  # by verification or by the method, when this network was made
    unrepaired: Mapping[str, str] = field(default_factory=dict)  # layers that repair could not treat, with the reason


def rebuild(spec: TrialSpec, store: StageStore, key: str, *, device: str = "cpu") -> Network:
    """The network of a finished stage on the path of this spec: architecture, plan and weights put together.

    Raises KeyError if the stage is not in the store, Collected if its weights are not.
    """
    if store.folder(key) is None:
        raise KeyError(key)
    return _networks(spec, store, device).of(key)


def replay_cut(spec: TrialSpec, store: StageStore, key: str, *, device: str = "cpu") -> Network:
    """The network that a finished cut stage had right after its cut: statistics re-estimated, no weight trained.

    Raises KeyError if there is no cut stage under this key.
    """
    if store.folder(key) is None or store.stage(key).kind != "cut":
        raise KeyError(key)
    parent = store.stage(key).parent
    assert parent is not None, key
    return _networks(spec, store, device).just_cut(parent, key)


def _networks(spec: TrialSpec, store: StageStore, device: str) -> "Networks":
    setting = Setting.of(spec)
    return Networks(setting, next(steps(setting)).key, store, devices_of(device))


def devices_of(device: str | Sequence[str]) -> tuple[torch.device, ...]:
    """The devices of a trial: one, or several that train its networks together."""
    return tuple(map(torch.device, [device] if isinstance(device, str) else device))


def example_of(data: DataSet) -> Tensor:
    """[2, C, H, W] fixed noise in the data's shape: what a network is traced with and verified on."""
    return torch.randn(2, *data.input_shape, generator=torch.Generator().manual_seed(0))


class Networks:
    """The networks of one trial. Closes over the dense one, which is built and coupled once."""

    def __init__(self, setting: Setting, dense_key: str, store: StageStore, devices: tuple[torch.device, ...]) -> None:
        self.setting, self.store, self.devices = setting, store, devices
        self.device = devices[0]  # all but training is done here
        self._dense_key = dense_key

    def anew(self) -> "Networks":
        """The same, before anything was trained."""
        return Networks(self.setting, self._dense_key, self.store, self.devices)

    @cached_property
    def dense(self) -> Network:
        """The dense network with the weights that its stage's key gives, whichever trial computes it; verified."""
        spec, data = self.setting.spec, self.setting.data
        model = build(spec.model, classes=data.classes, input_shape=data.input_shape, seed=seed_of(self._dense_key))
        example = example_of(data)
        found = verified(model, couple(model, example), random_plan, example)
        model = model.to(self.device)
        return Network(model=model, coupling=found.coupling, plan=Plan(kept={}), frozen=found.frozen)

    @cached_property
    def dense_flops(self) -> int:
        return CostTable(self.dense.coupling).flops()

    def of(self, key: str) -> Network:
        """A finished stage's network, rebuilt: architecture, plan, weights."""
        folder = self.store.weights(key)
        if folder is None:
            raise Collected(self.store, key)
        plan = Plan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
        model = cut(self.dense.model, self.dense.coupling, plan)
        try:
            load_weights_(model, folder / WEIGHTS_FILE)
        except UnfitWeights as error:
            if self.store.weights(key) is None:  # collected in this very moment
                raise Collected(self.store, key) from error
            raise
        return Network(model=model, coupling=self.dense.coupling.restrict(plan), plan=plan)

    def given(self, weights: Path) -> Network:
        """The dense network with the weights of the user's file."""
        load_weights_(self.dense.model, weights)
        return self.dense

    def just_cut(self, parent: str, key: str) -> Network:
        """Cut the network of the finished stage `parent` as the stage `key` does, and re-estimate its statistics."""
        network = self._pruned(self.of(parent), key)
        reestimate_norm_statistics_(network.model, self.setting.data, seed=seed_of(key), device=self.device)
        return network

    def fit_(self, network: Network, schedule: Schedule, key: str, *, penalised: bool = False) -> int:
        """Train in place, on all devices; returns train_flops.

        What the devices are, and how many, is in no stage's key: the results agree but for rounding and for what a
        network draws at random itself, as they do between one kind of device and another.
        """
        make_hooks: MakeHooks = no_hooks
        if penalised:
            make_hooks = _Penalised(setting=self.setting, coupling=network.coupling, seed=seed_of(key))
        model, data, seed = network.model, self.setting.data, seed_of(key)
        if len(self.devices) > 1:
            done = fit_parallel(model, data, schedule, seed=seed, devices=self.devices, make_hooks=make_hooks)
        else:
            with make_hooks(model) as (extra_loss, after_backward):
                done = fit(
                    model,
                    data,
                    schedule,
                    seed=seed,
                    device=self.device,
                    extra_loss=extra_loss,
                    after_backward=after_backward,
                )
        return 3 * CostTable(network.coupling).flops() * done.samples

    def accuracy(self, network: Network, split: SplitName = "validation") -> float:
        """On one split of the data."""
        return evaluate(network.model, self.setting.data, split, device=self.device).accuracy

    def latency(self, network: Network) -> Latency:
        """Of a batch on the device and the threads of this trial, beside whatever else runs there."""
        data = self.setting.data
        return latency(network.model, data.input_shape, batch=self.setting.spec.latency_batch, device=self.device)

    def subject(self, network: Network, seed: int) -> Subject:
        """What a method gets to see of a network."""
        return subject_of(self.setting, network.model, network.coupling, seed)

    def _recorded(self, key: str) -> Plan | None:
        """The plan from the dense network to that of a finished stage."""
        folder = self.store.folder(key)
        return None if folder is None else Plan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))

    def _pruned(self, network: Network, key: str) -> Network:
        """Choose, verify on the real weights, cut, repair. A group that fails is frozen, and the choice made again.

        What a finished stage has chosen holds, however another machine would round what it chose by.
        """
        spec, method = self.setting.spec, self.setting.method
        flops = CostTable(network.coupling).flops()
        budget = Budget(flops=int(flops * (1 - spec.pruning_ratio)), group_cap=spec.group_cap, round_to=spec.round_to)

        recorded = self._recorded(key)

        def choose(coupling: Coupling) -> Plan:
            if recorded is not None:
                return recorded.since(network.plan)
            return method.choose(self.subject(replace(network, coupling=coupling), seed_of(key)), budget)

        example = example_of(self.setting.data).to(self.device)
        unrepaired: Mapping[str, str] | None = None
        with _full_precision(self.device):
            found = verified(network.model, network.coupling, choose, example)
            chosen_from = self.subject(replace(network, coupling=found.coupling), seed_of(key))
            frozen = (*found.frozen, *left_whole(method, chosen_from, example))
            model = cut(network.model, found.coupling, found.plan)
            if method.repair_ is not None:
                unrepaired = method.repair_(model, chosen_from, found.plan)
        coupling, plan = found.coupling.restrict(found.plan), network.plan.then(found.plan)
        return Network(model=model, coupling=coupling, plan=plan, frozen=frozen, unrepaired=unrepaired or {})


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """A GPU's float32 convolutions not rounded to TF32, which is PyTorch's default, and the same at every call."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def left_whole(method: Method, subject: Subject, example: Tensor) -> tuple[FrozenGroup, ...]:
    """The groups of a subject that are left whole on principle. example: [N, C, H, W] in the data's shape."""
    reasons = dict.fromkeys(sorted(subject.free_of_charge()), IDLE)
    reasons |= {} if method.left_whole is None else method.left_whole(subject, example)
    sizes = {name: subject.coupling.by_name[name].size for name in reasons}
    return tuple(FrozenGroup(group=name, channels=sizes[name], reason=reasons[name]) for name in reasons)


def subject_of(setting: Setting, model: nn.Module, coupling: Coupling, seed: int) -> Subject:
    """What a method gets to see of a model: pictures of the train split to calibrate on, no others."""
    data = setting.data

    def calibration() -> Iterable[tuple[Tensor, Tensor]]:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        batches = Batches(data, data.train, CALIBRATION_BATCH, device)
        return islice(batches.shuffled(seed), CALIBRATION_BATCHES)

    return Subject(model=model, coupling=coupling, options=setting.options, calibration=calibration, seed=seed)


@dataclass(frozen=True, kw_only=True)
class _Penalised:
    """What the method adds while a model trains, in whichever process the model lies."""

    setting: Setting
    coupling: Coupling
    seed: int

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[Hooks]:
        assert self.setting.method.penalty is not None
        subject = subject_of(self.setting, model, self.coupling, self.seed)
        with self.setting.method.penalty(subject, self.setting.spec.regularization_weight) as penalty:
            yield penalty.extra_loss, penalty.after_backward
