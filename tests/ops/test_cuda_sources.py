"""The CUDA kernels without a GPU: they compile for the architectures we name, and a CPU runs them lane by lane."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from msdetr.ops import cuda, plain

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

FLOAT, DOUBLE, HALF, BFLOAT = torch.float32, torch.float64, torch.float16, torch.bfloat16


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtypes", [(FLOAT, FLOAT), (HALF, HALF), (BFLOAT, FLOAT), (DOUBLE, DOUBLE)])
def test_kernels_compile_without_spilling(dtypes, arch, record_property):
    for case in (cuda.Case(*dtypes, 8, 32, 4, 4, warps=4), cuda.Case(*dtypes, 8, 32, 4, 4, warps=4, wide_index=True)):
        report = cuda.resources(case, arch)
        record_property(f"{arch} {dtypes[0]} wide_index={case.wide_index}", report)
        assert set(report) == {"forward", "backward"}
        for name, used in report.items():
            assert 0 < used["registers"] <= 80, (name, used)  # leaves 24 warps and more per multiprocessor
            assert used["spilled"] <= (16 if dtypes[0] == DOUBLE else 0), (name, used)  # fp64 is for checking gradients
            assert used["shared"] <= 48 * 1024, (name, used)


@pytest.mark.parametrize("channels, levels, points", [(1, 1, 1), (3, 2, 5), (30, 4, 2), (300, 8, 16)])
def test_odd_sizes_compile(channels, levels, points):
    report = cuda.resources(cuda.Case(FLOAT, FLOAT, 3, channels, levels, points, warps=2), "sm_90")
    assert all(used["spilled"] == 0 for used in report.values()), report


def test_compiled_kernels_are_kept_on_disk(tmp_path):
    from cuda.core.utils import FileStreamProgramCache

    case = cuda.Case(FLOAT, FLOAT, 1, 4, 1, 1, warps=1)
    cache = FileStreamProgramCache(tmp_path)
    first = cuda.compile_case(case, "sm_90", cache=cache)
    assert len(cache) == 1
    assert bytes(cuda.compile_case(case, "sm_90", cache=cache).code) == bytes(first.code)
    cuda.compile_case(case, "sm_80", cache=cache)
    assert len(cache) == 2  # another architecture is another entry


# ------------------------------------------------------------------------------------------------- on the CPU

_RUNNERS = """
extern "C" void run_forward(int blocks, const Value* value, const Geometry* locations, const Geometry* weights,
                            Value* output, int tokens, int queries, LEVEL_PARAMETERS) {
  run_grid(blocks, WARPS, [&] { forward(value, locations, weights, output, tokens, queries, LEVEL_SIZES); });
}
extern "C" void run_backward(int blocks, const Value* grad_output, const Value* value, const Geometry* locations,
                             const Geometry* weights, Real* grad_value, Geometry* grad_locations,
                             Geometry* grad_weights, int tokens, int queries, LEVEL_PARAMETERS) {
  run_grid(blocks, WARPS, [&] {
    backward(grad_output, value, locations, weights, grad_value, grad_locations, grad_weights, tokens, queries,
             LEVEL_SIZES);
  });
}
"""
_ASSEMBLY = {
    'asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));': "wide = half_to_float(x.bits);",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));': "to.bits = float_to_half(x);",
}


def emulated(case: cuda.Case, folder: Path) -> ctypes.CDLL:
    """The kernels of a case as a library for this CPU."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to run the CUDA kernels on the CPU with")
    source = case.source()
    for assembly, plain_code in _ASSEMBLY.items():
        assert assembly in source
        source = source.replace(assembly, plain_code)
    header = Path(__file__).with_name("cuda_on_cpu.h")
    (folder / "kernels.cpp").write_text(f'#include "{header}"\n{source}\n{_RUNNERS}')
    command = [compiler, "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-pthread", "-o", "kernels.so", "kernels.cpp"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "kernels.so"))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize(
    "dtypes, channels, levels, points, wide_index",
    [
        ((DOUBLE, DOUBLE), 32, 4, 4, False),
        ((FLOAT, FLOAT), 32, 4, 4, True),
        ((FLOAT, FLOAT), 12, 3, 4, False),  # a team of four with one lane idle
        ((DOUBLE, DOUBLE), 7, 2, 5, False),  # no vector loads
        ((DOUBLE, DOUBLE), 2, 3, 30, False),  # teams of one lane; points staged in several rounds
        ((DOUBLE, DOUBLE), 4, 1, 1, False),  # teams of two lanes
        ((FLOAT, FLOAT), 160, 1, 3, False),  # more channels than one round of the warp
        ((HALF, HALF), 16, 2, 2, False),
        ((BFLOAT, FLOAT), 32, 2, 4, False),
    ],
)
def test_kernels_agree_with_plain_pytorch(dtypes, channels, levels, points, wide_index, tmp_path):
    value_type, geometry_type = dtypes
    heads, batch, queries = 3, 2, 11
    shapes = [(5, 4), (3, 2), (1, 6), (2, 2)][:levels]
    tokens = sum(height * width for height, width in shapes)
    case = cuda.Case(value_type, geometry_type, heads, channels, levels, points, warps=2, wide_index=wide_index)
    library = emulated(case, tmp_path)

    generator = torch.Generator().manual_seed(channels)
    value = torch.randn(batch, tokens, heads, channels, generator=generator).to(value_type)
    locations = (torch.rand(batch, queries, heads, levels, points, 2, generator=generator) * 1.5 - 0.25).to(
        geometry_type
    )
    locations[0, 0, 0, 0, 0, 0], locations[0, 1, 0, 0, 0, 1], locations[1, 2, 1, 0, 0, 0] = torch.nan, torch.inf, -1e4
    weights = torch.rand(batch, queries, heads, levels, points, generator=generator).to(geometry_type)
    grad_output = torch.randn(batch, queries, heads * channels, generator=generator).to(value_type)

    blocks = -(-queries // case.queries_per_block) * heads * batch
    sizes = [ctypes.c_int(size) for shape in shapes for size in shape]
    output = torch.full_like(grad_output, 99)
    library.run_forward(
        blocks, pointer(value), pointer(locations), pointer(weights), pointer(output), tokens, queries, *sizes
    )
    grad_value = torch.zeros_like(value, dtype=case.real)
    grad_locations, grad_weights = torch.full_like(locations, 99), torch.full_like(weights, 99)
    tensors = (grad_output, value, locations, weights, grad_value, grad_locations, grad_weights)
    library.run_backward(blocks, *map(pointer, tensors), tokens, queries, *sizes)

    wide = [x.double() for x in (value, locations, weights)]
    expected = (
        plain.forward(wide[0], shapes, wide[1], wide[2]),
        *plain.backward(grad_output.double(), wide[0], shapes, wide[1], wide[2], True, True),
    )
    tolerance = {DOUBLE: 1e-12, FLOAT: 1e-5, HALF: 4e-3, BFLOAT: 2e-2}
    dtypes_out = (value_type, case.real, geometry_type, geometry_type)
    for actual, exact, dtype in zip(
        (output, grad_value, grad_locations, grad_weights), expected, dtypes_out, strict=True
    ):
        torch.testing.assert_close(actual.double(), exact, rtol=0, atol=tolerance[dtype] * exact.abs().max().item())
