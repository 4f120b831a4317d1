"""A pruned model as a folder: weights.safetensors and model.json. No pickle, no code.

    save(folder, model, architecture=..., plans=[plan])     writes the folder
    describe(weights, coupling, ...), write_description()   add model.json to weights that lie in a folder already
    load(folder)                                            the network again, in evaluation mode
    read(folder)                                            model.json alone, checked

A folder comes from anywhere. What can be checked before anything is built is checked first, in model_card.py; then the
architecture is built (user code only by leave), cut by the plans, and compared with what the folder says of it.
"""

import math
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.network import user_function
from orchestrator.network.architectures import build
from orchestrator.network.cost import CostTable
from orchestrator.network.coupling import Coupling, couple
from orchestrator.network.model_card import (
    MAX_ELEMENTS,
    Architecture,
    Description,
    ModelCard,
    Preprocessing,
    Provenance,
    UnfitArtifact,
    WeightsFile,
    Width,
    first_line,
    read,
    sync,
    tensors_of,
    write_description,
)
from orchestrator.network.plan import Plan, PlanMismatch
from orchestrator.network.recording import tensors_in
from orchestrator.network.seeding import seeded
from orchestrator.network.surgery import cut
from orchestrator.network.weights import fingerprint, load_weights_, save_weights
from orchestrator.network.zoo import NETWORKS
from orchestrator.record import InvalidInput, first_problem, now
from orchestrator.stage_files import MODEL_FILE, WEIGHTS_FILE

__all__ = [
    "Architecture",
    "CodeNotAllowed",
    "Facts",
    "ModelCard",
    "Preprocessing",
    "UnfitArtifact",
    "UnfitModel",
    "aside",
    "describe",
    "load",
    "read",
    "save",
    "write_description",
]

TOLERANCE = 1e-5  # of a saved network's output, relative to its largest
PRECISIONS = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
REBUILDING = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class CodeNotAllowed(UnfitArtifact):
    """A model folder whose architecture is code that the reader has not allowed."""


class UnfitModel(InvalidInput):
    """A model that is not what its architecture and plans give, so that nobody could load it again."""


class Facts(TypedDict, total=False):
    """What a writer may know besides the network itself; see ModelCard and Provenance."""

    accuracy: float | None
    accuracy_after_cut: float | None
    test_accuracy: float | None
    dataset: str | None
    preprocessing: Preprocessing | None
    study: str | None
    stage: str | None
    commit: str | None


# -- writing ----------------------------------------------------------------------------------------------------------


def save(
    folder: str | os.PathLike[str],
    model: nn.Module,
    *,
    architecture: Architecture,
    plans: Sequence[Plan] = (),
    **facts: Unpack[Facts],
) -> ModelCard:
    """Write a model folder, whole or not at all; returns what model.json says.

    The folder is read back before it gets its name: the architecture, cut by the plans, with these weights, must give
    the model's own output. plans: one after the other, the first for the dense network.
    Raises UnfitModel if it does not, InvalidInput if the folder is not empty or cannot be written.
    """
    folder = Path(folder)
    coupling, again = _rebuilt(architecture, plans)
    _check_same_tensors(model, again, architecture)
    with aside(folder) as staging:
        weights = staging / WEIGHTS_FILE
        save_weights(model, weights)
        card = describe(weights, coupling, architecture=architecture, plans=plans, **facts)
        load_weights_(again, weights)
        _check_same_output(model, again, architecture)
        write_description(staging, card)
    return card


