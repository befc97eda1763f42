"""The CUDA kernels without a GPU: they compile for the architectures we name, and a CPU runs them lane by lane."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from msdetr.ops import cuda, plain

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

FLOAT, DOUBLE, HALF, BFLOAT = torch.float32, torch.float64, torch.float16, torch.bfloat16
BOTH = {"need_value": True, "need_points": True}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtypes", [(FLOAT, FLOAT), (HALF, HALF), (BFLOAT, FLOAT), (DOUBLE, DOUBLE)])
def test_kernels_compile_without_spilling(dtypes, arch, record_property):
    for options in (
        {},
        BOTH,
        {"tile_width": 8},
        {"tile_width": 8, **BOTH},
        {"wide_index": True, "tile_width": 8, **BOTH},
    ):
        case = cuda.Case(*dtypes, 8, 32, 4, 4, **options)
        case = replace(case, warps=case.team)
        report = cuda.resources(case, arch)
        record_property(f"{arch} {dtypes[0]} {options}", report)
        assert set(report) == {case.kernel}
        used = report[case.kernel]
        assert 0 < used["registers"] <= 80, used  # leaves 24 warps and more per multiprocessor
        assert used["spilled"] <= (16 if dtypes[0] == DOUBLE else 0), used  # fp64 is for checking gradients
        assert used["shared"] <= 48 * 1024, used


@pytest.mark.parametrize("channels, levels, points", [(1, 1, 1), (3, 2, 5), (30, 4, 2), (300, 8, 16)])
def test_odd_sizes_compile(channels, levels, points):
    for options in ({}, BOTH, {"need_points": True}, {"need_value": True}, {"tile_width": 2, "need_value": True}):
        report = cuda.resources(cuda.Case(FLOAT, FLOAT, 3, channels, levels, points, warps=2, **options), "sm_90")
        assert all(used["spilled"] == 0 for used in report.values()), report


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_benchmark_s_kernel_compiles(arch, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from ms_deform_attn import reductions

    assert len(reductions(arch).code) > 1000


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

_MAIN = """
int main(int, char** arguments) {
  FILE* file = fopen(arguments[1], "rb");
  const Tensor header(file), grad_output(file), value(file), locations(file), weights(file);
  Tensor output(file), grad_value(file), grad_locations(file), grad_weights(file);
  fclose(file);
  const int* numbers = header;
  const int blocks = numbers[0], tokens = numbers[1], queries = numbers[2];
  const auto run = [&](LEVEL_PARAMETERS) {
    run_grid(blocks, WARPS, [&] {
#if NEED_VALUE || NEED_POINTS
      backward((Value*)grad_output, (Value*)value, (Geometry*)locations, (Geometry*)weights, (Real*)grad_value,
               (Geometry*)grad_locations, (Geometry*)grad_weights, tokens, queries, LEVEL_SIZES);
#else
      forward((Value*)value, (Geometry*)locations, (Geometry*)weights, (Value*)output, tokens, queries, LEVEL_SIZES);
#endif
    });
  };
  run(SIZES);
  file = fopen(arguments[2], "wb");
  for (const Tensor* result : {&output, &grad_value, &grad_locations, &grad_weights}) result->write(file);
  return fclose(file);
}
"""
# What is written in the GPU's assembly, and the same for this CPU.
_ASSEMBLY = [
    (r'asm\("cvt\.f32\.f16 [^;]*;[^;]*;', "wide = half_to_float(x.bits);"),
    (r'asm\("cvt\.rn\.f16\.f32 [^;]*;[^;]*;', "to.bits = float_to_half(x);"),
    (
        r'asm volatile\("red\.global\.add\.v4\.f32 [^;]*;[^;]*;',
        "vector_add<4>(target + i, {weight * grad[i], weight * grad[i + 1], weight * grad[i + 2], weight * grad[i + 3]});",
    ),
    (
        r'asm volatile\("red\.global\.add\.v2\.f32 [^;]*;[^;]*;',
        "vector_add<2>(target, {weight * grad[0], weight * grad[1]});",
    ),
]
MEMORY, RACES = "address,undefined", "thread"


def run_on_cpu(
    case: cuda.Case,
    numbers: list[int],
    tensors: list[torch.Tensor],
    folder: Path,
    sanitizer=MEMORY,
    edit=lambda text: text,
) -> list[torch.Tensor]:
    """Runs the kernel of a case, as compiled for sm_90, in a sanitized program: numbers are blocks, tokens, queries and
    the level sizes; tensors are grad_output, value, locations, weights, and the four results at their start."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to run the CUDA kernels on the CPU with")
    source = case.source()
    for assembly, plain_code in _ASSEMBLY:
        source, found = re.subn(assembly, plain_code, source)
        assert found == 1, assembly
    assert "asm" not in source
    header = Path(__file__).with_name("cuda_on_cpu.h")
    sizes = ", ".join(f"numbers[{i}]" for i in range(3, len(numbers)))
    (folder / "kernels.cpp").write_text(
        f'#define __CUDA_ARCH__ 900\n#include "{header}"\n{edit(source)}\n{_MAIN.replace("run(SIZES)", f"run({sizes})")}'
    )
    flags = ["-std=c++17", "-O1", "-g1", "-w", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    built = subprocess.run(
        [compiler, *flags, "-o", "kernels", "kernels.cpp"], cwd=folder, capture_output=True, text=True, check=False
    )
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip("this g++ has no sanitizers")
    assert built.returncode == 0, built.stderr
    with (folder / "inputs").open("wb") as file:
        for tensor in (torch.tensor(numbers, dtype=torch.int32), *tensors):
            content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
            file.write(len(content).to_bytes(8, "little") + content)
    done = subprocess.run(
        ["./kernels", "inputs", "results"], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content, results = (folder / "results").read_bytes(), []
    for tensor in tensors[4:]:
        part, content = content[: tensor.nbytes], content[tensor.nbytes :]
        results.append(torch.frombuffer(bytearray(part), dtype=tensor.dtype).view(tensor.shape))
    return results


_SHAPES = [(5, 4), (3, 2), (1, 6), (2, 2)]


def check(
    dtypes, channels, levels, points, folder, queries: int | None = 11, shapes=None, gradients=BOTH, **options
) -> None:
    """Both kernels against plain PyTorch in fp64; queries None: one per token, in tiles. gradients: which are needed."""
    value_type, geometry_type = dtypes
    heads, batch = 3, 2
    shapes = shapes or _SHAPES[:levels]
    tokens = sum(height * width for height, width in shapes)
    edits = {name: options.pop(name) for name in ("sanitizer", "edit") if name in options}
    cases = [
        cuda.Case(value_type, geometry_type, heads, channels, levels, points, **{"warps": 2, **needed, **options})
        for needed in ({}, gradients)
    ]
    queries = queries or tokens

    generator = torch.Generator().manual_seed(channels)
    value = torch.randn(batch, tokens, heads, channels, generator=generator).to(value_type)
    locations = (torch.rand(batch, queries, heads, levels, points, 2, generator=generator) * 1.5 - 0.25).to(
        geometry_type
    )
    locations[0, 0, 0, 0, 0, 0], locations[0, 1, 0, 0, 0, 1], locations[1, 2, 1, 0, 0, 0] = torch.nan, torch.inf, -1e4
    weights = torch.rand(batch, queries, heads, levels, points, generator=generator).to(geometry_type)
    grad_output = torch.randn(batch, queries, heads * channels, generator=generator).to(value_type)

    actuals = []
    for case in cases:
        numbers = [case.blocks(batch, queries, shapes), tokens, queries, *(size for shape in shapes for size in shape)]
        results = [
            torch.full_like(grad_output, 99),
            torch.zeros_like(value, dtype=case.real),
            torch.full_like(locations, 99),
            torch.full_like(weights, 99),
        ]
        run = run_on_cpu(case, numbers, [grad_output, value, locations, weights, *results], folder, **edits)
        actuals += run[:1] if case.kernel == "forward" else run[1:]

    wide = [x.double() for x in (value, locations, weights)]
    expected = (
        plain.forward(wide[0], shapes, wide[1], wide[2]),
        *plain.backward(grad_output.double(), wide[0], shapes, wide[1], wide[2], True, True),
    )
    tolerance = {DOUBLE: 1e-12, FLOAT: 1e-5, HALF: 4e-3, BFLOAT: 2e-2}
    found = zip((True, "need_value" in gradients, *["need_points" in gradients] * 2), actuals, expected, strict=True)
    for _, actual, exact in (each for each in found if each[0]):
        atol = tolerance[actual.dtype] * exact.abs().max().item()
        torch.testing.assert_close(actual.double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "dtypes, channels, levels, points, options",
    [
        pytest.param((DOUBLE, DOUBLE), 32, 4, 4, {}, marks=pytest.mark.slow),
        ((FLOAT, FLOAT), 32, 4, 4, {"wide_index": True}),
        pytest.param((FLOAT, FLOAT), 12, 3, 4, {}, marks=pytest.mark.slow),  # a team of four with one lane idle
        pytest.param((FLOAT, FLOAT), 6, 2, 2, {}, marks=pytest.mark.slow),  # pairs of channels
        pytest.param((DOUBLE, DOUBLE), 7, 2, 5, {}, marks=pytest.mark.slow),  # no vector loads
        pytest.param(
            (DOUBLE, DOUBLE), 2, 3, 30, {}, marks=pytest.mark.slow
        ),  # teams of one lane; points staged in several rounds
        pytest.param((DOUBLE, DOUBLE), 4, 1, 1, {}, marks=pytest.mark.slow),  # teams of two lanes
        pytest.param((FLOAT, FLOAT), 160, 1, 3, {}, marks=pytest.mark.slow),  # more channels than one round of the warp
        ((HALF, HALF), 16, 2, 2, {}),
        pytest.param((BFLOAT, FLOAT), 32, 2, 4, {}, marks=pytest.mark.slow),
        ((FLOAT, FLOAT), 32, 3, 2, {"queries": None, "tile_width": 4, "shapes": [(5, 9), (1, 6), (3, 1)]}),
        pytest.param(
            (BFLOAT, BFLOAT),
            32,
            2,
            2,
            {"queries": None, "tile_width": 8, "shapes": [(3, 17), (2, 8)]},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_kernels_agree_with_plain_pytorch(dtypes, channels, levels, points, options, tmp_path):
    check(dtypes, channels, levels, points, tmp_path, **options)


def test_a_pool_with_too_few_slots_for_its_pixels(tmp_path):
    def edit(source: str) -> str:
        assert "kSlots = 1024" in source
        return source.replace("kSlots = 1024", "kSlots = 8")

    check((FLOAT, FLOAT), 32, 2, 3, tmp_path, queries=None, tile_width=4, edit=edit)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", BOTH)
@pytest.mark.parametrize("options", [{}, {"queries": None, "tile_width": 4}])
def test_one_gradient_alone(gradient, options, tmp_path):
    check((FLOAT, FLOAT), 32, 2, 3, tmp_path, gradients={gradient: True}, **options)


@pytest.mark.parametrize("options", [pytest.param({}, marks=pytest.mark.slow), {"queries": None, "tile_width": 4}])
def test_kernels_have_no_races(options, tmp_path):
    check((FLOAT, FLOAT), 32, 2, 3, tmp_path, sanitizer=RACES, **options)


IN_TILES = {"queries": None, "tile_width": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    "sanitizer, before, after, options",
    [
        (MEMORY, "query >= 0 && point < kPoints", "point < kPoints", {}),  # reads beyond the last query
        (MEMORY, "start + i < queries ? start + i : -1", "start + i", {}),
        (RACES, "sizes, collect);\n    __syncwarp();", "sizes, collect);", {}),
        (MEMORY, "const float (&grad)[kPack]) {", "const float (&grad)[kPack]) { target += 1;", {}),
        (RACES, "    __syncthreads();\n    pool.clear();", "    pool.clear();", IN_TILES),
        (RACES, "    pool.clear();\n    __syncthreads();", "    pool.clear();", IN_TILES),
        (RACES, "    __syncthreads();\n    for (int i = place.warp", "    for (int i = place.warp", IN_TILES),
    ],
)
def test_planted_bugs_are_found(sanitizer, before, after, options, tmp_path):
    def edit(source: str) -> str:
        assert before in source
        return source.replace(before, after)

    points = 50 if options else 3  # so many that a block's points go through shared memory in two rounds
    with pytest.raises(AssertionError, match="Sanitizer|misaligned|runtime error"):
        check((FLOAT, FLOAT), 32, 2, points, tmp_path, sanitizer=sanitizer, edit=edit, **options)


@pytest.mark.parametrize("queries, tile_width", [(17821, 8), (900, 0)])
def test_encoders_are_cut_into_tiles(queries, tile_width):
    shapes = [(100, 134), (50, 67), (25, 34), (13, 17)]
    tokens = sum(height * width for height, width in shapes)
    assert tokens == 17821
    for dtype in (FLOAT, BFLOAT):
        case = cuda.case_of(
            torch.empty(1, tokens, 8, 32, dtype=dtype, device="meta"),
            torch.empty(1, queries, 8, 4, 4, 2, dtype=dtype, device="meta"),
            need_value=True,
        )
        assert case.tile_width == tile_width and case.pooled == bool(tile_width)
        at_least = -(-queries // case.queries_per_block) * 8
        assert at_least <= case.blocks(1, queries, shapes) < 1.1 * at_least  # of a tile at the border, some is outside
