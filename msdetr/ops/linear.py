"""Linear layers on a processor, with oneDNN's matrix products where these are the faster ones.

PyTorch multiplies fp32 matrices with MKL, which leaves half of the vector width of AMD's processors with AVX-512 unused; its
own oneDNN does not, and applies a ReLU on the way. On Intel's processors MKL is the faster one. Under bf16 autocast it is oneDNN
on both, in bf16, where the processor has instructions for it. Everything else (other types and devices, exported graphs,
transforms of ``torch.func``, the backend "plain") is PyTorch's own ``linear``, which says what is computed.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

from . import backends


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """x [..., I], weight [O, I], bias [O] -> [..., O]; relu: negative outputs become 0."""
    if x.dim() > 1 and x.shape[-1] == weight.shape[1] and takes(x, weight):
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                x, weight, bias = (t if t is None else t.bfloat16() for t in (x, weight, bias))
                return _Linear.apply(x.contiguous(), weight, bias, relu)
        if slow_mkl():
            return _Linear.apply(x.contiguous(), weight, bias, relu)
    if not relu or x.dim() == 1:
        output = F.linear(x, weight, bias)
        return F.relu(output) if relu else output
    # In place, which the product of two matrices allows: that of more dimensions is a view of it.
    return F.linear(x.flatten(0, -2), weight, bias).relu_().unflatten(0, x.shape[:-1])


def takes(*tensors: Tensor) -> bool:
    """Whether the fast paths for processors can be used on these tensors, here and now: in fp32, or under autocast in bf16."""
    if torch.compiler.is_compiling():  # first, as what follows cannot be compiled
        return False
    types: tuple[torch.dtype, ...] = (torch.float32,)
    if torch.is_autocast_enabled("cpu"):
        types = (torch.float32, torch.bfloat16)
        if torch.get_autocast_dtype("cpu") != torch.bfloat16 or not multiplies_bf16():
            return False
    return (
        all(x.dtype in types and x.device.type == "cpu" and x.numel() > 0 for x in tensors)
        and available()
        and backends.asked() in ("auto", "native")
        and not torch.onnx.is_in_onnx_export()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


@functools.cache
def slow_mkl() -> bool:
    """Whether this is one of AMD's processors."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@functools.cache
def available() -> bool:
    """Whether there is a oneDNN for the processor's widest vectors."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@functools.cache
def multiplies_bf16() -> bool:
    """Whether the processor has instructions for products in bf16, and PyTorch tells so."""
    return getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)


class _Linear(torch.autograd.Function):
    """Of a contiguous x: a copy made in here would have no graph of its own for second derivatives."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        output = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
        ctx.save_for_backward(x, weight, output if relu else None)
        return output

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, output = ctx.saved_tensors
        if output is not None:
            grad = torch.ops.aten.threshold_backward(grad, output, 0)
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        shape = x.shape
        x, grad = x.reshape(-1, shape[-1]), grad.reshape(-1, grad.shape[-1])
        return (
            times(grad, weight).view(*shape) if need_x else None,
            transposed_times(grad, x) if need_weight else None,
            grad.sum(0) if need_bias else None,
            None,
        )


def again(grad: Tensor) -> bool:
    """Whether a backward pass is itself differentiated, or is that of many gradients at once: PyTorch's own operators then
    compute it."""
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or is_legacy_batchedtensor(grad)


def times(a: Tensor, b: Tensor) -> Tensor:
    """a [N, I], b [I, O] -> a b."""
    if again(a):
        return a @ b
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


def transposed_times(a: Tensor, b: Tensor) -> Tensor:
    """a [N, O], b [N, I] -> a^T b. oneDNN wants the rows of its first factor in one piece: the narrower is copied."""
    if again(a):
        return a.t() @ b
    if a.shape[1] <= b.shape[1]:
        return torch.ops.mkldnn._linear_pointwise(a.t(), b.t(), None, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise(b.t(), a.t(), None, "none", [], "").t()
