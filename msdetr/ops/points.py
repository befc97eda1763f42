"""Where a query looks and how much, from its linear layer's numbers to the operator's locations and weights: on a processor
with the compiled library one pass over these numbers, forward and backward.

``MultiScaleDeformableAttention`` says the same in PyTorch's own operators, and computes so elsewhere.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from ..errors import InputError, OperatorError
from . import cpu
from .linear import again, takes


class _Problem(ctypes.Structure):
    """``MsdetrPoints`` of csrc/ms_deform_points.h."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("projected", "base", "scale")]
        + [(name, ctypes.c_int64) for name in ("rows", "heads", "levels", "points", "scales")]
        + [(n, ctypes.c_void_p) for n in ("locations", "weights", "grad_locations", "grad_weights", "grad_projected")]
    )


@functools.cache
def available() -> bool:
    """Whether the compiled library is there and has this pass; one built from earlier sources has not."""
    return cpu.available() and hasattr(cpu.load(), "msdetr_points_forward")


def takes_points(queries: Tensor, references: Tensor) -> bool:
    """Whether ``sampling_points`` can be used. References get no gradient from it."""
    return takes(queries, references) and not references.requires_grad and available()


def sampling_points(
    projected: Tensor, base: Tensor, scale: Tensor, num_heads: int, num_points: int
) -> tuple[Tensor, Tensor]:
    """Locations [B, Q, M, L, P, 2] = base + offset * scale, and weights [B, Q, M, L, P], a softmax over L and P.

    projected: [B, Q, 3 * M * L * P], the offsets [M, L, P, 2] of a query, then its logits [M, L, P].
    base: [B, Q, L, 2].   scale: the same, or [L, 2] for all queries. All are on the processor; computed in fp32.

    Raises InputError for shapes that do not fit together.
    """
    numbers = (*base.shape[:2], 3 * num_heads * base.shape[2] * num_points)
    if projected.shape != numbers or scale.shape not in (base.shape, base.shape[2:]):
        raise InputError(
            f"sampling points: projected {list(projected.shape)} and scale {list(scale.shape)} do not fit base {list(base.shape)}, "
            f"which with {num_heads} heads of {num_points} points wants {list(numbers)}, and {list(base.shape)} or {list(base.shape[2:])}"
        )
    projected, base, scale = (x.float().contiguous() for x in (projected, base, scale))
    return _Points.apply(projected, base, scale, num_heads, num_points)


class _Points(torch.autograd.Function):
    @staticmethod
    def forward(ctx, projected: Tensor, base: Tensor, scale: Tensor, num_heads: int, num_points: int):
        sizes = (*base.shape[:2], num_heads, base.shape[2], num_points)
        locations, weights = projected.new_empty(*sizes, 2), projected.new_empty(sizes)
        _call("forward", scale, sizes, projected=projected, base=base, locations=locations, weights=weights)
        ctx.save_for_backward(scale, weights)
        return locations, weights

    @staticmethod
    def backward(ctx, grad_locations: Tensor, grad_weights: Tensor):
        scale, weights = ctx.saved_tensors
        if again(grad_locations) or again(grad_weights):
            return _gradient(scale, weights, grad_locations, grad_weights), None, None, None, None
        given = {"grad_locations": grad_locations.contiguous(), "grad_weights": grad_weights.contiguous()}
        gradient = weights.new_empty(*weights.shape[:2], 3 * weights.shape[2:].numel())
        _call("backward", scale, weights.shape, weights=weights, grad_projected=gradient, **given)
        return gradient, None, None, None, None


def _gradient(scale: Tensor, weights: Tensor, grad_locations: Tensor, grad_weights: Tensor) -> Tensor:
    """The gradient of what is projected, in PyTorch's own operators."""
    grad_offsets = grad_locations * (scale[:, :, None, :, None] if scale.dim() == 4 else scale[:, None])
    share = weights * grad_weights
    grad_logits = share - weights * share.sum((-2, -1), keepdim=True)
    return torch.cat([x.reshape(*x.shape[:2], -1) for x in (grad_offsets, grad_logits)], dim=-1)


def _call(direction: str, scale: Tensor, sizes: tuple[int, ...], **tensors: Tensor) -> None:
    batch, queries, heads, levels, points = sizes
    problem = _Problem(
        rows=batch * queries,
        heads=heads,
        levels=levels,
        points=points,
        scales=1 if scale.dim() == 2 else batch * queries,
        scale=scale.data_ptr(),
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
    )
    function = getattr(cpu.load(), f"msdetr_points_{direction}")
    if function(ctypes.byref(problem), torch.get_num_threads()):
        raise OperatorError("sampling points: out of memory")
