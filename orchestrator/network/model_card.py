"""model.json: what a saved network is, how it was made and how well it does; written whole, read with suspicion.

What the digests catch in an honest folder is caught a second time by what it means: a hostile author can compute
digests too. flops and accuracies are the author's word.
"""

import hashlib
import json
import math
import os
import re
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic_core
from pydantic import Field, FiniteFloat, ValidationError, field_validator, model_validator
from safetensors import SafetensorError, safe_open

from orchestrator.network.plan import Plan
from orchestrator.network.weights import fingerprint
from orchestrator.network.zoo import InputShape
from orchestrator.record import InvalidInput, Record, Share, canonical_json, first_problem
from orchestrator.stage_files import MODEL_FILE, WEIGHTS_FILE

FORMAT = "pruning-orchestrator model"
VERSION = 1

MAX_DESCRIPTION_BYTES = 8 * 2**20
MAX_ELEMENTS = 2**31  # of all tensors of a dense network together
MAX_PICTURE = 2**24  # numbers in one picture

Count = Annotated[int, Field(ge=0)]
GroupName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
Kept = dict[GroupName, tuple[int, ...]]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class UnfitArtifact(InvalidInput):
    """A model folder that is damaged, hostile or made by a newer version; the message names the file and the field."""


class Architecture(Record):
    """Where the dense network comes from: what `build` is given."""

    reference: Annotated[str, Field(max_length=500)]  # resnet56, torchvision:NAME, timm:NAME, package.module:function
    classes: Annotated[int, Field(ge=1, le=2**20)]
    input_shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]

    @field_validator("input_shape")
    @classmethod
    def _not_absurd(cls, shape: InputShape) -> InputShape:
        if math.prod(shape) > MAX_PICTURE:
            raise ValueError(f"is {'x'.join(map(str, shape))}; a picture may have {MAX_PICTURE:,} numbers at most")
        return shape


class Width(Record):
    """How many channels of a group are left, and how many the dense network has."""

    channels: Annotated[int, Field(ge=1)]
    dense: Annotated[int, Field(ge=1)]


