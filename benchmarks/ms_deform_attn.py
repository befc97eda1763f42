"""Speed and memory of multi-scale deformable attention, as ratios to the composition of PyTorch's own operators.

    python benchmarks/ms_deform_attn.py [--device cpu|cuda] [--shapes E D S T] [--threads 1 2] [--output results.json]

All contenders of a shape are timed in turns in one run, so that whatever else the machine does hits them alike; a
figure is the best of its repeats. On one CPU thread it is processor time, on several it is time on the clock. Peak extra memory is what a call needs beyond its inputs, each in a process of its own.
On the CPU the forward has a yardstick: what PyTorch's ``embedding_bag`` takes to add up the same rows when it is told where they
are, what they weigh, and has each head's rows side by side already; there is none for the backward.
On CUDA several calls are captured in a graph and replayed, so that the host's time is not in it (that of one forward is
given apart), and a bound is given beside each time: the largest of moving every tensor once through DRAM, reading the sampled
pixels from L2, adding to their gradients there, and the arithmetic, at rates measured in the same run. Where the package
``deformops`` is installed, its Triton kernels are a contender.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from machine import gpu
from torch import Tensor

import msdetr.ops
from msdetr.ops import cpu, cuda, plain
from msdetr.ops.reference import ms_deform_attn_composite

RESULTS = Path(__file__).parent / "results"
_PYRAMID = ((100, 134), (50, 67), (25, 34), (13, 17))  # 800 x 1066 pixels at strides 8 to 64


@dataclass(frozen=True)
class Shape:
    """A workload; ``queries`` None: every token is a query that looks around itself, as in the encoder."""

    about: str
    batch: int
    levels: tuple[tuple[int, int], ...]
    queries: int | None
    heads: int
    channels: int
    points: int = 4


SHAPES = {
    "E": Shape("encoder, 800 x 1066", 1, _PYRAMID, None, 8, 32),
    "D": Shape("decoder, 900 queries", 1, _PYRAMID, 900, 8, 32),
    "S": Shape("small encoder, 128 x 128", 8, ((16, 16), (8, 8), (4, 4), (2, 2)), None, 8, 16),
    "T": Shape("encoder of the embedded data set, 12 channels", 16, ((16, 16), (8, 8), (4, 4)), None, 8, 12),
    "TD": Shape("decoder of the embedded data set, 12 channels", 16, ((16, 16), (8, 8), (4, 4)), 100, 8, 12),
    "E2": Shape("encoder, batch 2", 2, _PYRAMID, None, 8, 32),
    "E8": Shape("encoder, batch 8", 8, _PYRAMID, None, 8, 32),
    "D300": Shape("decoder, batch 2, 300 queries", 2, _PYRAMID, 300, 8, 32),
    "D900": Shape("decoder, batch 2, 900 queries", 2, _PYRAMID, 900, 8, 32),
}
MEMORY_SHAPES = ("E", "E2", "E8")  # the others are small
# Of value and output, and of locations and weights; the last is what bf16 autocast makes of a training step.
CUDA_TYPES = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
)
CPU_SHAPES, CUDA_SHAPES = ("E", "D", "S", "T", "TD"), ("E2", "E8", "D300", "D900")


def make_inputs(
    shape: Shape, device: str, dtype: torch.dtype, geometry: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, locations (normally distributed around each query, two pixels wide), weights, gradient of the output.

    geometry: type of locations and weights where it is not that of the others.
    """
    generator = torch.Generator().manual_seed(0)
    levels, batch = len(shape.levels), shape.batch
    tokens = sum(height * width for height, width in shape.levels)
    if shape.queries is None:
        centres = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
            for h, w in shape.levels
        ]
        references = torch.cat(centres).expand(batch, -1, -1)
    else:
        references = torch.rand(batch, shape.queries, 2, generator=generator)
    place = (batch, references.shape[1], shape.heads, levels, shape.points)
    size = torch.tensor([(width, height) for height, width in shape.levels])[:, None]
    locations = references[:, :, None, None, None] + 2 * torch.randn(*place, 2, generator=generator) / size
    weights = torch.randn(place, generator=generator).flatten(3).softmax(-1).view(place)
    value = torch.randn(batch, tokens, shape.heads, shape.channels, generator=generator)
    grad_output = torch.randn(batch, place[1], shape.heads * shape.channels, generator=generator)
    types = (dtype, geometry or dtype, geometry or dtype, dtype)
    tensors = (value, locations, weights, grad_output)
    return tuple(x.to(device, to).contiguous() for x, to in zip(tensors, types, strict=True))


