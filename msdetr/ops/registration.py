"""The operator as PyTorch knows it, ``torch.ops.msdetr.ms_deform_attn``: schema, fake kernel, autograd, autocast.

Spatial shapes are flat here, [H0, W0, H1, W1, …], as a schema has no pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import backends
from .functional import autocast, check


def _pairs(spatial_shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))


@torch.library.custom_op("msdetr::ms_deform_attn", mutates_args=())
def ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    shapes = _pairs(spatial_shapes)
    check(value, shapes, sampling_locations, attention_weights)
    return backends.select(value.device).forward(value, shapes, sampling_locations, attention_weights).contiguous()


@ms_deform_attn.register_fake
def _(value, spatial_shapes, sampling_locations, attention_weights):
    check(value, _pairs(spatial_shapes), sampling_locations, attention_weights)
    return value.new_empty(value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("msdetr::ms_deform_attn_backward", mutates_args=())
def ms_deform_attn_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    need_value: bool,
    need_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = _pairs(spatial_shapes)
    check(value, shapes, sampling_locations, attention_weights)
    expected = (value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])
    if grad_output.shape != expected:
        raise ValueError(f"grad_output is {list(grad_output.shape)}, expected {list(expected)}")
    gradients = backends.select(value.device).backward(
        grad_output, value, shapes, sampling_locations, attention_weights, need_value, need_points
    )
    return tuple(gradient.contiguous() for gradient in gradients)


@ms_deform_attn_backward.register_fake
def _(grad_output, value, spatial_shapes, sampling_locations, attention_weights, need_value, need_points):
    def gradient(tensor: Tensor, needed: bool) -> Tensor:
        return tensor.new_empty(tensor.shape) if needed else tensor.new_empty(0)

    return (
        gradient(value, need_value),
        gradient(sampling_locations, need_points),
        gradient(attention_weights, need_points),
    )


def _setup_context(ctx, inputs, output) -> None:
    value, ctx.spatial_shapes, sampling_locations, attention_weights = inputs
    ctx.save_for_backward(value, sampling_locations, attention_weights)


def _backward(ctx, grad_output: Tensor):
    value, sampling_locations, attention_weights = ctx.saved_tensors
    need_value, _, need_locations, need_weights = ctx.needs_input_grad
    need_points = need_locations or need_weights  # the two come from the same dot products
    grad_value, grad_locations, grad_weights = torch.ops.msdetr.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, sampling_locations, attention_weights, need_value, need_points
    )
    return (
        grad_value if need_value else None,
        None,
        grad_locations if need_locations else None,
        grad_weights if need_weights else None,
    )


ms_deform_attn.register_autograd(_backward, setup_context=_setup_context)


def _autocast_rule(device_type: str):
    def rule(value, spatial_shapes, sampling_locations, attention_weights):
        tensors = autocast(value, sampling_locations, attention_weights)
        with torch.autocast(device_type, enabled=False):
            return torch.ops.msdetr.ms_deform_attn(tensors[0], spatial_shapes, *tensors[1:])

    return rule


_library = torch.library.Library("msdetr", "FRAGMENT")
_library.impl("ms_deform_attn", _autocast_rule("cpu"), "AutocastCPU")
_library.impl("ms_deform_attn", _autocast_rule("cuda"), "AutocastCUDA")
