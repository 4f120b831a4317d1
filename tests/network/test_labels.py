"""Label tensors: stride 0 where labels are constant, and shapes that nest."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.network import labels as lb

shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@st.composite
def regroupings(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Factors, and two shapes that are made by multiplying neighbours among them."""
    factors = draw(st.lists(st.integers(2, 4), min_size=1, max_size=5))

    def grouped() -> list[int]:
        found = [1]
        for factor in factors:
            if draw(st.booleans()):
                found.append(1)
            found[-1] *= factor
        return found

    return factors, grouped(), grouped()


@st.composite
def labellings(draw: st.DrawFn) -> Tensor:
    """Labels that are constant along some dimensions, some of which are expanded and some written out."""
    shape = draw(shapes)
    small = [1 if draw(st.booleans()) else size for size in shape]
    labels = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=math.prod(small), max_size=math.prod(small))))
    labels = labels.reshape(small).expand(shape)
    return labels.clone() if draw(st.booleans()) else labels


@given(regroupings())
def test_refinement_splits_both_shapes(case: tuple[list[int], list[int], list[int]]) -> None:
    factors, old, new = case
    refined = lb.refinement(old, new)
    assert refined is not None
    assert math.prod(refined) == math.prod(factors)
    assert len(refined) <= len(factors)
    for shape in (old, new):
        axes = lb.factors_of(shape, refined)
        assert [math.prod(refined[axis] for axis in each) for each in axes] == shape
        assert sorted(axis for each in axes for axis in each) == list(range(len(refined)))


@given(shapes)
def test_refinement_of_a_shape_with_itself_is_the_shape_without_ones(shape: list[int]) -> None:
    assert lb.refinement(shape, shape) == [size for size in shape if size > 1]


def test_refinement_by_hand() -> None:
    assert lb.refinement([6, 4], [2, 12]) == [2, 3, 4]
    assert lb.refinement([2, 8, 5], [2, 2, 4, 5]) == [2, 2, 4, 5]
    assert lb.refinement([4, 6], [3, 8]) is None
    assert lb.factors_of([6, 1, 4], [2, 3, 4]) == [[0, 1], [], [2]]


@given(labellings())
def test_settle_keeps_labels_and_shortens_their_core(labels: Tensor) -> None:
    settled = lb.settle(labels)
    assert torch.equal(settled, labels)
    for dim in range(labels.ndim):
        constant = bool((labels == labels.narrow(dim, 0, 1)).all())
        assert lb.varies(labels, dim) == (not constant)
        assert (settled.stride(dim) == 0 or settled.size(dim) == 1) == constant
    assert lb.varying(settled) == lb.varying(labels)


@given(labellings())
def test_core_expands_to_the_labels(labels: Tensor) -> None:
    assert torch.equal(lb.core(labels).expand(labels.shape), labels)
    assert lb.core(labels, keep=range(labels.ndim)).shape == labels.shape


@given(labellings(), st.data())
def test_vector_follows_one_dimension_or_is_none(labels: Tensor, data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, labels.ndim - 1))
    vector = lb.vector(labels, dim)
    if set(lb.varying(labels)) <= {dim}:
        assert vector is not None
        assert torch.equal(lb.along(vector, dim, labels.shape), labels)
    else:
        assert vector is None


def test_blank_belongs_to_no_channel_and_takes_no_memory() -> None:
    assert lb.blank((1000, 1000, 1000)).untyped_storage().nbytes() == 8
    assert lb.blank(()).shape == ()
    assert not lb.varying(lb.blank((2, 3)))
