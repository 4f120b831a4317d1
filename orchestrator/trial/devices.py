"""Whether this machine has a device that was asked for, said before anything is computed there."""

import torch

from orchestrator.record import InvalidInput


def check_device(device: str) -> None:
    """Raises InvalidInput for a --device on which no tensor can be made, and for a name that is none."""
    try:
        there = torch.device(device).type == "cpu" or bool(torch.ones(1, device=device).item())
    except (RuntimeError, AssertionError, NotImplementedError):  # what PyTorch raises depends on how it was built
        there = False
    if not there:
        raise InvalidInput(f"--device is {device!r}, which this machine does not have")
