"""Least squares from moments: refitted weights, their rescale, and a set of inputs that grows by blocks.

All matrices are float64; S is the covariance of a layer's inputs, or their second moments where there is no mean shift.
Source: Xie et al. 2021, arXiv:2108.13728. The damping is ours: the paper's formulas are those of damping 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 1e-10  # relative: what varies less does not vary; ranking adds it to the diagonal, so that inverses exist
NOTHING = 1e-12  # the share of a variance below which there is nothing left to scale up


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What is known of vectors x. Leading dimensions go along."""

    count: int
    mean: Tensor  # [F] E[x]
    second: Tensor  # [F, F] E[x x^T]

    def spread(self, centred: bool) -> Tensor:
        """[..., F, F] covariance, or second moments where no shift can make up for a mean."""
        return self.second - self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2) if centred else self.second


def refitted(cross: Tensor, own: Tensor, start: Tensor, damping: float) -> Tensor:
    """Weights that make outputs out of the inputs that are left: [..., O, S].

    cross [..., O, S]: E[y x^T] of the wanted outputs with the inputs left; own [..., S, S]: E[x x^T] of these; start
    [..., O, S]: the weights they have. Minimises E||y - W x||^2 + ridge ||W - start||^2, ridge being damping x the
    mean of own's diagonal. With cross = W S_{:,s} and no damping that is the paper's W S_{:,s} S_ss^{-1}; directions in
    which the inputs do not vary keep their weights. The error is never above that of `start`, whatever the damping.
    """
    return start + (cross - start @ own) @ inverse(damped(own, damping))


def damped(matrix: Tensor, damping: float) -> Tensor:
    size = matrix.shape[-1]
    ridge = damping * matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    return matrix + ridge[..., None, None] * torch.eye(size, dtype=matrix.dtype, device=matrix.device)


def inverse(matrix: Tensor) -> Tensor:
    """Of symmetric matrices [..., S, S] that should be positive definite; the pseudo-inverse where they are not."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    if not bool(failed.any()) and bool((diagonal.amin(-1) > SMALLEST**0.5 * diagonal.amax(-1)).all()):
        found: Tensor = torch.cholesky_inverse(factor)
        return found
    pseudo: Tensor = torch.linalg.pinv(matrix, rtol=SMALLEST, hermitian=True)
    return pseudo


def variances(weight: Tensor, spread: Tensor) -> Tensor:
    """[..., O] w S w^T of each row of weight [..., O, F]."""
    return ((weight @ spread) * weight).sum(-1).clamp(min=0)


def rescaled(weight: Tensor, own: Tensor, wanted: Tensor) -> Tensor:
    """Each row scaled so that its output has the wanted variance [..., O], as the norm after it expects.

    A row whose output hardly varies stays as it is: no scale makes up for what is not there.
    """
    found = variances(weight, own)
    there = found > NOTHING * wanted
    scale = torch.where(there, wanted / torch.where(there, found, 1.0), 1.0).sqrt()
    return weight * scale.unsqueeze(-1)


class Selection:
    """Least squares of a layer's outputs on a set of its inputs that grows block by block, by sweeping.

    Outputs are y = W x. With s the inputs taken so far and r the rest, `table` [F, F] holds -(S_ss)^{-1}, its product
    with S_sr, and the residual S_rr - S_rs S_ss^{-1} S_sr; `cross` [O, F] holds the compensated weights
    W S_{:,s} S_ss^{-1} at s and what is not yet explained, W S_{:,r} - W S_{:,s} S_ss^{-1} S_sr, at r. Taking b inputs
    costs F x F x b: all of them together cost about one inverse.
    """

    def __init__(self, spread: Tensor, weight: Tensor, damping: float) -> None:
        self.table = damped(spread, max(damping, SMALLEST))
        self.cross = weight @ self.table

    def gains(self, blocks: Tensor) -> Tensor:
        """[n] the variance that each block [n, b] of inputs would explain beyond what is explained.

        || (W S_{:,t} - W S_{:,s} S_ss^{-1} S_st) M^{-T} ||_F^2 with M M^T the residual S_tt - S_ts S_ss^{-1} S_st.
        """
        residual = self.table[blocks.unsqueeze(2), blocks.unsqueeze(1)]  # [n, b, b]
        factor, failed = torch.linalg.cholesky_ex(residual)
        open_ = self.cross[:, blocks].permute(1, 2, 0)  # [n, b, O]
        safe = torch.where(failed.bool()[:, None, None], torch.eye(blocks.shape[1], dtype=factor.dtype), factor)
        explained = torch.linalg.solve_triangular(safe, open_, upper=False).square().sum((1, 2))
        return torch.where(failed.bool(), 0.0, explained)  # singular but for rounding: nothing of its own is left

    def take_(self, block: Tensor) -> None:
        """Add inputs [b] to the set."""
        columns, open_ = self.table[:, block], self.cross[:, block]
        pivot = inverse(columns[block])
        scaled = columns @ pivot
        self.cross -= open_ @ scaled.T
        self.cross[:, block] = open_ @ pivot
        self.table -= scaled @ columns.T
        self.table[:, block] = scaled
        self.table[block] = scaled.T
        self.table[block.unsqueeze(1), block] = -pivot
