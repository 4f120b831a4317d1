"""Least squares from moments against scikit-learn, and what happens where samples are few."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch import Tensor

from orchestrator.methods.least_squares import GRID, Moments, least_squares

every_shrinkage = pytest.mark.parametrize("shrinkage", ["none", "cross_validated"])


def problem(samples: int, read: int, made: int, noise: float, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x [S, groups, read], y [S, groups, made], and the weights [groups, made, read] that made y, but for noise."""
    generator = torch.Generator().manual_seed(samples + read)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, weight = normal(samples, groups, read).relu(), normal(groups, made, read)
    return x, torch.einsum("sgi,goi->sgo", x, weight) + 3 + noise * normal(samples, groups, made), weight


@pytest.mark.parametrize("intercept", [True, False])
def test_plain_least_squares_are_scikit_learns(intercept: bool) -> None:
    x, y, weight = problem(200, 7, 3, 0.5, groups=2)
    found, bias = least_squares(Moments.of(x, y), torch.zeros_like(weight), intercept=intercept, shrinkage="none")
    for group in range(2):
        expected = LinearRegression(fit_intercept=intercept).fit(x[:, group].numpy(), y[:, group].numpy())
        np.testing.assert_allclose(found[group], expected.coef_, rtol=1e-8)
        if intercept:
            np.testing.assert_allclose(bias[group], expected.intercept_, rtol=1e-8)
    assert (bias is None) is not intercept


@every_shrinkage
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("samples", [3, 9, 40])
def test_never_worse_on_its_samples_than_the_start(samples: int, intercept: bool, shrinkage: str) -> None:
    x, y, weight = problem(samples, 12, 4, 1.0, groups=2)
    start = weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moments = Moments.of(x, y)
    found, bias = least_squares(moments, start, intercept=intercept, shrinkage=shrinkage)
    its_best = (moments.y - (start * moments.x[:, None]).sum(2)) / samples if intercept else None
    assert (moments.error(found, bias) <= moments.error(start, its_best) * (1 + 1e-9) + 1e-9).all()


@every_shrinkage
def test_what_no_sample_shows_stays_as_it_was(shrinkage: str) -> None:
    x, y, _ = problem(100, 6, 2, 0.1)
    x[..., 2] = 0.0  # never seen
    x[..., 4] = x[..., 3]  # seen together alone: their difference is not
    start = torch.arange(12.0, dtype=torch.float64).view(1, 2, 6)
    found, _ = least_squares(Moments.of(x, y), start, intercept=True, shrinkage=shrinkage)
    torch.testing.assert_close(found[..., 2], start[..., 2])
    torch.testing.assert_close(found[..., 4] - found[..., 3], start[..., 4] - start[..., 3])
    assert found.isfinite().all()


@every_shrinkage
def test_layers_that_read_nothing_but_zeros_stay(shrinkage: str) -> None:
    x, y, weight = problem(20, 3, 2, 0.1)
    found, bias = least_squares(Moments.of(x * 0, y), weight, intercept=True, shrinkage=shrinkage)
    assert torch.equal(found, weight)
    torch.testing.assert_close(bias, y.mean(0))


def test_the_ridge_is_that_of_least_generalised_cross_validation() -> None:
    """Over the grid, by the hat matrix and scikit-learn's Ridge on what the start leaves to explain."""
    x, y, weight = problem(30, 12, 3, 2.0)
    start = weight * 0.5
    found, _ = least_squares(Moments.of(x, y), start, intercept=True)
    flat, rest = x[:, 0].numpy(), (y - torch.einsum("sgi,goi->sgo", x, start))[:, 0].numpy()
    centred = flat - flat.mean(0)
    largest = np.linalg.eigvalsh(centred.T @ centred)[-1]
    scores = {}
    for relative in GRID:
        ridge = Ridge(alpha=relative * largest).fit(flat, rest)
        hat = centred @ np.linalg.solve(centred.T @ centred + relative * largest * np.eye(12), centred.T)
        error = ((rest - ridge.predict(flat)) ** 2).sum()
        scores[error / (29 - np.trace(hat)) ** 2] = ridge.coef_
    np.testing.assert_allclose(found[0] - start[0], scores[min(scores)], rtol=1e-6, atol=1e-9)


def test_few_samples_do_not_ruin_a_layer_and_many_are_taken_at_their_word() -> None:
    """On samples of its own, [few] is not worse than before by much, where plain least squares would be."""
    x, y, weight = problem(2000, 40, 5, 1.0)
    start = weight + 0.05
    moments, others = Moments.of(x[:44], y[:44]), Moments.of(x[1000:], y[1000:])

    def left(weight: Tensor, bias: Tensor | None) -> float:
        return float(others.error(weight, bias).sum())

    before = left(*least_squares(moments, start, intercept=True, shrinkage="none"))
    shrunk = left(*least_squares(moments, start, intercept=True))
    untouched = left(start, (moments.y - (start * moments.x[:, None]).sum(2)) / 44)
    assert shrunk < 1.1 * untouched
    assert shrunk < 0.3 * before
    many = Moments.of(x[:1000], y[:1000])
    plain, _ = least_squares(many, torch.zeros_like(start), intercept=True, shrinkage="none")
    found, _ = least_squares(many, torch.zeros_like(start), intercept=True)
    torch.testing.assert_close(found, plain, rtol=0.05, atol=0.02)


def test_moments_add_up_and_tell_errors() -> None:
    x, y, weight = problem(50, 5, 3, 1.0, groups=2)
    whole, parts = Moments.of(x, y), Moments.of(x[:20], y[:20]) + Moments.of(x[20:], y[20:])
    bias = torch.randn(2, 3, dtype=torch.float64)
    for moments in (whole, parts):
        for constant in (None, bias):
            residual = y - torch.einsum("sgi,goi->sgo", x, weight) - (0 if constant is None else constant)
            torch.testing.assert_close(moments.error(weight, constant), residual.square().sum(0))
    shifted = Moments.of(x - x.mean(0), y - y.mean(0))
    torch.testing.assert_close(parts.centred().xx, shifted.xx)
    torch.testing.assert_close(parts.centred().xy, shifted.xy)
    torch.testing.assert_close(parts.centred().yy, shifted.yy)
