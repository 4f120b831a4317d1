"""One trial: dense -> (sparse -> cut) x iterations, a stage after the other. No Ray, no Optuna.

Every stage is a folder of the stage store, found by a key that holds all that determines its result; a stage that is
there already is read, whichever trial made it. Every `dense` and every `cut` stage yields a point.

    path.py      which stages a trial has, in order, with their keys
    networks.py  the network of a stage: built, rebuilt from the store, trained, pruned
    running.py   run(spec, store): each stage looked up or computed; a failure is a record
    checking.py  check(spec): what would end every trial of this kind at once
"""

from orchestrator.trial.checking import check
from orchestrator.trial.networks import BrokenCut, Network, rebuild, replay_cut
from orchestrator.trial.path import VERSIONS, Step
from orchestrator.trial.running import run

__all__ = ["VERSIONS", "BrokenCut", "Network", "Step", "check", "rebuild", "replay_cut", "run"]
