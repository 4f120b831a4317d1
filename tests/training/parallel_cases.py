"""What processes that train together import: networks, and hooks that look around or misbehave."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.methods import METHODS, Subject
from orchestrator.network import Coupling, couple
from orchestrator.record import Schedule
from orchestrator.training.datasets import load
from orchestrator.training.member import Hooks
from orchestrator.training.parallel import fit_parallel


def with_norms() -> nn.Module:
    """Every way in which a network can look at its batch, in float64, of a class that only its own function knows."""

    class WithNorms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, bias=False), nn.Conv2d(6, 6, 3, groups=2)
            self.scaled, self.plain = nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False, momentum=None)
            self.by_picture = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
            self.flat = nn.BatchNorm1d(6, track_running_stats=False)
            self.head = nn.Linear(6, 10)
            self.unused, self.fixed = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(6, 1, 1))
            self.fixed.requires_grad = False
            self.register_buffer("constant", torch.tensor([0.1, float("-inf")]), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.by_picture(F.silu(self.scaled(self.conv1(x.double()))) * self.fixed)
            x = F.silu(self.plain(self.conv2(x)))
            return self.head(self.flat(x.mean((2, 3))))

    torch.manual_seed(0)
    model = WithNorms().double()
    model.conv2.register_forward_hook(lambda module, inputs, output: 1.5 * output)
    return model


class WithoutNorms(nn.Module):
    """In float32, with a feature that a hook may look at."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


@contextmanager
def looks_around(model: nn.Module) -> Iterator[Hooks]:
    """Adds to the gradients what weights alone decide; sees to it that no process listens to the outer world."""

    def after_backward() -> None:
        listening = [each.laddr.ip for each in psutil.Process().net_connections("inet") if each.status == "LISTEN"]
        assert set(listening) <= {"127.0.0.1"}, listening
        assert listening or not dist.is_initialized()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter, alpha=0.01)

    yield None, after_backward


@dataclass(frozen=True)
class Oicsr:
    """The penalty of that name, and a term of the loss from features that a hook sees."""

    coupling: Coupling

    @classmethod
    def of(cls, model: nn.Module) -> "Oicsr":
        return cls(couple(model, torch.zeros(2, 1, 8, 8)))

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[Hooks]:
        method = METHODS["oicsr"]
        options = method.options()
        subject = Subject(model=model, coupling=self.coupling, options=options, calibration=lambda: (), seed=0)
        seen: list[Tensor] = []
        handle = model.get_submodule("a").register_forward_hook(lambda module, inputs, output: seen.append(output))
        assert method.penalty is not None
        try:
            with method.penalty(subject, 0.01) as penalty:
                yield lambda: 0.1 * seen.pop().square().mean(), penalty.after_backward
        finally:
            handle.remove()


@contextmanager
def killed(model: nn.Module) -> Iterator[Hooks]:
    """The second process is killed in its first step."""

    def after_backward() -> None:
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    yield None, after_backward


@dataclass(frozen=True)
class Stuck:
    """Both processes leave a file named by their pid; then the second sleeps, and the first waits for it."""

    folder: Path

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[Hooks]:
        def after_backward() -> None:
            (self.folder / str(os.getpid())).touch()
            if dist.get_rank() == 1:
                time.sleep(600)

        yield None, after_backward


def main() -> None:
    """Train without end, to be killed."""
    settings = Schedule(epochs=1, learning_rate=0.01, batch_size=64)
    hooks = Stuck(Path(sys.argv[1]))
    fit_parallel(WithoutNorms(), load("digits"), settings, seed=0, devices=["cpu", "cpu"], make_hooks=hooks)


if __name__ == "__main__":
    main()
