"""The operator as PyTorch knows it, ``torch.ops.msdetr.ms_deform_attn``: schema, fake kernel, autograd, autocast.

Spatial shapes are flat here, [H0, W0, H1, W1, …], as a schema has no pairs.

The operator can be differentiated once, in reverse; ``torch.vmap`` runs it sample by sample. Whatever else is asked of
its derivatives (forward mode, double backward, the transforms of ``torch.func``) raises an ``OperatorError``. That is why the
autograd kernels are written out here: those of ``torch.library.register_autograd`` drop a forward-mode tangent in silence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import InputError, OperatorError
from . import backends
from .functional import autocast, check

_library = torch.library.Library("msdetr", "DEF")
_library.define(
    "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights, bool need_value, bool need_points) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _pairs(spatial_shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))


# -------------------------------------------------------------------------------------------------------------- kernels


def _forward(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    shapes = _pairs(spatial_shapes)
    check(value, shapes, sampling_locations, attention_weights)
    return backends.select(value.device).forward(value, shapes, sampling_locations, attention_weights).contiguous()


def _backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    need_value: bool,
    need_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each empty where it is not needed (points: the latter two)."""
    shapes = _pairs(spatial_shapes)
    check(value, shapes, sampling_locations, attention_weights)
    expected = (value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])
    if grad_output.shape != expected:
        raise InputError(f"grad_output is {list(grad_output.shape)}, expected {list(expected)}")
    gradients = backends.select(value.device).backward(
        grad_output, value, shapes, sampling_locations, attention_weights, need_value, need_points
    )
    return tuple(gradient.contiguous() for gradient in gradients)


_library.impl("ms_deform_attn", _forward, "CompositeExplicitAutograd")
_library.impl("ms_deform_attn_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("msdetr::ms_deform_attn", lib=_library)
def _(value, spatial_shapes, sampling_locations, attention_weights):
    check(value, _pairs(spatial_shapes), sampling_locations, attention_weights)
    return value.new_empty(value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake("msdetr::ms_deform_attn_backward", lib=_library)
def _(grad_output, value, spatial_shapes, sampling_locations, attention_weights, need_value, need_points):
    def gradient(tensor: Tensor, needed: bool) -> Tensor:
        return tensor.new_empty(tensor.shape) if needed else tensor.new_empty(0)

    return (
        gradient(value, need_value),
        gradient(sampling_locations, need_points),
        gradient(attention_weights, need_points),
    )


# ------------------------------------------------------------------------------------------------------------- autograd


def _unsupported(what: str) -> OperatorError:
    return OperatorError(
        f"ms_deform_attn does not support {what}: it can be differentiated once, in reverse. Within `with "
        'msdetr.ops.backend("plain"):` it is made of PyTorch\'s own operators, which also differentiate twice in reverse '
        "and take torch.func.grad, vjp, jacrev and hessian; forward mode works nowhere (torch.autograd.functional.jvp "
        "does without it)"
    )


def _is_differentiated(tensors: Sequence[Tensor]) -> bool:
    """Whether reverse mode asks for a gradient; raises for what is not supported."""
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise _unsupported("forward-mode differentiation (jvp, jacfwd, hessian, dual numbers)")
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in tensors):
        return False
    if torch._C._are_functorch_transforms_active():
        raise _unsupported("the transforms of torch.func that differentiate (grad, vjp, jacrev, hessian)")
    return True


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, spatial_shapes, sampling_locations, attention_weights):
        ctx.spatial_shapes = spatial_shapes
        ctx.save_for_backward(value, sampling_locations, attention_weights)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.msdetr.ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
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


class _DifferentiableOnce(torch.autograd.Function):
    """The gradients as functions of what they were computed from, with derivatives that raise."""

    @staticmethod
    def forward(ctx, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.msdetr.ms_deform_attn_backward(*arguments)

    @staticmethod
    def backward(ctx, *gradients):
        raise _unsupported("double backward")


def _autograd(value, spatial_shapes, sampling_locations, attention_weights):
    arguments = (value, spatial_shapes, sampling_locations, attention_weights)
    if _is_differentiated((value, sampling_locations, attention_weights)):
        return _Differentiable.apply(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.msdetr.ms_deform_attn(*arguments)


def _backward_autograd(*arguments):
    if _is_differentiated([x for x in arguments if isinstance(x, Tensor)]):
        return _DifferentiableOnce.apply(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.msdetr.ms_deform_attn_backward(*arguments)


_library.impl("ms_deform_attn", _autograd, "Autograd")
_library.impl("ms_deform_attn_backward", _backward_autograd, "Autograd")


# ------------------------------------------------------------------------------------------------------------- autocast


def _autocast_rule(device_type: str):
    def rule(value, spatial_shapes, sampling_locations, attention_weights):
        tensors = autocast(value, sampling_locations, attention_weights)
        with torch.autocast(device_type, enabled=False):
            return torch.ops.msdetr.ms_deform_attn(tensors[0], spatial_shapes, *tensors[1:])

    return rule


_library.impl("ms_deform_attn", _autocast_rule("cpu"), "AutocastCPU")
_library.impl("ms_deform_attn", _autocast_rule("cuda"), "AutocastCUDA")