def describe(
    weights: Path,
    coupling: Coupling,
    *,
    architecture: Architecture,
    plans: Sequence[Plan] = (),
    **facts: Unpack[Facts],
) -> ModelCard:
    """What model.json has to say about a weights file that is written already. Nothing is built.

    coupling: of the dense network. Raises PlanMismatch if a plan does not fit it, UnfitModel if the weights do not fit
    what the plans leave.
    """
    small = _restricted(coupling, plans)
    for name, (shape, _) in tensors_of(weights).items():
        if shape != small.shapes.get(name, shape):
            raise UnfitModel(f"{weights}: {name} is {shape}; the plans leave {small.shapes[name]}")
    try:
        described = Description(
            architecture=architecture,
            plans=tuple(dict(plan.kept) for plan in plans),
            widths=_widths(coupling, small, plans),
            flops=CostTable(small).flops(),
            dense_flops=CostTable(coupling).flops(),
            params=CostTable(small).params(),
            accuracy=facts.get("accuracy"),
            accuracy_after_cut=facts.get("accuracy_after_cut"),
            test_accuracy=facts.get("test_accuracy"),
            dataset=facts.get("dataset"),
            preprocessing=facts.get("preprocessing"),
            provenance=_provenance(facts),
            weights=WeightsFile(file=weights.name, bytes=weights.stat().st_size, sha256=fingerprint(weights)),
        )
    except ValidationError as error:
        raise InvalidInput(f"{MODEL_FILE}: {first_problem(error)}") from error
    return ModelCard(**described.model_dump(), digest=described.digest_of_fields())


def _provenance(facts: Facts) -> Provenance:
    return Provenance(
        study=facts.get("study"),
        stage=facts.get("stage"),
        commit=facts.get("commit"),
        created=now(),
        orchestrator=metadata.version("pruning-orchestrator"),
        torch=str(torch.__version__),
    )


def _widths(dense: Coupling, small: Coupling, plans: Sequence[Plan]) -> dict[str, Width]:
    named = {name for plan in plans for name in plan.kept}
    return {
        group.name: Width(channels=small.by_name[group.name].size, dense=group.size)
        for group in dense.groups
        if group.name in named
    }


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A new folder beside the wanted one, which takes its name when all went well and is gone when not.

    Raises InvalidInput if there is something under that name, or it cannot be written.
    """
    staging = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.part"
    try:
        check_free(folder)
        staging.mkdir(parents=True)
        yield staging
        for path in (*staging.iterdir(), staging):
            sync(path)
        os.rename(staging, folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InvalidInput(f"{folder}: cannot be written ({reason.lower()})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Raise InvalidInput if a folder holds anything, or is no folder."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidInput(f"{folder}: is not empty; give a folder that is new")


def _check_same_tensors(model: nn.Module, again: nn.Module, architecture: Architecture) -> None:
    own, expected = (
        {name: f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for name, t in each.state_dict().items()}
        for each in (model, again)
    )
    wrong = [name for name in {**expected, **own} if own.get(name) != expected.get(name)]
    if wrong:
        raise UnfitModel(
            f"model: {wrong[0]} is {own.get(wrong[0], 'missing')}; "
            f"{_named(architecture)} has {expected.get(wrong[0], 'no such tensor')}"
        )


def _difference(found: Tensor, wanted: Tensor) -> float:
    """The worst difference relative to the largest number. What is infinite or no number in both alike agrees."""
    if found.shape != wanted.shape:
        return float("inf")
    differ = ~found.isclose(wanted, rtol=0, atol=0, equal_nan=True)
    if not differ.any():
        return 0.0
    scale = wanted[wanted.isfinite()].abs().max().item() if wanted.isfinite().any() else 0.0
    return float((found - wanted)[differ].abs().max().item() / max(scale, 1e-12))


def _named(architecture: Architecture) -> str:
    return f"{architecture.reference} with these plans"


def _check_same_output(model: nn.Module, again: nn.Module, architecture: Architecture) -> None:
    """The same tensors are not the same network: a layer without weights may have been exchanged."""
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    pictures = torch.randn(2, *architecture.input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.no_grad(), seeded(0, device):
            pairs = zip(tensors_in(again.to(device).eval()(pictures)), tensors_in(model.eval()(pictures)), strict=True)
            worst = max((_difference(a, b) for a, b in pairs), default=0.0)
    except REBUILDING as error:
        raise UnfitModel(f"model: does not run like {_named(architecture)}: {first_line(error)}") from error
    finally:
        for module, training in modes:
            module.training = training
    if not worst <= TOLERANCE:
        raise UnfitModel(f"model: its output differs by {worst:.1e} from that of {_named(architecture)} and weights")


# -- reading ----------------------------------------------------------------------------------------------------------


def load(
    path: str | os.PathLike[str], *, device: str | torch.device = "cpu", allow_code: Collection[str] = ()
) -> nn.Module:
    """The network of a model folder, in evaluation mode: the architecture built, cut by the plans, weights filled in.

    allow_code: references such as "package.module:function" that may be imported and called, should the folder name
    one as its architecture; the networks of this package, torchvision and timm need no leave.
    Raises UnfitArtifact, CodeNotAllowed or UnfitWeights, which name the file, the field and what is wrong.
    """
    folder = Path(path)
    card, where = read(folder), folder / MODEL_FILE
    _check_allowed(card.architecture.reference, where, allow_code)
    model = _rebuilt_as_described(card, where)
    weights = folder / card.weights.file
    own = model.state_dict()
    for name, (_, precision) in tensors_of(weights).items():
        if name in own and PRECISIONS.get(precision) != own[name].dtype:
            needed = str(own[name].dtype).removeprefix("torch.")
            raise UnfitArtifact(f"{weights}: {name} is of type {precision}; the network needs {needed}")
    load_weights_(model, weights)
    return model.to(device).eval()


def _is_code(reference: str) -> bool:
    """Whether a reference names a user's function, by its form; `build` knows the other names."""
    known = reference in NETWORKS or reference.startswith(("torchvision:", "timm:"))
    return user_function.is_reference(reference) and not known


