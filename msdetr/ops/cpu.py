"""The native CPU backend: the library that the installation built from csrc/, called through its C interface.

Threads are those of PyTorch: their number follows ``torch.get_num_threads()``, and where PyTorch uses OpenMP the work
runs on the very threads it has (through its ``GOMP_parallel``), so there is no second runtime in the process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import OperatorError

LIBRARY = Path(__file__).with_name("libms_deform_attn.so")
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
_SEAL = b"msdetr library, SHA-256 of what is before: "  # SEAL of setup.py: with the digest, the end of the file
_INTERFACE = 1  # MSDETR_INTERFACE of csrc/ms_deform_attn.h
_DTYPES = {torch.float32: 0, torch.float64: 1}
_ERRORS = {
    1: "out of memory",
    2: "more than 2^31 tokens, or too many points per query",
}


class _Problem(ctypes.Structure):
    """``MsdetrDeformAttn`` of csrc/ms_deform_attn.h."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("value", "locations", "weights")]
        + [("shapes", ctypes.POINTER(ctypes.c_int64))]
        + [(n, ctypes.c_int64) for n in ("batch", "tokens", "heads", "channels", "queries", "levels", "points")]
        + [(n, ctypes.c_void_p) for n in ("output", "grad_output", "grad_value", "grad_locations", "grad_weights")]
    )


@functools.cache
def load() -> ctypes.CDLL:
    """The library; raises OSError where it is missing, damaged, for another machine or of another version."""
    try:
        library = _open(_verified(LIBRARY))
    except OSError as error:
        raise OSError(f"{LIBRARY} cannot be loaded: {error}") from None
    try:
        if (version := library.msdetr_interface_version()) != _INTERFACE:
            raise OSError(f"{LIBRARY} has interface {version}, this package wants {_INTERFACE}")
        for call in (library.msdetr_deform_attn_forward, library.msdetr_deform_attn_backward):
            call.argtypes = (ctypes.POINTER(_Problem), ctypes.c_int, ctypes.c_int)
        library.msdetr_set_parallel.argtypes = (ctypes.c_void_p,)
        library.msdetr_set_parallel.restype = None
        library.msdetr_best_instruction_set, library.msdetr_set_instruction_set  # noqa: B018 (that they exist)
    except AttributeError as error:
        raise OSError(f"{LIBRARY} is another library: {error}") from None
    try:  # the OpenMP runtime that PyTorch has loaded, if it is one with this entry
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        parallel = None
    library.msdetr_set_parallel(ctypes.cast(parallel, ctypes.c_void_p) if parallel else None)
    return library


def _verified(path: Path) -> bytes:
    """The library without its seal; raises OSError where it is not what the build wrote."""
    if not path.is_file():
        raise OSError("there is no such file")
    content = path.read_bytes()
    end = len(content) - hashlib.sha256().digest_size
    library, seal, digest = content[: max(0, end - len(_SEAL))], content[max(0, end - len(_SEAL)) : end], content[end:]
    if seal != _SEAL:
        raise OSError(f"it is incomplete ({len(content)} bytes) or was not built by this version of the package")
    if hashlib.sha256(library).digest() != digest:
        raise OSError("it is damaged, its SHA-256 is not the one it was built with")
    return library


def _open(library: bytes) -> ctypes.CDLL:
    """Loads a copy that nobody else can reach: a file that is truncated or overwritten while its code is mapped would
    end the process."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        # Never closed: the loader takes two files of one name for the same library, so the number must stay ours.
        descriptor = os.memfd_create(LIBRARY.name)
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(library)
        return ctypes.CDLL(f"/proc/self/./fd/{descriptor}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LIBRARY.name
        path.write_bytes(library)
        return ctypes.CDLL(str(path))


@functools.cache
def failure() -> str | None:
    """Why there is no library, or None where there is one."""
    try:
        load()
    except OSError as error:
        return str(error)
    return None


def available() -> bool:
    return failure() is None


def instruction_set() -> str:
    """The widest instruction set that library and processor share."""
    return INSTRUCTION_SETS[load().msdetr_best_instruction_set()]


def forward(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """[B, Q, M * D] in value's dtype."""
    value_, locations_, weights_ = (_wide(x, value.dtype) for x in (value, locations, weights))
    output = value_.new_empty(locations.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    if output.numel():
        problem = _problem(value_, shapes, locations_, weights_)
        problem.output = output.data_ptr()
        _call("msdetr_deform_attn_forward", problem, value_.dtype)
    return output.to(value.dtype)


def backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    need_value: bool,
    need_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each empty where it is not needed (points: the latter two)."""
    grad_output_, value_, locations_, weights_ = (
        _wide(x, value.dtype) for x in (grad_output, value, locations, weights)
    )
    grad_value, grad_locations, grad_weights = (
        torch.empty_like(x) if needed else x.new_empty(0)
        for x, needed in ((value_, need_value), (locations_, need_points), (weights_, need_points))
    )
    if grad_output.numel() == 0:
        grad_value.zero_()
    elif need_value or need_points:
        problem = _problem(value_, shapes, locations_, weights_)
        problem.grad_output = grad_output_.data_ptr()
        problem.grad_value = grad_value.data_ptr() if need_value else None
        problem.grad_locations = grad_locations.data_ptr() if need_points else None
        problem.grad_weights = grad_weights.data_ptr() if need_points else None
        _call("msdetr_deform_attn_backward", problem, value_.dtype)
    return grad_value.to(value.dtype), grad_locations.to(locations.dtype), grad_weights.to(weights.dtype)


def _wide(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous and in fp32, or fp64 where value is."""
    return tensor.to(torch.promote_types(dtype, torch.float32)).contiguous()


def _problem(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> _Problem:
    flat = [size for shape in shapes for size in shape]
    _, queries, _, levels, points = weights.shape
    return _Problem(
        value=value.data_ptr(),
        locations=locations.data_ptr(),
        weights=weights.data_ptr(),
        shapes=(ctypes.c_int64 * len(flat))(*flat),
        **dict(zip(("batch", "tokens", "heads", "channels"), value.shape, strict=True)),
        queries=queries,
        levels=levels,
        points=points,
    )


def _call(name: str, problem: _Problem, dtype: torch.dtype) -> None:
    if error := getattr(load(), name)(ctypes.byref(problem), _DTYPES[dtype], torch.get_num_threads()):
        raise OperatorError(f"{name} failed: {_ERRORS.get(error, f'error {error}')}")
