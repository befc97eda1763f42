"""The public function of the operator, and the checks of its arguments, the same for every backend."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError, InputTypeError
from . import backends, plain

Shapes = Sequence[tuple[int, int]]


def ms_deform_attn(
    value: Tensor, spatial_shapes: Shapes | Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Multi-scale deformable attention (Equation 3 of Deformable DETR, without its projections).

    Every query reads, per head, P points on each of L feature levels by bilinear interpolation and adds them up with
    its attention weights. ``msdetr.ops.reference.ms_deform_attn_loop`` says the same as a loop.

    Args:
        value: [B, S, M, D], the tokens of all levels one after another, row by row; M heads of D channels.
        spatial_shapes: L pairs (height, width) with sum of height * width = S. Python integers are best; an integer
            tensor [L, 2] is read to the host, which on a CUDA device waits for it.
        sampling_locations: [B, Q, M, L, P, 2], (x, y) in units of each level: (0, 0) is its top left corner and
            (1, 1) its bottom right one, so the centre of the first pixel lies at (0.5 / width, 0.5 / height).
        attention_weights: [B, Q, M, L, P], usually a softmax over the last two dimensions.

    Returns:
        [B, Q, M * D] in value's dtype. Half types are accumulated in fp32.

    Outside a level its value is zero. A location that no pixel reaches, is infinite or is NaN contributes nothing and
    gets gradients of zero. Values and weights are expected to be finite.

    Raises:
        InputError: shapes that do not fit together, sizes <= 0, no levels or no points.
        InputTypeError: dtypes that are not floating point or differ (fp32 locations and weights beside a half-typed
            value are fine), tensors on different devices, sparse ones.
        OperatorError: "native" is asked for where there is none; forward-mode differentiation; and, outside the backend
            "plain", double backward and the transforms of torch.func that differentiate.
    """
    shapes = as_shapes(spatial_shapes)
    value, sampling_locations, attention_weights = autocast(value, sampling_locations, attention_weights)
    check(value, shapes, sampling_locations, attention_weights)
    if composed := backends.composed() or (plain if torch.onnx.is_in_onnx_export() else None):
        return composed.forward(value, shapes, sampling_locations, attention_weights)
    flat = [size for shape in shapes for size in shape]
    return torch.ops.msdetr.ms_deform_attn(value, flat, sampling_locations, attention_weights)


def autocast(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast, value in the lower precision and the rest in fp32: a location needs more than bf16's 8 bits.

    Double precision is left alone, as autocast does elsewhere.
    """
    device = value.device.type
    # torch.compile of torch 2.11 cannot ask whether there is autocast; on these two there is
    if device not in ("cpu", "cuda") and not torch.amp.is_autocast_available(device):
        return value, locations, weights
    if not torch.is_autocast_enabled(device):
        return value, locations, weights
    if torch.float64 in (value.dtype, locations.dtype, weights.dtype) or not value.is_floating_point():
        return value, locations, weights
    return value.to(torch.get_autocast_dtype(device)), locations.float(), weights.float()


def as_shapes(spatial_shapes: Shapes | Tensor) -> tuple[tuple[int, int], ...]:
    """Spatial shapes as L pairs of Python integers."""
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.is_floating_point() or spatial_shapes.ndim != 2 or spatial_shapes.shape[1] != 2:
            raise InputError(
                "spatial_shapes must be L pairs (height, width) or an integer tensor [L, 2], got a tensor of "
                f"{spatial_shapes.dtype} of shape {list(spatial_shapes.shape)}"
            )
        spatial_shapes = spatial_shapes.tolist()
    try:
        return tuple((_whole(height), _whole(width)) for height, width in spatial_shapes)
    except (TypeError, ValueError):
        raise InputError(f"spatial_shapes must be L pairs (height, width), got {spatial_shapes!r}") from None


def _whole(size: int | torch.SymInt) -> int | torch.SymInt:
    return size if isinstance(size, int | torch.SymInt) else operator.index(size)


_HALF = (torch.float16, torch.bfloat16)
_DTYPES = (torch.float32, torch.float64, *_HALF)


def check(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    """Raises ValueError or TypeError, naming the argument, for what the operator cannot take."""
    tensors = {"value": value, "sampling_locations": locations, "attention_weights": weights}
    layouts = {"value": "B S M D", "sampling_locations": "B Q M L P 2", "attention_weights": "B Q M L P"}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_nested:
            raise InputTypeError(
                f"{name} must be a dense tensor, got layout {tensor.layout}; convert it with .to_dense()"
            )
        rank = len(layouts[name].split())
        if tensor.ndim != rank:
            raise InputError(f"{name} must be [{', '.join(layouts[name].split())}], got {_shape(tensor)}")
        if tensor.dtype not in _DTYPES:
            raise InputTypeError(f"{name} must be floating point, got {tensor.dtype}; convert it with .float()")
        if tensor.device != value.device:
            raise InputTypeError(f"{name} is on {tensor.device}, value on {value.device}; move them to one device")
    if weights.dtype != locations.dtype or not (
        locations.dtype == value.dtype or (value.dtype in _HALF and locations.dtype == torch.float32)
    ):
        raise InputTypeError(
            f"dtypes differ: value {value.dtype}, sampling_locations {locations.dtype}, attention_weights "
            f"{weights.dtype}; convert them to one (float32 locations and weights beside a half-typed value are fine)"
        )
    batch, tokens, heads, channels = value.shape
    if len(shapes) == 0:
        raise InputError("spatial_shapes is empty; at least one level is needed")
    for level, (height, width) in enumerate(shapes):
        if height <= 0 or width <= 0:
            raise InputError(f"spatial_shapes[{level}] is ({height}, {width}); height and width must be positive")
    if (total := sum(height * width for height, width in shapes)) != tokens:
        raise InputError(f"spatial_shapes {list(shapes)} hold {total} tokens, value {_shape(value)} has {tokens}")
    if tokens >= 2**31 or locations.shape[1] >= 2**31:
        raise InputError(f"{tokens} tokens and {locations.shape[1]} queries: each must be below 2^31")
    if heads == 0 or channels == 0:
        raise InputError(f"value {_shape(value)} has no heads or no channels")
    if locations.shape[3] != len(shapes):
        raise InputError(
            f"sampling_locations {_shape(locations)} are for {locations.shape[3]} levels, spatial_shapes for {len(shapes)}"
        )
    if locations.shape[4] == 0:
        raise InputError(f"sampling_locations {_shape(locations)} have no points; at least one is needed")
    if locations.shape[0] != batch or locations.shape[2] != heads or locations.shape[5] != 2:
        raise InputError(
            f"sampling_locations {_shape(locations)} do not fit value {_shape(value)}: expected "
            f"[{batch}, Q, {heads}, {len(shapes)}, P, 2]"
        )
    if weights.shape != locations.shape[:-1]:
        raise InputError(
            f"attention_weights {_shape(weights)} do not fit sampling_locations {_shape(locations)}: expected "
            f"{list(locations.shape[:-1])}"
        )


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
