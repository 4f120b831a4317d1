"""Uniform widths: one share for all groups, and the largest filters inside each."""

import numpy as np
from small_networks import Plain, built, subject_of

from orchestrator.methods import Budget
from orchestrator.methods.uniform import UNIFORM
from orchestrator.network import CostTable


def test_every_group_keeps_about_the_same_share() -> None:
    subject = subject_of(built("plain"), UNIFORM)
    plan = UNIFORM.choose(subject, Budget(flops=CostTable(subject.coupling).flops() // 2, group_cap=0.9))
    sizes = {name: subject.coupling.by_name[name].size for name in subject.prunable()}
    shares = [len(plan.kept[name]) / size for name, size in sizes.items()]
    assert sorted(sizes.values()) == [8, 12]
    assert max(shares) - min(shares) <= 1 / 8
    assert max(shares) < 1


def test_the_largest_filters_of_a_group_stay() -> None:
    model = built("plain")
    assert isinstance(model, Plain)
    subject = subject_of(model, UNIFORM)
    plan = UNIFORM.choose(subject, Budget(flops=CostTable(subject.coupling).flops() // 2, group_cap=0.9))
    (group,) = (g for g in subject.coupling.groups if ("a.weight", 0) in g.made)
    kept = plan.kept[group.name]
    norms = model.a.weight.detach().abs().sum((1, 2, 3)).numpy()
    assert list(kept) == sorted(np.argsort(norms)[-len(kept) :])
