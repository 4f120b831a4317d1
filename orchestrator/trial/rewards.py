"""What an agent is taught by: the accuracy of a pruned network, unrecovered, on train pictures that are kept back.

Not the validation split: a search picks its points by it, and an agent that had been taught by the same pictures
would have fitted its widths to them, so that its points looked better than others. Not the test split: nothing that is
chosen may know it. The pictures that are kept back were trained on, once, by the dense network, which is no harm: all
plans share that network, and only what they lose is compared. What repairs a pruned network, and what its norms'
statistics are measured on, comes from the other train pictures.
"""

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.methods.agent import CONDITIONAL_AGENT, AgentOptions, ground_of, repair_
from orchestrator.methods.widths import widths_plan
from orchestrator.network import cut
from orchestrator.training.held_out import held_out
from orchestrator.training.loop import evaluate, reestimate_norm_statistics_
from orchestrator.trial.networks import Network, subject_of
from orchestrator.trial.path import Setting


class Rewards:
    """Rewards of widths of one network. Equal widths are measured once, and give the same figure at every call."""

    def __init__(
        self, network: Network, setting: Setting, options: AgentOptions, *, seed: int, count: int | None = None
    ) -> None:
        """count: pictures that are kept back; see held_out."""
        self.network, self.seed = network, seed
        self.data = held_out(setting.data, count, seed=seed)
        own = replace(setting, data=self.data, method=CONDITIONAL_AGENT, options=options)
        self.subject = subject_of(own, network.model, network.coupling, seed)
        self.ground = ground_of(self.subject)
        self.device = next(network.model.parameters()).device
        self.known: dict[tuple[int, ...], float] = {}

    def of(self, widths: Mapping[str, int]) -> float:
        """Cut to these widths, repair, measure the norms' statistics anew, evaluate: accuracy in [0, 1]."""
        key = tuple(widths[group.name] for group in self.ground.groups)
        if key not in self.known:
            self.known[key] = self._measured(widths)
        return self.known[key]

    def _measured(self, widths: Mapping[str, int]) -> float:
        plan = widths_plan(self.network.coupling, widths, self.ground.score)
        model = cut(self.network.model, self.network.coupling, plan)
        repair_(model, self.subject, plan)
        reestimate_norm_statistics_(model, self.data, seed=self.seed, device=self.device)
        return evaluate(model, self.data, "validation", device=self.device).accuracy

    def flops_kept(self, widths: Mapping[str, int]) -> float:
        """flops of these widths, of those of the network."""
        mask = widths_plan(self.network.coupling, widths, self.ground.score).mask(self.network.coupling)
        return self.ground.table.flops(mask) / self.ground.flops
