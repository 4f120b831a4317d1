"""The figures of a model that is taken out: read from the study, and measured where it is exported."""

import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.network import measure, user_function
from orchestrator.network.architectures import build
from orchestrator.network.latency import side_by_side
from orchestrator.network.lively import lively_
from orchestrator.network.model_card import Architecture, ModelCard
from orchestrator.network.weights import fingerprint
from orchestrator.record import InvalidInput, now
from orchestrator.takeout.choosing import Chosen
from orchestrator.takeout.figures import (
    Code,
    Data,
    Figures,
    Latencies,
    Layer,
    Origin,
    SearchLatency,
    StageFacts,
)
from orchestrator.training.batches import preprocessing_of
from orchestrator.training.datasets import DataSet

PACKAGES = ("pruning-orchestrator", "torch", "onnx", "onnxscript", "onnxruntime")


def figures_of(
    chosen: Chosen, network: nn.Module, data: DataSet, *, test_accuracy: float, latency_batch: int
) -> Figures:
    """All that the card will say but the files.

    test_accuracy: as it is measured now; of a confirmed model the recorded one is said.
    """
    point, card, measured = chosen.point, chosen.card, chosen.measured
    dense = _dense(card.architecture)
    layers, dense_params = _layers(network, dense, card)
    recorded = None if chosen.confirmation is None else measured.test_accuracy
    return Figures(
        model=card.architecture.reference,
        code=tuple(Code(reference=reference, sha256=_digest_of(reference)) for reference in chosen.code),
        data=_data(data, point.dataset),
        input_shape=card.architecture.input_shape,
        preprocessing=preprocessing_of(data),
        accuracy=measured.accuracy,
        accuracy_after_cut=point.accuracy_after_cut if chosen.confirmation is None else None,
        dense_accuracy=_dense_accuracy(chosen),
        test_accuracy=test_accuracy if recorded is None else recorded,
        test_accuracy_by="export" if recorded is None else "confirm",
        confirmation=chosen.confirmation,
        flops=card.flops,
        dense_flops=card.dense_flops,
        flops_kept=card.flops / card.dense_flops if card.dense_flops else 1.0,
        params=card.params,
        dense_params=dense_params,
        latency=_latencies(network, dense, card.architecture, latency_batch) if latency_batch else None,
        search_latency=_search_latency(chosen),
        method=point.method,
        regularization_weight=point.regularization_weight,
        pruning_ratio=point.pruning_ratio,
        iterations=point.iteration,
        layers=layers,
        origin=_origin(chosen),
        files=(),
        limits=tuple(_limits(chosen)),
    )


def _dense(architecture: Architecture) -> nn.Module:
    """The dense network with random weights under which its signal stays alive, as a trained one's does."""
    shape = architecture.input_shape
    model = build(architecture.reference, classes=architecture.classes, input_shape=shape, seed=0)
    lively_(model, torch.zeros(1, *shape, dtype=torch.float64))
    return model.float().eval()


def _layers(network: nn.Module, dense: nn.Module, card: ModelCard) -> tuple[tuple[Layer, ...], int]:
    """The widths of every layer, and the params of the dense network. What model.json claims is counted again."""
    example = torch.zeros(1, *card.architecture.input_shape)
    small, large = measure(network, example), measure(dense, example)
    for name, said, counted in (("flops", card.flops, small.flops), ("dense_flops", card.dense_flops, large.flops)):
        if said != counted:
            raise InvalidInput(f"model.json: {name} is {said:,}; the network has {counted:,}")
    flops, dense_flops = ({name: 0 for name, _ in found.layers} for found in (small, large))
    for counts, found in ((flops, small), (dense_flops, large)):
        for name, count in found.layers:
            counts[name] += count
    layers = tuple(
        Layer(
            name=name,
            channels=_channels(network, name),
            dense_channels=_channels(dense, name),
            flops=flops.get(name, 0),
            dense_flops=count,
        )
        for name, count in dense_flops.items()
    )
    return layers, large.params


def _channels(network: nn.Module, name: str) -> int | None:
    """How many channels a layer makes; None where a module's own code calls the operator."""
    module = network.get_submodule(name)
    found = getattr(module, "out_channels", getattr(module, "out_features", None))
    return found if isinstance(found, int) else None


def _latencies(network: nn.Module, dense: nn.Module, architecture: Architecture, batch: int) -> Latencies:
    found = side_by_side({"pruned": network, "dense": dense}, architecture.input_shape, batch=batch)
    return Latencies(machine=_machine(), **found)


def _search_latency(chosen: Chosen) -> SearchLatency | None:
    """Of the point of the search, whose widths a confirmed model need not have."""
    point = chosen.point
    if chosen.confirmation is not None or point.latency_ms is None or point.latency_batch is None:
        return None
    return SearchLatency(latency_ms=point.latency_ms, batch=point.latency_batch)


def _machine() -> str:
    """The processor by its name, as far as the system tells it; no host's name."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(errors="replace").splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {len(names) or 1} logical cores" if names else name


def _data(data: DataSet, name: str) -> Data:
    return Data(
        name=name,
        fingerprint=data.fingerprint,
        classes=data.classes,
        train=len(data.train),
        validation=len(data.validation),
        test=len(data.test),
    )


def _dense_accuracy(chosen: Chosen) -> float | None:
    """Of the dense model at the beginning of the path, where the search has measured it."""
    known = chosen.confirmation is None
    return chosen.store.point(chosen.stages[0].key).accuracy if known else None


def _digest_of(reference: str) -> str | None:
    """SHA-256 of the file that a user's function was imported from."""
    user_function.find(reference)  # imports it, if that was not done
    file = sys.modules[reference.partition(":")[0]].__file__
    return fingerprint(Path(file)) if file is not None and Path(file).is_file() else None


def _origin(chosen: Chosen) -> Origin:
    provenance = chosen.card.provenance
    trained = {"pruning-orchestrator": provenance.orchestrator, "torch": provenance.torch}
    return Origin(
        study=chosen.study.name,
        points=len(chosen.study.points()),
        key=chosen.key,
        seed=chosen.measured.seed,
        stages=tuple(StageFacts(kind=s.kind, key=s.key, parameters=s.parameters) for s in chosen.stages),
        train_flops=chosen.measured.path_cost.train_flops,
        commit=provenance.commit,
        trained=provenance.created,
        trained_with={name: version for name, version in trained.items() if version is not None},
        exported=now(),
        exported_with=_installed(),
    )


def _installed() -> dict[str, str]:
    """Package -> version, of those that are there."""
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    found["torch"] = str(torch.__version__)  # with the build that it is
    return found


def _limits(chosen: Chosen) -> Iterable[str]:
    recovery: Any = chosen.stages[-1].parameters.get("recovery")
    if chosen.confirmation is None:
        if isinstance(recovery, dict):
            yield (
                f"Short training: {recovery.get('epochs')} epochs of recovery after the last cut, as the search has "
                "them. Trained on, it may do better; `orchestrator confirm` trains it at full length."
            )
        yield "One seed. How far accuracy and test_accuracy move from seed to seed is not known."
        yield "Chosen as one of many points by accuracy on the validation split, which is therefore optimistic."
    else:
        yield "test_accuracy is of one of the seeds; the mean over all of them is what to expect of this recipe."
    yield (
        "Not verified: pictures of other sizes, pixel ranges or sources than the data set's; lower precision "
        "(float16, bfloat16, int8); other devices than the CPU; opset or runtime versions other than those named."
    )
    yield "Not looked at: calibration of the scores, fairness between classes or groups, robustness, adversaries."
