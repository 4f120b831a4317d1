"""Exported files: they answer as the network does at any batch size; a wrong or impossible one is never left behind."""

import builtins
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from orchestrator.network import couple, cut, export, random_plan
from orchestrator.network.architectures import build
from orchestrator.network.export import Exported, ExportFailed, to_onnx, to_torch_export
from orchestrator.record import InvalidInput

SHAPE = (1, 8, 8)
INSTALLED = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not INSTALLED, reason="the extra `export` is not installed")
FORMS = [pytest.param(to_onnx, ".onnx", marks=needs_onnx), pytest.param(to_torch_export, ".pt2")]

Export = Callable[..., Exported]


def pruned() -> nn.Module:
    model = build("cifarnet", classes=10, input_shape=SHAPE, seed=0)
    coupling = couple(model, torch.zeros(1, *SHAPE))
    return cut(model, coupling, random_plan(coupling))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Branching(Plain):
    """Its way depends on what is in the picture, which no exporter can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class BatchOfTwo(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(2, 1, 8, 8))


class Two(Plain):
    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = super().forward(x)
        return out, {"doubled": 2 * out}


def answers(path: Path, pictures: Tensor) -> Tensor:
    """What a file says, read by its own runtime alone."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(pictures)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.shape) == ("pictures", ["batch", *SHAPE])
    return torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0])


@pytest.mark.parametrize(("to_form", "suffix"), FORMS)
def test_a_pruned_network_is_exported_for_any_batch(
    tmp_path: Path, to_form: Export, suffix: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = pruned().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "new" / f"model{suffix}"
    found = to_form(model, SHAPE, path)
    assert (found.path, found.bytes) == (path, path.stat().st_size)
    assert found.difference <= 1e-5
    assert list(path.parent.iterdir()) == [path]
    assert Exported.model_validate_json(found.model_dump_json()) == found
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        for batch in (1, 3):
            pictures = torch.randn(batch, *SHAPE)
            assert torch.allclose(answers(path, pictures), model.eval()(pictures), atol=1e-5)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize(("to_form", "suffix"), FORMS)
def test_half_precision_is_exported_in_single(tmp_path: Path, to_form: Export, suffix: str) -> None:
    model = Plain().half()
    assert to_form(model, SHAPE, tmp_path / f"model{suffix}").difference <= 1e-5
    assert model.head.weight.dtype == torch.float16
    assert answers(tmp_path / f"model{suffix}", torch.zeros(1, *SHAPE)).dtype == torch.float32


def test_several_outputs_are_compared_one_by_one(tmp_path: Path) -> None:
    assert to_torch_export(Two(), SHAPE, tmp_path / "model.pt2").difference <= 1e-5


@pytest.mark.parametrize(("to_form", "suffix"), FORMS)
@pytest.mark.parametrize("model", [Branching(), BatchOfTwo()], ids=lambda model: type(model).__name__)
def test_a_network_that_cannot_be_followed_is_named(
    tmp_path: Path, to_form: Export, suffix: str, model: nn.Module
) -> None:
    path = tmp_path / f"model{suffix}"
    with pytest.raises(ExportFailed, match=r"model\.\w+: the network cannot be exported: ") as caught:
        to_form(model, SHAPE, path)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "difference"),
    [
        (lambda out: out + 1, r"\d\.\de[+-]\d\d"),
        (lambda out: out * torch.nan, "inf"),
        (lambda out: out[:1], "inf"),
    ],
    ids=["shifted", "nan", "shape"],
)
def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor], Tensor], difference: str
) -> None:
    path, model = tmp_path / "model.pt2", Plain()
    to_torch_export(model, SHAPE, path)
    good = path.read_bytes()

    def read(file: Path) -> Callable[[Tensor], list[Tensor]]:
        return lambda pictures: [wrong(model(pictures))]

    monkeypatch.setattr(export, "TORCH_EXPORT", replace(export.TORCH_EXPORT, read=read))
    with pytest.raises(ExportFailed, match=rf"model.pt2: differs from the network by {difference}; 1e-05 is allowed"):
        to_torch_export(model, SHAPE, path)
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]


def test_a_tolerance_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match=r"differs from the network by .*; -1 is allowed"):
        to_torch_export(Plain(), SHAPE, tmp_path / "model.pt2", tolerance=-1, batches=[3])
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_weights_too_large_for_one_file_get_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PROTOBUF_BYTES", 1)
    found = to_onnx(pruned(), SHAPE, tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert answers(found.path, torch.zeros(1, *SHAPE)).shape == (1, 10)


@needs_onnx
def test_errors_of_the_runtime_are_errors_of_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(program: object, path: Path, metadata: Mapping[str, str]) -> None:
        path.write_bytes(b"no model")

    monkeypatch.setattr(export, "ONNX", replace(export.ONNX, write=write))
    with pytest.raises(ExportFailed, match=r"model.onnx: the network cannot be exported: .*Protobuf"):
        to_onnx(Plain(), SHAPE, tmp_path / "model.onnx")


@pytest.mark.parametrize(("to_form", "suffix"), [(to_onnx, ".onnx"), (to_torch_export, ".pt2")])
def test_the_name_says_the_form(tmp_path: Path, to_form: Export, suffix: str) -> None:
    with pytest.raises(InvalidInput, match=rf"model\.pt: the name must end in {suffix}"):
        to_form(Plain(), SHAPE, tmp_path / "model.pt")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def import_module(name: str) -> ModuleType:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return sys

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(InvalidInput, match=rf"need {missing}: pip install 'pruning-orchestrator\[export\]'"):
        to_onnx(Plain(), SHAPE, tmp_path / "model.onnx")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"file/model.pt2: cannot be written \(.*\)"):
        to_torch_export(Plain(), SHAPE, tmp_path / "file" / "model.pt2")


def test_silence_ends_with_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(program: object, path: Path, metadata: Mapping[str, str]) -> None:
        builtins.print("step 1 of 9")
        warnings.warn("old", stacklevel=1)
        logging.getLogger("torch.onnx").warning("slow")
        raise RuntimeError("no way\nat all")

    logger = logging.getLogger("torch.onnx")
    before = logger.level, sys.stdout
    monkeypatch.setattr(export, "TORCH_EXPORT", replace(export.TORCH_EXPORT, write=write))
    with pytest.raises(ExportFailed, match=r"cannot be exported: no way$"):
        to_torch_export(Plain(), SHAPE, tmp_path / "model.pt2")
    assert (logger.level, sys.stdout) == before
