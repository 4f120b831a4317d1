"""Channels chosen by LASSO, layer by layer, and the layers that read them fitted anew by least squares.

Source: He, Zhang, Sun 2017, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV, arXiv:1707.06168, and
the authors' code, as the paper's text was not at hand. Where we depart: widths come from a flops budget, not from a
table, so the number of channels is met exactly, not within ten per cent; all samples count in LASSO, by their sums,
not a few hundred of them; a channel is judged by all layers that read it together; and a layer without bias is fitted
without an intercept, as it stays without. The authors' sampling of what a residual branch's first layer reads is not
built: a stream is pruned as a whole, with residual_streams, or not.
"""

import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from orchestrator.methods.channel_sums import ChannelSums
from orchestrator.methods.layers import LayerCall
from orchestrator.methods.least_squares import Moments, Shrinkage
from orchestrator.methods.method import Budget, Floats, Method, Options, Subject
from orchestrator.methods.reconstruction import Fitting, Reconstruction, reads_lost, reconstruct_
from orchestrator.methods.widths import uniform_widths, widths_plan
from orchestrator.network import Group, Plan, greedy, masked
from orchestrator.network.coupling import Bools

Doubles = npt.NDArray[np.float64]
FIRST_ALPHA = 1e-3  # the authors'; here beside an error that is 1/2 where nothing is left of the output
NEGLIGIBLE = 1e-6  # of the alpha that leaves nothing


class LassoOptions(Options):
    """What the paper leaves open, or sets by hand.

    widths: how many channels each group keeps: "uniform", the same share of all; "greedy", those that global greedy
    pruning by filter norms leaves. places: at how many places of each picture layers are looked at, at least (the
    authors' 10). shrinkage: "none" is the paper's plain least squares; "cross_validated" keeps weights near those
    that were, as far as samples are few. residual: a branch's last layer makes up for its shortcut's error too.
    """

    widths: Literal["uniform", "greedy"] = "uniform"
    places: int = Field(default=10, ge=1)
    shrinkage: Shrinkage = "cross_validated"
    residual: bool = True

    @property
    def fitting(self) -> Fitting:
        return Fitting(places=self.places, shrinkage=self.shrinkage, residual=self.residual)


def choose(subject: Subject, budget: Budget) -> Plan:
    """Front to back: a group's channels by LASSO when its first reader is met, then that reader fitted to the rest.

    A group that no layer reads which can be followed (see layers.left_out) keeps the filters of largest norm.
    """
    coupling = subject.coupling
    norms: Floats = ChannelSums(subject.model, coupling, made_only=True).magnitudes().double().cpu().numpy()
    widths = _widths(subject, budget, norms)
    undecided = {group.name: group for group in coupling.groups if widths[group.name] < group.size}
    work = Reconstruction(subject, subject.options.fitting)
    model, kept = masked(subject.model, coupling, Plan(kept={})), np.ones(coupling.channels, bool)
    for call in work.calls:
        for group in [group for group in undecided.values() if _reads(call, group)]:
            del undecided[group.name]
            problem = _problem(work, model, group, kept)
            kept[group.channels] = strongest(*problem, widths[group.name], norms[group.channels])
            model = masked(model, coupling, Plan.from_mask(coupling, kept))
        if reads_lost(call, kept):
            work.fit_(model, call, work.moments(model, [call], kept)[call.weight])
    rest = widths_plan(coupling, {name: widths[name] for name in undecided}, norms)
    return Plan.from_mask(coupling, kept & rest.mask(coupling))


def repair_(small: nn.Module, subject: Subject, plan: Plan) -> dict[str, str]:
    """Fit the layers that have lost what they read to what they made before, front to back."""
    return reconstruct_(small, subject, plan, subject.options.fitting)


def _widths(subject: Subject, budget: Budget, norms: Floats) -> dict[str, int]:
    if subject.options.widths == "uniform":
        return uniform_widths(subject.coupling, budget, subject.prunable())
    cap, groups = budget.group_cap, subject.prunable()
    plan = greedy(subject.coupling, norms, budget.flops, cap, groups, round_to=budget.round_to)
    return {group.name: len(plan.kept.get(group.name, range(group.size))) for group in subject.coupling.groups}


def _reads(call: LayerCall, group: Group) -> bool:
    """Whether a layer mixes channels of the group; a depthwise one makes each of its own and says nothing of it."""
    reads = call.reads
    return not call.depthwise and bool(((reads >= group.start) & (reads < group.start + group.size)).any())


def _problem(work: Reconstruction, model: nn.Module, group: Group, kept: Bools) -> tuple[Doubles, Doubles]:
    """The LASSO problem of a group in the pruned network as it is so far: that of all its readers together."""
    readers = [call for call in work.calls if _reads(call, group)]
    moments = work.moments(model, readers, kept)
    gram, against = np.zeros((group.size, group.size)), np.zeros(group.size)
    for call in readers:
        weight = call.matrix(model.get_parameter(call.weight).detach()).flatten(2).double()
        parts = contributions(call, moments[call.weight], weight, group)
        gram, against = gram + parts[0], against + parts[1]
    return gram, against


