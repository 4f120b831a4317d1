"""Operator -> how channels flow through it: one visible dict of plain functions.

A rule sees an operator as it ran (recording.Op) and says what its result carries (`trace.set`), what is the same
channel (`trace.unify`), what must stay (`trace.freeze`) and where cutting is not the same as zeroing
(`trace.inexact`). Operators with PyTorch's own `pointwise` tag share one rule; any other operator that is not listed
freezes what it touches.
"""

from collections.abc import Callable
from typing import Any

import torch

from orchestrator.network.recording import Op
from orchestrator.network.rules_elements import nothing, passed, pointwise, reduction, softmax, spatial
from orchestrator.network.rules_layers import batch_norm, convolution, embedding, group_norm, layer_norm, matrix_product
from orchestrator.network.rules_shapes import (
    concatenate,
    constant_pad,
    glu,
    index_select,
    indexed,
    parts,
    pick,
    pixel_shuffle,
    pixel_unshuffle,
    restrided,
    same_on_labels,
    shuffle,
    view,
)
from orchestrator.network.trace import Trace

aten = torch.ops.aten
Rule = Callable[[Trace, Op], None]


RULES: dict[Any, Rule] = {
    # layers
    aten.convolution: convolution,
    aten.mm: matrix_product,
    aten.addmm: matrix_product,
    aten.bmm: matrix_product,
    aten.baddbmm: matrix_product,
    aten.embedding: embedding,
    # norms
    aten.native_batch_norm: batch_norm,
    aten._native_batch_norm_legit: batch_norm,
    aten._native_batch_norm_legit_no_training: batch_norm,
    aten.cudnn_batch_norm: batch_norm,
    aten.native_layer_norm: layer_norm,
    aten.native_group_norm: group_norm,
    # element by element (most have PyTorch's pointwise tag)
    **dict.fromkeys(
        [
            aten.copy_,
            aten._prelu_kernel,
            aten.hardswish,
            aten.hardswish_,
            aten.hardsigmoid,
            aten.hardsigmoid_,
            aten.hardtanh,
            aten.hardtanh_,
            aten.leaky_relu_,
            aten.elu_,
            aten.silu_,
            aten.mish_,
            aten.threshold_,
            aten.gelu_,
            aten.relu_,
            aten.sigmoid_,
            aten.tanh_,
            aten.clamp_,
            aten.celu_,
            aten.selu_,
        ],
        pointwise,
    ),
    aten.native_dropout: passed,
    aten.rrelu_with_noise: passed,
    aten.clone: passed,
    aten.detach: passed,
    aten.alias: passed,
    aten._to_copy: passed,
    aten.lift_fresh: passed,
    aten._softmax: softmax,
    aten._safe_softmax: softmax,
    aten._log_softmax: softmax,
    # no channels in the result
    **dict.fromkeys(
        [
            aten.empty,
            aten.zeros,
            aten.ones,
            aten.full,
            aten.arange,
            aten.linspace,
            aten.eye,
            aten.scalar_tensor,
            aten.new_zeros,
            aten.new_ones,
            aten.new_full,
            aten.new_empty,
            aten.empty_like,
            aten.zeros_like,
            aten.ones_like,
            aten.full_like,
            aten.rand,
            aten.randn,
            aten.rand_like,
            aten.randn_like,
            aten.bernoulli_,
            aten.randint,
            aten.randperm,
            aten.uniform_,
            aten.normal_,
            aten.zero_,
            aten.fill_,
        ],
        nothing,
    ),
    # places
    **dict.fromkeys(
        [
            aten.max_pool2d_with_indices,
            aten.avg_pool2d,
            aten._adaptive_avg_pool2d,
            aten.adaptive_max_pool2d,
            aten.upsample_nearest2d,
            aten.upsample_bilinear2d,
            aten.upsample_bicubic2d,
            aten._upsample_bilinear2d_aa,
            aten._upsample_nearest_exact2d,
            aten.reflection_pad2d,
            aten.replication_pad2d,
        ],
        spatial(2),
    ),
    **dict.fromkeys(
        [
            aten.max_pool3d_with_indices,
            aten.avg_pool3d,
            aten._adaptive_avg_pool3d,
            aten.adaptive_max_pool3d,
            aten.upsample_nearest3d,
            aten.upsample_trilinear3d,
            aten.reflection_pad3d,
            aten.replication_pad3d,
            aten.upsample_nearest1d,
            aten.upsample_linear1d,
            aten.reflection_pad1d,
            aten.replication_pad1d,
            aten.avg_pool1d,
            aten.adaptive_avg_pool1d,
            aten.max_pool1d,
        ],
        spatial(2),
    ),
    aten.mean: reduction(over_channels="inexact"),
    aten.amax: reduction(over_channels="inexact"),
    aten.amin: reduction(over_channels="inexact"),
    aten.max.dim: reduction(over_channels="inexact"),
    aten.max.default: reduction(over_channels="inexact"),
    aten.min.dim: reduction(over_channels="inexact"),
    aten.min.default: reduction(over_channels="inexact"),
    aten.var: reduction(over_channels="inexact"),
    aten.std: reduction(over_channels="inexact"),
    aten.var_mean: reduction(over_channels="inexact"),
    aten.std_mean: reduction(over_channels="inexact"),
    aten.sum: reduction(over_channels="exact"),
    aten.linalg_vector_norm: reduction(over_channels="exact"),
    # shapes
    **dict.fromkeys(
        [
            aten.t,
            aten.transpose,
            aten.permute,
            aten.expand,
            aten.unsqueeze,
            aten.squeeze,
            aten.flip,
            aten.roll,
            aten.repeat,
        ],
        same_on_labels,
    ),
    aten.view: view,
    aten._unsafe_view: view,
    aten.reshape: view,
    aten._reshape_alias: view,
    **dict.fromkeys(
        [
            aten.split,
            aten.split_with_sizes,
            aten.unsafe_split,
            aten.slice,
            aten.narrow,
        ],
        parts,
    ),
    aten.select: pick,
    aten.unbind: pick,
    aten.channel_shuffle: shuffle,
    aten.native_channel_shuffle: shuffle,
    aten.pixel_shuffle: pixel_shuffle,
    aten.pixel_unshuffle: pixel_unshuffle,
    aten.glu: glu,
    aten.cat: concatenate,
    aten.stack: concatenate,
    aten.constant_pad_nd: constant_pad,
    aten.index: indexed,
    aten.index_select: index_select,
    aten.as_strided: restrided,
    aten.as_strided_: restrided,
}
