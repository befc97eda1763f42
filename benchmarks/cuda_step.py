"""A whole training step on a GPU: time, memory, waits of the host and which kernels the time goes to.

    python benchmarks/cuda_step.py [--recipes coco/deformable-detr-pp-300 coco/ms-detr-pp-300] [--images 8]
                                   [--height 800] [--width 1066] [--steps 10] [--output cuda_step] [--compile]

Forward, losses, backward, clipping, AdamW and moving average of random images that lie in pinned memory, as a data
loader leaves them; with --compile, backbone and transformer layers compiled (``train.compile``). "wall"
is from step to step, one after another without a pause; "waits" are those of one step that PyTorch reports, among them
the intended one on a stream for the matching; "busy" is the share of the wall time in which some kernel runs; "host" is
what the host does meanwhile. FLOPs are counted, not measured (scale.py). Writes results/OUTPUT.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import statistics
import time
import warnings
from typing import Any
from unittest import mock

import machine
import torch
from scale import counted
from torch.profiler import ProfilerActivity, profile

from msdetr import recipes
from msdetr.config import RunConfig
from msdetr.engine.distributed import World
from msdetr.engine.trainer import MicroBatch, Trainer
from msdetr.methods import build_criterion, build_detector
from msdetr.structures import ImageBatch, Targets

GPU = torch.device("cuda", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["coco/deformable-detr-pp-300", "coco/ms-detr-pp-300"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--output", default="cuda_step")
    parser.add_argument("--compile", action="store_true")
    for name, default in (("images", 8), ("height", 800), ("width", 1066), ("objects", 7), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rows = []
    for recipe in options.recipes:
        for precision in options.precisions:
            config = recipes.get(recipe).override(
                {"model.pretrained": "none", "train.precision": precision, "train.compile": options.compile}
            )
            rows.append({"recipe": recipe, "precision": precision, **measured(config, options)})
            print({key: value for key, value in rows[-1].items() if key != "kernels"}, flush=True)
            for kernel in rows[-1]["kernels"]:
                print(f"    {kernel['share']:6.1%} {kernel['calls']:6} x  {kernel['name'][:110]}")
            machine.save(options.output, __doc__, GPU, options, {"steps": rows})
            gc.collect()
            torch.cuda.empty_cache()


def measured(config: RunConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about the steps of one recipe."""
    torch.manual_seed(0)
    detector = build_detector(config)
    trainer = Trainer(detector, build_criterion(config), config.train, 1000, 1000, World(device=GPU))
    images, targets = micro_batch(config, options)
    batch = images.pin_memory(), targets.pin_memory()
    begin = time.perf_counter()
    for _ in range(3):  # builds kernels and optimiser state, and chooses convolutions
        trainer.step([batch])
    torch.cuda.synchronize()
    warm_up = time.perf_counter() - begin
    torch.cuda.reset_peak_memory_stats()
    walls = []
    for _ in range(options.steps):
        begin = time.perf_counter()
        trainer.step([batch])
        walls.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**30
    waits, host = waits_of(trainer, batch), host_seconds(trainer, batch)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        begin = time.perf_counter()
        for _ in range(3):
            trainer.step([batch])
        torch.cuda.synchronize()
        wall = (time.perf_counter() - begin) / 3
    kernels = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    busy = sum(e.self_device_time_total for e in kernels) / 3e6
    seconds = statistics.median(walls[1:])
    flops = counted(build_detector(config).to("meta").train(), 1, options.height, options.width)["training FLOPs"]
    return {
        "seconds of the first three steps": warm_up,
        "seconds, wall": seconds,
        "images a second": options.images / seconds,
        "seconds of kernels": busy,
        "busy": busy / wall,
        "peak GiB": peak,
        "TFLOPS": options.images * flops / seconds / 1e12,
        "waits": waits,
        "host": host,
        "kernels": [
            {"name": e.key, "share": e.self_device_time_total / 3e6 / busy, "calls": e.count // 3} for e in kernels[:25]
        ],
    }


def micro_batch(config: RunConfig, options: argparse.Namespace) -> MicroBatch:
    """Images of the size that was asked for, every second one narrower, with as many objects each."""
    mask = torch.zeros(options.images, options.height, options.width, dtype=torch.bool)
    mask[1::2, :, options.width * 3 // 4 :] = True
    images = ImageBatch(torch.randn(options.images, 3, options.height, options.width), mask)
    labels = [torch.randint(config.model.num_classes, (options.objects,)) for _ in range(options.images)]
    boxes = [torch.rand(options.objects, 4) * 0.4 + 0.2 for _ in range(options.images)]
    return images, Targets.from_list(labels, boxes)


def waits_of(trainer: Trainer, batch: MicroBatch) -> dict[str, int]:
    """How often the host waits in one step, by what PyTorch says of it."""
    found: dict[str, int] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.step([batch])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        name = f"{warning.filename.rsplit('/', 1)[-1]}:{warning.lineno} {str(warning.message).splitlines()[0][:80]}"
        found[name] = found.get(name, 0) + 1
    return found


def host_seconds(trainer: Trainer, batch: MicroBatch) -> dict[str, float]:
    """What the host does in a step, in seconds; median of five steps one after another."""
    steps: list[dict[str, float]] = []

    def timed(name: str, call):
        @functools.wraps(call)
        def run(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                steps[-1][name] = steps[-1].get(name, 0.0) + time.perf_counter() - begin

        return run

    forward, criterion, update = trainer.detector.forward, trainer.criterion, trainer._update
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.Tensor, "backward", timed("backward", torch.Tensor.backward)))
        stream = torch.cuda.Stream
        stack.enter_context(
            mock.patch.object(stream, "synchronize", timed("wait for the matching", stream.synchronize))
        )
        stack.enter_context(mock.patch.object(trainer.detector, "forward", timed("forward", forward)))
        stack.enter_context(mock.patch.object(trainer, "criterion", timed("matching and losses", criterion)))
        stack.enter_context(mock.patch.object(trainer, "_update", timed("update", update)))
        for _ in range(6):
            steps.append({})
            timed("whole", trainer.step)([batch])
    for step in steps:
        step["matching and losses"] -= step["wait for the matching"]
        step["rest"] = 2 * step["whole"] - sum(step.values())
    return {name: statistics.median(step[name] for step in steps[1:]) for name in steps[0]}


if __name__ == "__main__":
    main()
