"""take_out(study, key, folder): a point of a study as a folder that others use, whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.collector import Study
from orchestrator.network import artifact
from orchestrator.network.export import (
    ONNX,
    TOLERANCE,
    Answer,
    ExportFailed,
    check_installed,
    difference,
    read_back,
    to_onnx,
    to_torch_export,
)
from orchestrator.network.model_card import ModelCard, write_description
from orchestrator.network.recording import tensors_in
from orchestrator.network.weights import fingerprint
from orchestrator.network.zoo import InputShape
from orchestrator.record import InvalidInput
from orchestrator.takeout.choosing import check_allowed, choose, data_of
from orchestrator.takeout.figures import FIGURES_FILE, ExportedFile, Figures
from orchestrator.takeout.measuring import figures_of
from orchestrator.takeout.readme import README_FILE, readme
from orchestrator.training.batches import preprocessing_of
from orchestrator.training.datasets import DataSet
from orchestrator.training.loop import evaluate


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What there is to be written: the network, its description, and the data that the files are measured on."""

    source: Path  # the stage's folder
    card: ModelCard
    network: nn.Module
    data: DataSet
    test_accuracy: float  # of the network, as it is measured here
    allow_code: tuple[str, ...]

    @property
    def input_shape(self) -> InputShape:
        return self.card.architecture.input_shape

    @property
    def metadata(self) -> dict[str, str]:
        """What an exported file says of itself."""
        assert self.card.preprocessing is not None
        how = {"input_shape": self.card.architecture.input_shape, "classes": self.card.architecture.classes}
        told = {**how, "formula": FORMULA, **self.card.preprocessing.model_dump(mode="json")}
        return {"preprocessing": json.dumps(told), "model": self.card.model_dump_json(include=TOLD)}


FORMULA = "(pixels - 255 * mean) / (255 * std), pixels from 0 to 255, float32 [N, C, H, W]"
TOLD = {"dataset", "flops", "params", "accuracy", "test_accuracy", "provenance"}


def take_out(
    study: Study,
    key: str,
    output: str | os.PathLike[str],
    *,
    formats: Sequence[str] | None = None,
    data_root: str | os.PathLike[str] = "data",
    latency_batch: int = 0,
    allow_code: Collection[str] = (),
    confirmed: bool = False,
) -> Figures:
    """Write a point's model and its card into a new folder; returns what the card says.

    Every form is read back, compared with the network and measured on the test split. key: may be cut short while it
    is unmistakable. formats: of FORMATS; all if None. latency_batch: pictures in the batch that the pruned and the
    dense network are timed on; 0 for none. allow_code: references such as "package.module:function" that may be run,
    should the study name one as its model or data. confirmed: the model of the first seed that confirming this point
    has trained.
    Raises InvalidInput, in one line, for what is missing, not allowed, or does not fit; nothing is written then.
    """
    folder, wanted = Path(output), _checked(list(FORMATS) if formats is None else formats)
    artifact.check_free(folder)
    chosen = choose(study, key, confirmed=confirmed)
    check_allowed(study, chosen.code, allow_code)
    data = data_of(chosen, data_root)
    network = artifact.load(chosen.folder, allow_code=allow_code)
    measured = evaluate(network, data, "test").accuracy
    figures = figures_of(chosen, network, data, test_accuracy=measured, latency_batch=latency_batch)
    card = chosen.card.knowing(preprocessing=preprocessing_of(data), test_accuracy=figures.test_accuracy)
    made = _Made(
        source=chosen.folder,
        card=card,
        network=network,
        data=data,
        test_accuracy=measured,
        allow_code=tuple(allow_code),
    )
    with artifact.aside(folder) as staging:
        files = tuple(FORMATS[form](made, staging) for form in wanted)
        figures = figures.model_copy(update={"files": files})
        (staging / FIGURES_FILE).write_text(figures.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (staging / README_FILE).write_text(readme(figures), encoding="utf-8")
    return figures


def _checked(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats, each once. Raises InvalidInput for one that there is not, or whose packages are missing."""
    for form in formats:
        if form not in FORMATS:
            raise InvalidInput(f"formats: there is no {form!r}; allowed are {', '.join(FORMATS)}")
    if not formats:
        raise InvalidInput(f"formats: none is given; allowed are {', '.join(FORMATS)}")
    if "onnx" in formats:
        try:
            check_installed(ONNX)
        except InvalidInput as error:
            others = ",".join(form for form in FORMATS if form != "onnx")
            raise InvalidInput(f"{error}; or leave them out: --formats {others}") from error
    return tuple(form for form in FORMATS if form in formats)


# -- the forms --------------------------------------------------------------------------------------------------------


def _safetensors(made: _Made, staging: Path) -> ExportedFile:
    """The stage's own weights and a description that knows more; loaded again, they are the same network."""
    path = staging / made.card.weights.file
    shutil.copyfile(made.source / path.name, path)
    write_description(staging, made.card)
    again = artifact.load(staging, allow_code=made.allow_code)
    with torch.no_grad():
        found = difference(made.network, lambda pictures: tensors_in(again(pictures)), made.input_shape)
    if not found <= TOLERANCE:
        raise ExportFailed(f"{path}: differs from the network by {found:.1e}; {TOLERANCE:g} is allowed")
    return _file("safetensors", path, path.stat().st_size, found, made.test_accuracy)


def _exported(form: str, made: _Made, staging: Path) -> ExportedFile:
    write, name = {"onnx": (to_onnx, "model.onnx"), "pt2": (to_torch_export, "model.pt2")}[form]
    found = write(made.network, made.input_shape, staging / name, metadata=made.metadata)
    test_accuracy = evaluate(_Answering(read_back(found.path)), made.data, "test").accuracy
    return _file(form, found.path, found.bytes, found.difference, test_accuracy)


class _Answering(nn.Module):
    """An exported file where a network is expected."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def forward(self, pictures: Tensor) -> Tensor:
        return self._answer(pictures)[0]


def _file(form: str, path: Path, size: int, difference: float, test_accuracy: float) -> ExportedFile:
    return ExportedFile(
        format=form,
        file=path.name,
        bytes=size,
        sha256=fingerprint(path),
        difference=difference,
        test_accuracy=test_accuracy,
    )


FORMATS: dict[str, Callable[[_Made, Path], ExportedFile]] = {
    "safetensors": _safetensors,
    "onnx": partial(_exported, "onnx"),
    "pt2": partial(_exported, "pt2"),
}