# ------------------------------------------------------------------------------------------------------------ contenders


def composite(value: Tensor, shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """grid_sample wants one type, as autocast would have it: that of locations and weights."""
    return ms_deform_attn_composite(value.to(locations.dtype), shapes, locations, weights).to(value.dtype)


def native(value: Tensor, shapes, locations: Tensor, weights: Tensor) -> Tensor:
    with msdetr.ops.backend("native"):
        return msdetr.ops.ms_deform_attn(value, shapes, locations, weights)


def one_thread_per_output(value: Tensor, shapes, locations: Tensor, weights: Tensor) -> Tensor:
    return _OneThreadPerOutput.apply(value, shapes, locations, weights)


class _OneThreadPerOutput(torch.autograd.Function):
    """benchmarks/one_thread_per_output.cu, on CUDA only."""

    @staticmethod
    def forward(ctx, value, shapes, locations, weights):
        from cuda.core import LaunchConfig

        ctx.shapes = shapes
        ctx.save_for_backward(value, locations, weights)
        output = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
        config = LaunchConfig(grid=-(-output.numel() // 256), block=256)
        _launch_yardstick("forward", config, (value, locations, weights, output), shapes, [output.numel()])
        return output

    @staticmethod
    def backward(ctx, grad_output):
        from cuda.core import LaunchConfig

        value, locations, weights = ctx.saved_tensors
        grad_value = torch.zeros_like(value, dtype=torch.float32)
        gradients = (grad_value, torch.empty_like(locations), torch.empty_like(weights))
        blocks = grad_output.numel() // value.shape[3]
        config = LaunchConfig(grid=blocks, block=value.shape[3])
        tensors = (grad_output.contiguous(), value, locations, weights, *gradients)
        _launch_yardstick("backward", config, tensors, ctx.shapes, [])
        return grad_value.to(value.dtype), None, *gradients[1:]


def gather_alone(shape: Shape, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """The sums of a forward without finding the rows: ``embedding_bag`` with their numbers and weights, [B * M * Q, D]."""
    value, locations, weights, _ = inputs
    numbers, factors, start = [], [], 0
    for level, (height, width) in enumerate(shape.levels):
        pixel = locations[:, :, :, level] * torch.tensor([width, height]) - 0.5
        low = pixel.floor()
        for corner in torch.cartesian_prod(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])):
            x, y = (low + corner).unbind(-1)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            near = (1 - (pixel - low - corner).abs()).prod(-1)
            numbers.append(start + y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long())
            factors.append(near * weights[:, :, :, level] * inside)
        start += height * width
    heads = torch.arange(shape.batch * shape.heads).view(shape.batch, shape.heads, 1, 1) * start
    rows = (torch.cat(numbers, -1).transpose(1, 2) + heads).flatten(0, 2).int()
    factors = torch.cat(factors, -1).transpose(1, 2).flatten(0, 2).contiguous()
    table = value.transpose(1, 2).flatten(0, 2).contiguous()
    return lambda: torch.nn.functional.embedding_bag(rows, table, mode="sum", per_sample_weights=factors)


_yardsticks: dict = {}


def _launch_yardstick(name: str, config, tensors, shapes, extra: list[int]) -> None:
    from cuda.core import Program, ProgramOptions, launch

    value, locations = tensors[name == "backward"], tensors[1 + (name == "backward")]
    case = cuda.case_of(value, locations)
    if (case, name) not in _yardsticks:
        source = (Path(__file__).parent / "one_thread_per_output.cu").read_text()
        options = ProgramOptions(std="c++17", device_as_default_execution_space=True)
        _yardsticks[case, name] = Program(case.source(source), "c++", options).compile("cubin").get_kernel(name)
    sizes = [np.int32(size) for shape in shapes for size in shape]
    counts = [np.int32(value.shape[1]), np.int32(locations.shape[1]), *map(np.int64, extra)]
    pointers = [tensor.data_ptr() for tensor in tensors]
    launch(cuda.current_stream(), config, _yardsticks[case, name], *pointers, *counts, *sizes)


@functools.cache
def _levels_on_gpu(shapes) -> tuple[Tensor, Tensor]:
    """Level sizes and where each level starts, as deformops wants them."""
    sizes = torch.tensor(shapes, device="cuda")
    areas = sizes.prod(1)
    return sizes, areas.cumsum(0) - areas


def deformops(value: Tensor, shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """As it chooses for itself: on Hopper the gradient of value is summed up in value's type."""
    from deformops.registry import msda

    return msda(value, *_levels_on_gpu(shapes), locations, weights.to(value.dtype))


def deformops_fp32(value: Tensor, shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """With the gradient of value summed up in fp32, as the kernels here do it."""
    from deformops.registry import Backend, msda

    levels = _levels_on_gpu(shapes)
    return msda(value, *levels, locations, weights.to(value.dtype), backend=Backend.TRITON, fp32acc=True)


def contenders(device: str) -> dict[str, Callable]:
    """The first one is what the others are compared with."""
    found = {"composite": composite}
    if device == "cpu":
        found["plain"] = plain.forward
    if (cpu if device == "cpu" else cuda).available():
        if device == "cuda":
            found["one thread per output"] = one_thread_per_output
            if importlib.util.find_spec("deformops"):
                found |= {"deformops": deformops, "deformops, fp32 sums": deformops_fp32}
        found["native"] = native
    return found


# --------------------------------------------------------------------------------------------------------------- timing


def a_call(function: Callable, inputs, shapes, backward: bool) -> Callable[[], None]:
    """One forward, or one forward and backward."""
    value, locations, weights, grad_output = inputs
    leaves = [x.detach().requires_grad_(backward) for x in (value, locations, weights)]

    def call() -> None:
        output = function(leaves[0], shapes, leaves[1], leaves[2])
        if backward:
            torch.autograd.grad(output, leaves, grad_output)

    return call


def captured(call: Callable[[], None], calls: int) -> torch.cuda.CUDAGraph:
    """So many calls as a CUDA graph, after three to warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph


def gpu_seconds(replay: Callable[[], None]) -> float:
    """What the GPU takes, by events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def timer(function: Callable, inputs, shapes, backward: bool, device: str, calls: int = 1) -> Callable[[], float]:
    """What takes the time of one forward, or of one forward and backward, in seconds: on a GPU from a graph of ``calls``."""
    if device != "cuda":
        return lambda: once(function, inputs, shapes, backward)
    graph = captured(a_call(function, inputs, shapes, backward), calls)
    return lambda: gpu_seconds(graph.replay) / calls


def host_seconds(function: Callable, inputs, shapes, calls: int = 200) -> float:
    """What the host takes to start one forward on a GPU."""
    call = a_call(function, inputs, shapes, False)
    for _ in range(20):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    taken = (time.perf_counter() - begin) / calls
    torch.cuda.synchronize()
    return taken


def once(function: Callable, inputs, shapes, backward: bool) -> float:
    """Seconds of one forward, or of one forward and backward, on a processor."""
    return seconds_of(a_call(function, inputs, shapes, backward))


def seconds_of(call: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    call()
    return clock() - begin


def measure(shape: Shape, device: str, dtype: torch.dtype, geometry: torch.dtype, seconds: float) -> dict:
    """Best and median milliseconds of every contender, forward and forward + backward, taken in turns."""
    inputs = make_inputs(shape, device, dtype, geometry)
    functions = contenders(device)
    if geometry != dtype:
        functions.pop("one thread per output", None)  # knows one type
    if dtype == torch.float32:
        functions.pop("deformops, fp32 sums", None)  # are those of deformops
    results: dict = {name: {} for name in functions}
    for key, backward in (("forward", False), ("forward_backward", True)):
        times: dict[str, list[float]] = {name: [] for name in functions}
        timers: dict[str, Callable[[], float]] = {}
        for name, function in functions.items():
            calls = 2 if name == "composite" else 10
            timers[name] = timer(function, inputs, shape.levels, backward, device, calls)
            timers[name]()  # warm up: threads, memory, compilation
        if device == "cpu" and not backward:
            timers["the gather alone"], times["the gather alone"] = (
                functools.partial(seconds_of, gather_alone(shape, inputs)),
                [],
            )
            timers["the gather alone"]()
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds or len(times["composite"]) < 3:
            for name, take in timers.items():
                for _ in range(1 if name == "composite" else 3):  # the fast ones more often, for little more time
                    times[name].append(take())
        for name, taken in times.items():
            best = min(taken) * 1e3
            results.setdefault(name, {})[key] = {
                "best_ms": best,
                "median_ms": statistics.median(taken) * 1e3,
                "repeats": len(taken),
                "ratio": min(times["composite"]) * 1e3 / best,
                "ratio_of_medians": statistics.median(times["composite"]) / statistics.median(taken),
            }
    if device == "cuda":
        for name, function in functions.items():
            results[name]["host_us"] = (
                host_seconds(function, inputs, shape.levels, 20 if name == "composite" else 200) * 1e6
            )
    return results


# --------------------------------------------------------------------------------------------------------------- memory


def _status(field: str) -> float:
    """A field of /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def _peak_in_child(connection, shape: Shape, name: str, backward: bool) -> None:
    torch.set_num_threads(1)
    inputs = make_inputs(shape, "cpu", torch.float32)
    function = contenders("cpu")[name]
    small = make_inputs(Shape("", 1, ((2, 2),), 1, 1, shape.channels, 1), "cpu", torch.float32)
    once(function, small, ((2, 2),), backward)  # code is loaded before memory is counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    once(function, inputs, shape.levels, backward)
    connection.send(_status("VmHWM") - before)


def peak_memory(
    shape: Shape, name: str, backward: bool, device: str, dtype: torch.dtype, geometry: torch.dtype
) -> float | None:
    """MiB that a call needs at its peak beyond its inputs, output and gradients included; None where not known."""
    if device == "cuda":
        inputs, function = make_inputs(shape, device, dtype, geometry), contenders(device)[name]
        call = a_call(function, inputs, shape.levels, backward)
        call()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_peak_in_child, args=(sender, shape, name, backward))
    child.start()
    peak = receiver.recv() if receiver.poll(300) else None
    child.join()
    return peak


# ----------------------------------------------------------------------------------------------------------- CUDA bounds


# Every lane adds 16 bytes to the 2^21 numbers of `target` again and again, each time elsewhere.
REDUCTIONS = """
extern "C" __global__ void reduce(float* target, int rounds) {
  const unsigned lane = blockIdx.x * blockDim.x + threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    float* at = target + 4 * ((lane + 32 * 4099 * round) % (1 << 19));
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %1, %1, %1};" ::"l"(at), "f"(1.f) : "memory");
#else
    for (int i = 0; i < 4; ++i) atomicAdd(at + i, 1.f);
#endif
  }
}
"""


def reductions(arch: str):
    """The kernel that measures how fast L2 adds."""
    from cuda.core import Program, ProgramOptions

    return Program(REDUCTIONS, "c++", ProgramOptions(std="c++17", arch=arch)).compile("cubin")


def cuda_rates() -> dict[str, float]:
    """Bytes per second from DRAM (copying 1 GiB), read from L2 (adding up 8 MiB again and again) and added there
    atomically, and fp32 operations."""
    from cuda.core import LaunchConfig, launch

    def best(call: Callable[[], object]) -> float:
        times = []
        for _ in range(20):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return min(times)

    large = torch.zeros(2**28, device="cuda")
    target = torch.empty_like(large)
    dram = 2 * large.nbytes / best(lambda: target.copy_(large))
    small = torch.zeros(2**21, device="cuda").expand(64, -1)  # the same 8 MiB, read 64 times in one kernel
    l2 = 64 * 2**23 / best(lambda: small.sum(1))
    properties = torch.cuda.get_device_properties(0)
    kernel = reductions(f"sm_{properties.major}{properties.minor}").get_kernel("reduce")
    target = torch.zeros(2**21, device="cuda")
    config = LaunchConfig(grid=2048, block=256)
    call = lambda: launch(cuda.current_stream(), config, kernel, target.data_ptr(), np.int32(64))
    added = 64 * 2048 * 256 * 16 / best(call)
    clock = getattr(properties, "clock_rate", 1_700_000) * 1e3
    return {"dram": dram, "l2": l2, "l2_add": added, "fp32": properties.multi_processor_count * 128 * 2 * clock}


def cuda_bound(shape: Shape, dtype: torch.dtype, geometry: torch.dtype, rates: dict[str, float]) -> dict[str, float]:
    """Lower bounds in ms. The backward reads what the forward reads and adds to as many pixels' gradients, in fp32."""
    tokens = sum(height * width for height, width in shape.levels)
    queries = shape.queries or tokens
    width = shape.heads * shape.channels
    points = shape.batch * queries * shape.heads * len(shape.levels) * shape.points
    value, output = shape.batch * tokens * width, shape.batch * queries * width
    pixels = 4 * points * shape.channels
    forward = max(
        ((value + output) * dtype.itemsize + 3 * points * geometry.itemsize) / rates["dram"],
        pixels * dtype.itemsize / rates["l2"],
        2 * pixels / rates["fp32"],
    )
    backward = max(
        ((value + output) * dtype.itemsize + 6 * points * geometry.itemsize + 4 * value) / rates["dram"],
        pixels * dtype.itemsize / rates["l2"],
        pixels * 4 / rates["l2_add"],
        4 * pixels / rates["fp32"],
    )
    return {"forward": forward * 1e3, "forward_backward": (forward + backward) * 1e3}


# --------------------------------------------------------------------------------------------------------------- report


def machine(device: str) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    description = {
        "processor": model,
        "cores": os.cpu_count(),
        "instruction_set": cpu.instruction_set() if cpu.available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cuda":
        description |= gpu()
    return description


def table(results: list[dict]) -> str:
    head = f"{'shape':6}{'threads':>8}{'dtype':>10}  {'contender':22}{'fwd ms':>10}{'ratio':>7}{'fwd+bwd ms':>12}{'ratio':>7}"
    lines = [f"{head}{'MiB fwd':>9}{'MiB f+b':>9}"]
    for result in results:
        for name, times in result["contenders"].items():
            forward, both, memory = times["forward"], times.get("forward_backward"), times.get("peak_mib", {})
            lines.append(
                f"{result['shape']:6}{result['threads'] or '':>8}{result['dtype']:>10}  {name:22}"
                f"{forward['best_ms']:10.2f}{forward['ratio']:7.1f}"
                + (f"{both['best_ms']:12.2f}{both['ratio']:7.1f}" if both else "")
                + "".join(f"{memory[key]:9.0f}" if memory.get(key) is not None else " " * 9 for key in memory)
            )
        if bound := result.get("bound_ms"):
            lines.append(f"{'':26}{'lower bound':22}{bound['forward']:10.3f}{'':7}{bound['forward_backward']:12.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=4.0, help="per shape, threads, and direction, at least")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/ms_deform_attn_DEVICE.json")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    output = options.output or RESULTS / f"ms_deform_attn_{options.device}.json"
    rates = cuda_rates() if on_gpu else None
    report = {
        "benchmark": "ms_deform_attn",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(options.device),
        "rates": rates,
        "shapes": {},
        "results": [],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in options.shapes or (CUDA_SHAPES if on_gpu else CPU_SHAPES):
        report["shapes"][name] = asdict(SHAPES[name])
        for dtype, geometry in CUDA_TYPES if on_gpu else CUDA_TYPES[:1]:
            for threads in [None] if on_gpu else options.threads:
                if threads:
                    torch.set_num_threads(threads)
                result = {"shape": name, "threads": threads, "dtype": str(dtype)[6:], "geometry": str(geometry)[6:]}
                result["load_before"] = os.getloadavg()[0]
                result["contenders"] = measure(SHAPES[name], options.device, dtype, geometry, options.seconds)
                if name in MEMORY_SHAPES and not options.no_memory and threads in (None, 1):
                    for contender in contenders(options.device).keys() & result["contenders"].keys():
                        result["contenders"][contender]["peak_mib"] = {
                            key: peak_memory(SHAPES[name], contender, backward, options.device, dtype, geometry)
                            for key, backward in (("forward", False), ("forward_backward", True))
                        }
                if rates:
                    result["bound_ms"] = cuda_bound(SHAPES[name], dtype, geometry, rates)
                report["results"].append(result)
                output.write_text(json.dumps(report, indent=1) + "\n")
                print(table([result]), flush=True)
    print(f"\n{table(report['results'])}\n\nwritten to {output}")


if __name__ == "__main__":
    main()
