"""Channels leave at random: what any importance has to beat."""

import numpy as np

from orchestrator.methods.method import Floats, Method, Subject, by_score


def random_scores(subject: Subject) -> Floats:
    """[channels] independent draws of the stage's seed, uniform in [0, 1): every order of all channels is as likely."""
    return np.random.default_rng(subject.seed).random(subject.coupling.channels)


RANDOM = Method(
    name="random",
    source="the control of Mittal et al. 2018, Recovering from Random Pruning, arXiv:1801.10447",
    version=1,
    choose=by_score(random_scores),
)
