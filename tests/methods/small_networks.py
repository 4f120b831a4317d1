"""Small networks, one a way in which channels are tied together, for pictures of 3 x 8 x 8 and five classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.methods import Method, Subject
from orchestrator.methods.agent_file import Actor, AgentCard, save_agent
from orchestrator.network import Coupling, couple

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(read: int, made: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(read, made, size, padding=size // 2, **options)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = conv(3, 8), nn.BatchNorm2d(8)
        self.b, self.head = conv(8, 12, bias=False), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        return self.head(F.relu(self.b(x)).mean((2, 3)))


class Residual(nn.Module):
    """A stream of 8 channels with two blocks around it; inside each, 6 channels of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.into = nn.ModuleList(conv(8, 6) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))
        self.back = nn.ModuleList(conv(6, 8) for _ in range(2))
        self.again = conv(8, 8)  # makes and reads the stream
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for into, norm, back in zip(self.into, self.norms, self.back, strict=True):
            x = F.relu(x + back(F.relu(norm(into(x)))))
        return self.head((x + self.again(x)).mean((2, 3)))


class DepthwiseGated(nn.Module):
    """An inverted bottleneck: 1 x 1, depthwise, squeeze-and-excitation, 1 x 1."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.depthwise, self.norm = conv(3, 12, 1), conv(12, 12, groups=12), nn.BatchNorm2d(12)
        self.squeeze, self.excite = conv(12, 4, 1), conv(4, 12, 1)
        self.narrow, self.head = conv(12, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.depthwise(F.relu(self.widen(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(F.relu(self.narrow(x * gate)).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 16), conv(16, 24, groups=4), conv(24, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads all that were made before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 6), conv(6, 4), conv(10, 4)
        self.norm, self.last, self.head = nn.BatchNorm2d(14), conv(14, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat((x, F.relu(self.a(x))), 1)
        x = torch.cat((x, F.relu(self.b(x))), 1)
        return self.head(F.relu(self.last(F.relu(self.norm(x)))).mean((2, 3)))


class OneChannel(nn.Module):
    """In the middle a layer of a single channel, which must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.one, self.b, self.head = conv(3, 8), conv(8, 1), conv(1, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.one(F.relu(self.a(x)))))).mean((2, 3)))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.norm = conv(3, 8), nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6)
        self.b, self.head = conv(6, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.norm(self.up(F.relu(self.a(x))))))).mean((2, 3)))


class TransposedGrouped(nn.Module):
    """Transposed convolutions of two conv_groups, and one a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up = conv(3, 8), nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
        self.each, self.b, self.head = nn.ConvTranspose2d(6, 6, 3, groups=6), conv(6, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.each(F.relu(self.up(F.relu(self.a(x)))))))).mean((2, 3)))


class Flattened(nn.Module):
    """A linear layer reads each channel at 4 x 4 places; a norm's scale follows channels along its second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale = conv(3, 6), nn.Parameter(torch.rand(1, 6, 1, 1))
        self.hidden, self.head = nn.Linear(6 * 16, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.a(x)) * self.scale, 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))


class AuxiliaryHead(nn.Module):
    """In training a second head says what it thinks of the first layer's features; pruned, it would save nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 12), nn.Linear(12, 5)
        self.aside, self.second = conv(8, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        out = self.head(F.relu(self.b(x)).mean((2, 3)))
        return out + self.second(F.relu(self.aside(x)).mean((2, 3))) if self.training else out


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "depthwise_gated": DepthwiseGated,
    "grouped": Grouped,
    "dense": Dense,
    "one_channel": OneChannel,
    "transposed": Transposed,
    "transposed_grouped": TransposedGrouped,
    "flattened": Flattened,
    "auxiliary_head": AuxiliaryHead,
}


def built(name: str) -> nn.Module:
    """The network with weights that depend on its name alone; norms with statistics and scales of their own."""
    with torch.random.fork_rng([]):
        torch.manual_seed(sum(map(ord, name)))
        model = NETWORKS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def untaught_agent(folder: Path, **changes: Any) -> Path:
    """A file with an agent of random weights, the same ones every time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        actor = Actor(0.1)
    plain: dict[str, Any] = {"groups": {}, "any_network": True, "least_share": 0.1, "options": {}, "rates": (0.5,)}
    path = folder / "agent.safetensors"
    save_agent(path, actor, AgentCard(**(plain | changes)))
    return path


FILES: dict[str, dict[str, str]] = {}  # options that some methods cannot do without: the tests' conftest fills them in


def subject_of(model: nn.Module, method: Method, coupling: Coupling | None = None, **options: Any) -> Subject:
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 5, (16,), generator=generator)
    return Subject(
        model=model,
        coupling=coupling or couple(model, EXAMPLE),
        options=method.options(**{**FILES.get(method.name, {}), **options}),
        calibration=lambda: iter([batch]),
        seed=0,
    )
