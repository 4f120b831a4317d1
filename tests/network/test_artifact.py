"""Model folders: what is saved is loaded; what is damaged, hostile or of another network is refused with the reason."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from patterns import PATTERNS
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import orchestrator
from orchestrator.network import CostTable, Plan, PlanMismatch, artifact, couple, cut, random_plan
from orchestrator.network.architectures import build
from orchestrator.network.artifact import (
    Architecture,
    CodeNotAllowed,
    Preprocessing,
    UnfitArtifact,
    UnfitModel,
    describe,
    load,
    read,
    save,
    write_description,
)
from orchestrator.network.recording import tensors_in
from orchestrator.network.weights import UnfitWeights, save_weights
from orchestrator.record import InvalidInput, canonical_json

CIFARNET = Architecture(reference="cifarnet", classes=10, input_shape=(1, 8, 8))
PICTURES = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
FACTS = {"accuracy": 0.75, "test_accuracy": 1.0, "dataset": "digits", "study": "demo", "stage": "ab" * 32}
STRANGER = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("ran").touch()

def network(classes, input_shape):
    return nn.Sequential(nn.Conv2d(input_shape[0], 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, classes))

def angry(classes):
    raise RuntimeError("the author's own bug")
"""

Fields = dict[str, Any]
Change = Callable[[Fields], object]


def dense(architecture: Architecture = CIFARNET, seed: int = 1) -> nn.Module:
    return build(architecture.reference, classes=architecture.classes, input_shape=architecture.input_shape, seed=seed)


def pruned(architecture: Architecture = CIFARNET) -> tuple[nn.Module, tuple[Plan, ...]]:
    """A network that was cut twice, in evaluation mode."""
    model = dense(architecture).eval()
    coupling = couple(model, torch.zeros(1, *architecture.input_shape))
    plans = []
    for seed in range(2):
        plans.append(random_plan(coupling, seed=seed))
        model, coupling = cut(model, coupling, plans[-1]), coupling.restrict(plans[-1])
    return model, tuple(plans)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "original"
    model, plans = pruned()
    save(folder, model, architecture=CIFARNET, plans=plans, **FACTS)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that may be harmed."""
    return shutil.copytree(original, tmp_path / "model")


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(PICTURES)


def fields_of(folder: Path) -> Fields:
    return json.loads((folder / "model.json").read_text())


def forge(folder: Path, change: Change = lambda fields: None) -> None:
    """Change model.json as a hostile author would: digests made anew, so that they give nothing away."""
    fields = fields_of(folder)
    weights = folder / "weights.safetensors"
    if weights.is_file():
        content = weights.read_bytes()
        fields["weights"].update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    change(fields)
    del fields["digest"]
    fields["digest"] = hashlib.sha256(canonical_json(fields).encode()).hexdigest()
    (folder / "model.json").write_text(json.dumps(fields))


def complaint(folder: Path, kind: type[InvalidInput] = UnfitArtifact, **options: Any) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(kind) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(folder) in message
    return message.replace(str(folder), "MODEL")


# -- what is saved is loaded ------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(original: Path) -> None:
    model, _ = pruned()
    again = load(original)
    assert torch.equal(output(again), output(model))
    assert type(again) is type(model)
    assert not any(module.training for module in again.modules())
    assert orchestrator.load is load


def test_model_json_says_what_the_model_is(original: Path) -> None:
    model, plans = pruned()
    coupling = couple(dense(), PICTURES)
    card = read(original)
    assert card.architecture == CIFARNET
    assert card.cuts == plans
    widths = {name: (width.channels, width.dense) for name, width in card.widths.items()}
    assert widths == {"conv1": (15, 32), "conv2": (15, 32), "conv3": (31, 64)}
    assert widths == {
        name: (getattr(model, name).out_channels, coupling.by_name[name].size) for name in ("conv1", "conv2", "conv3")
    }
    assert card.dense_flops == CostTable(coupling).flops() > card.flops
    assert card.flops == CostTable(couple(model, PICTURES)).flops()
    assert card.params == sum(parameter.numel() for parameter in model.parameters())
    assert (card.accuracy, card.accuracy_after_cut, card.test_accuracy, card.dataset) == (0.75, None, 1.0, "digits")
    assert (card.provenance.study, card.provenance.stage, card.provenance.commit) == ("demo", "ab" * 32, None)
    assert card.provenance.torch == torch.__version__


def test_a_folder_holds_two_files_and_no_pickle(original: Path) -> None:
    assert sorted(path.name for path in original.iterdir()) == ["model.json", "weights.safetensors"]
    assert sorted(path.name for path in original.parent.iterdir()) == [original.name]
    assert set(load_file(original / "weights.safetensors")) == set(pruned()[0].state_dict())


def test_a_fresh_process_loads_it_and_imports_torch_only_then(original: Path, tmp_path: Path) -> None:
    code = """
