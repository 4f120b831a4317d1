"""Trials that stop where they are, for tests that kill a search: however late the test is, the search is not over.

Workers import it by name.
"""

import time

from orchestrator.store import StageStore

HOLD = "hold.json"


def hold(store: StageStore, *, stages: int = 0, trials: int = 0) -> None:
    """Once so many more stages are published and trials recorded, no trial computes another stage, until release."""
    store.prepare()
    store.write_json(HOLD, [len(store.keys()) + stages, len(store.trials()) + trials])


def is_held(store: StageStore) -> bool:
    held = store.read_json(HOLD)
    return held is not None and len(store.keys()) >= held[0] and len(store.trials()) >= held[1]


def release(store: StageStore) -> None:
    store.write_json(HOLD, None)


def wait_while_held(store: StageStore) -> None:
    """What a trial does before it computes a stage."""
    while is_held(store):
        time.sleep(0.05)
