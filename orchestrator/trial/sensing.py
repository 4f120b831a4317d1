"""How much one group of channels matters by itself: pruned alone, nothing trained, accuracy on the validation split.

Source: Li et al. 2017, PFEC, arXiv:1608.08710, section 3.2. The dense network is a stage as in every trial: looked up
in the study, or trained and put there.
"""

from collections.abc import Sequence

from orchestrator.methods import by_score
from orchestrator.methods.widths import widths_plan
from orchestrator.network import CostTable, Group, cut
from orchestrator.record import InvalidInput, Sensed, TrialSpec, seed_of
from orchestrator.store import StageStore
from orchestrator.training.loop import evaluate, reestimate_norm_statistics_
from orchestrator.trial.path import Setting
from orchestrator.trial.running import FailedStage, Trial


class Sensor:
    """The dense network of a trial, trained, of which one group after another is pruned by the trial's method.

    statistics: whether the norms' statistics are measured anew after each cut, which the paper does not do. Raises
    InvalidInput for a method that gives channels no scores, and where the dense stage fails.
    """

    def __init__(
        self, spec: TrialSpec, store: StageStore, *, statistics: bool = False, device: str | Sequence[str] = "cpu"
    ) -> None:
        setting = Setting.of(spec)
        choose = setting.method.choose
        if not isinstance(choose, by_score):
            raise InvalidInput(
                f"method is {spec.method!r}, which does not rank all channels by one score; take another, such as "
                "filter_norm"
            )
        trial = Trial(setting, store, device, None)
        dense = trial.steps[0]
        try:
            trial.pass_(dense)
            trial.bring_back(dense.key)
        except FailedStage as error:
            raise InvalidInput(f"the dense network cannot be trained: {error}") from error
        self.key, self.trained, self.statistics = dense.key, bool(trial.computed), statistics
        self.point = store.point(dense.key)
        self._setting, self._networks = setting, trial.networks
        self._network = trial.networks.of(dense.key)
        self._table = CostTable(self._network.coupling)
        subject = trial.networks.subject(self._network, seed_of(dense.key))
        self._prunable = subject.prunable()
        self._scores = choose.score(subject)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Those that may lose channels, from the pictures to the answer."""
        return tuple(group for group in self._network.coupling.groups if group.name in self._prunable)

    @property
    def others(self) -> tuple[Group, ...]:
        """Those that may not, by the options of the method: residual streams, and groups of one channel."""
        return tuple(group for group in self._network.coupling.groups if group.name not in self._prunable)

    def measure(self, group: Group, share: float) -> Sensed:
        """Prune a share of one group's channels, rounded down but one at least and not all; the lowest scores leave."""
        kept = self.kept(group, share)
        coupling, data, device = self._network.coupling, self._setting.data, self._networks.device
        plan = widths_plan(coupling, {group.name: kept}, self._scores)
        model = cut(self._network.model, coupling, plan)
        if self.statistics:
            reestimate_norm_statistics_(model, data, seed=seed_of(self.key), device=device)
        flops = self._table.flops(plan.mask(coupling))
        return Sensed(
            group=group.name,
            channels=group.size,
            share=share,
            kept=kept,
            flops=flops,
            flops_kept=flops / self._networks.dense_flops,
            accuracy=evaluate(model, data, "validation", device=device).accuracy,
        )

    @staticmethod
    def kept(group: Group, share: float) -> int:
        """How many channels of a group stay when a share of them leaves."""
        return group.size - min(max(1, int(group.size * share + 1e-9)), group.size - 1)
