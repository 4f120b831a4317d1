"""A network's weights as a file: safetensors out; safetensors or a plain state dict in, never arbitrary pickles."""

import hashlib
import os
import pickle
import re
import struct
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from orchestrator.record import InvalidInput

# what torch.load raises at damaged files; the unpickler runs into anything
DAMAGE = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError)


class UnfitWeights(InvalidInput):
    """A weights file that is missing, damaged, or of another network."""


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers; tied ones once."""
    save_model(model, str(path))


def load_weights_(model: nn.Module, path: Path) -> None:
    """Fill a model in place. Raises UnfitWeights, which names the file and the first tensor that does not fit.

    The counters of batches in batch norms may be missing: older files have none, and nothing here reads them.
    """
    state = read_weights(path)
    own = model.state_dict()
    tied = _tied(model)
    complete: dict[str, Tensor] = {}
    for name, tensor in own.items():
        given = next((state[alias] for alias in tied.get(name, (name,)) if alias in state), None)
        if given is None and name.endswith("num_batches_tracked"):
            given = tensor
        if given is None:
            raise UnfitWeights(f"weights: {path}: {name} is missing; the network needs it as {tuple(tensor.shape)}")
        if given.shape != tensor.shape:
            raise UnfitWeights(
                f"weights: {path}: {name} is {tuple(given.shape)}; the network needs {tuple(tensor.shape)}"
            )
        if given.is_floating_point() and given.isnan().any():
            raise UnfitWeights(f"weights: {path}: {name} holds NaN")
        complete[name] = given
    unknown = sorted(set(state) - set(own))
    if unknown:
        raise UnfitWeights(f"weights: {path}: {unknown[0]} is no tensor of the network")
    model.load_state_dict(complete)


def _tied(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """name -> all names of the same tensor, for tensors with several."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return {name: tuple(same) for same in names.values() if len(same) > 1 for name in same}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a state dict that torch.save wrote. Raises UnfitWeights."""
    _check_present(path)
    try:
        state = load_file(str(path)) if path.suffix == ".safetensors" else _unpickled(path)
    except (SafetensorError, pickle.UnpicklingError, struct.error, *DAMAGE) as error:
        raise UnfitWeights(f"weights: {path} is no safetensors file and no plain state dict: {_why(error)}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UnfitWeights(f"weights: {path} holds no state dict (names to tensors)")
    return {str(name): tensor for name, tensor in state.items()}


def _unpickled(path: Path) -> object:
    with warnings.catch_warnings():  # about pickles that torch.save did not write: an error follows, or none is due
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _why(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, pickle.UnpicklingError) and "global" in text.lower():
        return "it holds Python objects, which are never loaded; save model.state_dict() alone"
    if "weights_only" in text:  # PyTorch's advice to run whatever the file holds is none that a user should get
        found = re.search(r"WeightsUnpickler error:\s*(\S.*)", text)
        return found[1] if found else "it is not what torch.save writes"
    return text.splitlines()[0] if text else type(error).__name__


def fingerprint(path: Path) -> str:
    """SHA-256 of a weights file's bytes. Raises UnfitWeights if there is none."""
    _check_present(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_present(path: Path) -> None:
    if not os.path.isfile(path):  # Path.is_file raises in a folder that must not be read
        raise UnfitWeights(f"weights: {path}: no such file")