def _check_allowed(reference: str, where: Path, allow_code: Collection[str]) -> None:
    allowed = {allow_code} if isinstance(allow_code, str) else set(allow_code)
    if _is_code(reference) and reference not in allowed:
        raise CodeNotAllowed(
            f"{where}: architecture.reference is {reference}, code that loading would run; "
            f"if you trust it, allow it: load(path, allow_code=[{reference!r}])"
        )


def _rebuilt_as_described(card: ModelCard, where: Path) -> nn.Module:
    try:
        coupling, model = _rebuilt(card.architecture, card.cuts)
    except PlanMismatch as error:
        raise UnfitArtifact(f"{where}: plans: {str(error).removeprefix('plan: ')}") from error
    except InvalidInput as error:
        raise UnfitArtifact(f"{where}: architecture: {error}") from error
    small = _restricted(coupling, card.cuts)
    for name, width in _widths(coupling, small, card.cuts).items():
        given = card.widths[name]
        if given != width:
            raise UnfitArtifact(
                f"{where}: widths.{name}: is {given.channels} of {given.dense} channels; "
                f"{_named(card.architecture)} has {width.channels} of {width.dense}"
            )
    params = CostTable(small).params()
    if card.params != params:
        raise UnfitArtifact(f"{where}: params: is {card.params:,}; the network has {params:,}")
    return model


# -- both -------------------------------------------------------------------------------------------------------------


def _rebuilt(architecture: Architecture, plans: Sequence[Plan]) -> tuple[Coupling, nn.Module]:
    """The dense network's coupling, and the network that the plans leave, with random weights."""
    model = _dense(architecture)
    coupling = at = couple(model, torch.empty(2, *architecture.input_shape, device="meta"))
    for plan in plans:
        model, at = cut(model, at, plan), at.restrict(plan)
    return coupling, model


def _dense(architecture: Architecture) -> nn.Module:
    """Build the dense network. What a user's function raises passes through, so that its traceback is seen."""
    try:
        with _Allocations():
            return build(
                architecture.reference, classes=architecture.classes, input_shape=architecture.input_shape, seed=0
            )
    except REBUILDING as error:
        if isinstance(error, InvalidInput) or _is_code(architecture.reference):
            raise
        shape = "x".join(map(str, architecture.input_shape))
        raise InvalidInput(
            f"{architecture.reference} cannot be built for {architecture.classes} classes and {shape} pictures: "
            f"{first_line(error)}"
        ) from error


class _Allocations(TorchDispatchMode):
    """Refuses to make more tensors than any sensible network has, before the memory is asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not tensors_in(args):
            sizes = (each for each in args if isinstance(each, (list, tuple)))
            self.elements += math.prod(next(sizes, ()))
            if self.elements > MAX_ELEMENTS:
                raise InvalidInput(f"the dense network would hold more than {MAX_ELEMENTS:,} numbers")
        return func(*args, **(kwargs or {}))


def _restricted(coupling: Coupling, plans: Sequence[Plan]) -> Coupling:
    for plan in plans:
        coupling = coupling.restrict(plan)
    return coupling
