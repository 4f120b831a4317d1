"""Networks by name: the zoo's own, torchvision's, timm's and the user's, for any class count and picture size."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.network import user_function
from orchestrator.network.seeding import seeded
from orchestrator.network.zoo import NETWORKS, InputShape
from orchestrator.record import InvalidInput

FORMS = ("torchvision:NAME", "timm:NAME", "package.module:function")


class UnknownModel(InvalidInput):
    """A model's name that nothing answers to."""


class ModelDoesNotRun(InvalidInput):
    """A model that cannot take the data's pictures, or does not give one number a class."""


def names() -> tuple[str, ...]:
    """The zoo's networks; the other forms of a name are in FORMS."""
    return tuple(NETWORKS)


def build(name: str, *, classes: int, input_shape: InputShape, seed: int) -> nn.Module:
    """The named network with fresh random weights, fixed by the seed; the caller's random state is left alone.

    A user's function is called with `classes` and `input_shape` where its signature takes them.
    Raises UnknownModel, or InvalidInput for a function that gives no torch.nn.Module.
    """
    with seeded(seed):
        return _build(name, classes, input_shape)


def _build(name: str, classes: int, input_shape: InputShape) -> nn.Module:
    if name in NETWORKS:
        return NETWORKS[name](classes, input_shape)
    if name.startswith("torchvision:"):
        return _from_torchvision(name, classes, input_shape)
    if name.startswith("timm:"):
        return _from_timm(name, classes, input_shape)
    if not user_function.is_reference(name):
        raise UnknownModel(_unknown(name, NETWORKS, f"allowed are {', '.join((*names(), *FORMS))}"))
    model = user_function.call(name, classes=classes, input_shape=input_shape)
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model {name} must return a torch.nn.Module; it returned {type(model).__name__}")
    return model


def _unknown(name: str, known: Iterable[str], allowed: str) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"unknown model {name!r}; " + (f"did you mean {' or '.join(close)}? " if close else "") + allowed


def _from_torchvision(name: str, classes: int, input_shape: InputShape) -> nn.Module:
    """One of torchvision's classifiers, untrained.

    The auxiliary heads of GoogLeNet and Inception are left off: they only help training, give the network two outputs,
    and are thrown away afterwards. Both then start from the normal distribution of their papers.
    """
    import torchvision  # slow, and of no use to other networks

    known = torchvision.models.list_models(module=torchvision.models)
    short = name.removeprefix("torchvision:")
    if short not in known:
        raise UnknownModel(
            _unknown(name, [f"torchvision:{each}" for each in known], "allowed is a classifier of torchvision.models")
        )
    options: dict[str, Any] = {}
    if short in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    elif short.startswith("vit_"):
        options = {"image_size": input_shape[1]}
    elif short == "maxvit_t":
        options = {"input_size": input_shape[1:]}
    try:
        model: nn.Module = torchvision.models.get_model(short, weights=None, num_classes=classes, **options)
    except (AssertionError, ValueError) as error:  # those with a fixed picture size refuse some
        raise ModelDoesNotRun(f"model {name} cannot be built for {_shape(input_shape)} pictures: {error}") from error
    _take_channels_(model, input_shape[0])
    return model


def _take_channels_(model: nn.Module, channels: int) -> None:
    """Make the first convolution, written for 3 channels, take another number, without redrawing its weights.

    One channel: the three are summed, so that a grey picture is seen as the same picture fed to all three. More: they
    are repeated in turn and scaled to keep the sum's size.
    """
    if channels == 3:
        return
    conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3)
    weight = conv.weight.detach()  # [made, 3, k, k]
    repeated = weight[:, torch.arange(channels) % 3] * (3 / channels)
    conv.in_channels = channels
    conv.weight = nn.Parameter(weight.sum(1, keepdim=True) if channels == 1 else repeated)


def _from_timm(name: str, classes: int, input_shape: InputShape) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise InvalidInput(f"model {name} needs timm: pip install 'pruning-orchestrator[timm]'") from error
    short = name.removeprefix("timm:")
    if not timm.is_model(short):
        known = [f"timm:{each}" for each in timm.list_models()]
        raise UnknownModel(_unknown(name, known, "allowed is a name of timm.list_models()"))
    preset = timm.get_pretrained_cfg(short)
    fixed = {"img_size": input_shape[1:]} if preset is not None and preset.fixed_input_size else {}
    model: nn.Module = timm.create_model(short, pretrained=False, num_classes=classes, in_chans=input_shape[0], **fixed)
    return model


def check_runs(model: nn.Module, input_shape: InputShape, *, classes: int | None = None) -> None:
    """Raise ModelDoesNotRun unless two pictures of this shape give [2, classes]; the model is left as it was."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with seeded(0, device), torch.no_grad():
            out = model(torch.zeros(2, *input_shape, device=device))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ModelDoesNotRun(f"the model does not run on {_shape(input_shape)} pictures: {problem}") from error
    finally:
        for module, training in modes:
            module.training = training
    _check_output(out, classes)


def _check_output(out: object, classes: int | None) -> None:
    if not isinstance(out, Tensor):
        raise ModelDoesNotRun(f"the model must return one tensor [N, classes]; it returned {type(out).__name__}")
    expected = (2, out.shape[-1] if classes is None else classes)
    if out.ndim != 2 or tuple(out.shape) != expected:
        wanted = "classes" if classes is None else classes
        raise ModelDoesNotRun(f"the model must return [2, {wanted}] for two pictures; it returned {list(out.shape)}")


def _shape(input_shape: InputShape) -> str:
    return "x".join(map(str, input_shape))
