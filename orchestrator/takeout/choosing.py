"""Which model is taken out, where it lies, and whether all that it needs is there and allowed."""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator.collector import Study
from orchestrator.network import user_function
from orchestrator.network.artifact import CodeNotAllowed, read
from orchestrator.network.model_card import ModelCard
from orchestrator.network.zoo import NETWORKS
from orchestrator.record import InvalidInput, Measured, Point, Stage
from orchestrator.stage_files import MODEL_FILE, WEIGHTS_FILE
from orchestrator.store import StageStore
from orchestrator.takeout.confirmed import confirmed_model
from orchestrator.takeout.figures import Confirmation
from orchestrator.training.datasets import DataSet, is_code, load


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A point of a study and the stage whose model is taken: the point's own, or one that confirming it has trained."""

    study: Study
    point: Point
    store: StageStore
    measured: Point | Measured
    confirmation: Confirmation | None = None

    @property
    def key(self) -> str:
        """Of the stage whose model is taken."""
        return self.measured.key

    @cached_property
    def folder(self) -> Path:
        """With the weights in it. Raises InvalidInput if they were not kept."""
        folder = self.store.weights(self.key)
        if folder is None:
            place = self.store.root / "stages" / self.key / WEIGHTS_FILE
            raise InvalidInput(f"{place}: the weights of this point were not kept")
        return folder

    @cached_property
    def card(self) -> ModelCard:
        """model.json of the stage; it and the weights are checked against their digests."""
        if not (self.folder / MODEL_FILE).is_file():
            raise InvalidInput(f"{self.folder}: was made before there was {MODEL_FILE}, which an export needs")
        return read(self.folder)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The path from nothing to this model."""
        return _path(self.store, self.key)

    @property
    def code(self) -> tuple[str, ...]:
        """The user's functions that building the network and loading the data would run."""
        return code_of(self.card.architecture.reference, self.point.dataset)


def choose(study: Study, key: str, *, confirmed: bool) -> Chosen:
    """The point of the study with this key, or what confirming it has left. Raises InvalidInput where there is none."""
    point = study.point(key)
    if not confirmed:
        return Chosen(study=study, point=point, store=study.store, measured=point)
    found = confirmed_model(study, point.key)
    return Chosen(
        study=study,
        point=point,
        store=found.store,
        measured=found.measured,
        confirmation=found.confirmation,
    )


def _path(store: StageStore, key: str) -> tuple[Stage, ...]:
    path = [store.stage(key)]
    while (parent := path[-1].parent) is not None:
        path.append(store.stage(parent))
    return tuple(reversed(path))


def code_of(model: str, dataset: str) -> tuple[str, ...]:
    """Those of the two that are the user's functions."""
    own = model not in NETWORKS and not model.startswith(("torchvision:", "timm:"))
    found = [model] if own and user_function.is_reference(model) else []
    return (*found, *([dataset] if is_code(dataset) else []))


def check_allowed(study: Study, code: Iterable[str], allow_code: Collection[str]) -> None:
    """Raise CodeNotAllowed, naming the option, for code of the user's that is not allowed to be run."""
    for reference in code:
        if reference not in allow_code:
            raise CodeNotAllowed(
                f"{study.path}: this point needs {reference}, code that taking it out would run; "
                f"if you trust it, allow it: --allow-code {reference}"
            )


def data_of(chosen: Chosen, data_root: str | os.PathLike[str]) -> DataSet:
    """The data set that the model was trained on. Raises InvalidInput if it is another one under the same name."""
    data = load(chosen.point.dataset, root=data_root)
    recorded = _path(chosen.study.store, chosen.point.key)[0].parameters.get("data")
    if isinstance(recorded, dict) and recorded.get("fingerprint") != data.fingerprint:
        raise InvalidInput(
            f"data set {chosen.point.dataset} in {data_root}: its fingerprint is {data.fingerprint[:12]}; "
            f"the model was trained on {str(recorded.get('fingerprint'))[:12]}: other pictures, or another split"
        )
    return data
