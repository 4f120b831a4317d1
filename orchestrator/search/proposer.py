"""What Ray Tune asks for settings: a Searcher over the study's proposals. Knows of Tune; Proposals does not."""

import hashlib
from collections import deque
from typing import Any

from ray.tune.search import Searcher

from orchestrator.record import Failure, FailureReason, Outcome, canonical_json, whereabouts
from orchestrator.search.proposals import Proposal, Proposals
from orchestrator.store import StageStore

SPEC, INDEX = "spec", "index"  # in a trial's config
ENDED = "ended"  # in the last row of a trial, and in no other


def last_row(outcome: Outcome) -> dict[str, Any]:
    """What a worker reports when a trial has ended. Its points lie in the store; here are their keys."""
    failure = outcome.failure
    return {
        ENDED: True,
        "keys": [point.key for point in outcome.points],
        "failure": None if failure is None else f"{failure.reason}: {failure.message}",
        "computed": list(outcome.computed),
        "reused": list(outcome.reused),
    }


class Proposer(Searcher):
    """Hands out the study's proposals to Tune, and takes in how they ended."""

    def __init__(self, proposals: Proposals, store: StageStore) -> None:
        super().__init__()  # no metric and no mode: with two objectives Tune would do harm with either
        self._proposals = proposals
        self._store = store
        self._handed: dict[str, Proposal] = {}  # to Tune's trials, by their id
        self._again: deque[Proposal] = deque()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher for a restore that this project never makes

    def suggest(self, trial_id: str) -> Any:
        proposal = self._again.popleft() if self._again else self._proposals.next()
        if proposal is None:  # Tune asks no more once it is told that all is over; a worker may still die
            return Searcher.FINISHED if self._proposals.over and not self._handed else None
        self._handed[trial_id] = proposal
        return {INDEX: proposal.index, SPEC: proposal.spec.model_dump_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell how a trial ended. One without a last row was stopped; for one whose worker died see again, give_up."""
        if error:
            return
        proposal = self._handed.pop(trial_id)
        if not result or not result.get(ENDED):
            return
        self._proposals.complete(proposal.index, [self._store.point(key) for key in result["keys"]], result["failure"])

    def again(self, trial_id: str) -> None:
        """Hand a trial out again, before all others: its worker died."""
        self._again.append(self._handed.pop(trial_id))

    def give_up(self, trial_id: str, reason: FailureReason, message: str, traceback: str) -> str:
        """Record that a trial's worker could not go on, and tell it as failed; returns why in one line."""
        proposal = self._handed.pop(trial_id)
        index, spec = proposal.index, proposal.spec
        # At which stage it was is not known here; the settings stand for it.
        key = hashlib.sha256(canonical_json(spec).encode()).hexdigest()
        failure = Failure(key=key, spec=spec, reason=reason, message=message, traceback=traceback, **whereabouts())
        self._store.record_failure(failure)
        self._proposals.complete(index, [], f"{reason}: {message}")
        return f"{reason}: {message}"

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal and the stage store hold all there is to keep."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("every launch is a new Tune session")
