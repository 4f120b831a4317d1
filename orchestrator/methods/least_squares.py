"""Least squares from sums over samples: new weights for a layer, never worse on these samples than those it has."""

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

Shrinkage = Literal["cross_validated", "none"]
GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-20, 3))  # of ridges, relative to the largest eigenvalue
NEGLIGIBLE = 1e-12  # of the largest eigenvalue: a direction that no sample shows


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What least squares needs of samples x [S, groups, read] and y [S, groups, made]; float64."""

    count: int
    x: Tensor  # [groups, read] sums
    y: Tensor  # [groups, made]
    xx: Tensor  # [groups, read, read]
    xy: Tensor  # [groups, read, made]
    yy: Tensor  # [groups, made]

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Moments":
        left, right = x.double().transpose(0, 1), y.double().transpose(0, 1)  # [groups, S, ...]
        across = left.transpose(1, 2)
        return cls(
            count=len(x),
            x=left.sum(1),
            y=right.sum(1),
            xx=across @ left,
            xy=across @ right,
            yy=right.square().sum(1),
        )

    def __add__(self, other: "Moments") -> "Moments":
        parts = {name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__}
        return Moments(**parts)

    def centred(self) -> "Moments":
        """As if each variable had been shifted to a mean of 0: what a bias makes of it."""
        x, y = self.x / self.count, self.y / self.count
        return Moments(
            count=self.count,
            x=torch.zeros_like(x),
            y=torch.zeros_like(y),
            xx=self.xx - self.count * x[:, :, None] * x[:, None],
            xy=self.xy - self.count * x[:, :, None] * y[:, None],
            yy=(self.yy - self.count * y.square()).clamp(min=0),
        )

    def error(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """[groups, made] the sum over samples of (y - weight x - bias) ** 2. weight: [groups, made, read]."""
        products = (weight * self.xy.transpose(1, 2)).sum(2)
        squares = ((weight @ self.xx) * weight).sum(2)
        error = self.yy - 2 * products + squares
        if bias is not None:
            residual = self.y - (weight * self.x[:, None]).sum(2)
            error = error - 2 * bias * residual + self.count * bias.square()
        return error.clamp(min=0)


def total(moments: list[Moments]) -> Moments:
    return reduce(Moments.__add__, moments)


def least_squares(
    moments: Moments, start: Tensor, *, intercept: bool, shrinkage: Shrinkage = "cross_validated"
) -> tuple[Tensor, Tensor | None]:
    """Weights [groups, made, read] and biases [groups, made] (None without intercept) that fit y best.

    Of all that fit equally well, those nearest to `start` [groups, made, read]: what the samples say nothing about
    stays as it was. With shrinkage "none" this is plain least squares; "cross_validated" adds a ridge on the
    difference to `start`, one for the layer, of the strength that generalised cross-validation (Golub, Heath, Wahba
    1979) finds best: where samples are plenty it is next to nothing, and where they are few it prevents overfitting.
    Either way the error on these samples is not above that of `start` with its best bias.
    """
    these = moments.centred() if intercept else moments
    start = start.double()
    values, vectors = torch.linalg.eigh(these.xx)
    values = values.clamp(min=0)  # [groups, read]
    gap = vectors.transpose(1, 2) @ (these.xy - these.xx @ start.transpose(1, 2))  # [groups, read, made]
    floor = NEGLIGIBLE * values.max()
    gain = torch.where(values > floor, 1 / values, 0.0)
    if shrinkage == "cross_validated":
        before = these.error(start).sum(1)
        ridge = _ridge(values, gap.square().sum(2), before, these.count - int(intercept))
        gain = torch.where(values > floor, 1 / (values + ridge), 0.0)
    weight = start + (vectors @ (gain[:, :, None] * gap)).transpose(1, 2)
    if not intercept:
        return weight, None
    return weight, (moments.y - (weight * moments.x[:, None]).sum(2)) / moments.count


def _ridge(values: Tensor, gap: Tensor, before: Tensor, count: int) -> float:
    """The ridge of least generalised cross-validation error.

    values: eigenvalues [groups, read]; gap: squares of what is left to explain along their directions, [groups, read];
    before: [groups] the error without any change. The larger one of equals.
    """
    largest = float(values.max())
    found, best = 0.0, float("inf")
    for relative in reversed(GRID):
        ridge = relative * largest
        shrunk = values + ridge
        explained = torch.where(values > NEGLIGIBLE * largest, gap * (values + 2 * ridge) / shrunk.square(), 0.0)
        error = (before - explained.sum(1)).clamp(min=0)
        free = count - (values / shrunk).nan_to_num().sum(1)
        score = float((error / free.clamp(min=1e-3).square()).sum())
        if score < best:
            found, best = ridge, score
    return found
