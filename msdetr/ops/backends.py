"""Which backend runs the operator, and why: by the device of the tensors, what is installed, and what is asked for."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch

from .. import environment
from ..errors import ConfigError, OperatorError, OperatorWarning
from . import cpu, cuda, gather, plain

Choice = Literal["auto", "native", "plain", "gather"]
CHOICES: tuple[Choice, ...] = ("auto", "native", "plain", "gather")
VARIABLE = "MSDETR_OPS_BACKEND"

_NATIVE = {"cpu": cpu, "cuda": cuda}
_COMPOSED = {"plain": plain, "gather": gather}  # of PyTorch's own operators; differentiable and exportable as they are

_chosen: str = environment.text(VARIABLE) or "auto"


@contextlib.contextmanager
def backend(choice: Choice) -> Iterator[None]:
    """Within the ``with`` block, every call uses ``choice``: "native" (an error where there is none), "plain", "auto",
    or "gather" (as "plain" without ``grid_sample``, for exported graphs).

    Holds for all threads of the process. The environment variable ``MSDETR_OPS_BACKEND`` sets the default.
    """
    global _chosen
    if choice not in CHOICES:
        raise ConfigError(f"there is no backend {choice!r}; choose one of {', '.join(CHOICES)}")
    before, _chosen = _chosen, choice
    try:
        yield
    finally:
        _chosen = before


def asked() -> Choice:
    """What is asked for: by ``backend``, else by the environment, else "auto"."""
    if _chosen not in CHOICES:
        raise ConfigError(f"{VARIABLE} is {_chosen!r}; it must be one of {', '.join(CHOICES)}")
    return _chosen


def composed() -> ModuleType | None:
    """The backend made of PyTorch's own operators that is asked for, if one is."""
    return _COMPOSED.get(asked())


def native(device_type: str) -> ModuleType | None:
    """The native backend of a kind of device, if there is one and it can run here."""
    module = _NATIVE.get(device_type)
    return module if module is not None and module.available() else None


def select(device: torch.device) -> ModuleType:
    """The module whose ``forward`` and ``backward`` run on tensors of ``device``."""
    if composed():
        return plain
    module = native(device.type)
    if module is None and asked() == "native":
        raise OperatorError(f"there is no native backend for {device.type}: {_shortfall(device.type)[0]}")
    if module is None and device.type in _NATIVE:
        _warn_of_plain(device.type)
    return module or plain


@functools.cache
def _warn_of_plain(device_type: str) -> None:
    """Says once per process that the slow backend runs, and what would make it fast."""
    reason, advice = _shortfall(device_type)
    warnings.warn(
        f"deformable attention on {device_type} runs in plain PyTorch, an order of magnitude slower: {reason}; {advice}. "
        f"With {VARIABLE}=plain this is taken as intended",
        OperatorWarning,
        stacklevel=3,
    )


def _shortfall(device_type: str) -> tuple[str, str]:
    """Why a kind of device has no native backend, and what would give it one."""
    if device_type == "cpu":
        return (
            f"there is no compiled library: {cpu.failure()}",
            "install a C++ compiler (g++ or clang++) and install the package again",
        )
    if device_type == "cuda":
        return cuda.failure() or "", cuda.advice()
    return f"the kernels are for {' and '.join(_NATIVE)}", f'use "auto" or "plain" on {device_type}'


@dataclass(frozen=True)
class Description:
    """What runs the operator on one kind of device: ``backend`` ("native" or "plain"), why, and what would be faster."""

    device: str
    backend: str
    reason: str
    advice: str = ""


def describe() -> list[Description]:
    """One entry for the CPU and one for CUDA; compiles and launches nothing."""
    return [_describe_cpu(), _describe_cuda()]


def _describe_cpu() -> Description:
    if composed():
        return Description("cpu", asked(), f'"{asked()}" is asked for, by {VARIABLE} or msdetr.ops.backend')
    if not cpu.available():
        return Description("cpu", "plain", *_shortfall("cpu"))
    best = cpu.instruction_set()
    threads = torch.get_num_threads()
    return Description(
        "cpu",
        "native",
        f"compiled library with {best} instructions, {threads} thread{'s' * (threads > 1)} as PyTorch",
        "" if best == "avx512" else f"a processor with wider vectors than {best}, or a GPU",
    )


def _describe_cuda() -> Description:
    if not torch.cuda.is_available():
        return Description("cuda", "none", "PyTorch sees no CUDA device")
    if composed():
        return Description("cuda", asked(), f'"{asked()}" is asked for, by {VARIABLE} or msdetr.ops.backend')
    if not cuda.available():
        return Description("cuda", "plain", *_shortfall("cuda"))
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    folder = cuda.cache_folder()
    kept = (
        "no cache, as there is no home directory: MSDETR_CACHE names another place"
        if folder is None
        else f"cache: {folder}"
    )
    return Description("cuda", "native", f"compiled by NVRTC at first use for {names}; {kept}")