import sys, orchestrator
assert "torch" not in sys.modules
model = orchestrator.load(sys.argv[1])
import torch
torch.save(model(torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)).detach(), sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", code, str(original), str(tmp_path / "out")], check=True)
    assert torch.equal(torch.load(tmp_path / "out"), output(pruned()[0]))


def test_a_dense_network_is_saved_too(tmp_path: Path) -> None:
    model = dense().train()
    card = save(tmp_path / "new" / "model", model, architecture=CIFARNET)
    assert (card.widths, card.plans, card.flops) == ({}, (), card.dense_flops)
    assert model.training
    assert torch.equal(output(load(tmp_path / "new" / "model")), output(model.eval()))


def test_a_torchvision_network_needs_no_leave(tmp_path: Path) -> None:
    architecture = Architecture(reference="torchvision:squeezenet1_1", classes=3, input_shape=(3, 32, 32))
    model, plans = pruned(architecture)
    save(tmp_path / "model", model, architecture=architecture, plans=plans)
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(tmp_path / "model")(pictures), model(pictures))


def test_weights_that_lie_in_a_folder_are_described(tmp_path: Path) -> None:
    model, plans = pruned()
    save_weights(model, tmp_path / "weights.safetensors")
    (tmp_path / "stage.json").touch()
    coupling = couple(dense(), PICTURES)
    composed = plans[0].then(plans[1])
    card = describe(tmp_path / "weights.safetensors", coupling, architecture=CIFARNET, plans=[composed], commit="1a2b")
    write_description(tmp_path, card)
    assert read(tmp_path) == card
    assert card.provenance.commit == "1a2b"
    assert torch.equal(output(load(tmp_path)), output(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "stage.json", "weights.safetensors"]


# -- a model that is not what its architecture and plans give ---------------------------------------------------------


def other_width(model: nn.Module) -> nn.Module:
    return dense()


def another_precision(model: nn.Module) -> nn.Module:
    return model.double()


def another_tensor(model: nn.Module) -> nn.Module:
    model.register_buffer("extra", torch.zeros(3))
    return model


def a_tensor_less(model: nn.Module) -> nn.Module:
    model.norm3 = nn.Identity()
    return model


UNFIT = {
    other_width: r"conv1.weight is float32 \(32, 1, 5, 5\); cifarnet with these plans has float32 \(15, 1, 5, 5\)",
    another_precision: r"conv1.weight is float64 .*; cifarnet with these plans has float32",
    another_tensor: r"extra is float32 \(3,\); cifarnet with these plans has no such tensor",
    a_tensor_less: r"norm3.weight is missing; cifarnet with these plans has float32 \(31,\)",
}


@pytest.mark.parametrize("change", UNFIT, ids=lambda change: change.__name__)
def test_another_model_is_not_saved(tmp_path: Path, change: Callable[[nn.Module], nn.Module]) -> None:
    model, plans = pruned()
    with pytest.raises(UnfitModel, match=f"^model: {UNFIT[change]}"):
        save(tmp_path / "model", change(model), architecture=CIFARNET, plans=plans)
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_the_same_tensors_that_computes_something_else_is_not_saved(tmp_path: Path) -> None:
    model, plans = pruned()
    model.norm1.eps = 0.5
    with pytest.raises(UnfitModel, match=r"^model: its output differs by .* from that of cifarnet with these plans"):
        save(tmp_path / "model", model, architecture=CIFARNET, plans=plans)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_run_is_not_saved(tmp_path: Path) -> None:
    model, plans = pruned()
    model.conv1.stride = "two"
    with pytest.raises(UnfitModel, match=r"^model: does not run like cifarnet with these plans: "):
        save(tmp_path / "model", model, architecture=CIFARNET, plans=plans)


def test_plans_of_another_network_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(PlanMismatch, match="plan: conv9 is no group of this network"):
        save(tmp_path / "model", dense(), architecture=CIFARNET, plans=[Plan(kept={"conv9": (0,)})])


def test_weights_that_do_not_fit_are_not_described(tmp_path: Path) -> None:
    model, plans = pruned()
    save_weights(model, tmp_path / "weights.safetensors")
    with pytest.raises(UnfitModel, match=r"classifier.weight is \(10, 31\); the plans leave \(10, 45\)"):
        describe(tmp_path / "weights.safetensors", couple(dense(), PICTURES), architecture=CIFARNET, plans=plans[:1])


def test_an_accuracy_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^model.json: accuracy: Input should be less than or equal to 1"):
        save(tmp_path / "model", dense(), architecture=CIFARNET, accuracy=75.0)


def test_a_folder_that_is_not_empty_is_left_alone(folder: Path) -> None:
    model, plans = pruned()
    before = (folder / "model.json").read_bytes()
    with pytest.raises(InvalidInput, match="model: is not empty; give a folder that is new"):
        save(folder, model, architecture=CIFARNET, plans=plans)
    assert (folder / "model.json").read_bytes() == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save(tmp_path / "model", dense(), architecture=CIFARNET)
    assert read(tmp_path / "model").architecture == CIFARNET


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"file/model: cannot be written \(not a directory\)"):
        save(tmp_path / "file" / "model", dense(), architecture=CIFARNET)


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"classes": 2**21}, {"input_shape": (1, 0, 8)}, {"extra": 1}])
def test_an_architecture_checks_itself(wrong: Fields) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Architecture.model_validate({**CIFARNET.model_dump(), **wrong})