class Preprocessing(Record):
    """From a picture to what the network takes: float32 [N, C, H, W], (pixels - 255 * mean) / (255 * std).

    pixels: uint8, 0 to 255; mean and std are one number a channel, of values in [0, 1], as the training had them.
    """

    mean: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]
    std: tuple[Annotated[FiniteFloat, Field(gt=0.0)], ...]
    prepared: str | None = None  # how a picture of any kind becomes these pixels, where the data set says so

    @model_validator(mode="after")
    def _a_number_for_each_channel(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers, std has {len(self.std)}; both need one a channel")
        return self


class Provenance(Record):
    """Who made a model, where that is known."""

    study: str | None = None
    stage: str | None = None  # the stage's key
    commit: str | None = None  # of the code that was searched with
    created: str | None = None
    orchestrator: str | None = None  # versions
    torch: str | None = None


class WeightsFile(Record):
    """The file of tensors beside model.json."""

    file: str
    bytes: Annotated[int, Field(ge=1, le=16 * MAX_ELEMENTS)]
    sha256: Sha256

    @field_validator("file")
    @classmethod
    def _stays_in_the_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors", name):
            raise ValueError(f"is {name[:80]!r}; it must be the name of a .safetensors file beside {MODEL_FILE}")
        return name


class Description(Record):
    """All of model.json but its digest."""

    format: Literal["pruning-orchestrator model"] = "pruning-orchestrator model"
    version: Literal[1] = 1
    architecture: Architecture
    plans: tuple[Kept, ...]  # group -> positions that stay; one after the other, dense first
    widths: dict[GroupName, Width]  # of every group that a plan names
    flops: Count  # multiply-accumulates at batch 1, biases and norms not counted
    dense_flops: Count
    params: Count
    accuracy: Share | None = None  # top-1 on the validation split
    accuracy_after_cut: Share | None = None
    test_accuracy: Share | None = None
    dataset: str | None = None
    preprocessing: Preprocessing | None = None  # None in folders of before it was known, whose digests are without it
    provenance: Provenance
    weights: WeightsFile

    @field_validator("plans")
    @classmethod
    def _plans_are_plans(cls, plans: tuple[Kept, ...]) -> tuple[Kept, ...]:
        for kept in plans:
            Plan(kept=kept)
        return plans

    @property
    def cuts(self) -> tuple[Plan, ...]:
        """The plans, as `cut` takes them."""
        return tuple(Plan(kept=kept) for kept in self.plans)

    def digest_of_fields(self) -> str:
        """SHA-256 of the canonical JSON of everything but the digest."""
        fields = self.fields()
        fields.pop("digest", None)
        return hashlib.sha256(canonical_json(fields).encode()).hexdigest()

    def fields(self) -> dict[str, Any]:
        """What is written into model.json."""
        unknown = {"preprocessing"} if self.preprocessing is None else None
        return self.model_dump(mode="json", exclude=unknown)


class ModelCard(Description):
    """model.json: what a model is, how it was made and how well it does."""

    digest: Sha256

    def knowing(self, **facts: Any) -> "ModelCard":
        """The same model with more known of it, such as test_accuracy; the digest is made anew."""
        described = Description.model_validate({**self.model_dump(exclude={"digest"}), **facts})
        return ModelCard(**described.model_dump(), digest=described.digest_of_fields())

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        expected = self.digest_of_fields()
        if self.digest != expected:
            raise ValueError(f"digest is {self.digest}; the other fields give {expected}: something was changed")
        channels = self.architecture.input_shape[0]
        if self.preprocessing is not None and len(self.preprocessing.mean) != channels:
            raise ValueError(f"preprocessing.mean: has {len(self.preprocessing.mean)} numbers for {channels} channels")
        for name, width in self.widths.items():
            self._follow(name, width)
        named = {name for kept in self.plans for name in kept}
        for name in sorted(named ^ self.widths.keys()):
            if name in named:
                raise ValueError(f"plans: {name} has no entry in widths")
            raise ValueError(f"widths.{name}: is no group that a plan names")
        return self

    def _follow(self, name: str, width: Width) -> None:
        left = width.dense
        for i, kept in enumerate(self.plans):
            positions = kept.get(name)
            if positions is not None and positions[-1] >= left:
                raise ValueError(f"plans.{i}: {name} keeps position {positions[-1]}; there are {left} channels")
            left = left if positions is None else len(positions)
        if left != width.channels:
            raise ValueError(f"widths.{name}: is {width.channels} of {width.dense} channels; the plans leave {left}")


def write_description(folder: Path, card: ModelCard) -> None:
    """Write model.json into a folder that holds the weights: aside, onto the disk, renamed. One line a field."""
    fields = card.fields()
    lines = (f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())
    aside = folder / f"{MODEL_FILE}.{uuid.uuid4().hex}.part"
    try:
        aside.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        sync(aside)
        aside.replace(folder / MODEL_FILE)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have what was written to a file or a folder reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str | os.PathLike[str]) -> ModelCard:
    """What model.json says, once it and the bytes of the weights were found undamaged. Nothing is built.

    Raises UnfitArtifact, which names the file, the field and what is wrong.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UnfitArtifact(f"{folder}: no such folder; a model is a folder with {MODEL_FILE} and {WEIGHTS_FILE}")
    where = _regular(folder, MODEL_FILE)
    with where.open("rb") as file:
        content = file.read(MAX_DESCRIPTION_BYTES + 1)
    if len(content) > MAX_DESCRIPTION_BYTES:
        raise UnfitArtifact(f"{where}: is larger than {MAX_DESCRIPTION_BYTES:,} bytes")
    _check_version(content, where)
    try:
        card = ModelCard.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise UnfitArtifact(f"{where}: {_printable(first_problem(error))}") from error
    _check_weights(folder, card.weights)
    return card


def _printable(text: str) -> str:
    """Without the line breaks and terminal codes that a hostile field's name may hold."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _regular(folder: Path, name: str) -> Path:
    """A file of the folder that may be opened. Raises UnfitArtifact if it is missing, a device, or lies elsewhere."""
    path = folder / name
    try:
        real = os.path.realpath(path, strict=True)
        mode = os.stat(real).st_mode
    except FileNotFoundError as error:
        raise UnfitArtifact(f"{path}: missing") from error
    except OSError as error:
        raise UnfitArtifact(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    if os.path.dirname(real) != os.path.realpath(folder):
        raise UnfitArtifact(f"{path}: is a link to {real}, which is outside the folder")
    if not stat.S_ISREG(mode) or not os.access(real, os.R_OK):
        raise UnfitArtifact(f"{path}: is no file that can be read")
    return path


def _check_version(content: bytes, where: Path) -> None:
    try:
        value: Any = pydantic_core.from_json(content)
    except ValueError as error:
        raise UnfitArtifact(f"{where}: is no JSON ({error})") from error
    found = value if isinstance(value, Mapping) else {}
    if found.get("format") != FORMAT:
        raise UnfitArtifact(f"{where}: format is {str(found.get('format'))[:80]!r}; it must be {FORMAT!r}")
    if found.get("version") != VERSION:
        raise UnfitArtifact(
            f"{where}: version is {str(found.get('version'))[:80]!r}; this pruning-orchestrator reads version {VERSION}"
        )


def _check_weights(folder: Path, given: WeightsFile) -> None:
    path = _regular(folder, given.file)
    size = path.stat().st_size
    if size != given.bytes:
        raise UnfitArtifact(f"{path}: has {size:,} bytes; weights.bytes of {MODEL_FILE} is {given.bytes:,}")
    found = fingerprint(path)
    if found != given.sha256:
        raise UnfitArtifact(f"{path}: its SHA-256 is {found}; weights.sha256 of {MODEL_FILE} is {given.sha256}")
    tensors_of(path)


def tensors_of(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, precision) of the tensors of a safetensors file, from its header."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            return {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise UnfitArtifact(f"{path}: is no safetensors file: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error, or its name if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
