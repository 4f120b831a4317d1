"""What a pruning method is: three answers, behind one contract."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from orchestrator.network import Coupling, Plan, greedy

Floats = npt.NDArray[np.floating[Any]]


class Options(BaseModel):
    """Base of a method's switches: what its paper leaves open, each with a documented default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    residual_streams: bool = False  # whether channels of a residual stream may be penalised and pruned


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The network that a method acts on, and all that it may look at.

    calibration: a function that yields the same batches (pictures [N, C, H, W], labels [N]) of training data at every
    call, not augmented, on the model's device. A method leaves the model as it found it, `repair_` and training apart.
    """

    model: nn.Module
    coupling: Coupling
    options: Any
    calibration: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    seed: int

    def prunable(self) -> frozenset[str]:
        """Names of the groups that the options allow to lose channels, and that cost something."""
        return self._allowed() - self.free_of_charge()

    def free_of_charge(self) -> frozenset[str]:
        """Names of allowed groups whose layers run in training alone (an auxiliary head): pruned, they save nothing."""
        running = {call.weight for call in self.coupling.calls}
        costly = {g.name for g in self.coupling.groups if any(name in running for name, _ in g.members)}
        return self._allowed() - costly

    def _allowed(self) -> frozenset[str]:
        streams = self.options.residual_streams
        return frozenset(g.name for g in self.coupling.groups if g.size > 1 and (streams or not g.summed))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a plan has to meet: flops at most, and the largest share of a group's channels that may leave.

    round_to: a group that loses channels keeps a multiple of this; one that is no wider stays whole.
    """

    flops: int
    group_cap: float
    round_to: int = 1


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What is known of a trial before it starts: an untrained network without data, and what is asked of it.

    budget: of the first cut. example: pictures [N, C, H, W] of noise, for the subject's model to run on.
    """

    subject: Subject
    budget: Budget
    iterations: int
    example: Tensor


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """What is added while a network trains: a term of the loss, a change of the gradients after backward, or both."""

    extra_loss: Callable[[], Tensor] | None = None
    after_backward: Callable[[], None] | None = None


Choose = Callable[[Subject, Budget], Plan]
Score = Callable[[Subject], Floats]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One published method.

    choose: which channels stay under a budget; raises BudgetUnreachable.
    penalty: given a subject and a regularization_weight > 0, a context in which its Penalty acts; hooks on the model
    are gone when it closes. None: the method trains without one, and regularization_weight means nothing to it.
    repair_: makes up for what the cut lost, on the cut model in place, given the subject before the cut and the plan.
    It returns the layers that read less than before and that it could not treat, each with the reason, if any.
    left_whole: the groups that could be cut and that `choose` leaves whole on principle, each with the reason. It is
    given pictures [N, C, H, W] of noise to run the subject's model on, and sees no data.
    check: raises InvalidInput for what would end every trial with these options. It sees the network before any
    training, and no data.
    notes: what is worth a line before trials with these options start, and ends none of them. It is asked after check.
    fingerprint: for options that name files, what stands for them in a stage's key in place of their paths; raises
    InvalidInput for a file that is missing.
    version: goes up with every change of the method's results, so that no stage of an older one is taken for its own.
    """

    name: str
    source: str
    version: int
    choose: Choose
    options: type[Options] = Options
    penalty: Callable[[Subject, float], AbstractContextManager[Penalty]] | None = None
    repair_: Callable[[nn.Module, Subject, Plan], Mapping[str, str] | None] | None = None
    left_whole: Callable[[Subject, Tensor], Mapping[str, str]] | None = None
    fingerprint: Callable[[Any], dict[str, str]] | None = None
    check: Callable[[Ahead], None] | None = None
    notes: Callable[[Ahead], Sequence[str]] | None = None


@dataclass(frozen=True)
class by_score:  # noqa: N801  # read as a function: choose=by_score(energy)
    """Global greedy pruning by a score a channel: [channels], higher stays longer."""

    score: Score

    def __call__(self, subject: Subject, budget: Budget) -> Plan:
        return greedy(
            subject.coupling,
            self.score(subject),
            budget.flops,
            group_cap=budget.group_cap,
            groups=subject.prunable(),
            round_to=budget.round_to,
        )