# -- damage -----------------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = "MODEL: no such folder; a model is a folder with model.json and weights.safetensors"
    assert complaint(tmp_path / "none") == message


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert complaint(folder) == f"MODEL/{name}: missing"


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xfe", b'{"format": "pruning', b"[" * 100_000])
def test_what_is_no_json_is_named(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)
    assert complaint(folder).startswith("MODEL/model.json: is no JSON (")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_description_is_named(folder: Path, share: float) -> None:
    content = (folder / "model.json").read_bytes()
    (folder / "model.json").write_bytes(content[: int(share * len(content))])
    assert "EOF while parsing" in complaint(folder)


def test_a_description_too_large_is_not_read(folder: Path) -> None:
    with (folder / "model.json").open("r+b") as file:
        file.truncate(2**33)
    assert complaint(folder) == "MODEL/model.json: is larger than 8,388,608 bytes"


def test_no_changed_byte_of_the_description_goes_unseen(tmp_path: Path) -> None:
    """Wherever a bit is turned over, the folder is refused, or says exactly what it said."""
    folder, plan = tmp_path / "model", Plan(kept={"conv1": (1, 30)})
    model = dense()
    expected = save(folder, cut(model, couple(model, PICTURES), plan), architecture=CIFARNET, plans=[plan], **FACTS)
    path = folder / "model.json"
    content = path.read_bytes()
    refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            assert read(folder) == expected
        except UnfitArtifact:
            refused += 1
    assert refused > 0.8 * len(content)  # the rest are blanks between words


