"""Weights files: what is written is read; what does not fit is named; nothing in a file is ever run."""

import os
import pickle
import random
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from orchestrator.network.weights import UnfitWeights, fingerprint, load_weights_, read_weights, save_weights


class Tied(nn.Module):
    """Two layers with one weight between them, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.own = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight = self.first.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def small(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def complaint(path: Path, model: nn.Module | None = None) -> str:
    """The one line that a file which does not fit ends with; the model must be as it was."""
    model = model or small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UnfitWeights, match=r"^weights: ") as caught:
        load_weights_(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    message = str(caught.value)
    assert message.count("\n") == 0
    assert str(path) in message
    return message


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model, other = small(0), small(1)
    model[1].running_mean.fill_(3.0)
    save_weights(model, tmp_path / "weights.safetensors")
    assert not same(model, other)
    load_weights_(other, tmp_path / "weights.safetensors")
    assert same(model, other)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}], ids=["", "in"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights"])
def test_a_state_dict_is_loaded(tmp_path: Path, wrap, name: str) -> None:
    model, other = small(0), small(1)
    load_weights_(other, saved(wrap(model.state_dict()), tmp_path / name))
    assert same(model, other)


def test_a_state_dict_of_an_old_torch_is_loaded(tmp_path: Path) -> None:
    model, other = small(0), small(1)
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    load_weights_(other, tmp_path / "old.pt")
    assert same(model, other)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    model, other = small(0), small(1)
    load_weights_(other, saved(small(0).half().state_dict(), tmp_path / "half.pt"))
    assert other[0].weight.dtype == torch.float32
    assert torch.equal(other[0].weight, model[0].weight.half().float())


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    model, other = small(0), small(1)
    state = model.state_dict()
    del state["1.num_batches_tracked"]
    load_weights_(other, saved(state, tmp_path / "old.pt"))
    assert same(model, other)


@pytest.mark.parametrize("alias", ["first.weight", "second.weight"])
def test_tied_weights_may_be_given_once(tmp_path: Path, alias: str) -> None:
    model, other = Tied(), Tied()
    state = dict(model.state_dict())
    del state[{"first.weight": "second.weight", "second.weight": "first.weight"}[alias]]
    load_weights_(other, saved(state, tmp_path / "tied.pt"))
    assert same(model, other)
    assert other.first.weight is other.second.weight


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    save_weights(model, tmp_path / "tied.safetensors")
    assert len({"first.weight", "second.weight"} & set(read_weights(tmp_path / "tied.safetensors"))) == 1
    load_weights_(other, tmp_path / "tied.safetensors")
    assert same(model, other)


@pytest.mark.parametrize("name", ["none.safetensors", "none.pt", ""])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    assert complaint(tmp_path / name) == f"weights: {tmp_path / name}: no such file"
    with pytest.raises(UnfitWeights, match="no such file"):
        fingerprint(tmp_path / name)


@pytest.mark.parametrize("name", ["damaged.safetensors", "damaged.pt"])
@pytest.mark.parametrize("content", [b"", b"hello world\n", b"\x80\x04", b"PK\x03\x04", b"\x00" * 100])
def test_a_file_of_something_else_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    said = complaint(tmp_path / name)
    assert "is no safetensors file and no plain state dict: " in said
    assert "weights_only" not in said  # PyTorch advises to load such a file unchecked


def test_a_text_file_is_told_by_what_the_unpickler_met(tmp_path: Path) -> None:
    path = tmp_path / "base.toml"
    path.write_text('[trial]\nmodel = "cifarnet"\n')
    assert complaint(path).endswith("base.toml is no safetensors file and no plain state dict: Unsupported operand 91")


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    save_weights(small(), path) if path.suffix == ".safetensors" else saved(small().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "is no safetensors file and no plain state dict: " in complaint(path)


def test_damage_of_any_kind_is_no_other_error(tmp_path: Path) -> None:
    """Bytes of a legacy file are struck at random: it is refused, or what it holds does not fit, or it is read."""
    path, random_source = tmp_path / "damaged.pt", random.Random(0)
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[random_source.randrange(len(damaged))] = random_source.randrange(256)
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                load_weights_(small(), path)
        except UnfitWeights:
            refused += 1
    assert refused > 100


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = small().state_dict()
    del state["3.bias"]
    assert complaint(saved(state, tmp_path / "w.pt")).endswith("3.bias is missing; the network needs it as (2,)")


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    state = {**small().state_dict(), "3.weight": torch.zeros(7, 16)}
    assert complaint(saved(state, tmp_path / "w.pt")).endswith("3.weight is (7, 16); the network needs (2, 16)")


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    state = {**small().state_dict(), "extra": torch.zeros(1)}
    assert complaint(saved(state, tmp_path / "w.pt")).endswith("extra is no tensor of the network")


def test_weights_of_a_diverged_run_are_named(tmp_path: Path) -> None:
    state = {**small().state_dict(), "3.bias": torch.tensor([0.0, float("nan")])}
    assert complaint(saved(state, tmp_path / "w.pt")).endswith("3.bias holds NaN")


@pytest.mark.parametrize("state", [[torch.zeros(1)], {"epoch": 3}, {"state_dict": torch.zeros(1)}, torch.zeros(1)])
def test_a_file_of_other_values_is_named(tmp_path: Path, state: object) -> None:
    path = saved(state, tmp_path / "w.pt")
    if isinstance(state, dict) and isinstance(state.get("state_dict"), Tensor):
        assert "holds no state dict" in complaint(path)
    else:
        assert complaint(path).endswith("holds no state dict (names to tensors)")


@pytest.mark.parametrize("dump", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
@pytest.mark.parametrize(
    "hide", [lambda bomb: bomb, lambda bomb: OrderedDict({**small().state_dict(), "3.bias": bomb})]
)
def test_a_pickle_is_never_run(tmp_path: Path, dump, hide) -> None:
    path, harmed = tmp_path / "w.pt", tmp_path / "harmed"
    dump(hide(Bomb(harmed)), path)
    complaint(path)
    assert not harmed.exists()


def test_a_whole_module_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = saved(small(), tmp_path / "model.pt")
    assert complaint(path).endswith("it holds Python objects, which are never loaded; save model.state_dict() alone")


def test_the_fingerprint_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"abc")
    assert fingerprint(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
