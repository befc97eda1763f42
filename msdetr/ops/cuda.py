"""The native CUDA backend: csrc/ms_deform_attn.cu, compiled by NVRTC at its first use for the case at hand.

Each combination of types, heads, channels, levels and points has kernels of its own, kept in a cache on disk
(``MSDETR_CACHE``, else the user's cache directory). Neither nvcc nor a CUDA toolkit is needed: ``cuda.core`` brings
launching and compiling, PyTorch's own wheels bring NVRTC. Kernels run on PyTorch's current stream.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
    """What a pair of kernels is compiled for.

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
    need_value: bool = True
    need_points: bool = True
    tile_width: int = 0

    @property
    def real(self) -> torch.dtype:
        """What is computed and accumulated in."""
        return torch.promote_types(self.value, torch.float32)

    @property
    def queries_per_block(self) -> int:
        return self.warps * _LANES // _team(self.value, self.channels)

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


def _team(value: torch.dtype, channels: int) -> int:
    """Lanes that serve one query, as csrc/ms_deform_attn.cu forms them: 16 bytes of channels each."""
    pack = 16 // value.itemsize
    while channels % pack:
        pack //= 2
    return min(_LANES, 1 << (channels // pack - 1).bit_length())


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
    """Registers, bytes of shared memory and bytes spilled of the kernels of a case, as the assembler reports them."""
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
    "cuda.core": ("Device", "LaunchConfig", "Program", "ProgramOptions", "launch"),
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
def cache_folder() -> Path:
    """Where compiled kernels are kept. Raises ConfigError where MSDETR_CACHE cannot be a folder."""
    if chosen := environment.text("MSDETR_CACHE"):
        if any(place.exists() and not place.is_dir() for place in (Path(chosen), *Path(chosen).absolute().parents)):
            raise ConfigError(f"MSDETR_CACHE is {chosen!r}, which cannot be a folder; name one, or leave it out")
        return Path(chosen) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msdetr" / "kernels"


@functools.cache
def _disk_cache():
    from cuda.core.utils import FileStreamProgramCache

    try:
        return FileStreamProgramCache(cache_folder())
    except OSError:  # a read-only home: every process compiles for itself
        return None


@functools.cache
def _kernel(case: Case, arch: str, name: str):
    return compile_case(case, arch, cache=_disk_cache()).get_kernel(name)


@dataclass(frozen=True)
class _Stream:
    """PyTorch's current stream, in the protocol of cuda.core."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def current_stream() -> _Stream:
    """PyTorch's current stream on the current device."""
    return _Stream(torch.cuda.current_stream().cuda_stream)


def case_of(value: Tensor, locations: Tensor, need_value: bool = True, need_points: bool = True) -> Case:
    """The case of a call, with the size of its blocks."""
    _, _, heads, channels = value.shape
    batch, queries, _, levels, points, _ = locations.shape
    teams = batch * queries * heads
    # Large calls in blocks of 32 queries, which share pixels; small ones in smaller blocks, for every multiprocessor.
    team = _team(value.dtype, channels)
    warps = max(1, min(8, team) // (1 if teams >= 1 << 15 else 2))
    # As many queries as tokens are an encoder's: a tile of a level reads fewer pixels than as many queries of a row.
    tile_width = 8 if queries == value.shape[1] and warps * _LANES // team == 32 else 0
    return Case(
        value=value.dtype,
        geometry=locations.dtype,
        heads=heads,
        channels=channels,
        levels=levels,
        points=points,
        warps=warps,
        wide_index=max(value.numel(), locations.numel(), teams * channels) >= 2**31,
        need_value=need_value,
        need_points=need_points,
        tile_width=tile_width,
    )


def _launch(name: str, case: Case, tensors: Sequence[Tensor], value: Tensor, shapes, queries: int) -> None:
    from cuda.core import Device, LaunchConfig, launch

    batch, tokens = value.shape[:2]
    with torch.cuda.device(value.device):
        major, minor = torch.cuda.get_device_capability()
        kernel = _kernel(case, f"sm_{major}{minor}", name)
        Device(value.device.index).set_current()
        blocks = case.blocks(batch, queries, shapes)
        if blocks >= 2**31:
            raise InputError(f"{batch} images of {queries} queries are too many for one launch; split the batch")
        sizes = [np.int32(size) for shape in shapes for size in shape]
        pointers = [tensor.data_ptr() for tensor in tensors]
        launch(
            current_stream(),
            LaunchConfig(grid=blocks, block=case.warps * _LANES),
            kernel,
            *pointers,
            np.int32(tokens),
            np.int32(queries),
            *sizes,
        )


def _ready(tensor: Tensor) -> Tensor:
    """Contiguous, and starting at a multiple of 16 bytes, as the loads want it."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def forward(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """[B, Q, M * D] in value's dtype."""
    value, locations, weights = (_ready(x) for x in (value, locations, weights))
    output = value.new_empty(locations.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    if output.numel():
        case = case_of(value, locations)
        _launch("forward", case, (value, locations, weights, output), value, shapes, locations.shape[1])
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
    case = case_of(value, locations, need_value, need_points)
    grad_value = value.new_zeros(value.shape if need_value else 0, dtype=case.real)
    grad_locations, grad_weights = (
        torch.empty_like(x) if need_points else x.new_empty(0) for x in (locations, weights)
    )
    if grad_output.numel() and (need_value or need_points):
        tensors = (grad_output, value, locations, weights, grad_value, grad_locations, grad_weights)
        _launch("backward", case, tensors, value, shapes, locations.shape[1])
    return grad_value.to(value.dtype), grad_locations, grad_weights