def test_a_changed_figure_is_told_by_the_digest(folder: Path) -> None:
    path = folder / "model.json"
    path.write_text(path.read_text().replace('"accuracy": 0.75', '"accuracy": 0.95'))
    assert "MODEL/model.json: digest is " in complaint(folder)
    assert "something was changed" in complaint(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_a_changed_byte_of_the_weights_is_told(folder: Path, share: float) -> None:
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    assert complaint(folder).startswith("MODEL/weights.safetensors: its SHA-256 is ")


def test_truncated_weights_are_told(folder: Path) -> None:
    path = folder / "weights.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert complaint(folder) == (
        f"MODEL/weights.safetensors: has {size - 1:,} bytes; weights.bytes of model.json is {size:,}"
    )


def test_a_folder_says_how_pictures_are_prepared(tmp_path: Path) -> None:
    model, plans = pruned()
    known = Preprocessing(mean=(0.25,), std=(0.5,), prepared="greys, inverted")
    save(tmp_path / "model", model, architecture=CIFARNET, plans=plans, preprocessing=known)
    assert read(tmp_path / "model").preprocessing == known


def test_a_folder_of_before_that_was_known_is_read(folder: Path) -> None:
    assert "preprocessing" not in fields_of(folder)
    assert read(folder).preprocessing is None
    more = read(folder).knowing(test_accuracy=0.5)
    assert (more.test_accuracy, more.preprocessing) == (0.5, None)
    write_description(folder, more)
    assert read(folder) == more


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ([0.5], [0.5, 0.5], "preprocessing: mean has 1 numbers, std has 2; both need one a channel"),
        ([0.5] * 3, [0.5] * 3, "preprocessing.mean: has 3 numbers for 1 channels"),
        ([0.5], [0.0], "preprocessing.std.0: Input should be greater than 0"),
    ],
)
def test_a_preprocessing_that_does_not_fit_is_refused(
    folder: Path, mean: list[float], std: list[float], said: str
) -> None:
    forge(folder, lambda fields: fields.update(preprocessing={"mean": mean, "std": std, "prepared": None}))
    assert said in complaint(folder)


# -- hostility: all digests fit ---------------------------------------------------------------------------------------


def put(*path: str, value: Any) -> Change:
    """A change of one field, given by its path."""

    def change(fields: Fields) -> None:
        for name in path[:-1]:
            fields = fields[name]
        fields[path[-1]] = value

    return change


def first_plan(**kept: list[int]) -> Change:
    return lambda fields: fields["plans"][0].update(kept)


def both(*changes: Change) -> Change:
    return lambda fields: [change(fields) for change in changes]


def named(name: str) -> str:
    name = name.replace(".", r"\.")
    return rf"weights\.file: is '{name}'; it must be the name of a \.safetensors file beside model\.json"


