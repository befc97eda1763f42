"""What PyTorch can ask of an operator besides running and one backward: a right answer or an error, never zeros."""

from __future__ import annotations

import pytest
import torch
from operator_inputs import Inputs
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

import msdetr.ops
from msdetr.errors import OperatorError
from msdetr.ops import ms_deform_attn

pytestmark = pytest.mark.fault("F106")
_SHAPES = [(5, 4), (3, 2)]


def operator(value, locations, weights):
    return ms_deform_attn(value, _SHAPES, locations, weights)


def registered(value, locations, weights):
    return torch.ops.msdetr.ms_deform_attn(value, [5, 4, 3, 2], locations, weights)


def _tensors(device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs = Inputs.random(queries=2).to(device)
    return inputs.value, inputs.locations, inputs.weights


def _dual(function, tensors, **kwargs):
    with forward_ad.dual_level():
        first = forward_ad.make_dual(tensors[0].detach().requires_grad_(**kwargs), torch.ones_like(tensors[0]))
        return forward_ad.unpack_dual(function(first, *tensors[1:])).tangent


def _dual_through_autograd(function, tensors):
    leaves = [x.detach().requires_grad_() for x in tensors]
    with forward_ad.dual_level():
        output = function(*leaves)
        gradient = forward_ad.make_dual(torch.ones_like(output), torch.ones_like(output))
        return forward_ad.unpack_dual(torch.autograd.grad(output, leaves[0], gradient)[0]).tangent


def _grad_of_grad(function, tensors):
    leaves = [x.detach().requires_grad_() for x in tensors]
    first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)


def _ones(tensors):
    return tuple(torch.ones_like(x) for x in tensors)


FORWARD_MODE = {
    "dual numbers": lambda f, x: _dual(f, x, requires_grad=False),
    "dual numbers that require grad": lambda f, x: _dual(f, x, requires_grad=True),
    "dual gradients": _dual_through_autograd,
    "jvp": lambda f, x: jvp(f, x, _ones(x)),
    "jvp of a vmap": lambda f, x: jvp(lambda y: vmap(lambda z: f(z, *x[1:]))(y[None]), x[:1], _ones(x[:1])),
    "jacfwd of value": lambda f, x: jacfwd(lambda value: f(value, *x[1:]).sum())(x[0]),
    "jacfwd of locations": lambda f, x: jacfwd(lambda locations: f(x[0], locations, x[2]).sum())(x[1]),
    "linearize": lambda f, x: linearize(f, *x)[1](*_ones(x)),
}
REVERSE_MODE_AGAIN = {
    "grad of grad": _grad_of_grad,
    "torch.func.grad": lambda f, x: grad(lambda value: f(value, *x[1:]).sum())(x[0]),
    "vjp": lambda f, x: vjp(f, *x)[1](torch.ones_like(f(*x))),
    "jacrev": lambda f, x: jacrev(lambda weights: f(x[0], x[1], weights).sum((1, 2)))(x[2]),
    "hessian": lambda f, x: hessian(lambda weights: f(x[0], x[1], weights).square().sum())(x[2]),
    "vmap of grad": lambda f, x: vmap(grad(lambda value: f(value, *x[1:]).sum()))(x[0][None]),
    "torch.autograd.functional.jvp": lambda f, x: torch.autograd.functional.jvp(f, x, _ones(x)),
}


@pytest.mark.parametrize("function", [operator, registered])
@pytest.mark.parametrize("transform", FORWARD_MODE)
def test_forward_mode_is_an_error(transform, function, device):
    with pytest.raises((OperatorError, NotImplementedError), match="(?i)forward.*(AD|differentiation)"):
        FORWARD_MODE[transform](function, _tensors(device))


@pytest.mark.parametrize("function", [operator, registered])
@pytest.mark.parametrize("transform", REVERSE_MODE_AGAIN)
def test_more_than_one_backward_is_an_error_outside_plain(transform, function, device):
    def call():
        return REVERSE_MODE_AGAIN[transform](function, _tensors(device))

    if function is operator and msdetr.ops.backends.asked() == "plain":
        call()  # its results: below
    else:
        with pytest.raises(OperatorError, match=r'with msdetr.ops.backend\("plain"\)'):
            call()


def test_plain_pytorch_differentiates_twice():
    value, locations, weights = (x.requires_grad_() for x in _tensors("cpu"))
    with msdetr.ops.backend("plain"):
        assert torch.autograd.gradgradcheck(operator, (value, locations * 0.9 + 0.013, weights), fast_mode=True)
        func = grad(lambda value: operator(value, locations, weights).square().sum())(value)
    (once,) = torch.autograd.grad(operator(value, locations, weights).square().sum(), value)
    torch.testing.assert_close(func, once)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("function", [operator, registered])
def test_vmap(function, device):
    tensors = _tensors(device)
    stacked = [torch.stack([x, 0.5 * x]) for x in tensors]
    expected = torch.stack([function(*tensors), function(*(0.5 * x for x in tensors))])
    torch.testing.assert_close(vmap(function)(*stacked), expected)
    shared = vmap(function, in_dims=(0, None, None))(stacked[0], *tensors[1:])
    torch.testing.assert_close(shared[0], expected[0])


@pytest.mark.parametrize("function", [operator, registered])
def test_gradients_of_what_comes_after_the_operator(function, device):
    """A transform that does not differentiate the operator has nothing to object to."""
    output = function(*_tensors(device))
    actual = grad(lambda scale: (scale * function(*_tensors(device))).sum())(torch.tensor(2.0, dtype=output.dtype))
    torch.testing.assert_close(actual.cpu(), output.sum().cpu())


def test_batched_gradients(device):
    inputs = Inputs.random().to(device)
    value = inputs.value.clone().requires_grad_()
    output = ms_deform_attn(value, inputs.shapes, inputs.locations, inputs.weights)
    gradients = torch.stack([inputs.grad_output, 2 * inputs.grad_output])
    (batched,) = torch.autograd.grad(output, value, gradients, is_grads_batched=True, retain_graph=True)
    (single,) = torch.autograd.grad(output, value, inputs.grad_output)
    torch.testing.assert_close(batched, torch.stack([single, 2 * single]))
