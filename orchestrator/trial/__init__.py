"""One trial: dense -> (sparse -> cut) x iterations, a stage after the other. No Ray, no Optuna.

Every stage is a folder of the stage store, found by a key that holds all that determines its result; a stage that is
there already is read, whichever trial made it. Every `dense` and every `cut` stage yields a point.

    path.py      which stages a trial has, in order, with their keys
    networks.py  the network of a stage: built, rebuilt from the store, trained, pruned
    verified.py  a plan that is right on the model's own weights; what made it wrong stays whole
    running.py   run(spec, store): each stage looked up or computed; a failure is a record
    time_limit.py  how long a stage may take, and what becomes of one that hangs
    provenance.py  which state of this code a result comes from
    confirming.py  run_arm(spec, store): a point's path at full length from a fresh seed, and its controls
    devices.py   check_device(device): whether this machine has it
    sensing.py   Sensor: each group of the dense network pruned alone, nothing trained
    teaching.py  teach(spec, store, out, lesson): an agent taught on a trial's dense network; with learner.py,
                 reinforcement.py (the extra "agent"), rewards.py and checkpoint.py
    checking.py  check(spec): what would end every trial of this kind at once; check_dense(spec): its dense network
"""

from orchestrator.trial.checking import check
from orchestrator.trial.confirming import paths, run_arm
from orchestrator.trial.networks import Network, rebuild, replay_cut
from orchestrator.trial.path import VERSIONS, Step
from orchestrator.trial.running import restore, run
from orchestrator.trial.time_limit import TimeLimit

__all__ = [
    "VERSIONS",
    "Network",
    "Step",
    "TimeLimit",
    "check",
    "paths",
    "rebuild",
    "replay_cut",
    "restore",
    "run",
    "run_arm",
]
