"""Results on the meta device are laid out as PyTorch's own are, and what PyTorch refuses is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.network.shapes import shapes_of

aten = torch.ops.aten


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def assert_like(found: Any, wanted: Tensor) -> None:
    assert (found.shape, found.stride(), found.dtype, found.device) == (
        wanted.shape,
        wanted.stride(),
        wanted.dtype,
        wanted.device,
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(dims: int, stride: int, padding: int, dilation: int, groups: int) -> None:
    x, weight = empty(2, 4, *[11] * dims), empty(6, 4 // groups, *range(2, 2 + dims))
    settings = ([stride], [padding], [dilation], False, [0], groups)
    assert_like(
        shapes_of(aten.convolution.default, (x, weight, None, *settings), {}),
        aten.convolution.default(x, weight, None, *([*s] * dims if isinstance(s, list) else s for s in settings)),
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(stride: int, more: int, groups: int) -> None:
    x, weight, bias = empty(2, 4, 5, 7), empty(4, 3, 2, 3), empty(3 * groups)
    if more >= stride:
        more = 0
    args = (x, weight, bias, [stride] * 2, [1, 0], [1, 1], True, [more] * 2, groups)
    assert_like(shapes_of(aten.convolution.default, args, {}), aten.convolution.default(*args))


@pytest.mark.parametrize(
    ("x", "weight", "bias", "groups", "message"),
    [
        ((1, 3, 8, 8), (6, 4, 3, 3), None, 1, r"a convolution of \[6, 4, 3, 3\], groups=1, meets \[1, 3, 8, 8\]"),
        ((1, 4, 8, 8), (5, 2, 3, 3), None, 2, "groups=2, meets"),
        ((1, 4, 8, 8), (6, 4, 3, 3), 5, 1, "groups=1, meets"),
        ((1, 4, 2, 2), (6, 4, 3, 3), None, 1, r"a kernel of \[3, 3\] is larger than a picture of \[2, 2\]"),
    ],
)
def test_what_no_convolution_takes(x: Any, weight: Any, bias: int | None, groups: int, message: str) -> None:
    given = (empty(*x), empty(*weight), None if bias is None else empty(bias))
    with pytest.raises(RuntimeError, match=message):
        shapes_of(aten.convolution.default, (*given, [1, 1], [0, 0], [1, 1], False, [0, 0], groups), {})


@pytest.mark.parametrize(
    ("func", "shapes", "numbers"),
    [
        (aten.add.Tensor, [(2, 3, 4), (2, 3, 4)], ()),
        (aten.mul.Tensor, [(2, 3, 4), (3, 1)], ()),
        (aten.mul.Tensor, [(1, 4), (3, 1)], ()),
        (aten.div.Scalar, [(2, 3)], (2.0,)),
        (aten.relu.default, [(2, 3)], ()),
        (aten.relu_.default, [(2, 3)], ()),
        (aten.add_.Tensor, [(2, 3), (3,)], ()),
        (aten.clamp.default, [(2, 3)], (0.0, 1.0)),
        (aten.gelu.default, [()], ()),
    ],
    ids=str,
)
def test_elementwise_operators(func: Any, shapes: list[tuple[int, ...]], numbers: tuple[float, ...]) -> None:
    tensors = [empty(*shape) for shape in shapes]
    found = shapes_of(func, (*tensors, *numbers), {})
    assert (found is tensors[0]) is func._schema.is_mutable
    assert_like(found, func(*[empty(*shape) for shape in shapes], *numbers))


def test_an_elementwise_result_keeps_its_operands_layout() -> None:
    x = empty(2, 3, 4, 5).permute(0, 2, 3, 1)
    assert_like(shapes_of(aten.relu.default, (x,), {}), F.relu(x))
    assert_like(shapes_of(aten.add.Tensor, (empty(3), x), {}), empty(3) + x)


def test_a_result_that_does_not_fit_into_its_first_operand_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"a result of \[2, 3\] does not fit into \[3\]"):
        shapes_of(aten.add_.Tensor, (empty(3), empty(2, 3)), {})


@pytest.mark.parametrize(
    ("func", "args", "kwargs"),
    [
        (aten.add.Tensor, (empty(2), empty(2, dtype=torch.float64)), {}),
        (aten.add.Tensor, (empty(2, dtype=torch.int64), empty(2, dtype=torch.int64)), {}),
        (aten.add.Tensor, (torch.ones(2), torch.ones(2)), {}),
        (aten.gt.Scalar, (empty(2), 0), {}),
        (aten.add.out, (empty(2), empty(2)), {"out": empty(2)}),
        (aten.convolution.default, (empty(4, 8, 8), empty(6, 4, 3, 3), None, [1], [0], [1], False, [0], 1), {}),
        (aten.max_pool2d_with_indices.default, (empty(1, 4, 8, 8), [2, 2]), {}),
    ],
    ids=str,
)
def test_all_else_is_left_to_pytorch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError):
        shapes_of(func, args, kwargs)


def test_products() -> None:
    a, b, bias = empty(5, 3), empty(3, 4), empty(4)
    assert_like(shapes_of(aten.mm.default, (a, b), {}), aten.mm.default(a, b))
    for added in (bias, empty(1)):
        assert_like(shapes_of(aten.addmm.default, (added, a, b), {}), aten.addmm.default(added, a, b))


@pytest.mark.parametrize(
    ("bias", "a", "b", "message"),
    [
        ((4,), (5, 3), (2, 4), r"a product of \[5, 3\] and \[2, 4\]"),
        ((3,), (5, 3), (3, 4), r"a bias of \[3\] meets \[5, 4\]"),
    ],
)
def test_what_no_product_takes(bias: Any, a: Any, b: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        shapes_of(aten.addmm.default, (empty(*bias), empty(*a), empty(*b)), {})


@pytest.mark.parametrize("bias", [empty(5, 4), empty(4, dtype=torch.float64)])
def test_a_product_with_another_kind_of_bias_is_left_to_pytorch(bias: Tensor) -> None:
    with pytest.raises(NotImplementedError):
        shapes_of(aten.addmm.default, (bias, empty(5, 3), empty(3, 4)), {})