HOSTILE: dict[str, tuple[Change, str]] = {
    "unknown field": (put("run", value="rm"), r"run: Extra inputs are not permitted \(met: 'rm'\)"),
    "control codes": (put("a\n\x1b[2J", value=0), r"a\?\?\[2J: Extra inputs"),
    "missing field": (lambda fields: fields.pop("plans"), "plans: Field required"),
    "another format": (put("format", value="x"), "format is 'x'; it must be 'pruning-orchestrator model'"),
    "no format": (lambda fields: fields.pop("format"), "format is 'None'; it must be"),
    "newer": (put("version", value=2), "version is '2'; this pruning-orchestrator reads version 1"),
    "number as text": (put("flops", value="5"), "flops: Input should be a valid integer"),
    "accuracy": (put("accuracy", value=1.5), "accuracy: Input should be less than or equal to 1"),
    "unknown network": (put("architecture", "reference", value="cifarnot"), "architecture: unknown model 'cifarnot'"),
    "unknown torchvision": (put("architecture", "reference", value="torchvision:x"), "unknown model 'torchvision:x'"),
    "no name at all": (put("architecture", "reference", value="../x"), r"architecture: unknown model '\.\./x'"),
    "unbuildable": (
        put("architecture", "reference", value="torchvision:vit_b_32"),
        "architecture: model torchvision:vit_b_32 cannot be built for 1x8x8 pictures",
    ),
    "another network": (
        put("architecture", "reference", value="vgg16"),
        "plans: conv1 is no group of this network",
    ),
    "no classes": (put("architecture", "classes", value=0), "architecture.classes: Input should be greater than"),
    "negative classes": (put("architecture", "classes", value=-7), r"architecture\.classes: .* \(met: '-7'\)"),
    "many classes": (put("architecture", "classes", value=2**40), "architecture.classes: Input should be less than"),
    "no picture": (put("architecture", "input_shape", value=[1, 8, 0]), r"architecture\.input_shape\.2: Input should"),
    "flat picture": (put("architecture", "input_shape", value=[8, 8]), r"architecture\.input_shape\.2: Field required"),
    "vast picture": (
        put("architecture", "input_shape", value=[1, 2**16, 2**16]),
        r"architecture\.input_shape: is 1x65536x65536; a picture may have 16,777,216 numbers at most",
    ),
    "vast network": (
        both(
            put("architecture", "input_shape", value=[1, 2**12, 2**12]),
            put("architecture", "classes", value=2**20),
        ),
        "architecture: the dense network would hold more than 2,147,483,648 numbers",
    ),
    "other classes": (put("architecture", "classes", value=11), "params: is .*; the network has "),
    "position too high": (first_plan(conv1=[0, 99]), r"plans\.0: conv1 keeps position 99; there are 32 channels"),
    "negative position": (first_plan(conv1=[-1, 2]), r"plans: plan: conv1 keeps \[-1, 2\]; it must name ascending"),
    "nothing kept": (first_plan(conv1=[]), r"plans: plan: conv1 keeps \[\]; it must name ascending"),
    "fewer than before": (
        lambda fields: fields["plans"].append({"conv1": [0]}),
        "widths.conv1: is 15 of 32 channels; the plans leave 1",
    ),
    "group without width": (first_plan(conv7=[0]), "plans: conv7 has no entry in widths"),
    "unknown group": (
        both(first_plan(conv7=[0]), put("widths", "conv7", value={"channels": 1, "dense": 9})),
        "plans: conv7 is no group of this network",
    ),
    "unknown width": (
        put("widths", "conv7", value={"channels": 9, "dense": 9}),
        r"widths\.conv7: is no group that a plan names",
    ),
    "forged dense width": (
        put("widths", "conv1", value={"channels": 15, "dense": 64}),
        r"widths\.conv1: is 15 of 64 channels; cifarnet with these plans has 15 of 32",
    ),
    "position beyond the real width": (
        both(
            lambda fields: fields.update(plans=[{"conv1": [0, 40]}]),
            put("widths", value={"conv1": {"channels": 2, "dense": 64}}),
        ),
        r"plans: conv1 keeps position 40; the group has 32 channels",
    ),
    "params": (put("params", value=7), "params: is 7; the network has "),
    "climbing": (put("weights", "file", value="../weights.safetensors"), named("../weights.safetensors")),
    "absolute": (put("weights", "file", value="/etc/passwd"), named("/etc/passwd")),
    "below": (put("weights", "file", value="a/b.safetensors"), named("a/b.safetensors")),
    "hidden": (put("weights", "file", value="..safetensors"), named("..safetensors")),
    "pickle": (put("weights", "file", value="weights.pt"), named("weights.pt")),
    "vast weights": (put("weights", "bytes", value=2**50), "weights.bytes: Input should be less than"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_forged_description_is_refused(folder: Path, name: str) -> None:
    change, expected = HOSTILE[name]
    forge(folder, change)
    with pytest.raises(UnfitArtifact, match=expected):
        load(folder)
    assert complaint(folder).startswith("MODEL/model.json: ")


def test_a_forgery_that_changes_nothing_is_loaded(folder: Path) -> None:
    """So that each of the others is refused for what it changes."""
    forge(folder)
    assert torch.equal(output(load(folder)), output(pruned()[0]))


def replaced(folder: Path, **tensors: Tensor) -> None:
    """Change tensors of the weights file, and forge the rest to fit."""
    path = folder / "weights.safetensors"
    save_file({**load_file(path), **tensors}, path)
    forge(folder)


def test_a_width_that_does_not_fit_the_weights_is_refused(folder: Path) -> None:
    forge(folder, both(lambda fields: fields.update(plans=[{"conv1": [0]}]), put("widths", value={})))
    assert "conv1 has no entry in widths" in complaint(folder)
    kept = {"conv1": list(range(8))}
    coupling = couple(dense(), PICTURES)
    params = CostTable(coupling.restrict(Plan(kept={"conv1": tuple(range(8))}))).params()
    widths = {"conv1": {"channels": 8, "dense": 32}}
    forge(folder, lambda fields: fields.update(plans=[kept], widths=widths, params=params))
    message = complaint(folder, UnfitWeights)
    assert message.endswith("conv1.weight is (15, 1, 5, 5); the network needs (8, 1, 5, 5)")


def test_weights_with_nan_are_refused(folder: Path) -> None:
    replaced(folder, **{"classifier.bias": torch.full((10,), torch.nan)})
    assert complaint(folder, UnfitWeights) == "weights: MODEL/weights.safetensors: classifier.bias holds NaN"


def test_weights_of_another_precision_are_refused(folder: Path) -> None:
    replaced(folder, **{"classifier.bias": torch.zeros(10, dtype=torch.int64)})
    expected = "MODEL/weights.safetensors: classifier.bias is of type I64; the network needs float32"
    assert complaint(folder) == expected


def test_a_tensor_too_many_is_refused(folder: Path) -> None:
    replaced(folder, extra=torch.zeros(1))
    assert complaint(folder, UnfitWeights).endswith("extra is no tensor of the network")


def safetensors(shape: list[int], end: int, *, length: int | None = None) -> bytes:
    header = json.dumps({"conv1.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + b"\x00" * 16


CLAIMS = {
    "huge tensor": safetensors([2**40], 4 * 2**40),
    "shape and bytes": safetensors([2**40], 16),
    "overflow": safetensors([2**40, 2**40], 16),
    "huge header": safetensors([4], 16, length=2**40),
    "negative header": safetensors([4], 16, length=2**64 - 1),
    "no header": b"\x00" * 7,
    "pickle": b"\x80\x04cos\nsystem\n",
}


@pytest.mark.parametrize("name", CLAIMS)
def test_weights_that_claim_what_they_do_not_hold_are_refused(folder: Path, name: str) -> None:
    (folder / "weights.safetensors").write_bytes(CLAIMS[name])
    forge(folder)
    assert complaint(folder).startswith("MODEL/weights.safetensors: is no safetensors file: ")


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    assert complaint(folder) == f"MODEL/{name}: is a link to {outside}, which is outside the folder"


def test_a_link_inside_the_folder_and_to_the_folder_are_followed(folder: Path) -> None:
    (folder / "weights.safetensors").rename(folder / "other")
    (folder / "weights.safetensors").symlink_to("other")
    (folder.parent / "link").symlink_to(folder)
    assert torch.equal(output(load(folder.parent / "link")), output(pruned()[0]))


def test_what_is_no_plain_file_is_not_opened(folder: Path) -> None:
    (folder / "model.json").unlink()
    os.mkfifo(folder / "model.json")  # opened, it would wait for ever
    assert complaint(folder) == "MODEL/model.json: is no file that can be read"


def test_a_link_to_itself_is_refused(folder: Path) -> None:
    (folder / "model.json").unlink()
    (folder / "model.json").symlink_to("model.json")
    assert complaint(folder).startswith("MODEL/model.json: cannot be read (too many levels of symbolic links")


# -- code of others ---------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Architecture:
    """The reference of a network whose module leaves a file `ran` when it is imported."""
    (tmp_path / "stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    yield Architecture(reference="stranger:network", classes=10, input_shape=(1, 8, 8))
    sys.modules.pop("stranger", None)


def test_code_is_not_run_without_leave(tmp_path: Path, stranger: Architecture) -> None:
    model, plans = pruned(stranger)
    save(tmp_path / "model", model, architecture=stranger, plans=plans)
    (tmp_path / "ran").unlink()
    del sys.modules["stranger"]
    message = complaint(tmp_path / "model", CodeNotAllowed)
    assert message == (
        "MODEL/model.json: architecture.reference is stranger:network, code that loading would run; "
        "if you trust it, allow it: load(path, allow_code=['stranger:network'])"
    )
    for others in ("stranger:networks", ["stranger"], ["stranger:angry"], "a stranger:network"):
        assert "allow it" in complaint(tmp_path / "model", CodeNotAllowed, allow_code=others)
    assert read(tmp_path / "model").architecture == stranger
    assert not (tmp_path / "ran").exists()
    assert torch.equal(output(load(tmp_path / "model", allow_code=["stranger:network"])), output(model))
    assert torch.equal(output(load(tmp_path / "model", allow_code="stranger:network")), output(model))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("reference", ["os:system", "builtins:exec", "torchvision.models:resnet18", "cifarnet:x"])
def test_code_of_the_machine_is_code(folder: Path, reference: str) -> None:
    forge(folder, put("architecture", "reference", value=reference))
    assert f"architecture.reference is {reference}, code" in complaint(folder, CodeNotAllowed)


def test_what_allowed_code_raises_passes_through(folder: Path, stranger: Architecture) -> None:
    forge(folder, put("architecture", "reference", value="stranger:angry"))
    with pytest.raises(RuntimeError, match="the author's own bug"):
        load(folder, allow_code=["stranger:angry"])


# -- networks of all kinds --------------------------------------------------------------------------------------------


KINDS = (
    "depthwise_multiplier_2", "transposed_grouped", "instance_norm", "instance_norm_tracking", "frozen_batch_norm",
    "dense_block", "c2f_literal", "channel_shuffle_module", "permutation_by_index", "position_parameter",
    "buffer_a_channel", "logarithm_of_zero", "weight_from_the_left", "module_used_twice", "tied_weights", "two_heads",
    "custom_autograd_function", "weight_normalised", "spectrally_normalised", "weight_standardised",
    "norm_folded_into_the_weight", "orthogonal_weight", "one_head_attention",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
@pytest.mark.parametrize("name", KINDS)
def test_networks_of_all_kinds_are_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(artifact, "build", lambda reference, **given: PATTERNS[name].build())
    architecture = Architecture(reference="cifarnet", classes=10, input_shape=PATTERNS[name].shapes[0][1:])
    dense = PATTERNS[name].build().eval()
    coupling = couple(dense, PATTERNS[name].example)
    plan = random_plan(coupling, keep=0.5, exact_only=False)
    model = cut(dense, coupling, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    save(tmp_path / "model", model, architecture=architecture, plans=[plan])
    pictures = torch.randn(2, *architecture.input_shape)
    pairs = zip(tensors_in(load(tmp_path / "model")(pictures)), tensors_in(model(pictures)), strict=True)
    assert all(torch.allclose(again, before, rtol=0, atol=0, equal_nan=True) for again, before in pairs)
