"""A network's weights as a file: safetensors out; safetensors or a plain state dict in, never arbitrary pickles."""

import hashlib
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from orchestrator.record import InvalidInput


class UnfitWeights(InvalidInput):
    """A weights file that is missing, damaged, or of another network."""


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers; tied ones once."""
    save_model(model, str(path))


def load_weights_(model: nn.Module, path: Path) -> None:
    """Fill a model in place. Raises UnfitWeights, which names the file and the first tensor that does not fit."""
    state = read_weights(path)
    own = model.state_dict()
    tied = _tied(model)
    for name, tensor in own.items():
        given = next((state[alias] for alias in tied.get(name, (name,)) if alias in state), None)
        if given is None:
            raise UnfitWeights(f"{path}: {name} is missing; the network needs it as {tuple(tensor.shape)}")
        if given.shape != tensor.shape:
            raise UnfitWeights(f"{path}: {name} is {tuple(given.shape)}; the network needs {tuple(tensor.shape)}")
    unknown = sorted(set(state) - set(own))
    if unknown:
        raise UnfitWeights(f"{path}: {unknown[0]} is no tensor of the network")
    complete = {name: next(state[a] for a in tied.get(name, (name,)) if a in state) for name in own}
    model.load_state_dict(complete)


def _tied(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """name -> all names of the same tensor, for tensors with several."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return {name: tuple(same) for same in names.values() if len(same) > 1 for name in same}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a state dict that torch.save wrote. Raises UnfitWeights."""
    if not path.is_file():
        raise UnfitWeights(f"weights: {path} is no file")
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UnfitWeights(f"weights: {path} is no safetensors file and no plain state dict: {reason}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UnfitWeights(f"weights: {path} holds no state dict (names to tensors)")
    return {str(name): tensor for name, tensor in state.items()}


def fingerprint(path: Path) -> str:
    """SHA-256 of a weights file's bytes. Raises UnfitWeights if there is none."""
    if not path.is_file():
        raise UnfitWeights(f"weights: {path} is no file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