def strongest(gram: Doubles, against: Doubles, width: int, norms: Floats) -> Bools:
    """[channels] True for the `width` that LASSO keeps.

    Where its solution has more entries, those that carry most to the output stay; where it has fewer, what the
    channels carry without it decides about the others, and then their filters' norms.
    """
    carried = np.sqrt(gram.diagonal())
    order = np.lexsort((norms, carried, np.abs(lasso_at(gram, against, width)) * carried))
    stays = np.zeros(len(gram), bool)
    stays[order[len(gram) - width :]] = True
    return stays


def contributions(call: LayerCall, moments: Moments, weight: Tensor, group: Group) -> tuple[Doubles, Doubles]:
    """A reader's part of the LASSO problem: min over beta of beta' gram beta / 2 - against' beta + alpha |beta|.

    Column i of the regression is what the group's i-th channel adds to the reader's outputs, at all samples and
    outputs one under the other; the target is what its other channels leave to explain. Both come from the moments,
    centred where the layer has a bias: gram is [channels, channels], against [channels]. They are divided by the
    target's sum of squares, so that all readers of a group count alike. weight: [conv_groups, made, read x places].
    """
    these = moments.centred() if call.bias is not None else moments
    pairs = these.xx * (weight.transpose(1, 2) @ weight)  # [conv_groups, read x places, read x places]
    targets = (these.xy * weight.transpose(1, 2)).sum(2)
    local = np.repeat(call.reads - group.start, call.places, axis=1)
    local = np.where((local >= 0) & (local < group.size), local, group.size)  # the last: all that is not the group's
    which = torch.nn.functional.one_hot(torch.from_numpy(local), group.size + 1).to(pairs)
    gram = (which.transpose(1, 2) @ pairs @ which).sum(0).cpu().numpy()
    against = torch.einsum("gfc,gf->c", which, targets).cpu().numpy() - gram[:, -1]
    energy = max(float(these.yy.sum()), np.finfo(np.float64).tiny)
    return gram[:-1, :-1] / energy, against[:-1] / energy


def lasso_at(gram: Doubles, against: Doubles, count: int) -> Doubles:
    """[channels] the LASSO solution with `count` entries that are not 0, or that with the fewest above it.

    alpha is doubled until no more are left than wanted, then bisected. Where there are so few samples, or channels so
    alike, that no alpha leaves as many, the solution at a negligible alpha.
    """
    if not against.any():  # channels that are never other than zero, say: nothing to explain
        return np.zeros(len(gram))
    from sklearn.exceptions import ConvergenceWarning  # a second to import, and of no use to other methods
    from sklearn.linear_model import Lasso

    samples, target = _written_out(gram, against)
    limits = {"tol": 1e-7, "max_iter": 2000}
    # its random state plays no part in cyclic descent, but without one it draws from NumPy's own
    lasso = Lasso(fit_intercept=False, warm_start=True, precompute=len(gram) * gram, random_state=0, **limits)

    def solve(alpha: float) -> Doubles:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # channels that are alike: any of them will do
            found: Doubles = lasso.set_params(alpha=alpha).fit(samples, target).coef_.copy()
        return found

    low, high = 0.0, FIRST_ALPHA
    found = best = solve(high)
    while np.count_nonzero(found) > count:
        low, high, best = high, 2 * high, found
        found = solve(high)
    negligible = NEGLIGIBLE * max(float(np.abs(against).max()), np.finfo(np.float64).tiny)
    while np.count_nonzero(found) != count and high - low > negligible:
        alpha = (low + high) / 2
        found = solve(alpha)
        left = np.count_nonzero(found)
        if left >= count or low == 0.0:  # the fewest above; as long as there are none, the most below
            best = found
        low, high = (alpha, high) if left > count else (low, alpha)
    return found if np.count_nonzero(found) == count else best


def _written_out(gram: Doubles, against: Doubles) -> tuple[Doubles, Doubles]:
    """A regression with as many samples as channels, [channels, channels] and [channels], that has these products.

    Both are scaled by the root of the number of samples, by which scikit-learn divides. With PyTorch's own linear
    algebra: NumPy's threads know nothing of how many this process may use.
    """
    values, vectors = torch.linalg.eigh(torch.from_numpy(gram))
    roots = torch.where(values > 1e-12 * values.max(), values, 0.0).sqrt()
    target = torch.where(roots > 0, vectors.T @ torch.from_numpy(against) / roots, 0.0)
    samples = roots[:, None] * vectors.T
    return np.sqrt(len(gram)) * samples.numpy(), np.sqrt(len(gram)) * target.numpy()


LASSO = Method(
    name="lasso",
    source="He, Zhang, Sun 2017, channel pruning, arXiv:1707.06168",
    version=1,
    options=LassoOptions,
    choose=choose,
    repair_=repair_,
)
