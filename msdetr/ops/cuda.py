"""The native CUDA backend: csrc/ms_deform_attn.cu, compiled by NVRTC at its first use for the case at hand.

Each combination of types, heads, channels, levels and points has kernels of its own, kept in a cache on disk
(``MSDETR_CACHE``, else the user's cache directory). Neither nvcc nor a CUDA toolkit is needed: ``cuda.core`` brings
launching and compiling, PyTorch's own wheels bring NVRTC. Kernels run on PyTorch's current stream.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import environment
from ..errors import ConfigError, InputError
from . import gather

_TYPES = {torch.float32: "float", torch.float64: "double", torch.float16: "Half", torch.bfloat16: "Bfloat"}
_LANES = 32


@dataclass(frozen=True)
class Case:
    """What a kernel is compiled for: the backward for some gradients, or, for none, the forward.

    wide_index: a tensor has 2^31 elements or more. tile_width: 0, or, where query i is token i, the width of the tiles of
    a level that blocks take.
    """

    value: torch.dtype
    geometry: torch.dtype
    heads: int
    channels: int
    levels: int
    points: int
    warps: int = 8
    wide_index: bool = False
    need_value: bool = False
    need_points: bool = False
    tile_width: int = 0

    @property
    def kernel(self) -> str:
        """The name of the kernel."""
        return "backward" if self.need_value or self.need_points else "forward"

    @property
    def real(self) -> torch.dtype:
        """What is computed and accumulated in."""
        return torch.promote_types(self.value, torch.float32)

    @property
    def pack(self) -> int:
        """Channels of one lane: 16 bytes of value; in the backward of ``real``, for its additions are the slowest part."""
        pack = 16 // (self.value if self.kernel == "forward" else self.real).itemsize
        while self.channels % pack:
            pack //= 2
        return pack

    @property
    def team(self) -> int:
        """Lanes that serve one query."""
        return min(_LANES, 1 << (self.channels // self.pack - 1).bit_length())

    @property
    def queries_per_block(self) -> int:
        return self.warps * _LANES // self.team

    @property
    def pooled(self) -> bool:
        """Whether a block sums up its pixels' gradients before it adds them: in tiles, whose queries share pixels."""
        return self.need_value and self.tile_width > 0 and self.real == torch.float32

    def blocks(self, batch: int, queries: int, shapes: Sequence[tuple[int, int]]) -> int:
        """How many blocks a launch has."""
        tiles = -(-queries // self.queries_per_block)
        if self.tile_width:
            rows = self.queries_per_block // self.tile_width
            tiles = sum(-(-height // rows) * -(-width // self.tile_width) for height, width in shapes)
        return tiles * self.heads * batch

    def source(self, kernels: str | None = None) -> str:
        """The CUDA C++ source, by default csrc/ms_deform_attn.cu, as one file with everything defined that it asks for."""
        sizes = [f"{axis}{level}" for level in range(self.levels) for axis in "hw"]
        definitions = {
            "VALUE": _TYPES[self.value],
            "GEOMETRY": _TYPES[self.geometry],
            "REAL": _TYPES[self.real],
            "INDEX": "long long" if self.wide_index else "int",
            "HEADS": self.heads,
            "CHANNELS": self.channels,
            "LEVELS": self.levels,
            "POINTS": self.points,
            "WARPS": self.warps,
            "PACK": self.pack,
            "POOLED": int(self.pooled),
            "LEVEL_PARAMETERS": ", ".join(f"int {size}" for size in sizes),
            "LEVEL_SIZES": ", ".join(sizes),
            "NEED_VALUE": int(self.need_value),
            "NEED_POINTS": int(self.need_points),
            "TILE_WIDTH": self.tile_width,
        }
        folder = sources()
        kernels = kernels or (folder / "ms_deform_attn.cu").read_text()
        kernels = kernels.replace('#include "sampling.h"', (folder / "sampling.h").read_text())
        return "\n".join(f"#define {name} {text}" for name, text in definitions.items()) + "\n" + kernels


def sources() -> Path:
    """The folder of the CUDA sources: in an installed package beside this file, in a checkout csrc/."""
    installed = Path(__file__).with_name("csrc")
    return installed if installed.exists() else Path(__file__).parents[2] / "csrc"


def compile_case(case: Case, arch: str, cache: Any = None, logs: StringIO | None = None):
    """Compiles for an architecture such as "sm_90", no GPU needed: ``cuda.core.ObjectCode`` with a cubin."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        name="ms_deform_attn",
        arch=arch,
        std="c++17",
        device_as_default_execution_space=True,
        diag_suppress=177,  # each case leaves some of the conversions unused
        ptxas_options=["-v"],
    )
    return Program(case.source(), "c++", options).compile("cubin", logs=logs, cache=cache)


def resources(case: Case, arch: str) -> dict[str, dict[str, int]]:
    """Registers, bytes of shared memory and bytes spilled of the kernel of a case, as the assembler reports them."""
    logs = StringIO()
    compile_case(case, arch, logs=logs)
    report: dict[str, dict[str, int]] = {}
    kernel = None
    for line in logs.getvalue().splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = report.setdefault(found[1], {"registers": 0, "shared": 0, "spilled": 0})
        if kernel is not None:
            for name, pattern in (
                ("registers", r"Used (\d+) registers"),
                ("shared", r"(\d+) bytes smem"),
                ("spilled", r"(\d+) bytes spill stores"),
            ):
                if found := re.search(pattern, line):
                    kernel[name] = int(found[1])
    return report


_NEEDED = {
    "cuda.core": ("Device", "LaunchConfig", "Program", "ProgramOptions", "Stream", "launch"),
    "cuda.core.utils": ("FileStreamProgramCache",),
    "cuda.bindings.nvrtc": ("nvrtcVersion",),
}


@functools.cache
def failure() -> str | None:
    """Why there is no CUDA backend on this machine, or None where there is one."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if torch.version.hip:
        return "the kernels are CUDA C++, this PyTorch is built for ROCm"
    try:
        for name, needed in _NEEDED.items():
            module = importlib.import_module(name)
            if missing := [attribute for attribute in needed if not hasattr(module, attribute)]:
                version = importlib.metadata.version("cuda-core")
                return f"cuda-core {version} is too old, {name} has no {' and no '.join(missing)}"
        importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except Exception as error:  # noqa: BLE001 (missing modules, CUDA libraries that do not load: many kinds of errors)
        return f"cuda.core or NVRTC cannot be used ({type(error).__name__}: {error})"
    return None


def advice() -> str:
    """What installs a cuda.core that fits this PyTorch: its wheels for CUDA 12 do not bring the bindings."""
    toolkit = (torch.version.cuda or "13").split(".")[0]
    return f'pip install -U "cuda-core[cu{toolkit}]>=1.2" brings the native kernels'


def available() -> bool:
    return failure() is None


@functools.cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept; None where no place is named and the user has no home. Raises ConfigError where
    MSDETR_CACHE cannot be a folder."""
    if chosen := environment.text("MSDETR_CACHE"):
        if any(place.exists() and not place.is_dir() for place in (Path(chosen), *Path(chosen).absolute().parents)):
            raise ConfigError(f"MSDETR_CACHE is {chosen!r}, which cannot be a folder; name one, or leave it out")
        return Path(chosen) / "kernels"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msdetr" / "kernels"
    except RuntimeError:  # HOME is not set, and the user is not in the password database
        return None


@functools.cache
def _disk_cache():
    from cuda.core.utils import FileStreamProgramCache

    folder = cache_folder()
    try:
        return None if folder is None else FileStreamProgramCache(folder)
    except OSError:  # a read-only home: every process compiles for itself
        return None


@functools.cache
def _kernel(case: Case, major: int, minor: int):
    return compile_case(case, f"sm_{major}{minor}", cache=_disk_cache()).get_kernel(case.kernel)


def current_stream():
    """PyTorch's current stream on the current device, as cuda.core wants it."""
    from cuda.core import Stream

    return Stream.from_handle(torch.cuda.current_stream().cuda_stream)


@dataclass(frozen=True)
class _Kind:
    """What a call is planned by: type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Kind:
        return cls(tensor.dtype, tuple(tensor.shape))


def case_of(
    value: Tensor | _Kind, locations: Tensor | _Kind, need_value: bool = False, need_points: bool = False
) -> Case:
    """The case of a call, with the size of its blocks."""
    _, tokens, heads, channels = value.shape
    batch, queries, _, levels, points, _ = locations.shape
    teams = batch * queries * heads
    case = Case(
        value=value.dtype,
        geometry=locations.dtype,
        heads=heads,
        channels=channels,
        levels=levels,
        points=points,
        wide_index=max(math.prod(value.shape), math.prod(locations.shape), teams * channels) >= 2**31,
        need_value=need_value,
        need_points=need_points,
    )
    # Large calls in blocks of 32 queries, which share pixels; small ones in smaller blocks, for every multiprocessor.
    case = replace(case, warps=max(1, min(8, case.team) // (1 if teams >= 1 << 15 else 2)))
    # As many queries as tokens are an encoder's: a tile of a level reads fewer pixels than as many queries of a row.
    return replace(case, tile_width=8 if queries == tokens and case.queries_per_block == 32 else 0)


@functools.lru_cache(1024)
def _plan(
    value: _Kind, locations: _Kind, shapes: Sequence[tuple[int, int]], need_value: bool, need_points: bool
) -> tuple:
    """Case, launch configuration and numbers of all calls with such tensors: what a call costs the host is mostly this."""
    from cuda.core import LaunchConfig

    case = case_of(value, locations, need_value, need_points)
    batch, queries = locations.shape[:2]
    blocks = case.blocks(batch, queries, shapes)
    if blocks >= 2**31:
        raise InputError(f"{batch} images of {queries} queries are too many for one launch; split the batch")
    numbers = (value.shape[1], queries, *(size for shape in shapes for size in shape))
    return case, LaunchConfig(grid=blocks, block=case.warps * _LANES), tuple(np.int32(number) for number in numbers)


def _launch(
    tensors: Sequence[Tensor],
    value: Tensor,
    locations: Tensor,
    shapes,
    need_value: bool = False,
    need_points: bool = False,
) -> None:
    from cuda.core import Device, launch

    case, config, numbers = _plan(_Kind.of(value), _Kind.of(locations), tuple(shapes), need_value, need_points)
    with torch.cuda.device(value.device):
        Device(value.device.index).set_current()
        kernel = _kernel(case, *torch.cuda.get_device_capability())
        launch(current_stream(), config, kernel, *(tensor.data_ptr() for tensor in tensors), *numbers)


def _ready(tensor: Tensor) -> Tensor:
    """Contiguous, and starting at a multiple of 16 bytes, as the loads want it."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def forward(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """[B, Q, M * D] in value's dtype."""
    value, locations, weights = (_ready(x) for x in (value, locations, weights))
    output = value.new_empty(locations.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    if output.numel():
        _launch((value, locations, weights, output), value, locations, shapes)
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    need_value: bool,
    need_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each empty where it is not needed (points: the latter two).

    The gradient of value is summed up atomically, in an order that differs from run to run, unless
    ``torch.use_deterministic_algorithms`` asks for the same one: then by ``gather.value_gradient``, which is slow.
    """
    if need_value and torch.are_deterministic_algorithms_enabled():
        grad_value = gather.value_gradient(grad_output, value, shapes, locations, weights)
        _, *points = backward(grad_output, value, shapes, locations, weights, False, need_points)
        return grad_value, *points
    grad_output, value, locations, weights = (_ready(x) for x in (grad_output, value, locations, weights))
    real = torch.promote_types(value.dtype, torch.float32)
    grad_value = value.new_zeros(value.shape if need_value else 0, dtype=real)
    grad_locations, grad_weights = (
        torch.empty_like(x) if need_points else x.new_empty(0) for x in (locations, weights)
    )
    if grad_output.numel() and (need_value or need_points):
        tensors = (grad_output, value, locations, weights, grad_value, grad_locations, grad_weights)
        _launch(tensors, value, locations, shapes, need_value, need_points)
    return grad_value.to(value.dtype), grad_locations, grad_weights
