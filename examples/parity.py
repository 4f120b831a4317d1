"""A network, pictures and trained weights of one's own, as a search takes them: is a hand-written digit even or odd?

python -m examples.parity         # stands for what you have: writes data/parity.npz and data/parity.pth
orchestrator search search_spaces/parity.toml
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from orchestrator.record import InvalidInput
from orchestrator.training.splits import DataSet, Split, in_memory, stratified

PICTURES, WEIGHTS = "parity.npz", "parity.pth"


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def network(classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """The network, untrained. The search says how many classes there are, and how large a picture is."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 24, 3, padding=1),
        nn.ReLU(),
        Block(24),
        nn.MaxPool2d(2),
        Block(24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, classes),
    )


def load(root: Path, seed: int) -> DataSet:
    """The pictures, in three parts that the seed chooses. `root` is the space's data_root."""
    file = root / PICTURES
    if not file.is_file():
        raise InvalidInput(f"{file}: no such file; make it by: python -m examples.parity")
    with np.load(file) as stored:
        images, labels = torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"])
    whole = Split(images, labels)  # uint8 [N, C, H, W] and int64 [N]
    train, validation, test = (whole.part(part) for part in stratified(labels, (0.6, 0.2, 0.2), seed))
    return in_memory("parity", 2, train=train, validation=validation, test=test)


def prepare(root: Path) -> str:
    """Writes the pictures, and the weights of a network trained on them by a loop that knows nothing of pruning."""
    root.mkdir(parents=True, exist_ok=True)
    pixels, digits = load_digits(return_X_y=True)
    images = (pixels * 255 / 16).round().astype(np.uint8).reshape(-1, 1, 8, 8)
    np.savez(root / PICTURES, images=images, labels=(digits % 2).astype(np.int64))

    data = load(root, seed=0)
    mean, std = torch.tensor(data.mean).view(1, -1, 1, 1), torch.tensor(data.std).view(1, -1, 1, 1)

    def prepared(split: Split) -> Tensor:
        return (split.images / 255 - mean) / std  # as the search prepares pictures: weights must fit them

    torch.manual_seed(0)
    model, pictures = network(data.classes, data.input_shape), prepared(data.train)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(10):
        for batch in torch.randperm(len(pictures)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(pictures[batch]), data.train.labels[batch]).backward()
            optimizer.step()
    torch.save(model.state_dict(), root / WEIGHTS)

    with torch.no_grad():
        right = model.eval()(prepared(data.validation)).argmax(1) == data.validation.labels
    return f"{root / PICTURES}: {len(images)} pictures; {root / WEIGHTS}: accuracy {right.float().mean():.4f}"


if __name__ == "__main__":
    print(prepare(Path("data")))
