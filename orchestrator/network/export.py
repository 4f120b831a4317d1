"""A network as a file that others run: ONNX and torch.export, each read back and compared with the network itself.

Both forms are of evaluation mode, float32, on the CPU, for any batch size and pictures of one shape. Neither needs
this package, or the network's own code, to be run.
"""

import copy
import importlib
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from orchestrator.network.recording import tensors_in
from orchestrator.network.zoo import InputShape
from orchestrator.record import InvalidInput, Record

BATCHES = (1, 2, 5)  # on which the file and the network are compared
TOLERANCE = 1e-5  # of an output, relative to the largest
PROTOBUF_BYTES = 2_000_000_000  # above, ONNX keeps the weights in a file of their own
LOUD = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")  # loggers that tell of their work

# what exporters raise at networks that they cannot follow
REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Answer = Callable[[Tensor], list[Tensor]]
NOTHING: Mapping[str, str] = MappingProxyType({})


class ExportFailed(InvalidInput):
    """A network that an exporter cannot follow, or whose exported form computes something else."""


class Exported(Record):
    """A file that was written, read back and compared."""

    path: Path
    bytes: int
    difference: float  # the worst of any output, relative to the largest, over several batch sizes


@dataclass(frozen=True, kw_only=True)
class Form:
    """One kind of file: how a program of torch.export becomes one, and how it answers when it is read back."""

    suffix: str
    needs: tuple[str, ...]
    write: Callable[[Any, Path, Mapping[str, str]], None]  # with what the file shall say of itself
    read: Callable[[Path], Answer]


def to_onnx(
    model: nn.Module,
    input_shape: InputShape,
    path: str | os.PathLike[str],
    *,
    batches: Sequence[int] = BATCHES,
    tolerance: float = TOLERANCE,
    metadata: Mapping[str, str] = NOTHING,
) -> Exported:
    """Write a network as ONNX, its input named "pictures" [batch, C, H, W]; compared under ONNX Runtime on the CPU.

    metadata: what the file says of itself, `session.get_modelmeta().custom_metadata_map` under ONNX Runtime. Weights
    of 2 GB and more, which the format cannot hold, go into a second file, "<path>.data". A file that is there is
    replaced only by one that passed. The model is not touched.
    Raises ExportFailed, or InvalidInput where the packages of the extra `export` are missing.
    """
    return _export(ONNX, model, input_shape, Path(path), batches=batches, tolerance=tolerance, metadata=metadata)


def to_torch_export(
    model: nn.Module,
    input_shape: InputShape,
    path: str | os.PathLike[str],
    *,
    batches: Sequence[int] = BATCHES,
    tolerance: float = TOLERANCE,
    metadata: Mapping[str, str] = NOTHING,
) -> Exported:
    """Write a network as a .pt2 file, which `torch.export.load(path).module()` runs.

    metadata: what the file says of itself, the `extra_files` of torch.export.load. A file that is there is replaced
    only by one that passed. The model is not touched. Raises ExportFailed.
    """
    return _export(
        TORCH_EXPORT, model, input_shape, Path(path), batches=batches, tolerance=tolerance, metadata=metadata
    )


def read_back(path: Path) -> Answer:
    """How an exported file answers, by its own runtime: float32 pictures [N, C, H, W] -> its outputs."""
    return {form.suffix: form for form in (ONNX, TORCH_EXPORT)}[path.suffix].read(path)


def _export(
    form: Form,
    model: nn.Module,
    input_shape: InputShape,
    path: Path,
    *,
    batches: Sequence[int],
    tolerance: float,
    metadata: Mapping[str, str],
) -> Exported:
    if path.suffix != form.suffix:
        raise InvalidInput(f"{path}: the name must end in {form.suffix}")
    check_installed(form)
    network = copy.deepcopy(model).to("cpu", torch.float32).eval()
    with _staging(path) as staging, torch.no_grad():
        aside = staging / path.name
        try:
            with _quiet():
                form.write(_followed(network, input_shape), aside, metadata)
                worst = difference(network, form.read(aside), input_shape, batches)
        except REFUSALS as error:
            raise ExportFailed(f"{path}: the network cannot be exported: {_line(error)}") from error
        if not worst <= tolerance:
            raise ExportFailed(f"{path}: differs from the network by {worst:.1e}; {tolerance:g} is allowed")
        written = sorted(staging.iterdir())
        size = sum(file.stat().st_size for file in written)
        for file in written:
            file.replace(path.parent / file.name)
    return Exported(path=path, bytes=size, difference=worst)


def check_installed(form: Form) -> None:
    """Raise InvalidInput, naming the extra, where packages that a kind of file needs are missing."""
    for name in form.needs:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise InvalidInput(
                f"{form.suffix} files need {name}: pip install 'pruning-orchestrator[export]'"
            ) from error


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A folder beside a file, on the same disk, that is gone afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be written ({(error.strerror or str(error)).lower()})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress and advice. Errors pass."""
    loggers = [logging.getLogger(name) for name in LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _followed(network: nn.Module, input_shape: InputShape) -> Any:
    """A network as a program of torch.export for any batch size."""
    example = torch.zeros(2, *input_shape)  # a batch of one would be taken for a constant
    return torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False)


def difference(network: nn.Module, answer: Answer, input_shape: InputShape, batches: Sequence[int] = BATCHES) -> float:
    """The worst difference of any output, relative to the largest number in it. Infinite if that cannot be said."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in batches:
        pictures = torch.randn(batch, *input_shape, generator=generator)
        for found, wanted in zip(answer(pictures), tensors_in(network(pictures)), strict=True):
            if found.shape != wanted.shape:
                return float("inf")
            scale = max(wanted.abs().max().item(), 1e-12)
            ratio = (found - wanted).abs().max().item() / scale
            worst = max(worst, float("inf") if math.isnan(ratio) else ratio)
    return worst


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# -- the forms --------------------------------------------------------------------------------------------------------


def _write_onnx(program: Any, path: Path, metadata: Mapping[str, str]) -> None:
    made = torch.onnx.export(
        program,
        (),
        dynamo=True,
        verbose=False,
        input_names=["pictures"],
        dynamic_shapes=({0: "batch"},),
    )
    assert made is not None
    made.model.metadata_props.update(metadata)
    made.save(path, external_data=sum(tensor.nbytes for tensor in program.state_dict.values()) >= PROTOBUF_BYTES)


def _read_onnx(path: Path) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    with _onnxruntime_errors():
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def answer(pictures: Tensor) -> list[Tensor]:
        with _onnxruntime_errors():
            return [torch.from_numpy(out) for out in session.run(None, {"pictures": pictures.numpy()})]

    return answer


@contextmanager
def _onnxruntime_errors() -> Iterator[None]:
    """ONNX Runtime's errors have no base of their own; here they become RuntimeErrors."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    known = tuple(each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception))
    try:
        yield
    except known as error:
        raise RuntimeError(str(error)) from error


def _write_torch_export(program: Any, path: Path, metadata: Mapping[str, str]) -> None:
    torch.export.save(program, path, extra_files=dict(metadata))


def _read_torch_export(path: Path) -> Answer:
    network = torch.export.load(path).module()
    return lambda pictures: tensors_in(network(pictures))


ONNX = Form(suffix=".onnx", needs=("onnx", "onnxscript", "onnxruntime"), write=_write_onnx, read=_read_onnx)
TORCH_EXPORT = Form(suffix=".pt2", needs=(), write=_write_torch_export, read=_read_torch_export)
